"""The laws of compression on a tiny random model of every family, each against the same model without compression.

docs/families.md lists the families.
"""

import copy
import dataclasses
from dataclasses import dataclass

import document_families
import pytest
import torch
from families import EVERY, GRIDS, TINY, prompts, supported, together
from prompts import GREEDY, check_cache, logits
from support import IMAGE_ID
from tolerances import assert_equal, assert_near, assert_rounds_alike, exact

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.checkpoints.loading import check_checkpoint
from ppe_npu.engine.positions import HALVES, NEIGHBOURS
from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View
from ppe_npu.models import _family as family_of
from ppe_npu.models import supported_classes
from ppe_npu.models.fused import fuse
from ppe_npu.models.one_dimension_families import FAMILIES

pytestmark = [pytest.mark.half, supported]

PPE = CompressionConfig.preset("ppe", k=4)
BOTH = CompressionConfig.preset("ppe", k=2, layers=[0, 2], before_llm=True, ratio=0.6)
SOME = ("internvl", "llava_onevision")  # for the other families, most tests are marked slow
CONFIGS = {
    "ppe": PPE,
    "keep_one": CompressionConfig.preset("keep_one"),
    "renumber": CompressionConfig.preset("chatunivi"),
    "both": BOTH,
}
DENSE = {
    "dense": CompressionConfig.preset("dense"),
    "ratio 1": CompressionConfig.preset("ppe", k=4, ratio=1.0, layers=[0, 2], before_llm=True),
}


def cases():
    """(family, config) pairs; most are slow."""
    for family in EVERY:
        for name, config in CONFIGS.items():
            marks = () if family in SOME and name == "both" else (pytest.mark.slow,)
            yield pytest.param(family, config, id=f"{family}-{name}", marks=marks)


@pytest.fixture
def model(name):
    return EVERY[name].model()


@pytest.mark.ci
def test_every_supported_class_has_a_tiny_model():
    built = {type(tiny.model()).__name__ for tiny in EVERY.values()}
    assert built == {name for name in supported_classes() if not name.startswith("PVC")}  # see test_pvc.py
    assert set(TINY) == set(FAMILIES)


def dense_batches(name, model):
    tiny = EVERY[name]
    batches = [together(prompts(tiny, model), side) for side in ("left", "right")]
    if tiny.clip:
        batches.append(together([tiny.sample(model, parts, 5) for parts in ([2, "clip", 1], [1, "clip", 3])]))
    return batches


@pytest.mark.parametrize("name", EVERY)
def test_dense_is_the_untouched_model_and_so_is_it_fused(name, model):
    batches = dense_batches(name, model)

    def run():
        return [logits(model, inputs)[inputs["attention_mask"].bool()] for inputs in batches[1:]]

    expected, true = run(), exact(model, run)
    compress(model, DENSE["ratio 1"])
    assert_rounds_alike(run(), expected, true)
    assert_rounds_alike((fuse(model), run())[1], expected, true)


@pytest.mark.parametrize("config", DENSE.values(), ids=DENSE)
@pytest.mark.parametrize(
    "name", [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in EVERY]
)
def test_dense_gives_the_same_greedy_ids(name, model, config):
    batches = dense_batches(name, model)

    def run():
        return [logits(model, inputs)[inputs["attention_mask"].bool()] for inputs in batches]

    expected, true = run(), exact(model, run)
    ids = model.generate(**batches[0], max_new_tokens=4, **GREEDY)
    compress(model, config)
    assert_rounds_alike(run(), expected, true)
    assert torch.equal(model.generate(**batches[0], max_new_tokens=4, **GREEDY), ids)


@pytest.mark.parametrize(("name", "config"), cases())
def test_padding_and_batch_mates_change_nothing(name, model, config):
    samples = prompts(EVERY[name], model)
    compress(model, config)

    def alone():
        return [logits(model, sample)[0] for sample in samples]

    expected, true = alone(), exact(model, alone)
    for side in ("left", "right"):
        rows = logits(model, together(samples, side, pad_to=80))
        found = [row[len(row) - len(own) :] if side == "left" else row[: len(own)] for row, own in zip(rows, expected)]
        assert_rounds_alike(found, expected, true)


