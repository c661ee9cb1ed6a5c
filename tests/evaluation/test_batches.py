"""Which samples are answered together, in which order, and what happens when a batch fails."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from stand_in import Counting, Instant

from ppe_npu.config import CompressionConfig
from ppe_npu.data.inputs import build_inputs
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.errors import InputError
from ppe_npu.evaluation.runner import Evaluation
from ppe_npu.evaluation.samples import conversation, measure, sampling_of

DENSE = CompressionConfig.preset("dense")


class Noting(Instant):
    """Notes its batches, and raises the error that `fails` returns for one; sample n has lengths[n] tokens, or 10."""

    def __init__(self, lengths=None, buckets=None, fails=lambda batch: None) -> None:
        super().__init__()
        self.lengths, self.buckets, self.fails = lengths or {}, buckets or {}, fails
        self.batches, self.threads, self.released = [], [], 0

    def measure(self, sample):
        length = self.lengths.get(sample["index"], 10)
        bucket = self.buckets.get(sample["index"], "text")
        return SimpleNamespace(bucket=bucket, before=length, after=length, source="")

    def prepare(self, samples):
        self.threads.append(threading.current_thread())
        return samples

    def answer(self, prepared):
        self.batches.append([sample["index"] for sample in prepared])
        error = self.fails(self.batches[-1])
        if error:
            raise error
        return super().answer(prepared)

    def out_of_memory(self, error):
        return isinstance(error, MemoryError)

    def release_memory(self):
        self.released += 1


def run(model, samples, folder, benchmark=None, **options) -> dict:
    with Evaluation(model, benchmark or Counting(samples), folder, bar=False, **options) as evaluation:
        return evaluation.run()


def rows(folder) -> dict:
    lines = (Path(folder) / "predictions.jsonl").read_text().splitlines()
    return {row["index"]: row for row in map(json.loads, lines)}


# -- what goes together ------------------------------------------------------------------------------------------------


def test_samples_of_like_length_and_kind_are_together_the_longest_first(tmp_path):
    lengths = {0: 5, 1: 50, 2: 7, 3: 60, 4: 6, 5: 55}
    model = Noting(lengths, buckets={4: "video"})
    run(model, 6, tmp_path, batch_size=3)
    assert model.batches == [[3, 5, 1], [2, 0], [4]]


def test_a_batch_keeps_within_its_tokens_and_a_longer_prompt_is_alone(tmp_path):
    model = Noting({0: 100, 1: 40, 2: 30, 3: 30, 4: 10})
    run(model, 5, tmp_path, batch_size=4, batch_tokens=90)
    assert model.batches == [
        [0],
        [1, 2],
        [3, 4],
    ]  # with padding 2 * 40, 2 * 30


def test_the_next_batch_is_prepared_in_a_thread_of_its_own(tmp_path):
    model, prepared = Noting(), threading.Event()
    original = model.prepare

    def prepare(samples):
        if samples[0]["index"] == 2:
            prepared.set()
        return original(samples)

    def fails(batch):
        # Answering the first batch goes on until the second one has been prepared.
        return None if batch != [0, 1] or prepared.wait(10) else TimeoutError("nobody prepared the next batch")

    model.prepare, model.fails = prepare, fails
    run(model, 4, tmp_path, batch_size=2)
    assert model.batches == [[0, 1], [2, 3]]
    assert threading.main_thread() not in model.threads


# -- batches that fail -------------------------------------------------------------------------------------------------


def test_a_batch_that_fails_is_halved_until_the_culprit_is_alone(tmp_path):
    model = Noting(fails=lambda batch: ValueError("five\nmore") if 5 in batch else None)
    results = run(model, 8, tmp_path, batch_size=8)
    assert model.batches == [list(range(8)), [0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [4], [5], [6, 7]]
    assert results["errors"] == 1
    assert rows(tmp_path)[5]["error"] == "ValueError: five"
    assert rows(tmp_path)[5]["answer"] == ""
    assert model.released == 0


def test_after_a_lack_of_memory_batches_stay_smaller(tmp_path):
    model = Noting(fails=lambda batch: MemoryError() if len(batch) > 3 else None)
    results = run(model, 24, tmp_path, batch_size=8)
    assert results["errors"] == 0
    # The second batch was taken, to be prepared, before the first one failed.
    assert [len(batch) for batch in model.batches] == [8, 4, 2, 2, 4, 2, 2, 8, 4, 2, 2, 4, 2, 2, 2, 2, 2, 2]
    assert model.released == 6


def test_an_answer_that_cannot_be_judged_is_one_failed_sample(tmp_path):
    class Harsh(Counting):
        def score(self, answer, sample):
            return {"3": 1 / 0}[answer] if answer == "3" else 1.0

    results = run(Noting(), 4, tmp_path, Harsh(4))
    assert results["errors"] == 1
    assert "ZeroDivisionError" in rows(tmp_path)[2]["error"]


# -- what benchmarks may have ------------------------------------------------------------------------------------------


def test_without_a_score_any_of_the_right_answers_will_do(tmp_path):
    class Several(Counting):
        def __getitem__(self, number):
            return {**super().__getitem__(number), "GT": ["none", f" {number + 1}."] if number else ["none"]}

    assert run(Noting(), 4, tmp_path, Several(4))["accuracy"]["accuracy"] == 0.75


def test_a_metric_over_all_samples_has_replicates_and_an_interval(tmp_path):
    class Corpus(Counting):
        headline = "pairs"

        def unit(self, row):
            return row["index"] // 2

        def score(self, answer, sample):
            return None

        def metrics(self, rows):
            assert {"index", "type", "prompt", "GT", "answer", "score"} <= rows[0].keys()
            pairs = {}
            for row in rows:
                pairs.setdefault((self.unit(row), row.get("copy")), []).append(int(row["answer"]) % 4 == 0)
            # Pairs are drawn whole, and a pair that is drawn twice counts as two.
            assert all(len(pair) == 2 for pair in pairs.values())
            return {"pairs": sum(map(any, pairs.values())) / len(pairs), "rows": len(rows)}

    results = run(Noting(), 40, tmp_path, Corpus(40))
    assert results["metrics"] == {"pairs": 0.5, "rows": 40}
    assert results["accuracy"]["count"] == 0
    headline = results["headline"]
    assert (headline["name"], headline["value"], len(headline["replicates"])) == ("pairs", 0.5, 1000)
    # 10 of 20 pairs: the share's standard error is sqrt(.5 * .5 / 20).
    for end, value in (("low", 0.5 - 1.96 * 0.112), ("high", 0.5 + 1.96 * 0.112)):
        assert headline[end] == pytest.approx(value, abs=1 / 20), "a share goes by twentieths"


def test_a_metric_without_an_interval_says_why(tmp_path, monkeypatch):
    class Strict(Counting):
        headline = "all"

        def metrics(self, rows):
            if len({row["index"] for row in rows}) < len(rows):
                raise ValueError("a sample is there twice")
            return {"all": 1.0}

    class Unit(Strict):
        def unit(self, row):
            return row["index"]

    headline = run(Noting(), 9, tmp_path / "a", Strict(9))["headline"]
    assert headline == {"name": "all", "value": 1.0, "why": "the benchmark has no unit(), which says what is resampled"}
    headline = run(Noting(), 9, tmp_path / "b", Unit(9))["headline"]
    raised = f"metrics() of counting failed at test_batches.py:{Strict.metrics.__code__.co_firstlineno + 2}: ValueError"
    why = f"all failed on a resample: {raised}: a sample is there twice"
    assert headline == {"name": "all", "value": 1.0, "why": why}
    monkeypatch.setattr("ppe_npu.evaluation.results._SECONDS", 0.0)
    Unit.metrics = lambda benchmark, rows: {"all": 1.0}
    headline = run(Noting(), 9, tmp_path / "c", Unit(9))["headline"]
    assert headline == {"name": "all", "value": 1.0, "why": "only 1 resamples in 0 s"}


def test_every_sample_needs_an_index_of_its_own(tmp_path):
    class Same(Counting):
        def __getitem__(self, number):
            return {**super().__getitem__(number), "index": number % 3}

    with pytest.raises(InputError, match="samples 0 and 3 both have the index 0: give"):
        run(Noting(), 4, tmp_path, Same(4))


# -- lengths told from headers -----------------------------------------------------------------------------------------


def test_measures_come_close_to_real_prompts(tiny_processor, write_image, write_clip):
    ppe = CompressionConfig.preset("ppe", ratio=0.25, k=4)
    samples = [
        {"prompt": "count", "image_path": write_image("a.png", size=(96, 40))},
        {"prompt": "count", "image": [Image.new("RGB", (48, 48)), Image.new("RGB", (30, 70))]},
        {"prompt": "count", "video_path": write_clip("c.mp4", frames=12)},
        {"prompt": "count"},
    ]
    for sample in samples:
        found = measure(sample, tiny_processor, ppe)
        inputs = build_inputs(tiny_processor, [conversation(sample)])
        tokens = int((inputs["mm_token_type_ids"] > 0).sum())
        assert abs(found.before - tokens) <= 2, sample  # the text's length is an estimate
        assert found.after <= 0.25 * found.before + 4, sample
    assert [measure(sample, tiny_processor, DENSE).bucket.split()[0] for sample in samples] == [
        *("image", "image", "video", "text")
    ]


def test_a_file_that_cannot_be_looked_at_has_a_middling_length(tiny_processor, tmp_path):
    for key, name in (("image_path", "gone.png"), ("video_path", "gone.mp4")):
        assert measure({"prompt": "x", key: str(tmp_path / name)}, tiny_processor, DENSE).before > 0


def test_samples_with_other_rules_for_frames_are_not_in_one_batch(tiny_processor, write_clip):
    clip = write_clip("c.mp4")
    plain, own = (
        {"prompt": "x", "video_path": clip},
        {"prompt": "x", "video_path": clip, "sampling": VideoSampling(2.0)},
    )
    asked = VideoSampling(nframes=4, max_pixels=2304)
    assert sampling_of(plain, asked) == asked
    own["sampling"] = VideoSampling(fps=2.0, max_frames=6)
    assert sampling_of(own, asked) == VideoSampling(nframes=4, max_pixels=2304, max_frames=6)
    assert sampling_of(own, VideoSampling(max_pixels=2304)) == VideoSampling(fps=2.0, max_pixels=2304, max_frames=6)
    own["sampling"] = VideoSampling(nframes=16, middles=True)
    assert sampling_of(own, asked) == VideoSampling(nframes=4, max_pixels=2304, middles=True)
    assert sampling_of(own, None) == own["sampling"]
    buckets = {measure(sample, tiny_processor, DENSE, asked).bucket for sample in (plain, own)}
    assert len(buckets) == 2


def test_visuals_stand_where_the_prompt_has_places_for_them():
    sample = {"prompt": "<image> and <image>: alike?", "image_path": ["a.png", "b.png"]}
    assert [item["type"] for item in conversation(sample)[0]["content"]] == ["image", "text", "image", "text"]
    sample["prompt"] = "What does <image> mean in HTML?"
    content = conversation(sample)[0]["content"]
    assert [item["type"] for item in content] == ["image", "image", "text"]
    assert content[-1]["text"] == sample["prompt"]
