"""Proportional attention: a token that stands for s tokens counts as s of them (ToMe, arXiv 2210.09461)."""

import itertools
from functools import partial

import pytest
import torch
from prompts import GREEDY, MIXED, kept_logits
from support import FAMILIES, Prompt, batch, random_model
from test_packing import check_packed
from tolerances import assert_equal, assert_near, assert_rounds_alike, attention_roundings, exact
from toys import Looker
from transformers import DynamicCache, StaticCache

from ppe_npu import CompressionConfig, compress
from ppe_npu.errors import InputError
from ppe_npu.methods import DPCKNN, DivPrune, FastV, get
from ppe_npu.models import fused
from ppe_npu.models.known import has_attention

pytestmark = pytest.mark.half

SLOW = pytest.mark.slow
proportional = partial(CompressionConfig, proportional_attention=True)
SETTINGS = {
    "keep_one": proportional(ratio=0.4, positions="keep_one"),
    "ppe": proportional(ratio=0.3, k=4),
    "renumber": proportional(ratio=0.4, positions="renumber"),
    "cascade": proportional(ratio=0.5, k=2, layers=[1, 2], before_llm=True),
    "lent, then merged": proportional(steps=[DivPrune(ratio=0.6), DPCKNN(ratio=0.4, layer=1)], k=4),
    "merged before pruning": proportional(steps=[DivPrune(ratio=0.4, dropped="merge"), FastV(layer=2)], k=4),
    "late": proportional(steps=[get("flashvid", ratio=0.4), get("tome", ratio=0.5, metric="tokens", layer=2)], k=4),
}
PROMPT = Prompt([3, "start", ("image", (1, 4, 5)), 2, "start", ("video", (2, 4, 4)), 4], seed=4)
TOWER = {"depth": 2, "fullatt_block_indexes": [1]}


def passes(compression):
    """A list that collects the compression's passes."""
    runs, prefill = [], type(compression).prefill

    def kept(*args, **kwargs):
        run, embeds = prefill(compression, *args, **kwargs)
        runs.append(run)
        return run, embeds

    compression.prefill = kept
    return runs


def count_by_copies(model) -> None:
    """Make attention process every token as often as it counts, with each copy attending to all copies of its token; it
    then needs no sizes."""
    runs = passes(model.compression)

    def copied(index, forward):
        def run_copies(hidden_states, position_embeddings, **_):
            sizes = runs[-1].sizes[sum(first <= index for first in runs[-1].layers)]
            sizes = torch.ones(hidden_states.shape[1], dtype=torch.long) if sizes is None else sizes[0]
            copies = torch.arange(len(sizes)).repeat_interleave(sizes)
            added = torch.zeros(len(copies), len(copies), dtype=hidden_states.dtype)
            added = added.masked_fill(copies[:, None] < copies, torch.finfo(added.dtype).min)[None, None]
            table = tuple(part[..., copies, :] for part in position_embeddings)
            out, _ = forward(hidden_states[:, copies], attention_mask=added, position_embeddings=table)
            return out[:, sizes.cumsum(0) - sizes], None

        return run_copies

    for index, layer in enumerate(model.model.language_model.layers):
        if has_attention(layer):
            layer.self_attn.forward = copied(index, layer.self_attn.forward)


@pytest.mark.parametrize(
    ("family", "name", "implementation"),
    [("qwen2_5_vl", name, "sdpa") for name in SETTINGS]
    + [("qwen2_5_vl", "cascade", "eager"), ("qwen2_5_vl", "cascade", "fused")]
    + [("qwen3_5", "ppe", "sdpa"), ("qwen3_5", "cascade", "fused")]
    + [
        pytest.param("qwen2_5_vl", name, own, marks=SLOW)
        for name in SETTINGS
        for own in ("eager", "fused")
        if name != "cascade"
    ],
)
@torch.no_grad()
def test_a_token_counts_as_all_that_it_stands_for(family, name, implementation):
    """The oracle is attention to each of these tokens (count_by_copies), with its error measured in fp64. Layers with
    linear attention count none."""
    tower = TOWER if family == "qwen2_5_vl" else None
    model, inputs = random_model(family=family, tower=tower), batch(PROMPT)
    model.set_attn_implementation("eager" if implementation == "eager" else "sdpa")
    compress(fused.fuse(model) if implementation == "fused" else model, SETTINGS[name])
    runs = passes(model.compression)
    found = model(**inputs, use_cache=False).logits
    assert all(sizes is not None for sizes in runs[0].sizes[-1:])
    assert len(runs[0].sizes) == model.compression.stages
    naive = compress(random_model(family=family, tower=tower), SETTINGS[name])
    naive.set_attn_implementation("eager")
    count_by_copies(naive)
    plain = naive(**inputs, use_cache=False).logits
    assert_rounds_alike(found, plain, exact(naive, lambda: naive(**inputs, use_cache=False).logits))
    other = compress(model, CompressionConfig.from_dict(SETTINGS[name].to_dict() | {"proportional_attention": False}))
    assert (other(**inputs, use_cache=False).logits - found).abs().max() > 1e3 * (found - plain).abs().max()


