"""evaluate() answers every sample once, whatever happens, measures costs, and refuses another run's folder."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from ppe_npu.checkpoints.loading import load_model
from ppe_npu.config import CompressionConfig
from ppe_npu.data.inputs import build_inputs
from ppe_npu.demo import scenes
from ppe_npu.errors import InputError
from ppe_npu.evaluation import answers, benchmarks
from ppe_npu.evaluation.generation import generate
from ppe_npu.evaluation.identity import benchmark_identity, check_settings
from ppe_npu.evaluation.runner import evaluate
from ppe_npu.files import write_json
from ppe_npu.inspect.report import kv_bytes
from ppe_npu.models import compress, restore


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return scenes.write_split(tmp_path_factory.mktemp("data"), "test", 5, seed=4, questions_per_image=3)


@pytest.fixture
def benchmark(split):
    return benchmarks.load("layout", split)


@pytest.fixture
def model(tiny_folder):
    return compress(load_model(tiny_folder), CompressionConfig.preset("ppe", k=4))


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "predictions.jsonl").read_text().splitlines()]


def test_layout_asks_every_question_of_every_scene(benchmark, split):
    records = [json.loads(line) for line in split.read_text().splitlines()]
    kinds = [kind for record in records for kind in record["question_types"]]
    answers = [turn["value"] for record in records for turn in record["conversations"][1::2]]
    samples = [benchmark[number] for number in range(len(benchmark))]
    assert [sample["type"] for sample in samples] == kinds
    assert [sample["GT"] for sample in samples] == answers
    assert len({sample["index"] for sample in samples}) == len(samples) == 15
    assert samples[1]["prompt"].count("<image>") == 0
    assert benchmark.score(f" {answers[0]} ", samples[0]) == 1


def test_answers_equal_those_of_single_prompts(model, tiny_processor, benchmark, tmp_path):
    evaluate(model, tiny_processor, benchmark, tmp_path, batch_size=4, max_new_tokens=3)
    for row in rows(tmp_path)[:5]:
        sample = benchmark[row["index"]]
        content = [{"type": "image", "image": sample["image_path"]}, {"type": "text", "text": sample["prompt"]}]
        inputs = build_inputs(tiny_processor, [[{"role": "user", "content": content}]])
        assert generate(model, tiny_processor, inputs, 3).answers == [row["answer"]]


def test_results_hold_scores_and_costs(model, tiny_processor, benchmark, tmp_path):
    results = evaluate(model, tiny_processor, benchmark, tmp_path, batch_size=6, max_new_tokens=2, seed=3)
    assert {**json.loads((tmp_path / "results.json").read_text()), "folder": str(tmp_path)} == results
    assert results["settings"]["seed"] == 3
    assert {"ppe_npu", "torch", "transformers", "python", "device"} <= results["versions"].keys()
    assert results["errors"] == 0
    assert results["accuracy"]["count"] == 15
    assert sum(entry["count"] for entry in results["types"].values()) == 15
    costs = results["costs"]
    assert (costs["tokens_before"], costs["tokens_after"]) == (36, 17)
    assert {(row["tokens_before"], row["tokens_after"]) for row in rows(tmp_path)} == {(36, 17)}
    assert costs["retention"] == pytest.approx(17 / 36)
    assert 0 < costs["prefill_seconds"] <= costs["seconds"]
    assert costs["ttft_seconds"] > costs["prefill_seconds"]  # a batch's, not a sample's share of it
    assert costs["tokens_per_second"] > 0
    assert costs["peak_memory"] is None  # the CPU's allocator cannot be asked
    assert [row["warm"] for row in rows(tmp_path)] == [False] * 6 + [True] * 9
    restore(model)
    dense = evaluate(model, tiny_processor, benchmark, tmp_path / "dense", max_new_tokens=2)
    assert dense["name"] == "dense"
    assert dense["costs"]["tokens_after"] == 36
    # 19 tokens fewer (an answer may be one longer) in each layer's keys and values.
    text = model.config.text_config
    head = text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * 4
    assert dense["costs"]["kv_bytes"] - costs["kv_bytes"] == pytest.approx(19 * per_token, rel=1 / 19)


def test_reading_lengths_shows_how_far_it_is(model, tiny_processor, benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr("ppe_npu.utils.progress._EVERY", -1)  # a line after every sample, where no terminal is
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    evaluate(model, tiny_processor, benchmark, tmp_path, max_new_tokens=2, name="dense")
    count = len(benchmark)
    assert all(f"dense: lengths: {number} of {count} samples" in shown.getvalue() for number in (1, count))


def test_a_late_cascade_keeps_the_mean_over_layers_not_what_is_left(model, tiny_processor, benchmark, tmp_path):
    """The first of two layers holds all 36 tokens, the second ceil(36 * 0.25) = 9: 22.5 on average."""
    assert model.config.text_config.num_hidden_layers == 2
    compress(model, CompressionConfig(ratio=0.25, k=4, layers=(1,)))
    results = evaluate(model, tiny_processor, benchmark, tmp_path, batch_size=4, max_new_tokens=1)
    assert {row["tokens_after"] for row in rows(tmp_path)} == {22.5}
    assert results["costs"]["tokens_after"] == 22.5
    assert results["costs"]["retention"] == pytest.approx(22.5 / 36)


def test_kv_bytes_are_what_the_cache_holds(model):
    from transformers import DynamicCache

    cache = DynamicCache()
    assert kv_bytes(cache) == 0
    cache.update(torch.zeros(2, 1, 5, 4), torch.zeros(2, 1, 5, 4), 0)
    assert kv_bytes(cache) == 2 * 2 * 5 * 4 * 4


@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_run_goes_on_and_repeats_nothing(model, tiny_processor, benchmark, tmp_path, monkeypatch, torn):
    whole = evaluate(model, tiny_processor, benchmark, tmp_path / "whole", batch_size=4, max_new_tokens=2)
    asked, original = [], answers.generate

    def dies(*args):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(1)
        return original(*args)

    monkeypatch.setattr(answers, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tiny_processor, benchmark, tmp_path / "cut", batch_size=4, max_new_tokens=2)
    monkeypatch.setattr(answers, "generate", original)
    assert len(rows(tmp_path / "cut")) == 8
    assert not (tmp_path / "cut" / "results.json").exists()
    if torn:
        with open(tmp_path / "cut" / "predictions.jsonl", "a") as file:
            file.write('{"index": 14, "answ')
    again = evaluate(model, tiny_processor, benchmark, tmp_path / "cut", batch_size=4, max_new_tokens=2)
    assert sorted(row["index"] for row in rows(tmp_path / "cut")) == list(range(15))
    assert again["accuracy"] == whole["accuracy"]
    cut, uncut = ({row["index"]: row["answer"] for row in rows(tmp_path / name)} for name in ("cut", "whole"))
    assert cut == uncut


def test_a_sample_that_fails_is_recorded_and_the_rest_goes_on(model, tiny_processor, split, tmp_path):
    benchmark = benchmarks.load("layout", split)
    benchmark[4]["image_path"] = str(tmp_path / "gone.png")
    results = evaluate(model, tiny_processor, benchmark, tmp_path, batch_size=5, max_new_tokens=2)
    assert results["errors"] == 1
    assert results["accuracy"]["count"] == 15
    failed = [row for row in rows(tmp_path) if "error" in row]
    assert [row["index"] for row in failed] == [4]
    assert "gone.png does not exist" in failed[0]["error"]


def test_other_settings_are_refused(model, tiny_processor, benchmark, tmp_path):
    evaluate(model, tiny_processor, benchmark, tmp_path, max_new_tokens=2)
    with pytest.raises(InputError, match="another max_new_tokens"):
        evaluate(model, tiny_processor, benchmark, tmp_path, max_new_tokens=3)
    compress(model, CompressionConfig.preset("dense"))
    with pytest.raises(InputError, match="another compression"):
        evaluate(model, tiny_processor, benchmark, tmp_path, max_new_tokens=2)
    compress(model, CompressionConfig.preset("ppe", k=4))
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    with pytest.raises(InputError, match="another weights"):
        evaluate(model, tiny_processor, benchmark, tmp_path, max_new_tokens=2)
    with pytest.raises(InputError, match="another seed"):
        evaluate(model, tiny_processor, benchmark, tmp_path, max_new_tokens=2, seed=1)
    with pytest.raises(InputError, match="max_new_tokens=0"):
        evaluate(model, tiny_processor, benchmark, tmp_path, max_new_tokens=0)
    with pytest.raises(InputError, match="batch_size=0"):
        evaluate(model, tiny_processor, benchmark, tmp_path, batch_size=0)


def test_videos_and_pictures_in_memory(model, tiny_processor, write_clip, tmp_path):
    from PIL import Image

    class Mixed:
        name, modality = "mixed", "video"
        samples = (
            {"index": "v", "prompt": "count", "GT": "1", "type": "video", "video_path": write_clip("c.mp4")},
            {"index": "i", "prompt": "count", "GT": "1", "type": "image", "image": Image.new("RGB", (48, 48))},
        )

        def __len__(self):
            return 2

        def __getitem__(self, number):
            return self.samples[number]

        def score(self, answer, sample):
            return 1.0

    results = evaluate(model, tiny_processor, Mixed(), tmp_path / "out", max_new_tokens=2)
    assert results["errors"] == 0
    assert list(results["types"]) == ["video", "image"]
    assert {row["type"]: row["tokens_before"] > 36 for row in rows(tmp_path / "out")} == {"video": True, "image": False}


def test_benchmarks_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"'nosuch' is unknown: use .*layout"):
        benchmarks.load("nosuch", tmp_path)
    with pytest.raises(InputError, match=r"test\.jsonl does not exist"):
        benchmarks.load("layout", tmp_path)
    with pytest.raises(InputError, match="already registered"):
        benchmarks.register("layout", "elsewhere:Layout")


def test_other_data_under_the_same_name_is_refused(model, tiny_processor, benchmark, tmp_path):
    """As many questions of the same kinds about other scenes: the answers in the folder do not belong to them."""
    evaluate(model, tiny_processor, benchmark, tmp_path / "run", max_new_tokens=1)
    other = scenes.write_split(tmp_path / "other", "test", 5, seed=5, questions_per_image=3)
    assert len(benchmarks.load("layout", other)) == len(benchmark)
    with pytest.raises(InputError, match="another data"):
        evaluate(model, tiny_processor, benchmarks.load("layout", other), tmp_path / "run", max_new_tokens=1)


def test_a_failed_sample_is_asked_again_by_a_run_that_goes_on(model, tiny_processor, benchmark, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(answers, "generate", lambda *_, **__: 1 / 0)
        assert evaluate(model, tiny_processor, benchmark, tmp_path, max_new_tokens=1)["errors"] == 15
    assert evaluate(model, tiny_processor, benchmark, tmp_path, max_new_tokens=1)["errors"] == 0
    assert sorted(row["index"] for row in rows(tmp_path)) == list(range(15))


@pytest.mark.parametrize("how", ["relative", "..", "link", "moved", "earlier edition"])
def test_a_run_is_the_same_however_its_paths_are_spelled(split, tmp_path, monkeypatch, how):
    """The paths of the data, and of the model, whose weights are compared once they are read."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(split.parent, "a/data")
    Path("a/model").mkdir()

    def known(start: str) -> dict:
        return {
            **benchmark_identity(benchmarks.load("layout", f"{start}/data/{split.name}")),
            "model": f"{start}/model",
        }

    write_json("run/settings.json", {**known("a"), "weights": "w"})
    if how == "moved":
        Path("b").mkdir()
        Path("a").rename("b/a")
        monkeypatch.chdir("b")
    elif how == "earlier edition":
        written = json.loads(Path("run/settings.json").read_text())
        write_json("run/settings.json", {key: value for key, value in written.items() if key != "places"})
    Path("c").symlink_to("a")
    start = {"relative": f"{tmp_path}/a", "..": "a/../a", "link": "c"}.get(how, "a")
    check_settings(tmp_path / "run", known(start))
    check_settings(tmp_path / "run", {**known(start), "weights": "w"})
    with pytest.raises(InputError, match=r"another weights \('w', now 'v'\)"):
        check_settings(tmp_path / "run", {**known(start), "weights": "v"})
    with pytest.raises(InputError, match=r"another model \(.*, now 'd'\)"):
        check_settings(tmp_path / "run", {**known(start), "model": "d", "weights": "w"})
    Image.new("RGB", (8, 8)).save(next(Path("a/data").rglob("*.png")))
    with pytest.raises(InputError, match="another data"):
        check_settings(tmp_path / "run", known(start))
