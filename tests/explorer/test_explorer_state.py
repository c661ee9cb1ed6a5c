"""What is chosen on the explorer's page comes back from its link, its JSON and its lines of Python."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppe_npu.config import POSITIONS, CompressionConfig
from ppe_npu.errors import InputError
from ppe_npu.explorer.state import NONE, Settings, as_json, as_python, choices
from ppe_npu.methods import DPCKNN, PixelPrune

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip())


def test_a_link_of_what_is_there_by_default_is_empty():
    assert Settings().query() == ""
    assert Settings.of_query({}) == Settings()
    assert Settings.of_query({"__theme": "dark"}) == Settings()  # the server's own key


@settings(derandomize=True, max_examples=60)
@given(
    question=TEXTS, left=TEXTS, right=TEXTS, budget=st.floats(0, 1, exclude_min=True),
    positions=st.sampled_from(POSITIONS), k=st.integers(0, 512), place=st.integers(0, 10**6),
)  # fmt: skip
def test_a_link_gives_back_what_it_was_made_of(**values):
    said = Settings(**values)
    assert Settings.of_query(dict(parse_qsl(said.query(), keep_blank_values=True))) == said


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ({"budget": "much"}, "budget='much'"),
        ({"budget": "2"}, r"budget.*2.*\(0, 1\]"),
        ({"budget": "nan"}, "budget"),
        ({"k": "1.5"}, "k='1.5'"),
        ({"positions": "none"}, "choose one of ppe, keep_one, renumber"),
        ({"place": "-1"}, "place"),
        ({"question": " "}, "question is empty"),
        ({"budgte": "0.5"}, r"unknown keys .*budgte.*: use source, question"),
    ],
)
def test_a_link_that_cannot_be_is_one_line(link, words):
    with pytest.raises(InputError, match=words) as caught:
        Settings.of_query(link)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", choices())
def test_every_choice_is_a_compression_that_json_and_python_give_back(name, tmp_path):
    config = Settings(left=name).compression("left", layers=2)
    if name not in ("keep_one", "chatunivi", "dense"):  # presets of ours say their positions themselves
        assert (config.positions, config.k) == ("ppe", 4)
    assert all(layer < 2 for layer in config.entry_layers)
    path = tmp_path / "compression.json"
    path.write_text(as_json(config))
    assert CompressionConfig.from_file(path) == config
    lines = as_python(config)
    assert lines.count("\n") == 3
    space = {}
    exec(lines.rpartition("compress(model")[0], space)
    assert space["config"] == config


def test_the_lines_of_python_compress_a_model(tmp_path):
    from ppe_npu.demo.tiny import build_model

    config = Settings(left="pixelprune:threshold=0.02 + dpc_knn + fastv:ratio=0.5").compression("left", 2)
    space = {"model": build_model(0)}
    exec(as_python(config), space)
    assert space["model"].compression.config == config


def test_what_a_side_says_goes_before_what_the_page_says():
    page = Settings(left="pixelprune:threshold=0.02 + dpc_knn", right="dpc_knn:ratio=0.5,positions=ppe,k=2", k=3)
    found = page.compression("left", 2)
    assert found.methods == (PixelPrune(threshold=0.02), DPCKNN(ratio=0.25))
    assert (found.positions, found.k) == ("ppe", 3)
    found = page.compression("right", 2)
    assert (found.methods, found.k) == ((DPCKNN(ratio=0.5),), 2)
    assert Settings(left="ppe:k=2").compression("left", 2).k == 2
    assert Settings(k=0).compression("left", 2).k_named is False
    assert Settings().compression("right", 2) is None
    assert Settings(left="dpc_knn", positions="renumber").compression("left", 2).k == 1
    assert Settings(left="fastv", budget=0.5).compression("left", 28).methods[0].layer == 2  # as published


def test_it_is_said_which_side_the_budget_does_not_move():
    page = Settings(left="pixelprune", right="dpc_knn:ratio=0.5")
    assert not page.moved_by_budget("left")
    assert not page.moved_by_budget("right")
    assert Settings(left="pixelprune + dpc_knn").moved_by_budget("left")
    assert Settings().moved_by_budget("left")
    assert not Settings().moved_by_budget("right")
    assert Settings().right == NONE


@pytest.mark.parametrize("text", ["nothing", "dpc_knn:ratio=2", "dpc_knn:x=1", "", "dpc_knn +", "ppe + fastv"])
def test_a_side_that_cannot_be_is_one_line(text):
    with pytest.raises(InputError) as caught:
        Settings(left=text).compression("left", 2)
    assert "\n" not in str(caught.value)
