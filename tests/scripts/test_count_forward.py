"""How much of the code a pass enters is counted for both kinds of prompts, and is no more than its steps need."""

from pathlib import Path

import pytest
from count_forward import KNOWN, NEW, entered


@pytest.fixture(scope="module")
def passes():
    return entered()


def test_a_prompt_of_a_new_layout_enters_its_planning_too(passes):
    known, new = ({name for names in passes[kind].values() for name in names} for kind in (KNOWN, NEW))
    assert known < new
    assert {"find_spans", "lay_out", "PromptPlan.of"} <= new - known


def test_a_pass_does_not_enter_what_its_steps_do_not_declare(passes):
    """One image and preset ppe: nothing at the pixels or inside the tower, no late counts, no later layers."""
    others = {"dropping", "inside", "late", "left_alone", "masks", "pixels", "shown", "tower", "tower_pass"}
    assert not others & {Path(file).stem for file in passes[NEW]}
