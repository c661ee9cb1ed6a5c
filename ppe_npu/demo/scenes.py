"""The demo's task: coloured figures on a 6x6 grid, and questions about them.

Every figure owns one of six colours, so a question is two words, a type and a colour; the answer restates it and adds
one word ("row red 3"):

    shape red   which glyph is it?               square, ring, cross, stripes    needs no position
    row red     the row of the one cell it fills 1..6                            needs the position of one token
    col red     its column                       1..6
    barlen red  the cells a bar covers           2..5                            needs the extent of several tokens
    count red   the dots of a group              1..5

A grid cell is 8x8 pixels, which is one visual token of the tiny model (patch 4, merge 2). A full scene holds three
shapes, two bars and one group of dots: about 13 of its 36 cells carry ink. Simple scenes hold one to six shapes and
nothing else; mixed into the training split they make shapes, rows and columns learnable in minutes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ppe_npu.files import write_text, writing

GRID = 6  # cells along one side
CELL = 8  # pixels along one side of a cell
IMAGE_SIZE = GRID * CELL  # pixels along one side of an image

BACKGROUND = (180, 180, 180)
COLOURS = {
    "red": (220, 30, 30),
    "green": (20, 160, 50),
    "blue": (30, 60, 230),
    "yellow": (245, 205, 0),
    "purple": (160, 30, 200),
    "black": (10, 10, 10),
}
SHAPES = ("square", "ring", "cross", "stripes")
QUESTION_TYPES = ("shape", "row", "col", "barlen", "count")
BAR_LENGTHS = (2, 3, 4, 5)  # a bar of one cell would have no visible orientation
DOT_COUNTS = (1, 2, 3, 4, 5)


def _glyphs() -> dict[str, np.ndarray]:
    """Name -> bool mask [CELL, CELL]: the inked pixels of one cell."""
    names = (*SHAPES, "bar_across", "bar_down", "dot")
    masks = {name: np.zeros((CELL, CELL), dtype=bool) for name in names}
    masks["square"][1:7, 1:7] = True
    masks["ring"][:] = True
    masks["ring"][2:6, 2:6] = False
    masks["cross"][3:5, :] = masks["cross"][:, 3:5] = True
    masks["stripes"][:, 0:2] = masks["stripes"][:, 4:6] = True
    masks["bar_across"][2:6, :] = True
    masks["bar_down"][:, 2:6] = True
    masks["dot"][2:6, 2:6] = True
    return masks


GLYPHS = _glyphs()


@dataclass(frozen=True)
class Figure:
    """One figure of a scene.

    Attributes:
        kind: "shape", "bar" or "dots".
        colour: the name of its colour.
        glyph: what is drawn in each of its cells.
        cells: the (row, column) of each cell that it covers.
    """

    kind: str
    colour: str
    glyph: str
    cells: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Scene:
    """The figures of one image; no two share a cell or a colour."""

    figures: tuple[Figure, ...]

    def render(self) -> Image.Image:
        """The scene as an RGB image of IMAGE_SIZE x IMAGE_SIZE pixels."""
        return Image.fromarray(self.pixels())

    def pixels(self) -> np.ndarray:
        """The scene as uint8 [IMAGE_SIZE, IMAGE_SIZE, 3]."""
        canvas = np.empty((GRID, CELL, GRID, CELL, 3), dtype=np.uint8)
        canvas[:] = BACKGROUND
        for figure in self.figures:
            mask, colour = GLYPHS[figure.glyph], COLOURS[figure.colour]
            for row, col in figure.cells:
                canvas[row, :, col][mask] = colour
        return canvas.reshape(IMAGE_SIZE, IMAGE_SIZE, 3)

    def questions(self) -> list[tuple[str, str, str]]:
        """Every question of the scene as (type, question, answer), each answer one word."""
        asked = []
        for figure in self.figures:
            row, col = figure.cells[0]
            answers = {
                "shape": {"shape": figure.glyph, "row": str(row + 1), "col": str(col + 1)},
                "bar": {"barlen": str(len(figure.cells))},
                "dots": {"count": str(len(figure.cells))},
            }[figure.kind]
            asked += [(kind, f"{kind} {figure.colour}", answer) for kind, answer in answers.items()]
        return asked


def _bar_cells(rng: np.random.Generator, length: int, free: np.ndarray) -> tuple[str, list[tuple[int, int]]]:
    """A glyph and the cells of a bar of `length` cells, drawn uniformly from the places where all cells are free."""
    steps = range(length)
    across = [[(r, c + s) for s in steps] for r in range(GRID) for c in range(GRID - length + 1)]
    down = [[(r + s, c) for s in steps] for r in range(GRID - length + 1) for c in range(GRID)]
    places = [("bar_across", cells) for cells in across] + [("bar_down", cells) for cells in down]
    places = [(glyph, cells) for glyph, cells in places if all(free[cell] for cell in cells)]
    return places[rng.integers(len(places))]


def make_scene(rng: np.random.Generator, simple: bool = False) -> Scene:
    """A random scene: three shapes, two bars and a group of dots, or (simple) one to six shapes."""
    colours = [str(colour) for colour in rng.permutation(list(COLOURS))]
    free = np.ones((GRID, GRID), dtype=bool)
    figures = []
    for _ in range(0 if simple else 2):
        glyph, cells = _bar_cells(rng, int(rng.choice(BAR_LENGTHS)), free)
        for cell in cells:
            free[cell] = False
        figures.append(Figure("bar", colours.pop(), glyph, tuple(cells)))
    rest = [(int(row), int(col)) for row, col in rng.permutation(np.argwhere(free))]
    if not simple:
        count = int(rng.choice(DOT_COUNTS))
        figures.append(Figure("dots", colours.pop(), "dot", tuple(sorted(rest[:count]))))
        rest = rest[count:]
    for cell in rest[: int(rng.integers(1, len(COLOURS) + 1)) if simple else 3]:
        figures.append(Figure("shape", colours.pop(), str(rng.choice(SHAPES)), (cell,)))
    return Scene(tuple(figures))


def make_record(identity: str, image: str, questions: list[tuple[str, str, str]]) -> dict:
    """One LLaVA record: `image` is the path below the data folder, `questions` are (type, question, answer)."""
    turns = []
    for number, (_, question, answer) in enumerate(questions):
        turns.append({"from": "human", "value": question if number else f"<image>\n{question}"})
        # The answer restates the question, so that the model gives the answer at the colour itself, right after the
        # type. Without this, seeds 0 and 2 had not bound colours to figures after 750 steps; with it, both had by 300.
        turns.append({"from": "gpt", "value": f"{question} {answer}"})
    return {
        "id": identity,
        "image": image,
        "question_types": [kind for kind, _, _ in questions],
        "independent": True,  # every question sees the image, none sees another turn
        "conversations": turns,
    }


def write_split(
    folder: str | Path, name: str, num_images: int, seed: int, questions_per_image: int, simple: float = 0.0
) -> Path:
    """Write images/<name>-*.png and, last and in one step, <name>.jsonl; a split that has its .jsonl is complete.

    Args:
        folder: the data folder, made if missing.
        num_images: number of records, with one image each.
        seed: the same seed writes the same bytes.
        questions_per_image: the most questions per image, drawn without repetition (a full scene has 12).
        simple: the fraction of simple scenes, spread evenly over the split.

    Returns:
        The path of the .jsonl file.
    """
    if num_images < 1 or questions_per_image < 1 or not 0.0 <= simple <= 1.0:
        raise ValueError(
            f"a split needs num_images >= 1 ({num_images}), questions_per_image >= 1 ({questions_per_image}) "
            f"and simple from 0 to 1 ({simple})"
        )
    folder, rng, lines = Path(folder), np.random.default_rng(seed), []
    with writing(folder):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for number in range(num_images):
            scene = make_scene(rng, simple=int((number + 1) * simple) > int(number * simple))
            questions = scene.questions()
            chosen = [questions[i] for i in rng.permutation(len(questions))[:questions_per_image]]
            identity = f"{name}-{number:05d}"
            image = f"images/{identity}.png"
            scene.render().save(folder / image, compress_level=1)
            lines.append(json.dumps(make_record(identity, image, chosen)))
    return write_text(folder / f"{name}.jsonl", "\n".join(lines) + "\n")
