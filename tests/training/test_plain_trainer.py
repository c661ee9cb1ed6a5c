"""transformers' own Trainer in this environment, with the one line that docs/compatibility.md gives."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from ppe_npu import CompressionConfig, compress
from ppe_npu.checkpoints.loading import load_model
from ppe_npu.compat import adapt_unwrap_model
from ppe_npu.data.inputs import build_inputs


@pytest.mark.parametrize(
    "preset", [None, {"name": "dense"}, {"name": "ppe", "k": 4}], ids=["untouched", "dense", "ppe"]
)
def test_plain_trainer_trains_and_saves(preset, tiny_folder, tiny_processor, write_image, tmp_path):
    model = load_model(tiny_folder)
    if preset is not None:
        compress(model, CompressionConfig.preset(**preset))
    content = [{"type": "image", "image": write_image("a.png")}, {"type": "text", "text": "row red"}]
    sample = build_inputs(tiny_processor, [[{"role": "user", "content": content}]])
    sample = {**sample, "labels": sample["input_ids"].clone()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, save_steps=1, per_device_train_batch_size=1, logging_steps=1,
        report_to=[], use_cpu=True, remove_unused_columns=False, learning_rate=1e-3, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=args, train_dataset=[sample] * 2, data_collator=lambda batch: batch[0])
    adapt_unwrap_model(trainer.accelerator)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert torch.tensor(losses).isfinite().all()
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (tmp_path / "checkpoint-2" / "model.safetensors").exists()
