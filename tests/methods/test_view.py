"""A method run alone, on plain tensors: the view that it gets, and how many tokens each cell keeps."""

import numpy as np
import pytest
import torch
import toys

from ppe_npu.errors import InputError
from ppe_npu.methods import DPCKNN, AvgPool, Random, Uniform
from ppe_npu.methods.base import Method
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View

TOKENS = torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(0))
PLACES = torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(5)).view(3, 20, 3)
VALID = torch.arange(20) < torch.tensor([[20], [7], [1]])


@pytest.mark.parametrize(
    "method", [DPCKNN(0.45), Random(0.3), Uniform(0.3), AvgPool(0.2), toys.Largest(0.4), toys.Corner(0.4)]
)
@pytest.mark.parametrize("valid", [None, VALID], ids=["whole", "padded"])
def test_an_exact_method_alone_keeps_its_own_share_of_each_cell(method, valid):
    sizes = [20, 20, 20] if valid is None else [20, 7, 1]
    found = method.group(View.of(tokens=TOKENS, valid=valid, places=PLACES))
    counts = [method.kept(size) for size in sizes]
    assert (found.counts > 0).sum(1).tolist() == counts
    for given in (counts, torch.tensor(counts), np.array(counts)):
        same = method.group(View.of(tokens=TOKENS, valid=valid, places=PLACES, num_kept=given))
        assert torch.equal(found.labels, same.labels)
        assert torch.equal(found.representatives, same.representatives)


def test_a_method_that_hands_its_view_on_is_counted_once():
    """The method is a subclass whose group() calls its parent's."""
    found = toys.Weighted(0.3).group(View.of(tokens=TOKENS))
    assert torch.equal(found.labels, toys.Largest(0.3).group(View.of(tokens=TOKENS, num_kept=6)).labels)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_kept": [3, 2]}, r"num_kept=\[3, 2\]: give a whole number, or one for each of 3 cells"),
        ({"num_kept": 2.5}, "num_kept=2.5: give a whole number"),
        ({"num_kept": True}, "num_kept=True: give a whole number"),
        (
            {"num_kept": [3, 8, 1], "valid": VALID},
            r"num_kept=\[3, 8, 1\] of \[20, 7, 1\] tokens: give from 1 to the number of the cell's tokens",
        ),
        ({"num_kept": 0}, r"num_kept=\[0, 0, 0\] of"),
    ],
)
def test_views_that_cannot_be_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        View.of(**({"tokens": TOKENS} | given))


def test_a_cell_without_tokens_keeps_none():
    view = View.of(tokens=TOKENS, valid=VALID & (torch.arange(3) < 2)[:, None])
    with pytest.raises(InputError, match=r"num_kept=\[9, 4, 1\] of \[20, 7, 0\]"):
        DPCKNN(0.45).group(view)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda view: None, r"toy_wrong\.group\(\) returned NoneType: return a Grouping"),
        (lambda view: grouping(view, tokens=3), r"returned labels \[2, 3\] and .*: give labels \[2, 4\]"),
        (lambda view: grouping(view, groups=1), r"representatives \[2, 1\]: give .* representatives \[2, 2\]"),
        (lambda view: grouping(view, groups=3), r"representatives \[2, 3\]: give .* representatives \[2, 2\]"),
    ],
)
def test_what_no_method_may_return_is_refused_by_the_methods_name(returned, words):
    class Wrong(Method):
        name = "toy_wrong"

        def group(self, view):
            return returned(view)

    for parts in ({"tokens": torch.randn(2, 4, 3)}, {"places": PLACES[:2, :4]}):
        with pytest.raises((TypeError, ValueError), match=words):
            Wrong().group(View.of(**parts, num_kept=[2, 1]))


def grouping(view: View, tokens: int = 4, groups: int = 2) -> Grouping:
    cells = len(view.num_kept)
    return Grouping.of(torch.zeros(cells, tokens, dtype=torch.long), torch.zeros(cells, groups, dtype=torch.long))
