"""The motion task: clips of a board of squares, and questions about what changes on it.

A board of 4 x 4 squares, each dark or light at random, is the same in all frames except for changes: for one frame,
some of its squares are inverted. A question is one word; the answer restates it and adds one word ("towards left"):

    towards    four lines change, one after the other: where to?    left, right, up, down
    times      how often does the whole board change?               0..2
    changed    which quarter changes, once?                         northwest, northeast, southwest, southeast

No frame alone contains an answer, because every frame by itself is a random board, whatever changes in it. The first
frame is the board without changes. The frames with changes are drawn from the others, and some may have none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppe_npu.files import write_text, writing

TASK = "board"  # names the clips, and also the untrained models, because they have its vocabulary
FRAMES = 8
RATE = 2  # frames per second
SQUARES = 4  # along one side of the board
DARK, LIGHT = 0, 255


def _lines() -> dict[str, np.ndarray]:
    """Direction -> bool [SQUARES, SQUARES, SQUARES]: the squares of each line, in the order in which lines change."""
    columns = np.broadcast_to(np.eye(SQUARES, dtype=bool)[:, None], (SQUARES,) * 3)
    rows = columns.transpose(0, 2, 1)
    return {"left": columns[::-1], "right": columns, "up": rows[::-1], "down": rows}


def _quarters() -> dict[str, np.ndarray]:
    """Name -> bool [SQUARES, SQUARES]: its squares."""
    first = np.arange(SQUARES) < SQUARES // 2
    sides = {"north": first, "south": ~first}, {"west": first, "east": ~first}
    return {row + column: np.outer(sides[0][row], sides[1][column]) for row in sides[0] for column in sides[1]}


LINES, QUARTERS, TIMES = _lines(), _quarters(), (0, 1, 2)
ANSWERS = {"towards": tuple(LINES), "times": tuple(map(str, TIMES)), "changed": tuple(QUARTERS)}
QUESTION_TYPES = tuple(ANSWERS)
CHANCE = {kind: 1 / len(answers) for kind, answers in ANSWERS.items()}
WORDS = ("system", "user", "assistant", *QUESTION_TYPES, *(word for words in ANSWERS.values() for word in words))


@dataclass(frozen=True)
class Clip:
    """The light squares of the board, bool [SQUARES, SQUARES]; the squares that are inverted in each frame, bool
    [FRAMES, SQUARES, SQUARES]; and the answers by question."""

    board: np.ndarray
    changes: np.ndarray
    answers: dict[str, str]

    def pixels(self, square: int) -> np.ndarray:
        """uint8 [FRAMES, SQUARES * square, SQUARES * square, 3] with squares of `square` pixels along one side."""
        light = (self.board ^ self.changes).repeat(square, 1).repeat(square, 2)
        return np.where(light, LIGHT, DARK).astype(np.uint8)[..., None].repeat(3, -1)

    def questions(self) -> list[tuple[str, str, str]]:
        """Every question of the clip as (type, question, answer), each answer one word."""
        return [(kind, kind, answer) for kind, answer in self.answers.items()]


def make_clip(rng: np.random.Generator) -> Clip:
    """A random clip: the board, the answers, and a separate frame for every change, all drawn uniformly."""
    answers = {kind: str(rng.choice(words)) for kind, words in ANSWERS.items()}
    board = rng.integers(0, 2, (SQUARES, SQUARES)).astype(bool)
    moments = 1 + rng.permutation(FRAMES - 1)  # a frame has at most one change
    changes = np.zeros((FRAMES, SQUARES, SQUARES), dtype=bool)
    changes[np.sort(moments[:SQUARES])] = LINES[answers["towards"]]
    changes[moments[SQUARES : SQUARES + int(answers["times"])]] = True
    changes[moments[-1]] = QUARTERS[answers["changed"]]
    return Clip(board, changes, answers)


def write_clip(file: str | Path, frames: np.ndarray) -> None:
    """Write frames, uint8 [T, H, W, 3], as a lossless video; the same frames give the same bytes."""
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


def write_split(folder: str | Path, name: str, clips: int, seed: int, square: int) -> Path:
    """Write clips/<name>-*.mov and, last and in one step, <name>.jsonl; a split that has its .jsonl is complete.

    Args:
        folder: the data folder, made if missing.
        clips: number of records, with one clip and three questions each.
        seed: the same seed writes the same bytes.
        square: pixels along one side of a square.

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
            write_clip(folder / video, clip.pixels(square))
            lines.append(json.dumps(make_record(identity, video, clip.questions())))
    return write_text(folder / f"{name}.jsonl", "\n".join(lines) + "\n")
