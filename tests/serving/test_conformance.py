"""The position cases match a derivation that shares no code with the engine, and what serves them gets them right."""

import subprocess
import sys

import numpy as np
import pytest
import transformers
from packaging.version import Version

from ppe_npu.serving.conformance import FAMILIES, IMAGE_ID, VIDEO_ID, Answer, ConformanceCase, Item, load, to_plain
from ppe_npu.serving.conformance.__main__ import difference, main
from ppe_npu.serving.conformance.engines import ENGINES
from ppe_npu.serving.conformance.made import cases

RATE = {"qwen2_vl": None, "qwen2_5_vl": 2, "qwen3_vl": None}  # positions that a second takes


def trained(case: ConformanceCase) -> Answer:
    """Token by token, as models are trained to number a prompt: text counts up; each token of an item has the position
    before the item plus its own frame (or second), row and column; text goes on at the largest position plus 1."""
    ids, starts, position, behind = [], [], 0, False
    for part in case.parts:
        if isinstance(part, int):
            for _ in range(part):
                starts += [position] if behind else []
                ids, position, behind = [*ids, [position] * 3], position + 1, False
            continue
        frames, rows, columns = part.grid[0], part.grid[1] // 2, part.grid[2] // 2
        number, largest, apart = 0, position, case.family == "qwen3_vl" and part.kind == "video"
        for frame in range(frames):
            if apart and frame:
                position, starts = largest + 1, [*starts, largest + 1]
                for _ in range(part.stamps):
                    ids, position = [*ids, [position] * 3], position + 1
            time = 0 if apart else frame
            if RATE[case.family] and part.kind == "video":
                time = int(np.float32(frame) * np.float32(part.seconds) * np.float32(RATE[case.family]))
            for row in range(rows):
                for column in range(columns):
                    own = [position + time, position + row, position + column]
                    largest = max(largest, *own)
                    ids += [own] if part.kept is None or number in part.kept else []
                    number += 1
        position, behind = largest + 1, True
    return Answer([list(axis) for axis in zip(*ids)], starts, position - len(ids))


def test_every_case_is_as_the_models_were_trained():
    found = load()
    assert len(found) >= 50
    assert {case.family for case in found} == set(FAMILIES)
    assert sum(case.pruned for case in found) > 20
    for case in found:
        assert case.answer == trained(case), case.name


def test_the_file_holds_what_its_maker_makes():
    made, found = cases(), load()
    assert [to_plain(case, ENGINES["ours"](case)) for case in made] == [to_plain(case, case.answer) for case in found]


@pytest.mark.parametrize("engine", ["ours", "vllm_plug_in"])
def test_what_this_package_serves_with_gets_every_case_right(engine):
    assert not [case.name for case in load() if difference(case, ENGINES[engine](case))]


def test_an_image_by_hand():
    """vLLM's own pruning numbers this case by the image's width: 2 words, 8 x 4 tokens, 3 words."""
    case = next(case for case in load() if case.name == "qwen2_5_vl: tall image, all")
    assert case.parts == [2, Item("image", (1, 16, 8)), 3]
    assert case.tokens().tolist().count(IMAGE_ID) == 32
    assert [axis[2:34] for axis in case.answer.ids] == [
        [2] * 32, [2 + n // 4 for n in range(32)], [2 + n % 4 for n in range(32)],
    ]  # fmt: skip
    assert case.answer.text_start == [10]
    assert case.answer.delta == 13 - 37


@pytest.mark.parametrize("rule", ["width", "max(h, w)", "the largest that is kept", "what is kept, counted"])
def test_each_wrong_rule_is_found(rule):
    """Engines go on after an item by such rules; the cases tell each of them from the right one."""

    def wrong(case: ConformanceCase) -> bool:
        item = case.items[0]
        h, w = item.grid[1] // 2, item.grid[2] // 2
        before = case.parts[0]
        visual = [n for n, token in enumerate(case.tokens()) if token in (IMAGE_ID, VIDEO_ID)][: len(item.stays)]
        largest = max(axis[n] for axis in case.answer.ids for n in visual) - before + 1
        extent = {"width": w, "max(h, w)": max(h, w), "the largest that is kept": largest}.get(rule, len(item.stays))
        return before + extent != case.answer.text_start[0]

    together = [case for case in load() if case.items and case.family == "qwen2_5_vl"]
    assert sum(wrong(case) for case in together) >= 3


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.3"), reason="before 5.3 numbers are others")
def test_transformers_is_asked_by_its_own_code():
    """All releases number images alike; videos depend on the release (docs/positions.md)."""
    images = [case for case in load() if {item.kind for item in case.items} == {"image"}]
    assert len(images) > 20
    assert not [case.name for case in images if difference(case, ENGINES["transformers"](case))]


def test_the_command_says_which_cases_are_wrong(capsys):
    assert main(["ours"]) == 0
    assert capsys.readouterr().out == f"ours: {len(load())} of {len(load())} right; 0 cannot be asked\n"
    assert main(["nobody"]) == 2


def test_a_wrong_answer_is_put_into_words():
    case = next(case for case in load() if case.name == "qwen2_vl: square image, all")
    ids = [list(axis) for axis in case.answer.ids]
    assert "text goes on at [5], not [6]" in difference(case, Answer(ids, [5], case.answer.delta))
    assert "delta" in difference(case, Answer(ids, case.answer.text_start, 0))
    ids[1][3] += 1
    assert "1 tokens stand elsewhere" in difference(case, Answer(ids, case.answer.text_start, case.answer.delta))


def test_vllm_answers_are_those_that_the_page_states():
    """With vLLM installed: its numbering of whole prompts is right, that of its own pruning is not."""
    pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")
    command = [sys.executable, "-m", "ppe_npu.serving.conformance", "vllm", "vllm_evs"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False).stdout
    assert "vllm: 31 of 31 right" in said
    assert "vllm_evs: 5 of 28 right" in said
    assert "qwen2_5_vl: tall image, all: text goes on at [6], not [10]" in said
