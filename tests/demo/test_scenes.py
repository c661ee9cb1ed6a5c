"""The demo's task: what is drawn is what is asked, and the same seed writes the same split."""

import json

import numpy as np
import pytest
from PIL import Image

from ppe_npu.demo.scenes import BACKGROUND, CELL, COLOURS, GLYPHS, GRID, QUESTION_TYPES, make_scene, write_split


def glyphs_by_cell(pixels: np.ndarray, colour: str) -> dict[tuple[int, int], str]:
    """(row, col) -> glyph name of every cell that holds the colour, read from the pixels [48, 48, 3] alone."""
    inked = (pixels == COLOURS[colour]).all(-1).reshape(GRID, CELL, GRID, CELL)
    found = {}
    for row, col in np.argwhere(inked.any((1, 3))):
        matches = [name for name, mask in GLYPHS.items() if (mask == inked[row, :, col]).all()]
        assert len(matches) == 1, "a cell holds exactly one known glyph"
        found[int(row), int(col)] = matches[0]
    return found


def answer_from_pixels(pixels: np.ndarray, question: str) -> str:
    kind, colour = question.split()
    cells = glyphs_by_cell(pixels, colour)
    if kind in ("barlen", "count"):
        return str(len(cells))
    ((row, col), glyph), *others = cells.items()
    assert not others
    return {"shape": glyph, "row": str(row + 1), "col": str(col + 1)}[kind]


@pytest.mark.parametrize("simple", [False, True])
def test_answers_are_what_the_pixels_show(simple):
    rng, kinds = np.random.default_rng(0), set()
    for _ in range(100):
        scene = make_scene(rng, simple)
        for kind, question, answer in scene.questions():
            assert answer == answer_from_pixels(scene.pixels(), question)
            kinds.add(kind)
    assert kinds == ({"shape", "row", "col"} if simple else set(QUESTION_TYPES))


def test_a_full_scene_has_twelve_questions_and_a_bar_is_one_straight_line():
    rng = np.random.default_rng(1)
    for _ in range(100):
        scene = make_scene(rng)
        assert len(scene.questions()) == 12
        for bar in (figure for figure in scene.figures if figure.kind == "bar"):
            rows, cols = (sorted({cell[axis] for cell in bar.cells}) for axis in (0, 1))
            line = cols if bar.glyph == "bar_across" else rows
            assert min(len(rows), len(cols)) == 1
            assert line == list(range(line[0], line[0] + len(bar.cells)))


def test_figures_share_neither_cell_nor_colour():
    rng = np.random.default_rng(2)
    for simple in (False, True) * 50:
        figures = make_scene(rng, simple).figures
        cells = [cell for figure in figures for cell in figure.cells]
        assert len(set(cells)) == len(cells)
        assert len({figure.colour for figure in figures}) == len(figures)


@pytest.mark.parametrize("kind", QUESTION_TYPES)
def test_answers_are_spread_evenly(kind):
    rng = np.random.default_rng(3)
    answers = [a for _ in range(600) for k, _, a in make_scene(rng).questions() if k == kind]
    counts = np.array([answers.count(answer) for answer in set(answers)])
    assert counts.min() > 0.75 * counts.mean()


def test_the_same_seed_writes_the_same_split(tmp_path):
    paths = [write_split(tmp_path / place, "train", 6, seed=5, questions_per_image=4, simple=0.5) for place in "ab"]
    other = write_split(tmp_path / "c", "train", 6, seed=6, questions_per_image=4, simple=0.5)
    first, second = (path.read_bytes() for path in paths)
    assert first == second != other.read_bytes()
    images = [sorted((tmp_path / place / "images").iterdir()) for place in "ab"]
    assert len(images[0]) == 6
    for one, two in zip(*images, strict=True):
        assert one.name == two.name
        assert one.read_bytes() == two.read_bytes()


def test_a_split_is_llava_json_lines_with_answers_that_restate(tmp_path):
    path = write_split(tmp_path, "test", 8, seed=0, questions_per_image=5)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({record["id"] for record in records}) == 8
    for record in records:
        pixels = np.asarray(Image.open(tmp_path / record["image"]))
        human, gpt = record["conversations"][0::2], record["conversations"][1::2]
        assert human[0]["value"].startswith("<image>\n")
        questions = [turn["value"].removeprefix("<image>\n") for turn in human]
        assert record["independent"] is True
        assert record["question_types"] == [question.split()[0] for question in questions]
        assert len(set(questions)) == 5
        assert [turn["value"] for turn in gpt] == [
            f"{question} {answer_from_pixels(pixels, question)}" for question in questions
        ]


def test_nothing_half_written_is_left_and_a_failure_leaves_no_split(tmp_path, monkeypatch):
    write_split(tmp_path, "whole", 2, seed=0, questions_per_image=3)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "whole.jsonl"}
    monkeypatch.setattr("ppe_npu.demo.scenes.make_record", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_split(tmp_path, "broken", 2, seed=0, questions_per_image=3)
    assert not (tmp_path / "broken.jsonl").exists()


def test_the_share_of_simple_scenes_is_exact(tmp_path):
    path = write_split(tmp_path, "mixed", 20, seed=0, questions_per_image=12, simple=0.35)
    kinds = [set(json.loads(line)["question_types"]) for line in path.read_text().splitlines()]
    assert sum(not kind & {"barlen", "count"} for kind in kinds) == 7


@pytest.mark.parametrize(("images", "questions", "simple"), [(0, 1, 0.0), (1, 0, 0.0), (1, 1, 1.5)])
def test_impossible_splits_are_refused(tmp_path, images, questions, simple):
    with pytest.raises(ValueError, match="a split needs"):
        write_split(tmp_path, "x", images, 0, questions, simple)


def test_the_background_is_no_figure_colour():
    assert BACKGROUND not in COLOURS.values()
