"""Inputs that every operator refuses with a message, on any device, before any implementation is called."""

import ast
import itertools
from pathlib import Path

import pytest
import torch
from devices import DEVICES

from ppe_npu import backends
from ppe_npu.backends import dispatch, merging, ops, segments

BF16, INT = torch.bfloat16, torch.int64


def floats(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def ints(*shape, value=0):
    return torch.full(shape, value, dtype=INT)


MASK = torch.ones(5, 5, dtype=torch.bool)
FITS = {
    "attention": {"query": floats(1, 4, 5, 8), "key": floats(1, 2, 5, 8), "value": floats(1, 2, 5, 8)},
    "rotary": {
        "query": floats(2, 4, 5, 8), "key": floats(2, 2, 5, 8), "cos": floats(2, 5, 8), "sin": floats(2, 5, 8)
    },
    "dpc_knn": {
        "tokens": floats(2, 5, 3), "valid": torch.ones(2, 5, dtype=torch.bool), "budgets": ints(2, value=2),
        "max_groups": 2, "num_neighbors": ints(2, value=2),
    },
    "group_mean": {"tokens": floats(2, 5, 3), "labels": ints(2, 5), "counts": ints(2, 1, value=5)},
    "rms_norm": {"x": floats(2, 3), "weight": floats(3), "eps": 1e-6},
    "swiglu": {"gate": floats(2, 3), "up": floats(2, 3)},
    "linear_cross_entropy": {"hidden": floats(6, 5), "weight": floats(7, 5), "labels": ints(6)},
}  # fmt: skip
REFUSED = {
    "attention": [
        ({"key": floats(1, 3, 5, 8), "value": floats(1, 3, 5, 8)}, "query heads must be a multiple of key heads"),
        ({"key": floats(1, 0, 5, 8), "value": floats(1, 0, 5, 8)}, "query heads must be a multiple of key heads"),
        ({"key": floats(1, 2, 5, 4), "value": floats(1, 2, 5, 4)}, "takes query"),
        ({"query": floats(1, 4, 5, 0), "key": floats(1, 2, 5, 0), "value": floats(1, 2, 5, 0)}, "takes query"),
        ({"value": floats(1, 2, 4, 8)}, "takes query"),
        ({"key": floats(2, 2, 5, 8), "value": floats(2, 2, 5, 8)}, "takes query"),
        ({"query": floats(4, 5, 8)}, "takes query"),
        ({"query": ints(1, 4, 5, 8)}, "query is torch.int64: give floating point"),
        ({"query": floats(1, 4, 5, 8, dtype=BF16)}, "query, key and value must share a dtype"),
        ({"key": floats(1, 2, 4, 8), "value": floats(1, 2, 4, 8), "causal": True}, "at most as many queries as keys"),
        ({"mask": MASK[:4]}, "mask must be broadcastable to"),
        ({"mask": MASK.long()}, "mask must be bool"),
        ({"key_bias": floats(1, 4)}, r"key_bias must be \[1, 5\], got"),
        ({"key_bias": ints(1, 5)}, "key_bias is torch.int64: give floating point"),
        ({"dropout": 1.5}, "dropout must be a probability"),
        ({"cu_seqlens": [0, 4]}, "rise from 0 to 5"),
        ({"cu_seqlens": [2, 5]}, "rise from 0 to 5"),
        ({"cu_seqlens": [0, 4, 3, 5]}, "rise from 0 to 5"),
        ({"cu_seqlens": []}, "rise from 0 to 5"),
        ({"cu_seqlens": torch.tensor([0, 5])}, "cu_seqlens must be a host list"),
        ({"cu_seqlens": [0, 5], "mask": MASK}, "no mask"),
        ({"cu_seqlens": [0, 5], "query": floats(2, 4, 5, 8), "key": floats(2, 2, 5, 8), "value": floats(2, 2, 5, 8)},
         "B = 1"),
        ({"cu_seqlens": [0, 5], "key": floats(1, 2, 6, 8), "value": floats(1, 2, 6, 8)}, "S = T"),
        ({"cu_seqlens_k": [0, 5]}, "cu_seqlens_k needs cu_seqlens"),
        ({"cu_seqlens": [0, 5], "cu_seqlens_k": [0, 4]}, "rise from 0 to 5"),
        ({"cu_seqlens": [0, 5], "cu_seqlens_k": [0, 2, 5]}, "every segment that has queries needs keys"),
        ({"cu_seqlens": [0, 3, 5], "cu_seqlens_k": [0, 0, 5]}, "every segment that has queries needs keys"),
        ({"cu_seqlens": [0, 5], "cu_seqlens_k": [0, 5], "causal": True}, "cu_seqlens_k is for attention that is not"),
    ],
    "rotary": [
        ({"cos": ints(2, 5, 8)}, "cos is torch.int64: give floating point"),
        ({"cos": floats(2, 5, 8, dtype=BF16)}, "must share a dtype"),
        ({"query": floats(4, 5, 8)}, "query and key must be"),
        ({"query": floats(2, 4, 5, 7)}, "head width must be even"),
        ({"key": floats(2, 2, 4, 8)}, "key must be like query"),
        ({"cos": floats(2, 5, 6)}, "cos and sin must be"),
        ({"sin": floats(2, 4, 8)}, "cos and sin must be"),
        ({"cos": floats(4, 5, 8), "sin": floats(4, 5, 8)}, "cos and sin must be"),
        ({"sin": floats(5, 8)}, "cos and sin must be"),
    ],
    "dpc_knn": [
        ({"tokens": floats(5, 3)}, "tokens must be"),
        ({"tokens": ints(2, 5, 3)}, "tokens is torch.int64: give floating point"),
        ({"valid": MASK[:2, :4]}, "valid must be"),
        ({"valid": ints(2, 5, value=1)}, "valid must be bool"),
        ({"budgets": ints(3)}, "budgets must be"),
        ({"budgets": floats(2)}, "budgets is torch.float32: give integers"),
        ({"num_neighbors": ints(2, 1)}, "num_neighbors must be"),
        ({"num_neighbors": floats(2)}, "num_neighbors is torch.float32: give integers"),
        ({"max_groups": 0}, "max_groups must be from 1 to 5"),
        ({"max_groups": 6}, "max_groups must be from 1 to 5"),
    ],
    "group_mean": [
        ({"tokens": floats(2, 3)}, "tokens must be"),
        ({"tokens": ints(2, 5, 3)}, "tokens is torch.int64: give floating point"),
        ({"labels": ints(2, 4)}, "labels must be"),
        ({"labels": floats(2, 5)}, "labels is torch.float32: give integers"),
        ({"counts": ints(1, 1)}, "counts must be"),
        ({"counts": ints(2)}, "counts must be"),
        ({"counts": floats(2, 1)}, "counts is torch.float32: give integers"),
    ],
    "rms_norm": [
        ({"weight": floats(4)}, "weight must be as wide as x"),
        ({"weight": floats(1, 3)}, "weight must be as wide as x"),
        ({"weight": floats()}, "weight must be as wide as x"),
        ({"x": floats()}, "weight must be as wide as x"),
        ({"x": ints(2, 3)}, "x is torch.int64: give floating point"),
        ({"weight": ints(3)}, "weight is torch.int64: give floating point"),
    ],
    "swiglu": [
        ({"up": floats(2, 1)}, "gate and up must have one shape and dtype"),
        ({"up": floats(3)}, "gate and up must have one shape and dtype"),
        ({"up": floats(2, 3, dtype=BF16)}, "gate and up must have one shape and dtype"),
        ({"gate": ints(2, 3)}, "gate is torch.int64: give floating point"),
    ],
    "linear_cross_entropy": [
        ({"hidden": floats(2, 3, 5)}, "takes hidden"),
        ({"weight": floats(7, 4)}, "takes hidden"),
        ({"labels": ints(5)}, "takes hidden"),
        ({"hidden": ints(6, 5)}, "hidden is torch.int64: give floating point"),
        ({"labels": floats(6)}, "labels is torch.float32: give integers"),
        ({"weight": floats(7, 5, dtype=BF16)}, "hidden and weight must share a dtype"),
        ({"reduction": "none"}, "reduction must be"),
        ({"chunk_size": 0}, "chunk_size must be"),
    ],
}  # fmt: skip
# The values of a tensor are checked on CPUs only.
ON_CPUS = [
    ("dpc_knn", {"valid": torch.tensor([[True, True, False, True, True]] * 2)}, "valid may be False only at the end")
]
CASES = [(op, change, said) for op, cases in REFUSED.items() for change, said in cases]


def on(device: str, arguments: dict) -> dict:
    """The arguments on a device, except cu_seqlens, which stays on the host: a tensor is refused there."""
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) and name != "cu_seqlens" else value
        for name, value in arguments.items()
    }


