"""The motion task: clips of one coloured figure, and questions about what happens to it.

The figure walks in one of four directions, vanishes now and then, and at some moment becomes another glyph, another
colour, both or neither. A question is one word; the answer restates it and adds one ("towards left"):

    towards    in which direction does it walk?     left, right, up, down
    times      how often does it vanish?            0..2
    changed    what of it became another?           colour, shape, both, nothing

No frame alone holds an answer. The figure leaves the frame on one side and comes back on the other, so that where it
stands in the first says nothing of where it goes; how long it stays away, and when it changes, is drawn, too.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppe_npu.demo.scenes import BACKGROUND, CELL, COLOURS, GLYPHS, SHAPES
from ppe_npu.files import write_text, writing

FRAMES = 8
RATE = 2  # frames per second
SIDE = 2 * CELL  # pixels along one side of a frame
STEP = 2  # pixels between two frames, and between places: half a patch of the tiny model
DIRECTIONS = {"left": (0, -STEP), "right": (0, STEP), "up": (-STEP, 0), "down": (STEP, 0)}
TIMES = (0, 1, 2)
CHANGES = {"nothing": (False, False), "colour": (True, False), "shape": (False, True), "both": (True, True)}
ANSWERS = {"towards": tuple(DIRECTIONS), "times": tuple(map(str, TIMES)), "changed": tuple(CHANGES)}
QUESTION_TYPES = tuple(ANSWERS)
CHANCE = {kind: 1 / len(answers) for kind, answers in ANSWERS.items()}
WORDS = ("system", "user", "assistant", *QUESTION_TYPES, *(word for words in ANSWERS.values() for word in words))


def _blinks() -> dict[int, list[tuple[bool, ...]]]:
    """How often a figure vanishes -> all ways of that: whether it is there, frame by frame, from the first on."""
    ways: dict[int, list[tuple[bool, ...]]] = {}
    for rest in itertools.product((True, False), repeat=FRAMES - 1):
        there = (True, *rest)
        count = sum(now and not then for now, then in itertools.pairwise(there))
        if sum(there) > FRAMES // 2:  # else what it does cannot be seen
            ways.setdefault(count, []).append(there)
    return {count: ways[count] for count in TIMES}


BLINKS = _blinks()


@dataclass(frozen=True)
class Clip:
    """Frame by frame a figure's glyph (None: away), colour and (row, column); and the answers, by question."""

    glyphs: tuple[str | None, ...]
    colours: tuple[str, ...]
    places: tuple[tuple[int, int], ...]
    answers: dict[str, str]

    def pixels(self) -> np.ndarray:
        """uint8 [FRAMES, SIDE, SIDE, 3]."""
        canvas = np.empty((FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
        canvas[:] = BACKGROUND
        for frame, glyph, colour, place in zip(canvas, self.glyphs, self.colours, self.places):
            if glyph is not None:
                ink = np.zeros((SIDE, SIDE), dtype=bool)
                ink[:CELL, :CELL] = GLYPHS[glyph]
                frame[np.roll(ink, place, (0, 1))] = COLOURS[colour]
        return canvas

    def questions(self) -> list[tuple[str, str, str]]:
        """Every question of the clip as (type, question, answer), each answer one word."""
        return [(kind, kind, answer) for kind, answer in self.answers.items()]


def make_clip(rng: np.random.Generator) -> Clip:
    """A random clip: direction, how often the figure vanishes and what changes are drawn evenly and apart."""
    answers = {kind: str(rng.choice(words)) for kind, words in ANSWERS.items()}
    ways = BLINKS[int(answers["times"])]
    there = ways[rng.integers(len(ways))]
    row, column = (STEP * int(place) for place in rng.integers(0, SIDE // STEP, 2))
    down, right = DIRECTIONS[answers["towards"]]
    places = [((row + down * frame) % SIDE, (column + right * frame) % SIDE) for frame in range(FRAMES)]
    # Frames on both sides of the change are seen: it falls on one in which the figure is there, but not the first.
    change = int(rng.choice([frame for frame in range(1, FRAMES) if there[frame]]))
    colours, shapes = ([str(name) for name in rng.permutation(list(names))[:2]] for names in (COLOURS, SHAPES))
    recoloured, reshaped = CHANGES[answers["changed"]]
    drawn_in = [colours[recoloured and frame >= change] for frame in range(FRAMES)]
    glyphs = [shapes[reshaped and frame >= change] if there[frame] else None for frame in range(FRAMES)]
    return Clip(tuple(glyphs), tuple(drawn_in), tuple(places), answers)


def write_clip(file: str | Path, frames: np.ndarray) -> None:
    """Frames, uint8 [T, H, W, 3], as a film that loses nothing; the same frames are the same bytes."""
    import av

    with av.open(str(file), "w", format="mov", container_options={"fflags": "+bitexact"}) as film:
        stream = film.add_stream("png", rate=RATE)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        for frame in frames:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        film.mux(stream.encode(None))


def make_record(identity: str, video: str, questions: list[tuple[str, str, str]]) -> dict:
    """One LLaVA record: `video` is the path below the data folder, `questions` are (type, question, answer)."""
    turns = []
    for number, (_, question, answer) in enumerate(questions):
        turns.append({"from": "human", "value": question if number else f"<video>\n{question}"})
        turns.append({"from": "gpt", "value": f"{question} {answer}"})
    kinds = [kind for kind, _, _ in questions]
    return {"id": identity, "video": video, "question_types": kinds, "independent": True, "conversations": turns}


def write_split(folder: str | Path, name: str, clips: int, seed: int) -> Path:
    """Write clips/<name>-*.mov and, last and in one step, <name>.jsonl; a split that has its .jsonl is complete.

    Args:
        folder: the data folder, made if missing.
        clips: records, one clip each, of three questions.
        seed: the same seed writes the same bytes.

    Returns:
        The path of the .jsonl file.
    """
    if clips < 1:
        raise ValueError(f"a split needs clips >= 1 ({clips})")
    folder, rng, lines = Path(folder), np.random.default_rng(seed), []
    with writing(folder):
        (folder / "clips").mkdir(parents=True, exist_ok=True)
        for number in range(clips):
            clip, identity = make_clip(rng), f"{name}-{number:05d}"
            video = f"clips/{identity}.mov"
            write_clip(folder / video, clip.pixels())
            lines.append(json.dumps(make_record(identity, video, clip.questions())))
    return write_text(folder / f"{name}.jsonl", "\n".join(lines) + "\n")
