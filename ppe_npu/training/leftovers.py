"""The files that a run leaves in its folder: how they are told apart from other files, and when they are dropped."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from ppe_npu.errors import InputError
from ppe_npu.files import check_regular, remove, write_text
from ppe_npu.training.checkpoint import IDENTITY, SETTINGS, began
from ppe_npu.training.loop import SAVING, drop
from ppe_npu.training.survey import FILES as SURVEY
from ppe_npu.utils.reading import UnreadableError, read_json

MEDIA, FINAL = "media.txt", "final"
_OWN = ("summary.json", "summary.md", "loss.png")
_MARKS = {  # keys that identify files of these names as a run's
    SETTINGS: ("model", "data", "compression"),
    IDENTITY: ("model", "data", "records_sha256"),
    "summary.json": ("settings", "losses", "steps"),
}
_WRITTEN = (*_MARKS, *_OWN, MEDIA, *SURVEY)
_BEING_SAVED = re.compile(r"checkpoint-\d+|dropped-.+")  # names of the folders in SAVING
_SKIPPED = re.compile(r"skipped-\d+\.jsonl")  # each process lists the records that it left out


def is_written(name: str) -> bool:
    """Whether a run writes a file of this name."""
    return name in _WRITTEN or _SKIPPED.fullmatch(name) is not None


def skipped_files(output: Path) -> list[Path]:
    return sorted(file for file in output.glob("skipped-*.jsonl") if _SKIPPED.fullmatch(file.name))


def check_owned(output: Path) -> None:
    """Raise InputError if no run wrote a file that has the name of a run's: it would be overwritten or dropped."""
    for name, keys in _MARKS.items():
        _check_file(output / name, keys)
    saving = output / SAVING
    if saving.is_file() or (
        saving.is_dir()
        and not saving.is_symlink()
        and not all(_BEING_SAVED.fullmatch(path.name) for path in saving.iterdir())
    ):
        raise InputError(f"{saving} was not written by a run, but runs need its name: move it away")
    skipped = skipped_files(output)
    for file in skipped:
        check_regular(file)
    strange = [file for file in (*(output / name for name in (*_OWN, MEDIA)), *skipped) if file.exists()]
    if strange and not began(output):
        raise InputError(f"{strange[0]} was not written by a run ({SETTINGS} is missing): move it away")


def _check_file(file: Path, keys: Sequence[str]) -> None:
    if not file.exists():
        return
    lacks = f"it lacks {', '.join(keys)}"
    try:
        values = read_json(file)
    except UnreadableError as error:
        why = f"{error.why}; {lacks}"
        raise InputError(f"{file} is damaged or was not written by a run ({why}): move it away") from error
    if not isinstance(values, dict) or any(key not in values for key in keys):
        raise InputError(f"{file} is damaged or was not written by a run ({lacks}): move it away")


def drop_run(output: Path, own: Sequence[Path]) -> None:
    """Drop what an earlier run left; other files stay.

    Args:
        own: the checkpoints of that run.
    """
    for path in [*own, output / FINAL]:
        drop(path)
    if not began(output):
        return
    curves = output / "tensorboard"
    events = [] if curves.is_symlink() else curves.glob("events.out.tfevents.*")  # a link leads to other runs' curves
    for path in [*(output / name for name in _OWN), *events]:
        remove(path)
    with contextlib.suppress(OSError):  # the folder has other files in it, or does not exist
        curves.rmdir()


def tidy(output: Path, step: int) -> None:
    """Drop files that were cut off, and what the run wrote after the checkpoint (of `step`) that it resumes from."""
    remove(output / SAVING)
    for path in list(output.iterdir()):
        cut_off = re.fullmatch(r"\.(.+)\.\d+\.tmp", path.name)
        if cut_off and is_written(cut_off[1]):
            remove(path)
        elif _SKIPPED.fullmatch(path.name):
            _forget_skipped(path, step)


def _forget_skipped(file: Path, step: int) -> None:
    """Cut a list of skipped records down to those up to a step; a line that a kill cut off is dropped, too. A file with
    other lines is no such list, and is left alone."""
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    kept = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                return
            kept += [line + "\n"] if row["step"] <= step else []
    write_text(file, "".join(kept)) if kept else remove(file)
