"""Pictures of a few tiles, models and configs for the tests of the place "pixels"."""

import torch
from prompts import logits
from support import FAMILIES, Prompt, batch, random_model

from ppe_npu import CompressionConfig
from ppe_npu.models.fused import fuse

TOWERS = {  # windows of 2 x 2 tokens, in blocks with and without them
    "qwen2_5_vl": {"depth": 3, "fullatt_block_indexes": [1], "window_size": 16},
}
MODELS = {family: random_model(family=family, tower=TOWERS.get(family)) for family in (*FAMILIES, "qwen3_5")}
FUSED = {family: fuse(random_model(family=family, tower=TOWERS.get(family))) for family in MODELS}
APART = ("qwen3_vl", "qwen3_5")
PRUNE = {"method": "pixelprune", "threshold": 0.05}
STEPS = {
    "alone": [PRUNE],
    "then clusters": [PRUNE, {"method": "dpc_knn", "ratio": 0.6}, {"method": "dpc_knn", "ratio": 0.5, "layer": 1}],
    "then a layer": [{**PRUNE, "predictor": "raster"}, {"method": "fastv", "ratio": 0.5, "layer": 2}],
    "leaving later": [{**PRUNE, "leave_after": 1}, {"method": "dpc_knn", "ratio": 0.6}],
    "then late": [PRUNE, {"method": "apet"}, {"method": "uniform", "ratio": 0.7, "layer": 2}],
}


def config_of(steps, positions="ppe", **settings):
    steps = STEPS[steps] if isinstance(steps, str) else steps
    k = {"k": 4} if positions == "ppe" else {}
    return CompressionConfig.from_dict({"steps": list(steps), "positions": positions, **k, **settings})


def painted(parts, seed, tiles=3):
    """A prompt whose pictures consist of a few tiles, each with a little noise that a threshold ignores."""
    prompt, generator = Prompt(parts, seed=seed), torch.Generator().manual_seed(seed)
    colours = torch.randn(tiles, 4, 3, 1, 16, generator=generator)
    for number, pixels in enumerate(prompt.pixels["image"]):
        tile = torch.randint(tiles, (len(pixels) // 4,), generator=generator)
        rows = colours[tile] + 0.01 * torch.rand(len(tile), 4, 3, 1, 16, generator=generator)
        prompt.pixels["image"][number] = rows.expand(-1, -1, -1, 2, -1).reshape(-1, 96).clone()
    return prompt


def prompts_of(family):
    video = "frames" if family in APART else "video"
    return [
        painted([2, ("image", (1, 4, 5)), 3, (video, (3, 3, 4)), 2], seed=1),
        Prompt([5], seed=2),
        painted([1, (video, (2, 2, 3)), 2, ("image", (1, 3, 3)), ("image", (1, 1, 1)), 4], seed=3),
    ]


def inputs_of(family, *prompts, **kwargs):
    inputs = batch(*prompts, **kwargs)
    return {name: value for name, value in inputs.items() if family == "qwen2_5_vl" or name != "second_per_grid_ts"}


def kept_rows(model, *prompts, side="left", pad_to=0):
    """Logits of each sample without padding, and how many tokens the pictures lost."""
    rows = logits(model, batch(*prompts, side=side, pad_to=pad_to))
    lengths = [len(p.ids) for p in prompts]
    for span in model.compression.report.spans:
        lengths[span.sample] -= span.before - span.after
    return [row[len(row) - n :] if side == "left" else row[:n] for row, n in zip(rows, lengths)]