@torch.no_grad()
def test_what_a_merge_left_is_what_counts(model):
    """Every merged token is counted once; tokens that only lend their position are not counted."""
    compress(model, SETTINGS["ppe"])
    runs = passes(model.compression)
    model(**batch(PROMPT, Prompt([4], seed=1)))
    visual = 4 * 5 + 2 * 4 * 4
    assert runs[0].sizes[0].sum() == visual + (3 + 1 + 2 + 1 + 4) + runs[0].sizes[0].shape[1]
    for steps in ([DivPrune(ratio=0.4)], [DivPrune(ratio=0.4, dropped="drop"), FastV(layer=1)]):
        compress(model, proportional(steps=steps))
        runs = passes(model.compression)
        model(**batch(PROMPT))
        assert all(sizes is None for sizes in runs[0].sizes)


@torch.no_grad()
def test_the_row_that_methods_look_at_counts_sizes_too(model):
    """The row equals the weights of the last token in the layer's own attention."""
    model.set_attn_implementation("eager")
    compress(model, proportional(steps=[DPCKNN(ratio=0.5), Looker(layer=1)], k=4))
    Looker.views.clear()
    out = model(**batch(PROMPT), output_attentions=True)
    first, last = 4, out.attentions[1][0, :, -1].mean(0)  # text before the image
    rows = [row for view in Looker.views for row in view.layer_row]
    image = next(row for row in rows if len(row) == 4 * 5 // 2)
    assert_near(image, last[first : first + 10], roundings=attention_roundings(torch.ones(1, 64), torch.ones(1, 64)))


SINGLE = {
    "dense": {"steps": []},
    "ratio 1": {"ratio": 1.0, "k": 4},
    "ratio 1 in layers": {"ratio": 1.0, "layers": [0, 2], "k": 2},
    "pruning": {"steps": [DivPrune(ratio=0.4), FastV(layer=1, dropped="drop")], "k": 4},
    "late": {"steps": [get("flashvid", ratio=1.0)], "k": 4},
}


@pytest.mark.parametrize("settings", SINGLE.values(), ids=SINGLE)
@pytest.mark.parametrize("fuse", [False, True])
@torch.no_grad()
def test_sizes_of_one_change_no_bit(settings, fuse):
    """Also in a padded batch, which fused attention processes in segments."""
    model = random_model(tower=TOWER)
    model = fused.fuse(model) if fuse else model
    expected = compress(model, CompressionConfig(**settings))(**batch(*MIXED)).logits
    assert_equal(compress(model, proportional(**settings))(**batch(*MIXED)).logits, expected)


@pytest.mark.parametrize(
    ("family", "name", "fuse"),
    [("qwen2_5_vl", "ppe", True), ("qwen3_vl", "cascade", False), ("qwen3_5", "cascade", True)]
    + [pytest.param(*all_, marks=SLOW) for all_ in itertools.product(FAMILIES, ["ppe", "cascade"], [False, True])],
)
def test_mates_and_padding_change_nothing(family, name, fuse):
    model = compress(random_model(family=family), SETTINGS[name])
    model = fused.fuse(model) if fuse else model

    def alone():
        return [kept_logits(model, prompt)[0] for prompt in MIXED]

    expected, true = alone(), exact(model, alone)
    for side in ("left", "right"):
        assert_rounds_alike(kept_logits(model, *MIXED, side=side, pad_to=70), expected, true)


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("ppe", "sdpa"), ("cascade", "eager")]
    + [pytest.param(*both, marks=SLOW) for both in (("renumber", "sdpa"), ("renumber", "eager"), ("cascade", "sdpa"))],
)
@torch.no_grad()
def test_sizes_travel_with_the_cache(name, implementation):
    """Tokens that continue a cache give the logits of a pass without one: one by one, several at once, and on a static
    cache."""
    model = random_model()
    model.set_attn_implementation(implementation)
    compress(model, SETTINGS[name])
    short, tail = Prompt([2, ("image", (1, 4, 5)), 3, ("video", (2, 4, 4)), 2], seed=1), torch.tensor([[5, 6, 7, 8]])

    def whole():
        inputs = batch(short)
        for key, rest in (("input_ids", tail), ("attention_mask", torch.ones_like(tail))):
            inputs[key] = torch.cat([inputs[key], rest], dim=1)
        return model(**inputs, use_cache=True).logits[:, -4:]

    def by_cache(steps, static=False):
        text = model.config.text_config
        cache = StaticCache(config=text, max_cache_len=64) if static else DynamicCache(config=text)
        model(**batch(short), past_key_values=cache, use_cache=True)
        parts = tail.split(steps, dim=1)
        return torch.cat([model(input_ids=part, past_key_values=cache, use_cache=True).logits for part in parts], dim=1)

    expected, true = whole(), exact(model, whole)
    for found in (by_cache([1] * 4), by_cache([4]), by_cache([3, 1], static=True)):
        assert_rounds_alike(found, expected, true)


