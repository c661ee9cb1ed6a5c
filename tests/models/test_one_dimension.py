"""Families whose decoder has positions of one dimension: laws, and comparisons with the untouched models."""

import dataclasses

import pytest
import torch
from families import TEXTS, TINY, prompts, supported, together
from prompts import GREEDY, check_cache, logits
from support import IMAGE_ID
from tolerances import assert_equal, assert_near, assert_rounds_alike, exact

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.errors import InputError
from ppe_npu.models.one_dimension_families import FAMILIES

pytestmark = [pytest.mark.half, supported]

PPE = CompressionConfig.preset("ppe", k=4)
CASCADE = CompressionConfig.preset("ppe", k=4, layers=[1, 2])
SOME = ("internvl", "llava_onevision", "smolvlm")  # one for each kind of rows of pixel_values


@pytest.fixture(params=[name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in TINY])
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return TINY[name].model()


def test_beams_and_samples_get_the_tiles_of_their_prompt(name, model):
    inputs = together(prompts(TINY[name], model))
    settings = {"max_new_tokens": 3, **GREEDY}
    expected = model.generate(**inputs, **settings, num_beams=2)
    compress(model, CompressionConfig.preset("ppe", k=4, ratio=1.0, layers=[0, 2], before_llm=True))
    assert torch.equal(model.generate(**inputs, **settings, num_beams=2), expected)


def test_a_second_turn_with_a_new_picture_goes_on_from_the_cache(name, model):
    settings = {"max_new_tokens": 3, **GREEDY}
    whole = TINY[name].sample(model, [1, "picture", 4, 3, "picture", 2], seed=2)
    ids, pixels = whole["input_ids"], whole["pixel_values"]
    cut = 1 + int((ids[0, 1:] != IMAGE_ID).nonzero()[0]) + 4
    by_sample = FAMILIES[name].by == "sample"
    rows = TINY[name].sizes[0][0] if FAMILIES[name].by == "tile" else 1
    first = {"input_ids": ids[:, :cut], "pixel_values": pixels[:, :1] if by_sample else pixels[:rows]}
    first |= {"image_sizes": whole["image_sizes"][:1]} if "image_sizes" in whole else {}
    compress(model, PPE)
    cache = model(**first, use_cache=True).past_key_values
    turn = whole | {"pixel_values": pixels[:, 1:2]} if by_sample else whole
    found = model.generate(**turn, **settings, past_key_values=cache)
    assert torch.equal(found, model.generate(**whole, **settings))


def test_a_prompt_behind_a_cached_beginning_is_given_whole_or_in_part(name, model):
    settings = {"max_new_tokens": 3, **GREEDY}
    whole = TINY[name].sample(model, [4, "picture", 3], seed=3)
    compress(model, CASCADE)
    expected = model.generate(**whole, **settings)[:, -3:]
    ids = whole.pop("input_ids")
    for first in (0, 4):
        with torch.no_grad():
            cache = model(input_ids=ids[:, :4], use_cache=True).past_key_values
        assert torch.equal(model.generate(ids[:, first:], **whole, **settings, past_key_values=cache)[:, -3:], expected)


def test_speculation(name, model):
    settings = {"max_new_tokens": 6, **GREEDY}
    whole = TINY[name].sample(model, [4, "picture", 3], seed=3)
    expected = model.generate(**whole, **settings)
    twin = compress(TINY[name].model(), CompressionConfig.preset("dense"))
    assert torch.equal(twin.generate(**whole, **settings, assistant_model=model), expected)
    compress(model, CASCADE)
    found = model.generate(**whole, **settings, prompt_lookup_num_tokens=2)
    assert torch.equal(found, model.generate(**whole, **settings))


