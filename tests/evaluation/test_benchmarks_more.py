"""Benchmarks that papers on compression report and that need no judge: prompts and scores on hand-made cases."""

from __future__ import annotations

from copy import copy
from types import SimpleNamespace

import pytest
from benchmark_writing import write_all
from tolerances import near

from ppe_npu.errors import InputError
from ppe_npu.evaluation import benchmarks
from ppe_npu.evaluation.benchmarks import readers
from ppe_npu.evaluation.metrics import boxes

LETTER = "Answer with the option's letter from the given choices directly."
JSON = "output its bbox coordinates using JSON format."
TEN = "\n".join(f"{letter}. choice {letter.lower()}" for letter in "ABCDEFGHIJ")
FIRST = {
    "mmstar": ("Which?\nOptions: A: red, B: blue, C: green, D: dark\n" + LETTER, "B", "math"),
    "realworldqa": (
        "Which way?\n\nA. Left\nB. Right\nPlease answer directly with only the letter of the correct option.",
        "B", None,
    ),
    "hallusionbench": ("Is it 0? Please answer yes or no.", "yes", "chart"),
    "vqav2": (
        "What color is it?\nAnswer the question using a single word or phrase.", ["blue"] * 4 + ["light blue"] * 6,
        "other",
    ),
    "lvbench": ("Who?\n(A) he\n(B) she\n(C) I\n(D) you\nAnswer the question with the option letter.", "B", "er"),
    "tempcompass": (
        "What happens?\nA. dunking a ball\nB. throwing it\nPlease directly give the best option:", "B", "action",
    ),
    "mmmu_pro": (f"What is in <image>?\n{TEN}\n{LETTER}", "J", "Art"),
    "mmmu_pro_vision": (None, "J", "Art"),
    "seedbench_2_plus": ("Where?\nA. a\nB. b\nC. c\nD. d\n" + LETTER, "C", "Map"),
    "longvideobench_v": (None, None, None),
    "refcoco": ("Locate left dog, " + JSON, "[2.0, 4.0, 6.0, 12.0]", "val"),
    "screenspot_v2": (f'Locate the element that "close it" is about, {JSON}', "[2, 4, 6, 12]", "icon"),
    "screenspot_pro": (f'Locate the element that "save" is about, {JSON}', "[2, 4, 6, 12]", "text"),
}  # fmt: skip

