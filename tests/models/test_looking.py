"""The parts of a decoder layer and of the text in a view, against the inputs of transformers' own attention."""

import pytest
import torch
from support import FAMILIES, IMAGE_ID, VIDEO_ID, Prompt, batch, family_of, random_model
from tolerances import assert_near, assert_rounds_alike, exact
from toys import Looker
from transformers import AttentionInterface, DynamicCache, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ppe_npu import CompressionConfig, compress
from ppe_npu.errors import InputError
from ppe_npu.methods import DPCKNN
from ppe_npu.models.fused import fuse

pytestmark = pytest.mark.half

ATTENTION, HIDDEN = {}, {}  # by layer: the last (queries, keys) of its attention, and the last input of the layer


def watched(module, query, key, value, attention_mask, **kwargs):
    ATTENTION[module.layer_idx] = (query, key)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register("watched", watched)

family = family_of(FAMILIES)


@pytest.fixture
def model(family):
    """A model in fp64 whose attention and layers are watched."""
    model = random_model(family=family).double()
    text = model.model.language_model
    text.config._attn_implementation = "watched"
    for number, layer in enumerate(text.layers):
        layer.register_forward_pre_hook(lambda _, args, number=number: HIDDEN.update({number: args[0]}))
    return model


def inputs_of(family, *prompts, **kwargs):
    inputs = batch(*prompts, **kwargs)
    return {name: value for name, value in inputs.items() if family == "qwen2_5_vl" or name != "second_per_grid_ts"}


def prompts_of(family):
    video = ("frames", (3, 2, 5)) if family == "qwen3_vl" else ("video", (3, 2, 5))
    return [
        Prompt([2, ("image", (1, 4, 5)), 3, video, 2], seed=1),
        Prompt([5], seed=2),
        Prompt([1, ("image", (1, 1, 1)), 2, ("image", (1, 3, 3)), 4], seed=3),
    ]


def run(model, inputs, looker=None, **kwargs):
    """The output of one pass and the views of its looker, whose tokens were merged once before and have PPE's rows."""
    if looker is not None:
        compress(model, CompressionConfig(steps=[DPCKNN(0.6), looker], k=4))
    Looker.views.clear()
    with torch.no_grad():
        return model(**inputs, **kwargs), list(Looker.views)


