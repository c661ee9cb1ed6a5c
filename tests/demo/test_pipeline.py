"""`make demo` from data to report, on recipes of a few steps; and what it says of numbers."""

import dataclasses
import json

import pytest

from ppe_npu.demo import findings, pipeline, running


@pytest.mark.ci
def test_a_run_leaves_a_report_and_is_not_repeated(small, tmp_path, capsys, monkeypatch):
    code = pipeline.main(small)
    report = (tmp_path / "demo" / "report.md").read_text()
    assert (tmp_path / "demo" / "report.png").read_bytes().startswith(b"\x89PNG")
    for word in (
        "dense",
        "Chat-UniVi",
        "keep-one",
        "PPE",
        "barlen",
        "KV bytes",
        "make demo DEVICE=cpu",
        "What this shows",
        "of dense's score",
        "smaller input",
    ):
        assert word in report
    costs = json.loads((tmp_path / "demo" / "seed0" / "dense" / "costs.json").read_text())
    assert list(costs["rows"]) == ["dense", "Chat-UniVi", "keep-one", "PPE", "smaller input"]
    work = {name: row["counted"] for name, row in costs["rows"].items()}
    assert work["smaller input"]["kv_bytes"] < work["dense"]["kv_bytes"]
    assert work["smaller input"]["tower_flops"] < work["PPE"]["tower_flops"] == work["dense"]["tower_flops"]
    # Two steps teach nothing: the report must say that nothing can be compared, and the exit code, too.
    assert code == 1
    assert "Not a fair comparison" in report
    monkeypatch.setattr("ppe_npu.training.trainer.train", None)  # would fail if called again
    (tmp_path / "link").symlink_to("demo")
    monkeypatch.chdir(tmp_path)
    small.output = "demo/../link"  # the same folder
    assert pipeline.main(small) == 1
    assert (tmp_path / "demo" / "report.md").read_text().split("Made by")[0] == report.split("Made by")[0]


@pytest.mark.slow
def test_another_recipe_is_trained_again(small, tmp_path, monkeypatch):
    """A folder of an older version must not lend its models to the new one's report."""
    from ppe_npu.training import trainer

    pipeline.main(small)
    trained = []
    train = trainer.train
    monkeypatch.setattr(
        trainer, "train", lambda config, **kwargs: trained.append(config.output) or train(config, **kwargs)
    )
    monkeypatch.setattr(pipeline, "TUNE", dataclasses.replace(pipeline.TUNE, learning_rate=1e-4))
    pipeline.main(small)
    assert len(trained) == 4  # every method, but not the base
    monkeypatch.setattr(pipeline, "BASE", dataclasses.replace(pipeline.BASE, learning_rate=1e-4))
    pipeline.main(small)
    assert len(trained) == 4 + 1 + 4  # the base, and every method on the new one


@pytest.mark.parametrize("text", ["", "[1", "null", "9" * 5000])
def test_a_damaged_note_of_what_was_drawn_is_none(tmp_path, text):
    drawn = []
    for content in (text, None):
        if content is not None:
            (tmp_path / "base.recipe.json").write_text(content)
        running.draw_once(tmp_path, "base", [1, 2.0, (3,)], "scenes", lambda *asked: drawn.append(asked))
    assert drawn == [(tmp_path, "base", 1, 2.0, (3,))]


def test_seeds_must_be_positive(small):
    small.seeds = 0
    with pytest.raises(ValueError, match="seeds=0"):
        pipeline.main(small)


def test_full_compares_listings_where_a_merged_token_has_most_members():
    names = [method.name for method in pipeline.methods((0.45, 0.25), listings=True)]
    assert names[:7] == ["dense", *(f"{n} {r}%" for r in (45, 25) for n in ("Chat-UniVi", "keep-one", "PPE"))]
    assert names[7:] == ["PPE last 25%", "PPE spread 25%", "PPE nearest_first 25%"]


def results(**accuracies):
    """{method: (row and col, barlen and count)} of two seeds that are alike."""
    out = []
    for name, (layout, extent) in accuracies.items():
        values = {"shape": 1.0, "row": layout, "col": layout, "barlen": extent, "count": extent}
        types = {kind: {"accuracy": value} for kind, value in values.items()}
        out += [{"name": name.replace("_", "-"), "seed": seed, "types": types} for seed in (0, 1)]
    return out


def test_findings_say_what_the_numbers_say():
    found = findings.paragraphs(
        results(dense=(1, 1), **{"Chat-UniVi": (0.17, 0.7)}, keep_one=(1, 0.7), PPE=(1, 0.95)), 0.95
    )
    text = "\n".join(found)
    assert "PPE is ahead of Chat-UniVi by at least 0.83 on every seed" in text
    assert "barlen +0.25 (ahead)" in text
    assert "row +0.00 (as good)" in text
    assert "A difference of at most 0.02 counts as none." in text
    assert "Not a fair comparison" not in text


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [
        (0.05, 0.1, "ahead"),
        (-0.1, -0.05, "behind"),
        (-0.01, 0.01, "as good"),
        (0.0, 0.1, "ahead on some seeds, as good on the others"),
        (-0.1, 0.0, "behind on some seeds, as good on the others"),
        (-0.1, 0.1, "ahead on some seeds, behind on others"),
    ],
)
def test_verdicts_over_seeds(least, most, expected):
    assert findings._verdict(least, most) == expected


def test_findings_do_not_flatter():
    text = "\n".join(
        findings.paragraphs(
            results(dense=(0.9, 1), **{"Chat-UniVi": (0.9, 0.9)}, keep_one=(0.9, 0.9), PPE=(0.8, 0.5)), 0.95
        )
    )
    assert "PPE is not ahead of Chat-UniVi on every seed" in text
    assert "barlen -0.40 (behind)" in text
    assert "row -0.10 (behind)" in text
    assert "Not a fair comparison**: the dense model of seed 0, 1 stays below 0.95" in text


def test_listings_are_compared_at_one_ratio():
    both = {name + tail: (1, 0.9) for tail in (" 45%", " 25%") for name in ("Chat-UniVi", "keep_one", "PPE")}
    found = findings.paragraphs(results(dense=(1, 1), **both, **{"PPE last 25%": (1, 0.8)}), 0.95)
    (text,) = [paragraph for paragraph in found if "How the members are listed" in paragraph]
    assert "Bar length: PPE 25% 0.90, PPE last 25% 0.80" in text
    assert "45%" not in text
