"""The study of rules of positions: its rows, what it compares, and what it says of made-up scores."""

import dataclasses
import json

import numpy as np
import pytest
import study_positions
import study_positions_page as page
import torch

from ppe_npu.demo import motion, pipeline
from ppe_npu.errors import InputError
from ppe_npu.methods.positions import rule_names
from ppe_npu.methods.view import View

PICTURES = 12


def made(rows: dict[str, float], seeds: int = 3, worse: str = "") -> dict:
    """A study with these probabilities of being right; on questions of kind `worse`, only the reference ever is."""
    generator = np.random.default_rng(0)
    types = list(page.KINDS["layout"]) * PICTURES
    pictures = [f"{number}.png" for number in range(PICTURES) for _ in page.KINDS["layout"]]
    results = []
    for seed in range(seeds):
        luck = generator.random(len(types))
        for name, share in rows.items():
            scores = (luck < share).astype(float)
            if name != page.REFERENCE:
                scores[np.array(types) == worse] = 0.0
            results.append({"row": name, "share": 0.25, "how": "free", "seed": seed, "scores": scores.tolist()})
    facts = {"images": PICTURES, "base_steps": 9, "command": "python study.py"}
    return {**facts, "types": types, "pictures": pictures, "results": results}


def said(study: dict) -> str:
    """What the page says, without its line breaks."""
    return " ".join(page.measured(study).split())


def test_every_rule_is_a_row_beside_one_position():
    rows = study_positions.rows()
    assert rows[0].name == page.REFERENCE
    assert {row.name for row in rows} >= set(rule_names())
    assert len({row.slug for row in rows}) == len(rows)
    # A picture of 36 tokens, a clip of eight of one.
    for name, shape, kept in (("layout", (1, 36), 9), ("motion", (8, 1), 2)):
        configs = [row.config(study_positions.TASKS[name], 0.25) for row in rows]
        assert {config.span_tokens(*shape) for config in configs} == {kept}


def test_a_difference_is_paired_by_picture():
    study = made({page.REFERENCE: 0.3, "spread": 0.7})
    scores = {name: page.scores_of([one for one in study["results"] if one["row"] == name]) for name in ("spread",)}
    reference = page.scores_of([one for one in study["results"] if one["row"] == page.REFERENCE])
    mean, low, high, seeds = page.difference(study, scores["spread"], reference, "row")
    own = np.array(study["types"]) == "row"
    assert mean == pytest.approx(scores["spread"][:, own].mean() - reference[:, own].mean())
    assert 0 < low < mean < high
    assert seeds == 3
    assert page.difference(study, reference, reference, "row") == (0, 0, 0, 0)


def test_what_is_said_goes_whichever_way_the_numbers_fall():
    better = said(made({page.REFERENCE: 0.3, "spread": 0.8, "last": 0.3}))
    assert "and worse on none: spread." in better
    assert "Over all questions the best is spread" in better
    mixed = said(made({page.REFERENCE: 0.5, "spread": 0.9}, worse="shape"))
    assert "Worse: spread (shape)." in mixed
    assert "and worse on none: none." in mixed
    none = said(made({page.REFERENCE: 0.5, "last": 0.5}))
    assert "by the interval: none. Worse: none." in none


def test_rows_with_the_sizes_counted_are_compared_with_one_position_that_has_them_counted():
    alike = {page.REFERENCE + page.COUNTED: 0.8, "spread" + page.COUNTED: 0.8}
    told = page.measured(made({page.REFERENCE: 0.3, "spread": 0.5, **alike}))
    first, second = told.split("Training-free, 25%: better than one position by the interval:")[:2]
    assert "| spread |" in first
    assert "| spread |" not in second
    table = [line for line in second.splitlines() if line.startswith("|")]
    assert "(" not in table[2]  # the row that the others are compared with
    assert table[2].startswith("| one position, sizes counted |")
    assert "(+.00 to +.00)" in table[3]
    assert "better than one position, sizes counted by the interval: none" in " ".join(second.split())


def test_while_some_rows_are_still_to_be_asked_the_seeds_that_all_have_are_compared():
    whole = made({page.REFERENCE: 0.3, "spread": 0.7, "last": 0.5})
    first = {**whole, "results": [one for one in whole["results"] if one["seed"] < 2]}
    assert page.measured({**whole, "results": whole["results"][:-2]}) == page.measured(first)


def test_rules_on_the_groups_of_other_methods_are_compared_with_one_position_there():
    study = made({page.REFERENCE: 0.5})
    for method, shares in (
        ("tome", {page.REFERENCE: 0.3, "spread": 0.8}),
        ("mmr", {page.REFERENCE: 0.8, "spread": 0.2}),
    ):
        study["results"] += [{**one, "method": method} for one in made(shares)["results"]]
    told = page.measured(study)
    assert "### On the groups of other methods, training-free, 25% of the tokens (3 seeds)" in told
    rows = {line.split(" | ")[0][2:]: line.split(" | ") for line in told.splitlines() if line.startswith("|")}
    assert [rows[name][2][:2] for name in ("tome", "mmr")] == ["+.", "-."]
    assert [rows[name][2][-4:] for name in ("tome", "mmr")] == [" + |", " - |"]
    assert "- spread: ahead with 1 (tome); behind with 1 (mmr)." in " ".join(told.split())
    assert "| spread |" not in told.split("### On the groups")[0]


