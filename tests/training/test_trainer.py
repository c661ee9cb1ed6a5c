"""train() learns, resumes bit-equally, leaves a checkpoint that plain transformers loads, and refuses bad settings."""

from __future__ import annotations

import gc
import json
import shutil

import pytest
import torch

from ppe_npu.demo import scenes
from ppe_npu.errors import InputError, TrainingError
from ppe_npu.training import trainer
from ppe_npu.training.args import SCHEDULES, TrainConfig, as_compression
from ppe_npu.training.loop import CompressedTrainer, last_whole_checkpoint
from ppe_npu.training.trainer import total_steps, train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(scenes.write_split(tmp_path_factory.mktemp("data"), "train", 24, seed=3, questions_per_image=4))


@pytest.fixture
def settings(tiny_folder, data, tmp_path):
    return {
        "model": tiny_folder,
        "data": data,
        "output": str(tmp_path / "run"),
        "compression": {"positions": "ppe", "k": 4, "ratio": 0.45},
        "device": "cpu",
        "max_steps": 6,
        "batch_size": 8,
        "learning_rate": 2e-3,
        "warmup_steps": 2,
        "logging_steps": 1,
        "cache_pixels": True,
    }


def test_a_run_learns_and_its_checkpoint_loads_in_plain_transformers(settings, capsys):
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    result = train(TrainConfig(**settings | {"gradient_accumulation": 2, "gradient_checkpointing": True}))
    assert result.steps == 6
    assert [step for step, _ in result.losses] == [1, 2, 3, 4, 5, 6]
    assert result.losses[-1][1] < result.losses[0][1]
    printed = capsys.readouterr().out
    for word in (
        "language",
        "vision",
        "merger",
        "0.002",
        "6 steps of 16 (8 per forward x 2)",
        "ratio 0.45",
        "k 4",
        "attention sdpa > reference",
    ):
        assert word in printed
    plain, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(result.final, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(p.numel() for p in plain.parameters()) == result.parameters
    assert AutoProcessor.from_pretrained(result.final).chat_template
    with open(f"{result.final}/compression.json") as file:
        assert as_compression(json.load(file)).k == 4
    with open(f"{settings['output']}/summary.json") as file:
        summary = json.load(file)
    assert summary["steps"] == 6
    assert summary["settings"]["learning_rate"] == 2e-3


def test_a_run_that_was_cut_off_resumes_bit_equally(settings, tmp_path):
    whole = train(TrainConfig(**settings | {"save_steps": 2, "output": str(tmp_path / "whole")}))
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    shutil.rmtree(cut / "final")
    (cut / "checkpoint-4" / "whole.json").unlink()  # as if the process died while it saved this one
    resumed = train(TrainConfig(**settings | {"save_steps": 2, "output": str(cut), "resume": True}))
    assert resumed.losses == whole.losses
    assert last_whole_checkpoint(cut).name == "checkpoint-4"
    assert not (cut / "checkpoint-6").exists(), "final is that"
    first, second = _weights(whole.final), _weights(resumed.final)
    assert all(torch.equal(first[key], second[key]) for key in first)


def _weights(folder: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(f"{folder}/model.safetensors")


@pytest.mark.ci
def test_two_runs_are_bit_identical_and_the_final_folder_is_a_start(settings, tmp_path):
    first, second = (train(TrainConfig(**settings | {"output": str(tmp_path / name)})) for name in "ab")
    assert first.losses == second.losses
    # A third run starts from the first one's final folder, with several data files.
    again = {"model": first.final, "data": [settings["data"]] * 2, "max_steps": 1}
    assert train(TrainConfig(**settings | again)).losses[0][1] < first.losses[0][1]


@pytest.mark.ci
def test_resuming_with_other_settings_is_refused(settings):
    train(TrainConfig(**settings | {"save_steps": 3}))
    with pytest.raises(InputError, match="other settings, learning_rate"):
        train(TrainConfig(**settings | {"resume": True, "learning_rate": 1e-4}))
    with pytest.raises(InputError, match="contains an earlier run"):
        train(TrainConfig(**settings))
    train(TrainConfig(**settings | {"overwrite": True, "max_steps": 1}))
    assert last_whole_checkpoint(settings["output"]) is None, "overwrite drops old checkpoints"


@pytest.mark.ci
def test_a_loss_that_is_not_finite_stops_the_run(settings, tiny_folder, tmp_path):
    from ppe_npu.checkpoints.loading import load_model, load_processor

    model = load_model(tiny_folder)
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    load_processor(tiny_folder).save_pretrained(tmp_path / "broken")
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1, for sample\(s\) .*: lower"):
        train(TrainConfig(**settings | {"model": str(tmp_path / "broken")}))


@pytest.mark.ci
def test_bf16_trains_fp32_weights(settings):
    result = train(TrainConfig(**settings | {"dtype": "bf16", "schedule": "stable_decay", "max_steps": 2}))
    assert result.steps == 2
    assert all(weight.dtype == torch.float32 for weight in _weights(result.final).values())


def test_the_schedules(settings):
    import transformers

    from ppe_npu.training.start import _arguments

    found = {}
    for schedule in SCHEDULES:
        config = TrainConfig(**settings | {"schedule": schedule, "max_steps": 12, "warmup_steps": 2})
        arguments = _arguments(config, torch.device("cpu"), 12)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        name, extra = arguments.lr_scheduler_type, arguments.lr_scheduler_kwargs
        scheduler = transformers.get_scheduler(name, optimizer, 2, 12, scheduler_specific_kwargs=extra)
        found[schedule] = []
        for _ in range(12):
            found[schedule].append(round(scheduler.get_last_lr()[0], 3))
            optimizer.step()
            scheduler.step()
    assert found["constant"] == [0, 0.5] + [1] * 10
    assert found["linear"] == [0, 0.5, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert found["cosine"][2:] == sorted(found["cosine"][2:], reverse=True)
    assert found["stable_decay"] == [0, 0.5, 1, 1, 1, 1, 1, 0.833, 0.667, 0.5, 0.333, 0.167]


def test_what_is_frozen_does_not_move(settings, tiny_folder):
    before = _weights(tiny_folder)
    result = train(TrainConfig(**settings | {"frozen": ("model.visual",), "max_steps": 2}))
    after = _weights(result.final)
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"model", "lm_head"}
    assert result.trainable == sum(v.numel() for name, v in after.items() if not name.startswith("visual."))
    for frozen, words in ((("visual",), "is neither a part"), (("model", "lm_head"), "leaves no trainable parameter")):
        with pytest.raises(InputError, match=words):
            train(TrainConfig(**settings | {"frozen": frozen, "overwrite": True}))


def test_a_run_that_has_ended_leaves_nothing_in_memory(settings):
    """The last epoch is not exhausted: the run ends after two of three steps."""
    before = {id(one) for one in trainers()}
    train(TrainConfig(**settings | {"max_steps": 2, "validation_share": 0.2, "eval_steps": 1}))
    gc.collect()
    assert [one for one in trainers() if id(one) not in before] == []


def trainers() -> list:
    return [one for one in gc.get_objects() if type(one) is CompressedTrainer]


def test_epochs_and_steps(settings):
    config = TrainConfig(**settings | {"max_steps": None, "epochs": 2, "gradient_accumulation": 2})
    assert total_steps(config, 24) == 4
    assert total_steps(config, 25) == 4
    assert total_steps(config, 33) == 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": -1}, "learning_rate=-1"),
        ({"schedule": "step"}, "schedule='step': use one of constant"),
        ({"dtype": "fp16"}, "dtype='fp16': use one of fp32, bf16"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"betas": (0.9,)}, "betas"),
        ({"decay_fraction": 0}, "decay_fraction"),
        ({"data": []}, "data is an empty list"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
        ({"least_rate": 0.01, "schedule": "linear"}, "least_rate=0.01 with schedule='linear'"),
        ({"compression": "best"}, "preset 'best' is unknown"),
        ({"deepspeed": "x" * 5000}, "deepspeed=.xxx.* is neither a file nor one of"),
        ({"compression": {"colour": 1}}, "colour"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(settings, change, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")) as error:
        TrainConfig(**settings | change)
    assert "\n" not in str(error.value)


def test_bad_models_are_named(settings, tmp_path):
    for model, words in ((str(tmp_path), "contains no config.json"), ("./none", "does not exist")):
        with pytest.raises(InputError, match=words):
            train(TrainConfig(**settings | {"model": model}))


@pytest.mark.parametrize("stage", [3, "3"])
def test_zero_3_is_refused_where_it_cannot_be(settings, monkeypatch, tmp_path, stage):
    """Whichever way the file writes the stage (DeepSpeed takes both), and before any record is read."""
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = settings | {"deepspeed": str(file), "data": str(tmp_path / "none.json")}
    with monkeypatch.context() as patched:
        patched.setattr(trainer.devices, "reduces_float64", lambda device: False)
        with pytest.raises(InputError, match=r"ZeRO-3 sums .* use ZeRO-2"):
            train(TrainConfig(**asked))
    with pytest.raises(InputError, match=r"distill_teacher='start' .* no process has a whole model to copy"):
        train(TrainConfig(**asked, distill_weight=0.5, distill_teacher="start"))
