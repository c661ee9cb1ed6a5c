"""The numbers of a comparison as Markdown tables. A missing number is shown as a dash; the report says why.

Names of benchmarks, question types and metrics come from outside the package, so every cell that is not Markup is
escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ppe_npu.evaluation import cost_table
from ppe_npu.evaluation.scale import PERCENT, is_percent, named, scaled
from ppe_npu.utils import escape


class Markup(str):
    """A cell that is Markdown already."""


_INLINE = 8  # at most this many question types become columns; more of them get a table of their own
_COSTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("visual tokens", "tokens_after", lambda value: f"{value:.1f}"),
    ("kept", "retention", lambda value: f"{100 * value:.0f} %"),
    ("TTFT ms", "ttft_seconds", lambda value: f"{1000 * value:.1f}"),
    ("prefill ms", "prefill_seconds", lambda value: f"{1000 * value:.2f}"),
    ("total ms", "seconds", lambda value: f"{1000 * value:.2f}"),
    ("tokens/s", "tokens_per_second", lambda value: f"{value:.1f}"),
    ("peak MiB", "peak_memory", lambda value: f"{value / 2**20:,.0f}"),
    ("prompt KV bytes", "prompt_kv_bytes", lambda value: f"{value:,.0f}"),
    ("KV bytes at end", "kv_bytes", lambda value: f"{value:,.0f}"),
)


_MEASURED = ("ttft_seconds", "prefill_seconds", "seconds", "tokens_per_second")  # replaced by an interleaved pass


def _named(what: str, protocol: str) -> str:
    """The head of a table's first column, with the protocol, which every table names."""
    return f"{what}, under protocol {protocol}" if protocol else what


TableCells = tuple[list[str], list[list[str]]]  # the head of a table, and its lines


def overview(comparison: Mapping[str, Any]) -> str:
    """overview_cells() as Markdown."""
    return markdown(*overview_cells(comparison))


def overview_cells(comparison: Mapping[str, Any]) -> TableCells:
    """Rows grouped by the share of tokens kept, a column per benchmark, then the average and the percentage of dense's
    scores. A line that names a group begins with Markup."""
    benchmarks = comparison["benchmarks"]
    percent = [key for key, found in benchmarks.items() if is_percent(found["scale"])]
    units = [
        key if key in percent else f"{key} ({named(found['score'], found['scale'])})"
        for key, found in benchmarks.items()
    ]
    average = "Avg" if len(percent) in (0, len(benchmarks)) else f"Avg of {len(percent)} in %"
    head = [_named("method", comparison.get("protocol", "")), *units, average, "% of dense"]
    lines, group = [], None
    for row in comparison["overview"]:
        if row["group"] != group:
            group = row["group"]
            lines.append([Markup(f"**{escape.markdown(group)}**"), *[""] * (len(head) - 1)])
        scores = [scaled(row["scores"][key], found["scale"]) for key, found in benchmarks.items()]
        lines.append([row["name"], *scores, scaled(row["average"], PERCENT), scaled(row["of_dense"], PERCENT)])
    return head, lines


def scores_cells(found: Mapping[str, Any], protocol: str = "") -> TableCells:
    """One benchmark: each method's score with its interval, and the difference from dense's."""
    scale, kinds = found["scale"], found["types"] if 1 < len(found["types"]) <= _INLINE else []
    if found["headline"]:  # accuracy by type is another measure than the headline; metrics_cells() shows metrics
        kinds = []
    score = named(found["score"], scale)
    head = [_named("method", protocol), *kinds, f"all: {score}" if kinds else score, "95 %", "minus dense", "95 %", "p"]
    lines = []
    for row in found["rows"]:
        typed = [_spread(row["types"].get(kind), (row["types_spread"] or {}).get(kind), PERCENT) for kind in kinds]
        lines.append([row["name"], *typed, _spread(row["score"], row["spread"], scale), _interval(row, scale)])
        against = row["against_dense"]
        if against is None:
            lines[-1] += ["-", "-", "-"]
        else:
            lines[-1] += [
                scaled(against["mean"], scale, "+"),
                _interval(against, scale, "+"),
                probability(against["p"]),
            ]
    return head, lines


