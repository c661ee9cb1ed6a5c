"""PixelPrune's selectors against the released ones, and laws of the cells that they keep.

tests/data/methods/pixelprune.safetensors holds pictures, settings and the cells that the released code kept. If
PPE_GOLDEN names the folder of whole recordings, these are compared, too. Only slow tests compare every case of a file.
"""

import json
import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from ppe_npu import CompressionConfig
from ppe_npu.errors import InputError
from ppe_npu.methods import get

DATA = Path(__file__).parent.parent / "data" / "methods" / "pixelprune.safetensors"
PREDICTORS = ("pred_2d", "raster", "serpentine", "connected", "random")
GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 6))


def whole_recordings():
    return [DATA, *sorted(Path(os.environ.get("PPE_GOLDEN", "/nowhere")).glob("pixelprune/selector.safetensors"))]


def recorded_cases(path):
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no dict
        beside = path.with_suffix(".json")
        cases = json.loads(beside.read_text()) if beside.exists() else json.loads(file.metadata()["cases"])
    for image in cases["images"]:
        cells = tensors[f"cells.{image['name']}"]
        cells = tensors["levels"][cells.long()] if cells.dtype == torch.uint8 else cells
        yield image, cells.view(*image["grid"], -1), cases, tensors


def method_of(case):
    names = {"conncomp": "connected"}
    fields = {key: value for key, value in case.items() if key != "method"}
    return get("pixelprune", predictor=names.get(case["method"], case["method"]), **fields)


@pytest.mark.parametrize("path", whole_recordings(), ids=["some", "whole"][: len(whole_recordings())])
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_what_the_released_code_kept(path, every):
    compared = 0
    for at, (image, cells, cases, tensors) in enumerate(recorded_cases(path)):
        for number, case in enumerate(cases["configs"]):
            if (at + number) % every:
                continue
            if number in image["fragile"]:
                continue
            kept, source = method_of(case).select(cells)
            assert torch.equal(kept.flatten(), tensors[f"keep.{image['name']}"][number].bool()), (image["name"], case)
            if number in cases["source_configs"]:
                row = cases["source_configs"].index(number)
                assert torch.equal(source.flatten(), tensors[f"source.{image['name']}"][row].long()), image["name"]
            compared += 1
    assert compared > 200 // every


def pictures(draw):
    """[H, W, 3] cells of few levels, so that some are equal, some similar and some different."""
    height, width = draw(GRIDS)
    levels = draw(st.lists(st.integers(0, 4), min_size=height * width, max_size=height * width))
    return torch.tensor(levels, dtype=torch.float32).view(height, width, 1).expand(-1, -1, 3) / 64


