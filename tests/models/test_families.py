"""Laws of compression for every Qwen family, each also against its own unmodified model."""

import copy

import pytest
import torch
from prompts import GREEDY, check_cache, kept_logits, logits, with_types
from support import FAMILIES, IMAGE_ID, Prompt, batch, family_of, random_model
from tolerances import assert_equal, assert_near, assert_rounds_alike, exact

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.methods import DPCKNN
from ppe_npu.methods.view import View

pytestmark = pytest.mark.half

PPE = CompressionConfig.preset("ppe", k=4)
CASCADE = CompressionConfig.preset("ppe", k=4, layers=[1, 2])
BOTH = CompressionConfig.preset("ppe", k=2, layers=[0, 2], before_llm=True, ratio=0.6)
CONFIGS = {"ppe": PPE, "cascade": CASCADE, "both": BOTH, "chatunivi": CompressionConfig.preset("chatunivi")}
RATIO_ONE = {
    "before": CompressionConfig.preset("ppe", k=4, ratio=1.0),
    "cascade": CompressionConfig.preset("ppe", k=4, ratio=1.0, layers=[0, 2]),
    "dense": CompressionConfig.preset("dense"),
}

family = family_of(FAMILIES)


@pytest.fixture
def model(family):
    return random_model(family=family)


@pytest.fixture
def prompts(family):
    """Prompts with text between spans and a start token before each, as older transformers requires."""
    video = ("frames", (3, 2, 5)) if family == "qwen3_vl" else ("video", (3, 2, 5))
    start = [] if family == "qwen3_vl" else ["start"]
    return [
        Prompt([2, "start", ("image", (1, 4, 5)), 3, *start, video, 2], seed=1),
        Prompt([5], seed=2),
        Prompt([1, "start", ("image", (1, 1, 1)), 2, "start", ("image", (1, 3, 3)), 4], seed=3),
    ]


def batch_for(family, *prompts, **kwargs):
    """Only Qwen2.5-VL gets the duration of frames. These are so short that time never exceeds row and column; otherwise
    newer transformers numbers the following text differently from how the model was trained (docs/numerics.md)."""
    inputs = batch(*prompts, **kwargs)
    return {name: value for name, value in inputs.items() if family == "qwen2_5_vl" or name != "second_per_grid_ts"}


def gradients(model, inputs):
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -100)
    model.zero_grad()
    model(**inputs, labels=labels).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("config", RATIO_ONE.values(), ids=RATIO_ONE)
@pytest.mark.parametrize("side", ["left", "right"])
def test_ratio_one_is_the_unmodified_model(model, family, prompts, config, side):
    inputs = with_types(batch_for(family, *prompts, side=side))
    settings = {"max_new_tokens": 4, **GREEDY}
    real = inputs["attention_mask"].bool()
    expected, true = logits(model, inputs)[real], exact(model, lambda: logits(model, inputs)[real])
    ids = model.generate(**inputs, **settings) if side == "left" else None
    compress(model, config)
    assert_rounds_alike(logits(model, inputs)[real], expected, true)
    if ids is not None:
        assert torch.equal(model.generate(**inputs, **settings), ids)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_padding_and_batch_mates_change_nothing(model, prompts, config):
    compress(model, config)

    def alone():
        return [kept_logits(model, prompt)[0] for prompt in prompts]

    expected, true = alone(), exact(model, alone)
    for side in ("left", "right"):
        assert_rounds_alike(kept_logits(model, *prompts, side=side, pad_to=90), expected, true)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_decoding_with_the_cache_gives_the_logits_of_decoding_without(model, family, prompts, config):
    compress(model, config)
    check_cache(model, batch_for(family, *prompts))


