"""Merges inside the decoder, several ratios, and events: the tokens of each layer, its cache, and their positions."""

import dataclasses

import pytest
import torch
from prompts import GREEDY, MIXED, PPE, PRESET_CASES, PRESETS, check_labels, check_slope, kept_logits, logits
from support import IMAGE_ID, Prompt, batch, random_model
from tolerances import assert_rounds_alike, exact
from transformers import DynamicCache, StaticCache

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.methods import DPCKNN

pytestmark = pytest.mark.half

STAGED = {name: config for name, config in PRESETS.items() if config.layers}
CASCADE = PRESETS["cascade"]


def hidden_states(model, inputs):
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True).hidden_states


def record_rows(model):
    """A list that collects the position rows [R, B, L] of each rotary table."""
    seen = []
    model.model.language_model.rotary_emb.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((*args, *kwargs.values())[1]), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_before_the_first_merge_are_exactly_dense(implementation, dtype):
    model = random_model().to(dtype)
    model.set_attn_implementation(implementation)
    inputs = batch(*MIXED)
    compress(model, CompressionConfig.preset("dense"))
    dense = hidden_states(model, inputs)
    compress(model, dataclasses.replace(PPE, layers=(2,)))
    states = hidden_states(model, inputs)
    real = inputs["attention_mask"].bool()
    for layer in (0, 1):
        assert torch.equal(states[layer][real], dense[layer][real])
    assert states[2].shape[1] == dense[2].shape[1]  # the output of layer 1
    assert states[3].shape[1] < dense[3].shape[1]


def test_each_layer_sees_and_caches_what_its_merge_left(model):
    compress(model, CASCADE)
    cache = model(**batch(MIXED[0]), use_cache=True).past_key_values
    report = model.compression.report
    # 20 and 2 x 16 visual tokens -> 9 and 2 x 8 -> 5 and 2 x 4, beside 7 of text.
    assert report.layers == (52, 25, 13)
    assert [layer.keys.shape[2] for layer in cache.layers] == [59, 32, 20]
    assert report.retention == (52 + 25 + 13) / (3 * 52)
    assert (report.prompt_tokens_before, report.prompt_tokens_after) == (59, 20)
    assert report.kv_bytes == (59 + 32 + 20) * 2 * 64 * 4  # keys and values, one head of 64, fp32
    assert report.to_dict()["kv_bytes"] == report.kv_bytes


def test_rotary_tables_are_as_wide_as_a_head_whatever_k_is(model):
    tables = []
    compress(model, CASCADE)
    model.model.language_model.rotary_emb.register_forward_hook(lambda *args: tables.append(args[-1]))
    logits(model, batch(MIXED[0]))
    assert [[part.untyped_storage().nbytes() for part in table] for table in tables] == [
        [length * 64 * 4] * 2 for length in (59, 32, 20)
    ]


@pytest.mark.parametrize("members", ["nearest", "nearest_first", "spread", "last"])
def test_row_sets_merge(model, members):
    """A token of the second merge holds positions that tokens of the first held: of several of its members, except with
    the released rule ("last"), which takes the last member's only."""
    compress(model, dataclasses.replace(CASCADE, members=members, ratio=0.3))
    seen = record_rows(model)
    logits(model, batch(Prompt([1, ("image", (1, 6, 8)), 1])))
    first, second, third = (rows[:, 0] for rows in seen)
    assert (first.shape, second.shape, third.shape) == ((3, 50), (12, 1 + 15 + 1), (12, 1 + 5 + 1))

    def triples(rows, place):
        return [tuple(rows.view(3, 4, -1)[:, j, place].tolist()) for j in range(4)]

    before = {t: place for place in range(1, 16) for t in triples(second, place)}
    assert len(before) > 30
    mixed = 0
    for place in range(1, 6):
        held = triples(third, place)
        assert set(held) <= set(before)
        mixed += len({before[t] for t in held}) > 1
    assert mixed == 0 if members == "last" else mixed >= 3


