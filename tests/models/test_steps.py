"""Steps: the shorthand equals the steps that it abbreviates, and a method decides in a model as it does alone."""

import dataclasses

import pytest
import torch
import toys
from prompts import CONTROLS, GREEDY, MIXED, PRESETS, logits
from support import FAMILIES, Prompt, batch, random_model
from tolerances import assert_near, assert_rounds_alike, exact

from ppe_npu import CompressionConfig, compress
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.spans import VisionTokens
from ppe_npu.errors import InputError
from ppe_npu.methods import DPCKNN, Events, Random, Uniform
from ppe_npu.methods.view import View

pytestmark = pytest.mark.half

VIDEO = Prompt([2, ("video", (3, 4, 4)), 3, ("image", (1, 3, 5)), 1], seed=4)
SHORTHAND = {
    **PRESETS,
    "seeded": CompressionConfig.preset("random", seed=3, positions="ppe", k=2, layers=[1], before_llm=True),
    "pooled events": CompressionConfig.preset("avg_pool", temporal_ratio=0.5),
    "released events": CompressionConfig(
        ratio=0.6, k=4, members="last", order="score", ties="none", temporal_ratio=0.5, event_ratio=0.4
    ),
}


def traced(model, config, *prompts):
    """Logits, the trace, and the position rows of every stage."""
    compress(model, config)
    rows, model.compression.keep_groups = [], True
    hook = model.model.language_model.rotary_emb.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append((*args, *kwargs.values())[1]), with_kwargs=True
    )
    out = logits(model, batch(*prompts))
    hook.remove()
    return out, model.compression.trace, rows


def given_to_the_decoder(model, config, *prompts):
    """[B, L, C] input of the first layer."""
    states = []
    compress(model, config)
    hook = model.model.language_model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: states.append((args or tuple(kwargs.values()))[0]), with_kwargs=True
    )
    logits(model, batch(*prompts))
    hook.remove()
    return states[0]


@pytest.mark.parametrize("name", SHORTHAND)
def test_the_shorthand_is_the_steps_that_it_stands_for(model, name):
    short = SHORTHAND[name]
    steps = CompressionConfig(steps=short.methods, positions=short.positions, k=short.k, members=short.members)
    again = CompressionConfig.from_dict(steps.to_dict())
    assert again == steps
    assert set(steps.to_dict()) == {"steps", "positions", "k", "members"}
    assert "steps" not in short.to_dict()
    assert CompressionConfig.from_dict(short.to_dict()) == short
    for grid in ((1, 8, 10), (5, 8, 10)):
        assert steps.tokens_kept(grid) == short.tokens_kept(grid)
    results = [logits(compress(model, config), batch(VIDEO, *MIXED)) for config in (short, again)]
    assert torch.equal(*results)


def test_steps_are_taken_in_the_order_of_their_places():
    at_layer, at_input = DPCKNN(0.5, layer=[2, 1]), Random(0.4)
    config = CompressionConfig(steps=[at_layer, at_input], positions="keep_one")
    assert config.stages == ((None, (at_input,)), (1, (at_layer,)), (2, (at_layer,)))
    assert config.k == 1
    assert config.tokens_kept((1, 8, 10)) == 2  # 20, 8, 4, 2
    assert config.tokens_kept((1, 8, 10), layer=1) == 4
    plain = {"steps": [{"method": "dpc_knn", "ratio": 0.5, "layer": [1, 2]}, {"method": "random", "ratio": 0.4}]}
    assert CompressionConfig.from_dict({**plain, "positions": "keep_one"}) == config
    assert CompressionConfig(steps=[], positions="keep_one").is_dense