# (name, sample, answer, score); the right box of 28 x 28 pixels is 2..6, 4..12, in thousandths 71..214, 143..429
SCORES = [
    ("mmstar", 0, "B", 1), ("mmstar", 0, "b", 1), ("mmstar", 0, "(B) blue", 1), ("mmstar", 0, "Option B", 1),
    ("mmstar", 0, "The answer is B.", 1), ("mmstar", 0, "The answer is (B).", 0), ("mmstar", 0, "blue", 1),
    ("mmstar", 0, "Answer: B", 0), ("mmstar", 0, "", 0), ("mmstar", 0, "A", 0),
    ("realworldqa", 0, "B", 1), ("realworldqa", 0, "b.", 1), ("realworldqa", 0, "Right", 1),
    ("realworldqa", 0, "(B)", 1),
    ("realworldqa", 0, "B. Right", 1), ("realworldqa", 0, "right", 0), ("realworldqa", 0, "", 0),
    ("realworldqa", 1, "3.", 1), ("realworldqa", 1, "Three", 1), ("realworldqa", 1, "about three", 0),
    ("realworldqa", 1, "none", 0), ("realworldqa", 0, "Left", 0),
    ("hallusionbench", 0, "Yes, it is", 1), ("hallusionbench", 0, "yes and no", 0), ("hallusionbench", 0, "", 0),
    ("hallusionbench", 1, "No.", 1), ("hallusionbench", 1, "not", 0),
    ("vqav2", 0, "blue", 1), ("vqav2", 0, "Light blue.", 1), ("vqav2", 0, "red", 0), ("vqav2", 0, "", 0),
    ("lvbench", 0, "B", 1), ("lvbench", 0, "(B) she", 1), ("lvbench", 0, "b", 0), ("lvbench", 0, "", 0),
    ("tempcompass", 0, "B", 1), ("tempcompass", 0, "B.", 1), ("tempcompass", 0, "B. throwing it", 1),
    ("tempcompass", 0, "throwing it", 0), ("tempcompass", 0, "B) it is thrown", 1), ("tempcompass", 0, "B.\nFor", 1),
    ("tempcompass", 0, "B is", 0), ("tempcompass", 0, "A. throwing it", 0), ("tempcompass", 0, "(B)", 0),
    ("tempcompass", 0, "b", 0),
    ("tempcompass", 0, "", 0), ("tempcompass", 0, "A", 0),
    ("mmmu_pro", 0, "J", 1), ("mmmu_pro", 0, "So. Answer: J", 1), ("mmmu_pro", 0, "Answer: A or J", 1),
    ("mmmu_pro", 0, "Answer: A", 0),
    ("mmmu_pro", 0, "(J)", 1), ("mmmu_pro", 0, "", 0), ("mmmu_pro_vision", 0, "Answer: J", 1),
    ("seedbench_2_plus", 0, "c. c", 1), ("seedbench_2_plus", 0, "(C)", 0), ("seedbench_2_plus", 0, "", 0),
    ("refcoco", 0, '{"bbox_2d": [71, 143, 214, 429]}', 1), ("refcoco", 0, "(71,143),(214,429)", 1),
    ("refcoco", 0, "<|box_start|>(71,143),(214,429)<|box_end|>", 1), ("refcoco", 1, "[[71, 143, 214, 429]]", 1),
    ("refcoco", 0, "2 dogs; the left: [71, 143, 214, 429].", 1), ("refcoco", 0, "Of 3: (71, 143), (214, 429)", 1),
    ("screenspot_v2", 0, "Step 1: click (140, 280) once", 1), ("screenspot_v2", 0, "x=140, y=280", 1),
    ("refcoco", 0, "71 143 214 285", 0),  # just less than half
    ("refcoco", 0, "71 143 214 287", 1), ("refcoco", 0, "0 0 1000 1000", 0), ("refcoco", 0, "", 0),
    ("refcoco", 0, "the left one", 0), ("refcoco", 0, "[140, 280]", 0), ("refcoco_plus", 0, "71 143 214 429", 1),
    ("refcocog", 0, "71 143 214 429", 1),
    ("screenspot_v2", 0, '"point_2d": [140, 280]', 1), ("screenspot_v2", 0, "[71, 143, 214, 429]", 1),
    ("screenspot_v2", 0, "(300, 280)", 0), ("screenspot_v2", 0, "", 0), ("screenspot_v2", 0, "0 0 1000 1000", 0),
    ("screenspot_pro", 0, "(140, 280)", 1),
]  # fmt: skip


@pytest.mark.parametrize("name", FIRST)
def test_prompt_truth_and_type(load, name):
    sample = load(name)[0]
    prompt, truth, kind = FIRST[name]
    assert prompt is None or sample["prompt"] == prompt
    assert truth is None or (sample["GT"], sample.get("type")) == (truth, kind)


@pytest.mark.parametrize(("name", "number", "answer", "score"), SCORES)
def test_scores(load, name, number, answer, score):
    benchmark = load(name)
    assert benchmark.score(answer, benchmark[number]) == score


def rows(benchmark, right):
    return [{"index": s["index"], "type": s.get("type"), "score": float(ok)} for s, ok in zip(benchmark, right)]


def test_hallusionbench_judges_figures_and_questions_together(load):
    """Three questions: two about figure 0, one of them also about figure 1; the one without a picture is not asked."""
    benchmark = load("hallusionbench")
    assert len(benchmark) == 3
    found = benchmark.metrics(rows(benchmark, [True, False, True]))
    assert {key: found[key] for key in ("aAcc", "fAcc", "qAcc")} == {"aAcc": near(2 / 3, 2), "fAcc": 0.5, "qAcc": 0.5}
    assert found["average"] == near((2 / 3 + 1) / 3, 4)
    assert len({benchmark.unit(row) for row in rows(benchmark, [True] * 3)}) == 1


def test_mmstar_has_the_average_of_lmms_eval_too(load):
    benchmark = copy(load("mmstar"))
    kinds = [("math", "geometry"), ("math", "geometry"), ("math", "geometry"), ("math", "statistics")]
    benchmark.rows = [
        {**benchmark.rows[0], "index": n, "category": a, "l2_category": b} for n, (a, b) in enumerate(kinds)
    ]
    found = benchmark.metrics(rows(benchmark, [True, True, True, False]))
    assert found == {"math": 0.75, "mean over l2_category": 0.5}


