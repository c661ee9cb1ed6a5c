"""What View.of takes: each part in its own form, and all of them together; all else ends in one line."""

import numpy as np
import pytest
import torch

from ppe_npu.errors import InputError
from ppe_npu.methods import get
from ppe_npu.methods.base import published
from ppe_npu.methods.view import View

CELLS, COUNT, TEXTS = 2, 6, 4
WHOLE = ("places", "sizes", "tower_groups")
MASKS = ("valid", "text_valid", "text_after")
HEADS = ("queries", "keys", "plain_queries", "plain_keys")
OF_TOKENS = {
    "tokens": torch.rand(CELLS, COUNT, 8),
    "places": torch.cartesian_prod(*map(torch.arange, (CELLS, 2, 3))).view(CELLS, COUNT, 3),
    "valid": torch.ones(CELLS, COUNT, dtype=torch.bool),
    "sizes": torch.ones(CELLS, COUNT, dtype=torch.long),
    "tower_saliency": torch.rand(CELLS, COUNT),
    "tower_groups": torch.zeros(CELLS, COUNT, dtype=torch.long),
    "layer_row": torch.rand(CELLS, COUNT),
    "tower_keys": torch.rand(CELLS, COUNT, 5),
    **{f"layer_{name}": torch.rand(CELLS, COUNT, 2, 4) for name in HEADS},
}
OF_TEXT = {
    "text": torch.rand(CELLS, TEXTS, 8),
    "text_valid": torch.ones(CELLS, TEXTS, dtype=torch.bool),
    "text_after": torch.ones(CELLS, TEXTS, dtype=torch.bool),
    **{f"text_{name}": torch.rand(CELLS, TEXTS, 2, 4) for name in HEADS},
}
PARTS = OF_TOKENS | OF_TEXT


def refusal(**given) -> str:
    """The one line that View.of ends in."""
    with pytest.raises(InputError) as refused:
        View.of(**given)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_every_part_is_checked():
    """The fields of a View that are none of these are the counts that the host knows."""
    counts = {"num_kept", "most", "least", "frames", "frame_tokens"}
    assert set(View.__dataclass_fields__) - counts == set(PARTS)
    view = View.of(**PARTS, num_kept=3)
    assert all(torch.equal(getattr(view, name), part) for name, part in PARTS.items())


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_another_form_is_refused_by_its_name(name):
    part, others = PARTS[name], {key: part for key, part in PARTS.items() if key != name}
    for wrong in (part.tolist(), part.numpy(), "text", 3):
        assert f"View.of {name} is of type {type(wrong).__name__}: give a torch.Tensor [F, " in refusal(
            **{**others, name: wrong}
        )
    for wrong in (part[0], part[None, None]):
        assert f"View.of {name} is {list(wrong.shape)}: give [F, " in refusal(**{**others, name: wrong})
    kinds = (torch.float32, torch.complex64) if name in WHOLE + MASKS else (torch.bool, torch.int64, torch.complex64)
    for kind in (*kinds, torch.bool) if name in WHOLE else kinds:
        wrong = part + 0.5 if kind == torch.float32 else part.to(kind)
        assert f"View.of {name} is {kind}: give " in refusal(**{**others, name: wrong})
    elsewhere = refusal(**{**others, name: part.to("meta")})
    assert name in elsewhere
    assert elsewhere.endswith(": give all on one device")


