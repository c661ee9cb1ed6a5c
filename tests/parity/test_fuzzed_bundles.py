"""Randomly changed bundles whose hashes were corrected: one line, or a row that fails; never agreement, and never a
traceback."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil

import pytest
import torch
from bounds import bounded
from bundles import rewrite
from mutations import both, damage, dice, thousand
from test_bundle import CPU

from ppe_npu.errors import FileError, InputError
from ppe_npu.parity import bundle, files

RESULTS = ("/forward/", "/grad/", "/logits", "/losses", "/gradients", "/ids")


def numbers(tensor, draw):
    """Other numbers of the same dtype, far from the old ones: NaN, inf, or so large that nothing can be computed."""
    kind = draw.choice(["nan", "inf", "-inf", "large", "negative"])
    if not tensor.is_floating_point():
        return torch.full_like(tensor, draw.choice([-1, 10**6, 2**62]) if tensor.dtype == torch.int64 else 1)
    if kind in ("large", "negative"):
        return torch.full_like(tensor, 3e38 if kind == "large" else -1e30)
    out = tensor.clone()
    out.view(-1)[draw.randrange(out.numel()) if draw.random() < 0.5 else slice(None)] = float(kind)
    return out


def dtype(tensor, draw):
    others = [torch.bool, torch.uint8, torch.int32, torch.float16, torch.float64, torch.float8_e4m3fn, torch.complex64]
    return tensor.to(draw.choice([other for other in others if other is not tensor.dtype]))


def shape(tensor, draw):
    ways = [tensor[None], tensor.flatten()[:-1], tensor[..., :0], tensor.sum(), tensor.flatten()]
    return draw.choice([way for way in ways if way.shape != tensor.shape]).clone()


def changed(tensors: dict, draw) -> str:
    name = draw.choice(sorted(tensors))
    last = [other for other in tensors if "/cotangents/" in other] == [name]  # without it: the first version's bundle
    if draw.random() < 0.1 and not last:
        tensors.pop(name)
    elif draw.random() < 0.1:
        tensors[draw.choice(["x", f"{name}0", name.upper(), ""])] = tensors[name].clone()
    else:
        tensors[name] = draw.choice([numbers, dtype, shape])(tensors[name], draw)
    return name


def changed_file(folder, draw) -> str:
    """Changes a file as a disk or an editor would, with the hashes corrected if possible; returns what it did."""
    name = draw.choice(("manifest.json", "tensors.safetensors"))
    kind = damage(folder / name, folder / "manifest.json", draw)
    if (folder / name).is_file():  # a pipe would be waited for
        with contextlib.suppress(Exception):  # what is no bundle any more has no hashes
            rewrite(folder)
    return f"{name}: {kind}"


def check(once, place, number: int) -> bool:
    """Checks the law for one change, half of them of tensors, half of files; returns whether it was refused at once."""
    draw, named, said = dice("bundle", number), [], None
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(once, place)
    if number % 2:
        rewrite(place, lambda tensors: named.append(changed(tensors, draw)))
    else:
        named.append(changed_file(place, draw))
    with bounded((number, named)):
        try:
            rows = bundle.check(place, CPU)
        except InputError as error:
            said = str(error)
        except Exception as error:
            raise AssertionError((number, named)) from error
    if said is not None:
        assert str(place) in said, (number, named, said)
        assert "\n" not in said, (number, named, said)
        return True
    assert number % 2 == 0 or not all(row.ok for row in rows), (number, named)
    assert "".join(row.note for row in rows).isprintable(), (number, named)
    return False


@thousand(2)
@pytest.mark.ci
@pytest.mark.usefixtures("few")
def test_whatever_is_changed_is_never_agreement(once, tmp_path, numbers):
    assert both([check(once, tmp_path / "copy", number) for number in numbers])


@pytest.mark.parametrize("name", ["attention_mask", "image_grid_thw", "video_grid_thw", "second_per_grid_ts"])
def test_what_is_not_drawn_is_as_this_version_has_it(recorded, name):
    """Seconds of 3e38 a frame change the bf16 logits by less than the device's rounding may."""
    rewrite(recorded, lambda tensors: tensors[f"model/bf16/inputs/{name}"].mul_(2))
    with pytest.raises(InputError, match=f"has another model/bf16/inputs/{name} than this version"):
        bundle.check(recorded, CPU)


