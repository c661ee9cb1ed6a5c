"""How much of the code a pass enters is counted for both kinds of prompts."""

from count_forward import KNOWN, NEW, entered


def test_a_prompt_of_a_new_layout_enters_its_planning_too():
    passes = entered()
    known, new = ({name for names in passes[kind].values() for name in names} for kind in (KNOWN, NEW))
    assert known < new
    assert {"find_spans", "lay_out", "PromptPlan.of"} <= new - known
