"""Methods whose counts depend on the features, and competition of all frames' tokens with text between the frames."""

import pytest
import torch
import toys
from prompts import GREEDY, PRESETS, check_alone, check_cache, kept_logits, logits
from support import FAMILIES, Prompt, batch, family_of, random_model
from test_packing import check_packed
from test_steps import given_to_the_decoder, traced
from tolerances import assert_rounds_alike, exact, loss_near

from ppe_npu import CompressionConfig, compress
from ppe_npu.engine import late
from ppe_npu.methods import DPCKNN, Random
from ppe_npu.methods.grouping import Grouping
from ppe_npu.models.fused import fuse

pytestmark = pytest.mark.half

STEPS = {
    "late": [toys.Late()],
    "late of a video": [toys.LateOfVideo()],
    "late, then exact": [toys.Late("merge"), DPCKNN(0.6), DPCKNN(0.6, layer=1), toys.Late(layer=2)],
    "exact, then late": [Random(0.8), DPCKNN(0.8, layer=0), toys.LateOfVideo(layer=1)],
    "video, then frames": [toys.LargestOfVideo(0.4), toys.Largest(0.7), toys.Corner(0.5, layer=1)],
}
MODELS = {family: random_model(family=family) for family in FAMILIES}
FUSED = {family: fuse(random_model(family=family)) for family in FAMILIES}


def config_of(name, positions="ppe"):
    return CompressionConfig(steps=STEPS[name], positions=positions, k=4 if positions == "ppe" else 1)


def prompts_of(family):
    video = "frames" if family == "qwen3_vl" else "video"
    return [
        Prompt([2, ("image", (1, 4, 5)), 3, (video, (3, 3, 4)), 2], seed=1),
        Prompt([5], seed=2),
        Prompt([1, (video, (2, 2, 3)), 2, ("image", (1, 3, 3)), ("image", (1, 1, 1)), 4], seed=3),
    ]


def inputs_of(family, *prompts, **kwargs):
    inputs = batch(*prompts, **kwargs)
    return {name: value for name, value in inputs.items() if family == "qwen2_5_vl" or name != "second_per_grid_ts"}


family = family_of(["qwen2_5_vl", "qwen3_vl"])


@pytest.mark.parametrize("name", STEPS)
def test_a_prompts_result_depends_on_the_prompt_alone(family, name):
    config, prompts = config_of(name), prompts_of(family)
    model, fused = compress(MODELS[family], config), compress(FUSED[family], config)
    check_alone(model, fused, prompts, kept_logits, pad_to=60)


@pytest.mark.parametrize("name", STEPS)
def test_a_packed_batch_is_its_samples(family, name):
    check_packed(compress(FUSED[family], config_of(name)), prompts_of(family), "right")


@pytest.mark.parametrize(
    "positions",
    ["ppe", pytest.param("keep_one", marks=pytest.mark.slow), pytest.param("renumber", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", ["late", "late, then exact", "video, then frames"])
def test_decoding_with_the_cache_gives_the_logits_of_decoding_without(family, name, positions):
    model = compress(MODELS[family], config_of(name, positions))
    cached = check_cache(model, inputs_of(family, *prompts_of(family)))
    report = model.compression.report
    lengths = [len(prompt.ids) for prompt in prompts_of(family)]
    for layer, cache in enumerate(cached.past_key_values.layers):
        left = list(lengths)
        for span in report.spans:
            left[span.sample] -= span.before - span.layers[layer]
        assert cache.get_seq_length() == max(left) + 2


def test_a_second_turn_goes_on_where_the_first_ended(model):
    compress(model, config_of("late, then exact"))
    inputs, settings = batch(prompts_of("qwen2_5_vl")[0]), {"max_new_tokens": 3, **GREEDY}
    first = model.generate(**inputs, **settings, return_dict_in_generate=True)
    more = torch.cat([first.sequences, torch.tensor([[11, 12, 13, 14]])], dim=1)
    rest = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    second = model.generate(**rest, past_key_values=first.past_key_values, **settings)
    assert torch.equal(second, model.generate(**{**inputs, **rest}, **settings))


@pytest.mark.parametrize("name", ["late", "late, then exact"])
@pytest.mark.ci
def test_the_loss_is_one_however_it_is_asked_for(family, name):
    """Labels are aligned with their tokens, even though these are known only after the pass."""
    model = compress(FUSED[family], config_of(name)).train()
    inputs = inputs_of(family, *prompts_of(family), side="right")
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    labels = torch.where(real & (ids < 90), ids, -100)
    out = model(**inputs, labels=labels)
    for row, (own, arranged) in enumerate(zip(labels, out.labels)):
        assert arranged[arranged != -100].tolist() == own[own != -100].tolist(), row
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), out.labels[:, 1:].flatten())
    assert out.loss.item() == loss_near(expected.item())
    for wishes in ({"skip_logits": True}, {"skip_logits": True, "packed": True}, {"packed": True}):
        assert model(**inputs, labels=labels, **wishes).loss.item() == loss_near(expected.item())
    halved = model(**inputs, labels=labels, num_items_in_batch=torch.tensor(10)).loss.item()
    assert halved == loss_near(expected.item() * int((out.labels[:, 1:] != -100).sum()) / 10)
    model.eval()
    tupled = model(**inputs, labels=labels, return_dict=False)
    assert tupled[0].item() == loss_near(expected.item())
    assert torch.equal(tupled[1], model(**inputs).logits)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_survive_checkpointing(family, reentrant):
    model = compress(random_model(family=family), config_of("late, then exact")).train()
    inputs = inputs_of(family, *prompts_of(family))
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -100)

    def gradients():
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected, true = gradients(), exact(model, gradients)
    assert all(gradient.abs().max() > 0 for name, gradient in expected.items() if "layers" in name)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    assert_rounds_alike(gradients(), expected, true)


