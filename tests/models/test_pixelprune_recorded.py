"""PixelPrune end to end on tiny models against recorded runs of the released code, in tests/data/pixelprune."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from tolerances import assert_recorded

from ppe_npu import CompressionConfig, compress

FOLDER = Path(__file__).parent.parent / "data" / "pixelprune"
CLASSES = {"qwen3_vl": "Qwen3VL", "qwen3_5": "Qwen3_5"}


def tensors_of(name):
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        said = {key: json.loads(text) for key, text in (file.metadata() or {}).items() if text.startswith("{")}
        return {key: file.get_tensor(key) for key in file.keys()}, said  # noqa: SIM118 it is no dict


INPUTS, _ = tensors_of("inputs")


@pytest.fixture(scope="module", params=CLASSES)
def recorded(request):
    """A model, its recorded tensors, and their metadata."""
    tensors, said = tensors_of(request.param)
    name = CLASSES[request.param]
    config = getattr(transformers, f"{name}Config").from_dict(said["config"])
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    model.load_state_dict({k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")})
    return model, tensors, said


def inputs_of(case, said):
    pictures = [INPUTS[f"pixels.{name}"].float() for name in said["cases"][case]["images"]]
    rows = [((picture - 127.5) / 127.5)[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1) for picture in pictures]
    ids = INPUTS[f"input_ids.{case}"].long()
    grids = torch.tensor(said["cases"][case]["grid_thw"])
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.cat(rows),
        "image_grid_thw": grids,
    }  # fmt: skip


def config_of(setting):
    if setting is None:
        return CompressionConfig.preset("dense")
    return CompressionConfig.from_dict(
        {"steps": [{"method": "pixelprune", **setting}], "positions": "keep_one", "k": 1}
    )


@pytest.mark.half
@pytest.mark.parametrize("setting", ["dense", "tau0", "tau.02", "tau.02_sliding", "tau0_after_vit", "tau.02_vit3"])
@pytest.mark.parametrize("case", ["one", "two", "first"])
def test_what_the_released_code_gave(recorded, case, setting):
    model, tensors, said = recorded
    inputs = inputs_of(case, said)
    compress(model, config_of(said["settings"][setting]))
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    chosen = model.compression.last.chosen
    if setting != "dense":
        sizes = [h * w // 4 for _, h, w in inputs["image_grid_thw"].tolist()]
        kept = chosen.kept.split(sizes)
        assert [int(own.sum()) for own in kept] == tensors[f"keep_counts.{case}.{setting}"].tolist()
        found = torch.cat([own.nonzero()[:, 0] for own in kept])
        assert found.tolist() == tensors[f"keep.{case}.{setting}"].tolist()
    # Decay in linear layers lets roundings grow by an amount that depends on the prompt, so errors are measured.
    assert_recorded(logits, tensors[f"logits.{case}.{setting}"], model, lambda: model(**inputs).logits[0])
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert tokens[0, inputs["input_ids"].shape[1] :].tolist() == tensors[f"tokens.{case}.{setting}"].tolist()
