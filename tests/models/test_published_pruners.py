"""FastV and DART as published: they prune only the first image of a prompt, and the layer before FastV's cut attends to
later tokens.

That layer rounds its attention weights to fp16. Sums taken in another order may round a few of thousands of weights to
the other neighbour: such rows differ by 2**-11 of a value, and all others by roundings of fp32.
"""

import copy

import pytest
import torch
from naive_ipcv import given
from prompts import GREEDY, logits
from support import Prompt, random_model
from tolerances import assert_equal, assert_near, eps

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.errors import InputError
from ppe_npu.methods import DART, FastV, SparseVLM
from ppe_npu.models.fused import fuse

AHEAD = FastV(0.5, layer=2, released=True)
PUBLISHED = {
    "fastv": AHEAD,
    "causal": FastV(0.5, layer=2, released=True, causal=True),
    "dart": DART(0.5, layer=2, pivot_image=2, pivot_text=2, released=True),
}
PROMPTS = [
    Prompt([2, ("image", (1, 4, 5)), 3, ("image", (1, 2, 3)), 4], seed=1),
    Prompt([1], seed=2),
    Prompt([1, ("video", (2, 3, 4)), 2, ("image", (1, 3, 3)), ("image", (1, 1, 2)), 5], seed=3),
]
LAYER = 1  # the last layer before the cut


@pytest.fixture
def model():
    return random_model(family="qwen2_vl")


def config(*steps):
    return CompressionConfig(steps=steps, positions="keep_one")


