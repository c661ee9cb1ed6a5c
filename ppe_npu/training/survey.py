"""What training data costs, reported before training: records by kind, and tokens before and after compression."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ppe_npu.config import CompressionConfig
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.errors import InputError
from ppe_npu.files import write_json, write_text
from ppe_npu.training.checkpoint import began
from ppe_npu.training.data import BAR_AFTER, ChatDataset, Fault, Record, check_records, complaint, read_headers
from ppe_npu.training.lengths import Ruler
from ppe_npu.utils.escape import markdown, printable
from ppe_npu.utils.progress import Progress
from ppe_npu.utils.reading import UnreadableError, json_or_none, read_text

KINDS = ("text", "image", "images", "video", "videos", "mixed")
INVALID = ("stop", "skip")
FILES = ("data.json", "data.md", "faults.jsonl")
_TITLE = "# Training data"
_MARKS = ("kinds", "lengths", "histogram")  # keys that identify a data.json as a survey's
_QUANTILES = {"least": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "99%": 0.99, "most": 1.0}
_BAR = 30  # characters of the histogram's longest bar
_LISTED = 10  # faults that the Markdown report spells out
MOST_WORKERS = 1024
_AT_ONCE = 64  # records that a worker is given


@dataclass(frozen=True)
class Survey:
    """Records and their lengths in tokens. An independent record's questions count as the one sequence they share.

    Attributes:
        records: those that can be used; the arrays below are in their order, int64 [N].
        before, after: all tokens, as the model is given them and as they enter its first decoder layer.
        visual_before, visual_after: the visual ones among them.
        answers: tokens with loss.
        faults: the records that cannot be used.
        compression: a label of the compression.
        max_length: the largest allowed `after`, or None.
    """

    records: tuple[Record, ...] = field(repr=False)
    before: np.ndarray
    after: np.ndarray
    visual_before: np.ndarray
    visual_after: np.ndarray
    answers: np.ndarray
    faults: tuple[Fault, ...]
    compression: str
    max_length: int | None

    @cached_property
    def kinds(self) -> np.ndarray:
        """One of KINDS for each record."""
        return np.array([kind_of(record) for record in self.records], dtype=object)

    def split(self, apart: np.ndarray) -> tuple[Survey, Survey]:
        """(survey of the records where `apart`, bool [N], is False, with all faults; of the others, with no faults)."""

        def part(chosen: np.ndarray, faults: tuple[Fault, ...]) -> Survey:
            records = tuple(record for record, taken in zip(self.records, chosen) if taken)
            names = ("before", "after", "visual_before", "visual_after", "answers")
            return Survey(
                records, *(getattr(self, name)[chosen] for name in names), faults, self.compression, self.max_length
            )

        return part(~apart, self.faults), part(apart, ())

    def to_dict(self) -> dict[str, Any]:
        """The survey as values that JSON can hold, with only the numbers of records and faults."""
        edges = _edges(self.before, self.after)
        return {
            "records": len(self.records),
            "faults": len(self.faults),
            "compression": self.compression,
            "max_length": self.max_length,
            "kinds": {kind: self._sums(self.kinds == kind) for kind in KINDS if (self.kinds == kind).any()},
            "all": self._sums(np.ones(len(self.records), bool)),
            "lengths": {name: _spread(getattr(self, name)) for name in ("before", "after")},
            "histogram": {
                "from": edges[:-1],
                **{name: _counts(getattr(self, name), edges) for name in ("before", "after")},
            },
        }

    def _sums(self, chosen: np.ndarray) -> dict[str, int]:
        names = ("before", "after", "visual_before", "visual_after", "answers")
        return {"records": int(chosen.sum())} | {name: int(getattr(self, name)[chosen].sum()) for name in names}

    def markdown(self) -> str:
        """The report: kinds, lengths, a histogram, and the first of the records that cannot be used."""
        return self._report(markdown)

    def printable(self) -> str:
        """The report for a terminal: text of the records is not escaped for Markdown, but kept on one line."""
        return self._report(printable)

    def _report(self, clean: Callable[[Any], str]) -> str:
        values = self.to_dict()
        limit = f", at most {self.max_length:,} tokens per record" if self.max_length else ""
        parts = [
            _TITLE,
            f"{len(self.records):,} records can be used, {len(self.faults):,} cannot. "
            f"Tokens before and after compression ({self.compression}), on entry of the first decoder layer{limit}.",
            _kinds_table(values),
        ]
        if self.records:
            parts += [_lengths_table(values["lengths"]), _histogram(values["histogram"])]
        return "\n\n".join(parts + ([_faults_table(self.faults, clean)] if self.faults else [])) + "\n"


def prepare_records(
    files: str | Path | Sequence[str | Path],
    processor: Any,
    compression: CompressionConfig,
    sampling: VideoSampling | None = None,
    data_root: str | Path | None = None,
    max_length: int | None = None,
    invalid: str = "stop",
    folder: str | Path | None = None,
    workers: int = 0,
    allow_outside: bool = False,
    showings: int = 1,
) -> tuple[list[Record], Survey]:
    """Read, check and measure training data; what cannot be used stops the run or is left out.

    Args:
        files, data_root, allow_outside: as in data.check_records.
        processor, compression, sampling, max_length, workers, showings: as in survey.
        invalid: "stop", or "skip" to continue without the records that cannot be used.
        folder: where write_survey writes; None: nowhere, as in all processes of a run but the first.

    Returns:
        (the records that can be used, their survey).

    Raises:
        InputError: some records cannot be used (with "stop"), or none can (raised after the lists are written); also
            as check_survey_place.
    """
    if invalid not in INVALID:
        raise InputError(f"invalid={invalid!r}: use one of {', '.join(INVALID)}")
    if folder is not None and not began(Path(folder)):
        check_survey_place(folder)
    how = (processor, compression, sampling, data_root, max_length, workers, allow_outside, showings)
    found = survey_files(files, *how)
    listed = "" if folder is None else f"; all are listed in {write_survey(found, folder) / 'faults.jsonl'}"
    told = complaint(found.faults, len(found.records) + len(found.faults)) if found.faults else ""
    if found.faults and (invalid == "stop" or not found.records):
        remedy = ": fix them, or continue without them (invalid=skip)" if found.records else ""
        raise InputError(f"{told}{listed}{remedy}")
    if found.faults and folder is not None:
        print(f"ppe-npu: {told}; they are left out{listed}", file=sys.stderr, flush=True)
    return list(found.records), found


def survey_files(
    files: str | Path | Sequence[str | Path],
    processor: Any,
    compression: CompressionConfig,
    sampling: VideoSampling | None = None,
    data_root: str | Path | None = None,
    max_length: int | None = None,
    workers: int = 0,
    allow_outside: bool = False,
    showings: int = 1,
) -> Survey:
    """check_records and survey in one; the survey's faults are those of both."""
    checked = check_records(files, data_root, allow_outside)
    known = {"headers": checked.headers, "faults": checked.faults, "workers": workers, "showings": showings}
    return survey(checked.records, processor, compression, sampling, max_length, **known)


