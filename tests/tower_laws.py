"""Laws of every method inside the vision tower: attention, methods that only look, checkpoints, and the report."""

import threading

import torch
from naive_ipcv import config, features, given, run
from prompts import logits
from tolerances import assert_equal, assert_rounds_alike, exact
from torch.utils.flop_counter import FlopCounterMode

from ppe_npu import compress
from ppe_npu.methods import VisionZip
from ppe_npu.models.fused import fuse


def check_attending(model, family, method, kind):
    """Features depend neither on how the tower attends ("eager", "fused") nor on returning all states ("shown")."""
    inputs = given(family)
    compress(model, config(method))
    with torch.no_grad():
        plain, true = features(run(model, inputs)), exact(model, lambda: features(run(model, inputs)))
        if kind == "fused":
            fuse(model)
        if kind == "eager":
            model.model.visual.set_attn_implementation("eager")
        more = {"output_hidden_states": True} if kind == "shown" else {}
        found = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"], **more)
    assert_rounds_alike(features(found), plain, true, layers=8)
    if more:
        assert {len(state) for state in found.hidden_states} == {len(inputs["pixel_values"])}


def check_looking(model, inputs, method, blocks):
    """A method that looks into a block sees all patches, and does not change the features."""
    compress(model, config(method))
    with torch.no_grad():
        plain, true = features(run(model, inputs)), exact(model, lambda: features(run(model, inputs)))
        for block in blocks:
            compress(model, config(method, VisionZip(0.5, tower_block=block, tower_windows="frame")))
            assert_rounds_alike(features(run(model, inputs)), plain, true, layers=8)


def check_checkpoints(model, inputs, method, reentrant):
    """Blocks that are run once more give the same gradients."""
    compress(model, config(method)).train()
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -100)

    def trained():
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = trained()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again = trained()
    assert again.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_equal(again[name], gradient, name)


def check_work(model, inputs, method, apart=0):
    """The report gives as many operations for the tower and for the decoder as torch counts.

    Args:
        apart: operations with which the method itself chooses; torch counts them, and the report does not.

    Returns:
        the report's part about the tower.
    """
    counter = FlopCounterMode(display=False)
    compress(fuse(model), config(method))
    with counter:
        logits(model, inputs)
    report = model.compression.report
    told = report.in_tower
    # torch does not count attention on a CPU, so it is added by pairs; batched products are a method's comparisons.
    products = {
        name: sum(flops for kind, flops in kinds.items() if "bmm" not in str(kind))
        for name, kinds in counter.flop_counts.items()
    }
    linear = sum(flops for name, flops in products.items() if name.rpartition(".")[0].endswith("visual.blocks"))
    pairs = 4 * 32 * sum(block.ran[2] for block in told.blocks.values())
    assert told.flops + apart == linear + pairs
    assert told.flops < told.dense_flops
    linear = sum(flops for name, flops in products.items() if name.rpartition(".")[0].endswith("language_model.layers"))
    text, tokens = model.config.text_config, report.prompt_tokens_after
    assert told.decoder == linear + 4 * text.hidden_size * text.num_hidden_layers * tokens * (tokens + 1) // 2
    return told


@torch.no_grad()
def check_nesting(module, first, other):
    """A tower may run in the middle of another pass. module: a part of the tower; first, other: functions that run the
    tower on inputs of their own and return tensors."""
    expected, inner_expected, inner = first(), other(), []

    def another(*_) -> None:
        if not inner:
            inner.append(None)
            inner[:] = other()

    hook = module.register_forward_hook(another)
    found = first()
    hook.remove()
    for one, true in zip([*found, *inner], [*expected, *inner_expected], strict=True):
        assert_equal(one, true)


@torch.no_grad()
def check_threads(*runs):
    """Runs of a tower, each on inputs of its own, return the same tensors when they run in threads at once."""
    expected, found, start = [own() for own in runs], {}, threading.Barrier(len(runs))

    @torch.no_grad()
    def work(number, own):
        start.wait()
        found[number] = [own() for _ in range(4)]

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, true in enumerate(expected):
        for again in found[number]:
            for one, part in zip(again, true, strict=True):
                assert_equal(one, part)
