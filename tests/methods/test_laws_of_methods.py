"""Laws that hold for every registered method; a new method's file is tested here without any addition.

Each method runs alone on four cells of unequal sizes, with all the data that it declares to need.
"""

import dataclasses
from unittest import mock

import pytest
import torch
import variants
import views
from torch.utils._python_dispatch import TorchDispatchMode

from ppe_npu.backends import device
from ppe_npu.methods import get
from ppe_npu.methods.base import Method
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.listing import default, grouping

pytestmark = pytest.mark.half

ACROSS = {"cdpruner"}  # the published code of these lets the samples of a batch affect each other
METHODS: dict[str, Method] = {name: default(name) for name in grouping()}
METHODS |= {
    f"{name} {how}": dataclasses.replace(method, dropped=how)
    for name, method in METHODS.items()
    for how in ("drop",)
    if hasattr(method, "dropped")
}
METHODS |= {
    f"{name} released": dataclasses.replace(method, released=True)
    for name, method in METHODS.items()
    if hasattr(method, "released") and name not in ACROSS and " " not in name
}
METHODS |= {
    "tome of layers": get("tome", layer=1),
    "tome of tokens": get("tome", metric="tokens"),
    "globalcom2 by dpc_knn": get("globalcom2", by={"method": "dpc_knn"}, temperature=0.5),
    "globalcom2 by divprune": get("globalcom2", by={"method": "divprune", "dropped": "drop"}, temperature=0.5),
}
VARIANTS = variants.variants()
SYNCS = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "unique")


@pytest.fixture(params=METHODS)
def method(request) -> Method:
    return METHODS[request.param]


def wanted(method: Method, share: float = 0.4) -> list[int]:
    """How many tokens each cell must keep: a fraction other than the method's own ratio, unless it counts late."""
    sizes = views.sizes_of(method)
    return [method.kept(size) if method.counts == "late" else max(int(size * share), 1) for size in sizes]


def found(method: Method, parts: dict, num_kept: list[int]) -> Grouping:
    return method.group(views.view_of(method, parts, num_kept))


def assert_same(one: Grouping, other: Grouping) -> None:
    for name in ("labels", "counts", "representatives", "weights"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b), name


def check_counts(method: Method, grouping: Grouping, kept: list[int]) -> None:
    """Checks that every cell keeps what it was asked for, in groups around representatives."""
    sizes = views.sizes_of(method)
    assert grouping.labels.shape == (4, max(sizes))
    for cell, (size, number) in enumerate(zip(sizes, kept)):
        labels, counts = grouping.labels[cell], grouping.counts[cell]
        groups = int((counts > 0).sum())
        assert groups == number if method.counts == "exact" else 1 <= groups <= number
        assert (counts[:groups] > 0).all()
        assert (labels[size:] == -1).all()
        assert counts.tolist() == [int((labels == group).sum()) for group in range(len(counts))]
        assert int(counts.sum()) == int((labels >= 0).sum())
        heads = grouping.representatives[cell, :groups]
        assert (heads.diff() > 0).all() or getattr(method, "released", False) or getattr(method, "order", "") == "score"
        assert labels[heads].tolist() == list(range(groups))
        if grouping.weights is not None:
            assert all(float(grouping.weights[cell][labels == group].sum()) > 0 for group in range(groups))


@pytest.mark.parametrize("form", VARIANTS)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_every_cell_keeps_what_it_was_asked_for_in_groups_around_representatives(form, seed):
    method = VARIANTS[form]
    kept = wanted(method)
    check_counts(method, found(method, views.parts_of(method, seed), kept), kept)


def test_all_tokens_kept_are_the_tokens(method):
    if getattr(method, "released", False):
        pytest.skip("it changes what stays, or how many do")
    parts, sizes = views.parts_of(method, whole=True), views.sizes_of(method)
    method = dataclasses.replace(method, ratio=1.0) if method.counts == "late" else method
    grouping = found(method, parts, sizes)
    merged = grouping.apply(parts["tokens"])
    for cell, size in enumerate(sizes):
        assert grouping.labels[cell, :size].tolist() == list(range(size))
        assert torch.equal(merged[cell, :size], parts["tokens"][cell, :size])


def test_two_runs_are_equal_and_a_permuted_batch_is_a_permuted_result(method):
    parts, kept = views.parts_of(method), wanted(method)
    grouping = found(method, parts, kept)
    assert_same(grouping, found(method, parts, kept))
    order = [2, 0, 3, 1]
    view = views.view_of(method, parts, kept)
    moved = {name: getattr(view, name)[order] for name in (*parts, "valid", "num_kept")}
    permuted = method.group(dataclasses.replace(view, **moved))
    parts_of = {field.name: getattr(grouping, field.name) for field in dataclasses.fields(grouping)}
    assert_same(
        permuted,
        dataclasses.replace(grouping, **{k: v[order] for k, v in parts_of.items() if isinstance(v, torch.Tensor)}),
    )


