"""How tables name a run's protocol: results of several versions, and parts of a protocol that do not affect a run."""

from __future__ import annotations

import pytest
from report_runs import write_run

from ppe_npu.errors import InputError
from ppe_npu.evaluation import protocols
from ppe_npu.evaluation.benchmarks import registry
from ppe_npu.evaluation.identity import check_settings
from ppe_npu.evaluation.report import collect, write_report
from ppe_npu.evaluation.run_protocol import label, labels
from ppe_npu.files import write_json


def test_what_is_asked_for_beside_the_checkpoints_own_is_told_and_older_folders_go_on(tmp_path):
    told, untold = (protocols.load("checkpoint").recorded(changed) for changed in ({"max_pixels": 784}, {}))
    assert label({"protocol": told}) == "checkpoint (max_pixels 784)"
    for before in ({}, {"protocol": untold}):
        write_json(tmp_path / "settings.json", {**before, "image_size": 784})
        check_settings(tmp_path, {"protocol": told, "image_size": 784}, {"protocol": untold})
        with pytest.raises(InputError, match="another image_size"):
            check_settings(tmp_path, {"protocol": told, "image_size": 1}, {"protocol": untold})


def test_runs_of_two_editions_with_the_same_numbers_stand_in_one_table(tmp_path):
    """Earlier versions did not record what was asked for beside the checkpoint's own settings."""
    told, untold = (protocols.load("checkpoint").recorded(changed) for changed in ({"max_new_tokens": 2}, {}))
    first = {"benchmark": "layout", "max_new_tokens": 2, "image_size": {"longest_edge": 9}}
    before, now = {**first, "protocol": untold}, {**first, "protocol": told}
    assert labels([first, before, now]) == ["checkpoint (max_new_tokens 2)"] * 3
    assert labels([first, before]) == ["checkpoint"] * 2  # because neither records what was asked for
    for key, value in (("max_new_tokens", 16), ("image_size", {"longest_edge": 8}), ("benchmark", "motion")):
        assert labels([{**before, key: value}, now]) == ["checkpoint", "checkpoint (max_new_tokens 2)"]
    asked = protocols.load("lmms-eval").recorded({"max_pixels": 784})
    assert labels([{**first, "protocol": one} for one in (protocols.load("lmms-eval").recorded(), asked)]) == [
        "lmms-eval", "lmms-eval (max_pixels 784)"
    ]  # fmt: skip
    for name, method, settings in (("dense", (), before), ("ppe", ("ppe", 0.25), now)):
        folder = tmp_path / "layout" / name
        result = write_run(folder, [1.0, 0.0], *method)
        (folder / "predictions.jsonl").unlink()  # because the page would need more of its fields
        write_json(folder / "results.json", {**result, "settings": {**result["settings"], **settings}})
    path, table = write_report(collect(tmp_path), tmp_path / "report.md", "Two editions", html=True)
    assert table.startswith("| method, under protocol checkpoint (max_new_tokens 2) |")
    assert path.read_text().count("Protocol: checkpoint (max_new_tokens 2).") == 2
    assert path.with_suffix(".html").read_text().count("<h2>Protocol") == 1


@pytest.mark.parametrize(
    ("name", "protocol", "edition"),
    [
        ("mmbench_en", "checkpoint", 2),
        ("mvbench", "lmms-eval", 3),
        ("mvbench", "checkpoint", 2),
        ("pope", "vlmevalkit", 2),
    ],
)
def test_scores_by_an_older_rule_stand_in_no_table_with_those_of_todays(name, protocol, edition):
    now = {"benchmark": name, "edition": edition, "protocol": protocols.load(protocol).recorded()}
    assert label(now) == protocol
    older = {**now, "edition": edition - 1}
    assert label(older) == f"{protocol} (of another edition)"
    assert labels([now, older]) == [label(now), label(older)]


@pytest.mark.parametrize(("name", "same"), [("textvqa", True), ("videomme", False), ("mine", False)])
def test_numbers_of_videos_are_nothing_to_results_of_pictures(tmp_path, name, same):
    """An earlier version of the protocol's file had 2 frames per second."""
    protocol = protocols.load("lmms-eval")
    now = {"benchmark": name, "protocol": protocol.recorded(), "video": {"nframes": 32}}
    now["edition"] = 7 if name == "mine" else registry.edition(name, protocol)  # a user's benchmark counts its own
    videos = {"fps": 2.0, "max_frames": 32}
    older = {**now, "protocol": {**now["protocol"], "video": videos}, "video": videos}
    asked = {**now, "protocol": {**now["protocol"], "changed": {"nframes": 8}}}
    assert label(asked) == ("lmms-eval" if same else "lmms-eval (nframes 8)")
    assert label(now) == "lmms-eval"
    assert label(older) == ("lmms-eval" if same else "lmms-eval (of another edition)")
    write_json(tmp_path / "settings.json", older)
    if same:
        check_settings(tmp_path, now)
        return
    with pytest.raises(InputError, match=r"another protocol .*: choose another output, or delete the folder"):
        check_settings(tmp_path, now)


def test_numbers_of_pictures_are_nothing_to_results_of_videos(tmp_path):
    found = protocols.load("qwen").recorded()
    now = {
        "benchmark": "mlvu",
        "edition": 2,
        "protocol": found,
        "image_size": {"longest_edge": 2},
        "video": {"nframes": 4},
    }
    now |= {"processor": "a", "image_processor": "b", "video_processor": "c"}
    older = {**now, "protocol": {**found, "image": {"max_pixels": 1}}, "image_size": {"longest_edge": 1}}
    older["image_processor"] = "d"
    write_json(tmp_path / "settings.json", older)
    check_settings(tmp_path, now)
    assert label(older) == "qwen"
    assert label({**older, "benchmark": "pope"}) == "qwen (of another edition)"
    with pytest.raises(InputError, match=r"another benchmark .*mlvu.*pope.*protocol"):
        check_settings(tmp_path, {**now, "benchmark": "pope"})
