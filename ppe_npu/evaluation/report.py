"""Results of several runs -> a report: Markdown, the same numbers as JSON, a picture and, on request, an HTML page."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ppe_npu.errors import InputError
from ppe_npu.evaluation import cost_table, facts, published, stored, tables
from ppe_npu.evaluation.comparison import by_protocol, compare
from ppe_npu.evaluation.page import write_page
from ppe_npu.evaluation.plot import check_plotting, draw
from ppe_npu.files import check_regular, check_writable, write_json, write_text
from ppe_npu.utils import escape
from ppe_npu.utils.reading import UnreadableError, json_or_none, read_text

__all__ = ["check_place", "check_plotting", "collect", "unfinished", "write_report"]

_FIRST = ("dense", "chatunivi", "keep_one", "ppe")  # rows in this order, then all others by name
_COLUMNS, _FIRST_EDITIONS = "## What the columns are", "![accuracy per question type]("  # text that marks a report
_SCORES = (
    "Scores are in percent unless another unit is named, which the benchmark declares; Avg is the mean of the scores "
    "in percent. Intervals are at 95 %: bootstrap over samples, or Wilson's if all samples have the same score. "
    "Several runs of one name are shown as their mean, followed by their lowest and highest score. p is two-sided, for "
    "no difference from dense on the same samples: McNemar's exact test for right-or-wrong scores, else a sign-flip "
    "permutation test, or the paired bootstrap for a metric over all samples; not corrected for multiple comparisons. "
    "In the picture, methods with the same budget are shifted apart; the grey band is dense's interval."
)
_COSTS = (
    "Costs come from the same runs and are means per sample. Visual tokens: those that the LLM sees, and the "
    "percentage kept, both averaged over its layers. TTFT: the time from preprocessed inputs to a batch's first "
    "tokens. Prefill, total: a batch's time divided by its number of samples. Tokens/s: a whole batch's rate after the "
    "first token. Peak: the most memory that the device's allocator held, weights included. Prompt KV bytes: keys and "
    "values of the prompt's own tokens in all layers, which compression determines. KV bytes at end: the whole cache, "
    "padding and answers included, so longer answers make it larger."
)


def collect(folder: str | Path) -> list[dict[str, Any]]:
    """The results of all finished runs in a folder and below, by benchmark; each with its "folder".

    Within a benchmark dense comes first, then the methods of _FIRST, then the others by name.

    Raises:
        InputError: there are no results, or a file is damaged.
    """
    found = []
    for file in _below(folder, "results.json"):
        check_regular(file)
        try:
            result = json.loads(file.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} is not JSON: delete it and run the evaluation again") from error
        ours = isinstance(result, dict) and {"settings", "costs", "types", "samples"} <= result.keys()
        if ours or all(
            file.with_name(name).exists() for name in ("predictions.jsonl", "settings.json")
        ):  # other programs write files of this name, too
            wrong = stored.result_fault(result)
            if wrong:
                remedy = "delete it and run the evaluation again, which keeps its answers"
                raise InputError(f"{file} is damaged ({wrong}): {remedy}")
            found.append({**result, "folder": str(file.parent)})
    if not found:
        raise InputError(f"{folder} holds no results of an evaluation: run `ppe-npu eval --output {folder}` first")

    def place(result: Mapping[str, Any]) -> tuple:
        own = result.get("method", result["name"])
        rank = _FIRST.index(own.partition(" ")[0]) if own.partition(" ")[0] in _FIRST else len(_FIRST)
        return result["settings"]["benchmark"], rank, own, -(result["costs"]["retention"] or 0.0)

    return sorted(found, key=place)


def _below(folder: str | Path, name: str) -> list[Path]:
    """All files of this name in a folder and below. A link to a run's or a benchmark's folder is followed, unless it
    leads to a folder that contains `folder` itself, because that may hold unrelated runs."""
    found, links, seen, own = [], [], set(), Path(folder).resolve()
    for here, folders, files in os.walk(folder):
        seen.add(os.path.realpath(here))
        within = (path for path in (Path(here, inner) for inner in folders) if path.is_symlink())
        links += [path for path in within if not own.is_relative_to(os.path.realpath(path))]
        found += [Path(here, name)] if name in (*folders, *files) else []
    for file in (file for link in sorted(links) for way in (name, f"*/{name}") for file in link.glob(way)):
        if (real := os.path.realpath(file.parent)) not in seen:
            seen.add(real)
            found.append(file)
    return sorted(filter(os.path.exists, found))


def unfinished(folder: str | Path) -> list[str]:
    """A line for each run in a folder and below that has no results yet."""
    lines = []
    for file in _below(folder, "settings.json"):
        predictions = file.with_name("predictions.jsonl")
        if file.is_file() and predictions.is_file() and not file.with_name("results.json").is_file():
            total = _samples(file)
            done = predictions.read_bytes().count(b"\n")
            lines.append(f"{file.parent.relative_to(folder)}: not finished ({done} of {total} samples), not shown.")
    return lines


def _samples(settings: Path) -> Any:
    """The number of a run's samples according to its settings.json; "?" if that does not say."""
    try:
        return json.loads(settings.read_text(encoding="utf-8-sig"))["samples"]
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return "?"


