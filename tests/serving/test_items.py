"""Items that are merged one by one equal those of a whole prompt: features, rows, and where the text goes on."""

import numpy as np
import pytest
import torch
from support import IMAGE_ID, VIDEO_ID, Prompt, batch
from tolerances import assert_equal

from ppe_npu import CompressionConfig
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.items import check_items, item_runs, merge_items
from ppe_npu.engine.positions import contiguous_channels, interleaved_channels
from ppe_npu.engine.spans import IMAGE, VIDEO, VisionTokens
from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method, register
from ppe_npu.methods.grouping import Grouping
from ppe_npu.serving.rows import placed_rows, prompt_line

pytestmark = pytest.mark.half

TOGETHER = VisionTokens(IMAGE_ID, VIDEO_ID, 2, 2, tower_blocks=2)
APART = VisionTokens(IMAGE_ID, VIDEO_ID, 2, None, frames_apart=True, tower_blocks=2)
CHANNELS = contiguous_channels([16, 24, 24])
WIDTH = 8
CONFIGS = {
    "ppe": {"preset": "ppe", "ratio": 0.45},
    "ppe_k3": {"preset": "ppe", "ratio": 0.3, "k": 3},
    "keep_one": {"preset": "keep_one"},
    "chatunivi": {"preset": "chatunivi"},
    "dense": {"preset": "dense"},
    "dense_rows": {"steps": [], "positions": "ppe", "k": 4},
    "random": {"preset": "random", "ratio": 0.3, "positions": "ppe"},
    "uniform": {"preset": "uniform", "positions": "ppe"},
    "avg_pool": {"preset": "avg_pool", "positions": "ppe"},
    "tome": {"preset": "tome", "metric": "tokens", "positions": "ppe"},
    "divprune": {"preset": "divprune", "ratio": 0.25, "positions": "ppe", "k": 2},
}

# Frames that compete or are gathered, which is possible where they follow each other.
JOINT = {name: {"preset": name, "positions": "ppe"} for name in ("events", "evs", "vidcom2", "globalcom2", "apet")}


def config_of(values: dict) -> CompressionConfig:
    values = dict(values)
    preset = values.pop("preset", None)
    return CompressionConfig.from_dict(values) if preset is None else CompressionConfig.preset(preset, **values)


def compression(name: str, vision: VisionTokens = TOGETHER) -> Compression:
    return Compression(config_of({**CONFIGS, **JOINT}[name]), vision, CHANNELS, decoder_layers=4)


