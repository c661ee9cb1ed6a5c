"""Between the vision tower and the first decoder layer: no host sync, and no more operators for more frames."""

import pytest
import torch
import transformers
from packaging.version import Version
from prompts import MIXED, PRESETS
from support import Prompt, batch
from torch.utils._python_dispatch import TorchDispatchMode

from ppe_npu import CompressionConfig, compress

SYNCS = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "unique")


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names, self.on = [], False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.on:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def operators(model, inputs, last="layer 0") -> list[str]:
    """Names of the operators between the vision tower and the first layer, or the head."""
    recorder = Recorder()

    def start(*_):
        recorder.on = True

    def stop(*_):
        recorder.on = False

    hooks = [
        model.model.visual.register_forward_hook(start),
        (model.lm_head if last == "head" else model.model.language_model.layers[0]).register_forward_pre_hook(stop),
    ]
    with recorder, torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return recorder.names


def test_everything_is_uploaded_before_the_tower_runs(model, monkeypatch):
    """An upload between the tower and the first layer would make the host wait for the tower."""
    from ppe_npu import plan

    events = []
    upload = plan.upload
    monkeypatch.setattr(plan, "upload", lambda array, device: events.append("upload") or upload(array, device))
    compress(model, CompressionConfig.preset("ppe", k=4))
    inputs = batch(Prompt([1, ("video", (2, 3, 4)), 1]), Prompt([2, ("image", (1, 2, 2))], seed=1))
    model.model.visual.register_forward_hook(lambda *_: events.append("tower"))
    model.model.language_model.layers[0].register_forward_pre_hook(lambda *_: events.append("layer"))
    with torch.no_grad():
        model(**inputs)
    assert events.count("upload") > 5
    assert "upload" not in events[events.index("tower") : events.index("layer")]


def test_no_sync_and_no_growth_with_frames_or_samples(model):
    for preset in ("ppe", "keep_one", "chatunivi"):
        compress(model, CompressionConfig.preset(preset, **({"k": 4} if preset == "ppe" else {})))
        operators(model, batch(Prompt([1, ("video", (1, 1, 2)), 1])))  # the channel lookup of K is made once
        few = operators(model, batch(Prompt([1, ("video", (2, 3, 4)), 1])))
        many = operators(model, batch(Prompt([1, ("video", (40, 3, 4)), 1])))
        samples = operators(model, batch(*[Prompt([1, ("video", (2, 3, 4)), 1], seed=s) for s in range(6)]))
        assert len(few) > 30
        assert "bmm" in few
        assert not set(many) & set(SYNCS), sorted(set(many) & set(SYNCS))
        assert len(many) == len(few)
        assert len(samples) == len(few)
        unequal = operators(model, batch(*[Prompt([n, ("video", (n, 3, 4)), 1], seed=n) for n in range(1, 7)]))
        assert not set(unequal) & set(SYNCS), sorted(set(unequal) & set(SYNCS))


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.3"), reason="its masks are sized by numbers read from the device"
)
def test_no_sync_inside_a_cascade(model, monkeypatch):
    """From the vision tower to the head: nothing is asked for, nothing is uploaded."""
    from ppe_npu import plan

    for config in (
        PRESETS["cascade"],
        PRESETS["cascade from 0"],
        PRESETS["keep_one cascade"],
        PRESETS["chatunivi cascade"],
    ):
        compress(model, config)
        for prompts in (MIXED, [Prompt([1, ("video", (2, 3, 4)), 1])]):
            inputs = batch(*prompts)
            operators(model, inputs)  # lookups are made once
            names = operators(model, inputs, last="head")
            assert not set(names) & set(SYNCS), sorted(set(names) & set(SYNCS))
    uploads = []
    upload = plan.upload
    monkeypatch.setattr(plan, "upload", lambda array, device: uploads.append(1) or upload(array, device))
    model.model.visual.register_forward_hook(lambda *_: uploads.clear())
    with torch.no_grad():
        model(**batch(*MIXED))
    assert not uploads