@pytest.mark.parametrize(("name", "config"), cases())
def test_decoding_with_the_cache_gives_the_logits_of_decoding_without(name, model, config):
    inputs = together(prompts(EVERY[name], model))
    check_cache(compress(model, config), inputs)


@pytest.mark.parametrize("name", EVERY)
def test_restore_gives_the_model_back_bit_for_bit(name, model):
    inputs = together(prompts(EVERY[name], model))
    before, config = logits(model, inputs), copy.deepcopy(model.config.to_dict())
    attributes = {key: set(vars(module)) for key, module in model.named_modules()}
    weights = list(model.state_dict())
    compress(compress(model, BOTH), PPE)
    assert list(model.state_dict()) == weights
    logits(model, inputs)
    restore(model)
    assert {key: set(vars(module)) for key, module in model.named_modules()} == attributes
    assert model.config.to_dict() == config
    assert_equal(logits(model, inputs), before)


def test_a_projector_beside_the_tower_is_part_of_what_makes_features():
    """PaddleOCR-VL's projector: beams get the patches of their prompt, it is trained, and text alone runs it, too."""
    tiny, settings = EVERY["paddleocr_vl"], {"max_new_tokens": 3, "num_beams": 2, **GREEDY}
    model = tiny.model()
    inputs = together(prompts(tiny, model))
    expected = model.generate(**inputs, **settings)
    compress(model, DENSE["ratio 1"])
    assert torch.equal(model.generate(**inputs, **settings), expected)
    compress(model, PPE).train()
    parts = {key: part for key, part in model.named_parameters() if ".visual." in key or ".projector." in key}
    for given, moves in ((inputs, True), (tiny.sample(model, [5], 1), False)):
        model.zero_grad()
        model(**given, labels=given["input_ids"].masked_fill(given["input_ids"] >= IMAGE_ID, -100)).loss.backward()
        assert all((part.grad.abs().max() > 0) == moves for key, part in parts.items() if "k_proj.bias" not in key)
    with pytest.raises(InputError, match=r"pixel_values must be \[patches, channels, side, side\], not \[116, 48\]"):
        model(**inputs | {"pixel_values": inputs["pixel_values"].flatten(1)[:116]})


@pytest.mark.parametrize("name", GRIDS)
def test_numbering_is_the_familys_own(name, model):
    """Positions before any merge equal those of the untouched model's get_rope_index."""
    tiny = GRIDS[name]
    samples = [tiny.sample(model, [2, "picture", 3, "picture", 1], 0), tiny.sample(model, [1, "picture", 2], 1)]
    batches = [together(samples)]
    if tiny.clip:
        clips = [tiny.sample(model, [3, "clip", 2, "clip", 1], 2), tiny.sample(model, [4], 3)]
        batches.append(together(clips, "right"))
    compress(model, PPE)
    for inputs in batches:
        known = ("input_ids", "attention_mask", "image_grid_thw", "video_grid_thw", "mm_token_type_ids")
        given = {key: inputs[key] for key in known if key in inputs}
        seconds = [inputs[key] for key in ("second_per_grid_ts", "video_second_per_grid") if key in inputs]
        given |= {tiny.seconds.replace("video_second_per_grid", "second_per_grids"): seconds[0]} if seconds else {}
        expected, deltas = model.model.get_rope_index(**given)
        logits(model, inputs)
        plan, real = model.compression.last, inputs["attention_mask"].bool()
        found = plan.positions[:, :-1].unflatten(1, tuple(real.shape))
        assert_equal(found[:, real], expected[:, real])
        assert plan.deltas.flatten().tolist() == deltas.flatten().tolist()


@pytest.mark.parametrize("name", EVERY)
def test_a_wrong_statement_of_the_rotary_embedding_is_refused(name, model, monkeypatch):
    """A family that described its rotary channels wrongly would change every output; compress() compares tables."""
    family, wrong = family_of(type(model).__name__), NEIGHBOURS
    wrong = HALVES if family.PAIRS == NEIGHBOURS else NEIGHBOURS
    if isinstance(family, type(copy)):
        monkeypatch.setattr(family, "PAIRS", wrong)
    else:
        monkeypatch.setitem(vars(family), "PAIRS", wrong)
    before = dict(vars(model.model.language_model)) if hasattr(model.model, "language_model") else None
    with pytest.raises(
        InputError, match=rf"computes another table than this model's family expects .* rotated by {wrong}"
    ):
        compress(model, PPE)
    assert before is None or dict(vars(model.model.language_model)).keys() == before.keys()