@pytest.mark.parametrize("config", [PPE, BOTH], ids=["ppe", "both"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_reach_what_dense_reaches_and_survive_checkpointing(model, family, prompts, config, reentrant):
    inputs = with_types(batch_for(family, *prompts))
    model.train()
    dense = gradients(model, inputs)
    compress(model, config)
    expected, true = gradients(model, inputs), exact(model, lambda: gradients(model, inputs))
    assert expected.keys() == dense.keys() == dict(model.named_parameters()).keys()
    # Compressed training moves every parameter that dense training moves.
    assert [n for n in dense if dense[n].abs().max() > 0] == [n for n in dense if expected[n].abs().max() > 0]
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    assert_rounds_alike(gradients(model, inputs), expected, true)


def test_text_alone_reaches_the_vision_tower_in_training_only(model):
    compress(model, PPE)
    inputs = batch(Prompt([6]))
    calls = []
    model.model.visual.register_forward_hook(lambda *_: calls.append(1))
    expected = logits(model, inputs)
    model.generate(**inputs, max_new_tokens=3, **GREEDY)
    assert not calls
    model.train()
    got = gradients(model, inputs)
    assert len(calls) == 1
    tower = [name for name in dict(model.named_parameters()) if ".visual." in name]
    assert set(tower) <= set(got)
    assert all(got[name].abs().max() == 0 for name in tower)
    assert_equal(logits(model, inputs), expected)


def test_restore_gives_the_model_back_bit_for_bit(model, prompts, family):
    inputs = with_types(batch_for(family, *prompts))
    before, config = logits(model, inputs), copy.deepcopy(model.config.to_dict())
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    compress(compress(model, CASCADE), PPE)
    logits(model, inputs)
    restore(model)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert model.config.to_dict() == config
    assert torch.equal(logits(model, inputs), before)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_tokens_kept_are_known_from_the_grids_alone(model, family, prompts, config):
    compress(model, config)
    inputs = batch_for(family, *prompts)
    logits(model, inputs)
    report = model.compression.report
    for kind in ("image", "video"):
        kept = [span.after for span in report.spans if span.modality == kind]
        assert config.tokens_kept(inputs[f"{kind}_grid_thw"]) == kept
    per_layer = [
        sum(sum(config.tokens_kept(inputs[f"{kind}_grid_thw"], layer=layer)) for kind in ("image", "video"))
        for layer in range(3)
    ]
    assert list(report.layers) == per_layer


def test_the_towers_deepstack_features_are_merged_by_the_tokens_groups(model, family, prompts):
    """In Qwen3-VL, the deepstack feature added to a merged token after layer 0 is the mean of its members' features."""
    if family != "qwen3_vl":
        pytest.skip("no deepstack")
    compress(model, PPE)
    image = Prompt([2, ("image", (1, 4, 5)), 3], seed=4)
    inputs, seen = batch(image), {}
    model.model.visual.register_forward_hook(lambda _, args, output: seen.update(tower=output))
    layers = model.model.language_model.layers
    layers[0].register_forward_hook(lambda _, args, output: seen.update(after=output))
    layers[1].register_forward_pre_hook(lambda _, args: seen.update(before=args[0]))
    logits(model, inputs)
    tokens = seen["tower"].pooler_output[None]
    grouping = DPCKNN().group(View.of(tokens=tokens, num_kept=9))
    added = (seen["before"] - (seen["after"][0] if isinstance(seen["after"], tuple) else seen["after"]))[0]
    assert added[[0, 1, 11, 12, 13]].abs().max() == 0
    for group in range(9):
        members = seen["tower"].deepstack_features[0][grouping.labels[0] == group]
        # Errors: one addition and one subtraction, and the mean rounds as often as it has members.
        size = seen["before"].abs().max() + members.abs().max()
        assert_near(added[2 + group], members.mean(0), roundings=len(members) + 2, size=size)


def test_events_need_frames_that_follow_each_other(model, family):
    config = CompressionConfig.preset("ppe", k=4, temporal_ratio=0.5)
    if family == "qwen3_vl":
        with pytest.raises(
            ValueError, match=r"^temporal_ratio=0\.5: this model puts text .*: leave temporal_ratio=0\.5"
        ):
            compress(model, config)
        return
    compress(model, config)
    logits(model, batch(Prompt([1, ("video", (4, 2, 3)), 1])))
    assert model.compression.report.tokens_after == 2 * 3


def test_layers_beyond_the_model_are_refused(model):
    with pytest.raises(ValueError, match=r"layers=\[1, 3\]: this model has 3 decoder layers, 0 to 2"):
        compress(model, CompressionConfig.preset("ppe", k=4, layers=[1, 3]))


def test_text_alone_gives_the_logits_of_the_unmodified_model(model):
    """Prompts of text alone give the logits of the unmodified model in every setting."""
    inputs = batch(Prompt([7], seed=1), Prompt([4], seed=2))
    assert (inputs["input_ids"] < IMAGE_ID).all()
    real = inputs["attention_mask"].bool()
    expected, true = logits(model, inputs)[real], exact(model, lambda: logits(model, inputs)[real])
    for config in CONFIGS.values():
        compress(model, config)
        assert_rounds_alike(logits(model, inputs)[real], expected, true)