def survey(
    records: Sequence[Record],
    processor: Any,
    compression: CompressionConfig,
    sampling: VideoSampling | None = None,
    max_length: int | None = None,
    headers: Mapping[str, Mapping[str, Any]] | None = None,
    faults: Sequence[Fault] = (),
    workers: int = 0,
    showings: int = 1,
) -> Survey:
    """Count the tokens of every record.

    Args:
        records: checked ones.
        processor: the checkpoint's.
        compression: decides how many visual tokens stay.
        sampling: which frames of videos are taken.
        max_length: a record that is longer after compression is a fault; None: there is no limit.
        headers: those of the records' files (data.read_headers); None: they are read.
        faults: faults that were found before; the survey lists them, too.
        workers: processes that count, at most as many as there is work for; 0: this one.
        showings: how often an image is shown.

    Raises:
        InputError: a chat template that is no ChatML, or a max_length that is not positive.
    """
    if max_length is not None and not max_length > 0:
        raise InputError(f"max_length={max_length} must be greater than 0")
    headers = headers or read_headers(records)
    ruler = Ruler(processor, compression, sampling or VideoSampling(), headers, max_length, showings)
    own = torch.Generator()  # the loader draws from it, which leaves the run's random numbers as they are
    workers = min(workers, math.ceil(len(records) / _AT_ONCE))
    loader = DataLoader(ChatDataset(records), _AT_ONCE, collate_fn=ruler, num_workers=workers, generator=own)
    used, rows, found = [], [], list(faults)
    with Progress(len(records), "tokens", "record", delay=BAR_AFTER, leave=False) as bar:
        for record, lengths in zip(records, itertools.chain.from_iterable(loader)):
            if isinstance(lengths, Fault):
                found.append(lengths)
            else:
                used.append(record), rows.append(lengths)
            bar.update()
    columns = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    return Survey(tuple(used), *columns, tuple(found), compression.label, max_length)


def check_survey_place(folder: str | Path) -> None:
    """Raise InputError if a file in a folder has a survey's name but is none: write_survey would overwrite it."""
    known = {"data.json": _is_numbers, "data.md": _is_report, "faults.jsonl": _is_list}
    files = [file for file in (Path(folder) / name for name in FILES) if file.exists()]
    if files and files[0].name == FILES[0] and _is_numbers(files[0]):
        return  # then the others are a survey's, too
    # Earlier versions wrote data.json last. If a kill came first, each of the other files is identified by its content.
    strange = next((file for file in files if not known[file.name](file)), None)
    if strange is not None:
        raise InputError(
            f"{strange} was not written by a survey and would be overwritten: move it away, or name another folder"
        )


