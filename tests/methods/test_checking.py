"""A method's functions called alone: those that it lacks, and what they may not be given or return."""

import pytest
import torch
import toys
from prompts import logits
from support import Prompt, batch, random_model

from ppe_npu import CompressionConfig, compress
from ppe_npu.errors import InputError
from ppe_npu.methods import IPCV, Method, get
from ppe_npu.methods.view import View

TOKENS, CELLS = torch.rand(1, 4, 2), torch.rand(3, 4, 5)
HERE = torch.arange(12).view(3, 4)


class Nothing(Method):
    """Defines no function."""

    name = "toy_nothing"


class Gathering(Nothing):
    """Defines none of those that its scope needs, either."""

    scope = "segment"


class Chosen(toys.Pixels):
    """Returns what the test asks for."""

    name = "toy_chosen"
    returned = (HERE % 2 == 0, HERE - HERE % 2)

    def select(self, cells):
        return self.returned


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: IPCV().group(View.of(tokens=TOKENS)),
            r"ipcv works inside the vision tower and has no group\(\): compress a model with it, see Method.places",
        ),
        (
            lambda: get("pixelprune").group(View.of(tokens=TOKENS)),
            r"pixelprune works at the pixels and has no group\(\): call select\(\), or compress a model with it",
        ),
        (
            lambda: get("dpc_knn").select(CELLS),
            r"dpc_knn works before the decoder and has no select\(\): call group\(\), or compress a model with it",
        ),
        (lambda: get("dpc_knn", layer=2).select(CELLS), "dpc_knn works at decoder layers and has no select"),
        (lambda: get("tome_tower").select(CELLS), r"tome_tower works inside the vision tower .*: call group\(\), or"),
        (
            lambda: get("dpc_knn").segment(View.of(tokens=TOKENS)),
            r'has no segment\(\): only methods with scope="segment" have one',
        ),
        (lambda: get("dpc_knn").segment_budgets([2], 4), r"no segment_budgets\(\): only methods with scope"),
        (lambda: Nothing().group(View.of(tokens=TOKENS)), r"has no group\(\): define group\(\) in Nothing"),
        (lambda: Gathering().segment(View.of(tokens=TOKENS)), r"has no segment\(\): define segment\(\) in Gathering"),
    ],
)
def test_a_function_that_a_method_lacks_is_refused_with_what_to_call(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("given", [TOKENS, None, {"tokens": TOKENS}])
def test_a_group_is_given_a_view(given):
    with pytest.raises(InputError, match=r"dpc_knn\.group\(\) was given a .*: give a View, such as View\.of"):
        get("dpc_knn").group(given)


@pytest.mark.parametrize(
    "cells",
    [None, [[[0.5]]], CELLS.numpy(), CELLS[0], CELLS.int(), CELLS[:0], CELLS[..., :0], CELLS[None]],
)
@pytest.mark.parametrize("method", [toys.Pixels(), get("pixelprune")])
def test_cells_that_are_none_are_refused(method, cells):
    with pytest.raises(InputError, match=rf"^{method.name}: cells are .*: give a tensor of floating point values \["):
        method.select(cells)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"returned NoneType: return \(kept, source\), both \[3, 4\]"),
        ((HERE == 0,), r"returned \[\[3, 4\]\]: return \(kept"),
        ((HERE.flatten() == 0, HERE), r"returned \[\[12\], \[3, 4\]\]: return"),
        ((HERE == 0, HERE[:2]), r"returned \[\[3, 4\], \[2, 4\]\]: return"),
        ((HERE % 2 == 0, HERE), "returned sources that are not kept: give each cell the index of a kept one"),
        ((HERE % 2 == 0, HERE + 12), "returned sources that are not kept"),
        ((HERE % 2 == 0, torch.zeros_like(HERE)), "returned sources that are not kept"),
        ((HERE < 0, HERE), "returned sources that are not kept"),
        (
            (HERE % 3 == 0, HERE - HERE % 3),
            r'kept 4 of 12 cells, kept\(12\) is 6: keep as many, or have counts = "late"',
        ),
    ],
)
def test_what_no_select_may_return_is_refused_by_the_methods_name(monkeypatch, returned, message):
    monkeypatch.setattr(Chosen, "returned", returned)
    with pytest.raises(ValueError, match=rf"^toy_chosen\.select\(\) {message}"):
        Chosen().select(CELLS)


def test_a_late_count_is_as_it_comes(monkeypatch):
    monkeypatch.setattr(Chosen, "counts", "late")
    monkeypatch.setattr(Chosen, "returned", (HERE % 3 == 0, HERE - HERE % 3))
    assert Chosen().select(CELLS)[0].sum() == 4


def test_another_number_than_the_exact_one_is_named_in_a_model_too(monkeypatch):
    monkeypatch.setattr(toys.Pixels, "kept", lambda self, tokens: 4)
    model = compress(random_model(), CompressionConfig(steps=[toys.Pixels()], positions="keep_one"))
    with pytest.raises(ValueError, match=r"toy_pixels\.select\(\) kept 10 of 20 cells, kept\(20\) is 4: keep as many"):
        logits(model, batch(Prompt([1, ("image", (1, 4, 5)), 2], seed=1)))
