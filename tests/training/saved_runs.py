"""Small folders as training leaves them, made without training, and checks of what is exported from them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tolerances import assert_rounds_alike, exact

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.checkpoints.loading import load_model
from ppe_npu.demo import tiny
from ppe_npu.files import write_json
from ppe_npu.training.adapters import Adapter, add_adapter, save_adapter
from ppe_npu.training.checkpoint import BASE, COMPRESSION, WHOLE, base_record, read_base
from ppe_npu.training.parts import PARTS
from ppe_npu.training.whole import whole_record

PPE = CompressionConfig.preset("ppe", k=4)


@torch.no_grad()
def logits(model):
    """Logits of a text, because plain models of all transformers versions number its positions alike."""
    ids = torch.arange(len(tiny.SPECIAL_TOKENS), len(tiny.VOCABULARY))[None]
    return model(input_ids=ids).logits


def save_run(folder: Path, base: str, kind: str | None, processor) -> torch.nn.Module:
    """Writes what `train` leaves in final/: an adapter of this kind, or all weights (None); returns the dense model."""
    model = load_model(base)
    record = base_record(model, base)
    compress(model, PPE)
    torch.manual_seed(3)
    if kind is not None:
        model = add_adapter(model, Adapter(kind, rank=2, parts=PARTS))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    restore(model)
    folder.mkdir(parents=True)
    (model.save_pretrained if kind is None else lambda path: save_adapter(model, path))(folder)
    processor.save_pretrained(folder)
    write_json(folder / COMPRESSION, PPE.to_dict())
    write_json(folder / BASE, record)
    return model


@pytest.fixture(name="run", scope="module")
def lora_run(tmp_path_factory, tiny_folder, tiny_processor):
    """(folder, model) of a LoRA run of the tiny model; tests must not change them."""
    folder = tmp_path_factory.mktemp("run") / "final"
    return folder, save_run(folder, tiny_folder, "lora", tiny_processor)


@pytest.fixture(name="copy")
def copy_of_lora_run(run, tmp_path):
    """A copy of the LoRA run's folder that a test may change."""
    return Path(shutil.copytree(run[0], tmp_path / "final"))


def as_checkpoint(folder: Path, step: int = 2) -> Path:
    """Turns the folder into a checkpoint as the Trainer leaves it during a run; returns its new path."""
    folder = folder.rename(folder.with_name(f"checkpoint-{step}"))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (folder / name).write_bytes(b"state")
    write_json(folder / "trainer_state.json", {"global_step": step})
    write_json(folder / WHOLE, {"step": step})
    return folder


def listed(folder: Path, step: int = 2) -> Path:
    """as_checkpoint() with a list of the files, as the Trainer writes it today."""
    folder = as_checkpoint(folder, step)
    write_json(folder / WHOLE, whole_record(folder, step))
    return folder


def save_shares(folder: Path, model: torch.nn.Module, processes: int = 2) -> None:
    """Writes a ZeRO-2 checkpoint's shares of the weights, as DeepSpeed's processes leave them."""
    parameters = dict(model.named_parameters())
    flat = torch.cat([parameter.detach().flatten() for parameter in parameters.values()])
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % (2 * processes)))
    shares = folder / "global_step2"
    shares.mkdir()
    for rank, share in enumerate(flat.chunk(processes)):
        optimizer = {"zero_stage": 2, "partition_count": processes, "single_partition_of_fp32_groups": [share.clone()]}
        torch.save({"optimizer_state_dict": optimizer}, shares / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    states = {"module": {}, "buffer_names": [], "param_shapes": [shapes], "shared_params": {}, "ds_version": "0.19.8"}
    torch.save(states, shares / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text("global_step2")


def check_logits(plain, model) -> None:
    """Both models give the same logits up to rounding, including the rounding of merged weights."""
    assert_rounds_alike(logits(plain.float()), logits(model), exact(model, lambda: logits(model)))


def check_plain(folder: Path, model) -> None:
    """Plain transformers finds every weight and no other and answers like `model`; no training file is left."""
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    plain, found = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    check_logits(plain, model)
    assert AutoProcessor.from_pretrained(folder).chat_template == tiny.CHAT_TEMPLATE
    assert CompressionConfig.from_file(folder / COMPRESSION) == PPE
    assert read_base(folder)["class"] == "Qwen2_5_VLForConditionalGeneration"
    names = {file.name for file in folder.iterdir()}
    assert not {name for name in names if name.startswith(("adapter", "optimizer", "trainer", "training", "whole"))}
