"""The study of rules of positions: its rows, what it compares, and what it says of made-up scores."""

import numpy as np
import pytest
import study_positions
import study_positions_page as page
import torch

from ppe_npu.methods.positions import rule_names
from ppe_npu.methods.view import View

PICTURES = 12


def made(rows: dict[str, float], seeds: int = 3, worse: str = "") -> dict:
    """A study in which a row is right with this probability; on questions of kind `worse` no row but the first is."""
    generator = np.random.default_rng(0)
    types = list(page.KINDS) * PICTURES
    pictures = [f"{number}.png" for number in range(PICTURES) for _ in page.KINDS]
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


def test_every_rule_is_a_row_beside_one_position():
    rows = study_positions.rows()
    assert rows[0].name == page.REFERENCE
    assert {row.name for row in rows} >= set(rule_names())
    assert len({row.slug for row in rows}) == len(rows)
    assert all(row.config(0.25).methods[0].ratio == 0.25 for row in rows)


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
    better = page.measured(made({page.REFERENCE: 0.3, "spread": 0.8, "last": 0.3}))
    assert "and worse on none: spread." in better
    assert "Over all questions the best is spread" in better
    mixed = page.measured(made({page.REFERENCE: 0.5, "spread": 0.9}, worse="shape"))
    assert "Worse: spread (shape)." in mixed
    assert "and worse on none: none." in mixed
    none = page.measured(made({page.REFERENCE: 0.5, "last": 0.5}))
    assert "by the interval: none. Worse: none." in none


def test_representatives_alone_keep_their_features():
    tokens = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0))
    found = study_positions.RepresentativesAlone(ratio=0.3).group(View.of(tokens=tokens, num_kept=[4, 2]))
    assert found.counts.max() > 1
    for cell, kept in enumerate((4, 2)):
        own = tokens[cell, found.representatives[cell, :kept]]
        assert torch.equal(found.apply(tokens)[cell, :kept], own)