def test_a_video_of_longvideobench_is_asked_without_subtitles(load):
    plain, frames = load("longvideobench_v"), load("longvideobench")
    assert [sample["index"] for sample in plain] == [sample["index"] for sample in frames]
    assert all("video_path" in sample and "<image>" not in sample["prompt"] for sample in plain)
    assert plain[0]["prompt"] == frames[0]["prompt"].rsplit("<image>\n", 1)[1].split("\n", 0)[-1]


def test_a_box_is_read_as_the_family_writes_it(load):
    """Qwen2.5-VL's boxes are in pixels of the picture as the model saw it: 56 x 56 for a picture of 28 x 28."""
    benchmark = load("refcoco")
    try:
        benchmark.meet(SimpleNamespace(family="qwen2_5_vl", seen_size=lambda width, height: (2 * width, 2 * height)))
        assert benchmark.score('{"bbox_2d": [4, 8, 12, 24]}', benchmark[0]) == 1.0
        assert benchmark.score('{"bbox_2d": [71, 143, 214, 429]}', benchmark[0]) == 0.0
        benchmark.meet(SimpleNamespace(family="qwen2_vl"))
        assert benchmark.score("(71,143),(214,429)", benchmark[0]) == 1.0
    finally:
        benchmark.meet(None)


def test_google_s_split_of_refcoco_is_not_read(tmp_path):
    """RefCOCO's data set has a `test` split that papers do not report; RefCOCOg's `test` split is one they report."""
    for name, kinds in (("refcoco", ["val"]), ("refcocog", ["val", "test"])):
        folder = write_all(tmp_path, name) / name / "data"
        (folder / "test-00000-of-1.parquet").write_bytes((folder / "val-00000-of-1.parquet").read_bytes())
        assert sorted({sample["type"] for sample in benchmarks.load(name, tmp_path)}) == sorted(kinds)
        (folder / "val-00000-of-1.parquet").unlink()
    with pytest.raises(InputError, match=r"refcoco: missing below .*data/val-\*\.parquet, data/testA"):
        benchmarks.load("refcoco", tmp_path)


def test_overlap_is_intersection_over_union():
    assert boxes.overlap((0, 0, 2, 2), (1, 0, 3, 2)) == near(1 / 3, 2)
    assert boxes.overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1.0
    assert boxes.overlap((0, 0, 1, 1), (2, 2, 3, 3)) == boxes.overlap((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0
    assert boxes.overlap((2, 2, 0, 0), (0, 0, 2, 2)) == 0.0  # corners in the wrong order have no area


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [
        ("[1, 2.5, 3, 4]", (1, 2.5, 3, 4)), ("(1,2),(3,4)", (1, 2, 3, 4)), ('{"point_2d": [5, 6]}', (5, 6)),
        ('{"x1": 10, "y1": -2, "x2": 30, "y2": 4.5}', (10, -2, 30, 4.5)), ("x_1=1 y_1=2", (1, 2)),
        ("x=5, y=6", (5, 6)), ("one 7", ()), ("", ()), ("box10: 1, 2, 3, 4", (1, 2, 3, 4)),
        ("bbox_2d: [1, 2, 3, 4] and [5, 6, 7, 8]", (1, 2, 3, 4)), ("[.1, .2, .3, .4]", (0.1, 0.2, 0.3, 0.4)),
        ("坐标为100, 200, 300, 400", (100, 200, 300, 400)), ("左100上200右300下400", (100, 200, 300, 400)),
    ],
)  # fmt: skip
def test_numbers_of_a_box_or_a_point(answer, numbers):
    assert boxes.written(answer) == numbers


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.parquet"])
def test_a_column_that_stands_twice_in_a_table_is_named(tmp_path, name):
    """A row would keep only one of the two."""
    file = tmp_path / name
    if name.endswith("parquet"):
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        rows = pyarrow.table([["b"], ["q"], ["c"]], names=["answer", "question", "answer"])
        parquet.write_table(rows, file)
        read, large = (lambda: readers.Parquet([file])), (lambda: readers.Parquet([file], large=["answer"]))
    else:
        between = "\t" if name.endswith("tsv") else ","
        file.write_text(f"answer{between}question{between}answer\nb{between}q{between}c\n")
        read = large = lambda: readers.read_table(file)
    for way in (read, large):
        with pytest.raises(InputError, match=rf"{name} has the column 'answer' twice: download it again"):
            way()