@pytest.mark.parametrize("form", VARIANTS)
@pytest.mark.parametrize("seed", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_padding_and_mates_change_nothing(form, seed):
    """Whatever padding holds, in every form of a method."""
    method = VARIANTS[form]
    parts, kept, sizes = views.parts_of(method, seed), wanted(method), views.sizes_of(method)
    grouping = found(method, parts, kept)
    used = torch.arange(grouping.counts.shape[1]) < (grouping.counts > 0).sum(1, keepdim=True)
    merged = grouping.apply(parts["tokens"])[used]
    for kind in views.PADDING:
        padded = views.with_padding(method, parts, kind)
        other = found(method, padded, kept)
        for name in ("labels", "counts", "representatives"):
            assert torch.equal(getattr(other, name), getattr(grouping, name)), kind
        assert torch.equal(other.apply(padded["tokens"])[used], merged), kind
    if method.name in ACROSS and getattr(method, "released", False):
        return
    for cell, size in enumerate(sizes):
        own = method.group(views.alone(method, parts, cell, kept[cell]))
        groups = int((own.counts > 0).sum())
        assert torch.equal(own.labels[0], grouping.labels[cell, :size])
        assert torch.equal(own.representatives[0, :groups], grouping.representatives[cell, :groups])


@pytest.mark.parametrize("form", VARIANTS)
def test_numbers_that_are_not_finite_stay_in_their_cell_and_have_defined_groups(form):
    method = VARIANTS[form]
    parts, kept, sizes = views.parts_of(method, seed=5), wanted(method), views.sizes_of(method)
    plain = found(method, parts, kept)
    across = method.name in ACROSS and getattr(method, "released", False)
    for cell, value in enumerate((torch.nan, torch.inf, -torch.inf, 3e38)):
        grouping = found(method, views.with_holes(method, parts, value, cell), kept)
        check_counts(method, grouping, kept)
        for other in range(len(sizes)):
            if other != cell and not across:
                groups = int((plain.counts[other] > 0).sum())
                assert torch.equal(grouping.labels[other], plain.labels[other])
                assert torch.equal(grouping.representatives[other, :groups], plain.representatives[other, :groups])


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_the_choice_is_made_in_fp32_whatever_the_tokens_are(method, seed):
    parts, kept = views.parts_of(method, seed), wanted(method)
    halves = {name: value.bfloat16() if value.is_floating_point() else value for name, value in parts.items()}
    whole = {name: value.float() if value.is_floating_point() else value for name, value in halves.items()}
    one, other = (found(method, given, kept) for given in (halves, whole))
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.representatives, other.representatives)
    assert one.apply(halves["tokens"]).dtype == torch.bfloat16


def test_gradients_flow_through_the_means_and_not_through_the_choice(method):
    parts, sizes = views.parts_of(method), views.sizes_of(method)
    inputs = {name: value.requires_grad_(value.is_floating_point()) for name, value in parts.items()}
    grouping = found(method, inputs, wanted(method))
    assert not grouping.labels.requires_grad
    assert grouping.weights is None or not grouping.weights.requires_grad
    used = torch.arange(grouping.counts.shape[1]) < (grouping.counts > 0).sum(1, keepdim=True)
    grouping.apply(parts["tokens"])[used].square().sum().backward()
    gradient = parts["tokens"].grad
    assert torch.isfinite(gradient).all()
    for cell, size in enumerate(sizes):
        assert gradient[cell, :size].any()
        assert not gradient[cell, size:].any()


class Recorder(TorchDispatchMode):
    """Records the names of all operators, and of those whose output is fp64."""

    def __init__(self):
        super().__init__()
        self.names, self.wide = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        if isinstance(out, torch.Tensor) and out.dtype == torch.float64:
            self.wide.append(self.names[-1])
        return out


def test_the_host_does_not_wait_and_nothing_is_fp64(method):
    """No operator makes fp64, because an NPU gains nothing from it and lacks many operators for it; and with exact
    counts none waits for the device."""
    if method.on_host or method.scope == "segment":
        pytest.skip("its groups are found on the host")
    view = views.view_of(method, views.parts_of(method), wanted(method))
    with mock.patch.object(device, "asks_freely", return_value=False), Recorder() as recorder:
        method.group(view)
    assert not recorder.wide
    if method.counts == "exact":
        assert not set(recorder.names) & set(SYNCS)


def test_what_only_the_host_knows_changes_nothing(method):
    view = views.view_of(method, views.parts_of(method), wanted(method))
    assert_same(method.group(view), method.group(dataclasses.replace(view, least=1, frames=None, frame_tokens=None)))


def test_settings_are_kept_in_files(method):
    assert get(method.name, **{k: v for k, v in method.to_dict().items() if k != "method"}) == method
