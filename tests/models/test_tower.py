"""The keys and saliency of the vision tower's blocks in a view, against a naive attention."""

import time

import pytest
import torch
from support import FAMILIES, batch, family_of, model_with
from tolerances import assert_near, assert_rounds_alike
from torch.utils._python_dispatch import TorchDispatchMode
from towers import PROMPTS, TOWERS, clip, flat, given, looked, naives

from ppe_npu.engine import tower
from ppe_npu.models import tower as tower_of_models

pytestmark = pytest.mark.half

SYNCS = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "unique")

family, model = family_of(FAMILIES), model_with(TOWERS)


def test_keys_and_saliency_are_those_of_a_naive_attention(model, family):
    inputs = given(family)
    plain, true = naives(model, inputs)
    found = looked(model, inputs)
    assert all(part.dtype == torch.float32 for frame in found for part in frame)
    assert_rounds_alike(flat(found), plain, true)
    for _, saliency in found:
        assert_near(saliency.sum(-1), torch.ones(2), roundings=2 * 4 * saliency.shape[-1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_else_is_in_the_batch_changes_nothing(model, family, side):
    """Neither padding nor other images, of this prompt or of others, affect them."""
    plain, true = naives(model, given(family))
    together = looked(model, given(family, side=side))
    alone = [frame for prompt in (*PROMPTS, clip(family)) for frame in looked(model, batch(prompt))]
    for found in (together, alone):
        assert_rounds_alike(flat(found), plain, true)


@pytest.mark.parametrize("limit", [1, 2 * 24 * 7, 2**12])
@pytest.mark.ci
def test_chunks_change_nothing_but_the_order_of_sums(model, family, monkeypatch, limit):
    inputs = given(family)
    plain, true = naives(model, inputs)
    monkeypatch.setattr(tower, "_SCORES_AT_ONCE", limit)
    assert_rounds_alike(flat(looked(model, inputs)), plain, true)


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that was made, and the names of the operators."""

    numbers, names = 0, ()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        self.names = (*self.names, func.overloadpacket.__name__)
        return out


def test_memory_grows_with_a_chunk_and_the_host_never_waits(monkeypatch):
    heads, width, frames = 4, 8, [96] * 3 + [24] + [96]
    query, key = torch.randn(2, heads, sum(frames), width, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(tower, "_SCORES_AT_ONCE", heads * 96 * 5)
    with Largest() as seen:
        scores = tower.received(query, key, frames, width**-0.5)
    assert seen.numbers <= max(heads * 96 * 5, query.numel())
    assert not set(seen.names) & set(SYNCS)
    assert len(scores) == sum(frames)


def test_the_report_counts_the_time_of_looking(model, family, monkeypatch):
    """Of every block that is looked into; a test may wait for a clock, but not compare two times."""
    received, waited = tower_of_models.received, []

    def slowly(*args):
        waited.append(1)
        time.sleep(0.05)
        return received(*args)

    looked(model, given(family))
    assert model.compression.report.looking.milliseconds > 0
    monkeypatch.setattr(tower_of_models, "received", slowly)
    looked(model, given(family))
    assert len(waited) > 1
    assert model.compression.report.milliseconds > 50 * len(waited)