def naive_row(layer, sample, real):
    """[L] attention of the last real token, computed head by head and averaged over heads."""
    query, key = (part[sample] for part in ATTENTION[layer])
    heads, groups, row = len(query), len(query) // len(key), torch.zeros(len(real), dtype=torch.float64)
    last = int(real.nonzero().max()) - len(real)
    for head in range(heads):
        seen = real.nonzero().flatten().tolist()
        scores = torch.stack([query[head, last] @ key[head // groups, place] for place in seen])
        row[seen] += (scores * query.shape[-1] ** -0.5).softmax(0) / heads
    return row


def check(views, layer, real, offset=0):
    """Compare every field of every cell with the attention's own tensors, and return the number of cells.

    Args:
        layer: the layer that was looked at. real: [B, past and L] bool. offset: from it to the layer that is entered.
    """
    hidden = HIDDEN[layer + offset]
    past = real.shape[1] - hidden.shape[1]
    visual = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    cells = []
    for view in views:
        for cell, present in enumerate(view.present):
            places = [(hidden == token).all(-1).nonzero().tolist()[0] for token in view.tokens[cell, present]]
            ((sample, *_),) = {(sample,) for sample, _ in places}
            at = [place for _, place in places]
            visual[sample, at] = True
            cells.append((view, cell, present, sample, at))
    for view, cell, present, sample, at in cells:
        query, key = (part[sample].transpose(0, 1)[-hidden.shape[1] :] for part in ATTENTION[layer])
        text = (real[sample, past:] & ~visual[sample]).nonzero().flatten().tolist()
        valid = torch.ones(len(text), dtype=torch.bool) if view.text_valid is None else view.text_valid[cell]
        # The rotary table and norms are rounded to fp32; scores of 64 channels and the softmax are not.
        for name, own in (("queries", query), ("keys", key)):
            assert_near(getattr(view, f"layer_{name}")[cell, present], own[at], roundings=4)
            assert_near(getattr(view, f"text_{name}")[cell, valid], own[text], roundings=4)
        assert_near(view.layer_row[cell, present], naive_row(layer, sample, real[sample])[past:][at], roundings=2**8)
        assert torch.equal(view.text[cell, valid], hidden[sample, text])
        assert view.text_after[cell, valid].tolist() == [place > at[0] for place in text]
    return len(cells)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("before", [False, True], ids=["next", "before"])
def test_what_is_shown_is_what_the_layer_itself_computes(model, family, before, side):
    """The looker keeps all tokens (ratio 1.0), so the layer gets the very tokens that were looked at."""
    inputs = inputs_of(family, *prompts_of(family), side=side, pad_to=90)
    output, views = run(model, inputs, Looker(layer=2, before=before))
    real = output.past_key_values.ppe_state.masks[-1]
    cells = 1 + 3 + 1 + 1
    assert check(views, 2 - before, real, offset=int(before)) == cells
    merged = [view.sizes[view.present] for view in views]
    assert (
        sum(int(sizes.sum()) for sizes in merged)
        == torch.isin(inputs["input_ids"], torch.tensor([IMAGE_ID, VIDEO_ID])).sum()
    )
    assert all((sizes > 1).any() for sizes in merged if len(sizes) > 1)


@pytest.mark.parametrize("packed", [False, True])
def test_in_training_a_prompt_ends_where_its_answer_begins(family, packed):
    """Views equal those in generation, in which there is no answer yet."""
    first, text, last = prompts_of(family)
    answers = [Prompt([9], seed=5).ids, Prompt([4], seed=6).ids, Prompt([6], seed=7).ids]
    told = [Prompt(prompt.parts, prompt.seed) for prompt in (first, text, last)]
    for prompt, answer in zip(told, answers):
        prompt.ids += answer
    model, looker = fuse(random_model(family=family)), Looker(layer=(1, 2), before=True)
    _, expected = run(model, inputs_of(family, first, text, last), looker)
    true = exact(model, lambda: run(model, inputs_of(family, first, text, last))[1])
    inputs = inputs_of(family, *told, side="right")
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, prompt, answer in zip(labels, told, answers):
        row[len(prompt.ids) - len(answer) : len(prompt.ids)] = torch.tensor(answer)
    _, views = run(model, inputs, labels=labels, packed=packed)
    assert len(views) == len(expected)
    for mine, view, precise in zip(views, expected, true):
        for name in ("layer_row", "text", "text_keys", "text_queries"):
            own = view.present if name == "layer_row" else view.text_valid
            shown = [getattr(each, name)[own if own is not None else slice(None)] for each in (mine, view, precise)]
            assert_rounds_alike(*shown)
        assert torch.equal(mine.text_after, view.text_after)


def test_of_several_turns_the_first_answer_after_all_pictures_ends_the_prompt():
    model = random_model()
    compress(model, CompressionConfig(steps=[Looker(looks=("text",))], positions="keep_one"))
    prompt = Prompt([3, ("image", (1, 2, 2)), 2, 2, ("image", (1, 1, 3)), 1, 4, 2, 3])
    inputs, answers = batch(prompt), {9: 11, 15: 19, 21: 24}  # beginning and end of the answers of three turns
    labels = torch.full_like(inputs["input_ids"], -100)
    for start, end in answers.items():
        labels[0, start:end] = inputs["input_ids"][0, start:end]
    for shown in (labels, labels.masked_fill(torch.arange(24) < 15, -100)):
        _, views = run(model, inputs, labels=shown)
        for view in views:
            assert view.text.shape[1] == 3 + 2 + 2 + 1
    assert run(model, inputs)[1][0].text.shape[1] == 24 - 4 - 3
    assert run(model, inputs, labels=torch.full_like(labels, -100))[1][0].text.shape[1] == 24 - 4 - 3


def test_before_rotary_and_after_the_norm_of_heads(model, family):
    inputs = inputs_of(family, *prompts_of(family))
    attention, plain = model.model.language_model.layers[1].self_attn, {}
    for name in ("q", "k"):
        module = getattr(attention, f"{name}_norm" if family == "qwen3_vl" else f"{name}_proj")
        module.register_forward_hook(lambda _, args, out, name=name: plain.update({name: out}))
    _, views = run(model, inputs, Looker(layer=1, looks=("layer_plain",)))
    places = HIDDEN[1].flatten(0, 1)
    for view in views:
        assert view.layer_keys is view.layer_row is view.text is view.text_keys is view.sizes is None
        for name, mine in (("q", view.layer_plain_queries), ("k", view.layer_plain_keys)):
            own = plain[name].reshape(len(places), -1, 64)
            for token, heads in zip(view.tokens[view.present], mine[view.present]):
                assert torch.equal(heads, own[(places == token).all(-1).nonzero()[0, 0]])


@pytest.mark.parametrize("before", [False, True], ids=["next", "before"])
def test_a_second_turn_sees_the_first(model, family, before):
    first, second = prompts_of(family)[::2]
    config = CompressionConfig(steps=[DPCKNN(0.6), Looker(layer=2, before=before)], k=4)
    compress(model, config)
    cache = DynamicCache(config=model.config.text_config)
    run(model, inputs_of(family, first, second), past_key_values=cache)
    again = inputs_of(family, second, Prompt([4], seed=8), pad_to=20)
    output, views = run(model, again, past_key_values=cache)
    real = output.past_key_values.ppe_state.masks[-1]
    assert real.shape[1] > HIDDEN[2].shape[1] > 10
    assert check(views, 2 - before, real, offset=int(before)) == 2
    fixed = StaticCache(config=model.config.text_config, max_cache_len=120)
    run(model, inputs_of(family, first, second), past_key_values=fixed)
    for mine, view in zip(run(model, again, past_key_values=fixed)[1], views):
        assert_near(mine.layer_row, view.layer_row, roundings=2**8)


@pytest.mark.parametrize("before", [False, True], ids=["next", "before"])
def test_packed_padded_and_fused_batches_are_shown_alike(family, before):
    prompts, looker = prompts_of(family), Looker(layer=2, before=before)
    plain = random_model(family=family)
    _, expected = run(plain, inputs_of(family, *prompts), looker)
    exact_views = run(plain.double(), inputs_of(family, *prompts))[1]
    plain.float()
    fused = fuse(random_model(family=family))
    for options in ({}, {"packed": True}):
        _, views = run(fused, inputs_of(family, *prompts), looker, **options)
        for name in ("tokens", "layer_queries", "layer_keys", "layer_row", "text_queries", "text_keys", "text"):
            # All views are compared together: a single token's error in fp32 may be almost zero by chance.
            found, usual, precise = (
                [getattr(view, name)[slice(None) if name.startswith("text") else view.present] for view in which]
                for which in (views, expected, exact_views)
            )
            assert_rounds_alike(found, usual, precise)
        for mine, view in zip(views, expected, strict=True):
            for name in ("sizes", "text_after"):
                assert torch.equal(getattr(mine, name), getattr(view, name))


def test_a_given_4d_mask_hides_what_it_hides(model, family):
    inputs = inputs_of(family, prompts_of(family)[2])
    length = inputs["input_ids"].shape[1]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    mask[:, :, -1, 4:9] = False  # the 3 x 3 image is in columns 4 to 12
    inputs["attention_mask"] = mask
    compress(model, CompressionConfig(steps=[Looker(layer=1)], positions="keep_one"))
    for given in (mask, torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)):
        _, views = run(model, inputs | {"attention_mask": given})
        view = max(views, key=lambda view: view.tokens.shape[1])
        row = view.layer_row[view.present.all(1)][0]
        assert (row[:5] == 0).all()
        assert (row[5:] > 0).all()


def test_nobody_pays_for_what_nobody_looks_at(family):
    """Each projection that some method needs runs one more time, and no other does."""
    model, inputs = random_model(family=family), inputs_of(family, *prompts_of(family))
    calls = []
    for number, layer in enumerate(model.model.language_model.layers):
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(layer.self_attn, name).register_forward_hook(lambda *_, key=(number, name): calls.append(key))

    def extra(*steps):
        compress(model, CompressionConfig(steps=list(steps), k=4))
        calls.clear()
        run(model, inputs)
        layers = [(number, f"{name}_proj") for number in range(3) for name in "qkv"]
        for key in layers:
            calls.remove(key)
        return sorted(calls)

    assert extra(DPCKNN(0.5), DPCKNN(0.5, layer=1)) == []
    assert extra(Looker(looks=("text", "sizes", "places"), layer=1)) == []
    assert extra(Looker(looks=("layer_keys",), layer=1)) == [(1, "k_proj")]
    assert extra(Looker(looks=("layer_queries",), layer=2)) == [(2, "q_proj")]
    both = [Looker(looks=("layer_keys",), layer=2), Looker(looks=("layer_row", "layer_keys"), layer=2)]
    assert extra(*both) == [(2, "k_proj"), (2, "q_proj")]
    assert extra(Looker(looks=("layer_text",), layer=2)) == [(2, "k_proj"), (2, "q_proj")]
    assert extra(Looker(looks=("layer_row",), layer=(1, 2), before=True)) == [
        *((number, f"{name}_proj") for number in (0, 1) for name in "kq")
    ]


def test_text_before_the_decoder_is_its_embeddings(family):
    model, prompts = random_model(family=family), prompts_of(family)
    inputs = inputs_of(family, *prompts, side="right")
    compress(model, CompressionConfig(steps=[Looker(looks=("text",))], positions="keep_one"))
    _, views = run(model, inputs)
    embed, shown = model.get_input_embeddings(), []
    texts = [[number for number in prompt.ids if number not in (IMAGE_ID, VIDEO_ID)] for prompt in prompts]
    for view in views:
        for cell in range(len(view.tokens)):
            valid = view.text_after[cell] >= 0 if view.text_valid is None else view.text_valid[cell]
            own = view.text[cell, valid]
            (sample,) = [n for n, text in enumerate(texts) if torch.equal(embed(torch.tensor(text)), own)]
            after = view.text_after[cell, valid].tolist()
            assert after == sorted(after)
            shown.append((sample, sum(after)))
    frames = [(0, 6), (0, 4), (0, 2)] if family == "qwen3_vl" else [(0, 2)] * 3
    assert sorted(shown) == sorted([(0, 11 if family == "qwen3_vl" else 5), *frames, (2, 6), (2, 4)])


def test_what_cannot_be_looked_at_is_refused():
    model = random_model()
    with pytest.raises(InputError, match=r"toy_looker looks at layer_keys.*: give a layer"):
        compress(model, CompressionConfig(steps=[Looker(looks=("layer_keys",))], positions="keep_one"))
    with pytest.raises(InputError, match=r"toy_looker with layer=0: it looks at the layer before that; give 1 or more"):
        Looker(layer=0, before=True)
