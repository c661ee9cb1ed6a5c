"""Every published benchmark, on tiny data in its own layout, is found, checked and turned into inputs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import benchmark_files
import pytest
from PIL import Image

from ppe_npu.data.inputs import build_inputs
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.videos import load_video
from ppe_npu.errors import InputError
from ppe_npu.evaluation import benchmarks
from ppe_npu.evaluation.benchmarks import dataset, readers, registry, table
from ppe_npu.evaluation.benchmarks.protocol import MODALITIES, check_sample
from ppe_npu.evaluation.identity import data_fingerprints, read_sample
from ppe_npu.evaluation.metrics.reading import Reader
from ppe_npu.evaluation.samples import conversation

PUBLISHED = [name for name in registry.OURS if name not in registry.EMBEDDED]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with the data of every benchmark."""
    folder = tmp_path_factory.mktemp("data")
    for name in PUBLISHED:
        benchmark_files.write_all(folder, name)
    return folder


def load(name, root):
    """benchmarks.load(), but without WordNet and jieba, whose data are not installed here."""
    cls = table.published()[name]
    if name == "nextqa_oe":
        return cls(root, taxonomy=object())
    if name.startswith("ocrbench_v2"):
        return cls(root, reader=Reader(SimpleNamespace(synsets=lambda word: []), list))
    return benchmarks.load(name, root)


# -- ours --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_benchmark_loads_from_its_own_layout_and_becomes_inputs(name, root, tiny_processor):
    benchmark = load(name, root)
    assert (benchmark.name, benchmark.modality in MODALITIES) == (name, True)
    assert benchmark.max_new_tokens > 0
    samples = [benchmark[number] for number in range(len(benchmark))]
    assert len({sample["index"] for sample in samples}) == len(samples) > 0
    turns = []
    for number, sample in enumerate(samples):
        check_sample(sample, f"{name} {number}")
        items = conversation(sample)[0]["content"]
        for item in items:
            if item["type"] == "video":
                rule = VideoSampling(nframes=2).within(sample.get("sampling"))
                item["video"] = load_video(item["video"], rule)
        turns.append([{"role": "user", "content": items}])
    inputs = build_inputs(tiny_processor, turns)
    assert inputs["input_ids"].shape[0] == len(samples)


@pytest.mark.parametrize("name", PUBLISHED)
def test_metrics_of_right_wrong_and_failed_answers(name, root):
    benchmark = load(name, root)
    if name == "nextqa_oe":
        pytest.skip("its words need a taxonomy: see test_benchmarks_videos")
    rows = []
    for number in range(len(benchmark)):
        sample = benchmark[number]
        answer = ["", "(B) 猫", sample["GT"] if isinstance(sample["GT"], str) else sample["GT"][0]][number % 3]
        score = benchmark.score(answer, sample)
        assert score is None or 0 <= score <= 1
        rows.append(
            {**{key: sample.get(key) for key in ("index", "type", "prompt", "GT")}, "answer": answer, "score": score}
        )
    rows[-1] |= {"answer": "", "score": 0.0, "error": "OutOfMemoryError"}
    found = benchmark.metrics(rows) if hasattr(benchmark, "metrics") else {}
    assert all(isinstance(value, float) for value in found.values())
    assert benchmark.headline is None or benchmark.headline in found


@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_data_is_listed_with_where_to_get_it(name, tmp_path):
    with pytest.raises(InputError) as caught:
        benchmarks.load(name, tmp_path)
    message, benchmark = str(caught.value), table.published()[name]
    assert "\n" not in message
    assert [need for need in benchmark.needs[: dataset._NAMED] if need not in message] == []
    assert message.endswith(f"get it from {benchmark.home}")


def test_pictures_that_a_row_names_are_missed_before_anything_runs(root, tmp_path):
    data = benchmark_files.copy(root / "textvqa", tmp_path / "textvqa")
    (data / "train_images" / "ab12.jpg").unlink()
    with pytest.raises(
        InputError, match=r"textvqa: missing below .*: train_images/ab12\.jpg; get it from textvqa\.org"
    ):
        benchmarks.load("textvqa", tmp_path)


