"""FlashVLM against recorded runs of the published code, and the text that it reads."""

import pytest
import torch
from recorded import case_names, cases
from tolerances import assert_near, eps

from ppe_npu.methods import get
from ppe_npu.methods.view import View

RECORDED = cases("flashvlm")
QWEN = [name for name in case_names("flashvlm") if name.startswith("qwen")]
# A score goes through two sums over channels, a softmax at temperature 0.05 and one at 0.01. The last, raised to the
# power of 2.5, multiplies the relative error by 250.
ROUNDINGS = 250 * 8


def qwen(case, **fields):
    settings, given = RECORDED[case]
    parts = {name: given[name][None] for name in ("tokens", "text")}
    view = View.of(**parts, tower_saliency=given["saliency"][None], num_kept=settings["budget"])
    return get("flashvlm", alpha=settings["alpha"], eta=settings["eta"], **fields), view, given


def spread(scores):
    """[..., N] scores rescaled to 0..1, which the published code does once more; it changes no order."""
    least, most = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    return (scores - least) / (most - least + 1e-6)


@pytest.mark.parametrize("case", QWEN)
def test_scores_and_choice_are_the_published_ones(case):
    method, view, given = qwen(case)
    assert_near(method.likeness(view)[0], given["text_score"], ROUNDINGS, size=1.0)
    assert_near(spread(method.scores(view))[0], given["score"], ROUNDINGS, size=1.0)
    assert method.group(view).representatives[0].tolist() == given["kept"].tolist()


@pytest.mark.parametrize("case", ["llava_no_text", "llava_text"])
def test_the_choice_is_that_of_the_code_for_llava(case):
    settings, given = RECORDED[case]
    method, parts = get("flashvlm", eta=settings["eta"], gate=False), {"tokens": given["tokens"]}
    parts |= {"text": given["text"]} if case == "llava_text" else {}
    view = View.of(**parts, tower_saliency=given["attention"].mean(1), num_kept=settings["budget"])
    assert_near(method.likeness(view), given["text_score"], ROUNDINGS, size=1.0)
    assert torch.equal(method.group(view).representatives, given["kept"])


def test_the_gate_is_one_where_text_is_of_unit_length():
    settings, given = RECORDED["llava_text"]
    text = torch.nn.functional.normalize(given["text"], dim=-1)
    view = View.of(
        tokens=given["tokens"], text=text, tower_saliency=given["attention"].mean(1), num_kept=settings["budget"]
    )
    assert torch.equal(get("flashvlm").group(view).representatives, given["kept"])


def test_only_the_text_that_counts_is_read():
    """A method reads the text before the frame, after it, or both, as its settings say, and never padding."""
    method, view, _ = qwen("qwen0")
    tokens, text, saliency = view.tokens, view.text, view.tower_saliency
    other = torch.randn(text.shape, generator=torch.Generator().manual_seed(0))
    whole, after = torch.cat([text, other], dim=1), torch.arange(2 * text.shape[1])[None] >= text.shape[1]
    parts = {"tokens": tokens, "tower_saliency": saliency, "num_kept": 21}
    both = View.of(**parts, text=whole, text_after=after)
    padded = View.of(**parts, text=whole, text_valid=~after)
    alone = View.of(**parts, text=other)
    none = View.of(**parts, text=whole, text_valid=torch.zeros_like(after))
    before, every = method.likeness(view), method.likeness(View.of(**parts, text=whole))
    same = [(method.likeness(padded), before), (method.likeness(both), every)]
    same += [(get("flashvlm", **fields).likeness(both), before) for fields in ({"reads": "before"}, {"released": True})]
    same += [(get("flashvlm", reads="after").likeness(both), method.likeness(alone))]
    for found, expected in same:
        assert_near(found, expected, ROUNDINGS, size=1.0)
    assert (every - before).abs().max() > ROUNDINGS * eps(before)
    assert torch.equal(method.likeness(none), torch.zeros(1, 64))
    by_saliency = method.group(View.of(**parts)).representatives
    assert torch.equal(method.group(none).representatives, by_saliency)


def test_a_smaller_cell_beside_a_larger_one_is_as_it_is_alone():
    method, view, _ = qwen("qwen0")
    large = qwen("qwen0")[1]
    tokens, saliency = (torch.cat([part, part * torch.tensor(0.5)]) for part in (large.tokens, large.tower_saliency))
    valid = torch.arange(64) < torch.tensor([[64], [37]])
    together = View.of(
        tokens=tokens, text=view.text.expand(2, -1, -1), tower_saliency=saliency, valid=valid, num_kept=[21, 9]
    )
    alone = View.of(tokens=tokens[1:, :37], text=view.text, tower_saliency=saliency[1:, :37], num_kept=9)
    assert_near(method.scores(together)[1:, :37], method.scores(alone), ROUNDINGS, size=1.0)
    assert torch.equal(method.group(together).representatives[1:, :9], method.group(alone).representatives)
    assert torch.equal(method.group(together).representatives[:1], method.group(view).representatives)