def heard_by_definition(layer, rows, table, half):
    """[L, C] output of the layer for a prompt [L, C] without padding, computed one head and token at a time."""
    own, normed = layer.self_attn, layer.input_layernorm(rows)
    query, key, value = (
        part(normed).unflatten(-1, (-1, own.head_dim)).transpose(0, 1) for part in (own.q_proj, own.k_proj, own.v_proj)
    )
    cos, sin = (part.reshape(-1, *part.shape[-2:])[0] for part in table)
    heads = []
    for head, queries in enumerate(query):
        kept = head * len(key) // len(query)
        queries, keys = (
            part * cos + torch.cat([-part[:, own.head_dim // 2 :], part[:, : own.head_dim // 2]], dim=1) * sin
            for part in (queries, key[kept])
        )
        scores = torch.stack([keys @ one for one in queries]) / own.head_dim**0.5
        weights = scores.half().float().softmax(-1).half().float() if half else scores.softmax(-1)
        heads.append(weights @ value[kept])
    rows = rows + own.o_proj(torch.cat(heads, dim=1))
    return rows + layer.mlp(layer.post_attention_layernorm(rows))


def assert_alike(found, expected):
    """Compare within fp16 rounding: scores and weights may go to another neighbour, 2**12 fp32 roundings each time."""
    assert_near(found, expected, roundings=4 * 2**12)


@torch.no_grad()
def test_the_layer_before_hears_what_comes_later_in_fp16(model):
    layer, seen = model.model.language_model.layers[LAYER], []
    compress(model, config(AHEAD))
    layer.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs["position_embeddings"]), with_kwargs=True)
    states = model(**given("qwen2_vl", PROMPTS[0]), output_hidden_states=True).hidden_states
    before, after = (states[number][0] for number in (LAYER, LAYER + 1))
    alike = {}
    for half in (True, False):
        by_definition = heard_by_definition(layer, before, seen[0], half)
        assert_alike(after, by_definition)
        apart = (after - by_definition).abs().amax(1)
        alike[half] = (apart < 64 * eps(after) * by_definition.abs().max()).float().mean()
    assert alike[True] > 3 * alike[False]


@pytest.mark.parametrize(
    ("name", "kind"), [*(("fastv", kind) for kind in ("sdpa", "eager", "fused")), ("dart", "sdpa")]
)
def test_a_prompt_gives_what_it_gives_alone(model, name, kind):
    """This holds with each form of padding: a mask of bools or of numbers, or segments."""
    compress(model, config(PUBLISHED[name]))
    if kind == "eager":
        model.set_attn_implementation("eager")
    if kind == "fused":
        fuse(model)
    together = logits(model, given("qwen2_vl", *PROMPTS))
    for row, prompt in zip(together, PROMPTS):
        own = logits(model, given("qwen2_vl", prompt))[0]
        assert_alike(row[-len(own) :], own)


@pytest.mark.parametrize("name", PUBLISHED)
def test_of_each_prompt_the_first_image_alone_is_pruned(model, name):
    compress(model, config(PUBLISHED[name]))
    logits(model, given("qwen2_vl", *PROMPTS))
    kept = [(span.before, span.after) for span in model.compression.report.spans]
    first, video = (PUBLISHED[name].kept(tokens) for tokens in (20, 24))
    assert kept == [(20, first), (6, 6), (24, video), (9, 9), (2, 2)]


def test_darts_text_is_all_but_the_first_image_and_other_methods_is_text(model, monkeypatch):
    prompt, shown = PROMPTS[2], {}
    for method in (DART, SparseVLM):
        group = method.group
        monkeypatch.setattr(
            method, "group", lambda self, view, group=group: shown.update({self.name: view}) or group(self, view)
        )
    for name, later in (("dart", SparseVLM(0.5, layer=2)), ("sparsevlm", PUBLISHED["dart"])):
        first = PUBLISHED["dart"] if name == "dart" else SparseVLM(0.5, layer=2)
        compress(model, config(first, later))
        with torch.no_grad():
            states = model(**given("qwen2_vl", prompt), output_hidden_states=True).hidden_states[2][0]
        view, visual = shown[name], torch.tensor([token in (90, 91) for token in prompt.ids])
        places = torch.arange(len(states))
        if name == "dart":
            text = ~visual | (places >= 1 + 24)
            assert_equal(view.text[0], states[text])
            assert view.text_valid is None or view.text_valid.all()
            assert view.text_after[0].tolist() == (places[text] > 1).tolist()
        else:
            assert_equal(view.text[0][view.text_valid[0]], states[~visual])


def test_it_generates_goes_on_and_leaves_nothing(model):
    inputs, text = given("qwen2_vl", *PROMPTS), model.model.language_model
    before = [set(vars(layer)) for layer in text.layers]
    plain = logits(compress(model, CompressionConfig.preset("dense")), inputs)
    compress(model, config(AHEAD))
    out = logits(model, inputs)
    ids = model.generate(**inputs, max_new_tokens=3, **GREEDY)
    first = out[:, -1].clone()
    first[:, GREEDY["suppress_tokens"]] = -torch.inf
    assert ids[:, inputs["input_ids"].shape[1]].tolist() == first.argmax(-1).tolist()
    fixed = model.generate(**inputs, max_new_tokens=3, cache_implementation="static", disable_compile=True, **GREEDY)
    assert_equal(fixed, ids)
    twin, shadow = copy.deepcopy(model), copy.copy(model)
    restore(shadow)
    assert_equal(logits(model, inputs), out)
    restore(model)
    assert [set(vars(layer)) for layer in text.layers] == before
    assert_equal(logits(twin, inputs), out)
    assert_equal(logits(compress(model, CompressionConfig.preset("dense")), inputs), plain)


def test_what_cannot_be_is_refused_by_name(model):
    compress(model, config(AHEAD))
    inputs = given("qwen2_vl", PROMPTS[0])
    with pytest.raises(InputError, match=r"output_attentions=True with fastv's released=true"):
        model(**inputs, output_attentions=True)
    with pytest.raises(InputError, match=r"packed with fastv released=true"):
        model(**inputs, packed=True)
    other = random_model(family="qwen3_vl")
    with pytest.raises(InputError, match=r"fastv with released=true .* not for Qwen3VLTextDecoderLayer: add causal"):
        compress(other, config(AHEAD))
    assert not hasattr(other, "compression")
    compress(other, config(PUBLISHED["causal"]))
    assert torch.isfinite(logits(other, given("qwen3_vl", PROMPTS[0]))).all()
