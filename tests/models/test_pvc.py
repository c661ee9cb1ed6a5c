"""PVC: initially it equals its base bit for bit. Trained, it is causal in time, takes ragged videos, can be saved and
loaded, and is compressed like its base."""

import json

import pytest
import torch
from families import EVERY, supported, together
from prompts import GREEDY, check_cache, logits
from support import IMAGE_ID, VIDEO_ID
from tolerances import assert_equal, assert_near, assert_rounds_alike, exact

from ppe_npu import CompressionConfig, compress
from ppe_npu.errors import InputError
from ppe_npu.methods import IPCV, PixelPrune, ToMeTower
from ppe_npu.models.pvc import PVCConfig, add_pvc, load_pvc, shown_repeatedly
from ppe_npu.models.pvc.modules import Frames, TemporalAttention, TimeEmbedding, Timing

pytestmark = supported

NAMES = ("internvl", "qwen2_5_vl")
SMALL = PVCConfig(blocks=2, time_width=16)
PPE = CompressionConfig.preset("ppe", k=4)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return EVERY[name].model()


def inputs_of(name, model, times=3):
    """Two prompts, with two pictures and with one, each picture shown several times."""
    tiny = EVERY[name]
    samples = [tiny.sample(model, [2, "picture", 3, "picture", 2], 0), tiny.sample(model, [1, "picture", 4], 1)]
    return shown_repeatedly(model, together(samples), times)


def base_inputs(inputs):
    return {key: value for key, value in inputs.items() if key != "time_steps"}


def trained(model):
    """The model with random gates and modulations, as after some training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "temporal.gate" in key or "modulation" in key:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    return model


def test_at_the_start_it_is_the_base_bit_for_bit(name, model):
    inputs = inputs_of(name, model)
    expected = logits(model, base_inputs(inputs))
    settings = [{"max_new_tokens": 3, "num_beams": beams, **GREEDY} for beams in (1, 2)]
    ids = [model.generate(**base_inputs(inputs), **own) for own in settings]
    add_pvc(model, SMALL)
    assert (logits(model, inputs) - expected).abs().max() == 0
    for own, wanted in zip(settings, ids):
        assert torch.equal(model.generate(**inputs, **own), wanted)
    assert (logits(trained(model), inputs) != expected).any()


def test_an_image_is_shown_as_often_as_asked(name, model):
    single, inputs = inputs_of(name, model, 1), inputs_of(name, model)
    visual = sum((inputs["input_ids"] == token).sum() for token in (IMAGE_ID, VIDEO_ID))
    assert visual == 3 * sum((single["input_ids"] == token).sum() for token in (IMAGE_ID, VIDEO_ID))
    if name == "internvl":
        assert inputs["time_steps"] == [(3, 3), (3, 1), (3, 3)]
        assert_equal(inputs["pixel_values"][:9], single["pixel_values"][:3].repeat(3, 1, 1, 1))
    else:
        assert inputs["video_grid_thw"].tolist() == [[3, 8, 10], [3, 6, 6], [3, 8, 10]]


def tower(name, model, inputs):
    """The tower's features of pictures shown over time."""
    with torch.no_grad():
        if name == "internvl":
            steps = inputs["time_steps"]
            return model.model.get_image_features(inputs["pixel_values"], time_steps=steps).pooler_output
        return model.model.visual(inputs["pixel_values_videos"], inputs["video_grid_thw"]).pooler_output


def test_a_frame_hangs_on_itself_and_those_before_of_its_own_tile(name, model):
    """It does not depend on other pictures in the batch either."""
    inputs = inputs_of(name, model)
    trained(add_pvc(model, SMALL))
    key = "pixel_values" if name == "internvl" else "pixel_values_videos"
    before = tower(name, model, inputs)
    changed = dict(inputs) | {key: inputs[key].clone()}
    if name == "internvl":  # the second showing of the first picture's second tile; its rows are 3 x (a, b, c)
        changed[key][4] += 1
        moved = [4, 7]
    else:  # the second frame of the first picture; its frames have 20 tokens of 4 patches
        changed[key][80:160] += 1
        moved = range(20, 60)
    rows = (tower(name, model, changed) != before).flatten(1).any(1).nonzero()[:, 0].tolist()
    assert rows == list(moved)


