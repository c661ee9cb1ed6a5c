"""The released PPE code, as it was recorded running (transformers 4.50.3, torch 2.13.0, fp32, no noise, stable sorts).

tests/data/released.safetensors holds, for three prompts, the ids and grids, each frame's features, cluster labels and
merged features, and the position rows given to the rotary embedding. With PPE_GOLDEN naming a folder of whole
recordings (a model, its inputs and its outputs), logits and generated ids are compared, too.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tolerances import assert_near, assert_rounds_alike, exact

from ppe_npu import CompressionConfig, compress
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.positions import contiguous_channels
from ppe_npu.engine.spans import VisionTokens
from ppe_npu.methods.view import View

DATA = Path(__file__).parent / "data" / "released.safetensors"
VISION = VisionTokens(image_token_id=993, video_token_id=992, merge_size=2, tokens_per_second=2)
CHANNELS = contiguous_channels((16, 24, 24))
KINDS = ("image", "multi_image", "video")
RECORDED = [
    *(("image", name) for name in ("dense", "chatunivi", "ppe", "ppe_k1")),
    *(("multi_image", name) for name in ("chatunivi", "ppe")),
    *(("video", name) for name in ("dense", "chatunivi", "ppe", "ppe_multistage")),
]


@pytest.fixture(scope="module")
def recorded():
    with safe_open(DATA, "pt") as file:
        return load_file(DATA), {name: json.loads(value) for name, value in file.metadata().items()}


def frames(tensors, kind, name):
    return [tensors[f"{kind}.{i}.{name}"] for i in range(100) if f"{kind}.{i}.{name}" in tensors]


def compressed(tensors, config, kind):
    """The pass of the recorded prompt through the engine, and its embeddings, which are zero at text."""
    compression = Compression(config, VISION, CHANNELS, decoder_layers=1)
    ids = tensors[f"{kind}.input_ids"]
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    plan = compression.plan(ids, None, *(tensors.get(f"{kind}.{name}") for name in names))
    features = torch.cat(frames(tensors, kind, "x"))
    text = torch.zeros(len(plan.stages[0].text), features.shape[1])
    return compression.prefill(plan, text, features)


@pytest.mark.parametrize(("kind", "name"), RECORDED)
def test_position_rows(recorded, kind, name):
    tensors, configs = recorded
    run, _ = compressed(tensors, CompressionConfig.from_released(configs[name]), kind)
    assert torch.equal(run.rows[0][:, 0], tensors[f"{kind}.rows.{name}"].long())


@pytest.mark.parametrize("kind", KINDS)
def test_groups_and_means(recorded, kind):
    tensors, configs = recorded
    config = CompressionConfig.from_released(configs["ppe"])
    recordings = [frames(tensors, kind, name) for name in ("x", "labels", "merged")]
    # Both sides are means, of at most all tokens of a frame.
    off = {"roundings": 2 * max(map(len, recordings[0])), "size": max(x.abs().max() for x in recordings[0])}
    for x, labels, merged in zip(*recordings):
        (method,) = config.methods
        grouping = method.group(View.of(tokens=x[None], num_kept=method.kept(len(x))))
        assert torch.equal(grouping.labels[0], labels.long())
        assert_near(grouping.apply(x[None])[0], merged, **off)
    _, (embeds,) = compressed(tensors, config, kind)
    visual = embeds[embeds.abs().sum(-1) > 0]
    assert_near(visual, torch.cat(recordings[2]), **off)


def whole_recordings():
    folder = os.environ.get("PPE_GOLDEN")
    if not folder:
        return [pytest.param(None, marks=pytest.mark.skip("PPE_GOLDEN names no folder of whole recordings"))]
    return sorted(Path(folder).glob("*__*.safetensors"))


@pytest.fixture(scope="module")
def recorded_model():
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        Path(os.environ["PPE_GOLDEN"]) / "model", dtype=torch.float32
    )


@pytest.mark.parametrize("path", whole_recordings(), ids=lambda path: path and path.stem)
def test_logits_and_generated_ids(recorded_model, path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    expected = load_file(path)
    inputs = load_file(path.with_name(f"inputs_{metadata['kind']}.safetensors"))
    settings = json.loads(metadata["config"])
    config = CompressionConfig.from_released(settings)
    model = compress(recorded_model.eval(), config)
    with torch.no_grad():
        logits, true = model(**inputs).logits[0], exact(model, lambda: model(**inputs).logits[0])
    reference = expected["prefill.logits"]
    assert logits.shape == reference.shape
    text, vision = model.config.text_config.num_hidden_layers, model.config.vision_config.depth
    assert_rounds_alike(reference, logits, true, layers=text + vision)
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    new = ids[0, inputs["input_ids"].shape[1] :]
    # Chat-UniVi's recorded steps have positions inside the prompt, which is a fault: compare only the first token.
    count = 1 if config.positions == "renumber" else len(new)
    assert torch.equal(new[:count], expected["generated_ids"][:count])