def whole(made: Compression, inputs: dict, features: torch.Tensor, layer: torch.Tensor):
    """The compressed prompt as compress(model) has it: embeddings, rows, what enters a layer, and its arrangement."""
    names = ("input_ids", "attention_mask", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    plan = made.plan(*(inputs.get(name) for name in names))
    run, (embeds,) = made.prefill(plan, torch.zeros(len(plan.before(0).text), WIDTH), features, deepstack=(layer,))
    following = int(run.state.following[0][0])
    return embeds, run.rows[0][:, 0], run.deepstack()[0][0], plan, following


@pytest.mark.parametrize(
    ("name", "vision"),
    [*((name, vision) for name in CONFIGS for vision in (TOGETHER, APART)), *((name, TOGETHER) for name in JOINT)],
)
def test_items_of_a_prompt_are_those_of_the_whole_prompt(name, vision):
    apart = vision.frames_apart
    film = "frames" if apart else VIDEO
    prompt = Prompt([3, (IMAGE, (1, 4, 5)), 2, (film, (3, 4, 3)), (IMAGE, (1, 2, 7)), 1, (film, (2, 2, 2)), 4])
    inputs = batch(prompt, seconds=1.75)
    generator = torch.Generator().manual_seed(7)
    features, layer = torch.randn(2, 20 + 14 + 36 + 8, WIDTH, generator=generator)
    made = compression(name, vision)
    embeds, rows, deep, plan, following = whole(made, inputs, features, layer)
    seconds = inputs["second_per_grid_ts"].tolist()
    images = merge_items(made, IMAGE, features[:34], [[1, 8, 10], [1, 4, 14]], None, (layer[:34],))
    videos = merge_items(made, VIDEO, features[34:], [[3, 8, 6], [2, 4, 4]], seconds, (layer[34:],))
    order = [images[0], videos[0], images[1], videos[1]]
    grids = [(IMAGE, [1, 8, 10]), (VIDEO, [3, 8, 6]), (IMAGE, [1, 4, 14]), (VIDEO, [2, 4, 4])]
    visual = np.flatnonzero(~plan.last.text[0])
    found, at, places = [], 0, []
    for item, (kind, grid) in zip(order, grids):
        runs = item_runs(made, kind, grid, seconds[0] if kind == VIDEO else 1.0)
        kept = sum(run.kept for run in runs)
        assert kept == len(item.features) == item.rows.shape[1] == made.config.tokens_kept(grid)
        places.append((visual[at : at + kept], runs))
        found.append(item)
        at += kept
    assert at == len(visual)
    assert_equal(torch.cat([item.features for item in found]), embeds[visual], "features")
    assert_equal(torch.cat([item.deepstack[0] for item in found]), deep[visual], "what enters a layer")
    if made.config.positions == "renumber":
        assert rows.tolist() == [list(range(len(embeds)))] * 3
        return
    line, after = prompt_line(len(embeds), places)
    local = torch.zeros(3 * made.config.k, len(embeds), dtype=torch.long)
    local[:, visual] = torch.cat([item.rows for item in found], dim=1)
    expected = rows.repeat_interleave(len(local) // len(rows), 0)
    assert_equal(placed_rows(torch.from_numpy(line), local), expected, "rows")
    assert after == following


def test_an_item_is_the_same_alone_and_beside_others():
    made, features = compression("ppe"), torch.randn(30 + 6, WIDTH, generator=torch.Generator().manual_seed(1))
    both = merge_items(made, IMAGE, features, [[1, 10, 12], [1, 4, 6]])
    alone = [
        merge_items(made, IMAGE, part, [grid])[0]
        for part, grid in zip(features.split([30, 6]), ([1, 10, 12], [1, 4, 6]))
    ]
    for one, other in zip(both, alone):
        assert_equal(one.features, other.features)
        assert_equal(one.rows, other.rows)


def test_text_goes_on_after_the_largest_of_three():
    assert [run.extent for run in item_runs(compression("dense"), IMAGE, [1, 8, 32])] == [16]
    assert [run.extent for run in item_runs(compression("dense"), VIDEO, [9, 8, 4], 0.5)] == [9]
    assert [run.extent for run in item_runs(compression("dense"), VIDEO, [9, 8, 4], 2.0)] == [33]
    assert [run.extent for run in item_runs(compression("ppe", APART), VIDEO, [3, 8, 4])] == [4, 4, 4]


@register("late_for_items")
class Late(Method):
    counts = "late"
    ratio = 0.5

    def group(self, view) -> Grouping:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("settings", "vision", "said"),
    [
        ({"layers": [2]}, TOGETHER, "layers=[2]"),
        ({"steps": [{"method": "dpc_knn", "layer": 1}]}, TOGETHER, "layers=[1]"),
        ({"proportional_attention": True}, TOGETHER, "proportional_attention: a server's attention"),
        ({"steps": [Late()]}, TOGETHER, "late_for_items: how many tokens it keeps"),
        ({"steps": [{"method": "cdpruner"}]}, TOGETHER, "cdpruner looks at text"),
        ({"steps": [{"method": "visionzip"}]}, TOGETHER, "visionzip looks at tower_keys, tower_saliency"),
        ({"steps": [{"method": "ipcv"}]}, TOGETHER, "ipcv: a step at the tower"),
        ({"steps": [{"method": "evs"}]}, APART, "evs: its frames compete"),
    ],
)
def test_what_cannot_be_merged_by_itself_is_refused_by_name(settings, vision, said):
    with pytest.raises(InputError) as error:
        check_items(Compression(CompressionConfig(**settings), vision, interleaved_channels([24, 20, 20]), 4))
    assert said in str(error.value)


def test_methods_of_tokens_alone_are_taken():
    for name in (*CONFIGS, *JOINT):
        check_items(compression(name))


def test_features_that_are_not_those_of_the_grids_are_refused():
    with pytest.raises(InputError, match="describe 20 tokens, but there are 19 features"):
        merge_items(compression("ppe"), IMAGE, torch.zeros(19, WIDTH), [[1, 8, 10]])