def naive(module, x, time, frames):
    """The module's output, computed for one video, patch, frame and head at a time."""
    out = x.clone()
    normed = module.norm(x) * (1 + module.time_norm.modulation(time)[:, None, : x.shape[2]])
    normed = normed + module.time_norm.modulation(time)[:, None, x.shape[2] :]
    query, key, value = module.qkv(normed).chunk(3, dim=-1)
    size = x.shape[2] // module.heads
    for line, steps in zip(frames.rows, frames.steps):
        for patch in range(x.shape[1]):
            for step in range(steps):
                heads = []
                for head in range(module.heads):
                    own = slice(head * size, head * size + size)
                    seen = line[: step + 1].tolist()
                    scores = key[seen, patch][:, own] @ query[line[step], patch, own] / size**0.5
                    heads.append(scores.softmax(0) @ value[seen, patch][:, own])
                out[line[step], patch] = x[line[step], patch] + module.gate * module.proj(torch.cat(heads))
    return out


@pytest.mark.parametrize("steps", [[(3, 1)], [(2, 3), (1, 1), (4, 2)]], ids=["one", "ragged"])
def test_attention_over_time_and_its_gradients_are_those_of_the_definition(steps):
    torch.manual_seed(0)
    frames, width = Frames.of(steps), 8
    module, embedding = TemporalAttention(width, 2, 6).double(), TimeEmbedding(6).double()
    for part in (module.gate, module.time_norm.modulation.weight):
        torch.nn.init.normal_(part)
    x = torch.randn(frames.count, 5, width, dtype=torch.float64, requires_grad=True)
    timing = Timing.of(frames, embedding, x)
    results = []
    for run in (lambda: module(x, timing), lambda: naive(module, x, timing.time, frames)):
        out = run()
        weights = [x, *module.parameters(), *embedding.parameters()]
        grads = torch.autograd.grad(
            (out * torch.arange(out.numel()).view_as(out).cos()).sum(), weights, retain_graph=True
        )
        results.append([out, *grads])
    for found, expected in zip(*results):
        assert_near(found, expected, roundings=1000)
    assert sorted(timing.back.tolist()) == sorted({*timing.back.tolist()})
    assert frames.times(x)[frames.rows[0][frames.steps[0] - 1]] == (1 if frames.steps[0] > 1 else 0)


def features_and_gradients(name, model, pixels, groups):
    """Features and gradients of videos, each group in one pass of the tower. groups: frames of each group's videos.

    Returns:
        [tokens, C] features; and the gradients of the pixels and of all parameters for time.
    """
    pixels = pixels.to(next(model.parameters()).dtype).requires_grad_()
    each = len(pixels) // sum(map(sum, groups))
    made = []
    for own, frames in zip(pixels.split([each * sum(frames) for frames in groups]), groups):
        if name == "internvl":
            out = model.model.get_image_features(own, time_steps=[(steps, 1) for steps in frames])
        else:
            out = model.model.visual(own, torch.tensor([[steps, 4, 6] for steps in frames]))
        made.append(out.pooler_output.flatten(0, -2))
    found = torch.cat(made)
    timed = {key: weight for key, weight in model.named_parameters() if "temporal" in key or "time_" in key}
    waves = torch.arange(found.numel()).view_as(found).cos()
    grads = torch.autograd.grad((found * waves).sum(), [pixels, *timed.values()])
    return found.detach(), dict(zip(["pixels", *timed], grads))


@pytest.mark.parametrize("frames", [(3, 7), (7, 1, 3)])
def test_a_video_beside_a_longer_one_is_what_it_is_alone(name, model, frames):
    """Padding of the dense kernel over time changes neither features nor gradients."""
    trained(add_pvc(model, SMALL))
    shape = (sum(frames), 3, 16, 16) if name == "internvl" else (sum(frames) * 24, 3 * 2 * 4 * 4)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    apart = [(steps,) for steps in frames]
    found, grads = features_and_gradients(name, model, pixels, [frames])
    plain, plain_grads = features_and_gradients(name, model, pixels, apart)
    true, true_grads = exact(model, lambda: features_and_gradients(name, model, pixels, apart))
    assert_rounds_alike(found, plain, true)
    assert_rounds_alike(grads, plain_grads, true_grads)