@pytest.mark.parametrize("family", FAMILIES)
def test_two_methods_at_two_places(family):
    """The first method keeps the tokens that it keeps alone; the second chooses from among them."""
    model, kind = random_model(family=family), "frames" if family == "qwen3_vl" else "video"
    prompt = Prompt([2, (kind, (3, 4, 4)), 3, ("image", (1, 3, 5)), 1], seed=4)
    both = CompressionConfig(steps=[Random(0.5, seed=2), DPCKNN(0.5, layer=1)], k=4)
    compress(model, both)
    model.compression.keep_groups = True
    inputs = batch(prompt, MIXED[1])
    if family != "qwen2_5_vl":
        inputs.pop("second_per_grid_ts")
    logits(model, inputs)
    assert model.compression.report.layers == (3 * 8 + 8, 3 * 4 + 4, 3 * 4 + 4)
    found = model.compression.trace.visuals()
    compress(model, CompressionConfig(steps=[Random(0.5, seed=2)], k=4))
    model.compression.keep_groups = True
    logits(model, inputs)
    for visual, alone in zip(found, model.compression.trace.visuals()):
        first, second = visual.stages
        assert (first.labels == alone.stages[0].labels).all()
        assert set(second.representatives.tolist()) <= set(first.representatives.tolist())
    assert compress(model, both).generate(**inputs, max_new_tokens=2, **GREEDY).shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize(
    "steps",
    [
        [Uniform(0.7), DPCKNN(0.5)],
        [DPCKNN(0.7), toys.Corner(0.5)],
        [DPCKNN(0.6), Uniform(0.5, layer=1)],
        [Events(0.5)],
        [toys.LargestOfVideo(0.5), toys.Largest(0.5, layer=2)],
    ],
    ids=lambda steps: "+".join(step.name for step in steps),
)
def test_several_steps_hold_the_laws_of_one(model, steps):
    """For lists of steps, the report counts as tokens_kept(), and a prompt's result depends on the prompt alone."""
    config = CompressionConfig(steps=steps, k=2)
    out, trace, _ = traced(model, config, VIDEO, MIXED[0])
    report = model.compression.report
    for span, (frames, height, width) in zip(report.spans, [(3, 4, 4), (1, 3, 5), (1, 4, 5), (2, 4, 4)]):
        assert span.after == config.tokens_kept((frames, 2 * height, 2 * width))
    alone, _, _ = traced(model, config, VIDEO)
    together = out[0][-alone.shape[1] :]
    compress(model, config)
    assert_rounds_alike(together, alone[0], exact(model, lambda: logits(model, batch(VIDEO)))[0])
    for visual in trace.visuals():
        for groups in visual.stages:
            assert (groups.labels.reshape(-1)[groups.representatives] >= 0).all()


@pytest.mark.parametrize(
    "method", [DPCKNN(0.4), Random(0.4), Uniform(0.4), toys.Largest(0.4), toys.Corner(0.4)], ids=lambda m: m.name
)
def test_a_method_alone_decides_as_it_does_inside_a_model(model, method):
    prompt = Prompt([2, ("video", (3, 4, 5)), 2], seed=7)
    features = given_to_the_decoder(model, CompressionConfig.preset("dense"), prompt)[0, 2:-2].view(3, 20, -1)
    places = torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(5)).view(3, 20, 3)
    grouping = method.group(View.of(tokens=features, num_kept=8, places=places))
    _, trace, _ = traced(model, CompressionConfig(steps=[method], positions="keep_one"), prompt)
    (groups,) = trace.visuals()[0].stages
    labels = torch.from_numpy(groups.labels).view(3, 20)
    assert torch.equal(labels, grouping.labels + 8 * torch.arange(3)[:, None])
    kept = given_to_the_decoder(model, CompressionConfig(steps=[method], positions="keep_one"), prompt)[0, 2:-2]
    assert torch.equal(kept.view(3, 8, -1), grouping.apply(features))


# -- weights, dropped tokens, scope --------------------------------------------------------------------------------


