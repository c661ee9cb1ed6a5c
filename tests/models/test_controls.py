"""The controls in whole models: merged features and their positions, in all families, stages and modes of positions."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from prompts import CONTROLS, GREEDY, MIXED, logits
from support import FAMILIES, Prompt, batch, random_model
from test_no_sync import SYNCS, operators
from tolerances import assert_near

from ppe_npu import CompressionConfig, compress
from ppe_npu.backends import device
from ppe_npu.methods.view import View

pytestmark = pytest.mark.half

EVENTS = {"temporal_ratio": 0.5, "layers": [1], "before_llm": True}
SETTINGS = [
    {"positions": "renumber", "layers": [0, 2]},
    {"positions": "keep_one", **EVENTS},
    {"positions": "ppe", "k": 1},
    {"positions": "ppe", "k": 2, "ratio": [0.5, 0.5]},
    {"positions": "ppe", "k": 4, **EVENTS},
    {"positions": "ppe", "k": 4, "layers": [1, 2], "members": "spread"},
]


def spied(model, name):
    """A list that collects the arguments of every call of the rotary embedding ("rows") or of the first layer."""
    seen = []
    part = model.model.language_model.rotary_emb if name == "rows" else model.model.language_model.layers[0]
    part.register_forward_pre_hook(lambda _, args, kwargs: seen.append((*args, *kwargs.values())), with_kwargs=True)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", CONTROLS)
def test_every_mode_of_positions_generates(family, method):
    model, kind = random_model(family=family), "frames" if family == "qwen3_vl" else "video"
    prompts = [Prompt([2, ("image", (1, 4, 5)), 3, (kind, (2, 4, 4)), 2], seed=1), *MIXED[1:]]

    def generated(*prompts):
        inputs = batch(*prompts)
        if family != "qwen2_5_vl":
            inputs.pop("second_per_grid_ts", None)
        return model.generate(**inputs, max_new_tokens=3, **GREEDY)[:, -3:]

    for setting in SETTINGS:
        if family == "qwen3_vl" and "temporal_ratio" in setting:
            continue
        config = CompressionConfig(method=method, **{"k": 1, **setting})
        compress(model, config)
        together = generated(*prompts)
        grids = [grid for prompt in prompts for kind in ("image", "video") for grid in prompt.grids[kind]]
        assert model.compression.report.tokens_after == sum(config.tokens_kept(grids))
        assert torch.equal(together[:1], generated(prompts[0]))


def test_two_by_two_pooling_is_average_pooling(model):
    """Features are the means of 2 x 2 windows, each at the position of its top left token."""
    inputs = batch(Prompt([2, ("image", (1, 4, 6)), 3]))
    compress(model, CompressionConfig.preset("dense"))
    states, rows = spied(model, "states"), spied(model, "rows")
    logits(model, inputs)
    compress(model, CompressionConfig.preset("avg_pool", ratio=0.25))
    new_rows = spied(model, "rows")
    logits(model, inputs)
    dense, pooled = (call[0][0, 2:-3] for call in states)
    grid = dense.view(4, 6, -1).permute(2, 0, 1)
    assert_near(pooled, torch.nn.functional.avg_pool2d(grid, 2).flatten(1).T, roundings=4, size=grid.abs().max())
    before, after = (call[1][:, 0, 2:-3] for call in (rows[0], new_rows[0]))
    assert torch.equal(after, before.view(3, 4, 6)[:, ::2, ::2].flatten(1))


@pytest.mark.parametrize("method", CONTROLS)
def test_a_cascade_merges_representatives_by_their_places(model, method):
    """Position rows of the last stage, against the method applied by hand, frame by frame and stage by stage."""
    config = CompressionConfig.preset(method, layers=[1, 2], ratio=0.4, **({"seed": 5} if method == "random" else {}))
    compress(model, config)
    rows = spied(model, "rows")
    logits(model, batch(Prompt([2, ("video", (3, 4, 5)), 1]), Prompt([4, ("image", (1, 5, 5)), 1], seed=1)))
    for sample, (text, frames, height, width) in enumerate([(2, 3, 4, 5), (4, 1, 5, 5)]):
        expected = []
        for frame in range(frames):
            places = np.indices((frames, height, width))[:, frame].reshape(3, -1).T
            for _ in config.layers:
                (step,) = config.methods
                view = View.of(places=torch.from_numpy(places)[None], num_kept=step.kept(len(places)))
                places = places[step.group(view).representatives[0].numpy()]
            expected += places.tolist()
        last = rows[-1][1][:, sample, -1 - len(expected) : -1].T
        if frames > 1:  # a frame's time is its second (1) times tokens_per_second (2)
            expected = [[2 * t, h, w] for t, h, w in expected]
        assert last.tolist() == (np.array(expected) + text).tolist()


@pytest.mark.parametrize("method", CONTROLS)
def test_events_of_frames_that_follow_each_other(model, method):
    """Four frames make two events. By time alone, avg_pool's events are halves, and uniform's follow each other."""
    compress(model, CompressionConfig.preset(method, temporal_ratio=0.5, ratio=0.25))
    rows = spied(model, "rows")
    logits(model, batch(Prompt([1, ("video", (4, 4, 4)), 1])))
    times = (rows[0][1][0, 0, 1:-1] - 1) // 2
    assert len(times) == 8
    if method == "avg_pool":
        assert times.tolist() == [0] * 4 + [2] * 4
    assert times[:4].max() <= times[4:].min() or method == "random"


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.3"), reason="its masks are sized by numbers read from the device"
)
@pytest.mark.parametrize("method", CONTROLS)
def test_nothing_is_asked_or_uploaded_once_the_tower_has_run_not_even_for_events(model, method, monkeypatch):
    from ppe_npu.engine import rounds

    config = CompressionConfig.preset(method, temporal_ratio=0.5, layers=[1], before_llm=True)
    compress(model, config)
    inputs = batch(*MIXED)
    operators(model, inputs)  # lookups are made once
    names = operators(model, inputs)
    assert not set(names) & set(SYNCS), sorted(set(names) & set(SYNCS))
    assert "log" not in names  # no density is computed
    uploads, upload = [], rounds.upload
    monkeypatch.setattr(rounds, "upload", lambda array, device: uploads.append(1) or upload(array, device))
    monkeypatch.setattr(device, "asks_freely", lambda _: False)  # on a CPU, plans are not uploaded otherwise
    model.model.visual.register_forward_hook(lambda *_: uploads.clear())
    logits(model, inputs)
    assert not uploads


def test_seeds_choose_differently_and_one_seed_the_same(model):
    inputs = batch(Prompt([2, ("image", (1, 6, 6)), 3]))
    config = CompressionConfig.preset("random", ratio=0.25)
    results = [logits(compress(model, dataclasses.replace(config, seed=seed)), inputs) for seed in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert (results[0] - results[2]).abs().max() > 0.01 * results[0].abs().max()