@torch.no_grad()
def test_samples_of_a_cache_take_their_sizes_along(model):
    compress(model, SETTINGS["cascade"])
    inputs, cache = batch(MIXED[0], MIXED[2]), DynamicCache(config=model.config.text_config)
    model(**inputs, past_key_values=cache, use_cache=True)
    model(input_ids=torch.tensor([[5, 6], [7, 8]]), past_key_values=cache, use_cache=True)
    before = cache.ppe_state.sizes
    cache.crop(-2)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(2)
    model(input_ids=torch.full((4, 1), 9), past_key_values=cache, use_cache=True)
    for old, new, mask in zip(before, cache.ppe_state.sizes, cache.ppe_state.masks):
        assert new.shape == mask.shape
        assert_equal(new[:, :-1], old[:, :-2].flip(0).repeat_interleave(2, dim=0))
        assert (new[:, -1] == 1).all()
        assert (old > 1).any()


def test_generation_by_beams_and_static_caches(model):
    compress(model, SETTINGS["ppe"])
    inputs, settings = batch(MIXED[0], MIXED[1]), {"max_new_tokens": 4, **GREEDY}
    expected = model.generate(**inputs, **settings)
    assert torch.equal(model.generate(**inputs, **settings, cache_implementation="static"), expected)
    assert torch.equal(model.generate(**inputs, **settings, use_cache=False), expected)
    assert model.generate(**inputs, **settings, num_beams=2).shape[0] == 2


def test_a_second_picture_on_a_cache(model):
    """The second picture attends to the first one's tokens as often as they count."""
    compress(model, SETTINGS["ppe"])
    first, second = [2, ("image", (1, 4, 5)), 3], [("image", (1, 3, 4)), 2]
    both = batch(Prompt([*first, *second], seed=1))
    ids, length = both["input_ids"], len(Prompt(first).ids)

    def at_once():
        return model(**both).logits[:, -2:]

    def in_turns():
        cache = DynamicCache(config=model.config.text_config)
        patches, grids = both["pixel_values"], both["image_grid_thw"]
        model(input_ids=ids[:, :length], pixel_values=patches[:80], image_grid_thw=grids[:1], past_key_values=cache)
        kept = model.compression.report.spans[0].after
        assert cache.ppe_state.sizes[0].sum() == length
        assert kept < 20
        rest = {"pixel_values": patches[80:], "image_grid_thw": grids[1:], "past_key_values": cache}
        return model(input_ids=ids[:, length:], **rest).logits[:, -2:]

    with torch.no_grad():
        assert_rounds_alike(in_turns(), at_once(), exact(model, at_once))