def test_a_weight_of_zero_lends_a_position_and_no_feature(model):
    """Pruning with and without PPE keeps the same tokens and features; with PPE, rows come from the group."""
    prompt = Prompt([2, ("image", (1, 4, 5)), 2], seed=7)
    dense = given_to_the_decoder(model, CompressionConfig.preset("dense"), prompt)[0, 2:-2]
    for positions, k in (("keep_one", 1), ("ppe", 4)):
        config = CompressionConfig(steps=[toys.Largest(0.3)], positions=positions, k=k)
        given = given_to_the_decoder(model, config, prompt)[0, 2:-2]
        _, trace, rows = traced(model, config, prompt)
        (groups,) = trace.visuals()[0].stages
        assert torch.equal(given, dense[groups.representatives])
        kept = dense.norm(dim=-1).sort(descending=True).indices[:6].sort().values
        assert groups.representatives.tolist() == kept.tolist()
        assert groups.labels.min() == 0  # no token is dropped
        table = rows[0].view(3, k, -1)[:, :, 2:-2]
        held = torch.from_numpy(groups.held)
        assert torch.equal(table[1].T - 2, held // 5)
        assert torch.equal(table[2].T - 2, held % 5)
        if k == 1:
            assert held[:, 0].tolist() == kept.tolist()
        else:
            assert any(len(set(row)) > 1 for row in held.tolist())


def test_dropped_tokens_are_in_no_group_and_lend_nothing(model):
    prompt = Prompt([2, ("image", (1, 4, 5)), 2], seed=7)
    out, trace, _ = traced(model, CompressionConfig(steps=[toys.Largest(0.3, "drop")], k=4), prompt)
    (groups,) = trace.visuals()[0].stages
    assert (groups.labels == -1).sum() == 20 - 6
    assert groups.sizes.tolist() == [1] * 6
    assert (groups.held == groups.representatives[:, None]).all()
    pruned = logits(compress(model, CompressionConfig(steps=[toys.Largest(0.3)], positions="keep_one")), batch(prompt))
    assert torch.equal(out, pruned)  # a position repeated four times equals one


def test_weights_make_weighted_means():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 9, 4, generator=generator, dtype=torch.float64)
    tokens[1, 7:] = float("inf")  # absent
    valid = torch.arange(9) < torch.tensor([[9], [7]])
    grouping = toys.Weighted(0.5).group(View.of(tokens=tokens.nan_to_num(posinf=0), valid=valid, num_kept=[3, 2]))
    out = grouping.apply(tokens)
    for cell, groups in enumerate((3, 2)):
        for group in range(groups):
            mine = grouping.labels[cell] == group
            weights = tokens[cell, mine].float().norm(dim=-1).double()
            expected = (weights[:, None] * tokens[cell, mine]).sum(0) / weights.sum()
            # Errors: a sum of up to nine products with scaled weights, divided by a sum; a mean.
            assert_near(out[cell, group], expected, roundings=2 * 9 + 6, size=tokens[cell, mine].abs().max())
    leaf = tokens.nan_to_num(posinf=0).requires_grad_()
    grouping.apply(leaf).sum().backward()
    assert torch.isfinite(leaf.grad).all()


def test_all_frames_of_a_video_compete_and_no_two_videos_do(model):
    videos = Prompt([1, ("video", (3, 2, 4)), 2, ("video", (2, 2, 4)), ("image", (1, 2, 4)), 1], seed=11)
    dense = given_to_the_decoder(model, CompressionConfig.preset("dense"), videos)[0]
    config = CompressionConfig(steps=[toys.LargestOfVideo(0.4)], positions="keep_one")
    _, trace, _ = traced(model, config, videos)
    assert [span.after for span in model.compression.report.spans] == [10, 7, 4]  # ceil of 9.6, 6.4, 3.2
    for visual, start, count, kept in zip(trace.visuals(), (1, 27, 43), (24, 16, 8), (10, 7, 4)):
        norms = dense[start : start + count].norm(dim=-1)
        expected = norms.sort(descending=True).indices[:kept].sort().values
        (groups,) = visual.stages
        assert groups.representatives.tolist() == expected.tolist()


# -- positions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [3, 5, 7, 8])
def test_any_k_is_the_dense_model_at_ratio_one(model, k):
    """With sections of 8, 12 and 12 channels, every channel still reads a position of its own token."""
    dense = logits(compress(model, CompressionConfig.preset("dense")), batch(VIDEO))
    assert torch.equal(logits(compress(model, CompressionConfig.preset("ppe", k=k, ratio=1.0)), batch(VIDEO)), dense)
    assert not torch.equal(logits(compress(model, CompressionConfig.preset("ppe", k=k)), batch(VIDEO)), dense)


