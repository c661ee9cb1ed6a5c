"""A run's output folder: it is used by one run at a time, which may resume or drop what an earlier run left there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ppe_npu.backends import device as devices
from ppe_npu.errors import InputError, counted
from ppe_npu.files import locked, recover, write_json, write_text, writing
from ppe_npu.models.fingerprint import media_marks, processor_marks
from ppe_npu.training.args import LAST_WHOLE, TrainConfig
from ppe_npu.training.checkpoint import BASE, COMPRESSION, IDENTITY, SETTINGS, WHOLE, read_base
from ppe_npu.training.data import Record
from ppe_npu.training.leftovers import FINAL, MEDIA, check_owned, drop_run, is_written, tidy
from ppe_npu.training.loop import checkpoints, drop, step_of
from ppe_npu.training.whole import check_whole, made_by_train
from ppe_npu.utils.paths import expanded, real_place
from ppe_npu.utils.reading import UnreadableError, json_or_none, read_json

LOCK = ".run.lock"
_PLACES = ("model", "data", "data_root", "deepspeed")
_HOW = ("resume", "resume_from_checkpoint", "overwrite")


@contextlib.contextmanager
def sole_run(output: Path) -> Iterator[None]:
    """Lock the folder against other runs. The lock is the kernel's, so it ends with the process.

    Raises:
        InputError: another run uses the folder, or its file system has no locks.
        FileError: nothing can be written there.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"output {output} is a file: name a folder")
    with writing(output / LOCK):
        output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(FileLock(output / LOCK), output, wait=0))
        except Timeout:
            raise InputError(
                f"output {output} is in use by another run: wait until it ends, stop it, or name another folder"
            ) from None
        yield


def check_output(config: TrainConfig) -> None:
    """Check that a run can use its output folder, after recovering what a killed run left half done.

    Raises:
        InputError: an earlier run that this one neither resumes nor drops, files of other origin that this one would
            overwrite, or a model or data that it reads and would drop or overwrite.
    """
    output = Path(config.output)
    data = [expanded(file) for file in (*config.data, *config.validation_data)]
    for file in data:
        if any(
            place.parent.resolve() == output.resolve() and is_written(place.name) for place in (file, file.resolve())
        ):
            raise InputError(f"data {file} has the name of a file that the run writes to {output}: name another output")
    for name in ("final", *(path.name.split(".")[1] for path in output.glob(".checkpoint-*.old"))):
        recover(output / name, alone=True)
    check_owned(output)
    final = output / FINAL
    dropped = (final, *filter(made_by_train, checkpoints(output))) if config.overwrite else ()
    for what, path in [("model", expanded(config.model)), *(("data", file) for file in data)]:
        if any(_is_in(path, place) for place in dropped):
            raise InputError(f"{what} {path} would be deleted by overwriting output {output}: name another output")
    if not (config.resume or config.overwrite) and (checkpoints(output) or final.exists()):
        raise InputError(
            f"output {output} contains an earlier run: resume it (--resume), delete it (--overwrite), or name another"
        )
    if final.exists() and not ((final / BASE).is_file() and (final / COMPRESSION).is_file()):
        raise InputError(f"{final} was not written by a run (it lacks {BASE}): move it away, or name another output")


def _is_in(path: Path, place: Path) -> bool:
    """Whether dropping a folder removes a path; of a link to a folder only the link is removed."""
    return path.absolute().is_relative_to(place.absolute()) or (
        not place.is_symlink() and path.resolve().is_relative_to(place.resolve())
    )


# -- the checkpoint to resume from -------------------------------------------------------------------------------------


def checkpoint_to_resume(config: TrainConfig) -> Path | None:
    """The checkpoint that was asked for, or the newest in the output folder, a complete one if possible; None if none.

    Its files are not checked here, and every process of a run finds the same one. Only LAST_WHOLE reads the files.

    Raises:
        InputError: the one that was asked for does not exist, or none is whole.
    """
    output = Path(config.output)
    if not config.resume:
        return None
    own = [folder for folder in reversed(checkpoints(output)) if made_by_train(folder)]
    if config.resume_from_checkpoint == LAST_WHOLE:
        found = _last_whole(own)
        if found is None and own:
            raise InputError(f"output {output} contains no whole checkpoint: start over (overwrite)")
        return found
    if config.resume_from_checkpoint is not None:
        asked = config.resume_from_checkpoint
        found = next((path for path in (output / asked, Path(asked)) if path.is_dir()), None)
        if found is None:
            there = ", ".join(path.name for path in own) or "no checkpoint"
            raise InputError(f"resume_from_checkpoint={asked!r} does not exist: {output} contains {there}")
        return output / found.name if found.resolve().parent == output.resolve() else found
    cut_off = [folder for folder in own if not (folder / WHOLE).exists()]
    whole = [folder for folder in own if folder not in cut_off]
    return whole[0] if whole else cut_off[0] if cut_off else None


