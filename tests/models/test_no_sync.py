"""Between the vision tower and the first decoder layer (in cascades, the head) there is no host sync, and more frames
need no more operators."""

import contextlib
from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch
import transformers
from packaging.version import Version
from prompts import MIXED, PRESETS
from support import Prompt, batch
from tolerances import assert_equal
from torch.utils._python_dispatch import TorchDispatchMode

from ppe_npu import CompressionConfig, compress
from ppe_npu.backends import device, segments
from ppe_npu.engine import merge
from ppe_npu.methods import DART, DPCKNN, PACT, DivPrune, FastV, GlobalCom2, PyramidDrop, SparseVLM, get
from ppe_npu.models.forward_pass import ForwardPass
from ppe_npu.models.fused import fuse

pytestmark = pytest.mark.half

SYNCS = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "unique")


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def region(model, enter, leave, last="layer 0"):
    """Calls enter() after the vision tower has run, and leave() before the first layer, or before the head.

    leave() is also called before the tower runs, because the tower reads its grids on the host.
    """
    end = model.lm_head if last == "head" else model.model.language_model.layers[0]

    def after(*_) -> None:  # a hook's result would replace the output
        enter()

    def before(*_) -> None:
        leave()

    tower = model.model.visual
    hooks = [module.register_forward_pre_hook(before) for module in (tower, end)] + [tower.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def operators(model, inputs, last="layer 0") -> list[str]:
    """Names of the operators between the vision tower and the first layer, or before the head.

    On a CPU the host reads results if that saves work; here it behaves as on other devices.
    """
    recorder, recording = Recorder(), contextlib.ExitStack()  # a recorder slows operators, so it is on only there
    within = region(model, partial(recording.enter_context, recorder), recording.close, last)
    unasked = mock.patch.object(device, "asks_freely", return_value=False)
    with recording, unasked, within, torch.no_grad():
        model(**inputs)
    return recorder.names


def test_everything_is_uploaded_before_the_tower_runs(model, monkeypatch):
    """An upload between the tower and the first layer would make the host wait for the tower."""
    from ppe_npu.engine import rounds

    events = []
    upload = rounds.upload
    monkeypatch.setattr(rounds, "upload", lambda array, device: events.append("upload") or upload(array, device))
    monkeypatch.setattr(device, "asks_freely", lambda _: False)  # on a CPU, plans are not uploaded otherwise
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
    """From the vision tower to the head, nothing is read back and nothing is uploaded."""
    from ppe_npu.engine import rounds

    for config in (
        PRESETS["cascade"],
        PRESETS["cascade from 0"],
        PRESETS["keep_one cascade"],
        PRESETS["chatunivi cascade"],
        CompressionConfig(steps=[FastV(layer=1), DART(0.4, layer=2)], k=4),
        CompressionConfig(steps=[PyramidDrop(layer=[0, 2]), PyramidDrop(0.7, layer=[1])], k=4),
        CompressionConfig(steps=[SparseVLM(layer=1), PACT(0.4, layer=2)], k=4),
    ):
        compress(model, config)
        for prompts in (MIXED, [Prompt([1, ("video", (2, 3, 4)), 1])]):
            inputs = batch(*prompts)
            operators(model, inputs)  # lookups are made once
            names = operators(model, inputs, last="head")
            assert not set(names) & set(SYNCS), sorted(set(names) & set(SYNCS))
    uploads = []
    upload = rounds.upload
    monkeypatch.setattr(rounds, "upload", lambda array, device: uploads.append(1) or upload(array, device))
    monkeypatch.setattr(device, "asks_freely", lambda _: False)  # on a CPU, plans are not uploaded otherwise
    model.model.visual.register_forward_hook(lambda *_: uploads.clear())
    with torch.no_grad():
        model(**batch(*MIXED))
    assert not uploads


FRAMES_APART = [GlobalCom2(0.4, by=DivPrune()), get("evs", ratio=0.4), get("vidcom2", ratio=0.3)]
ON_FRAMES = {
    "input": {"steps": FRAMES_APART[:1], "k": 4},
    "after another": {"steps": [DivPrune(0.8), FRAMES_APART[0]], "k": 4},
    "several": {"steps": FRAMES_APART, "k": 4},
    "in layers": {"steps": [FastV(layer=1), GlobalCom2(0.4, by=DPCKNN(), layer=2)]},
    "tome": {"steps": [get("tome", ratio=0.4, metric="tokens"), get("tome", ratio=0.7, metric="tokens", layer=1)]},
}


SHOWN = merge.view_of


def asking_view(*args):
    return replace(SHOWN(*args), least=1, frames=None, frame_tokens=None)


@pytest.mark.parametrize("settings", ON_FRAMES.values(), ids=ON_FRAMES)
def test_methods_on_frames_wait_for_nothing(model, settings, monkeypatch):
    """The host knows the largest number of frames, their size, and the smallest number of tokens that a cell keeps.
    Results equal those of methods that have to read these numbers from the device."""
    config = CompressionConfig(**settings)
    compress(model, config)
    for inputs in (
        batch(*MIXED),
        batch(Prompt([1, ("video", (5, 3, 4)), 1]), Prompt([2, ("video", (2, 4, 4)), 3], seed=1)),
    ):
        operators(model, inputs)
        names = operators(model, inputs, last="head")
        assert not set(names) & set(SYNCS), sorted(set(names) & set(SYNCS))
        with torch.no_grad():
            told = model(**inputs).logits
            with monkeypatch.context() as patched:
                patched.setattr(merge, "view_of", asking_view)
                asking = operators(model, inputs, last="head")
                assert_equal(model(**inputs).logits, told)
    assert bool(set(asking) & set(SYNCS)) == any(getattr(step, "by", None) is not None for step in config.methods)


@pytest.mark.parametrize("packed", [False, True])
def test_what_segments_need_is_uploaded_before_the_tower_runs(model, packed):
    """The batch is padded or packed, and has lengths that were not seen before."""
    compress(fuse(model), PRESETS["cascade"])
    made = []
    note = partial(lambda: made.append(segments._plan.cache_info().misses))
    inputs = batch(*(Prompt([n, ("video", (2, 3, 4)), n], seed=n) for n in (21, 22, 23)))
    with region(model, note, note, last="head"), torch.no_grad():
        model(**inputs, ppe=ForwardPass(packed=packed))
    before, entered, left = made
    assert before < entered == left  # the tower itself asks for one
    segments._plan.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device, which would itself raise at a sync")
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("preset", ["ppe", "cascade", "keep_one", "chatunivi"])
def test_cuda_raises_at_no_sync(model, preset, fused):
    """set_sync_debug_mode("error") is on from the vision tower to the first layer, or to the head in a cascade."""
    model = compress((fuse(model) if fused else model).cuda(), PRESETS[preset])
    last = "head" if preset == "cascade" else "layer 0"
    seen = []

    def forbid():
        seen.append("tower")
        torch.cuda.set_sync_debug_mode("error")

    def run(*more):
        with region(model, lambda: [step() for step in (forbid, *more)], allow, last), torch.no_grad():
            model(**inputs)

    def allow():
        seen.append(last)
        torch.cuda.set_sync_debug_mode("default")

    try:
        for prompts in (MIXED, [Prompt([1, ("video", (2, 3, 4)), 1])]):
            inputs = {name: value.cuda() for name, value in batch(*prompts).items()}
            model(**inputs)  # kernels are compiled and lookups made once
            run()
            assert seen[-2:] == ["tower", last]
            with pytest.raises(RuntimeError, match="synchroniz"):
                run(lambda: torch.ones(1, device="cuda").item())
            torch.cuda.set_sync_debug_mode("default")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_tower_runs_once_and_the_region_is_what_follows_it(model):
    """MIXED has images and a video. Under ZeRO-3 every process must call the same modules, whatever its inputs are."""
    compress(model, PRESETS["ppe"])
    events = []
    tower = model.model.visual
    tower.register_forward_pre_hook(lambda *_: events.append("tower"))
    with region(model, lambda: events.append("enter"), lambda: events.append("leave")), torch.no_grad():
        model(**batch(*MIXED))
    assert events == ["tower", "leave", "enter", "leave"]
