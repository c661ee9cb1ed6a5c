"""Published tables as data: whole, sourced, and never mixed with ours."""

from __future__ import annotations

import pytest

from ppe_npu.errors import InputError
from ppe_npu.evaluation import published
from ppe_npu.evaluation.benchmarks.registry import OURS


@pytest.mark.parametrize("name", published.names())
def test_every_table_has_a_source_a_protocol_and_numbers_for_its_columns(name):
    found = published.load(name)
    assert found["source"]
    for table in found["tables"]:
        assert table["protocol"]
        assert set(table["benchmarks"]) <= set(OURS)
        assert {len(row["scores"]) for row in table["rows"]} == {len(table["benchmarks"])}
        assert all(value is None or value > 0 for row in table["rows"] for value in row["scores"])
        assert all(row["kept"] is None or 0 < row["kept"] <= 1 for row in table["rows"])


def test_the_papers_of_this_package_are_there():
    assert published.names() == ["ipcv", "pixelprune", "ppe", "pvc"]


def test_a_number_of_ppes_table_stands_where_the_paper_has_it():
    table = next(t for t in published.load("ppe")["tables"] if t["title"] == "Qwen2.5-VL-3B, training-free")
    row = next(row for row in table["rows"] if row["method"] == "PPE")
    assert dict(zip(table["benchmarks"], row["scores"]))["textvqa"] == 73.78
    assert row["kept"] == 0.45


def test_tables_are_set_beside_a_run_with_their_source():
    text = "\n\n".join(published.paragraphs(["ppe"]))
    assert text.startswith("## Published numbers, not ours")
    assert "Source: README of the released code" in text
    assert "73.78" in text
    assert published.paragraphs(None) == []
    assert len(published.paragraphs(["all"])) > len(published.paragraphs(["ppe"]))


def test_an_unknown_paper_is_refused():
    with pytest.raises(InputError, match="--published nobody is unknown: use ipcv, pixelprune, ppe, pvc"):
        published.paragraphs(["nobody"])