CHANGED = (
    ("swiglu/batch/fp32/forward/0", lambda t: t.double()),
    ("model/fp32/dense/logits", lambda t: t.float()),
    ("swiglu/batch/bf16/grad/0", lambda t: t.to(torch.complex64)),
    ("dpc_knn/frames/fp32/forward/1", lambda t: t.to(torch.int8)),
)


@pytest.mark.ci
def test_the_same_numbers_in_another_dtype_are_not_the_same(recorded):
    rewrite(recorded, lambda tensors: tensors.update({name: change(tensors[name]) for name, change in CHANGED}))
    failed = [(row.op, row.dtype, row.direction, row.error) for row in bundle.check(recorded, CPU) if not row.ok]
    assert failed == [
        ("dpc_knn", "fp32", "forward", math.inf),
        ("swiglu", "fp32", "forward", math.inf),
        ("model", "fp32", "forward", math.inf),
        ("swiglu", "bf16", "grad", math.inf),
    ]


def test_cotangents_that_make_every_gradient_nan_are_no_parity(recorded):
    """Where fp64 gives NaN, NaN is accepted, so inputs must not be NaN."""

    def change(tensors):
        for name, tensor in tensors.items():
            if "/cotangents/" in name or "/grad/" in name:
                tensor.fill_(math.nan)

    rewrite(recorded, change)
    with pytest.raises(InputError, match=r"numbers in swiglu/batch/cotangents/0 that are not finite"):
        bundle.check(recorded, CPU)


@pytest.mark.ci
def test_weights_that_nothing_can_be_computed_with_are_no_parity(recorded):
    """The logits are NaN here, in the recording and in fp64."""

    def change(tensors):
        tensors["model/weights/lm_head.weight"].fill_(3e38)
        tensors["model/weights/model.language_model.norm.weight"].fill_(3e38)
        for name, tensor in tensors.items():
            if name.startswith("model/") and name.endswith(RESULTS) and tensor.is_floating_point():
                tensor.fill_(math.nan)

    rewrite(recorded, change)
    rows = [row for row in bundle.check(recorded, CPU) if row.op == "model"]
    assert not any(row.ok for row in rows if "ids" not in row.case)


def test_a_folder_that_is_no_bundle_is_not_written_over(few, once, tmp_path):
    """A folder with another manifest.json, or with files beside a bundle's two, is not ours to delete."""
    web, beside = tmp_path / "web", tmp_path / "bundle"
    for folder, texts in ((web, {"manifest.json": "{}"}), (beside, {"notes.txt": "mine"})):
        folder.mkdir()
        for name, text in texts.items():
            (folder / name).write_text(text)
    (beside / "manifest.json").write_text(json.dumps({"format": files.FORMAT}))
    for folder, words in (
        (web, "holds no manifest.json of a bundle"),
        (beside, "holds notes.txt, which is no part of a"),
    ):
        before = {path.name: path.read_text() for path in folder.iterdir()}
        with pytest.raises(InputError, match=words):
            bundle.record(CPU, folder)
        assert {path.name: path.read_text() for path in folder.iterdir()} == before


def test_a_pipe_in_a_manifests_place_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(InputError, match=r"exists and holds no manifest.json of a bundle"):
        files.check_replaceable(tmp_path)


def test_what_cannot_be_written_is_said_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "CaseRun", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"file/new cannot be written \(a part of its path is a file\)"):
        bundle.record(CPU, tmp_path / "file" / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_device_without_the_dtype_is_no_parity(recorded, monkeypatch, run):
    monkeypatch.setattr(bundle.devices, "supports", lambda device, dtype: False)
    with pytest.raises(InputError, match="holds fp32, bf16, which cpu does not support"):
        bundle.check(recorded, CPU)
    assert run("parity", "--device", "cpu", "--dtypes", "fp16")[0] == 2