def check_place(path: Path, html: bool = False) -> None:
    """Check that write_report could write here now and would overwrite nothing but an earlier report.

    Raises:
        InputError: a file that would be overwritten is not part of a report.
        FileError: a file of the report cannot be written.
    """
    files = [path.with_suffix(ending) for ending in (".json", ".md", ".png", *((".html",) if html else ()))]
    further = (path.with_name(f"{path.stem}-{number}.png") for number in itertools.count(2))  # of further protocols
    files += itertools.takewhile(os.path.exists, further)
    for file in files:
        check_writable(file, file=True)
    there = [file for file in files if file.exists()]
    # In an evaluation's own folder, a picture alone or a half-written file counts as part of its report.
    own = any(path.parent.glob("*/*/settings.json"))
    if not there or (_is_numbers if there[0] == files[0] else _is_text)(there[0], own):
        return  # the first file decides for the others, too
    raise InputError(f"{there[0]} is not part of a report and would be overwritten: move it, or name another place")


def _is_numbers(file: Path, own: bool) -> bool:
    found = json_or_none(file)
    if found is None:
        return own
    return isinstance(found, dict) and "title" in found and bool({"benchmarks", "protocols"} & found.keys())


def _is_text(file: Path, own: bool) -> bool:
    if file.suffix != ".md":
        return own
    try:
        text = read_text(file)
    except UnreadableError:
        return False
    return any(mark in text for mark in (_COLUMNS, _FIRST_EDITIONS))


def write_report(
    results: Sequence[Mapping[str, Any]],
    path: str | Path,
    title: str,
    notes: Sequence[str] = (),
    missing: Sequence[str] = (),
    html: bool = False,
    papers: Sequence[str] | None = None,
) -> tuple[Path, str]:
    """Write `path` (Markdown) and, beside it, the same numbers (.json) and a picture (.png) of the same name.

    Args:
        results: what evaluate() or collect() returned, in the order of the rows. Several results with one name on one
            benchmark, such as those of several seeds, become one row: their mean.
        path: the path of the Markdown file.
        title: heading of the report.
        notes: paragraphs under the tables, in Markdown.
        html: whether to write an HTML page (.html), too.
        papers: names of papers (published.names(), or "all") whose published tables are added.
        missing: lines of plain text that say what is not shown, and why; those that the comparison finds follow.

    Returns:
        (path, the overview table of each protocol as Markdown).

    Raises:
        InputError: there are no results, or a paper is unknown.
    """
    notes = [*notes, *published.paragraphs(papers)]
    if not results:
        raise InputError("there are no results to report: evaluate something first")
    path, found = Path(path), comparisons_of(results, missing)
    write_json(path.with_suffix(".json"), {"title": title, **(found[0] if len(found) == 1 else {"protocols": found})})
    parts, overviews = _sections(found, results, path, title)
    if html:
        write_page(found, results, path.with_suffix(".html"), title, papers or ())
    write_text(path, "\n\n".join([*parts, *notes]) + "\n")
    return path, "\n\n".join(overviews)


def _sections(
    found: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]], path: Path, title: str
) -> tuple[list[str], list[str]]:
    """(all parts of the Markdown except the notes, the overview tables among them); draws pictures beside `path`."""
    parts, overviews = [f"# {escape.markdown(title)}"], []
    parted = by_protocol(results)
    for number, comparison in enumerate(found):
        own = parted[comparison["protocol"]]
        name = f"{path.stem}.png" if number == 0 else f"{path.stem}-{number + 1}.png"
        plot = draw(comparison, path.with_name(name), title)
        overviews.append(tables.overview(comparison))
        parts += [f"# Protocol {escape.markdown(comparison['protocol'])}"] if len(found) > 1 else []
        parts += [overviews[-1], escape.markdown(f"Protocol: {comparison['protocol']}.")]
        parts += [f"![score against kept tokens]({quote(os.fsencode(plot.name))})"]
        parts += _benchmarks(comparison, own)
    parts += [_COLUMNS, _SCORES, _COSTS]
    if any(one["interleaved"] for comparison in found for one in comparison["benchmarks"].values()):
        parts += [cost_table.WORDS]
    lines = list(dict.fromkeys(line for comparison in found for line in comparison["missing"]))
    if lines:
        parts += ["## What is missing", "\n".join(f"* {escape.markdown(line)}" for line in lines)]
    return parts, overviews


def comparisons_of(results: Sequence[Mapping[str, Any]], missing: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A comparison per protocol, as tables of different protocols are never joined; `missing` goes to the first one."""
    found = [compare(own, protocol) for protocol, own in by_protocol(results).items()]
    found[0]["missing"] = [*missing, *found[0]["missing"]]
    if len(found) > 1:
        names = ", ".join(comparison["protocol"] for comparison in found)
        found[0]["missing"].append(f"The runs use {len(found)} protocols ({names}), whose tables are not joined.")
    return found


def _benchmarks(comparison: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The parts of all benchmarks' sections, in Markdown."""
    parts, protocol = [], comparison["protocol"]
    for name, found in comparison["benchmarks"].items():
        parts += [f"## {escape.markdown(name)}", escape.markdown(facts.sentence(name, found, results, protocol))]
        parts += tables.one_benchmark(found, protocol)
    return parts