def test_training_reaches_every_parameter_and_text_alone_the_tower(name, model):
    inputs = together(prompts(TINY[name], model), "right")
    labels = torch.where((inputs["input_ids"] < 90) & inputs["attention_mask"].bool(), inputs["input_ids"], -100)

    def gradients(given, labels):
        model.zero_grad()
        out = model(**given, labels=labels)
        out.loss.backward()
        return out, {key: part.grad.clone() for key, part in model.named_parameters() if part.grad is not None}

    model.train()
    _, dense = gradients(inputs, labels)
    compress(model, CASCADE)
    out, found = gradients(inputs, labels)
    assert out.labels.shape == out.logits.shape[:2]
    shifted = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), out.labels[:, 1:].flatten())
    assert_near(out.loss, shifted, roundings=out.logits.shape[-1] + out.labels.numel())
    moved = {key for key, part in dense.items() if part.abs().max() > 0}
    assert {key for key, part in found.items() if part.abs().max() > 0} >= moved
    text = {"input_ids": inputs["input_ids"].clamp_max(80), "attention_mask": inputs["attention_mask"]}
    _, idle = gradients(text, labels)
    tower = {key for key in dict(model.named_parameters()) if f".{FAMILIES[name].tower}." in key} & set(dense)
    assert tower <= set(idle)
    assert all(idle[key].abs().max() == 0 for key in tower)


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_model_turns_its_channels_by_halves(text):
    """The untouched language model, with a rotary table of K even runs written by definition, gives the same logits for
    the compressed model's hidden states. A decoder that paired its channels differently would not."""
    model, seen = TINY["internvl"].model(text=text), {}
    inputs = TINY["internvl"].sample(model, [3, "picture", 4], seed=1)
    compress(model, PPE)
    model.model.language_model.rotary_emb.register_forward_hook(
        lambda _m, args, out: seen.update(rows=args[1], table=out)
    )
    model.model.language_model.layers[0].register_forward_pre_hook(lambda _m, args: seen.update(hidden=args[0]))
    found = logits(model, inputs)
    rows, hidden = seen["rows"], seen["hidden"]
    restore(model)
    rotary = model.model.language_model.rotary_emb
    half = len(rotary.inv_freq)
    cos, sin = torch.zeros(1, rows.shape[2], 2 * half), torch.zeros(1, rows.shape[2], 2 * half)
    for token in range(rows.shape[2]):
        for run, own in enumerate(torch.arange(half).chunk(4)):
            for channel in own.tolist():
                angle = rows[run, 0, token].float() * rotary.inv_freq[channel]
                cos[0, token, [channel, channel + half]] = angle.cos()
                sin[0, token, [channel, channel + half]] = angle.sin()
    rotary.forward = lambda *_args, **_kwargs: (cos, sin)
    with torch.no_grad():
        hidden = model.model.language_model(inputs_embeds=hidden).last_hidden_state
        expected = model.lm_head(hidden)
    assert_equal(seen["table"][0], cos)
    assert_equal(found, expected)
    # Kept positions are places of the picture's tokens; text keeps its positions.
    text_rows = [0, 1, 2, *range(15, 19)]
    kept = rows[:, 0, 3:-4]
    assert (kept >= 3).all()
    assert (kept < 15).all()
    assert len(kept.unique()) > kept.shape[1]
    assert rows[:, 0, [*range(3), *range(-4, 0)]].tolist() == [text_rows] * 4


def test_what_a_picture_is_in_the_prompt(name, model):
    """tokens_kept() of the spans in the report gives the number of tokens that are kept."""
    inputs = together(prompts(TINY[name], model))
    compress(model, PPE)
    logits(model, inputs)
    spans, layout, tokens = model.compression.report.spans, model.compression.last.layout, {}
    for span in layout.spans:
        key = span.modality, span.source
        tokens[key] = tokens.get(key, 0) + span.tokens
    assert [(span.modality, span.before) for span in spans] == [(kind, tokens[kind, n]) for kind, n in tokens]
    kept = PPE.tokens_kept([span.grid for span in layout.spans], merge_size=1)
    assert sum(span.after for span in spans) == sum(kept) == model.compression.report.tokens_after
    assert sum(span.before for span in spans) == int((inputs["input_ids"] >= 90).sum())


SIZED = ("llava_next", "llava_next_video", "llava_onevision")


@pytest.mark.parametrize("name", SIZED)
def test_a_picture_whose_tiles_are_padding_in_every_row(name):
    """Such a picture has neither tokens of tiles nor newlines, and transformers accepts it."""
    tiny = dataclasses.replace(TINY[name], sizes=((30, 40), (1, 200), (200, 1)))
    model = tiny.model()
    orders = ([1, "picture", 2, "picture", 3], [1, "picture", "picture", "picture", 2])
    samples = [tiny.sample(model, parts, seed) for seed, parts in enumerate(orders)]

    def run():
        return [logits(model, sample) for sample in samples]

    expected, true = run(), exact(model, run)
    compress(model, CompressionConfig.preset("ppe", k=4, ratio=1.0, layers=[0, 2], before_llm=True))
    assert_rounds_alike(run(), expected, true)
    compress(model, PPE)
    check_cache(model, together(samples))