def test_subtitles_and_videos_are_missed_too(root, tmp_path):
    data = benchmark_files.copy(root / "longvideobench", tmp_path / "longvideobench")
    (data / "subtitles" / "86Cx_en.json").unlink()
    (data / "videos" / "86Cx.mp4").unlink()
    with pytest.raises(InputError, match=r"videos/86Cx\.mp4, subtitles/86Cx_en\.json; get it"):
        benchmarks.load("longvideobench", tmp_path)


def test_many_missing_files_are_counted(root, tmp_path):
    benchmark_files.copy(root / "mvbench", tmp_path / "mvbench")
    shutil.rmtree(tmp_path / "mvbench" / "json")
    with pytest.raises(InputError, match=r"json/action_sequence\.json, .*json/counterfactual_inference\.json; get it"):
        benchmarks.load("mvbench", tmp_path)
    shutil.rmtree(tmp_path / "mvbench")
    with pytest.raises(InputError, match=r"and 11 more; get it"):
        benchmarks.load("mvbench", tmp_path)


ROW = '{"question_id": 1, "question": "what?", "image_id": "ab12", "answers": %s}'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"data": [{"question_id": 1}]}', r"row 0 .* has an unexpected form \(KeyError: 'question'\)"),
        ('{"data": [', "is not JSON"),
        ('{"data": [7]}', "has an unexpected form"),
        ("7", r"the data below .* has an unexpected form \(TypeError: 'int' object"),
        ("{}", r"the data below .* has an unexpected form \(KeyError: 'data'\): download it again"),
        (f'{{"data": [{ROW % """["a", 5]"""}]}}', "row 0 below .* has a GT of type list: use a str or a list of str"),
        (f'{{"data": [{ROW % "null"}]}}', "row 0 below .* has no GT"),
    ],
)
def test_data_of_another_form(root, tmp_path, text, reason):
    data = benchmark_files.copy(root / "textvqa", tmp_path / "textvqa")
    (data / "TextVQA_0.5.1_val.json").write_text(text)
    with pytest.raises(InputError, match=reason):
        benchmarks.load("textvqa", tmp_path)


def test_files_that_cannot_be_opened_are_one_line(root, tmp_path):
    """A link to itself is listed like a file and is neither a pipe nor a folder, but it cannot be opened."""
    data = benchmark_files.copy(root / "mme", tmp_path / "mme")
    file = next(data.rglob("*.txt"))
    file.unlink()
    file.symlink_to(file.name)
    with pytest.raises(InputError, match=r"mme: the data below .* cannot be read \(.*symbolic links"):
        benchmarks.load("mme", tmp_path)


def test_a_row_that_is_half_a_character_keeps_its_type(root, tmp_path):
    """Metrics over all samples read the type of every row; without it, one bad text would cost all of them."""
    data = benchmark_files.copy(root / "gqa", tmp_path / "gqa")
    file = data / "testdev_balanced_questions.json"
    (key, row), *others = readers.read_json(file).items()
    file.write_text(json.dumps(dict([(key, {**row, "question": "what?\ud800"}), *others])))
    sample = read_sample(benchmarks.load("gqa", tmp_path), 0)
    assert (sample["prompt"], sample["GT"]) == ("", row["answer"])
    assert sample["type"] == row["types"]["structural"]
    assert "half a character" in sample["error"]


@pytest.mark.parametrize("key", ["set_id", "question"])
def test_a_row_that_is_half_a_character_stays_in_its_group(root, tmp_path, key):
    """Metrics find sets, figures and questions by the index; a stand-in like "row 0" would belong to none of them."""
    data = benchmark_files.copy(root / "hallusionbench", tmp_path / "hallusionbench")
    rows = [row for row in readers.read_json(data / "HallusionBench.json") if str(row["visual_input"]) != "0"]
    rows[0][key] = "what?\ud800"
    (data / "HallusionBench.json").write_text(json.dumps(rows))
    benchmark = benchmarks.load("hallusionbench", tmp_path)
    samples = [read_sample(benchmark, number) for number in range(len(benchmark))]
    assert "half a character" in samples[0]["error"]
    keys = ("category", "subcategory", "set_id", "figure_id", "question_id")
    assert samples[0]["index"] == "/".join(str(rows[0][key]) for key in keys).replace("\ud800", r"\ud800")
    assert read_sample(benchmark, 0, samples[0]["index"]) == samples[0]
    metrics = benchmark.metrics([{"score": None, **samples[0]}, *({"score": 1.0, **other} for other in samples[1:])])
    assert 0 < metrics["aAcc"] < 1


