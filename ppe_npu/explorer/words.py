"""Groups and costs as text and as a table. Text from outside is escaped where it becomes HTML."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from ppe_npu.config import CompressionConfig
from ppe_npu.evaluation.generation import Generated
from ppe_npu.explorer.groups import Look
from ppe_npu.explorer.state import as_json, as_python
from ppe_npu.inspect.trace import Groups

_LISTED = 12  # places that are listed at most
_ROWS = {
    "after": "visual tokens in the decoder, mean over its layers",
    "tower": "visual tokens in the vision tower",
    "prompt": "prompt tokens after the last merge",
    "ttft": "time to first token, one run",
    "kv": "KV cache of the prompt",
    "tower_flops": "FLOPs in the tower, counted",
    "decoder_flops": "FLOPs in the decoder, counted",
}


def told(look: Look, place: int) -> str:
    """A description of what became of one token: its group, the positions that the group keeps, and their lenders.

    Args:
        place: the token's index in raster order, frame after frame.
    """
    groups = look.groups
    own = where(groups, place)
    token = int(groups.labels.reshape(-1)[place])
    if token < 0:
        return f"The token at {own} was dropped."
    members = np.flatnonzero(groups.labels.reshape(-1) == token)
    center = int(groups.representatives[token])
    kept = len(groups.representatives)
    if len(members) == 1:
        said = f"The token at {own} stayed by itself: it is number {token} of {kept}."
    else:
        said = (
            f"The token at {own} became part of number {token} of {kept}, which stands for {len(members)} tokens: "
            f"{_listed(groups, members)}. Its centre is {where(groups, center)}."
        )
    return f"{said} {_positions(look, token, center)}"


def _positions(look: Look, token: int, center: int) -> str:
    """A description of the positions that a merged token keeps, and of the tokens that lent them."""
    if look.renumbered:
        return "It keeps no position: the prompt was renumbered."
    groups = look.groups
    held = list(dict.fromkeys(groups.held[token].tolist()))
    if held == [center]:
        return "It keeps its own position." if len(groups.held[token]) == 1 else "It keeps one position, its own."
    lenders = [place for place in held if place != center]
    own = "its own and " if center in held else ""
    count = f"{len(held)} positions" if len(held) > 1 else "one position"
    return (
        f"It keeps {count}, {own}{len(lenders)} lent by {'another' if len(lenders) == 1 else 'others'}; in the order "
        f"in which the rotary channels read them: {_listed(groups, held)}."
    )


def where(groups: Groups, place: int) -> str:
    """The place as "(row, column)", or "(step, row, column)" in a video; counted from 0."""
    spot = np.unravel_index(place, groups.labels.shape)
    return f"({', '.join(str(int(part)) for part in spot[0 if groups.labels.shape[0] > 1 else 1 :])})"


def _listed(groups: Groups, places: Sequence[int] | np.ndarray) -> str:
    said = ", ".join(where(groups, int(place)) for place in places[:_LISTED])
    return said + (f" and {len(places) - _LISTED} more" if len(places) > _LISTED else "")


def alternative(name: str, look: Look) -> str:
    """The alternative text of a drawn picture, for screen readers."""
    before, after = look.groups.labels.size, len(look.groups.representatives)
    gone = int((look.groups.labels < 0).sum())
    dropped = f", {gone} dropped" if gone else ""
    return f"{name}: the picture in {before} visual tokens, of which {after} are left{dropped}"


def table(columns: Sequence[tuple[str, Look, Generated | None]]) -> str:
    """An HTML table of each column's costs; all but the first are also given relative to the first."""
    found = [{**look.costs, "ttft": None if done is None else done.prefill_seconds} for _, look, done in columns]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name, _, _ in columns)
    rows = []
    for key, words in _ROWS.items():
        cells = "".join(f"<td>{_cell(key, own.get(key), found[0].get(key), own is found[0])}</td>" for own in found)
        rows.append(f'<tr><th scope="row">{words}</th>{cells}</tr>')
    return (
        '<table class="costs"><caption>What it costs: one prefill (in brackets: relative to dense)</caption>'
        f'<thead><tr><th scope="col">one prompt</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _cell(key: str, value: float | None, dense: float | None, first: bool) -> str:
    if value is None:
        return "ask to measure it"
    if key == "ttft":
        said = f"{1e3 * value:.1f} ms"
    elif key == "kv":
        said = f"{value / 2**20:.2f} MiB" if value >= 2**20 else f"{value / 2**10:.1f} KiB"
    elif key.endswith("flops"):
        said = f"{value / 1e9:,.3g} GFLOP" if value >= 1e9 else f"{value / 1e6:,.3g} MFLOP"
    else:
        said = f"{value:g}"
    return said if first or not dense else f"{said} ({value / dense:.0%})"


def taken_along(configs: Mapping[str, CompressionConfig]) -> str:
    """HTML links that save each column's settings as JSON and as Python."""
    parts = []
    for name, config in configs.items():
        links = [
            _download(f"{name}.json", "application/json", as_json(config), f"{name}: save as JSON"),
            _download(f"{name}.py", "text/x-python", as_python(config), f"{name}: save as Python"),
        ]
        parts.append(" &nbsp; ".join(links))
    return "<br>".join(parts)


def _download(file: str, kind: str, text: str, words: str) -> str:
    data = base64.b64encode(text.encode()).decode("ascii")
    return f'<a class="save" download="{escape(file)}" href="data:{kind};base64,{data}">{escape(words)}</a>'


def python_of(configs: Mapping[str, Any]) -> str:
    """The Python lines of all columns, each under a comment with the column's name."""
    return "\n".join(f"# {name}\n{as_python(config)}" for name, config in configs.items())