def check_checkpoint(config: TrainConfig, checkpoint: Path | None) -> None:
    """Check that all files of the checkpoint to resume from are what was written, and report ignored checkpoints.

    Raises:
        InputError: a file is not; the message names it, and the last whole checkpoint.
    """
    own = []
    for folder in checkpoints(config.output):
        if not made_by_train(folder):
            say(f"{folder} was not written by this run: it is left unchanged")
        elif checkpoint not in (None, folder) and not (folder / WHOLE).exists():
            say(f"{folder} contains no {WHOLE}, as its saving was interrupted: resuming from {checkpoint.name}")
        else:
            own.append(folder)
    if checkpoint is None:
        return
    try:
        if not check_whole(checkpoint):
            say(f"{checkpoint} of an earlier version has no list of its files: they were read, but not compared")
    except InputError as error:
        last = _last_whole([folder for folder in reversed(own) if folder != checkpoint])
        remedy = "no other checkpoint is whole: restore it, or start over with --overwrite"
        if last is not None:
            remedy = f"resume from the last whole one with --resume-from-checkpoint {last.name}"
        raise InputError(f"{error}; {remedy}") from error


def _last_whole(newest_first: Sequence[Path]) -> Path | None:
    for folder in newest_first:
        with contextlib.suppress(InputError):
            check_whole(folder)
            return folder
    return None


def say(text: str) -> None:
    print(f"ppe-npu: {text}", file=sys.stderr, flush=True)


# -- is it the same run? -----------------------------------------------------------------------------------------------


def run_identity(
    config: TrainConfig, processor: Any, records: Sequence[Record], processes: int
) -> tuple[dict[str, Any], list[str]]:
    """All that decides the losses: the settings, the processor, the usable records, their pictures and videos, and the
    number of processes.

    Returns:
        (the contents of identity.json, the media_marks of the pictures and videos in media_of's order).
    """
    known = {
        **_records_marks(config, records),
        "processes": processes,
        "processor": processor_marks(processor),
    }
    marks = []
    if config.save_steps or config.resume:  # else no checkpoint is saved that could be resumed
        try:
            marks = list(media_marks(media_of(records)))
        except OSError as error:
            raise InputError(f"{error.filename} cannot be read ({error.strerror}): restore it") from error
        known["media_sha256"] = hashlib.sha256("\n".join(marks).encode()).hexdigest()
    return {**_settings(config), **known}, marks


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide the losses, as JSON holds them; of the device only its kind, because auto may change."""
    return json.loads(json.dumps({**config.identity(), "device": _kind(config.device)}))


def _records_marks(config: TrainConfig, records: Sequence[Record]) -> dict[str, str]:
    """Two digests of the records: "records_sha256", which earlier versions compare, includes the paths of their files;
    "records" includes their order and names instead, so it does not depend on where they lie or how paths are spelled.
    """
    places = {path: (number, Path(path).name) for number, path in enumerate(media_of(records))}
    spelled, ordered = hashlib.sha256(), hashlib.sha256()
    for record in records:
        images = [places[path] for path in record.images]
        videos = [(places[path], config.sampling.of_video(path).nframes) for path in record.videos]
        for digest, files in ((spelled, (record.images, record.videos)), (ordered, (images, videos))):
            digest.update(repr((record.id, *files, record.turns, record.independent)).encode())
    return {"records_sha256": spelled.hexdigest(), "records": ordered.hexdigest()}


def media_of(records: Sequence[Record]) -> list[str]:
    """All pictures and videos of records, each once, in the order in which they are first named."""
    return list(dict.fromkeys(path for record in records for path in (*record.images, *record.videos)))


def check_settings(config: TrainConfig, checkpoint: Path | None) -> None:
    """Raise InputError if a checkpoint was made with other settings; the data need not have been read."""
    if checkpoint is not None:
        _compare(checkpoint, _settings(config), config)


def check_identity(
    config: TrainConfig, checkpoint: Path | None, now: dict[str, Any], records: Sequence[Record], marks: Sequence[str]
) -> None:
    """Raise InputError if a checkpoint's run had other settings, records, pictures or videos."""
    if checkpoint is None:
        return
    before = _compare(checkpoint, now, config)
    if "media_sha256" not in before:
        if checkpoint.name == FINAL:  # a run that saved no checkpoints did not read them for their marks
            return
        say(f"{checkpoint} was written by an earlier version: whether pictures and videos have changed is not known")
    elif before["media_sha256"] != now["media_sha256"]:
        file = Path(config.output) / MEDIA
        known = file.read_text(encoding="utf-8", errors="replace").split() if file.is_file() else []
        changed = [path for path, mark, old in zip(media_of(records), marks, known) if mark != old]
        many = f" (and {counted(len(changed) - 1, 'more file')})" if len(changed) > 1 else ""
        named = f"{changed[0]}{many}" if changed else "a picture or a video"
        named += f" is not what {checkpoint} was trained on"
        raise InputError(f"{named}: restore what was there, or start over with --overwrite")


