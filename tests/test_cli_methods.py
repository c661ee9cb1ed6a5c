"""Methods on the command line: the list of methods, and any of them wherever a compression is named."""

import json

import pytest
from command_line import refused

from ppe_npu.demo import scenes


def test_methods_are_listed_with_place_needs_budget_and_paper(run):
    from ppe_npu.methods.base import published

    code, out, _ = run("methods")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines] == ["method", *published()]
    assert next(line for line in lines if line.startswith("divprune ")).split() == [
        *("divprune", "input,", "layer", "tokens", "exact", "arXiv", "2503.02175")
    ]
    code, out, _ = run("methods", "--json")
    found = {one["name"]: one for one in json.loads(out)}
    assert code == 0
    assert list(found) == list(published())
    assert found["evs"]["scope"] == "span"
    assert found["evs"]["needs"] == ["places", "tokens"]
    assert found["random"] | {"what": ""} == {
        "name": "random",
        "what": "",
        "places": ["input", "layer"],
        "place": "input",
        "needs": ["places"],
        "scope": "frame",
        "budget": "exact",
        "paper": None,
        "fields": {"layer": None, "ratio": 0.45, "seed": 0},
    }
    assert all(one["budget"] in ("exact", "late") and one["what"] for one in found.values())


def test_rules_of_positions_are_listed_with_what_they_do(run):
    from ppe_npu.methods.positions import rule_named, rule_names

    code, out, _ = run("methods", "--positions")
    assert code == 0
    assert [line.split(maxsplit=1) for line in out.splitlines()] == [[n, rule_named(n).what] for n in rule_names()]
    code, out, _ = run("methods", "--positions", "--json")
    assert (code, [one["name"] for one in json.loads(out)]) == (0, list(rule_names()))


@pytest.mark.ci
def test_any_method_with_its_fields_trains_answers_and_is_reported(run, tiny_folder, tmp_path, write_image):
    for name, count in (("train", 4), ("test", 2)):
        scenes.write_split(tmp_path / "data", name, count, seed=1, questions_per_image=2)
    asked = ["--data", tmp_path / "data" / "train.jsonl", "--output", tmp_path / "run", "--device", "cpu"]
    method = "divprune:dropped=drop,positions=ppe"
    settings = ["--max-steps", 1, "--batch-size", 4, "--compression", method, "--ratio", 0.25, "--k", 4]
    code, out, err = run("train", "--model", tiny_folder, *asked, *settings)
    assert code == 0, err
    assert "compression divprune 0.25 droppeddrop, positions ppe, k 4" in out
    final = tmp_path / "run" / "final"
    where = ["--model", final, "--data-root", tmp_path / "data", "--output", tmp_path / "eval", "--device", "cpu"]
    several = ["dense", "divprune", "apet:basis=4", "vidcom2:temperature=0.1"]
    changed = ["--positions", "ppe", "--k", 4, "--ratio", 0.25, "--max-new-tokens", 2]
    changed += ["--cost-rounds", 0, "--no-smaller-input"]
    code, out, err = run("eval", *where, "--compression", *several, *changed)
    assert code == 0, err
    report = (tmp_path / "eval" / "report.md").read_text()
    for row in ("dense", "divprune ppe k=4 0.25", "apet_basis4 ppe k=4 0.25", "vidcom2_temperature0.1 ppe k=4 0.25"):
        assert f"| {row} |" in out
        assert f"| {row} |" in report
    shown = tmp_path / "groups.png"
    looked = ["--model", final, "--image", write_image("a.png"), "--max-new-tokens", 1, "--device", "cpu"]
    code, out, err = run("describe", *looked, "--show", shown)  # with the checkpoint's own compression
    assert code == 0, err
    assert "36 before, 9 after" in out
    assert shown.is_file()
    refused(run("describe", *looked, "--compression", "divprune:rate=2"), "divprune has no rate")
    refused(run("describe", *looked, "--compression", "divprune", "--k", 4), "k=4 with positions='keep_one'")
