"""The first implementation that takes a call is used; a request by name is met or is an error."""

import ast
import logging
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ppe_npu.backends as backends
from ppe_npu.backends import ImplementationError, dispatch, registry
from ppe_npu.backends.registry import ANY, Implementation

FOLDER = Path(backends.__file__).parent
VENDORS = ("torch_npu", "flash_attn", "triton", "mindspeed", "liger_kernel")


@pytest.fixture
def toy(monkeypatch):
    """An op "toy" with four implementations: "absent" needs a package that is not installed, "picky" refuses negative
    numbers, "elsewhere" is for NPUs only, and "plain" takes everything."""
    module = types.ModuleType("ppe_npu.backends.toys")
    module.picky = lambda x, **_: ("picky", x)
    module.plain = lambda x, **_: ("plain", x)
    module.refusal = lambda x, **_: "negative numbers" if x.min() < 0 else None
    monkeypatch.setitem(sys.modules, module.__name__, module)
    registry._module.cache_clear()
    entries = (
        Implementation("toy", "absent", ANY, "toys", "plain", requires="not_there", distribution="pips-name"),
        Implementation("toy", "picky", ("cpu",), "toys", "picky", verify="refusal"),
        Implementation("toy", "elsewhere", ("npu",), "toys", "plain"),
        Implementation("toy", "plain", ANY, "toys", "plain"),
    )
    monkeypatch.setattr(registry, "REGISTRY", entries)
    yield entries
    registry._module.cache_clear()


def _run(value: float, **kwargs) -> str:
    return dispatch.call("toy", torch.tensor([value]), **kwargs)[0]


@pytest.mark.usefixtures("toy")
def test_the_first_that_takes_the_call_is_used():
    assert _run(1.0) == "picky"
    assert _run(-1.0) == "plain"
    assert _run(1.0) == "picky"
    assert dispatch.chosen() == {"toy": "picky + plain"}


@pytest.mark.usefixtures("toy")
def test_choices_and_refusals_are_logged_once_each(caplog):
    caplog.set_level(logging.INFO, logger="ppe_npu.backends.dispatch")
    for value in (1.0, -1.0, -2.0, 3.0):
        _run(value)
    assert caplog.messages == [
        "toy: absent is not used: pips-name is not installed",
        "toy -> picky",
        "toy: picky is not used: negative numbers",
        "toy -> plain",
    ]
    dispatch.reset()
    _run(1.0)
    assert caplog.messages[4:] == [caplog.messages[0], "toy -> picky"]


def test_a_triton_that_is_missing_is_named_as_its_device_needs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # not installed
    said = {entry.devices: entry.missing() for entry in registry.REGISTRY if entry.requires == "triton"}
    assert said == {("npu",): "triton-ascend is not installed", ("cuda",): "triton is not installed"}


@pytest.mark.usefixtures("toy")
def test_a_request_by_name_is_met():
    assert _run(1.0, implementation="plain") == "plain"
    with dispatch.using(toy="plain"):
        assert _run(1.0) == "plain"
        assert _run(1.0, implementation="picky") == "picky"
        with dispatch.using(toy="picky"):
            assert _run(1.0) == "picky"
        assert _run(1.0) == "plain"
    assert _run(1.0) == "picky"


@pytest.mark.usefixtures("toy")
def test_a_request_that_cannot_be_met_is_an_error_and_never_a_fallback():
    for name, value, reason in [
        ("picky", -1.0, "'picky' was requested, but cannot be used: negative numbers"),
        ("absent", 1.0, "pips-name is not installed"),
        ("elsewhere", 1.0, "does not run on cpu: use one of absent, picky, plain"),
        ("magic", 1.0, "'magic' is unknown: use one of absent, picky, elsewhere, plain"),
    ]:
        with pytest.raises(ImplementationError, match=reason):
            _run(value, implementation=name)
    with dispatch.using(toy="picky"), pytest.raises(ImplementationError, match="negative"):
        _run(-1.0)
    assert dispatch.chosen() == {}
    assert issubclass(ImplementationError, ValueError)


@pytest.mark.usefixtures("toy")
def test_using_checks_names_at_once_and_ends_even_after_an_error():
    with pytest.raises(ImplementationError, match="'toi' is unknown"), dispatch.using(toi="plain"):
        pass
    with pytest.raises(ImplementationError, match="'fast' is unknown"), dispatch.using(toy="fast"):
        pass
    with pytest.raises(KeyError), dispatch.using(toy="plain"):
        raise KeyError
    assert _run(1.0) == "picky"


