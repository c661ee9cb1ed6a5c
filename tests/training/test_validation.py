"""Records that a run does not learn from: chosen once, scored as in training, and without any effect on the run."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import numpy as np
import pytest
from cut_runs import go_on
from tolerances import loss_near

from ppe_npu.checkpoints.loading import load_model, load_processor
from ppe_npu.errors import InputError
from ppe_npu.models import compress
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.collator import NOTES, Collator
from ppe_npu.training.data import read_records
from ppe_npu.training.validation import held_back


@pytest.mark.parametrize(("records", "share", "number"), [(12, 0.25, 3), (10, 0.01, 1), (7, 0.5, 4), (2, 0.5, 1)])
def test_so_many_are_held_back_and_always_the_same(records, share, number):
    chosen = held_back(records, share, seed=1)
    assert chosen.sum() == number
    assert (chosen == held_back(records, share, seed=1)).all()
    several = {tuple(np.flatnonzero(held_back(records, share, seed))) for seed in range(20)}
    assert len(several) > 1


def test_one_must_be_left():
    with pytest.raises(InputError, match="leaves none to train on"):
        held_back(1, 0.5, 0)


@pytest.fixture
def short(whole_run, tmp_path):
    return whole_run[0] | {"output": str(tmp_path / "run"), "max_steps": 2, "save_steps": 0}


def test_the_loss_is_the_mean_over_all_labelled_tokens(short, whole_run):
    """Batches hold unequal numbers of labelled tokens; validation has no effect on the run."""
    data = whole_run[0]["data"]
    plain = go_on(short)
    result = go_on(short, validation_data=data, eval_steps=1, overwrite=True, batch_size=2)
    assert result.losses == plain.losses
    assert [step for step, _ in result.validation] == [1, 2]
    records, processor = read_records(data), load_processor(short["model"])
    model = compress(load_model(result.final), TrainConfig(**short).compression)
    collate, total, tokens = Collator(processor, model.compression.vision), 0.0, 0
    for record in records:
        inputs = {key: value for key, value in collate([record]).items() if key not in NOTES}
        count = int((inputs["labels"] != -100).sum())
        total, tokens = total + float(model(**inputs).loss) * count, tokens + count
    assert result.validation[-1][1] == loss_near(total / tokens, layers=3)


@pytest.mark.ci
def test_a_share_is_held_back_from_training(short, tmp_path):
    result = go_on(short, validation_share=0.25)
    assert [step for step, _ in result.validation] == [2], "after the last step, where no eval_steps are given"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["data"]["records"] == 9
    assert summary["validation"] == [list(pair) for pair in result.validation]
    assert f"{result.validation[0][1]:.4f}" in (tmp_path / "run" / "summary.md").read_text()


@pytest.mark.ci
def test_distillation_has_no_part_in_it(short):
    weights = [go_on(short, validation_share=0.25, max_steps=1, learning_rate=1e-30, overwrite=True, distill_weight=w)
               for w in (0.0, 1.0)]  # fmt: skip
    assert weights[0].validation == weights[1].validation
    assert weights[0].losses != weights[1].losses


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"eval_steps": 5}, "eval_steps=5 without validation records"),
        ({"validation_data": "a.json", "validation_share": 0.1}, "exclude each other"),
        ({"validation_share": 1.0}, "validation_share=1.0"),
    ],
)
@pytest.mark.ci
def test_refused(short, asked, said):
    with pytest.raises(InputError, match=said):
        TrainConfig(**short | asked)


def test_curves_go_to_wandb_through_the_trainers_own_callback(short, monkeypatch):
    """wandb itself is not needed: a callback that records the logs replaces the one in transformers."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="wandb needs wandb"):
        go_on(short, wandb=True)
    logged = []
    import transformers.integrations

    class Noted(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            logged.append((state.global_step, set(logs)))

    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    monkeypatch.setattr(transformers.integrations, "WandbCallback", Noted)
    go_on(short, wandb=True, validation_share=0.25)
    assert {"loss", "tokens_per_second", "retention"} <= logged[0][1]
    assert "eval_loss" in logged[-1][1]