@pytest.mark.parametrize("name", ["internvl", "qwen2_5_vl"])
def test_frequencies_that_grow_with_the_length_are_the_untouched_models(name):
    """InternVL 3's config has them (rope_type "dynamic"). A prompt within the known lengths is followed by one beyond
    them, by the first again, and by decoding across the border."""
    growing = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0, "mrope_section": [4, 6, 6]}
    text = {"rope_parameters": growing, "max_position_embeddings": 64}
    own = {"own": tuple(text.items())} if name in TINY else {"text": text}
    tiny = dataclasses.replace(EVERY[name], **own)
    model = tiny.model()
    short, long = (tiny.sample(model, [count, "picture", 3], seed=1) for count in (4, 90))

    def run(model):
        rows = [logits(model, inputs) for inputs in (short, long, short)]
        return [*rows, model.generate(**short, max_new_tokens=60, **GREEDY)]

    *expected, ids = run(model)
    *true, _ = run(tiny.model().double())
    *without, _ = run(EVERY[name].model())
    assert (without[1] - expected[1]).abs().max() > 1
    compressed = compress(tiny.model(), DENSE["ratio 1"])
    *found, found_ids = run(compressed)
    assert_rounds_alike(found, expected, true)
    assert torch.equal(found_ids, ids)
    check_cache(compress(tiny.model(), PPE), short)


@register("toy_layer_keys")
@dataclass(frozen=True)
class LayerKeys(Method):
    """Records the keys of a layer that its view contains."""

    ratio: float = share(0.5)
    needs = frozenset({"tokens", "layer_keys"})

    def group(self, view: View) -> Grouping:
        SHOWN.append(view.layer_keys)
        return Grouping.of_kept(view, torch.arange(view.most).expand(len(view.tokens), -1))


SHOWN = []


@pytest.mark.parametrize("name", EVERY)
def test_keys_that_a_method_is_shown_of_a_layer_are_those_in_the_cache(name, model):
    """The keys are rotated in the way of their family."""
    SHOWN.clear()
    inputs = EVERY[name].sample(model, [2, "picture", 3], seed=1)
    with torch.no_grad():
        keys = model(**inputs, use_cache=True).past_key_values.layers[1].keys
    compress(model, CompressionConfig(steps=[LayerKeys(layer=1)], positions="keep_one"))
    logits(model, inputs)
    cached = keys[0, :, inputs["input_ids"][0] == IMAGE_ID].transpose(0, 1)
    # Tokens are in the order of the picture's cells; a view has the heads as an axis of their own.
    found = torch.cat([shown.flatten(0, 1) for shown in SHOWN])
    assert_near(found.reshape(cached.shape), cached, roundings=keys.shape[-1])


@pytest.mark.parametrize(
    ("name", "preset", "why"),
    [
        ("internvl", "visionzip", "looks into the vision tower, which is"),
        ("internvl", "tome_tower", "a step inside the tower is"),
        ("glm4v", "visionzip", "looks into the vision tower, which is"),
        ("glm4v", "ipcv", "a step inside the tower is"),
    ],
)
def test_what_a_family_has_no_place_for_is_refused(name, model, preset, why):
    with pytest.raises(InputError, match=f"{preset}.* {why} not built for this family yet"):
        compress(model, CompressionConfig.preset(preset))


def test_the_page_says_what_the_models_have():
    page = document_families.PAGE.read_text(encoding="utf-8")
    assert document_families.written(page) == page, "run scripts/document_families.py"


def test_what_was_tried_and_does_not_fit_is_refused_with_the_reason():
    class Gemma3ForConditionalGeneration(torch.nn.Module):
        pass

    with pytest.raises(InputError, match=r"Gemma3ForCond\w+ is not supported \(attention in pictures is bidirectional"):
        compress(Gemma3ForConditionalGeneration(), PPE)


def test_commands_refuse_what_they_make_no_inputs_for(tmp_path):
    EVERY["llava"].model().save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match=r"LlavaFor\w+, which compress\(\) supports, but whose inputs no command prepares"
    ):
        check_checkpoint(tmp_path)