@pytest.mark.parametrize("name", WHOLE + MASKS)
def test_whole_numbers_and_masks_may_come_as_floating_point(name):
    assert torch.equal(getattr(View.of(**PARTS | {name: PARTS[name].double()}), name), PARTS[name])


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_other_cells_or_tokens_is_refused_by_its_name(name):
    part, others = PARTS[name], {key: part for key, part in PARTS.items() if key != name}
    axes = {"cells": part[:1], "tokens" if name in OF_TOKENS else "text tokens": part[:, :-1]}
    for what, wrong in axes.items():
        said = refusal(**{**others, name: wrong})
        assert f" {name} is {list(wrong.shape)}" in said
        assert said.endswith(f": give both the same number of {what}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"token": PARTS["tokens"]}, "View.of has no part token: its parts are num_kept, tokens, places, "),
        ({"places": torch.zeros(2, 6, 2).long()}, "View.of places is [2, 6, 2]: give [F, N, 3]"),
        (
            {"tower_saliency": torch.rand(2, 1, 3, 6)},
            "View.of tower_saliency is [2, 1, 3, 6]: give [F, N] (or [F, B, N] of B blocks) of F cells",
        ),
        ({"tower_saliency": torch.rand(2, 6, 3)}, "tower_saliency is [2, 6, 3], tokens is [2, 6, 8]: give both the"),
        (
            {"text": torch.rand(2, 4, 7)},
            "text is [2, 4, 7], tokens is [2, 6, 8]: give both the same number of channels",
        ),
        ({"text_keys": torch.rand(2, 4, 2, 3)}, "give both the same number of channels in a head"),
        ({"tokens": torch.rand(0, 6, 8)}, "View.of tokens is [0, 6, 8]: give at least one cell and one token"),
        ({"tokens": torch.rand(2, 0, 8)}, "View.of tokens is [2, 0, 8]: give at least one cell and one token"),
        ({"num_kept": "4"}, "num_kept='4': give a whole number, or one for each of 2 cells"),
        ({"num_kept": ["a", "b"]}, "num_kept=['a', 'b']: give a whole number"),
        ({"num_kept": [[1], [2, 3]]}, "num_kept=[[1], [2, 3]]: give a whole number"),
        ({"num_kept": 1j}, "num_kept=1j: give a whole number"),
        ({"num_kept": 2**70}, "num_kept=1180591620717411303424: give a whole number"),
        ({"num_kept": {}}, "num_kept={}: give a whole number"),
    ],
)
def test_the_line_says_what_to_give(given, message):
    assert message in refusal(**PARTS | given)


@pytest.mark.parametrize("given", [{}, {"text": PARTS["text"], "num_kept": 2}])
def test_a_view_needs_a_part_of_the_tokens(given):
    assert refusal(**given).endswith(": give a part with an entry for each token, such as tokens")


@pytest.mark.parametrize("name", OF_TOKENS)
def test_one_part_of_the_tokens_is_enough(name):
    assert View.of(**{name: OF_TOKENS[name]}, num_kept=2).present.shape == (CELLS, COUNT)


def test_the_text_may_be_as_wide_as_the_towers_keys():
    assert View.of(**PARTS | {"text": torch.rand(CELLS, TEXTS, 5)}).text.shape[-1] == 5
    assert "number of channels" in refusal(tokens=PARTS["tokens"], text=torch.rand(CELLS, TEXTS, 5))


def test_masks_and_whole_numbers_may_be_integers_of_any_dtype():
    for name in WHOLE + MASKS:
        found = getattr(View.of(**PARTS | {name: PARTS[name].to(torch.int32)}), name)
        assert found.dtype == PARTS[name].dtype
        assert torch.equal(found, PARTS[name])


@pytest.mark.parametrize("num_kept", [3, np.int32(3), [3, 3], (3, 3), np.array([3, 3]), torch.tensor([3, 3])])
def test_num_kept_may_be_any_whole_numbers(num_kept):
    assert View.of(**PARTS, num_kept=num_kept).num_kept.tolist() == [3, 3]


@pytest.mark.parametrize("name", [name for name in published() if "tower_saliency" in get(name).needs])
def test_every_method_takes_the_attention_in_one_block(name):
    method, rows = get(name), PARTS["tower_saliency"]
    found = method.group(View.of(**PARTS | {"tower_saliency": rows}))
    same = method.group(View.of(**PARTS | {"tower_saliency": rows[:, None]}))
    assert torch.equal(found.labels, same.labels)
    if name != "vtc_cls":
        with pytest.raises(InputError, match=rf"^{name}: tower_saliency is \[2, 5, 6\]: give \[F, N\]"):
            method.group(View.of(**PARTS | {"tower_saliency": rows[:, None].repeat(1, 5, 1)}))