def test_each_frame_keeps_what_its_features_say_and_the_report_counts_it(model):
    prompts = prompts_of("qwen2_5_vl")
    config = CompressionConfig(steps=[toys.Late()], positions="keep_one")
    dense = given_to_the_decoder(model, CompressionConfig.preset("dense"), prompts[0])[0]
    out, trace, _ = traced(model, config, prompts[0])
    report = model.compression.report
    cells = {0: [(2, 20)], 1: [(25, 12), (37, 12), (49, 12)]}
    for (number, frames), span, visual in zip(cells.items(), report.spans, trace.visuals()):
        norms = [dense[start : start + count].norm(dim=-1) for start, count in frames]
        kept = [(own > own.mean()).nonzero()[:, 0] for own in norms]
        counts = [len(own) for own in kept]
        assert span.after == sum(counts), number
        assert len(set(counts)) > 1 or len(counts) == 1
        (groups,) = visual.stages
        expected = torch.cat([own + frame * frames[0][1] for frame, own in enumerate(kept)])
        assert groups.representatives.tolist() == expected.tolist()
        grid = {0: (1, 8, 10), 1: (3, 6, 8)}[number]
        assert span.after < config.tokens_kept(grid) == sum(count for _, count in frames)
    assert report.prompt_tokens_after == out.shape[1] == report.tokens_after + 7


def test_a_late_method_that_keeps_all_is_the_dense_model(model, monkeypatch):
    def everything(self, view):
        counts = view.present.sum(1)
        return Grouping.of(
            torch.where(view.present, torch.arange(view.most), -1), torch.arange(view.most).expand(len(counts), -1)
        )

    inputs = batch(*prompts_of("qwen2_5_vl"))
    compress(model, CompressionConfig.preset("dense"))
    real = inputs["attention_mask"].bool()
    dense, true = logits(model, inputs)[real], exact(model, lambda: logits(model, inputs)[real])
    monkeypatch.setattr(toys.Late, "group", everything)
    for layers in (None, 1, (0, 2)):
        config = CompressionConfig(steps=[toys.Late(layer=layers)])
        assert_rounds_alike(logits(compress(model, config), inputs)[real], dense, true)


def test_all_frames_compete_where_text_stands_between_them():
    """The total is known in advance; how many tokens each frame loses depends on the features."""
    model, prompt = MODELS["qwen3_vl"], prompts_of("qwen3_vl")[0]
    compress(model, CompressionConfig.preset("dense"))
    embeds, ids = [], torch.tensor(prompt.ids)
    hook = model.model.language_model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: embeds.append((args or tuple(kwargs.values()))[0]), with_kwargs=True
    )
    logits(model, inputs_of("qwen3_vl", prompt))
    hook.remove()
    norms = embeds[0][0][ids == 91].norm(dim=-1)
    for ratio in (0.1, 0.4, 1.0):
        config = CompressionConfig(steps=[toys.LargestOfVideo(ratio)], positions="keep_one")
        compress(model, config)
        model.compression.keep_groups = True
        out = logits(model, inputs_of("qwen3_vl", prompt))
        image, video = model.compression.report.spans
        assert [image.after, video.after] == [config.tokens_kept((1, 8, 10)), config.tokens_kept((3, 6, 8))]
        (groups,) = model.compression.trace.visuals()[1].stages
        expected = norms.sort(descending=True).indices[: video.after].sort().values
        assert groups.representatives.tolist() == expected.tolist()
        assert out.shape[1] == len(prompt.ids) - image.before - video.before + image.after + video.after
        text = ids[ids < 90].tolist() + ids[ids > 91].tolist()
        labels = model(**inputs_of("qwen3_vl", prompt), labels=ids[None]).labels[0]
        assert sorted(labels[labels != -100].tolist()) == sorted(text)


@pytest.mark.parametrize("name", [*STEPS, "exact"])
def test_the_host_looks_once_for_each_late_step(family, name, monkeypatch):
    looks, read = [], late._read
    monkeypatch.setattr(late, "_read", lambda *args: looks.append(1) or read(*args))
    config = PRESETS["cascade"] if name == "exact" else config_of(name)
    logits(compress(MODELS[family], config), inputs_of(family, *prompts_of(family)))
    apart = family == "qwen3_vl"
    wanted = {"exact": 0, "late": 1, "late of a video": 1, "late, then exact": 2, "exact, then late": 1}
    assert len(looks) == wanted.get(name, 3 if apart else 0)


def test_a_plan_that_is_used_again_is_laid_out_again(model):
    """The stages of a plan depend on the features of each pass."""
    compress(model, config_of("late, then exact"))
    engine, inputs = model.compression, batch(prompts_of("qwen2_5_vl")[0])
    given = [inputs.get(name) for name in ("input_ids", "attention_mask", "image_grid_thw", "video_grid_thw")]
    plan = engine.plan(*given, None)
    generator, counts = torch.Generator().manual_seed(0), set()
    for _ in range(4):
        features = torch.randn(56, 6, generator=generator)
        _, embeds = engine.prefill(plan, torch.zeros(7, 6), features)
        counts.add(embeds.shape[1])
    assert len(counts) > 1


def test_groups_with_gaps_are_our_own_fault(model, monkeypatch):
    def gap(self, view):
        labels = torch.where(view.present, 1, -1)
        return Grouping.of(labels, torch.zeros(len(labels), view.most, dtype=torch.long))

    monkeypatch.setattr(toys.Late, "group", gap)
    with pytest.raises(ValueError, match="must number the groups of a cell 0, 1, 2"):
        logits(compress(model, config_of("late")), batch(prompts_of("qwen2_5_vl")[0]))