def test_ratios_are_kept_side_by_side(model):
    """Each frame has the tokens of both ratios, and the second ones are merged from the first ones."""
    compress(model, PRESETS["two ratios"])
    seen = record_rows(model)
    logits(model, batch(Prompt([1, ("video", (2, 4, 5)), 1])))
    report = model.compression.report
    assert report.tokens_after == 2 * (12 + 4)
    rows = seen[0][:, 0].view(3, 4, -1)
    times = rows[0, 0, 1:-1].tolist()
    assert times == [1] * 16 + [3] * 16
    first = {tuple(rows[:, j, p].tolist()) for j in range(4) for p in range(1, 13)}
    assert {tuple(rows[:, j, p].tolist()) for j in range(4) for p in range(13, 17)} <= first


def test_events_hold_frames_that_are_alike(model):
    """Frames 0, 2, 3 show one picture and frames 1, 4 another: two events, in order of their first frames."""
    compress(model, CompressionConfig.preset("ppe", k=4, ratio=1.0, temporal_ratio=0.4, members="spread"))
    seen = record_rows(model)
    video = Prompt([1, ("video", (5, 2, 3)), 1])
    a, b = video.pixels["video"][0][:24].clone(), video.pixels["video"][0][24:48].clone()
    video.pixels["video"][0] = torch.cat([a, b, a, a, b])

    def equal(tower, args, output):
        """Copy features, because on some machines their last bit depends on the place of their row in a product."""
        output.pooler_output.copy_(output.pooler_output.view(5, 6, -1)[[0, 1, 0, 0, 1]].flatten(0, 1))

    model.model.visual.register_forward_hook(equal)
    logits(model, batch(video))
    assert model.compression.report.tokens_after == 2 * 6
    rows = seen[0][:, 0].view(3, 4, -1)
    times = [set(rows[0, :, p].tolist()) for p in range(1, 13)]
    assert [{1, 5, 7}] * 6 + [{3, 9}] * 6 == times
    # Equal tokens merge: each token of an event represents one place in all frames of the event.
    assert all(len({tuple(rows[1:, j, p].tolist()) for j in range(4)}) == 1 for p in range(1, 13))