def test_a_token_may_be_of_more_patches_than_in_the_base(tmp_path):
    """The new projector makes of four equal tokens what the base's makes of each; it can be saved, loaded and
    compressed."""
    tiny = EVERY["internvl"]
    model, plain = tiny.model(), tiny.model().model
    add_pvc(model, PVCConfig(blocks=2, time_width=16, internvl_shuffle=4))
    alike = torch.randn(3, 2, 2, 16, generator=torch.Generator().manual_seed(0)).repeat(1, 2, 2, 1)
    with torch.no_grad():
        fine = plain.multi_modal_projector(plain.pixel_shuffle(alike, 0.5))
        coarse = model.model.multi_modal_projector(model.model.pixel_shuffle(alike, 0.25))
    assert fine.shape == (3, 2, 2, 64)
    assert_near(coarse.expand_as(fine), fine, roundings=200)
    assert model.config.image_seq_length == 1
    ids, pixels = torch.tensor([[5, *[IMAGE_ID] * 3, 6, 7]]), torch.randn(3, 3, 16, 16)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    inputs = shown_repeatedly(model, inputs, 2)
    expected = logits(trained(model), inputs)
    model.save_pretrained(tmp_path)
    assert_equal(logits(load_pvc(tmp_path).eval(), inputs), expected)
    check_cache(compress(model, PPE), inputs)
    with pytest.raises(InputError, match="internvl_shuffle=3: give a multiple of the base's 2 that divides its 4 x 4"):
        add_pvc(tiny.model(), PVCConfig(blocks=1, internvl_shuffle=3))


def test_training_moves_the_gates_first(name, model):
    add_pvc(model, SMALL).train()
    inputs = inputs_of(name, model)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] >= IMAGE_ID, -100)
    model(**inputs, labels=labels).loss.backward()
    grads = {key: float(weight.grad.abs().max()) for key, weight in model.named_parameters() if weight.grad is not None}
    gates = [key for key in grads if "temporal.gate" in key]
    assert len(gates) == 2
    assert all(
        grads[key] > 0 for key in grads if "temporal.gate" in key or ("modulation" in key and "temporal" not in key)
    )
    expected = dict(model.named_parameters())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    before = {key: weight.grad.clone() for key, weight in expected.items() if weight.grad is not None}
    model.zero_grad()
    model(**inputs, labels=labels).loss.backward()
    for key, grad in before.items():
        assert_near(expected[key].grad, grad, roundings=100, size=max(float(grad.abs().max()), 1.0))


def test_it_is_saved_and_loaded_with_its_own_keys(name, model, tmp_path):
    inputs = inputs_of(name, model)
    trained(add_pvc(model, SMALL))
    expected = logits(model, inputs)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["pvc"] == SMALL.as_dict()
    assert_equal(logits(load_pvc(tmp_path).eval(), inputs), expected)


def test_a_base_is_loaded_with_new_modules_that_change_nothing(name, model, tmp_path):
    inputs = inputs_of(name, model)
    expected = logits(model, base_inputs(inputs))
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no PVC modules"):
        load_pvc(tmp_path)
    loaded = load_pvc(tmp_path, SMALL).eval()
    assert (logits(loaded, inputs) - expected).abs().max() == 0
    new = {key: weight for key, weight in loaded.named_parameters() if "temporal.qkv.weight" in key}
    assert len(new) == 2
    assert all(weight.std() > 0 for weight in new.values())
    trained(loaded).save_pretrained(tmp_path / "trained")
    assert_equal(logits(load_pvc(tmp_path / "trained").eval(), inputs), logits(loaded, inputs))


def test_the_released_checkpoint_is_refused_with_what_is_known(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "pvc_internvl", "use_temporal": True}))
    with pytest.raises(InputError, match=r"only its configuration's keys image_repeat_time, .* are known"):
        load_pvc(tmp_path)


