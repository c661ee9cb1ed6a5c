"""model(..., packed=True): a batch packed into one row without padding gives the results of each sample alone."""

import pytest
import torch
from draws import many
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import MIXED, PRESETS, kept_logits
from support import FAMILIES, batch, random_model
from test_laws import configs, prompts
from tolerances import assert_rounds_alike, exact, loss_near

from ppe_npu import CompressionConfig, compress
from ppe_npu.engine.packing import numbers
from ppe_npu.models.forward_pass import ForwardPass
from ppe_npu.models.fused import fuse

pytestmark = pytest.mark.half

MODELS = {family: fuse(random_model(family=family)) for family in FAMILIES}


def text_labels(inputs):
    return torch.where(inputs["attention_mask"].bool() & (inputs["input_ids"] < 90), inputs["input_ids"], -100)


def check_packed(model, some, side):
    """Check that a packed batch gives the logits, labels and loss of the padded one, sample by sample."""
    inputs = batch(*some, side=side)
    labels = text_labels(inputs)
    with torch.no_grad():
        padded = model(**inputs, labels=labels)
        true = exact(model, lambda: model(**inputs, labels=labels).logits)
        packed = model(**inputs, labels=labels, packed=True)
    report = model.compression.report
    lengths = [len(p.ids) for p in some]
    for span in report.spans:
        lengths[span.sample] -= span.before - span.after
    assert packed.logits.shape[:2] == packed.labels.shape == (1, sum(lengths))
    assert packed.past_key_values is None
    places = [slice(true.shape[1] - length, None) if side == "left" else slice(0, length) for length in lengths]
    rows = ([row[place] for row, place in zip(some, places)] for some in (padded.logits, true))
    assert_rounds_alike(list(packed.logits[0].split(lengths)), *rows)
    at = 0
    for row_labels, place, length in zip(padded.labels, places, lengths):
        assert packed.labels[0, at] == -100, "no token of the sample stands before its first"
        assert packed.labels[0, at + 1 : at + length].tolist() == row_labels[place][1:].tolist()
        at += length
    if not padded.loss.isnan():  # the mean of no labels is NaN
        assert packed.loss.item() == loss_near(padded.loss.item())
    assert packed.loss.isnan() == padded.loss.isnan()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [*PRESETS, "dense"])
def test_a_packed_batch_is_its_samples(family, name):
    config = PRESETS.get(name) or CompressionConfig.preset("dense")
    if config.temporal_ratio is not None and family == "qwen3_vl":
        pytest.skip("frames stand apart")
    some = MIXED if family != "qwen3_vl" else [MIXED[1], MIXED[2], MIXED[2]]
    check_packed(compress(MODELS[family], config), some, "right")


@settings(max_examples=many(20))
@given(st.lists(prompts(), min_size=1, max_size=4), configs(), st.sampled_from(["left", "right"]))
@pytest.mark.ci
def test_packing_is_exact_for_every_prompt_and_setting(some, config, side):
    check_packed(compress(MODELS["qwen2_5_vl"], config), some, side)


@pytest.mark.parametrize("name", ["ppe", "cascade", "chatunivi"])
def test_gradients_are_those_of_the_padded_batch(name):
    model = compress(MODELS["qwen2_5_vl"], PRESETS[name])
    inputs = batch(*MIXED, side="right")

    def gradients(packed):
        model.zero_grad()
        model(**inputs, labels=text_labels(inputs), packed=packed).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    assert_rounds_alike(gradients(True), gradients(False), exact(model, lambda: gradients(False)))


def test_samples_do_not_see_each_other():
    """The second sample has the same logits behind another first sample."""
    model = compress(MODELS["qwen2_5_vl"], PRESETS["cascade"])
    length = len(kept_logits(model, MIXED[2])[0])

    @torch.no_grad()
    def second(first):
        return model(**batch(first, MIXED[2], side="right"), packed=True).logits[0, -length:]

    assert_rounds_alike(second(MIXED[0]), second(MIXED[1]), exact(model, lambda: second(MIXED[1])))


def test_what_cannot_be_packed_is_refused():
    model = compress(random_model(), PRESETS["ppe"])
    inputs = batch(*MIXED, side="right")
    with pytest.raises(ValueError, match=r"fuse\(model\)"):
        model(**inputs, ppe=ForwardPass(packed=True))
    fuse(model)
    length = inputs["input_ids"].shape[1]
    mask = torch.ones(3, 1, length, length, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match="without a cache or a 4D"):
        model(**inputs | {"attention_mask": mask}, packed=True)
    cache = model(**inputs).past_key_values
    with pytest.raises(ValueError, match="without a cache or a 4D"):
        model(input_ids=torch.full((3, 2), 5), past_key_values=cache, packed=True)


def test_numbers_restart_at_every_sample():
    assert numbers((0, 2, 2, 5)).tolist() == [[0, 1, 0, 1, 2]]
