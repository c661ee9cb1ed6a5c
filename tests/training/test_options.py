"""What a run offers beside plain steps: packing, lengths, rates, adapters, a teacher, broken files, a summary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from fixtures import write_noise_records
from safetensors.torch import load_file
from tolerances import eps, loss_near

from ppe_npu.errors import InputError, TrainingError
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.parts import part_of
from ppe_npu.training.trainer import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_noise_records(tmp_path_factory.mktemp("data"), records=16, most_words=6))


@pytest.fixture
def settings(tiny_folder, data, tmp_path):
    return {
        "model": tiny_folder, "data": data, "output": str(tmp_path / "run"), "device": "cpu", "max_steps": 4,
        "compression": {"positions": "ppe", "k": 4, "ratio": 0.45}, "batch_size": 4, "learning_rate": 1e-4,
        "logging_steps": 1, "cache_pixels": True,
    }  # fmt: skip


def losses(settings, **changed):
    return [loss for _, loss in train(TrainConfig(**settings | {"overwrite": True} | changed), announce=False).losses]


@pytest.mark.parametrize("compression", [{"positions": "ppe", "k": 4}, {"positions": "ppe", "k": 2, "layers": [1]}])
@pytest.mark.ci
def test_packing_changes_no_loss(settings, compression):
    whole = losses(settings, compression=compression)
    assert losses(settings, compression=compression, packing=True) == loss_near(whole, layers=3, steps=4)
    assert whole[0] != whole[-1]


def test_records_that_are_packed_already_are_refused_by_their_line(settings, data, tmp_path):
    rows = json.loads(Path(data).read_text())
    file = tmp_path / "apart.json"
    file.write_text(json.dumps([{**row, "independent": True} for row in rows[:2]]))
    run = {"data": str(file), "data_root": str(Path(data).parent), "packing": True}
    with pytest.raises(InputError, match=r"apart\.json.* which are packed already: leave packing out"):
        train(TrainConfig(**settings | run), announce=False)


@pytest.mark.ci
def test_length_groups_leave_no_record_out(settings, monkeypatch):
    from ppe_npu.training.collator import Collator

    seen = []
    monkeypatch.setattr(Collator, "__call__", _noting(Collator.__call__, seen))
    train(TrainConfig(**settings | {"group_by_length": True, "max_steps": None}), announce=False)
    assert sorted(seen, key=int) == [str(n) for n in range(16)]


def _noting(original, seen):
    def call(self, records):
        seen.extend(record.id for record in records)
        return original(self, records)

    return call


def test_each_part_learns_at_its_own_rate(settings, tiny_folder, capsys):
    rates = {"learning_rate": 1e-3, "merger_learning_rate": 1e-4, "vision_learning_rate": 0}
    result = train(TrainConfig(**settings | rates | {"max_steps": 1, "schedule": "constant", "logging_steps": 9}))
    before, after = load_file(f"{tiny_folder}/model.safetensors"), load_file(f"{result.final}/model.safetensors")
    moved: dict[str, float] = {}
    for name, value in before.items():
        part = part_of(name)
        moved[part] = max(moved.get(part, 0.0), (after[name] - value).abs().max().item())
    # Adam's first step is as large as the rate wherever there is a gradient; decay adds rate * decay * weight.
    for part, rate in (("language", 1e-3), ("merger", 1e-4)):
        size = max(value.abs().max().item() for name, value in before.items() if part_of(name) == part)
        decay = TrainConfig(**settings).weight_decay
        assert moved[part] == pytest.approx(rate, abs=rate * decay * size + 2 * eps(torch.float32) * size)
    assert moved["vision"] == 0
    printed = capsys.readouterr().out
    for word in (
        "0.0001",
        "0.001",
        "1 step of 4 (4 per forward x 1)",
        "entering the LLM",
        "rotary reference",
        "step 1 of 1: loss ",
    ):
        assert word in printed


@pytest.mark.ci
def test_self_distillation_is_part_of_the_loss(settings):
    plain, half, teacher = (losses(settings, max_steps=1, distill_weight=weight)[0] for weight in (0, 0.5, 1.0))
    assert half == loss_near((plain + teacher) / 2, layers=3)
    assert abs(teacher - plain) > 0.01 * plain
    with pytest.raises(InputError, match="distill_weight needs compression"):
        TrainConfig(**settings | {"compression": "dense", "distill_weight": 0.5})


@pytest.mark.parametrize("adapter", [pytest.param(None, marks=pytest.mark.slow), {"kind": "lora", "rank": 2}])
@pytest.mark.ci
def test_a_frozen_teacher_stays_what_the_model_was(settings, adapter, capfd):
    """Both teachers give the same first loss and other later ones; a resumed run keeps the frozen teacher."""
    common = {"distill_weight": 1.0, "learning_rate": 1e-2, "adapter": adapter, "save_steps": 2}
    present = losses(settings, **common)
    assert "set distill_teacher: start" in capfd.readouterr().err
    frozen = losses(settings, **common, distill_teacher="start")
    assert "distill_teacher" not in capfd.readouterr().err
    assert frozen[0] == present[0]
    assert frozen[-1] != present[-1]
    shutil.rmtree(Path(settings["output"], "final"))
    gone_on = TrainConfig(**settings | common | {"distill_teacher": "start", "resume": True})
    assert [loss for _, loss in train(gone_on, announce=False).losses] == frozen


def test_a_cosine_ends_at_the_least_rate(settings):
    from transformers import get_scheduler

    from ppe_npu.training.start import _arguments

    for least in (0.0, 0.01):
        asked = _arguments(TrainConfig(**settings | {"least_rate": least}), torch.device("cpu"), 4)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        scheduler = get_scheduler(
            asked.lr_scheduler_type, optimizer, 0, 4, scheduler_specific_kwargs=asked.lr_scheduler_kwargs
        )
        rates = []
        for _ in range(4):
            optimizer.step()
            scheduler.step()
            rates += scheduler.get_last_lr()
        assert rates[1] == pytest.approx(2 * (least + (1 - least) / 2), rel=8 * eps(torch.float64))
        assert rates[3] == pytest.approx(2 * least, abs=8 * eps(torch.float64))


@pytest.mark.ci
def test_an_adapter_learns_resumes_bit_equally_and_merges(settings, tiny_folder, tmp_path):
    from ppe_npu.training.export import merge_lora

    adapter = {"kind": "lora", "rank": 4, "dropout": 0.1, "parts": ["language", "vision"]}
    common = settings | {"adapter": adapter, "learning_rate": 1e-2, "save_steps": 2, "gradient_checkpointing": True}
    whole = train(TrainConfig(**common), announce=False)
    assert whole.losses[-1][1] < whole.losses[0][1]
    assert whole.trainable < whole.parameters / 5
    cut = tmp_path / "cut"
    shutil.copytree(settings["output"], cut)
    shutil.rmtree(cut / "final")
    again = train(TrainConfig(**common | {"output": str(cut), "resume": True}), announce=False)
    assert again.losses == whole.losses
    for file in ("adapter_model.safetensors",):
        first, second = (load_file(f"{run.final}/{file}") for run in (whole, again))
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert json.loads(Path(whole.final, "base.json").read_text())["model"] == str(Path(tiny_folder).resolve())
    merge_lora(whole.final, tmp_path / "merged")
    moved, base = load_file(tmp_path / "merged" / "model.safetensors"), load_file(f"{tiny_folder}/model.safetensors")
    changed = {name for name in base if not torch.equal(base[name], moved[name])}
    assert {name.split(".")[-2] for name in changed} >= {"q_proj", "down_proj", "qkv"}


def test_a_parameter_without_gradient_stops_the_run(settings, monkeypatch):
    from ppe_npu.models import vision_language

    original = vision_language.tower_features

    def cut_off(*args):
        import dataclasses

        found = original(*args)
        return dataclasses.replace(found, tokens=found.tokens.detach())

    monkeypatch.setattr(vision_language, "tower_features", cut_off)
    with pytest.raises(TrainingError, match=r"received no gradient in the first step \(.*visual"):
        train(TrainConfig(**settings), announce=False)
    train(TrainConfig(**settings | {"overwrite": True, "frozen": ["vision", "merger"]}), announce=False)


@pytest.mark.ci
def test_a_loss_that_is_not_finite_names_the_sample(settings, monkeypatch):
    from ppe_npu.training.collator import Collator

    original = Collator.__call__

    def poisoned(self, records):
        batch = original(self, records)
        for number, record in enumerate(records):
            if record.id == "5":
                per_image = len(batch["pixel_values"]) // len(records)
                batch["pixel_values"] = batch["pixel_values"].clone()
                batch["pixel_values"][number * per_image] = float("nan")
        return batch

    monkeypatch.setattr(Collator, "__call__", poisoned)
    with pytest.raises(TrainingError, match=r"the loss is nan at step \d, for sample\(s\) 5: "):
        train(TrainConfig(**settings), announce=False)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.ci
def test_files_that_break_are_skipped_and_counted(settings, data, tmp_path, workers):
    folder = tmp_path / "data"
    shutil.copytree(Path(data).parent, folder)
    for number in (3, 7):  # the header stays whole, so only reading finds it
        picture = folder / f"{number}.png"
        picture.write_bytes(picture.read_bytes()[:200])
    records = json.loads((folder / "train.json").read_text())
    records.append({"id": "gone", "image": "none.png", "conversations": records[0]["conversations"]})
    (folder / "train.json").write_text(json.dumps(records))
    run = settings | {"data": str(folder / "train.json"), "max_steps": None, "cache_pixels": False}
    with pytest.raises(InputError, match=r"1 of 17 records cannot be used: .*none\.png.*faults\.jsonl"):
        train(TrainConfig(**run), announce=False)
    result = train(TrainConfig(**run | {"invalid": "skip", "num_workers": workers}), announce=False)
    assert (result.steps, result.skipped) == (4, 2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "skipped-0.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} == {"3", "7"}
    assert all(".png" in row["reason"] and row["step"] for row in rows)
    assert json.loads((tmp_path / "run" / "faults.jsonl").read_text())["id"] == "gone"


@pytest.mark.ci
def test_a_step_of_broken_records_alone_teaches_nothing(settings, data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(Path(data).parent, folder)
    picture = folder / "3.png"
    picture.write_bytes(picture.read_bytes()[:200])
    run = {
        "data": str(folder / "train.json"),
        "batch_size": 1,
        "max_steps": None,
        "invalid": "skip",
        "cache_pixels": False,
    }
    result = train(TrainConfig(**settings | run), announce=False)
    assert (result.steps, result.skipped) == (16, 1)
    assert [loss for _, loss in result.losses].count(0.0) == 1


@pytest.mark.ci
def test_texts_alone_have_no_retention(settings, tmp_path):
    talk = [{"from": "human", "value": "row red"}, {"from": "gpt", "value": "3"}]
    (tmp_path / "text.json").write_text(json.dumps([{"conversations": talk}] * 4))
    result = train(TrainConfig(**settings | {"data": str(tmp_path / "text.json"), "max_steps": 1}), announce=False)
    assert result.retention is None
    assert "there are no visual tokens" in (tmp_path / "run" / "summary.md").read_text()


@pytest.mark.ci
def test_a_run_leaves_something_to_look_at(settings, tmp_path, drawn):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(TrainConfig(**settings | {"tensorboard": True}), announce=False)
    run = tmp_path / "run"
    text = (run / "summary.md").read_text()
    for words in ("| compression | ", "| steps | 4 |", "45", "tokens/s", "not measured on a CPU", "loss.png"):
        assert words in text
    assert (run / "loss.png").read_bytes()[:4] == b"\x89PNG"
    summary = json.loads((run / "summary.json").read_text())
    assert 0.4 < summary["retention"] < 0.55
    assert summary["tokens_per_second"] > 0
    assert summary["data"]["kinds"]["image"]["records"] == 16
    curves = EventAccumulator(str(run / "tensorboard")).Reload()
    drawn_losses = [(point.step, point.value) for point in curves.Scalars("train/loss")]
    assert drawn_losses == [(step, torch.tensor(loss).item()) for step, loss in result.losses]
    assert "args/text_summary" in curves.Tags()["tensors"]
    again = TrainConfig(**json.loads((run / "train.json").read_text()))
    assert again.compression.k == 4


@pytest.mark.ci
def test_an_earlier_run_is_dropped_only_when_the_new_one_can_start(settings, tmp_path):
    first = train(TrainConfig(**settings | {"max_steps": 1}), announce=False)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(InputError, match="contains no records"):
        train(TrainConfig(**settings | {"overwrite": True, "data": str(tmp_path / "bad.json")}))
    assert Path(first.final, "config.json").is_file()


@pytest.mark.ci
def test_another_base_or_other_data_is_no_resumption(settings, tiny_folder, data, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    run = settings | {"model": str(base), "save_steps": 2, "data": str(tmp_path / "train.json")}
    for file in Path(data).parent.iterdir():
        shutil.copy(file, tmp_path / file.name)
    train(TrainConfig(**run), announce=False)
    weights = load_file(base / "model.safetensors")
    from safetensors.torch import save_file

    save_file({key: value * 1.01 for key, value in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="with other weights"):
        train(TrainConfig(**run | {"resume": True}))
    records = json.loads((tmp_path / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps(records[1:]))
    with pytest.raises(InputError, match=r"other settings, records \("):
        train(TrainConfig(**run | {"resume": True}))