def test_compressed_its_frames_keep_their_times(name, model):
    """PVC with PPE: decoding is the same with and without a cache, and a ratio of 1 is PVC alone. (Qwen2.5-VL's small
    picture, shown three times, would be longer than wide, so that transformers numbers what follows differently:
    docs/numerics.md.)"""
    trained(add_pvc(model, SMALL))
    inputs = inputs_of(name, model, 3 if name == "internvl" else 2)
    real = inputs["attention_mask"].bool()
    expected, true = logits(model, inputs)[real], exact(model, lambda: logits(model, inputs)[real])
    compress(model, CompressionConfig.preset("ppe", k=4, ratio=1.0))
    assert_rounds_alike(logits(model, inputs)[real], expected, true)
    compress(model, PPE)
    check_cache(model, inputs)
    logits(model, inputs)
    assert model.compression.report.tokens_after < model.compression.report.tokens_before
    if name == "internvl":  # frames of the first picture: 3 showings of 3 tiles
        assert model.compression.last.layout.spans[0].grid[0] == 9
    else:
        times = model.compression.last.positions[0, : inputs["input_ids"].shape[1]]
        assert set(times[inputs["input_ids"][0] == VIDEO_ID].tolist()) >= {3, 5}


def test_compressed_a_prompt_is_alone_what_it_is_in_a_batch(name, model):
    tiny = EVERY[name]
    samples = [tiny.sample(model, [2, "picture", 3, "picture", 2], 0), tiny.sample(model, [1, "picture", 4], 1)]
    compress(trained(add_pvc(model, SMALL)), PPE)

    def last(*which):
        return logits(model, shown_repeatedly(model, together(which), 2))[:, -1]

    def alone():
        return torch.cat([last(sample) for sample in samples])

    expected, true = alone(), exact(model, alone)
    assert model.compression.report.tokens_after < model.compression.report.tokens_before
    assert_rounds_alike(last(*samples), expected, true)


def test_steps_that_leave_patches_out_before_all_frames_have_met_are_refused():
    model = add_pvc(EVERY["qwen2_5_vl"].model(), SMALL)
    for method in (PixelPrune(), PixelPrune(leave_after=1), IPCV(prune_block=1), ToMeTower(merge_blocks=(0,))):
        with pytest.raises(InputError, match=f"{method.name}: PVC's attention over frames .* leave_after=-1"):
            compress(model, CompressionConfig(steps=[method], positions="keep_one", k=1))
    compress(model, CompressionConfig(steps=[PixelPrune(leave_after=-1)], positions="keep_one", k=1))


def test_settings_that_do_not_fit_are_refused(name, model):
    with pytest.raises(InputError, match="blocks=9: the vision tower has 2"):
        add_pvc(model, PVCConfig(blocks=9))
    with pytest.raises(InputError, match="heads=3 do not divide"):
        add_pvc(EVERY[name].model(), PVCConfig(blocks=1, heads=3))
    with pytest.raises(InputError, match="has PVC's modules already"):
        add_pvc(add_pvc(EVERY[name].model(), SMALL), SMALL)
    with pytest.raises(InputError, match=r"PVC does not support model_type 'llava': take a model .*, or leave pvc out"):
        add_pvc(EVERY["llava"].model())


def test_pictures_that_the_prompts_hold_and_nobody_gave(name, model):
    inputs = together([EVERY[name].sample(model, [2, "picture", 3, "picture", 2], 0)])
    add_pvc(model, SMALL)
    if name == "internvl":
        short, held = {"pixel_values": inputs["pixel_values"][:3]}, "hold 4 tiles of token 90, but pixel_values has 3"
    else:
        grid = inputs["image_grid_thw"][:1]
        short = {"pixel_values": inputs["pixel_values"][: int(grid.prod())], "image_grid_thw": grid}
        held = "hold more images than the 1 whose pixels are given"
    with pytest.raises(InputError, match=f"{held}: give all that the processor returned"):
        shown_repeatedly(model, inputs | short, 2)


def test_steps_of_other_tiles_than_those_given():
    model = add_pvc(EVERY["internvl"].model(), SMALL)
    with pytest.raises(InputError, match=r"time_steps sum to 2 tiles, but pixel_values has 4: give both as shown_rep"):
        model.model.get_image_features(torch.zeros(4, 3, 16, 16), time_steps=[(2, 1)])
