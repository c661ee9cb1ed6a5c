"""The compression of a served checkpoint: the key `ppe_compression` of its config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ppe_npu.checkpoints.loading import SERVED as KEY
from ppe_npu.config import CompressionConfig
from ppe_npu.errors import InputError, shown

DEFAULT = "ppe"
AXES = "mrope_section"  # a second key for decoders with 1-D positions: it makes vLLM ask for positions and keep them


def compression_config(values: Any) -> CompressionConfig:
    """The compression that the value of a config's key describes.

    Args:
        values: a text as on the command line ("divprune:ratio=0.25"), a preset with its keys ({"preset": "ppe",
            "ratio": 0.25}), the result of CompressionConfig.to_dict(), or None for preset ppe.

    Raises:
        InputError: anything else, or what CompressionConfig refuses.
    """
    values = DEFAULT if values is None else values
    if isinstance(values, str):
        return CompressionConfig.from_text(values)
    if not isinstance(values, Mapping):
        raise InputError(f'{KEY}={shown(values)}: give a text such as "ppe:ratio=0.25", or a mapping of keys to values')
    values = dict(values)
    preset = values.pop("preset", None)
    return CompressionConfig.from_dict(values) if preset is None else CompressionConfig.preset(preset, **values)


def identity(config: CompressionConfig) -> str:
    """A short hash of all settings that affect a compression's results, for keys of caches that servers share."""
    plain = json.dumps(config.to_dict(), sort_keys=True)
    return "ppe-" + hashlib.sha256(plain.encode()).hexdigest()[:16]