def test_events_follow_each_other_by_their_first_frames(model, monkeypatch):
    """Frame 0 belongs to the event whose centre is frame 3; the event of frame 1 still comes after that."""
    compress(model, CompressionConfig.preset("keep_one", ratio=1.0, temporal_ratio=0.4))
    seen = record_rows(model)
    video = Prompt([1, ("video", (9, 1, 1)), 1])
    a, b, c, d = torch.randn(4, 4, video.pixels["video"][0].shape[1], generator=torch.Generator().manual_seed(5))
    video.pixels["video"][0] = torch.cat([a + 0.02 * b, b, b, a, a, c, c, d, d])
    grouped, group = [], DPCKNN.group
    monkeypatch.setattr(DPCKNN, "group", lambda *args: grouped.append(group(*args)) or grouped[-1])
    logits(model, batch(video))
    frames = grouped[1]  # the second grouping is of frames
    assert frames.labels[0].tolist() == [1, 0, 0, 1, 1, 2, 2, 3, 3]  # by the place of their centres
    assert frames.representatives[0].tolist() == [1, 3, 5, 7]
    # One token per event, from one of its frames.
    times = [(time - 1) // 2 for time in seen[0][0, 0].tolist()[1:-1]]
    assert [frames.labels[0, time].item() for time in times] == [1, 0, 2, 3]


def test_keep_one_stays_where_its_representative_is(model, monkeypatch):
    """At every stage, the single position of a merged token is that of its group's centre."""
    chosen = []
    compress(model, PRESETS["keep_one"])
    compress(model, dataclasses.replace(PRESETS["keep_one"], layers=(1, 2)))
    seen = record_rows(model)
    group = DPCKNN.group

    def spy(*args):
        grouping = group(*args)
        chosen.append(grouping.representatives[0].tolist())
        return grouping

    monkeypatch.setattr(DPCKNN, "group", spy)
    logits(model, batch(Prompt([1, ("image", (1, 4, 5)), 1])))
    places = list(range(20))
    for rows, representatives in zip(seen[1:], chosen):
        places = [places[i] for i in representatives]
        expected = [(1, 1 + place // 5, 1 + place % 5) for place in places]
        assert [tuple(row) for row in rows[:, 0, 1:-1].T.tolist()] == expected


def test_the_released_rule_keeps_a_share_of_each_event(model):
    config = CompressionConfig.preset("ppe", k=4, temporal_ratio=0.4, event_ratio=0.45)
    compress(model, config)
    logits(model, batch(Prompt([1, ("video", (5, 4, 5)), 2, ("image", (1, 2, 2)), 1])))
    report = model.compression.report
    assert [span.after for span in report.spans] == [21, 2] == config.tokens_kept([(5, 8, 10), (1, 4, 4)])


@pytest.mark.parametrize("config", STAGED.values(), ids=STAGED)
def test_attention_implementations_agree(config):
    model = random_model()
    compress(model, config)
    expected, true = kept_logits(model, *MIXED), exact(model, lambda: kept_logits(model, *MIXED))
    model.set_attn_implementation("eager")
    assert_rounds_alike(kept_logits(model, *MIXED), expected, true)


@pytest.mark.parametrize("config", PRESET_CASES)
@pytest.mark.parametrize("implementation", [pytest.param("eager", marks=pytest.mark.slow), "sdpa"])
@pytest.mark.parametrize(
    "prompts",
    [[0], pytest.param([0, 0], marks=pytest.mark.slow), pytest.param([0, 1, 2], marks=pytest.mark.slow), [1, 0]],
    ids=str,
)  # without padding, and with padding in the first sample or in others
def test_a_static_cache_decodes_as_a_dynamic_one(config, implementation, prompts):
    model = random_model()
    model.set_attn_implementation(implementation)
    compress(model, config)
    inputs, settings = batch(*(MIXED[n] for n in prompts)), {"max_new_tokens": 5, **GREEDY}
    expected = model.generate(**inputs, **settings)
    assert torch.equal(model.generate(**inputs, **settings, cache_implementation="static"), expected)
    # The same cache again, which transformers empties and refills.
    assert torch.equal(model.generate(**inputs, **settings, cache_implementation="static"), expected)


def test_a_static_cache_need_be_no_longer_than_what_is_kept(model):
    compress(model, PPE)
    inputs = batch(MIXED[0])
    sizes = []

    def decode(cache):
        logits(model, inputs | {"past_key_values": cache})
        sizes.append(model.compression.report.kv_bytes)
        steps = ({"input_ids": torch.tensor([[token]]), "past_key_values": cache} for token in (5, 6, 7))
        return [logits(model, step) for step in steps]

    dynamic, true = decode(DynamicCache()), exact(model, lambda: decode(DynamicCache()))
    static = decode(StaticCache(config=model.config.text_config, max_cache_len=32 + 3))
    assert sizes[0] == 3 * 32 * 2 * 64 * 4
    assert_rounds_alike(static, dynamic, true)


@pytest.mark.parametrize("config", PRESET_CASES)
@pytest.mark.parametrize("all_images", [True, False])
def test_a_second_turn_with_more_images(model, config, all_images):
    """A cache holds the first turn. All images of the conversation may be given, or only the new ones.

    The first turn's tokens do not see the second's, so a fresh run over both gives the same.
    """
    compress(model, config)
    settings = {"max_new_tokens": 3, **GREEDY}
    first = [
        Prompt([2, ("image", (1, 3, 4)), 2], seed=1),
        Prompt([2, ("image", (1, 2, 2)), ("video", (2, 2, 3)), 3], seed=2),
    ]
    more = [
        Prompt([1, ("image", (1, 4, 4)), 2], seed=3),
        Prompt([1, ("image", (1, 2, 3)), 1, ("image", (1, 1, 1))], seed=4),
    ]
    start = batch(*first)
    out = model.generate(**start, **settings, return_dict_in_generate=True)
    new = batch(*more, side="right")
    ids = torch.cat([out.sequences, new["input_ids"]], dim=1)
    mask = torch.cat([start["attention_mask"], torch.ones(2, 3, dtype=torch.long), new["attention_mask"]], dim=1)
    # Sample by sample: the first turn's images, then the second's.
    joined = [
        dataclasses.replace(a, parts=[p for p in (*a.parts, *b.parts) if not isinstance(p, int)])
        for a, b in zip(first, more)
    ]
    for both, a, b in zip(joined, first, more):
        both.pixels = {kind: a.pixels[kind] + b.pixels[kind] for kind in a.pixels}
    whole = {name: value for name, value in batch(*joined).items() if name not in ("input_ids", "attention_mask")}
    given = whole if all_images else {n: v for n, v in new.items() if n not in ("input_ids", "attention_mask")}
    inputs = {"input_ids": ids, "attention_mask": mask}
    second = model.generate(**inputs, **given, past_key_values=out.past_key_values, **settings)
    assert model.compression.report.kv_bytes > 0
    fresh = model.generate(**inputs, **whole, **settings)
    assert torch.equal(second, fresh)


@pytest.mark.parametrize("config", STAGED.values(), ids=STAGED)
def test_labels_of_a_cascade_follow_their_tokens(model, config):
    check_labels(compress(model, config))


@pytest.mark.parametrize("name", ["events", "two ratios", "cascade", "both", "chatunivi cascade"])
@pytest.mark.ci
def test_gradients_agree_with_finite_differences(name):
    """This covers merges. transformers' norms and vision rope stay in fp32 even in an fp64 model."""
    model = compress(random_model().double(), PRESETS[name])
    inputs = batch(*MIXED[:1])
    labels = torch.where(inputs["input_ids"] < IMAGE_ID, inputs["input_ids"], -100)
    model(**inputs, labels=labels).loss.backward()
    for layer in ("visual.merger.mlp.2", "language_model.layers.0.mlp.up_proj", "language_model.layers.1.mlp.up_proj"):
        weight = model.get_parameter(f"model.{layer}.weight")
        slope = weight.grad.norm().item()  # along the gradient itself
        check_slope(model, inputs, labels, weight, weight.grad / slope, slope)


def test_attention_weights_have_each_stages_length(model):
    model.set_attn_implementation("eager")
    compress(model, CASCADE)
    out = model(**batch(MIXED[0]), output_attentions=True)
    assert [tuple(weights.shape) for weights in out.attentions] == [(1, 2, n, n) for n in (59, 32, 20)]


def test_a_long_video_and_a_large_image(model):
    """64 frames, and an image of 4,096 tokens, each in a batch with a sample of text."""
    compress(model, dataclasses.replace(PPE, layers=(1,)))
    for part, kept in ((("video", (64, 2, 3)), 64 * 3), (("image", (1, 64, 64)), 1844)):
        inputs = batch(Prompt([2, part, 2]), Prompt([3], seed=1))
        assert torch.isfinite(logits(model, inputs)[:, -1]).all()
        assert model.compression.report.tokens_after == kept


def test_labels_of_a_second_turn_with_an_image(model):
    """In training on a cached prefix, labels belong to the new columns."""
    compress(model, CASCADE)
    cache = model(**batch(MIXED[0]), use_cache=True).past_key_values
    new = batch(Prompt([3, ("image", (1, 4, 4)), 4], seed=9))
    labels = torch.where(new["input_ids"] < IMAGE_ID, new["input_ids"], -100)
    new["attention_mask"] = torch.cat([batch(MIXED[0])["attention_mask"], new["attention_mask"]], dim=1)
    out = model(**new, labels=labels, past_key_values=cache)
    assert out.labels.shape == out.logits.shape[:2]
    assert out.labels[out.labels >= 0].tolist() == labels[labels >= 0].tolist()


def test_sampling_repeats_with_its_seed(model):
    compress(model, CASCADE)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(model.generate(**batch(*MIXED), max_new_tokens=4, do_sample=True, num_return_sequences=2))
    assert torch.equal(*runs)
    assert len(runs[0]) == 6


def test_only_a_staged_model_replaces_its_decoders_forward(model):
    """Without stages, and after restore(), the decoder has its own forward again."""
    compress(model, CASCADE)
    assert "forward" in vars(model.model.language_model)
    compress(model, PPE)
    assert "forward" not in vars(model.model.language_model)
    compress(model, CASCADE)
    restore(model)
    assert "forward" not in vars(model.model.language_model)
