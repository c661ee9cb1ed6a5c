"""The state of a pass through a tower does not outlive it, does not affect other passes, and makes no host wait more
than once."""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from naive_ipcv import METHOD, PROMPTS, TOWERS, features, given, run
from naive_ipcv import config as config_of
from prompts import logits
from support import FAMILIES, family_of, model_with
from test_no_sync import SYNCS, Recorder
from tolerances import assert_equal
from tower_laws import check_nesting, check_threads

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.backends import device
from ppe_npu.methods import ToMeTower
from ppe_npu.models.fused import fuse
from ppe_npu.models.loss import uncompressed

pytestmark = pytest.mark.half

family, model = family_of(FAMILIES), model_with(TOWERS)


@pytest.fixture(params=[METHOD, ToMeTower(0.4, merge_blocks=(1, 3, 5))], ids=["ipcv", "tome_tower"])
def config(request):
    return config_of(request.param)


def test_an_exception_in_the_tower_leaves_the_next_pass_right(model, family, config):
    inputs = given(family)
    compress(model, config)
    expected = logits(model, inputs)
    hook = model.model.visual.blocks[4].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits(model, inputs)
    hook.remove()
    assert_equal(logits(model, inputs), expected)


def test_passes_nest_and_run_in_threads(model, family, config):
    compress(model, config)
    runs = [functools.partial(_features, model, inputs) for inputs in (given(family), given(family, PROMPTS[2]))]
    check_nesting(model.model.visual.blocks[4].mlp, *runs)
    check_threads(*runs)


def _features(model, inputs):
    return features(run(model, inputs))


def test_restoring_and_copies_leave_nothing(model, family, config):
    inputs, visual = given(family), model.model.visual
    before = [set(vars(module)) for module in (visual, *visual.blocks)]
    plain = logits(compress(model, CompressionConfig.preset("dense")), inputs)
    compress(model, config)
    expected = logits(model, inputs)
    told = model.compression.report.in_tower.patches
    twin, shadow = copy.deepcopy(model), copy.copy(model)
    restore(shadow)
    assert_equal(logits(model, inputs), expected)
    restore(model)
    assert [set(vars(module)) for module in (visual, *visual.blocks)] == before
    assert_equal(logits(twin, inputs), expected)
    assert twin.compression.report.in_tower.patches == told
    assert_equal(logits(compress(model, CompressionConfig.preset("dense")), inputs), plain)


def test_a_teacher_that_sees_all_has_the_tower_as_it_is(model, family, config):
    inputs = given(family)
    plain = logits(compress(model, CompressionConfig.preset("dense")), inputs)
    compress(model, config)
    expected = logits(model, inputs)
    with uncompressed(model):
        assert_equal(logits(model, inputs), plain)
    assert_equal(logits(model, inputs), expected)


def waits(work, model, inputs, monkeypatch):
    """How often the host reads from a device while work(model, inputs) runs."""
    seen = []
    for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__index__"):
        call = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, call=call, **k: seen.append(1) or call(self, *a, **k))
    recorder = Recorder()
    monkeypatch.setattr(device, "asks_freely", lambda _: False)  # as on an accelerator
    with recorder, torch.no_grad():
        work(model, inputs)
    monkeypatch.undo()
    return len(seen) + len([name for name in recorder.names if name in SYNCS])


@pytest.mark.parametrize("method", [METHOD, replace(METHOD, per_image=True)], ids=["prompt", "image"])
def test_the_host_waits_once_more_than_for_the_tower_as_it_is(model, family, method, monkeypatch):
    """The tower is called directly, and in a model with several prompts."""
    fuse(model)
    for call, inputs in ((run, given(family, PROMPTS[0])), (logits, given(family))):
        if call is run and method.per_image:
            continue  # in a direct call the host also reads which rows belong to an image
        compress(model, CompressionConfig.preset("dense"))
        call(model, inputs)
        plain = waits(call, model, inputs, monkeypatch)
        compress(model, config_of(method))
        call(model, inputs)
        assert waits(call, model, inputs, monkeypatch) <= plain + 1