def of_several_pictures(tiny, model, parts, seed, **said):
    """A prompt as from tiny.sample, if the model gets the arguments `said`, by which several pictures have no tiles."""
    given, sizes = parts.count("picture"), iter(tiny.sizes)
    generator = torch.Generator().manual_seed(seed)
    arrays = tiny.pictures(generator, *[next(sizes) for _ in range(given)])
    with torch.no_grad():
        features = model.model.get_image_features(**arrays, **said).pooler_output
    counts = iter(map(len, features))
    texts = [
        torch.randint(3, 80, (part,), generator=generator).tolist() if part != "picture" else part for part in parts
    ]
    ids = [token for text in texts for token in ([IMAGE_ID] * next(counts) if text == "picture" else text)]
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long), **arrays}


def test_pictures_beside_others_have_no_tiles():
    """LLaVA-OneVision's processor says so by batch_num_images. Tested in a batch and for beams."""
    tiny, settings = TINY["llava_onevision"], {"max_new_tokens": 3, **GREEDY}
    model = tiny.model()
    pair = of_several_pictures(tiny, model, [1, "picture", "picture", 2], 0, batch_num_images=[2])
    single = tiny.sample(model, [2, "picture", 1], 1)
    assert (pair["input_ids"] == IMAGE_ID).sum() == 2 * (16 + 1)
    both = together([pair, single]) | {"batch_num_images": torch.tensor([2, 1])}

    def run():
        return logits(model, both)[both["attention_mask"].bool()]

    expected, true = run(), exact(model, run)
    ids = [model.generate(**both, **settings, num_beams=beams) for beams in (1, 2)]
    compress(model, CompressionConfig.preset("ppe", k=4, ratio=1.0))
    assert_rounds_alike(run(), expected, true)
    for beams, wanted in zip((1, 2), ids):
        assert torch.equal(model.generate(**both, **settings, num_beams=beams), wanted)
    compress(model, PPE)
    check_cache(model, both)


def test_a_second_turn_is_told_how_many_pictures_its_prompts_have():
    tiny, settings = TINY["llava_onevision"], {"max_new_tokens": 3, **GREEDY}
    model = compress(tiny.model(), PPE)

    def turn(whole, cut, pictures):
        said = whole["batch_num_images"]
        first = {key: whole[key][:pictures] for key in ("pixel_values", "image_sizes")}
        first |= {"batch_num_images": torch.tensor([pictures]) if len(said) == 1 else said[:pictures]}
        cache = model(input_ids=whole["input_ids"][:, :cut], **first, use_cache=True).past_key_values
        return model.generate(**whole, **settings, past_key_values=cache)

    apart = tiny.sample(model, [1, "picture", 3, "picture", 2], 4) | {"batch_num_images": torch.tensor([1, 1])}
    cut = int((apart["input_ids"][0, 1:] != IMAGE_ID).nonzero()[0]) + 2
    assert torch.equal(turn(apart, cut, 1), model.generate(**apart, **settings))
    said, parts = {"batch_num_images": torch.tensor([3])}, [1, "picture", "picture", 3, "picture", 2]
    beside = of_several_pictures(tiny, model, parts, 4, **said) | said
    with pytest.raises(InputError, match=r"batch_num_images=\[3\]: one image is new, but others of its prompt are in"):
        turn(beside, 1 + 2 * 17 + 1, 2)


class OnDevice(torch.Tensor):
    """Behaves like a tensor on an accelerator, which numpy cannot read."""

    def __array__(self, *_args, **_settings):
        raise TypeError("can't convert npu:0 device type tensor to numpy")


@pytest.mark.parametrize("name", SIZED)
def test_sizes_of_pictures_may_lie_on_the_device(name):
    model = TINY[name].model()
    inputs = TINY[name].sample(model, [2, "picture", 3, "picture", 2], seed=1)
    compress(model, PPE)
    expected = logits(model, inputs)
    assert_equal(logits(model, inputs | {"image_sizes": inputs["image_sizes"].as_subclass(OnDevice)}), expected)


def test_an_aspect_ratio_that_only_the_call_names_changes_nothing():
    """transformers' forward accepts it, but does not use it."""
    model, tiny = TINY["llava_onevision"].model(), TINY["llava_onevision"]
    inputs = tiny.sample(model, [1, "picture", 2], 1) | {"vision_aspect_ratio": "anyres_max_1"}
    expected, true = logits(model, inputs), exact(model, lambda: logits(model, inputs))
    compress(model, CompressionConfig.preset("ppe", k=4, ratio=1.0))
    assert_rounds_alike(logits(model, inputs), expected, true)