def types_cells(found: Mapping[str, Any], protocol: str = "") -> TableCells | None:
    """One benchmark's question types, a row each; None if they are few enough for columns of scores_cells()."""
    if found["headline"] or len(found["types"]) <= _INLINE:
        return None
    lines = [[kind, *(scaled(row["types"].get(kind), PERCENT) for row in found["rows"])] for kind in found["types"]]
    return [_named("accuracy, % by type", protocol), *(row["name"] for row in found["rows"])], lines


def metrics_cells(found: Mapping[str, Any], protocol: str = "") -> TableCells | None:
    """The benchmark's other metrics, a row each; None if the other tables show all of them."""
    there = [found["score"]] if found["headline"] else found["types"]
    names = [name for name in found["metrics"] if name not in there]
    if not names:
        return None
    scale = found["metrics_scale"]
    head = "metric, points" if scale["factor"] == 1 and scale["maximum"] else named("metric", scale)
    lines = [[name, *(scaled(row["metrics"].get(name), scale) for row in found["rows"])] for name in names]
    return [_named(head, protocol), *(row["name"] for row in found["rows"])], lines


def costs_cells(found: Mapping[str, Any], protocol: str = "") -> TableCells:
    """One benchmark: the cost of an answer with each method. The runs' own times are shown only if there is no
    interleaved pass."""
    measured = found.get("interleaved")
    shown = [column for column in _COSTS if measured is None or column[1] not in _MEASURED]
    lines = [
        [row["name"], *("-" if row["costs"].get(key) is None else form(row["costs"][key]) for _, key, form in shown)]
        for row in found["rows"]
    ]
    return [_named("method", protocol), *(label for label, _, _ in shown)], lines


def turns_cells(found: Mapping[str, Any], protocol: str = "") -> TableCells | None:
    """The costs that an interleaved pass measured; None if there was none."""
    measured = found.get("interleaved")
    if measured is None:
        return None
    return [_named("method", protocol), *cost_table.head(measured)], cost_table.lines(found, measured)


def all_cells(found: Mapping[str, Any], protocol: str) -> list[TableCells]:
    """All tables of one benchmark."""
    makers = (scores_cells, types_cells, metrics_cells, costs_cells, turns_cells)
    return [cells for cells in (make(found, protocol) for make in makers) if cells is not None]


def one_benchmark(found: Mapping[str, Any], protocol: str) -> list[str]:
    """all_cells() as Markdown, and a paragraph on the interleaved pass, if there is one."""
    parts = [markdown(*cells) for cells in all_cells(found, protocol)]
    words = turns(found)
    return [*parts, escape.markdown(words)] if words else parts


def turns(found: Mapping[str, Any]) -> str | None:
    """How the interleaved pass measured costs, and which methods and samples were not in it; None without a pass."""
    measured = found.get("interleaved")
    if measured is None:
        return None
    text = f"Interleaved: {measured['rounds']} rounds of {measured['prompts']} prompts on {measured['device']}."
    left = [row["name"] for row in found["rows"] if row["name"] not in measured["rows"]]
    text += f" Not measured in this pass: {', '.join(left)}; name all methods in one command." if left else ""
    if slower := cost_table.slower_for_less(measured):
        base = measured.get("reference", "dense")
        text += f" Slower than {base} despite less counted work: {', '.join(slower)}; choosing tokens takes longer "
        text += "here than having fewer of them saves."
    lost = measured.get("left_out") or {}
    told = "; ".join(f"{index} ({why})" for index, why in lost.items())
    return text + (f" Left out because not all methods could answer: {told}." if lost else "")


def probability(p: float) -> str:
    """A p-value as text; one that is 0 is only too small for a float."""
    return f"{p:.2g}" if p else "<1e-300"


def _spread(value: float | None, spread: Sequence[float] | None, scale: Mapping[str, Any]) -> str:
    """A score as text; for several runs the mean, then the least and the greatest score."""
    return scaled(value, scale) + (f" ({scaled(spread[0], scale)} to {scaled(spread[1], scale)})" if spread else "")


def _interval(row: Mapping[str, Any], scale: Mapping[str, Any], sign: str = "") -> str:
    return "-" if row["low"] is None else f"{scaled(row['low'], scale, sign)} to {scaled(row['high'], scale, sign)}"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its numbers aligned to the right; all cells except Markup are escaped."""
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    cells = ([cell if isinstance(cell, Markup) else escape.markdown(cell) for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
