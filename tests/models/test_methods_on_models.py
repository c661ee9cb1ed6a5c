"""Laws of every method inside a model: exact counts, independence of batch mates, gradients, and PPE on top."""

import dataclasses

import pytest
import torch
from prompts import GREEDY, MIXED, kept_logits, logits
from support import Prompt, batch, random_model
from test_no_sync import SYNCS, operators
from tolerances import assert_rounds_alike, exact

from ppe_npu import CompressionConfig, compress
from ppe_npu.methods import get
from ppe_npu.methods.base import Method, method_class
from ppe_npu.methods.listing import default, grouping

pytestmark = pytest.mark.half

CLIP = Prompt([2, ("video", (3, 4, 4)), 3, ("image", (1, 3, 5)), 4], seed=4)
METHODS: dict[str, Method] = {name: default(name) for name in grouping()}
# The published layers are for large models.
METHODS |= {name: method_class(name)(layer=1) for name, method in METHODS.items() if method.layers}
METHODS |= {f"{name} at a layer": method_class(name)(layer=1) for name in METHODS if len(METHODS[name].places) > 1}
METHODS["hiprune of many anchors"] = get("hiprune", alpha=1.0, ratio=0.5)
METHODS |= {
    f"globalcom2 by {name}": get("globalcom2", by={"method": name}, temperature=0.5)
    for name in ("dpc_knn", "hiprune", "vtc_cls")
}
EXACT = {name: method for name, method in METHODS.items() if method.counts == "exact"}
PRUNING = {name: METHODS[name] for name in grouping() if hasattr(METHODS[name], "dropped")}
# FlashVID's groups are clusters, whatever happens to tokens in none.
PRUNING = {name: method for name, method in PRUNING.items() if not method.layers and name != "flashvid"}


@pytest.fixture
def model():
    """A model whose vision tower attends to whole frames, as methods that look into it require."""
    return whole_model()


def whole_model():
    return random_model(tower={"fullatt_block_indexes": [0]})


def of_ratio(method: Method, ratio: float) -> Method:
    return dataclasses.replace(method, ratio=ratio)


def compressed(model, method: Method, k: int = 4):
    return compress(model, CompressionConfig(steps=[method], positions="ppe", k=k))


@pytest.mark.parametrize("name", METHODS)
def test_all_tokens_kept_are_the_dense_model(model, name):
    dense = kept_logits(compress(model, CompressionConfig.preset("dense")), CLIP, *MIXED)
    every = kept_logits(compressed(model, of_ratio(METHODS[name], 1.0)), CLIP, *MIXED)
    assert all(torch.equal(one, other) for one, other in zip(every, dense))


@pytest.mark.parametrize("name", METHODS)
def test_counts_are_those_that_the_grid_says_and_a_prompt_is_its_own(model, name):
    """A prompt gives the same alone and in a padded batch with others, and two runs are equal bit by bit."""
    config = CompressionConfig(steps=[METHODS[name]], k=4)
    compress(model, config)
    out = logits(model, batch(CLIP, *MIXED))
    assert torch.equal(out, logits(model, batch(CLIP, *MIXED)))
    assert torch.isfinite(out).all()
    report = model.compression.report
    grids = [(3, 4, 4), (1, 3, 5), (1, 4, 5), (2, 4, 4), (1, 1, 1), (1, 3, 3)]
    for span, (frames, height, width) in zip(report.spans, grids, strict=True):
        most = config.tokens_kept((frames, 2 * height, 2 * width))
        assert span.after == most if name in EXACT else 1 <= span.after <= most
    alone = logits(model, batch(CLIP))
    together = out[0][-alone.shape[1] :]
    assert_rounds_alike(together, alone[0], exact(model, lambda: logits(model, batch(CLIP)))[0])


def groups_of(model, inputs) -> list[list]:
    """The groups of every picture and video, on the host."""
    logits(model, inputs)
    visuals = model.compression.trace.visuals()
    return [[(one.labels.tolist(), one.representatives.tolist()) for one in visual.stages] for visual in visuals]


@pytest.mark.parametrize("name", METHODS)
def test_mates_of_other_sizes_in_one_bucket_change_no_group(model, name):
    """Padding repeats a token of the batch: of a mate, whose numbers may not even be finite, or of the picture."""
    compressed(model, METHODS[name]).compression.keep_groups = True
    for seed in range(3):
        prompt = Prompt([2, ("image", (1, 4, 5)), 1, ("video", (2, 3, 3)), 3], seed=seed)
        mate = Prompt([2, ("image", (1, 4, 8)), 1, ("video", (2, 3, 5)), 3], seed=seed + 100)
        alone = groups_of(model, batch(prompt))
        inputs = batch(mate, prompt)
        assert groups_of(model, inputs)[2:] == alone
        inputs["pixel_values"][: 4 * 4 * 8] = torch.nan
        inputs["pixel_values_videos"][: 4 * 2 * 3 * 5] = torch.nan
        assert groups_of(model, inputs)[2:] == alone
        assert groups_of(model, batch(prompt, mate))[:2] == alone