@pytest.mark.parametrize("predictor", PREDICTORS)
@settings(derandomize=True, max_examples=30, deadline=None)
@given(data=st.data())
def test_every_chain_ends_in_a_kept_cell(predictor, data):
    cells = pictures(data.draw)
    fields = data.draw(
        st.fixed_dictionaries(
            {
                "metric": st.sampled_from(["max", "mae", "rmse"]),
                "threshold": st.sampled_from([0.0, 1 / 64, 2 / 64]),
                "anchored": st.booleans(),
                "max_kept": st.sampled_from([None, 1, 3, 50]),
                "min_share": st.sampled_from([0.0, 0.5, 1.0]),
                "skip_ratio": st.sampled_from([0.3, 1.0]),
                "rand": st.booleans(),
                "align_compression": st.booleans(),
            }
        )
    )
    kept, source = get("pixelprune", predictor=predictor, **fields).select(cells)
    flat = kept.flatten()
    assert flat[source.flatten()].all()
    own = torch.arange(len(flat)) == source.flatten()
    assert torch.equal(own, flat)
    most = fields["max_kept"] or len(flat)
    assert min(-(-len(flat) * fields["min_share"] // 1), most) <= flat.sum() <= most


@settings(derandomize=True, max_examples=40, deadline=None)
@given(data=st.data())
def test_a_dropped_cell_is_like_what_stands_for_it(data):
    """By default (anchored, without a budget) a cell is within the threshold of its source itself, however long the
    chain between them."""
    cells, threshold = pictures(data.draw), data.draw(st.sampled_from([0.0, 1 / 64, 2 / 64]))
    predictor = data.draw(st.sampled_from(["pred_2d", "raster", "serpentine"]))
    _, source = get("pixelprune", predictor=predictor, threshold=threshold).select(cells)
    flat = cells.flatten(0, 1)
    assert ((flat - flat[source.flatten()]).abs().amax(-1) <= threshold).all()


@settings(derandomize=True, max_examples=15, deadline=None)
@given(data=st.data())
@pytest.mark.ci
def test_a_smaller_budget_keeps_some_of_a_larger_one(data):
    cells = pictures(data.draw)
    total = cells.shape[0] * cells.shape[1]
    method = {"predictor": data.draw(st.sampled_from(PREDICTORS)), "threshold": 1 / 64}
    free, _ = get("pixelprune", **method).select(cells)
    before = torch.zeros_like(free)
    for most in range(1, total + 1):
        kept, _ = get("pixelprune", max_kept=most, fill=True, **method).select(cells)
        limited, _ = get("pixelprune", max_kept=most, **method).select(cells)
        assert kept.sum() == most
        assert (kept | ~before).all()
        assert limited.sum() == min(most, int(free.sum()))
        assert (limited <= kept).all()
        assert (limited <= free).all()
        before = kept


def published_components(cells, threshold, skip_ratio, rand, total):
    """The cells kept of the components of cells [H, W, D]: the published rule, restated cell by cell."""
    height, width, _ = cells.shape
    label = list(range(height * width))
    for _ in label:  # often enough that nothing changes any more
        for cell in range(height * width):
            row, column = divmod(cell, width)
            beside = [cell + 1] * (column + 1 < width) + [cell + width] * (row + 1 < height)
            for other in beside:
                if (cells[row, column] - cells[divmod(other, width)]).abs().max() <= threshold:
                    label[cell] = label[other] = min(label[cell], label[other])
    generator, kept = random.Random(42), []
    for first in sorted(set(label)):
        members = [cell for cell, own in enumerate(label) if own == first]
        count = max(1, len(members) - round(len(members) * skip_ratio))
        if len(members) > 1 and rand:
            members = generator.sample(members, count)
        elif len(members) > 1:
            members = [members[at] for at in torch.linspace(0, len(members) - 1, steps=count).long().tolist()]
        kept = sorted(kept + members)
    if total is not None and len(kept) < total:
        kept += generator.sample(list(set(range(height * width)) - set(kept)), total - len(kept))
    elif total is not None and len(kept) > total:
        gone = set(generator.sample(range(1, len(kept)), len(kept) - total))
        kept = [cell for at, cell in enumerate(kept) if at not in gone]
    return sorted(kept)


@settings(derandomize=True, max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.ci
def test_components_are_thinned_as_published(data):
    """Also where a small component stays whole: its draw still advances the generator."""
    cells = pictures(data.draw)
    threshold, share = data.draw(st.sampled_from([0.0, 1 / 64, 2 / 64])), data.draw(st.sampled_from([0.1, 0.25, 0.7]))
    fields = {"threshold": threshold, "skip_ratio": share, "rand": data.draw(st.booleans())}
    own, _ = get("pixelprune", predictor="connected", **fields).select(cells)
    expected = published_components(cells, *fields.values(), None)
    assert own.flatten().nonzero()[:, 0].tolist() == expected
    total = int(get("pixelprune", threshold=threshold).select(cells)[0].sum())
    own, _ = get("pixelprune", predictor="connected", align_compression=True, **fields).select(cells)
    expected = published_components(cells, threshold, 1 - total / own.numel(), fields["rand"], total)
    assert own.flatten().nonzero()[:, 0].tolist() == expected
    assert len(expected) == total


@pytest.mark.parametrize("cells", [17, 40, 250])
def test_cells_that_stand_evenly_are_rounded_as_published(cells):
    for share in (0.1, 0.15, 0.3):
        method = get("pixelprune", predictor="connected", skip_ratio=share)
        kept = method.select(torch.full((1, cells, 2), 0.25))[0][0].nonzero()[:, 0]
        assert torch.equal(kept, torch.linspace(0, cells - 1, cells - round(cells * share)).long())


def test_a_budget_keeps_the_worst_predicted():
    cells = torch.tensor([0.0, 0.1, 0.1, 0.9, 0.5, 0.5]).view(1, 6, 1)
    kept, source = get("pixelprune", max_kept=3).select(cells)
    assert kept.tolist() == [[True, False, False, True, True, False]]
    assert source.tolist() == [[0, 0, 0, 3, 4, 4]]


def test_runs_do_not_hang_on_how_long_a_window_is():
    """Each cell differs from the next by less than the threshold; a run ends where one is too far from its first."""
    cells = (torch.arange(1100) // 7 / 1024).view(1, 1100, 1)
    kept, source = get("pixelprune", predictor="raster", threshold=50 / 1024).select(cells)
    assert kept[0].nonzero()[:, 0].tolist() == [0, *range(51 * 7, 1100, 51 * 7)]
    assert torch.equal(source[0], torch.arange(1100) // (51 * 7) * (51 * 7))


@pytest.mark.parametrize("predictor", ["raster", "serpentine"])
def test_equal_cells_lean_on_the_first_of_their_run_as_like_ones_do(predictor):
    """At threshold 0 and just above it the results agree, also where a budget has room for more cells."""
    cells = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 0]).view(2, 4, 1)
    for limits in ({}, {"max_kept": 1}, {"max_kept": 4, "fill": True}, {"min_share": 0.7}):
        equal, like = (get("pixelprune", predictor=predictor, threshold=t, **limits).select(cells) for t in (0, 1e-3))
        assert torch.equal(equal[0], like[0])
        assert torch.equal(equal[1], like[1])


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_long_equal_rows_and_no_global_generator(predictor):
    state = torch.get_rng_state()
    kept, source = get("pixelprune", predictor=predictor).select(torch.full((1, 3000, 2), 0.25))
    assert kept.sum() == 1
    assert len(set(source.flatten().tolist())) == 1
    assert torch.equal(torch.get_rng_state(), state)


@settings(derandomize=True, max_examples=20, deadline=None)
@given(data=st.data())
def test_many_values_are_compared_as_few_are(data):
    """Only a few values of each cell are compared first, so the one value in which cells differ may be any of them."""
    few = pictures(data.draw)[..., :1]
    height, width, _ = few.shape
    places = data.draw(st.lists(st.integers(0, 511), min_size=height * width, max_size=height * width))
    many = torch.zeros(height, width, 512)
    many.scatter_(2, torch.tensor(places).view(height, width, 1), few)
    for fields in ({"threshold": 0.0}, {"threshold": 1 / 64}, {"threshold": 1 / 64, "predictor": "raster"}):
        kept, source = get("pixelprune", **fields).select(many)
        true_kept, true_source = get("pixelprune", min_share=1e-9, **fields).select(many)
        assert torch.equal(kept, true_kept)
        assert torch.equal(source, true_source)


def test_tiny_differences_are_differences_at_threshold_0():
    cells = torch.tensor([0.0, 1e-30]).view(1, 2, 1)
    for metric in ("max", "mae", "rmse", "exact"):
        assert get("pixelprune", metric=metric).select(cells)[0].all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"predictor": "loco"}, "predictor='loco'"),
        ({"metric": "l2"}, "metric='l2'"),
        ({"threshold": -0.1}, "threshold=-0.1: give the largest difference"),
        ({"max_kept": 0}, "max_kept=0: give how many"),
        ({"fill": True}, "fill=true without max_kept"),
        ({"layer": 2}, "pixelprune with layer=2: it cannot run at a decoder layer; leave layer out"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        get("pixelprune", **fields)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_what_is_no_number_is_refused(predictor, value):
    cells = torch.zeros(3, 4, 200)
    cells[1, 2, 151] = value
    with pytest.raises(InputError, match="cells hold NaN or infinite values: give pixel values"):
        get("pixelprune", predictor=predictor).select(cells)
    cells[1, 2, 150:152] = 3e38  # each is finite, although their sum overflows fp32
    assert get("pixelprune", predictor=predictor).select(cells)[0].any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_among_values_that_are_not_looked_at_first_is_like_no_other(value):
    cells = torch.zeros(3, 4, 512)
    cells[1, 2, 301] = value
    kept, source = get("pixelprune").select(cells)
    assert (kept[1, 2], source[1, 2]) == (True, 6)
    cells[1, 2] = value
    with pytest.raises(InputError, match="cells hold NaN or infinite values: give pixel values"):
        get("pixelprune").select(cells)


def test_the_config_takes_and_gives_it():
    step = {"method": "pixelprune", "predictor": "serpentine", "metric": "mae", "threshold": 0.02, "max_kept": None}
    config = CompressionConfig.from_dict({"steps": [step], "positions": "keep_one", "k": 1})
    assert CompressionConfig.from_dict(config.to_dict()) == config
    assert get("pixelprune", max_kept=64, fill=True).counts == "exact"
    assert get("pixelprune", max_kept=64).kept(99) == 64


@pytest.mark.parametrize(
    "fields", [{"predictor": "connected"}, {"predictor": "connected", "rand": True}, {"predictor": "random"}], ids=str
)
def test_cells_are_chosen_where_they_lie_whatever_the_default_device(fields):
    cells, method = torch.rand(6, 7, 12, generator=torch.Generator().manual_seed(0)), get("pixelprune", **fields)
    expected = method.select(cells)
    try:
        torch.set_default_device("meta")
        found = method.select(cells)
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(one, other) for one, other in zip(found, expected))
