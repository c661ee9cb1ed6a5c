"""Other packages' trainers on a compressed model: scoring the labels themselves, they get the model's own loss."""

import pytest
import torch
from foreign import FAMILIES, SETTINGS, compressed, pictures, random_model
from tolerances import assert_rounds_alike, exact
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from ppe_npu import align
from ppe_npu.compat import adapt_unwrap_model


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, number):
        return number


def collate(numbers):
    inputs = pictures()
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -4:] = inputs["input_ids"][:, -4:]
    return inputs | {"labels": labels}


def trainer(model, folder, **kwargs):
    settings = {name: kwargs.pop(name) for name in ("label_smoothing_factor",) if name in kwargs}
    args = TrainingArguments(
        str(folder), max_steps=1, per_device_train_batch_size=2, per_device_eval_batch_size=2, report_to=[], seed=0,
        use_cpu=True, remove_unused_columns=False, save_strategy="no", dataloader_pin_memory=False, disable_tqdm=True,
        logging_steps=1, **settings,
    )  # fmt: skip
    made = Trainer(model, args, data_collator=collate, train_dataset=Pairs(), eval_dataset=Pairs(), **kwargs)
    adapt_unwrap_model(made.accelerator)  # as docs/compatibility.md says, for accelerate 1.1.1
    return made


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow) if name == "qwen3_vl" else name for name in FAMILIES]
)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.ci
def test_label_smoothing_metrics_and_predictions(tmp_path, setting, family):
    model, seen = compressed(random_model(family=family), setting), {}
    batch = collate([0, 1])
    labels = batch.pop("labels")
    with torch.no_grad():
        output = model(**batch)
        brought = align(model, labels)
        # By hand: each output is scored against the label after it.
        smooth = LabelSmoother(0.1)(output, brought, shift_labels=True)
        plain = model(**batch, labels=labels).loss

    def metrics(prediction):
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        seen["shapes"] = logits.shape[:2], prediction.label_ids.shape
        logits, found = torch.tensor(logits)[:, :-1], torch.tensor(prediction.label_ids)[:, 1:]
        seen["loss"] = torch.nn.functional.cross_entropy(logits.flatten(0, 1), found.flatten())
        return {}

    evaluated = trainer(model, tmp_path, compute_metrics=metrics)
    evaluated.evaluate()
    assert seen["shapes"][0] == seen["shapes"][1]
    bound = 64 * torch.finfo(torch.float32).eps * plain.abs()  # sums of 128 terms in the head, in another order
    assert (seen["loss"] - plain).abs() <= bound
    smoothed = trainer(model, tmp_path, label_smoothing_factor=0.1)
    model.config.use_cache = False
    with torch.no_grad():
        whole = model(**batch)
    assert whole.logits.shape[:2] == labels.shape
    assert (LabelSmoother(0.1)(whole, labels, shift_labels=True) - smooth).abs() <= bound
    assert smoothed.train().training_loss > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_batch_of_text_whose_only_picture_is_hidden_learns_and_runs_the_tower(family, setting):
    """LLaMA-Factory appends a hidden picture to texts, so that all processes run the same modules."""
    plain, inputs = random_model(family=family), pictures("right")
    inputs["attention_mask"][:, 4:] = 0
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -100)
    model = compressed(plain, setting).train()
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    bare = {name: value for name, value in inputs.items() if name not in ("pixel_values", "image_grid_thw")}
    with torch.no_grad():
        true = exact(plain, lambda: plain(**bare, labels=labels).loss)
        assert_rounds_alike(loss.detach(), plain(**bare, labels=labels).loss, true)
    gradients = [parameter.grad for parameter in model.model.visual.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
