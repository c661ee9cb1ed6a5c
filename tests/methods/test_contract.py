"""What register() refuses: classes that declare what does not exist, or lack what their place calls for."""

import dataclasses

import pytest
import torch
from tower_toys import Joins, Rebuilds

from ppe_npu.errors import InputError
from ppe_npu.methods import method_names
from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.leaving import Leaving
from ppe_npu.methods.tower_methods import JoiningMethod, RebuildingMethod
from ppe_npu.methods.view import View

RATIO = {"ratio": share(0.5)}


def defined(self, *_):
    """Any of the functions that a method must have."""


def of(base, **members):
    """A new class, as a new file would define it."""
    types = {"ratio": float} if "ratio" in members else {}
    made = type("New", (base,), {"__annotations__": types, "__module__": "elsewhere", **members})
    return dataclasses.dataclass(frozen=True)(made)


WHOLE = {  # each of these is refused without any one of its members
    "input": (Method, {**RATIO, "group": defined}),
    "layer": (Method, {"kept": defined, "group": defined, "places": ("layer",)}),
    "pixels": (Method, {**RATIO, "select": defined, "places": ("pixels",)}),
    "rebuilds": (RebuildingMethod, {"prune_block": 1, "stay": defined, "choose": defined}),
    "joins": (JoiningMethod, {**RATIO, "merge_blocks": (1,), "match": defined}),
}
CASES = [(name, member) for name, (_, members) in WHOLE.items() for member in members if member != "places"]


@pytest.mark.parametrize("name", WHOLE)
def test_a_class_that_has_all_is_taken(name):
    base, members = WHOLE[name]
    assert register("new")(of(base, **members)).name == "new"


@pytest.mark.parametrize(("name", "member"), CASES)
def test_a_class_that_lacks_something_is_refused_by_name(name, member):
    base, members = WHOLE[name]
    file = "base" if base is Method else "tower_methods"
    lacking = r"ratio or kept\(\)" if member in ("ratio", "kept") else member
    with pytest.raises(InputError, match=f"New lacks {lacking}: define what methods/{file}.py asks for"):
        register("lacking")(of(base, **{key: value for key, value in members.items() if key != member}))
    assert "lacking" not in method_names()


@pytest.mark.parametrize(
    ("base", "members", "message"),
    [
        (Method, {**RATIO, "group": defined, "places": ("tower",)}, r"New.places=\('tower',\): nothing says how it .*"),
        (Method, {**RATIO, "group": defined, "places": ("tower", "input"), "restores": True}, "derive the class from"),
        (Method, {**RATIO, "group": defined, "tower_pass": "joining"}, "tower_pass='joining': .*; leave it out"),
        (Method, {**RATIO, "group": defined, "places": ("tower",), "tower_pass": "new"}, "tower_pass=.new.: .* set"),
        (JoiningMethod, WHOLE["joins"][1] | {"tower_pass": "rebuilding"}, "tower_pass='rebuilding': JoiningMethod dec"),
        (RebuildingMethod, WHOLE["rebuilds"][1] | {"tower_pass": ""}, "tower_pass=.*: RebuildingMethod decides this"),
        (
            RebuildingMethod,
            {**WHOLE["rebuilds"][1], "tower_pass": "", "places": ("input",)},
            "RebuildingMethod decides",
        ),
        (JoiningMethod, WHOLE["joins"][1] | {"places": ("tower", "layer")}, "JoiningMethod decides this; leave places"),
        (JoiningMethod, WHOLE["joins"][1] | {"counts": "late"}, "New.counts='late': JoiningMethod decides this"),
        (JoiningMethod, WHOLE["joins"][1] | {"pool": "prompt"}, "New.pool='prompt': JoiningMethod decides this"),
        (JoiningMethod, WHOLE["joins"][1] | {"scope": "segment"}, "New.scope='segment': use frame or span inside the"),
        (RebuildingMethod, WHOLE["rebuilds"][1] | {"pool": "video"}, "New.pool='video': use one of frame, image, pro"),
        (RebuildingMethod, WHOLE["rebuilds"][1] | {"needs": frozenset({"text"})}, r"New.needs=\['text'\]: Rebuilding"),
        (RebuildingMethod, WHOLE["rebuilds"][1] | {"restores": False}, "New.restores=False: Rebuilding"),
        (Method, {**RATIO, "group": defined, "scope": "segment"}, "New lacks segments, segment, segment_budgets:"),
        (Method, {**RATIO, "group": defined, "__module__": "ppe_npu.methods.old"}, "methods/old.py: name the file new"),
    ],
)
def test_what_cannot_be_is_refused(base, members, message):
    with pytest.raises(InputError, match=message):
        register("new_one")(of(base, **members))


# -- what the methods inside the tower return --------------------------------------------------------------------------


def test_a_plan_of_patches_has_as_many_rows_as_the_method_says():
    now = torch.arange(12.0).view(6, 2)
    assert Rebuilds().leaving(now, now, [4, 2]).rows.tolist() == [2, 3, 5]
    with pytest.raises(ValueError, match=r"choose\(\) returned 3 rows .* and 3 that leave: give 2 and 4, as stay\(\)"):
        Fixed(Rebuilds().leaving(now, now, [4, 2])).leaving(now, now, [4, 2])
    with pytest.raises(TypeError, match=r"choose\(\) returned Tensor: return a Leaving"):
        Fixed(now).leaving(now, now, [4, 2])


class Fixed(Rebuilds):
    """Returns what it is made with."""

    name = "fixed"

    def __init__(self, found: Leaving):
        vars(self).update(found=found)

    def stay(self, patches):
        return 1

    def choose(self, before, now, pools):
        return self.found


def test_a_match_runs_alone_and_must_group_every_cell():
    view = View.of(tokens=torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 1.5]]]))
    assert Joins().match(view).labels.tolist() == [[0, 0, 1, 1]]

    class Drops(Joins):
        name = "drops"

        def match(self, view):
            return Grouping.of(torch.tensor([[0, 0, 1, -1]]), torch.tensor([[0, 2]]))

    with pytest.raises(ValueError, match=r"drops.match\(\) left cells without a group: let each of them join one"):
        Drops().matching.group(view.keeping(2))

    class Fewer(Joins):
        name = "fewer"

        def match(self, view):
            return Grouping.of(torch.tensor([[0, 0, 0, 0]]), torch.tensor([[0]]))

    with pytest.raises(
        ValueError, match=r"fewer.match\(\) returned labels \[1, 4\] and representatives \[1, 1\]: give"
    ):
        Fewer().match(view)