def test_a_first_picture_that_cannot_be_read_takes_no_other_with_it(tmp_path):
    good, bad = {"bytes": benchmark_files.picture()}, {"bytes": b"no picture"}
    row = {"question": "Which? Options: A: red, B: blue", "answer": "A", "category": "math", "l2_category": ["x"]}
    rows = [{**row, "index": number, "image": image} for number, image in enumerate([bad, good])]
    benchmark_files.parquet(tmp_path / "mmstar" / "mmstar.parquet", rows)
    benchmark = benchmarks.load("mmstar", tmp_path)
    assert len(benchmark) == 2
    found = benchmark.metrics([{"index": str(number), "type": "math", "score": 1.0} for number in range(2)])
    assert found == {"math": 1.0, "mean over l2_category": 1.0}
    benchmark_files.parquet(tmp_path / "mmstar" / "mmstar.parquet", [{**row, "index": 0}])
    with pytest.raises(InputError, match=r"mmstar.parquet has no column image: download it again"):
        benchmarks.load("mmstar", tmp_path)


def test_an_unknown_type_of_question_is_named(root, tmp_path):
    data = benchmark_files.copy(root / "nextqa", tmp_path / "nextqa")
    file = data / "MC" / "test.csv"
    file.write_text(file.read_text().replace(",CW,", ",XW,"))
    with pytest.raises(InputError, match=r"nextqa_mc: row \d below .* has an unexpected form \(KeyError: 'X'\)"):
        benchmarks.load("nextqa_mc", tmp_path)


@pytest.mark.parametrize(
    ("name", "table", "key", "value", "reason"),
    [
        ("scienceqa", "problems.json", "image", "a" * 4_096, "File name too long|missing below"),
        ("activitynetqa", "test_a.json", "type", float("inf"), r"row 0 below .* unexpected form \(OverflowError"),
        ("activitynetqa", "test_q.json", "question_id", [1], "has an unexpected form"),
        ("ocrbench", "OCRBench.json", "type", {"a": []}, r"row 0 .*TypeError: type .*\[\]} is not a string"),
        ("scienceqa", "problems.json", "choices", "red", r"row \d+ below .*TypeError: 'red' is not a list"),
        ("ocrbench", "OCRBench.json", "type", False, r"row 0 .* form \(TypeError: type False is not a string"),
        ("longvideobench_v", "lvb_val.json", "subtitle_path", None, r"below .* \(KeyError: 'subtitle_path'\)"),
        ("mvbench", "json/action_localization.json", "start", False, r"row \d+ below .*: start=False must be a number"),
    ],
)
def test_a_value_that_no_reader_foresees_is_of_its_row(root, tmp_path, name, table, key, value, reason):
    folder = benchmark_files.folder_of(name)
    data = benchmark_files.copy(root / folder, tmp_path / folder)
    rows = readers.read_json(data / table)
    for row in rows.values() if isinstance(rows, dict) else rows:
        row.pop(key)
        row.update({} if value is None else {key: value})
    benchmark_files.dump(data / table, rows)
    with pytest.raises(InputError, match=f"^{name}: .*({reason})"):
        benchmarks.load(name, tmp_path)


def test_an_index_that_occurs_twice(root, tmp_path):
    data = benchmark_files.copy(root / "docvqa", tmp_path / "docvqa")
    file = data / "val_v1.0_withQT.json"
    rows = readers.read_json(file)["data"]
    benchmark_files.dump(file, {"data": rows * 2})
    with pytest.raises(InputError, match="index 49153 occurs twice"):
        benchmarks.load("docvqa", tmp_path)


def test_letters_of_any_case_in_file_names(root, tmp_path):
    data = benchmark_files.copy(root / "mmbench", tmp_path / "mmbench")
    (data / "MMBench_DEV_EN.tsv").rename(data / "mmbench_dev_en_20231003.tsv")
    assert len(benchmarks.load("mmbench_en", tmp_path)) == 2


# -- readers -----------------------------------------------------------------------------------------------------------


