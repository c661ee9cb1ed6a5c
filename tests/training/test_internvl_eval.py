"""InternVL in `ppe-npu eval`, with and without PVC's modules, gets pictures and videos as it did in training."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from families import supported
from tolerances import assert_equal

from ppe_npu.checkpoints.loading import load_model, load_processor
from ppe_npu.config import CompressionConfig
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.errors import InputError
from ppe_npu.evaluation.answers import ModelAnswers
from ppe_npu.evaluation.vllm_engine import check_engine
from ppe_npu.models import compress
from ppe_npu.models.pvc import PVCConfig
from ppe_npu.training import loop
from ppe_npu.training.adapted import Checkpoint
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.collator import Collator
from ppe_npu.training.data import read_records
from ppe_npu.training.trainer import train

pytestmark = supported

FRAMES, BEAMS = 4, ("num_beams=2",)
BENCHMARK = """
import json
from pathlib import Path

ROOT = Path({root!r})

class Mixed:
    modality = "image"
    max_new_tokens = 2
    rows = [json.loads(line) for line in (ROOT / "data.jsonl").read_text().splitlines()]
    def __len__(self): return len(self.rows)
    def __getitem__(self, number):
        row = self.rows[number]
        kind = "image" if "image" in row else "video"
        asked, told = (turn["value"] for turn in row["conversations"])
        question = asked.split("\\n")[1]
        return {{"index": number, "prompt": question, "GT": told, kind + "_path": str(ROOT / row[kind])}}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """({"pvc", "plain"} -> (folder, the model in memory at the end of its training), the file of records)."""
    import tiny_internvl

    root, found = tmp_path_factory.mktemp("trained"), {}
    start, records = tiny_internvl.save(root / "start"), tiny_internvl.write_records(root / "data")
    step = loop.CompressedTrainer.training_step
    for name, pvc in (("pvc", PVCConfig(blocks=2, time_width=16, showings=3)), ("plain", None)):
        seen = []

        def watched(self, model, *args, seen=seen, **kwargs):
            seen.append(model)
            return step(self, model, *args, **kwargs)

        loop.CompressedTrainer.training_step = watched
        try:
            asked = {"max_steps": 4, "batch_size": 3, "learning_rate": 2e-2, "warmup_steps": 0, "device": "cpu"}
            asked |= {"compression": "dense", "video": {"nframes": FRAMES}, "pvc": pvc, "num_workers": 0}
            config = TrainConfig(model=str(start), data=str(records), output=str(root / name), **asked)
            result = train(config, announce=False)
        finally:
            loop.CompressedTrainer.training_step = step
        found[name] = (result.final, seen[-1].eval())
    return found, records


def sampled(records):
    """The records as a benchmark's samples."""
    for record in records:
        kind = "image" if record.images else "video"
        yield {"index": record.id, "prompt": question_of(record), f"{kind}_path": (record.images or record.videos)[0]}


def question_of(record):
    return next(part["text"] for part in record.messages()[0]["content"] if part["type"] == "text")


@pytest.mark.parametrize("name", ["pvc", "plain"])
@pytest.mark.ci
def test_it_is_asked_as_it_was_trained_and_answers_as_at_the_end_of_training(trained, name):
    (folder, memory), records = trained[0][name], read_records(trained[1])
    dense, sampling = CompressionConfig.preset("dense"), VideoSampling(nframes=FRAMES)
    model, processor = compress(load_model(folder, tiled=True), dense), load_processor(folder)
    answers = ModelAnswers(model, processor, 2, sampling)
    shown_by = model.config if name == "pvc" else None
    collator = Collator(processor, model.compression.vision, sampling, shown_by=shown_by)
    for record, sample in zip(records, sampled(records)):
        learned, asked = collator([record]), answers.prepare([sample])
        prompt = int((learned["labels"][0] != -100).nonzero()[0])
        assert_equal(asked["input_ids"][0], learned["input_ids"][0, :prompt])
        assert_equal(asked["pixel_values"], learned["pixel_values"])
        told = "time_steps" if name == "pvc" else "num_frames"
        assert asked[told] == learned[told]
        with torch.no_grad():
            assert_equal(model(**asked).logits, memory(**asked).logits)
        assert (
            answers.measure(sample).before == int(asked["mm_token_type_ids"].bool().sum()) + len(sample["prompt"]) // 4
        )


@pytest.mark.parametrize(
    ("name", "compression", "rules"), [("pvc", "dense", ()), ("pvc", "ppe", BEAMS), ("plain", "ppe", BEAMS)]
)
@pytest.mark.ci
def test_the_command_answers_as_the_model_does(trained, tmp_path, run, name, compression, rules):
    (folder, memory), file = trained[0][name], tmp_path / "own.py"
    file.write_text(BENCHMARK.format(root=str(trained[1].parent)))
    more = () if compression == "dense" else ("--k", "2", "--ratio", "0.5")
    asked = ("--benchmarks", f"{file}:Mixed", "--compression", compression, *more, "--nframes", str(FRAMES))
    asked += ("--cost-rounds", "0", *(("--generation", *rules) if rules else ()))
    code, out, err = run("eval", "--model", str(folder), "--output", str(tmp_path / "out"), "--device", "cpu", *asked)
    assert code == 0, out + err
    rows = next((tmp_path / "out" / "Mixed").glob("*/predictions.jsonl")).read_text().splitlines()
    rows = {row["index"]: row for row in map(json.loads, rows)}
    assert len(rows) == 6
    assert all("error" not in row for row in rows.values())
    config = CompressionConfig.preset(compression, **({"k": 2, "ratio": 0.5} if more else {}))
    sampling = VideoSampling(nframes=FRAMES)
    alone = ModelAnswers(compress(memory, config), load_processor(folder), 2, sampling, generation=rules or None)
    for number, sample in enumerate(sampled(read_records(trained[1]))):
        done = alone.answer(alone.prepare([sample]))
        assert rows[number]["answer"] == done.answers[0]
        tiles = FRAMES if "video_path" in sample else 9 if name == "pvc" else 3
        assert rows[number]["tokens_before"] == done.tokens_before[0] == 4 * tiles


def test_what_tiles_cannot_be_asked_is_said(trained, tmp_path, run):
    (folder, _), file = trained[0]["pvc"], tmp_path / "own.py"
    file.write_text(BENCHMARK.format(root=str(trained[1].parent)))
    asked = (
        "eval",
        "--model",
        str(folder),
        "--benchmarks",
        f"{file}:Mixed",
        "--compression",
        "dense",
        "ppe",
        "--k",
        "2",
    )
    for more, why in (("--smaller-input", "tiles of one size"), ("--max-pixels 99", "tiles of one size")):
        code, out, err = run(*asked, "--output", str(tmp_path / "out"), "--device", "cpu", *more.split())
        assert code == 2
        assert why in out + err
    with pytest.raises(InputError, match="only train and eval prepare"):
        load_model(folder)


def test_the_vllm_engine_of_evaluations_refuses_tiles_in_its_own_words(tmp_path, monkeypatch):
    import tiny_internvl

    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there("json") if name == "vllm" else there(name))
    folder = tiny_internvl.save(tmp_path / "tiles")
    with pytest.raises(
        InputError, match=r"--engine vllm does not serve .*whose pictures are tiles: leave --engine out"
    ):
        check_engine(Checkpoint.of(folder, tiled=True), [])