@pytest.fixture
def nobody(monkeypatch):
    """Fail if any implementation is called."""

    def never(op, *_, **__):
        raise AssertionError(f"{op} was called")

    monkeypatch.setattr(dispatch, "call", never)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("op", "change", "said"), CASES, ids=[f"{op}: {said}" for op, _, said in CASES])
def test_it_is_refused_before_anything_runs(op, change, said, device, nobody):
    with pytest.raises(ValueError, match=f"^{op}: .*{said}") as caught:
        getattr(backends, op)(**on(device, FITS[op] | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", FITS)
def test_what_they_were_changed_from_is_taken(op, device):
    assert getattr(backends, op)(**on(device, FITS[op])) is not None


def said_by(path: str) -> list[str]:
    """The longest literal part of the message of each require() in a file, if the message is written there."""
    out = []
    for node in ast.walk(ast.parse(Path(path).read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
            text = node.args[1]
            parts = text.values if isinstance(text, ast.JoinedStr) else [text]
            words = [part.value for part in parts if isinstance(part, ast.Constant)]
            out += [max(words, key=len).strip(" []")] if words else []  # none if the message is made elsewhere
    return out


def test_every_check_has_a_case():
    assert set(FITS) == set(REFUSED) == set(dispatch.ops())
    heard = []
    for op, change, _ in [*CASES, *ON_CPUS]:
        with pytest.raises(ValueError, match=op) as caught:
            getattr(backends, op)(**(FITS[op] | change))
        heard.append(str(caught.value))
    for words in itertools.chain(*(said_by(module.__file__) for module in (ops, merging, segments))):
        assert any(words in text for text in heard), words
