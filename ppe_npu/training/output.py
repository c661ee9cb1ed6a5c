"""A run's folder: what an earlier run left there, and whether this one goes on with it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError
from ppe_npu.files import write_json
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.checkpoint import BASE, read_base
from ppe_npu.training.data import Record
from ppe_npu.training.loop import checkpoints, last_whole_checkpoint

SETTINGS, IDENTITY = "train.json", "identity.json"
_HOW = ("resume", "overwrite")
_OWN = ("summary.json", "summary.md", "loss.png", "tensorboard", "final")


def check_output(config: TrainConfig) -> None:
    """Raise InputError for an earlier run that this one neither goes on with nor drops."""
    output = Path(config.output)
    if output.is_file():
        raise InputError(f"output {output} is a file: name a folder")
    if not (config.resume or config.overwrite) and (checkpoints(output) or (output / "final").exists()):
        raise InputError(
            f"output {output} holds an earlier run: pass resume to go on, overwrite to drop it, or another"
        )


def begin_output(config: TrainConfig, records: Sequence[Record], processes: int) -> Path | None:
    """Write the resolved settings down, and drop what an earlier run left, if that was asked for.

    Returns:
        The checkpoint to go on from, if any.

    Raises:
        InputError: a run that is to go on had other settings or other records; it stays as it is.
    """
    output, now = Path(config.output), _identity(config, records, processes)
    checkpoint = last_whole_checkpoint(output) if config.resume else None
    if checkpoint is not None and (output / IDENTITY).is_file():
        before = json.loads((output / IDENTITY).read_text())
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            raise InputError(f"{output} was trained with another {', '.join(changed)}: resume with the same settings")
    if config.overwrite:
        for path in [*checkpoints(output), *(output / name for name in _OWN), *output.glob("skipped-*.jsonl")]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    write_json(output / IDENTITY, now)
    # A recipe for the next run, which says itself whether it goes on with this one.
    write_json(output / SETTINGS, {key: value for key, value in config.to_dict().items() if key not in _HOW})
    return checkpoint


def check_base(checkpoint: Path | None, base: dict[str, str]) -> None:
    """Raise InputError if a run that goes on started from other weights than the model has now."""
    if checkpoint is None or not (checkpoint / BASE).is_file():
        return
    before = read_base(checkpoint)
    if before["weights"] != base["weights"]:
        raise InputError(
            f"{checkpoint} started from {before['model']} with other weights ({before['weights']}) than it has now "
            f"({base['weights']}): bring these back, or start a new run"
        )


def _identity(config: TrainConfig, records: Sequence[Record], processes: int) -> dict[str, Any]:
    """All that decides the losses: settings, the records that can be used, over how many processes they are shared."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(repr((record.id, record.images, record.videos, record.turns, record.independent)).encode())
    known = {"records_sha256": digest.hexdigest(), "processes": processes}
    return json.loads(json.dumps({**config.identity(), **known}))
