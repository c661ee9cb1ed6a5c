"""A random LoRA adapter of a checkpoint's language model, and the checkpoint with it merged in, which is the oracle.

main(CHECKPOINT, ADAPTER, MERGED), in a process of its own (scripts_of_serving.py).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RANK, ALPHA = 8, 16
PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")


def main(checkpoint: str, adapter: str, merged: str) -> None:
    shutil.copytree(checkpoint, merged, dirs_exist_ok=True)
    Path(adapter).mkdir(parents=True, exist_ok=True)
    weights, own = load_file(f"{checkpoint}/model.safetensors"), {}
    generator = torch.Generator().manual_seed(0)
    for name in weights:
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        if ".self_attn" not in layer or part not in PARTS or not name.endswith(".weight"):
            continue
        layer = "model.language_model.layers." + layer.partition("layers.")[2]  # peft's name for it
        rows, columns = weights[name].shape
        down = torch.randn(RANK, columns, generator=generator) / columns**0.5
        up = 0.2 * torch.randn(rows, RANK, generator=generator)
        own[f"base_model.model.{layer}.{part}.lora_A.weight"] = down
        own[f"base_model.model.{layer}.{part}.lora_B.weight"] = up
        weights[name] = weights[name] + ALPHA / RANK * up @ down
    assert own, f"{checkpoint} has none of {PARTS}"
    save_file(weights, f"{merged}/model.safetensors", metadata={"format": "pt"})
    save_file(own, f"{adapter}/adapter_model.safetensors", metadata={"format": "pt"})
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0}
    said |= {"target_modules": list(PARTS), "bias": "none", "base_model_name_or_path": checkpoint}
    Path(adapter, "adapter_config.json").write_text(json.dumps(said))