@pytest.mark.parametrize("name", EXACT)
def test_the_host_does_not_wait_between_tower_and_decoder(model, name):
    compressed(model, EXACT[name])
    inputs = batch(CLIP, *MIXED)
    operators(model, inputs)  # lookups are made once
    if name.startswith("events") or " by " in name:
        pytest.skip("which frames make an event, and how large a frame is, is read by the host")
    assert not set(operators(model, inputs)) & set(SYNCS)


@pytest.mark.parametrize("name", grouping())
def test_it_trains(model, name):
    compressed(model.train(), METHODS[name])
    inputs = batch(CLIP, MIXED[0], side="right")
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -100)
    model(**inputs, labels=labels).loss.backward()
    for key, weight in model.named_parameters():
        assert weight.grad is None or torch.isfinite(weight.grad).all(), key
    assert model.model.visual.patch_embed.proj.weight.grad.any()


@pytest.mark.parametrize("name", grouping())
def test_it_answers_in_bf16_with_as_many_tokens(model, name):
    compressed(model.bfloat16(), METHODS[name])
    inputs = batch(CLIP, MIXED[0])
    halves = {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()}
    halves["second_per_grid_ts"] = inputs["second_per_grid_ts"]
    out = logits(model, halves)
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()
    first = [span.after for span in model.compression.report.spans]
    if name in EXACT:
        config = model.compression.config
        assert first[0] == config.tokens_kept((3, 8, 8))
    answers = model.generate(**halves, max_new_tokens=2, **GREEDY)
    assert answers.shape[1] == inputs["input_ids"].shape[1] + 2


# -- PPE on pruning: lent positions, or none ---------------------------------------------------------------------------


def seen(model, method: Method, k: int, prompt: Prompt):
    """The visual tokens' states before the first layer, the first position rows, the groups, and the logits."""
    states, rows = [], []
    compressed(model, method, k).compression.keep_groups = True
    decoder = model.model.language_model
    hooks = [
        decoder.layers[0].register_forward_pre_hook(
            lambda _, args, kwargs: states.append((args or tuple(kwargs.values()))[0]), with_kwargs=True
        ),
        decoder.rotary_emb.register_forward_pre_hook(
            lambda _, args, kwargs: rows.append((*args, *kwargs.values())[1]), with_kwargs=True
        ),
    ]
    out = logits(model, batch(prompt))
    for hook in hooks:
        hook.remove()
    (visual,) = model.compression.trace.visuals()
    return states[0][0, 2:-3], rows[0], visual.stages[0], out


@pytest.mark.parametrize("name", PRUNING)
def test_dropped_tokens_lend_their_positions_and_nothing_else(name):
    model, prompt = whole_model(), Prompt([2, ("image", (1, 6, 6)), 3], seed=7)
    given = {
        how: seen(model, dataclasses.replace(PRUNING[name], dropped=how, ratio=0.25), 4, prompt)
        for how in ("lend", "drop", "merge")
    }
    (lent, rows, groups, _), (plain, own, alone, pruned) = given["lend"], given["drop"]
    # All three make the same choice; "lend" and "drop" keep the same features, those of the kept tokens.
    assert groups.representatives.tolist() == alone.representatives.tolist()
    assert given["merge"][2].representatives.tolist() == alone.representatives.tolist()
    assert torch.equal(lent, plain)
    assert groups.labels.min() >= 0
    assert (alone.labels >= 0).sum() == len(alone.representatives)
    # With "drop" no position of a dropped token is kept; with "lend" the most similar kept token gets it.
    assert (alone.held == alone.representatives[:, None]).all()
    assert any(len(set(row)) > 1 for row in groups.held.tolist())
    for group, held in enumerate(groups.held.tolist()):
        assert {int(groups.labels.flat[token]) for token in held} == {group}
    for table, kept in ((rows, groups), (own, alone)):
        held = torch.from_numpy(kept.held)
        at = table.view(3, 4, *table.shape[1:])[:, :, 0, 2:-3] if table.dim() == 3 else table[:, 0, 2:-3]
        assert torch.equal(at[1].T - 2, held // 6)
        assert torch.equal(at[2].T - 2, held % 6)
    keep_one = dataclasses.replace(PRUNING[name], ratio=0.25)
    compress(model, CompressionConfig(steps=[keep_one], positions="keep_one"))
    assert torch.equal(logits(model, batch(prompt)), pruned)  # a position repeated four times equals one
