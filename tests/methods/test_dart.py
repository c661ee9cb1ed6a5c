"""DART against recorded runs of the published code and of its variant in AngelSlim."""

import pytest
import torch
from recorded import case_names, cases

from ppe_npu.methods import get
from ppe_npu.methods.choosing import cosines
from ppe_npu.methods.view import View

RECORDED = cases("dart")


def view_of(settings, given, num_kept=None):
    """One image in one prompt, with text before and after it."""
    start, count = settings["image_start"], settings["grid"][0] * settings["grid"][1]
    text = torch.tensor([place for place in range(len(given["hidden"])) if not start <= place < start + count])
    keys = given["keys"].transpose(0, 1)
    return View.of(
        tokens=given["hidden"][None, start : start + count],
        layer_keys=keys[None, start : start + count],
        text=given["hidden"][None, text],
        text_keys=keys[None, text],
        text_after=text[None] > start,
        num_kept=num_kept,
    )


def method_of(settings, **more):
    fields = {name: settings[name] for name in ("pivot_image", "pivot_text")}
    return get("dart", ratio=1 - settings["reduction_ratio"], **fields, **more)


@pytest.mark.parametrize("case", case_names("dart"))
@pytest.mark.parametrize("released", [True, False])
def test_the_choice_is_the_published_one(case, released):
    settings, given = RECORDED[case]
    expected = given["kept" if released else "angelslim_kept"]
    view = view_of(settings, given)
    kept = method_of(settings, released=released).group(view)
    assert kept.representatives[0].tolist() == expected.tolist()


@pytest.mark.parametrize("walk", ["norm", "place"])
def test_by_the_rule_in_words_on_cells_of_two_sizes(walk):
    generator = torch.Generator().manual_seed(0)
    tokens, text = (torch.randn(2, n, 6, generator=generator) for n in (23, 9))
    keys, text_keys = (torch.randn(2, n, 2, 4, generator=generator) for n in (23, 9))
    valid, text_valid = torch.arange(23) < torch.tensor([[23], [17]]), torch.arange(9) < torch.tensor([[2], [9]])
    given = {"tokens": tokens, "text": text, "layer_keys": keys, "text_keys": text_keys, "valid": valid}
    given |= {"text_valid": text_valid, "text_after": torch.zeros(2, 9, dtype=torch.bool)}
    for counts in ([9, 17], [3, 2]):
        found = get("dart", walk=walk).group(View.of(**given, num_kept=counts))
        for cell, (size, texts, count) in enumerate(zip((23, 17), (2, 9), counts)):
            norms, text_norms = keys[cell, :size].abs().sum((1, 2)), text_keys[cell, :texts].abs().sum((1, 2))
            pivots = norms.argsort(descending=True)[: min(4, count)].tolist()
            words = text_norms.argsort(descending=True)[:4].tolist()
            if walk == "place":
                pivots, words = sorted(pivots), sorted(words)
            chosen = list(pivots)
            share = -(-(count - len(pivots)) // (len(pivots) + len(words)))
            for pivot in [*tokens[cell, pivots], *text[cell, words]]:
                alike = cosines(tokens[cell : cell + 1, :size], pivot[None, None])[0, :, 0].tolist()
                rest = sorted((token for token in range(size) if token not in chosen), key=lambda token: alike[token])
                chosen += rest[: min(share, count - len(chosen))]
            assert found.representatives[cell, :count].tolist() == sorted(chosen)


def test_without_text_the_image_alone_has_pivots():
    tokens, keys = torch.randn(1, 12, 6), torch.randn(1, 12, 2, 4)
    alone = get("dart", pivot_text=0).group(View.of(tokens=tokens, layer_keys=keys, num_kept=7))
    none = {"text": tokens[:, :0], "text_keys": keys[:, :0], "text_after": torch.zeros(1, 0, dtype=torch.bool)}
    with_none = get("dart").group(View.of(tokens=tokens, layer_keys=keys, **none, num_kept=7))
    assert torch.equal(alone.labels, with_none.labels)
    assert alone.counts.sum() == 12


def test_the_published_order_is_that_of_a_set_also_where_the_image_alone_has_pivots():
    """The set holds places in the prompt; a set of so few numbers lists them by their remainders."""
    generator, count = torch.Generator().manual_seed(2), 3
    tokens, keys = (torch.randn(1, 30, *more, generator=generator) for more in ((6,), (2, 4)))
    text, text_keys = (torch.randn(1, 9, *more, generator=generator) for more in ((6,), (2, 4)))
    after = torch.arange(9)[None] >= 7  # so that the image begins at column 7
    view = View.of(tokens=tokens, layer_keys=keys, text=text, text_keys=text_keys, text_after=after)
    pivots = keys[0].abs().sum((1, 2)).argsort(descending=True)[:4].tolist()

    def chosen(walked):
        taken = list(pivots)
        for pivot in tokens[0, walked]:
            alike = cosines(tokens, pivot[None, None])[0, :, 0].tolist()
            rest = sorted((token for token in range(30) if token not in taken), key=lambda token: alike[token])
            taken += rest[:count]
        return sorted(taken)

    walks = {"norm": [column - 7 for column in {pivot + 7 for pivot in pivots}], "place": sorted(pivots)}
    assert len({tuple(chosen(walked)) for walked in (pivots, *walks.values())}) == 3
    for walk, walked in walks.items():
        found = get("dart", ratio=count * 4 / 30, pivot_text=0, released=True, walk=walk).group(view)
        assert found.representatives[0].tolist() == chosen(walked)


def published(hidden, start, count, pivots, walked, each):
    """Indices of the image's tokens that the published loop keeps. All arguments are places in the prompt."""
    taken = list(pivots)
    for pivot in walked:
        rest = [i for i in range(start, start + count) if i not in taken]
        alike = torch.nn.functional.cosine_similarity(hidden[pivot], hidden[rest], dim=-1)
        taken += [rest[int(i)] for i in (-alike).topk(each).indices]
    return sorted(i - start for i in taken)


@pytest.mark.parametrize(("images", "texts"), [(2, 3), (4, 3), (9, 8)])
def test_the_published_order_is_that_of_a_set_of_the_list_of_pivots(images, texts):
    """A set built in another way may have a hash table of another size, and so another order."""
    others, count, before, after, each = 0, 90, 5, 21, 3
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        tokens, text = (torch.randn(1, n, 6, generator=generator) for n in (count, before + after))
        keys, text_keys = (torch.randn(1, n, 2, 4, generator=generator) for n in (count, before + after))
        view = View.of(
            tokens=tokens, layer_keys=keys, text=text, text_keys=text_keys,
            text_after=torch.arange(before + after)[None] >= before,
        )  # fmt: skip
        hidden = torch.cat([text[0, :before], tokens[0], text[0, before:]])
        pivots = before + keys[0].abs().sum((1, 2)).argsort(descending=True)[:images]
        words = before + count + text_keys[0, before:].abs().sum((1, 2)).argsort(descending=True)[:texts]
        pivots, listed = pivots.tolist(), [*pivots.tolist(), *words.tolist()]
        ratio = (each * len(listed) + 0.5) / count
        method = get("dart", ratio=ratio, pivot_image=images, pivot_text=texts, released=True)
        expected = published(hidden, before, count, pivots, set(listed), each)
        assert method.group(view).representatives[0].tolist() == expected
        others += expected != published(hidden, before, count, pivots, set(dict.fromkeys(listed)), each)
    assert others