def _compare(checkpoint: Path, now: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """A checkpoint's identity, after comparing it with the present one; {} if an early version wrote none."""
    file = next((path for path in (checkpoint / IDENTITY, checkpoint.parent / IDENTITY) if path.is_file()), None)
    if file is None:
        say(f"{checkpoint} was written by an earlier version without {IDENTITY}: its settings cannot be compared")
        return {}
    before = json_or_none(file)
    if not isinstance(before, dict):
        return {}  # check_whole reports it
    # Settings that an earlier version did not have count as having their present defaults.
    was = json.loads(json.dumps({**TrainConfig(config.model, config.data, config.output).identity(), **before}))
    told = (key for key in _differing(was, now) if key != "media_sha256")
    changed = [f"{key} ({_short(was[key])}, now {_short(now[key])})" for key in told]
    if changed:
        raise InputError(f"{checkpoint} was trained with other settings, {', '.join(changed)}: resume with the same")
    return before


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Keys of `now` that have another value in an earlier identity. For paths the content counts: the model's weights
    (see check_base), and the records and files of the data. If these are not known, paths to the same place are equal.
    """
    free = {key for key in _PLACES if real_place(before.get(key)) == real_place(now.get(key))}
    free |= {"device"} if _kind(before.get("device")) == _kind(now.get("device")) else set()
    if "records" in before:
        free |= {"model", "records_sha256"}
        same = "media_sha256" in before and before["records"] == now.get("records", before["records"])
        free |= {"data", "data_root"} if same else set()
    return [key for key, value in now.items() if key not in free and before.get(key, value) != value]


def _kind(name: Any) -> Any:
    """The kind of device that a name means on this machine: what auto chooses, or "npu" for "npu:0"."""
    return devices.resolve(name).type if name == "auto" else str(name).partition(":")[0]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


def check_base(checkpoint: Path | None, base: dict[str, str]) -> None:
    """Raise InputError if the run that is resumed started from other weights than the model has now."""
    if checkpoint is None or not (checkpoint / BASE).is_file():
        return
    before = read_base(checkpoint)
    if before["weights"] != base["weights"]:
        raise InputError(
            f"{checkpoint} started from {before['model']} with other weights ({before['weights']}) than "
            f"{base['model']} has now ({base['weights']}): restore the weights, or start a new run"
        )


# -- the first changes to the folder -----------------------------------------------------------------------------------


def begin_output(
    config: TrainConfig, checkpoint: Path | None, steps: int, identity: dict[str, Any], marks: Sequence[str]
) -> list[Path]:
    """Drop what an earlier run left, if that was asked for, and write the settings; called after all comparisons.

    Args:
        checkpoint: the one to resume from. steps: number of steps of the whole run.
        identity, marks: what run_identity returns.

    Returns:
        Checkpoints of this run that are newer than the one it resumes from, to be dropped once it saves a new one.

    Raises:
        InputError: a folder that no run wrote has the name of a checkpoint to come.
    """
    output = Path(config.output)
    begun = 0 if checkpoint is None else step_of(checkpoint)
    found = checkpoints(output)
    for folder in found:
        step = step_of(folder)
        to_come = config.save_steps and begun < step < steps and step % config.save_steps == 0
        if to_come and not made_by_train(folder):
            raise InputError(f"{folder} was not written by a run, but this run needs its name: move it away")
    own = [folder for folder in found if made_by_train(folder) and not folder.is_symlink()]
    newer = [folder for folder in own if step_of(folder) > begun]
    older = [folder for folder in own if step_of(folder) <= begun]
    with writing(output):
        if config.overwrite:
            drop_run(output, own)
        elif config.save_steps:  # a run that was killed right after it saved a checkpoint has not dropped these
            for folder in older[: -config.save_total_limit]:
                drop(folder)
        tidy(output, begun)
        write_json(output / IDENTITY, identity)
        if checkpoint is None or not (output / MEDIA).is_file():
            write_text(output / MEDIA, "".join(f"{mark}\n" for mark in marks))
        # The settings are a recipe for the next run, which decides for itself whether it resumes.
        write_json(output / SETTINGS, {key: value for key, value in config.to_dict().items() if key not in _HOW})
    return [folder for folder in newer if not config.overwrite and _same_run(folder, identity)]


def _same_run(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether a checkpoint of the folder may be this run's: its identity shows no difference."""
    try:
        found = read_json(folder / IDENTITY)  # an earlier version's may have fewer keys
        if not isinstance(found, dict) or _differing(found, identity):
            return False
        return real_place(found.get("model")) == real_place(identity.get("model"))  # weights are not compared here
    except UnreadableError:  # an early version wrote none, and a damaged checkpoint may have lost it
        return True
