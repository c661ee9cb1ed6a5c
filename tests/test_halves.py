"""The mark `half`: which cases are left out, and that pytest's cases are distinguished by their parameters."""

import itertools

import pytest
from halves import left_out, mark_slow


class Item:
    """The part of a collected test that the hook reads; one made by pytest's parametrization would be collected."""

    def __init__(self, name: str, values: tuple, *marks: str):
        self.nodeid, self.marks = f"{name}[{'-'.join(values)}]", {"half", *marks}
        self.callspec = type("CallSpec", (), {"_idlist": values})

    def get_closest_marker(self, name: str):
        return name in self.marks

    def add_marker(self, mark):
        self.marks.add(mark.name)


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (3, 5), (2, 3, 4), (1, 4, 3)], ids=str)
def test_each_value_meets_half_of_another_parameters(sizes):
    cases = list(itertools.product(*([f"{name}{n}" for n in range(size)] for name, size in zip("abc", sizes))))
    kept = [case for case, out in zip(cases, left_out(cases)) if not out]
    assert len(kept) in (len(cases) // 2, (len(cases) + 1) // 2)
    for one, other in itertools.combinations(range(len(sizes)), 2):
        if min(sizes[one], sizes[other]) > 1 and len(sizes) == 2:
            for value in {case[one] for case in cases}:
                met = len({case[other] for case in kept if case[one] == value})
                assert met in (sizes[other] // 2, (sizes[other] + 1) // 2)
    assert {value for case in kept for value in case} == {value for case in cases for value in case}


def test_of_cases_that_are_no_product_each_value_stays():
    cases = [("a", "x"), ("a", "y"), ("b", "y"), ("c", "z"), ("d", "y")]
    kept = [case for case, out in zip(cases, left_out(cases)) if not out]
    assert len(kept) < len(cases)
    assert {value for case in kept for value in case} == {value for case in cases for value in case}


def test_few_values_of_one_parameter_are_whole():
    assert left_out([("a",), ("b",)], 1) == left_out([("a", "x"), ("b", "x")], 1) == [False, False]
    assert left_out([]) == []


def test_of_many_values_each_meets_half_of_the_laws():
    laws = [[Item(f"f.py::{law}", (value,)) for value in "abcde"] for law in ("first", "second")]
    mark_slow([item for law in laws for item in law])
    fast = [[item.nodeid[-2] for item in law if "slow" not in item.marks] for law in laws]
    assert fast == [["a", "c", "e"], ["b", "d"]]


def test_what_is_slow_anyway_does_not_count():
    items = [Item("f.py::test", (family, kind)) for family in ("one", "two") for kind in ("x", "y", "z")]
    items += [Item("f.py::test", ("three", kind), "slow") for kind in ("x", "y", "z")]
    items += [Item("f.py::other", ("x",)), Item("f.py::other", ("y",))]
    mark_slow(items)
    fast = [item.nodeid for item in items if "slow" not in item.marks]
    assert fast == [f"f.py::test[{case}]" for case in ("one-x", "one-z", "two-y")] + [
        "f.py::other[x]",
        "f.py::other[y]",
    ]


@pytest.mark.parametrize(("one", "other"), [(1, 2), (3, 2)])
@pytest.mark.parametrize("third", ["x", "y"])
def test_parameters_that_go_together_are_one(request, one, other, third):
    assert tuple(request.node.callspec._idlist) == (third, f"{one}-{other}")
