"""Images of tiles in a decoder that counts in one dimension: items equal those of the whole prompt."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import IMAGE_ID
from tolerances import assert_equal

from ppe_npu import CompressionConfig
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.items import check_items, item_runs, merge_items
from ppe_npu.engine.spans import IMAGE, VIDEO, Part, Parts, VisionTokens
from ppe_npu.errors import InputError
from ppe_npu.serving.rows import placed_rows, prompt_line
from ppe_npu.serving.shapes import Grids, Tiles, batches, fields_of, shapes_in, shapes_of

PLAIN = VisionTokens(IMAGE_ID, IMAGE_ID, 1, None, frames_apart=True)
TILES = Tiles((2, 3))
CONFIGS = {
    "ppe": {"steps": [{"method": "dpc_knn", "ratio": 0.45}], "k": 4},
    "keep_one": {"steps": [{"method": "dpc_knn", "ratio": 0.3}], "positions": "keep_one"},
    "by places": {"steps": [{"method": "uniform", "ratio": 0.5}], "k": 2},
    "dense": {"steps": [], "k": 4},
}


def compression(name: str) -> Compression:
    return Compression(CompressionConfig.from_dict(CONFIGS[name]), PLAIN, (0,) * 16, decoder_layers=4)


def test_what_fields_say():
    (two, one) = TILES.of(IMAGE, torch.tensor([2, 1]))
    assert (list(two), list(one)) == ([Part(IMAGE, 0, (2, 2, 3))], [Part(IMAGE, 0, (1, 2, 3))])
    (film,) = TILES.of(VIDEO, torch.tensor([3]))
    assert list(film) == [Part(VIDEO, 0, (1, 2, 3))] * 3
    assert Grids().of(IMAGE, torch.tensor([[1, 4, 6]])) == [[1, 4, 6]]
    assert shapes_in(TILES, IMAGE, {"image_num_patches": torch.tensor([2])}) == [two]
    assert shapes_in(Grids(), VIDEO, {"image_grid_thw": torch.tensor([[1, 4, 6]])}) is None


def test_who_says_what():
    vision = SimpleNamespace(image_size=[16, 16], patch_size=[4, 4])
    config = SimpleNamespace(model_type="internvl", vision_config=vision, downsample_ratio=0.5)
    assert shapes_of(config, compression("ppe")).side == (2, 2)
    axes = Compression(CompressionConfig.preset("ppe", k=4), PLAIN, (0, 1, 2) * 8, decoder_layers=4)
    assert isinstance(shapes_of(config, axes), Grids)


@pytest.mark.parametrize("name", CONFIGS)
def test_items_of_a_prompt_are_those_of_the_whole_prompt(name):
    made = compression(name)
    check_items(made)
    first, second, film = *TILES.of(IMAGE, [2, 1]), *TILES.of(VIDEO, [2])
    ids = [1, 2, *[IMAGE_ID] * 12, 3, *[IMAGE_ID] * 6, 4, *[IMAGE_ID] * 6, 5, 6, *[IMAGE_ID] * 6, 7]
    parts = Parts([*first, Part(IMAGE, 1, (1, 2, 3)), *film])
    plan = made.plan(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long), parts, None, None)
    features = torch.randn(30, 8, generator=torch.Generator().manual_seed(3))
    run, (embeds,) = made.prefill(plan, torch.zeros(len(plan.before(0).text), 8), features)
    rows, following = run.rows[0][:, 0], int(run.state.following[0][0])

    images = merge_items(made, IMAGE, features[:18], [first, second])
    (clip,) = merge_items(made, VIDEO, features[18:], [film])
    order = [*zip(images, (first, second), (IMAGE, IMAGE)), (clip, film, VIDEO)]
    visual, at, places, items = np.flatnonzero(~plan.last.text[0]), 0, [], []
    for item, shape, kind in order:
        runs = item_runs(made, kind, shape)
        kept = sum(run.kept for run in runs)
        assert kept == len(item.features)
        assert [run.extent for run in runs] == [part.tokens for part in shape]
        places.append((visual[at : at + kept], runs))
        items.append(item)
        at += kept
    assert at == len(visual)
    assert_equal(torch.cat([item.features for item in items]), embeds[visual], "features")
    line, after = prompt_line(len(embeds), places)
    local = torch.zeros(made.config.k, len(embeds), dtype=torch.long)
    local[:, visual] = torch.cat([item.rows for item in items], dim=1)
    expected = rows.repeat_interleave(len(local) // len(rows), 0)
    assert_equal(placed_rows(torch.from_numpy(line), local), expected, "rows")
    assert after == following == len(ids)


def test_parts_that_are_not_the_features_are_refused():
    with pytest.raises(InputError, match="but there are 11 features"):
        merge_items(compression("ppe"), IMAGE, torch.zeros(11, 8), TILES.of(IMAGE, [2]))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], []),
        ([9], [[9]]),
        ([3, 3, 2], [[3, 3, 2]]),
        ([3, 3, 3], [[3, 3], [3]]),
        ([1, 9, 1, 7], [[1], [9], [1, 7]]),
        ([9, 9], [[9], [9]]),
    ],
)
def test_a_batch_has_at_most_so_many_tokens_or_one_item(tokens, expected):
    assert [tokens[items] for items in batches(tokens, 8)] == expected


def test_fields_of_some_grids():
    grids = torch.tensor([[1, 2, 4], [1, 4, 4], [2, 2, 2]])
    rows = [Grids().rows(grid, np.prod(grid) // 4) for grid in grids.tolist()]
    pixels, embeds, seconds = torch.arange(32)[:, None], torch.arange(8)[:, None], [1.0, 2.0, 3.0]
    fields = {"pixel_values_videos": pixels, "video_embeds": embeds, "video_grid_thw": grids, "timestamps": seconds}
    parts = [fields_of(items, fields, rows) for items in batches([2, 4, 2], 6)]
    for key in ("pixel_values_videos", "video_embeds", "video_grid_thw"):
        assert_equal(torch.cat([part[key] for part in parts]), fields[key], key)
    first, second = parts
    assert (len(first["pixel_values_videos"]), len(first["video_embeds"])) == (24, 6)
    assert (first["timestamps"], second["timestamps"]) == ([1.0, 2.0], [3.0])
    assert second["video_grid_thw"].tolist() == [[2, 2, 2]]


def test_fields_of_some_images_of_tiles():
    shapes = TILES.of(IMAGE, [2, 1, 3])
    rows = [TILES.rows(shape, sum(part.tokens for part in shape)) for shape in shapes]
    pixels, token = torch.arange(6)[:, None], torch.tensor(7)
    fields = {"pixel_values": pixels, "image_num_patches": torch.tensor([2, 1, 3]), "image_token_id": token}
    found = fields_of(slice(1, 3), fields, rows)
    assert_equal(found["pixel_values"], pixels[2:])
    assert found["image_num_patches"].tolist() == [1, 3]
    assert found["image_token_id"] is token
