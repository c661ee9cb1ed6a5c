"""A run's folder: what an earlier run left there, and whether this one goes on with it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError
from ppe_npu.files import write_json
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.checkpoint import BASE, read_base
from ppe_npu.training.loop import checkpoints, last_whole_checkpoint

SETTINGS, IDENTITY = "train.json", "identity.json"
_OWN = ("summary.json", "summary.md", "loss.png", "tensorboard", "final")


def check_output(config: TrainConfig, processes: int) -> Path | None:
    """The checkpoint to go on from, if any. An earlier run stays as it is.

    Raises:
        InputError: an earlier run that this one neither goes on with nor drops, or one with other settings.
    """
    output = Path(config.output)
    if output.is_file():
        raise InputError(f"output {output} is a file: name a folder")
    if not (config.resume or config.overwrite) and (checkpoints(output) or (output / "final").exists()):
        raise InputError(
            f"output {output} holds an earlier run: pass resume to go on, overwrite to drop it, or another"
        )
    checkpoint = last_whole_checkpoint(output) if config.resume else None
    if checkpoint is not None and (output / IDENTITY).is_file():
        before, now = json.loads((output / IDENTITY).read_text()), _identity(config, processes)
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            raise InputError(f"{output} was trained with another {', '.join(changed)}: resume with the same settings")
    return checkpoint


def begin_output(config: TrainConfig, processes: int) -> None:
    """Drop what an earlier run left, if that was asked for, and write the resolved settings down."""
    output = Path(config.output)
    if config.overwrite:
        for path in [*checkpoints(output), *(output / name for name in _OWN), *output.glob("skipped-*.jsonl")]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    write_json(output / IDENTITY, _identity(config, processes))
    write_json(output / SETTINGS, config.to_dict())


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


def _identity(config: TrainConfig, processes: int) -> dict[str, Any]:
    """All that decides the losses: settings, the data's bytes, and over how many processes they are shared."""
    data = [_sha256(Path(file)) for file in config.data]
    return json.loads(json.dumps({**config.identity(), "data_sha256": data, "processes": processes}))


def _sha256(file: Path) -> str:
    try:
        with open(file.expanduser(), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"training data {file} cannot be read ({error}): name a .json or .jsonl file") from error
