"""Every command that writes, on a full disk: one line names the file, nothing is lost or half written, and the same
command ends well once there is room."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from pathlib import Path

import pytest
from fixtures import write_noise_records
from full_disk import run_full

sys.path[:0] = [str(Path(__file__).with_name(name)) for name in ("evaluation", "training")]
from result_folders import run  # noqa: E402
from saved_runs import save_run  # noqa: E402

CPU = ("--device", "cpu")
TRAIN = ("train", "--data", "data/train.json", "--k", 4, "--max-steps", 2, "--save-steps", 1, "--output", "out", *CPU)
SHOW = ("describe", "--model", "model", "--image", "data/0.png", "--k", 4, "--max-new-tokens", 1, *CPU)
EVAL = ("eval", "--model", "model", "--data-root", "scenes", "--k", 4, "--max-new-tokens", 2, *CPU)
COMMANDS = {
    "convert": ("convert", "--data", "data/train.json", "--output", "out/records.jsonl"),
    "data": ("data", "--model", "model", "--data", "data/train.json", "--k", 4, "--out", "out"),
    "report": ("report", "results", "--html", "--published", "all"),
    "show": (*SHOW, "--show", "groups.png"),
    "export": ("export", "--checkpoint", "full/final", "--output", "out"),
    "export --vllm": ("export", "--checkpoint", "full/final", "--output", "out", "--vllm"),
    "merge-lora": ("merge-lora", "--adapter", "lora/final", "--model", "model", "--output", "out"),
    "train": (*TRAIN, "--model", "model", "--resume"),
    "train an adapter": (*TRAIN, "--model", "model", "--resume", "--adapter", "lora", "--tensorboard"),
    "embedded": ("train", "--output", "out", "--max-steps", 1, "--resume", *CPU),
    "eval": (*EVAL, "--compression", "dense", "ppe", "--smaller-input", "--cost-rounds", 1, "--output", "out"),
    "parity": ("parity", "record", "--out", "out", *CPU),
}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, tiny_folder, tiny_processor):
    """What commands read: a model, records, runs of training and of evaluation."""
    from ppe_npu.demo import scenes

    folder = tmp_path_factory.mktemp("seeds")
    shutil.copytree(tiny_folder, folder / "model")
    for kind, name in ((None, "full"), ("lora", "lora")):
        save_run(folder / name / "final", str(folder / "model"), kind, tiny_processor)
    (folder / "data").mkdir()
    write_noise_records(folder / "data", records=4, most_words=3)
    scenes.write_split(folder / "scenes", "test", 2, 2, 3)
    run(folder / "results")
    return folder


def fresh(seeds: Path, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    return Path(shutil.copytree(seeds, place))


def state(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check(seeds: Path, place: Path, command: str, **full) -> str:
    """Checks the law for one failure; returns the line that was printed, or an empty text if nothing failed."""
    where = fresh(seeds, place)
    code, said, _ = run_full(COMMANDS[command], where, **full)
    if code == 0:
        return ""
    lines = [line for line in said.splitlines() if line.startswith("ppe-npu: error: ")]
    assert len(lines) == 1, said
    assert code in (1, 2)
    assert "Traceback" not in said
    line = lines[0]
    assert re.search(r"error: \S+.* cannot be written \((no space|it exceeds the file size limit)", line), line
    after = state(where)
    assert state(seeds).items() <= after.items(), "what was there is there"
    assert not [name for name in after if name.endswith(".tmp")], "nothing half written takes up room"
    again, told, _ = run_full(COMMANDS[command], where)
    assert again == 0, (line, told)
    return line


@pytest.mark.parametrize(
    ("command", "full", "words"),
    [
        ("convert", {"named": "records.jsonl"}, "out/records.jsonl cannot be written (no space"),
        ("merge-lora", {"size": 50_000}, "model.safetensors cannot be written (it exceeds"),
        pytest.param("report", {"named": ".html"}, "results/report.html cannot", marks=pytest.mark.slow),
        pytest.param("data", {"named": "data.md"}, "out/data.md cannot", marks=pytest.mark.slow),
        pytest.param("show", {"size": 100}, "groups.png cannot", marks=pytest.mark.slow),
        pytest.param("embedded", {"named": "-00007.png"}, "images/train-00007.png cannot", marks=pytest.mark.slow),
        pytest.param("eval", {"named": "costs.json"}, "costs.json cannot", marks=pytest.mark.slow),
        pytest.param("train an adapter", {"named": "tfevents"}, "/events.out.tfevents.", marks=pytest.mark.slow),
        pytest.param("eval", {"named": ".jpg"}, ".jpg cannot", marks=pytest.mark.slow),
    ],
)
@pytest.mark.ci
def test_the_file_without_room_is_named(seeds, tmp_path, command, full, words):
    assert words in check(seeds, tmp_path / "at", command, **full)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_is_full_from_any_moment_on(seeds, tmp_path, command):
    """The disk is full from one of up to 40 evenly spread moments on; and files may not outgrow some sizes."""
    code, said, made = run_full(COMMANDS[command], fresh(seeds, tmp_path / "at"))
    assert code == 0, said
    moments = sorted({1 + number * made // 40 for number in range(40)} & set(range(1, made + 1)))
    assert all(check(seeds, tmp_path / "at", command, at=at) for at in moments), "no moment is passed over"
    for size in (0, 300, 5_000, 50_000, 1_000_000):
        check(seeds, tmp_path / "at", command, size=size or 1)
