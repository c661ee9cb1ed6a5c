"""How often the host reads from a device for a step at the pixels: once, or never if it needs no result."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from prompts import logits
from test_no_sync import SYNCS, Recorder
from tiles import MODELS, PRUNE, config_of, inputs_of, painted, prompts_of

from ppe_npu import compress
from ppe_npu.backends import device
from ppe_npu.engine import pixels
from ppe_npu.engine.pixels import Chosen
from ppe_npu.errors import InputError
from ppe_npu.methods import get, predicting
from ppe_npu.models.arguments import make_plan
from ppe_npu.models.pixels import KeptPatches, run_on_kept

pytestmark = pytest.mark.half

NOWHERE = torch.device("meta")  # reading its tensors is an error
BUDGET = {**PRUNE, "max_kept": 6, "fill": True}
READS = ("tolist", "item", "cpu", "__bool__", "__int__", "__index__", "__float__")  # numpy() only takes host tensors


@pytest.mark.parametrize("fields", [{}, {"metric": "mae"}, {"anchored": False, "predictor": "raster"}])
@pytest.mark.parametrize("threshold", [0.0, 0.05])
def test_what_every_cell_is_asked_at_once_is_found_unseen(fields, threshold):
    for limits in ({}, {"max_kept": 3}, {"max_kept": 3, "fill": True}, {"min_share": 0.5}):
        method = get("pixelprune", threshold=threshold, **fields, **limits)
        kept, source = method.select(torch.zeros(4, 5, 300, device=NOWHERE))
        assert (kept.device, source.device, kept.shape) == (NOWHERE, NOWHERE, (4, 5))


@pytest.mark.parametrize("positions", ["ppe", "keep_one", "renumber"])
@pytest.mark.parametrize("more", [[], [{"method": "dpc_knn", "ratio": 0.5}]], ids=["alone", "then clusters"])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_a_budget_is_laid_out_and_uploaded_unseen(family, more, positions):
    model, inputs = MODELS[family], inputs_of(family, *prompts_of(family))
    compress(model, config_of([BUDGET, *more], positions))
    true = make_plan(model.model, model.compression, inputs)
    unseen = {**inputs, "pixel_values": inputs["pixel_values"].to(NOWHERE)}
    plan = make_plan(model.model, model.compression, unseen).on(NOWHERE)
    assert plan.chosen.stay == true.chosen.stay == (6, *(6, 1), *([12] * 3), *([6] * 2))
    assert plan.visual.shape == true.visual.shape
    assert [stage.rows.shape for stage in plan.stages] == [stage.rows.shape for stage in true.stages]
    assert (plan.held is None) == (positions != "ppe")
    assert plan.held is None or plan.held.shape == true.held.shape
    grid = torch.cat([inputs["image_grid_thw"], inputs["video_grid_thw"]])
    patches = sum(len(inputs[name]) for name in ("pixel_values", "pixel_values_videos"))
    kept = KeptPatches.of(plan.chosen, grid.to(NOWHERE), 2, patches)
    assert kept.picked(unseen["pixel_values"].new_zeros(patches, 1)).shape == (4 * sum(true.chosen.stay), 1)
    compress(model, config_of([{**BUDGET, "fill": False}, *more], positions))
    with pytest.raises(NotImplementedError, match="meta"):
        make_plan(model.model, model.compression, unseen)


def looks(model, inputs, monkeypatch) -> int:
    """How often the host reads a tensor in a pass, with the CPU treated as a device."""
    seen: list[str] = []
    for name in READS:
        call = getattr(torch.Tensor, name)
        reads = lambda self, *a, call=call, name=name, **k: seen.append(name) or call(self, *a, **k)  # noqa: E731
        monkeypatch.setattr(torch.Tensor, name, reads)
    never, recorder = SimpleNamespace(on_cpu=lambda _: False), Recorder()
    unasked = mock.patch.object(device, "asks_freely", return_value=False)
    away = (mock.patch.object(module, "device", never) for module in (predicting, pixels))
    with next(away), next(away), unasked, recorder, torch.no_grad():
        model(**inputs)
    monkeypatch.undo()
    return len(seen) + len([name for name in recorder.names if name in SYNCS])


@pytest.mark.parametrize("more", [[], [{"method": "dpc_knn", "ratio": 0.5}]], ids=["alone", "then clusters"])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_a_pass_has_one_look_more_or_none(family, more, monkeypatch):
    model, inputs = MODELS[family], inputs_of(family, *prompts_of(family))
    without = [{"method": "dpc_knn", "ratio": 0.5}]
    steps = {"without": without, "budget": [BUDGET, *more], "late": [PRUNE, *more]}
    found = {}
    for name, own in steps.items():
        compress(model, config_of(own))
        logits(model, inputs)  # lookups are made once
        found[name] = looks(model, inputs, monkeypatch)
    assert found["budget"] <= found["without"]
    assert found["late"] == found["budget"] + 1


def test_what_lies_on_the_host_is_chosen_there_and_only_what_is_kept_goes_to_the_device():
    class Tower:
        dtype = torch.float16

        def rot_pos_emb(self, grid):
            return torch.zeros(int(8 * grid.shape[0]), 2, device=grid.device)

        def __call__(self, pixels, grid_thw, return_dict):
            return SimpleNamespace(pixels=pixels, grid=grid_thw, angles=self.rot_pos_emb(grid_thw))

    chosen = Chosen.read(torch.tensor([0, 0, 2, 2]), [2, 2])
    kept = KeptPatches.of(chosen, torch.ones(2, 3, device=NOWHERE, dtype=torch.int64), 2, 16)
    ran = run_on_kept(Tower(), torch.zeros(16, 5), kept)
    assert (ran.pixels.device, ran.pixels.shape, ran.pixels.dtype) == (NOWHERE, (8, 5), torch.float16)
    assert (ran.grid.device, ran.angles.shape) == (NOWHERE, (8, 2))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_grids_that_are_none_are_refused_before_pixels_are_cut(family):
    inputs = inputs_of(family, painted([1, ("image", (1, 3, 3)), 2], seed=1))
    inputs["image_grid_thw"] = torch.tensor([[1, 4, 9]])
    with pytest.raises(InputError, match=r"image_grid_thw \(1, 4, 9\): .* height and width positive multiples"):
        logits(compress(MODELS[family], config_of("alone")), inputs)