def test_gradients_are_those_of_copies():
    def gradients(model):
        model.zero_grad()
        inputs = batch(PROMPT)
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        weights = dict(model.named_parameters())
        return {key: weights[key].grad.clone() for key in weights if "layers.1." in key or "merger.mlp" in key}

    naive = compress(random_model(), SETTINGS["ppe"])
    naive.set_attn_implementation("eager")
    count_by_copies(naive)
    plain, true = gradients(naive), exact(naive, lambda: gradients(naive))
    assert_rounds_alike(gradients(compress(random_model(), SETTINGS["ppe"])), plain, true)


@pytest.mark.parametrize(("family", "name"), [("qwen2_5_vl", "ppe"), ("qwen3_vl", "cascade")])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_packed_batch_is_its_samples(family, name, side):
    model = compress(fused.fuse(random_model(family=family)), SETTINGS[name])
    check_packed(model, MIXED if family != "qwen3_vl" else [MIXED[1], MIXED[2], MIXED[2]], side)


@pytest.mark.parametrize("name", ["ppe", "cascade", "late"])
@torch.no_grad()
def test_fused_attention_is_given_no_mask_of_a_prompt(name, monkeypatch):
    """A mask that includes sizes would be a matrix of queries by keys; only a step's own, of one query, is made."""
    calls, attend = [], fused.backends.attention

    def noted(query, key, value, **options):
        if "key_bias" in options:  # the decoder's attention
            calls.append((query.shape[2], options.get("mask") is None, options["key_bias"]))
        return attend(query, key, value, **options)

    model = compress(fused.fuse(random_model(tower=TOWER)), SETTINGS[name])
    monkeypatch.setattr(fused.backends, "attention", noted)
    model.generate(**batch(*MIXED[:2]), max_new_tokens=3, min_new_tokens=3, **GREEDY)
    prompt = [call for call in calls if call[0] > 1]
    assert all(unmasked for _, unmasked, _ in prompt)
    assert any(bias is not None and bias.max() > 0 for _, _, bias in prompt)
    assert all(bias is None and not unmasked for queries, unmasked, bias in calls if queries == 1)


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_fused_attention_counts_as_plain_attention_does(name):
    plain = compress(random_model(tower=TOWER), SETTINGS[name])

    def logits():
        return kept_logits(plain, *MIXED)

    expected, true = logits(), exact(plain, logits)
    fast = compress(fused.fuse(random_model(tower=TOWER)), SETTINGS[name])
    assert_rounds_alike(kept_logits(fast, *MIXED), expected, true)


def test_attention_that_takes_no_key_bias_is_refused_by_name(model, monkeypatch):
    monkeypatch.setattr(model.config.text_config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(InputError, match=r"flash_attention_2 takes no mask: load the model with attn_impl"):
        compress(model, SETTINGS["ppe"])
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"outside ppe_npu\.backends cannot do in a packed batch: leave packed out"):
        fused.check_key_bias(model.model.language_model, packed=True)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
@torch.no_grad()
def test_models_with_linear_attention_count_sizes_in_their_layers_with_attention(family):
    """Their gated attention is never fused, so that it is given a mask."""
    model = compress(random_model(family=family), SETTINGS["ppe"])
    dense = compress(random_model(family=family), SETTINGS["ppe"].changed(proportional_attention=False))
    inputs = batch(Prompt([3, "start", ("image", (1, 4, 5)), 4]))
    assert not model(**inputs).logits.equal(dense(**inputs).logits)
    settings = {"max_new_tokens": 4, **GREEDY}
    assert torch.equal(model.generate(**inputs, **settings), model.generate(**inputs, **settings, use_cache=False))


def test_it_is_a_setting_like_others():
    config = CompressionConfig.from_text("divprune:ratio=0.25,proportional_attention=true")
    assert config.proportional_attention
    assert config.label.endswith("-proportional")
    assert CompressionConfig.from_dict(config.to_dict()) == config
    assert config.changed(proportional_attention=False) == CompressionConfig.from_text("divprune:ratio=0.25")
    short = CompressionConfig.preset("ppe", proportional_attention=True)
    assert CompressionConfig.from_dict(short.to_dict()) == short != CompressionConfig.preset("ppe")
    assert "proportional_attention" not in CompressionConfig.preset("ppe").to_dict()
    with pytest.raises(InputError, match="proportional_attention='yes'"):
        proportional(proportional_attention="yes")
