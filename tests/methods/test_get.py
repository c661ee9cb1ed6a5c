"""Methods constructed by name."""

import pytest

from ppe_npu.errors import InputError
from ppe_npu.methods import DPCKNN, get, method_class
from ppe_npu.methods.base import published
from ppe_npu.released import Levels
from ppe_npu.utils.registering import files_that_register


def test_a_name_and_fields_give_the_method():
    assert get("dpc_knn", ratio=0.25, layer=2) == DPCKNN(ratio=0.25, layer=2)
    assert get("divprune") == method_class("divprune")()


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("best", {}, "method='best': choose one of "),
        (3, {}, "method=3: choose one of"),
        ("dpc_knn", {"rate": 1}, "dpc_knn has no rate: its keys are"),
        ("dpc_knn", {"method": "random"}, "dpc_knn has no method"),
        ("apet", {"mixed": 1}, "apet mixed=1.0 without released: nothing is mixed; give released=true, too"),
        ("pyramiddrop", {"causal": True}, "pyramiddrop causal=true without released: .*leave it out"),
        ("flashvlm", {"reads": "after", "released": True}, 'flashvlm reads="after" with released=true'),
        ("visionzip", {"contextual": 4, "zip_ratio": 0.5}, "visionzip zip_ratio=0.5 with contextual=4: give only one"),
        ("visionzip", {"contextual": 4, "dominant": 9, "ratio": 0.5}, "visionzip ratio=0.5 with dominant=9: give only"),
        ("divprune", {"ratio": 0}, "ratio=0: give the kept share"),
        ("events", {"by": Levels((DPCKNN(),))}, "events by=levels: give a single method"),
        ("divprune", {"dropped": "lent"}, "dropped='lent': use one of lend, merge, drop"),
    ],
)
def test_what_cannot_be_is_refused(name, fields, message):
    with pytest.raises(InputError, match=message):
        get(name, **fields)


def test_a_file_that_registers_nothing_is_a_helper(tmp_path):
    (tmp_path / "method.py").write_text('"""Text."""\n\n\n@register("method")\nclass Method: ...\n')
    (tmp_path / "helper.py").write_text('"""Says how:\n\n    @register("helper")\n"""\n')
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__init__.py").write_text('@register("folder")\nclass Method: ...\n')
    assert files_that_register(str(tmp_path)) == ("method",)


def test_levels_look_at_no_more_than_tokens_and_places():
    """Each level is shown the same blocks of the vision tower, so no level may choose its own."""
    with pytest.raises(InputError, match=r"levels parts=.*: give methods that group frames by tokens or places"):
        Levels((get("mmr"),))


def test_every_file_registers_the_method_that_it_is_named_after():
    assert {name: method_class(name).__module__ for name in published()} == {
        name: f"ppe_npu.methods.{name}" for name in published()
    }