def test_frames_of_a_video_are_told_by_the_caller():
    model = TINY["internvl"].model()
    tiny = TINY["internvl"]
    sample = tiny.sample(model, [1, "picture", 1, "picture", 1, "picture", 2], seed=3)
    compress(model, CompressionConfig.preset("vidcom2", ratio=0.5))
    logits(model, sample, num_frames=[1, 2])
    spans = model.compression.last.layout.spans
    assert [(span.modality, span.source, span.grid[0]) for span in spans] == [
        ("image", 0, 3),
        ("video", 0, 1),
        ("video", 0, 2),
    ]
    with pytest.raises(
        InputError, match=r"num_frames=\[2\] sum to 2: give counts of at least 1 that sum to the 3 runs"
    ):
        logits(model, sample, num_frames=[2])


def test_a_second_turn_is_told_the_frames_of_its_own_video():
    model, settings = TINY["internvl"].model(), {"max_new_tokens": 3, **GREEDY}
    whole = TINY["internvl"].sample(model, [1, "picture", 3, "picture", 1, "picture", 2], seed=4)
    first = {"input_ids": whole["input_ids"][:, :15], "pixel_values": whole["pixel_values"][:3]}
    compress(model, CompressionConfig.preset("vidcom2", ratio=0.5))
    cache = model(**first, num_frames=[1], use_cache=True).past_key_values
    found = model.generate(**whole, num_frames=[1, 2], past_key_values=cache, **settings)
    frames = [(span.modality, span.grid[0]) for span in model.compression.last.layout.spans]
    assert frames == [("video", 1), ("video", 2)]
    assert torch.equal(found, model.generate(**whole, num_frames=[1, 2], **settings))


def test_what_disagrees_is_said_before_the_tower_runs():
    model = TINY["internvl"].model()
    inputs = TINY["internvl"].sample(model, [2, "picture", 2], seed=1)
    compress(model, PPE)
    model.model.vision_tower.register_forward_hook(lambda *_: pytest.fail("the tower ran"))
    with pytest.raises(InputError, match="tokens: 12, features: 8: the prompts hold 3 tiles, but pixel_values has 2"):
        model(**inputs | {"pixel_values": inputs["pixel_values"][:2]})
    with pytest.raises(
        InputError,
        match=r"do not match, tokens: \d+, features: \d+: sample \d: the run of image tokens at index 2 is 11 long",
    ):
        model(
            **{key: value[:, 3:] if value.ndim == 2 else value for key, value in inputs.items()}
            | {
                "input_ids": torch.cat([inputs["input_ids"][:, :2], inputs["input_ids"][:, 3:]], 1),
                "attention_mask": None,
            }
        )
    model = TINY["llava_next"].model()
    inputs = TINY["llava_next"].sample(model, [2, "picture", 2], seed=1)
    compress(model, PPE)
    inputs.pop("image_sizes")
    with pytest.raises(InputError, match="pixel_values are given without image_sizes"):
        model(**inputs)


def test_towers_whose_tokens_are_no_grid_and_sliding_decoders_are_refused():
    model = TINY["llava"].model()
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(InputError, match="'full' with clip_vision_model makes no grid of tokens: set 'default'"):
        compress(model, PPE)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    pixtral = {"model_type": "pixtral", "image_size": 16, "patch_size": 4, **sizes}
    model = dataclasses.replace(TINY["llava"], config={"vision_config": pixtral}).model()
    with pytest.raises(InputError, match="vision tower 'pixtral' is not supported: load a model with one of clip_"):
        compress(model, PPE)
    model = TINY["smolvlm"].model()
    model.config.vision_config.model_type = "idefics3"  # as in its checkpoints
    compress(model, PPE)
    model = dataclasses.replace(TINY["llava"], text="mistral", own=(("sliding_window", 8),)).model()
    with pytest.raises(InputError, match="sliding attention"):
        compress(model, PPE)


def test_an_adapter_learns_on_a_compressed_model():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(TINY["internvl"].model(), LoraConfig(target_modules=["q_proj"], r=2))
    inputs = together(prompts(TINY["internvl"], model.get_base_model()))
    compress(model, PPE)
    out = model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100))
    out.loss.backward()
    learned = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert learned == {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert out.logits.shape[1] < inputs["input_ids"].shape[1]