@pytest.mark.parametrize(("positions", "k"), [("ppe", 3), ("keep_one", 1), ("renumber", 1)])
def test_a_plain_rotary_embedding_keeps_k_places_in_the_text(positions, k):
    vision = VisionTokens(image_token_id=90, video_token_id=91, merge_size=2, tokens_per_second=None)
    config = CompressionConfig(steps=[DPCKNN(0.5), Uniform(0.5, layer=1)], positions=positions, k=k)
    engine = Compression(config, vision, (0,) * 32, decoder_layers=2)
    inputs = batch(Prompt([2, ("image", (1, 4, 4)), 3]), Prompt([4], seed=1))
    plan = engine.plan(inputs["input_ids"], inputs["attention_mask"], inputs["image_grid_thw"], None, None)
    features = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    run, embeds = engine.prefill(plan, torch.zeros(len(plan.stages[0].text), 6), features)
    run.enter(1, embeds)
    for rows, kept in zip(run.rows, (8, 4)):
        assert rows.shape == (k, 2, 2 + kept + 3)
        own = rows[:, 0]
        assert own[:, :2].tolist() == [[0, 1]] * k
        first = 2 + kept if positions == "renumber" else 18
        assert own[:, -3:].tolist() == [list(range(first, first + 3))] * k
        assert rows[:, 1, -4:].tolist() == [[0, 1, 2, 3]] * k
        if positions != "renumber":
            assert own[:, 2:-3].min() >= 2
            assert own[:, 2:-3].max() < 18
    found = len(run.rows[0][:, 0, 2:-3].unique())
    assert found > 8 if positions == "ppe" else found == 8
    after = engine.continue_text(run.state, torch.ones(2, 1, dtype=torch.bool), 1, padded=False)
    assert after.rows[0].shape == (1, 2, 1)


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [toys.Pixels(), toys.Pixels(0.25)],
            "steps toy_pixels and toy_pixels both run at the pixels, and each needs whole pictures: keep one",
        ),
        ([DPCKNN(layer=3)], r"layers=\[3\]: this model has 3 decoder layers, 0 to 2"),
    ],
)
def test_steps_without_a_place_in_the_model_are_refused_when_it_is_compressed(model, steps, message):
    with pytest.raises(InputError, match=message):
        compress(model, CompressionConfig(steps=steps, positions="keep_one"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: toys.Rows(), r"toy_rows with layer=None: it needs a layer; give one"),
        (lambda: toys.Pixels(layer=1), r"toy_pixels with layer=1: it cannot run at a decoder layer"),
        (lambda: DPCKNN(ratio=0), r"ratio=0: give the kept share"),
        (lambda: DPCKNN(layer=[1, 1]), r"layer.*give different decoder layers"),
        (lambda: DPCKNN(layer=-1), r"layer=-1: give decoder layers"),
        (lambda: CompressionConfig(steps=[DPCKNN()], ratio=0.3), r"ratio=0.3 with steps: set it in one of the steps"),
        (
            lambda: CompressionConfig(steps=[DPCKNN()], layers=[3]),
            r"layers=\(3,\) with steps: set it in one of the steps",
        ),
        (lambda: CompressionConfig(steps=DPCKNN()), "steps="),
        (lambda: CompressionConfig(steps=[{"ratio": 0.5}]), "a step is .*give a method"),
        (lambda: CompressionConfig(steps=[{"method": "best"}]), "method='best': choose one of .*avg_pool"),
        (lambda: CompressionConfig(steps=[{"method": "dpc_knn", "rate": 1}]), "dpc_knn has no rate: its keys are"),
        (lambda: CompressionConfig(steps=[{"method": "random", "ratio": 2}]), "ratio=2: give the kept share"),
        (lambda: CompressionConfig(steps=[toys.LargestOfVideo(), Events()]), "events after toy_largest_of_video"),
        (
            lambda: CompressionConfig(steps=[toys.Late(), Events()]),
            "events after toy_late: it needs frames of one size; run events first",
        ),
        (lambda: CompressionConfig.preset("toy_nothing"), "preset 'toy_nothing' is unknown: choose one of dense"),
    ],
)
def test_steps_that_cannot_be_are_refused_when_they_are_written(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_every_method_is_a_preset_with_ppe_on_top():
    for name in CONTROLS:
        config = CompressionConfig.preset(name, ratio=0.25, positions="ppe", k=4)
        assert (config.methods[0].name, config.methods[0].ratio, config.k) == (name, 0.25, 4)
    config = CompressionConfig.preset("dpc_knn", neighbors=3)
    assert config.methods == (DPCKNN(neighbors=3),)
    assert config.positions == "keep_one"
    labels = {
        CompressionConfig(steps=steps, positions="keep_one").label
        for steps in ([DPCKNN()], [DPCKNN(0.4)], [DPCKNN(layer=1)], [DPCKNN(neighbors=3)], [Random(seed=1)], [Events()])
    }
    assert len(labels) == 6
    assert all(set(label) <= set("abcdefghijklmnopqrstuvwxyz_0123456789.+-") for label in labels)
    assert dataclasses.replace(config, k=1) == config
