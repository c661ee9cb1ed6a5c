"""Test cases for the positions that an engine must assign when a prompt's images and videos were compressed.

    python -m ppe_npu.serving.conformance transformers      # or ours, vllm_plug_in, vllm, vllm_evs

positions.json holds the cases; docs/positions.md explains the rule and lists the engines that follow it. A case is a
prompt and the tokens that stay of its images and videos. The right answer is what Qwen-VL models were trained with:
every token keeps its position in the whole prompt, and text continues after the largest of an item's three positions,
no matter how much of the item is left.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np

from ppe_npu.engine.positions import prompt_positions
from ppe_npu.engine.spans import IMAGE, VIDEO, VisionTokens, find_spans

FILE = "positions.json"
TEXT, IMAGE_ID, VIDEO_ID, START, END = 10, 1, 2, 3, 4
MERGE = 2
FAMILIES = {
    "qwen2_vl": VisionTokens(IMAGE_ID, VIDEO_ID, MERGE, None),
    "qwen2_5_vl": VisionTokens(IMAGE_ID, VIDEO_ID, MERGE, 2),
    "qwen3_vl": VisionTokens(IMAGE_ID, VIDEO_ID, MERGE, None, frames_apart=True),
}


@dataclass(frozen=True)
class Item:
    """An image or a video of a prompt.

    Args:
        kind: "image" or "video". grid: (frames, height, width) in patches; 2 x 2 patches are one token.
        seconds: time between the frames of a video.
        kept: indices of the tokens that stay, counted over all of its frames; None: all stay.
        stamps: number of text tokens between its frames, if the family has some.
    """

    kind: str
    grid: tuple[int, int, int]
    seconds: float = 1.0
    kept: tuple[int, ...] | None = None
    stamps: int = 0

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.frame_tokens

    @property
    def frame_tokens(self) -> int:
        return self.grid[1] * self.grid[2] // MERGE**2

    @property
    def stays(self) -> list[int]:
        return list(range(self.tokens)) if self.kept is None else list(self.kept)


@dataclass(frozen=True)
class Answer:
    """The right positions of a case, or those of an engine.

    Args:
        ids: three lists, the t, h and w positions of the tokens that are left.
        text_start: the position of the text token after each image and video (or each frame, if text separates them).
        delta: offset from a generated token's index in the compressed sequence to its position.
    """

    ids: list[list[int]]
    text_start: list[int]
    delta: int


@dataclass(frozen=True)
class ConformanceCase:
    """A prompt. parts: numbers of text tokens alternating with items, beginning and ending with text."""

    name: str
    family: str
    parts: list[int | Item]
    answer: Answer | None = field(default=None, compare=False)

    @property
    def items(self) -> list[Item]:
        return [part for part in self.parts if isinstance(part, Item)]

    @property
    def pruned(self) -> bool:
        return any(item.kept is not None for item in self.items)

    def tokens(self, whole: bool = False) -> np.ndarray:
        """[N] token ids of the compressed prompt, or of the whole one; START precedes and END follows an item's run."""
        return np.array([token for token, stays in self._tokens() if stays or whole])

    @property
    def stays(self) -> np.ndarray:
        """[S] bool, whether each token of the whole prompt stays."""
        return np.array([stays for _, stays in self._tokens()])

    def _tokens(self) -> list[tuple[int, bool]]:
        apart, out = FAMILIES[self.family].frames_apart, []
        for part in self.parts:
            if not isinstance(part, Item):
                out += [(TEXT, True)] * part
                continue
            stays, token = set(part.stays), IMAGE_ID if part.kind == IMAGE else VIDEO_ID
            for frame in range(part.grid[0]):
                if frame and apart and part.kind == VIDEO:
                    out += [(END, True), *[(TEXT, True)] * (part.stamps - 2), (START, True)]
                first = frame * part.frame_tokens
                out += [(token, first + number in stays) for number in range(part.frame_tokens)]
        visual = [token in (IMAGE_ID, VIDEO_ID) for token, _ in out]
        for place, is_visual in enumerate(visual):
            if not is_visual and place and visual[place - 1]:
                out[place] = (END, True)
            elif not is_visual and place + 1 < len(out) and visual[place + 1]:
                out[place] = (START, True)
        return out

    def answer_of(self, whole: np.ndarray) -> Answer:
        """The answer that follows from the positions [3, S] of the whole prompt."""
        return self.read(whole[:, self.stays], int(whole.max()) + 1)

    def read(self, ids: np.ndarray, following: int) -> Answer:
        """The answer with the positions [3, N] of the tokens that are left; `following` is the position after them."""
        text = ~np.isin(self.tokens(), (IMAGE_ID, VIDEO_ID))
        starts = np.flatnonzero(text[1:] & ~text[:-1]) + 1
        return Answer(ids.tolist(), ids[0, starts].tolist(), following - ids.shape[1])


def ours(case: ConformanceCase) -> Answer:
    """The answer of this package's engine."""
    vision, tokens = FAMILIES[case.family], case.tokens(whole=True)
    grids = {kind: [item.grid for item in case.items if item.kind == kind] for kind in (IMAGE, VIDEO)}
    seconds = [item.seconds for item in case.items if item.kind == VIDEO]
    layout = find_spans(tokens[None], None, grids[IMAGE], grids[VIDEO], seconds, vision)
    positions, following = prompt_positions(layout, vision)
    return case.read(positions[:, 0, case.stays], int(following[0]))


def load() -> list[ConformanceCase]:
    """All cases, with their answers."""
    return [_from_plain(values) for values in json.loads(files(__package__).joinpath(FILE).read_text())]


def to_plain(case: ConformanceCase, answer: Answer) -> dict[str, Any]:
    """A case and its answer, as JSON values."""
    parts = [
        {
            "kind": p.kind, "grid": list(p.grid), "seconds": p.seconds, "stamps": p.stamps,
            "kept": None if p.kept is None else list(p.kept),
        }
        if isinstance(p, Item)
        else p
        for p in case.parts
    ]  # fmt: skip
    return {
        "name": case.name, "family": case.family, "parts": parts, "tokens": case.tokens().tolist(), "ids": answer.ids,
        "text_start": answer.text_start, "delta": answer.delta,
    }  # fmt: skip


def _from_plain(values: dict[str, Any]) -> ConformanceCase:
    parts = [
        p
        if isinstance(p, int)
        else Item(**{**p, "grid": tuple(p["grid"]), "kept": None if p["kept"] is None else tuple(p["kept"])})
        for p in values["parts"]
    ]
    answer = Answer(values["ids"], values["text_start"], values["delta"])
    return ConformanceCase(values["name"], values["family"], parts, answer)