def test_large_parquet_columns_are_read_when_asked_for(tmp_path):
    rows = [{"name": str(number), "image": {"bytes": bytes([number]), "path": None}} for number in range(7)]
    benchmark_files.parquet(tmp_path / "a.parquet", rows[:5], row_group_size=2)
    benchmark_files.parquet(tmp_path / "b.parquet", rows[5:], row_group_size=9)
    read = readers.Parquet([tmp_path / "a.parquet", tmp_path / "b.parquet"], large=["image"])
    assert read.rows == [{"name": str(number)} for number in range(7)]
    assert [read.cell(number, "image")["bytes"] for number in (6, 0, 3, 4, 1)] == [b"\6", b"\0", b"\3", b"\4", b"\1"]


def test_what_is_no_parquet_and_no_picture(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"no")
    with pytest.raises(InputError, match=r"a\.parquet cannot be read as parquet"):
        readers.Parquet([tmp_path / "a.parquet"])
    for value in ({"bytes": b"no picture"}, "%%%", None, b""):
        with pytest.raises(InputError, match="the image of row 3 cannot be read"):
            readers.decode_image(value, "row 3")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r'pip install ".+\[eval\]"$'):
        readers.Parquet([tmp_path / "a.parquet"])


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("1\n00:00:00,000 --> 00:00:01,000\nOne\ntwo\n\n2\n00:00:02,000 --> 00:00:03,000\n<i>Drei</i> < 4\n",
         ["One two", "Drei < 4"]),
        ("\ufeff1\r\n00:00:00,000 --> 00:00:01,000\r\nÜber\r\n\r\n", ["Über"]),
        ("", []),
        ("no subtitle\n\n7\n00:00:01,000 --> 00:00:02,000\n\n", []),
    ],
)  # fmt: skip
def test_srt(tmp_path, text, texts):
    (tmp_path / "a.srt").write_text(text, encoding="utf-8", newline="")
    assert readers.read_srt(tmp_path / "a.srt") == texts


def test_images_are_loaded_when_asked_for():
    loads = []
    sample = dataset.Sample({"index": 1}, image=lambda: loads.append(1) or Image.new("RGB", (2, 2)))
    assert (dict(sample), "image" in sample, loads) == ({"index": 1}, False, [])
    assert sample.get("image") is sample["image"]
    assert loads == [1]
    assert dataset.Sample({"index": 1}).get("image") is None
    with pytest.raises(KeyError):
        dataset.Sample({"index": 1})["image"]


# -- content -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ({"prompt": "Why?"}, ["Why?"]),
        ({"prompt": "Why?", "image_path": "a.png"}, ["a.png", "Why?"]),
        ({"prompt": "Why?", "image_path": ["a.png", "b.png"]}, ["a.png", "b.png", "Why?"]),
        ({"prompt": "See <image> and <image>.", "image_path": ["a.png", "b.png"]},
         ["See ", "a.png", " and ", "b.png", "."]),
        ({"prompt": "What does <image> mean in HTML?", "image_path": ["a.png", "b.png"]},
         ["a.png", "b.png", "What does <image> mean in HTML?"]),
        ({"prompt": "<video>\nWhy?", "video_path": "a.mp4"}, ["a.mp4", "Why?"]),
        ({"prompt": "Why <image>?"}, ["Why <image>?"]),
    ],
)  # fmt: skip
def test_visuals_stand_at_their_placeholders_or_before_the_prompt(sample, expected):
    items = conversation({"index": 1, "GT": "", **sample})[0]["content"]
    assert [item[item["type"]] for item in items] == expected


def test_the_table_of_the_documentation_is_up_to_date():
    page = Path(__file__).parents[2] / "docs" / "benchmarks-data.md"
    assert page.read_text(encoding="utf-8").endswith(table.markdown()), "run scripts/document_benchmarks.py"


def test_an_answer_beside_a_prompt_that_cannot_be_written_is_no_data():
    """Runs of earlier versions, which did not record that answer, can go on."""
    good = {"index": 0, "prompt": "a", "GT": "b"}

    def sums(truth: str):
        class Rows(list):
            name = "own"

        return data_fingerprints(Rows([good, {"index": 1, "prompt": "\ud83d", "GT": truth, "type": "c"}]))

    assert sums("x") == sums("y")
    assert read_sample([{**good, "prompt": "\ud83d"}], 0)["GT"] == "b"
