"""A randomly damaged run folder: resuming stops with one line that names the damage and changes nothing, or goes on
as without the damage, from a checkpoint whose files are all as they were written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from bounds import bounded
from cut_runs import go_on
from mutations import damage, dice, thousand

from ppe_npu.errors import UserError
from ppe_npu.training import loop, trainer

RUN = ("train.json", "identity.json", "summary.json", "media.txt", "skipped-0.jsonl", "data.json", "final/base.json")


DIGESTS: dict[tuple, str] = {}


def state(folder: Path) -> dict[str, str]:
    """Returns what cut_runs.state returns, but reads hard links to one file once."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != ".run.lock":
            known = path.stat()
            key = (known.st_ino, known.st_size, known.st_mtime_ns)
            if key not in DIGESTS:
                DIGESTS[key] = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path)] = DIGESTS[key]
    return found


class Went(Exception):
    """Raised where training would start, with the checkpoint it would resume from."""


@pytest.fixture
def untrained(whole_run, monkeypatch):
    """Makes go_on() stop before the first step; what it needs of model and data is read once."""
    from ppe_npu.training.args import TrainConfig

    config, model = TrainConfig(**whole_run[0]), json.loads((Path(whole_run[1].final) / "base.json").read_text())
    processor = trainer.load_processor(config.model)
    records = trainer._records(config, processor, None)
    monkeypatch.setattr(trainer, "load_processor", lambda *_: processor)
    monkeypatch.setattr(trainer, "_records", lambda *_: records)
    monkeypatch.setattr(trainer, "_model", lambda *_: (None, model))
    monkeypatch.setattr(trainer, "_trainer", lambda *_: None)

    def learn(trainer, config, processor, base, checkpoint):
        raise Went(checkpoint)

    monkeypatch.setattr(trainer, "_learn", learn)


@pytest.fixture(scope="module", params=["cut off", "ended"])
def original(request, whole_run, tmp_path_factory):
    """(a run's folder, another run's folder); the first run was cut off, or has ended."""
    folder = tmp_path_factory.mktemp("original")
    shutil.copytree(whole_run[0]["output"], folder / "run")
    (folder / "run" / "skipped-0.jsonl").write_text('{"step": 3, "id": "7", "reason": "broken"}\n')
    summary = json.loads((folder / "run" / "summary.json").read_text())
    (folder / "run" / "summary.json").write_text(json.dumps(summary | {"final": str(folder / "copy" / "final")}))
    if request.param == "cut off":
        shutil.rmtree(folder / "run" / "final")
    other = {**whole_run[0], "output": str(folder / "other"), "learning_rate": 1e-4, "max_steps": 5}
    go_on(other)
    return folder / "run", folder / "other"


def check(original: Path, other: Path, place: Path, settings: dict, number: int) -> str:
    draw = dice("run", number)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(original, place, copy_function=os.link)
    there = [name for name in RUN if (place / name).is_file()]
    newest = loop.checkpoints(place)[-1]
    listed = [f"{newest.name}/{path.name}" for path in newest.iterdir()]
    name = draw.choice([*there * 3, *listed, *[f"{newest.name}/whole.json"] * 12])
    kind = damage(place / name, other / name.replace("checkpoint-6", "checkpoint-4"), draw)
    before, whole = state(place), state(original)
    what = (number, name, kind)
    try:
        with bounded(what):
            result = go_on(settings | {"output": str(place)})
    except UserError as error:
        said = str(error)
        assert "\n" not in said, what
        assert Path(name).name in said or str(newest) in said, (what, said)
        assert state(place) == before, what
        return "refused"
    except Went as went:
        (checkpoint,) = went.args
        assert checkpoint is not None, what
        after = state(place)
        for path in checkpoint.iterdir():
            same = after[str(path)] == whole[str(original / path.relative_to(place))]
            assert same or path.name == "whole.json", (what, path.name)
        assert checkpoint == newest or name == f"{newest.name}/whole.json", what
        kept = {path: digest for path, digest in before.items() if "/checkpoint-" in path or "/final/" in path}
        assert kept.items() <= after.items(), what
        return "went on"
    expected = trainer.TrainResult.from_dict(json.loads((original / "summary.json").read_text()))
    assert result == expected or name == "summary.json", what
    assert state(place) == before, what
    return "ended"


@thousand(12)
@pytest.mark.ci
def test_a_damaged_run_is_named_or_goes_on_as_it_was(original, whole_run, untrained, tmp_path, capfd, numbers):
    settings = {**whole_run[0], "resume": True}
    shutil.copytree(original[0], tmp_path / "run")
    counts = {"refused": 0, "went on": 0, "ended": 0}
    for number in numbers:
        counts[check(*original, original[0].parent / "copy", settings, number)] += 1
    assert counts["refused"] > len(numbers) // 3, counts
    assert counts["went on"] + counts["ended"] > len(numbers) // 20, counts