def test_an_implementation_without_a_gradient_is_refused_only_where_one_is_wanted(toy, monkeypatch):
    picky = replace(toy[1], gradient=False)
    monkeypatch.setattr(registry, "REGISTRY", (picky, toy[3]))
    x = torch.ones(1, requires_grad=True)
    assert dispatch.select("toy", x).name == "plain"
    assert dispatch.select("toy", x.detach()).name == "picky"
    with torch.no_grad():
        assert dispatch.select("toy", x).name == "picky"
    with pytest.raises(ImplementationError, match="no gradient"):
        dispatch.select("toy", x, implementation="picky")


def test_a_package_that_fails_to_import_is_passed_over_with_its_reason(toy, monkeypatch, tmp_path, caplog):
    (tmp_path / "broken_package.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    broken = replace(toy[0], name="broken", requires="broken_package")
    monkeypatch.setattr(registry, "REGISTRY", (broken, toy[3]))
    assert _run(1.0) == "plain"
    assert "broken_package cannot be imported" in caplog.text
    assert "undefined symbol" in caplog.text


ORDER = {
    "npu": {
        "attention": ["torch_npu_decode", "torch_npu", "mindspeed"],
        "rotary": ["torch_npu", "mindspeed"],
        "group_mean": ["triton_ascend", "onehot"],
        "dpc_knn": ["triton_ascend"],
    },
    "cuda": {
        "attention": ["flash_attn", "sdpa"],
        "rotary": ["triton"],
        "dpc_knn": ["triton"],
        "group_mean": ["triton", "onehot"],
        "rms_norm": ["liger"],
        "swiglu": ["liger"],
        "linear_cross_entropy": ["liger"],
    },
    "cpu": {"attention": ["sdpa"], "rotary": [], "dpc_knn": ["cpu"], "group_mean": ["cpu"], "linear_cross_entropy": []},
}


@pytest.mark.parametrize("kind", ORDER)
def test_the_order_per_device_ends_with_the_reference(kind):
    for op, names in ORDER[kind].items():
        assert [entry.name for entry in dispatch.candidates(op, kind)] == [*names, "reference"]


def test_every_entry_leads_to_a_function_of_a_public_op():
    assert set(dispatch.ops()) <= set(backends.__all__)
    for entry in registry.REGISTRY:
        if entry.requires == "triton" and entry.missing():
            continue  # its module cannot be imported without Triton
        assert callable(entry.load())
        assert entry.verify is None or callable(getattr(registry._module(entry.module), entry.verify))


def _imports(tree: ast.AST) -> set[str]:
    """Top-level names of absolute imports; for this project's modules two names, and for its utils three."""
    names = set()
    for node in ast.walk(tree):
        found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            found = [node.module]
        for parts in (name.split(".") for name in found):
            names.add(".".join(parts[: 1 if parts[0] != "ppe_npu" else 3 if parts[1:2] == ["utils"] else 2]))
    return names


def test_backends_know_tensors_and_nothing_above_them():
    own = {"ppe_npu.backends", "ppe_npu.errors", "ppe_npu.utils.launched"}  # neither of the last two handles models
    allowed = {*sys.stdlib_module_names, "torch", "numpy", *own, *VENDORS}
    for file in FOLDER.rglob("*.py"):
        tree = ast.parse(file.read_text())
        assert _imports(tree) <= allowed, file
        at_import = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
        # A Triton kernel cannot be written without Triton; the registry imports such modules when a call needs them.
        kernels = {"triton"} if file.parent.name in ("cuda", "npu") else set()
        assert _imports(at_import).isdisjoint({*VENDORS, "numpy"} - kernels), file


def test_torch_compile_traces_the_choice_and_notes_it(toy, caplog):
    """Neither the search for packages, nor verifiers, requests by name and the log break the graph."""
    caplog.set_level(logging.INFO, logger="ppe_npu.backends.dispatch")
    toy_module = sys.modules["ppe_npu.backends.toys"]
    toy_module.picky, toy_module.plain = (lambda x, **_: x + 1), (lambda x, **_: x - 1)
    toy_module.refusal = lambda x, **_: "more than two numbers" if x.numel() > 2 else None
    torch._dynamo.reset()
    call = torch.compile(lambda x: dispatch.call("toy", x), backend="eager", fullgraph=True, dynamic=False)
    assert call(torch.zeros(2)).tolist() == [1, 1]
    assert call(torch.zeros(3)).tolist() == [-1, -1, -1]
    assert dispatch.chosen() == {"toy": "picky + plain"}
    assert "toy: picky is not used: more than two numbers" in caplog.text
    with dispatch.using(toy="plain"):
        assert call(torch.zeros(2)).tolist() == [-1, -1]
