"""A request's own compression, which may differ from the server's within what the server has reserved room for.

It travels with the request's items, as bytes beside their pixels, and is part of the key of every cache that holds
results made with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from ppe_npu.engine.compression import Compression
from ppe_npu.engine.items import Shape, check_items, item_runs
from ppe_npu.errors import InputError, shown
from ppe_npu.serving.settings import KEY
from ppe_npu.utils.recent import Recent

_SAME = ("positions", "k", "members")  # a request cannot change these: the server's rows and rotary embedding are fixed


class Asked:
    """A server's compression, and the compressions that requests ask for.

    Args:
        own: the server's compression.
    """

    def __init__(self, own: Compression):
        self.own, self._made = own, Recent(64)

    def of(self, values: Any) -> Compression:
        """The compression of a request.

        Args:
            values: the keys that it changes, as CompressionConfig.changed() takes them ({"ratio": 0.25}); None: none.

        Raises:
            InputError: unknown keys, other positions than the server's, or a compression that cannot be served.
        """
        if values is None:
            return self.own
        if not isinstance(values, Mapping):
            raise InputError(f'mm_processor_kwargs {KEY}={shown(values)}: give a mapping, such as {{"ratio": 0.25}}')
        return self._made.made(_plain(values), lambda: self._changed(values))

    def _changed(self, values: Mapping[str, Any]) -> Compression:
        for key in _SAME:
            if key in values and values[key] != getattr(self.own.config, key):
                raise InputError(
                    f"mm_processor_kwargs {KEY} has {key}={shown(values[key])}: requests cannot change the server's "
                    f"{shown(getattr(self.own.config, key))}, only what is kept; leave {key} out"
                )
        made = self.own.with_config(self.own.config.changed(**values))
        check_items(made)
        if (made.config.at_pixels is None) != (self.own.config.at_pixels is None):
            raise InputError(f"mm_processor_kwargs {KEY}: only the server sets whether there is a step at the pixels")
        return made

    def read(self, sent: torch.Tensor) -> Compression:
        """The compression that written() has encoded."""
        return self.of(json.loads(bytes(sent.tolist())))

    def check_room(self, compression: Compression, kind: str, shape: Shape) -> None:
        """Raise InputError if a request may keep more tokens of an item than its server has reserved room for.

        Args:
            kind: "image" or "video". shape: the item's, as item_runs() takes it.
        """
        asked, most = (sum(run.kept for run in item_runs(one, kind, shape)) for one in (compression, self.own))
        if asked > most:
            raise InputError(
                f"mm_processor_kwargs {KEY} may keep {asked} tokens of its {kind}, but this server has room for "
                f"{most}: keep fewer, or start the server with more"
            )


def written(values: Mapping[str, Any] | None, count: int) -> torch.Tensor:
    """[count, bytes] uint8: the keys that a request changes, as JSON, once for each of its items."""
    return torch.tensor(list(_plain(values).encode()), dtype=torch.uint8).expand(count, -1).contiguous()


def _plain(values: Mapping[str, Any] | None) -> str:
    try:
        return json.dumps(None if values is None else dict(values), sort_keys=True)
    except (TypeError, ValueError):
        raise InputError(
            f"mm_processor_kwargs {KEY}={shown(values)}: give values that can be written as JSON"
        ) from None
