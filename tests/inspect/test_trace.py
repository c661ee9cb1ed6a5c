"""What a trace says was merged, compared with what the model was given: features and rotary rows."""

import itertools

import numpy as np
import pytest
import torch
from prompts import MIXED, PRESETS, logits
from support import Prompt, batch, random_model
from tolerances import assert_near

from ppe_npu import CompressionConfig, compress

TRACED = {name: config for name, config in PRESETS.items() if len(config.ratios) == 1}
CONTROLS = {
    "random events": CompressionConfig.preset("random", positions="ppe", k=2, temporal_ratio=0.5),
    "pooled cascade": CompressionConfig.preset("avg_pool", layers=[0, 2]),
}


def traced(model, config, inputs):
    """The trace of a prompt, and the rows that every stage was given."""
    compress(model, config)
    model.compression.keep_groups, rows = True, []
    hook = model.model.language_model.rotary_emb.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append((*args, *kwargs.values())[1]), with_kwargs=True
    )
    logits(model, inputs)
    hook.remove()
    return model.compression.trace, rows


@pytest.mark.parametrize("name", [*TRACED, *CONTROLS])
def test_every_stage_is_a_coarser_partition_whose_rows_are_the_models(model, name):
    config = {**TRACED, **CONTROLS}[name]
    trace, rows = traced(model, config, batch(*MIXED))
    visuals = trace.visuals()
    assert [visual.modality for visual in visuals] == ["image", "video", "image", "image"]
    first = 0 if config.merges_before_llm else 1
    for visual, span in zip(visuals, trace.plan.layout.spans):
        assert [groups.layer for groups in visual.stages] == [None] * config.merges_before_llm + list(config.layers)
        first_place = span.sample * trace.plan.layout.real.shape[1] + span.start
        positions = trace.plan.positions[:, first_place : first_place + span.tokens].numpy()
        for number, groups in enumerate(visual.stages):
            kept = config.span_tokens(span.grid[0], span.frame_tokens, -1 if groups.layer is None else groups.layer)
            assert groups.labels.shape == span.grid
            labels = groups.labels.reshape(-1)
            assert len(groups.representatives) == len(groups.held) == kept
            assert groups.sizes.min() > 0
            assert (labels[groups.representatives] == np.arange(kept)).all()
            if config.positions == "ppe":
                assert (labels[groups.held] == np.arange(kept)[:, None]).all()
            if config.positions != "renumber":
                k = groups.held.shape[1]
                given = rows[first + number].unflatten(0, (3, -1))[:, :, span.sample].numpy()  # [3, K, L]
                expected = positions[:, groups.held].transpose(0, 2, 1)[:, :k]
                windows = np.lib.stride_tricks.sliding_window_view(given, kept, axis=2)
                assert (windows == expected[:, :, None]).all((0, 1, 3)).any()
        for finer, coarser in itertools.pairwise(visual.stages):
            pairs = set(zip(finer.labels.flat, coarser.labels.flat))
            assert len(pairs) == len(finer.representatives)  # each went into one


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_merged_features_are_the_means_of_the_groups_that_are_told(family):
    model = random_model(family=family)
    kind = "frames" if family == "qwen3_vl" else "video"
    inputs = batch(Prompt([1, (kind, (2, 3, 5)), 1]), Prompt([3, ("image", (1, 5, 5)), 2], seed=1))
    if family == "qwen3_vl":
        inputs.pop("second_per_grid_ts")
    states = []
    model.model.language_model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: states.append((args or tuple(kwargs.values()))[0]), with_kwargs=True
    )
    trace, _ = traced(model, CompressionConfig.preset("dense"), inputs)
    dense = [states[-1][span.sample, span.start : span.start + span.tokens] for span in trace.plan.layout.spans]
    trace, _ = traced(model, CompressionConfig.preset("keep_one", ratio=0.3), inputs)
    video, image = trace.visuals()
    after = trace.plan.last
    merged = states[-1]
    for visual, features in ((video, torch.cat(dense[:-1])), (image, dense[-1])):
        own = [cell for cell in after.cells if cell.sample == visual.sample]
        given = torch.cat([merged[cell.sample, cell.start : cell.start + cell.tokens] for cell in own])
        labels = torch.from_numpy(visual.stages[0].labels.reshape(-1))
        means = torch.stack([features[labels == group].mean(0) for group in range(len(given))])
        assert_near(given, means, roundings=2 * len(features), size=features.abs().max())  # two means


def test_events_are_told_by_frame(model):
    config = CompressionConfig.preset("avg_pool", temporal_ratio=0.5)
    trace, _ = traced(model, config, batch(Prompt([1, ("video", (5, 2, 3)), 1, ("image", (1, 2, 2)), 1])))
    video, image = trace.visuals()
    assert video.events.tolist() == [0, 0, 1, 1, 2]
    assert image.events is None
    assert set(video.stages[0].labels[0].flat) == set(video.stages[0].labels[1].flat)
    assert not set(video.stages[0].labels[1].flat) & set(video.stages[0].labels[2].flat)
    groups = video.stages[0]
    assert (groups.labels.flat[groups.representatives] == np.arange(len(groups.representatives))).all()


def test_nothing_is_kept_unless_asked_for_and_several_ratios_are_refused(model):
    compress(model, PRESETS["ppe"])
    logits(model, batch(MIXED[0]))
    assert model.compression.trace is None
    trace, _ = traced(model, PRESETS["two ratios"], batch(MIXED[0]))
    with pytest.raises(ValueError, match="give one ratio"):
        trace.visuals()


EVENTS = {"method": "events", "ratio": 0.5}
GIVEN = {
    "image": Prompt([3, ("image", (1, 4, 6)), 4]),
    "one frame": Prompt([3, ("video", (1, 4, 6)), 4]),
    "text": Prompt([5]),
    "video": Prompt([3, ("video", (3, 4, 6)), 4]),
}


@pytest.mark.parametrize("prompts", ["image", "one frame", "text", "image, text", "image, video"])
@pytest.mark.parametrize(
    "steps",
    [
        [EVENTS],
        [{**EVENTS, "layer": 1}],
        [{"method": "dpc_knn", "ratio": 0.45}, {**EVENTS, "layer": 1}],
        [{**EVENTS, "layer": 1}, {**EVENTS, "layer": 2}],
        [{**EVENTS, "layer": 1}, {"method": "divprune", "ratio": 0.5, "layer": 2}],
    ],
    ids=["input", "layer", "merged before", "twice", "pruned after"],
)
def test_a_step_that_leaves_every_token_alone_is_traced(model, steps, prompts):
    """Events leave images alone: without a video such a stage has no round, and passes on all that it is given."""
    given = [GIVEN[name] for name in prompts.split(", ")]
    trace, _ = traced(model, CompressionConfig(steps=steps, k=2), batch(*given))
    visuals = trace.visuals()
    assert len(visuals) == len(given) - prompts.count("text")
    counts = [len(visual.stages[-1].representatives) if visual.stages else 24 for visual in visuals]
    assert sum(counts) == model.compression.report.tokens_after
    for visual in visuals:
        for groups in visual.stages:
            numbers = np.arange(len(groups.representatives))
            assert (groups.labels.flat[groups.representatives] == numbers).all()
            assert (groups.labels.flat[groups.held] == numbers[:, None]).all()
