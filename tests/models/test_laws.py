"""Laws for all prompts and settings, on random ones drawn by hypothesis."""

import torch
from draws import many
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import CONTROLS
from support import Prompt, batch, random_model
from tolerances import assert_rounds_alike, exact

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.config import MEMBERS
from ppe_npu.engine.spans import IMAGE, VIDEO
from ppe_npu.models.fused import fuse

MODEL, FUSED = random_model(), fuse(random_model())  # transformers' attention with masks, ours with segments
SIDES = st.sampled_from(["left", "right"])
GRIDS = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))


@st.composite
def spans(draw):
    kind = draw(st.sampled_from([IMAGE, VIDEO]))
    t, h, w = draw(GRIDS)
    return kind, (1 if kind == IMAGE else t, h, w)


@st.composite
def prompts(draw):
    parts = draw(st.lists(st.one_of(st.integers(1, 5), spans()), max_size=5))
    return Prompt([*parts, draw(st.integers(1, 3))], seed=draw(st.integers(0, 99)))


# Compression before the LLM, in a cascade, or both; of single frames, or of events.
STAGES = st.sampled_from(
    [
        {},
        {"temporal_ratio": 0.5},
        {"temporal_ratio": 0.4, "event_ratio": 0.6},
        {"layers": [1]},
        {"layers": [0, 2]},
        {"layers": [0, 1, 2], "before_llm": True},
        {"layers": [2], "before_llm": True, "temporal_ratio": 0.7},
    ]
)


@st.composite
def configs(draw, ratio=None):
    name = draw(st.sampled_from(["chatunivi", "keep_one", "ppe"]))
    method = draw(st.sampled_from(["dpc_knn", "dpc_knn", *CONTROLS]))
    overrides = {
        "method": method,
        "ratio": ratio or draw(st.sampled_from([0.1, 0.25, 0.45, 0.8, 1.0])),
        "order": "raster" if method in CONTROLS else draw(st.sampled_from(["raster", "score"])),
        **draw(STAGES),
    }
    if overrides.get("temporal_ratio") is None and ratio is None and draw(st.booleans()):
        overrides["ratio"] = [min(overrides["ratio"], 0.6), draw(st.sampled_from([0.3, 0.5]))]
    if name == "ppe":
        overrides |= {
            "k": draw(st.sampled_from([1, 2, 4])),
            "members": draw(st.sampled_from(MEMBERS)),
        }
    return CompressionConfig.preset(name, **overrides)


def run(config, samples, side="left", pad_to=0, model=MODEL):
    """The logits of each sample, without padding."""
    model = compress(model, config)
    with torch.no_grad():
        logits = model(**batch(*samples, side=side, pad_to=pad_to)).logits
    lengths = [len(p.ids) for p in samples]
    for span in model.compression.report.spans:
        lengths[span.sample] -= span.before - span.after
    padded_left = side == "left" or len({*[len(p.ids) for p in samples], pad_to or len(samples[0].ids)}) == 1
    return [row[len(row) - n :] if padded_left else row[:n] for row, n in zip(logits, lengths)]


def plainly(do):
    return do()


def precisely(do):
    return exact(MODEL, do)


@settings(max_examples=many(20))
@given(
    samples=st.lists(prompts(), min_size=1, max_size=3),
    config=configs(),
    side=SIDES,
    pad=st.integers(0, 7),
    model=st.sampled_from([MODEL, FUSED]),
    data=st.data(),
)
def test_a_prompts_result_depends_on_nothing_but_the_prompt(samples, config, side, pad, model, data):
    alone, true = (way(lambda: [run(config, [sample])[0] for sample in samples]) for way in (plainly, precisely))
    order = data.draw(st.permutations(range(len(samples))))
    shuffled = [samples[i] for i in order]
    together = run(config, shuffled, side, pad_to=max(len(p.ids) for p in samples) + pad, model=model)
    assert_rounds_alike(together, [alone[i] for i in order], [true[i] for i in order])


@settings(max_examples=many(20))
@given(
    samples=st.lists(prompts(), min_size=1, max_size=3),
    k=st.sampled_from([1, 2, 4]),
    side=SIDES,
    layers=st.lists(st.integers(0, 2), unique=True),
    method=st.sampled_from(["dpc_knn", *CONTROLS]),
)
def test_ratio_one_is_dense(samples, k, side, layers, method):
    dense, true = (way(lambda: run(CompressionConfig.preset("dense"), samples, side)) for way in (plainly, precisely))
    whole = run(CompressionConfig.preset("ppe", method=method, ratio=1.0, k=k, layers=layers), samples, side)
    assert_rounds_alike(whole, dense, true)


@settings(max_examples=many(20))
@given(samples=st.lists(prompts(), min_size=1, max_size=2), config=configs())
def test_two_runs_are_bit_identical_and_restore_leaves_no_trace(samples, config):
    inputs = {name: value for name, value in batch(*samples).items() if name in ("input_ids", "attention_mask")}
    text = inputs | {"input_ids": inputs["input_ids"].clamp_max(80)}
    restore(MODEL)
    with torch.no_grad():
        before = MODEL(**text).logits
    first, second = run(config, samples), run(config, samples)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    restore(MODEL)
    with torch.no_grad():
        assert torch.equal(MODEL(**text).logits, before)


@settings(max_examples=many(20))
@given(sample=prompts(), config=configs())
def test_tokens_kept_are_known_from_the_grids_alone(sample, config):
    model = compress(MODEL, config)
    with torch.no_grad():
        length = model(**batch(sample)).logits.shape[1]
    grids = [*sample.grids[IMAGE], *sample.grids[VIDEO]]
    before = sum(t * h * w // 4 for t, h, w in grids)
    assert length == len(sample.ids) - before + sum(config.tokens_kept(grids))
    for layer, tokens in enumerate(model.compression.report.layers):
        assert tokens == sum(config.tokens_kept(grids, layer=layer))