def _is_numbers(file: Path) -> bool:
    found = json_or_none(file)
    return isinstance(found, dict) and all(key in found for key in _MARKS)


def _is_report(file: Path) -> bool:
    try:
        return read_text(file).startswith(f"{_TITLE}\n\n")
    except UnreadableError:
        return False


def _is_list(file: Path) -> bool:
    """Whether every line describes a record that cannot be used; True of an empty file, with which nothing is lost."""
    try:
        rows = [json.loads(line) for line in read_text(file).split("\n") if line]
    except (UnreadableError, ValueError, RecursionError):
        return False
    return all(isinstance(row, dict) and row.keys() == {"line", "id", "reason"} for row in rows)


def write_survey(found: Survey, folder: str | Path) -> Path:
    """Write data.json and data.md, and faults.jsonl: {"line", "id", "reason"} of every record that cannot be used.

    Returns:
        The folder.
    """
    folder = Path(folder)
    rows = [{"line": fault.where, "id": fault.id, "reason": fault.reason} for fault in found.faults]
    write_json(folder / "data.json", found.to_dict())  # first, because it identifies the others, also after a kill
    write_text(folder / "data.md", found.markdown())
    write_text(folder / "faults.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return folder


def kind_of(record: Record) -> str:
    """The kind of a record, one of KINDS."""
    images, videos = len(record.images), len(record.videos)
    if images and videos:
        return "mixed"
    if images or videos:
        return ("image" if images else "video") + "s" * (images + videos > 1)
    return "text"


def _spread(lengths: np.ndarray) -> dict[str, float]:
    """Quantiles (lengths that occur) and the mean."""
    if not len(lengths):
        return {}
    values = np.quantile(lengths, list(_QUANTILES.values()), method="inverted_cdf")
    return dict(zip(_QUANTILES, map(int, values))) | {"mean": round(float(lengths.mean()), 1)}


def _edges(*lengths: np.ndarray) -> list[int]:
    """Bounds of the histogram's rows: those of 0, 1, 2, 3, 4, 6, 8, 12, 16, ... that enclose the lengths."""
    occurring = np.concatenate(lengths)
    if not len(occurring):
        return [0]
    steps = sorted({0, *(step << power for power in range(40) for step in (1, 3) if step << power > 0)})
    first = max(edge for edge in steps if edge <= occurring.min())
    last = min(edge for edge in steps if edge > occurring.max())
    return [edge for edge in steps if first <= edge <= last]


def _counts(lengths: np.ndarray, edges: list[int]) -> list[int]:
    return np.histogram(lengths, edges)[0].tolist() if len(edges) > 1 else []


def _kinds_table(values: dict[str, Any]) -> str:
    lines = ["| kind | records | tokens before | after | visual before | after | with loss |", "|---|" + "---:|" * 6]
    for kind, sums in [*values["kinds"].items(), ("all", values["all"])]:
        lines.append("| " + " | ".join([kind, *(f"{number:,}" for number in sums.values())]) + " |")
    return "\n".join(lines)


def _lengths_table(lengths: dict[str, dict[str, float]]) -> str:
    lines = [f"| tokens per record | {' | '.join(lengths['before'])} |", "|---|" + "---:|" * len(lengths["before"])]
    for name, spread in lengths.items():
        lines.append(f"| {name} | " + " | ".join(f"{number:,}" for number in spread.values()) + " |")
    return "\n".join(lines)


def _histogram(histogram: dict[str, list[int]]) -> str:
    most = max(histogram["before"] + histogram["after"])
    lines = [f"{'tokens from':>11}  {'before':<{_BAR + 9}}after"]
    for start, *counts in zip(*histogram.values()):
        bars = (f"{count:>7,} {'#' * -(-count * _BAR // most):<{_BAR}}" for count in counts)
        lines.append(f"{start:>11,}  {' '.join(bars)}".rstrip())
    return "\n".join(["```", *lines, "```"])


def _faults_table(faults: Sequence[Fault], clean: Callable[[Any], str]) -> str:
    lines = ["| record | id | why it cannot be used |", "|---|---|---|"]
    lines += [f"| {clean(f.where)} | {clean(f.id)} | {clean(f.reason)} |" for f in faults[:_LISTED]]
    if len(faults) > _LISTED:
        lines.append(f"| and {len(faults) - _LISTED:,} more | | |")
    return "\n".join(lines)