def test_every_rule_is_run_on_every_method_that_is_named():
    task = study_positions.TASKS["layout"]
    rows = [*study_positions.by_rule("divprune"), *study_positions.by_rule("fastv")]
    assert [(row.method, row.name) for row in rows] == [
        (method, name) for method in ("divprune", "fastv") for name in (page.REFERENCE, *rule_names())
    ]
    assert len({row.slug for row in (*rows, *study_positions.rows())}) == len(rows) + len(study_positions.rows())
    configs = [row.config(task, 0.25) for row in rows]
    assert [config.members for config in configs if config.positions == "ppe"] == [*rule_names()] * 2
    assert {(config.methods[0].name, config.methods[0].ratio) for config in configs} == {
        ("divprune", 0.25),
        ("fastv", 0.25),
    }
    assert {config.k for config in configs} == {1, 4}


def test_a_page_is_given_back_all_but_what_is_between_the_marks_of_a_task(tmp_path):
    document = tmp_path / "page.md"
    marks = {task: "".join([start, "old\n", end]) for task, (start, end) in page.MARKS.items()}
    document.write_text(f"before\n{marks['layout']}between\n{marks['motion']}after\n")
    study = made({page.REFERENCE: 0.3}) | {"command": "python study.py --output /tmp/x --seeds 3 --page other.md"}
    page.put(document, study)
    start, end = page.MARKS["layout"]
    assert document.read_text() == f"before\n{start}{page.measured(study)}{end}between\n{marks['motion']}after\n"
    assert "`python study.py --seeds 3 --page docs/positions.md`: 12 pictures" in said(study)
    document.write_text("nothing")
    with pytest.raises(InputError, match="put them where"):
        page.put(document, study)


def test_what_cannot_be_trained_is_refused_before_anything_is(capsys):
    for given in (
        ["--tune", "nearby"],
        ["--task", "motion", "--methods", "tome"],
        ["--seeds", "1", "--tune", "extent", "--tune-seeds", "2"],
    ):
        with pytest.raises(SystemExit):
            study_positions.parsed(given)
    assert "exceeds the number of dense models (1): raise --seeds" in capsys.readouterr().err
    with pytest.raises(InputError, match="give all, or some of"):
        study_positions.parsed(["--methods", "tomes"])
    assert study_positions.parsed(["--tune", "extent, sizes counted", "--task", "motion"]).images == 96


@pytest.mark.slow
@pytest.mark.parametrize("task", ["layout", "motion"])
def test_a_small_study_asks_tunes_and_teaches_at_every_share(task, tmp_path, monkeypatch):
    for name in ("BASE", "TUNE", "EVAL"):
        monkeypatch.setattr(pipeline, name, dataclasses.replace(getattr(pipeline, name), images=16))
    monkeypatch.setattr(motion, "SPLITS", {name: (16, seed) for name, (_, seed) in motion.SPLITS.items()})
    monkeypatch.setattr(motion, "RECIPE", dataclasses.replace(motion.RECIPE, batch_size=8))
    steps = ["--base-steps", "4", "--tune-steps", "4", "--distill-steps", "4"]
    few = ["--seeds", "1", "--images", "2", "--rows", page.REFERENCE, "mean_angle", "--counted", "extent"]
    more = ["--tune", "extent, sizes counted", "--distill", page.REFERENCE, "--tune-shares", "0.5", "0.1"]
    other = ["--methods", "tome"] if task == "layout" else []
    study_positions.main(["--task", task, "--output", str(tmp_path), "--shares", "0.5", *steps, *few, *more, *other])
    folder = tmp_path if task == "layout" else tmp_path / "motion"
    study = json.loads((folder / "results.json").read_text())
    asked = [(one["how"], one["row"], one["share"]) for one in study["results"]]
    rules = [("free", row, 0.25) for row in (page.REFERENCE, *rule_names())]
    trained = [("sft", "extent, sizes counted"), ("distill", page.REFERENCE)]
    assert asked == [
        ("free", "dense", 1.0),
        *(("free", row, 0.5) for row in (page.REFERENCE, "mean_angle")),
        *(rules if other else ()),
        *((*pair, share) for pair in trained for share in (0.5, 0.1)),
    ]
    assert set(study["types"]) == set(page.kinds_of(study))
    told = (folder / "positions.md").read_text()
    assert "### After fine-tuning, 10% of the tokens (1 seed)" in told
    assert study["date"] in told


def test_representatives_alone_keep_their_features():
    tokens = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0))
    found = study_positions.RepresentativesAlone(ratio=0.3).group(View.of(tokens=tokens, num_kept=[4, 2]))
    assert found.counts.max() > 1
    for cell, kept in enumerate((4, 2)):
        own = tokens[cell, found.representatives[cell, :kept]]
        assert torch.equal(found.apply(tokens)[cell, :kept], own)
