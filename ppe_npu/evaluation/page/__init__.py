"""The report as one HTML page that needs no server and no network: sortable tables, plots of the score against the
share of tokens kept, and the samples on which methods differ, with pictures, groups and answers. Its template is
report.html.jinja."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppe_npu.data.pictures import load_image
from ppe_npu.errors import InputError
from ppe_npu.evaluation import cost_table, facts, published, tables
from ppe_npu.evaluation.comparison import by_protocol
from ppe_npu.evaluation.group_pictures import drawn
from ppe_npu.evaluation.page.fitting import TEXT, cut, dumped, fitted
from ppe_npu.evaluation.rows import QUESTION, stored_rows, unshowable
from ppe_npu.files import write_text
from ppe_npu.utils.escape import printable

LIMIT = 18_000_000  # bytes of a page's samples, pictures included; tables and the script come on top
_LABEL = 100  # characters of a sample's index and type
_SIZE = (256, 512)  # largest width and height of a picture; strips of frames are higher than wide
_PICTURES = 6_000_000  # bytes of a page's pictures

Comparison = Mapping[str, Any]


def write_page(
    comparisons: Sequence[Comparison],
    results: Sequence[Mapping[str, Any]],
    path: Path,
    title: str,
    papers: Sequence[str] = (),
) -> Path:
    """Write the page.

    Args:
        comparisons: what report.comparisons_of() returns. results: those that were compared, with their folders.
        papers: names of papers whose published tables are added.

    Raises:
        InputError: jinja2 is not installed, or a file of predictions is damaged.
    """
    from ppe_npu.utils.optional import optional

    jinja2 = optional("jinja2", "the HTML report", "jinja2")
    budget = [_PICTURES]
    parted = by_protocol(results)
    parts = [_part(comparison, parted[comparison["protocol"]], budget) for comparison in comparisons]
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = (Path(__file__).parent / "report.html.jinja").read_text(encoding="utf-8")
    data = fitted([benchmark["samples"] for part in parts for benchmark in part["benchmarks"]], LIMIT)
    shown = {"parts": parts, "papers": published.cells(papers), "costs": cost_table.WORDS}
    text = page.from_string(source).render(title=title, data=data, **shown)
    return write_text(path, printable(text, keep="\n\t"))


def _part(comparison: Comparison, own: Sequence[Mapping[str, Any]], budget: list[int]) -> dict[str, Any]:
    """The template's values for one protocol. own: the results under it."""
    found = []
    for name, benchmark in comparison["benchmarks"].items():
        runs = [result for result in own if result["settings"]["benchmark"] == name]
        cells = tables.all_cells(benchmark, comparison["protocol"])
        scale = benchmark["scale"]["factor"]
        points = [
            {"name": printable(row["name"]), "method": printable(row["method"])}
            | {"x": 100 * row["retention"], "y": scale * row["score"]}
            for row in benchmark["rows"]
            if row["retention"] is not None
        ]
        words = [facts.sentence(name, benchmark, runs, comparison["protocol"]), tables.turns(benchmark)]
        shown = {"name": name, "words": " ".join(filter(None, words)), "tables": cells, "points": dumped(points)}
        found.append({**shown, "score": benchmark["score"], "samples": samples(runs, budget)})
    head, lines = tables.overview_cells(comparison)
    lines = [line for line in lines if not isinstance(line[0], tables.Markup)]
    missing = comparison["missing"]
    return {"protocol": comparison["protocol"], "overview": (head, lines), "benchmarks": found, "missing": missing}


def samples(runs: Sequence[Mapping[str, Any]], budget: list[int]) -> dict[str, Any]:
    """The answers of a benchmark's methods: {"names", "total", "rows"}. There is a row for each sample whose answers or
    scores differ: {"index", "type", "prompt", "truth", "answers" [one per name], "alike" [equal numbers for equal
    answers], "scores", "picture", "groups" {name: picture}}. Of several runs of one name (seeds) the first is shown.

    Args:
        budget: [bytes that pictures may still take], counted down.
    """
    named: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        named.setdefault(run["name"], run)
    asked: dict[Any, dict[str, Any]] = {}
    for name, run in named.items():
        for row in _predictions(run):
            question = {key: row.get(key) for key in QUESTION}
            asked.setdefault(row["index"], {"row": question, "own": {}})["own"].setdefault(name, _said(row))
    rows = []
    for index, found in asked.items():
        own = [found["own"].get(name) for name in named]
        told = {(one["digest"], one["score"]) for one in own if one is not None}
        if len(told) > 1 or None in own:
            rows.append((index, _sample(index, found["row"], own)))
    names = [printable(name) for name in named]
    _add_pictures(rows, names, runs, budget)
    rows = [row for _, row in rows]
    rows.sort(key=lambda row: "picture" not in row)  # samples with a picture come first
    return {"names": names, "total": len(asked), "rows": rows}


def _sample(index: Any, row: Mapping[str, Any], own: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    right = row["GT"] if isinstance(row["GT"], list) else [row["GT"]]
    truth = " | ".join(str(one) for one in right if one is not None)
    whole: dict[int, int] = {}  # digest -> number; answers may differ even if their shortened texts are equal
    return {
        "index": cut(printable(index), _LABEL),
        "type": cut(printable(row.get("type") or ""), _LABEL),
        "prompt": _text(row.get("prompt") or "", "prompt"),
        "truth": _text(truth, "truth"),
        "answers": ["" if one is None else one["text"] for one in own],
        "alike": [None if one is None else whole.setdefault(one["digest"], len(whole)) for one in own],
        "scores": [None if one is None else one["score"] for one in own],
    }


def _said(row: Mapping[str, Any]) -> dict[str, Any]:
    """The shortened text, a digest and the score of an answer, because all whole texts might not fit into memory."""
    text = _text(row.get("error") or row["answer"], "answer")
    return {"text": text, "digest": hash(row["answer"]), "score": row["score"]}


def _text(text: Any, kind: str) -> str:
    return cut(printable(text, keep="\r\n\t"), TEXT[kind])


def _predictions(run: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a run's predictions; none if the run has no folder or the folder no predictions."""
    file = Path(run.get("folder", "")) / "predictions.jsonl"
    if "folder" not in run or not file.is_file():
        return
    yield from stored_rows(file, unshowable)


def _add_pictures(
    rows: Sequence[tuple[Any, dict[str, Any]]],
    names: Sequence[str],
    runs: Sequence[Mapping[str, Any]],
    budget: list[int],
) -> None:
    """Add the drawn pictures and groups of samples to their rows, as many as fit into the budget.

    Args:
        rows: (index of the sample, row).
    """
    folder = next((Path(run["folder"]).parent for run in runs if "folder" in run), None)
    for index, row in rows if folder is not None else ():
        pictures = drawn(folder, index)
        for name, path in pictures.items():
            try:
                url = _url(path)
            except InputError:  # a picture that was damaged since; the numbers do not need it
                continue
            if len(url) > budget[0]:
                return
            budget[0] -= len(url)
            if name == "":
                row["picture"] = url
            elif printable(name) in names:
                row.setdefault("groups", {})[printable(name)] = url


def _url(path: Path) -> str:
    """A picture as a data URL. Raises InputError if the file is no picture."""
    small = load_image(path)
    small.thumbnail(_SIZE)
    data = io.BytesIO()
    small.save(data, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
