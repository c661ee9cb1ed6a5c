"""whole.json lists a checkpoint's files: a file that differs from its row, or a changed list, is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cut_runs import refused

from ppe_npu.errors import InputError
from ppe_npu.training.whole import check_whole, whole_record


def test_folders_of_shards_and_several_processes_files_are_listed_and_checked(tmp_path):
    """Files as DeepSpeed and torchrun leave them."""
    folder = tmp_path / "checkpoint-3"
    shares = [f"global_step3/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)]
    for name in ("rng_state_0.pth", "rng_state_1.pth", "latest", *shares):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 10)
    (folder / "whole.json").write_text(json.dumps(whole_record(folder, 3)))
    assert check_whole(folder)
    for file in [path for path in folder.rglob("*") if path.is_file() and path.name != "whole.json"]:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + b"x")
        with pytest.raises(InputError, match=f"{file} is damaged"):
            check_whole(folder)
        file.write_bytes(content)


NEEDED = ("trainer_state.json", "scheduler.pt", "optimizer.pt", "rng_state.pth", "config.json", "model.safetensors")


@pytest.mark.parametrize(
    ("change", "words", "earlier"),
    [
        (lambda files: files.pop("optimizer.pt"), "whole.json is damaged", "optimizer.pt is missing"),
        (lambda files: files.clear(), "whole.json is damaged", "trainer_state.json is missing"),
        (
            lambda files: files["optimizer.pt"].update(size=1),
            "whole.json is damaged",
            "optimizer.pt is damaged: it has 5 bytes",
        ),
        (lambda files: files.update({"a" * 300: files["config.json"]}), "whole.json is damaged", "name too long"),
        (lambda files: files.update({"../a": files["config.json"]}), "whole.json is damaged", "whole.json is damaged"),
        (lambda files: files.update({"/etc/passwd": files["config.json"]}), "whole.json is", "whole.json is damaged"),
    ],
)
def test_a_list_of_files_that_somebody_changed_is_named(tmp_path, change, words, earlier):
    """A missing row would leave its file unchecked; an earlier version's list has no checksum of its own."""
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    for name in NEEDED:
        (folder / name).write_bytes(b"state")
    record = whole_record(folder, 3)
    (folder / "whole.json").write_text(json.dumps({key: record[key] for key in ("step", "files")}))
    assert check_whole(folder), "an earlier version's"
    change(record["files"])
    for listed, said in ((record, words), ({key: record[key] for key in ("step", "files")}, earlier)):
        (folder / "whole.json").write_text(json.dumps(listed))
        with pytest.raises(InputError, match=said):
            check_whole(folder)


@pytest.mark.parametrize("lost", [("sum",), ("sum", "files")])
def test_a_list_that_lost_its_sum_is_not_taken_for_an_earlier_editions(cut_run, lost):
    newest = Path(cut_run["output"]) / "checkpoint-6"
    record = json.loads((newest / "whole.json").read_text())
    del record["files"]["training_args.bin"]
    (newest / "whole.json").write_text(json.dumps({key: record[key] for key in record if key not in lost}))
    words = f"{newest / 'whole.json'} is damaged: the checksum of its list is missing"
    refused(cut_run, words, "--resume-from-checkpoint checkpoint-4")
    for needed in (None, lambda name: name == "config.json"):  # as export calls it
        with pytest.raises(InputError, match=words):
            check_whole(newest, needed)
