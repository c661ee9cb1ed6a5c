"""Positions that an engine must give a prompt whose images and videos were compressed: cases with the right answer.

    python -m ppe_npu.serving.conformance transformers      # or vllm, vllm_evs, ours: which cases an engine gets right

positions.json holds the cases; docs/positions.md says what the rule is, and who keeps to it. A case is a prompt with
the tokens of its images and videos that stay. The answer is what Qwen-VL models were trained with: every token stands
where it stood in the whole prompt, and text goes on after the largest of an item's three positions, whatever of it is
left.
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
        kind: "image" or "video". grid: (frames, height, width) in patches, of which 2 x 2 are a token.
        seconds: between the frames of a video.
        kept: which of its tokens stay, counted through all of its frames; None: all.
        stamps: text tokens between its frames, where the family sets some.
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
    """What is right, or what an engine says.

    Args:
        ids: (t, h, w) of every token that is left, three lists.
        text_start: the position of the text token after each image and video (each frame, where text stands between).
        delta: what is added to a token's place in the compressed prompt to number those that are generated.
    """

    ids: list[list[int]]
    text_start: list[int]
    delta: int


@dataclass(frozen=True)
class Case:
    """A prompt: numbers of text tokens, and items; a text stands before, between and after them."""

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
        """[N] ids of the prompt as it is left, or of the whole one; START before and END after each run of an item."""
        return np.array([token for token, stays in self._tokens() if stays or whole])

    @property
    def stays(self) -> np.ndarray:
        """[S] bool, of the whole prompt."""
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
        """What the numbering of the whole prompt [3, S] means for what is left of it."""
        return self.read(whole[:, self.stays], int(whole.max()) + 1)

    def read(self, ids: np.ndarray, following: int) -> Answer:
        """From the positions [3, N] of what is left, and the one that follows it."""
        text = ~np.isin(self.tokens(), (IMAGE_ID, VIDEO_ID))
        starts = np.flatnonzero(text[1:] & ~text[:-1]) + 1
        return Answer(ids.tolist(), ids[0, starts].tolist(), following - ids.shape[1])


def ours(case: Case) -> Answer:
    """What the engine of this package says."""
    vision, tokens = FAMILIES[case.family], case.tokens(whole=True)
    grids = {kind: [item.grid for item in case.items if item.kind == kind] for kind in (IMAGE, VIDEO)}
    seconds = [item.seconds for item in case.items if item.kind == VIDEO]
    layout = find_spans(tokens[None], None, grids[IMAGE], grids[VIDEO], seconds, vision)
    positions, following = prompt_positions(layout, vision)
    return case.read(positions[:, 0, case.stays], int(following[0]))


def load() -> list[Case]:
    """All cases, with their answers."""
    return [_from_plain(values) for values in json.loads(files(__package__).joinpath(FILE).read_text())]


def to_plain(case: Case, answer: Answer) -> dict[str, Any]:
    """A case as JSON has it."""
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


def _from_plain(values: dict[str, Any]) -> Case:
    parts = [
        p
        if isinstance(p, int)
        else Item(**{**p, "grid": tuple(p["grid"]), "kept": None if p["kept"] is None else tuple(p["kept"])})
        for p in values["parts"]
    ]
    answer = Answer(values["ids"], values["text_start"], values["delta"])
    return Case(values["name"], values["family"], parts, answer)
