"""Methods inside the vision tower: new ones (tower_toys.py) against the definition, and all for each sample alone."""

import math
from dataclasses import dataclass, replace

import naive_ipcv
import naive_tome
import pytest
import test_ipcv_tiles as tiles
import torch
from families import supported, together
from naive_ipcv import PROMPTS, TOWERS, clip, config, features, given
from prompts import check_alone, kept_logits, logits
from support import QUICK_FAMILIES, family_of, model_with, random_model
from tolerances import assert_rounds_alike, exact
from tower_toys import Joins, Rebuilds

from ppe_npu import CompressionConfig, compress
from ppe_npu.errors import InputError
from ppe_npu.methods import IPCV
from ppe_npu.methods.base import Method, published
from ppe_npu.methods.listing import default
from ppe_npu.models.fused import fuse

pytestmark = pytest.mark.half

METHODS = {
    "rebuilds of frame": Rebuilds(0.4, pool="frame"),
    "rebuilds of image": Rebuilds(0.4, pool="image", stabilized_blocks=2),
    "rebuilds of prompt": Rebuilds(0.4),
    "joins of frame": Joins(0.4),
    "joins of image": Joins(0.4, scope="span"),
}
# The package's own, in blocks that these towers have.
OWN = {name: default(name) for name in published() if default(name).place == "tower"}
OWN = {
    name: replace(method, **({"merge_blocks": (1, -3)} if "merge_blocks" in vars(method) else {}))
    for name, method in OWN.items()
}

family, model = family_of(QUICK_FAMILIES), model_with(TOWERS)


def pools_of(method):
    """The patches of each pool of the four prompts, whose pictures are first in the tower, and whose clip is last."""
    first, third, frames = [140, 24], [4, 120], [48] * 3
    if method.pool == "prompt":
        return [sum(first), sum(third), sum(frames)]
    return [*first, *third, *(frames if method.pool == "frame" else [sum(frames)])]


def norm(_before, row):
    return row.norm()


def nearest_of_largest(sizes, keys, left):
    """{cell that stays: the cells of its group, itself first}."""
    largest = sorted(sizes, key=lambda cell: -float(keys[cell].norm()))[:left]
    groups = {cell: [cell] for cell in sorted(largest)}
    for cell in sizes:
        if cell not in groups:
            alike = {own: float(torch.cosine_similarity(keys[cell], keys[own], dim=0)) for own in groups}
            groups[max(alike, key=alike.get)].append(cell)
    return groups


def by_definition(visual, inputs, method):
    """The output of a plain tower that is given all pictures and then the clip."""
    pixels = torch.cat([inputs["pixel_values"], inputs["pixel_values_videos"]])
    grid = torch.cat([inputs["image_grid_thw"], inputs["video_grid_thw"]])
    pools = pools_of(method)
    if isinstance(method, Rebuilds):
        return features(naive_ipcv.naive(visual, pixels, grid, method, pools, norm))
    cells, first = [size // 4 for size in pools], lambda values, cells, _sizes: values[cells[0]]
    return features(naive_tome.naive(visual, pixels, grid, method, cells, nearest_of_largest, first)[0])


@pytest.mark.parametrize("name", METHODS)
def test_a_batchs_features_are_those_of_the_definition(model, family, name):
    """Pictures and a video, in one batch of four prompts."""
    method = METHODS[name]
    inputs, seen = given(family, *PROMPTS, clip(family)), []
    with torch.no_grad():
        oracle = lambda: by_definition(model.model.visual, inputs, method)  # noqa: E731
        plain, true = oracle(), exact(model, oracle)
    compress(model, config(method))
    hook = model.model.visual.register_forward_hook(lambda _m, _a, output: seen.append(features(output)))
    out = logits(model, inputs)
    hook.remove()
    assert torch.isfinite(out).all()
    assert_rounds_alike(seen[0], plain, true, layers=8)
    report, before = model.compression.report, sum(pools_of(method)) // 4
    joined = [math.ceil(size // 4 * 0.4) for size in pools_of(method)]
    assert report.tokens_after == (before if isinstance(method, Rebuilds) else sum(joined))
    assert report.in_tower.flops < report.in_tower.dense_flops


@dataclass(frozen=True)
class Undeclared(Method):
    """Not registered, and of no kind."""

    name = "undeclared"
    places = ("tower",)

    def kept(self, tokens):
        return tokens


def test_what_cannot_be_is_refused_before_a_prompt_comes():
    model = random_model(tower=TOWERS["qwen2_5_vl"])
    with pytest.raises(InputError, match=r"Undeclared.places=.* nothing says how it works inside the vision tower"):
        compress(model, config(Undeclared()))
    with pytest.raises(InputError, match="toy_tower_rebuilds prune_block=0: there is no block before it; give 1"):
        compress(model, config(Rebuilds(prune_block=0)))
    with pytest.raises(InputError, match=r"toy_tower_joins merge_blocks=\[8\]: the vision tower has 8 blocks"):
        compress(model, config(Joins(merge_blocks=(8,))))


@pytest.mark.parametrize("name", [*METHODS, *OWN])
def test_a_prompts_result_depends_on_the_prompt_alone(model, family, name):
    method, prompts = {**METHODS, **OWN}[name], [*PROMPTS, clip(family)]
    settings = CompressionConfig(steps=[method], positions="ppe", k=2)
    fused = compress(fuse(random_model(family=family, tower=TOWERS[family])), settings)
    check_alone(compress(model, settings), fused, prompts, kept_logits, pad_to=90)


@dataclass(frozen=True)
class OfFrames(IPCV):
    """IPCV whose patches compete only within a frame."""

    pool = "frame"


@supported
def test_a_tile_is_a_frame():
    model, method = tiles.tiny().model(), OfFrames(prune_block=2)
    inputs = together([tiles.sample(model), tiles.sample(model, (1, "picture", 2), seed=3)])
    pixels, seen = inputs["pixel_values"], []
    with torch.no_grad():
        oracle = lambda: tiles.naive(model, pixels, method, range(len(pixels)))  # noqa: E731
        plain, true = oracle(), exact(model, oracle)
        compress(model, config(method))
        model.model.vision_tower.register_forward_hook(lambda _m, _a, out: seen.append(out.last_hidden_state))
        logits(model, inputs)
        tiles.tower(model, inputs)
    for found in seen:
        assert_rounds_alike(found, plain, true, layers=tiles.DEPTH)
    assert len(seen) == 2
