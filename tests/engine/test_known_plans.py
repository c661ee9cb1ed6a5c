"""Prompts that differ only in their words share one layout: it is computed once and serves every later pass."""

import sys
import threading

import torch
from tolerances import assert_equal

from ppe_npu import CompressionConfig
from ppe_npu.engine import compression as engine
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.positions import contiguous_channels
from ppe_npu.engine.spans import VisionTokens
from ppe_npu.utils.recent import Recent

VISION = VisionTokens(image_token_id=8, video_token_id=9, merge_size=2, tokens_per_second=2)


def prompt(text: int = 2, frames: int = 3, words: int = 1) -> tuple:
    """Arguments of `plan`: ids [1, S] of a video of 3 x 4 tokens per frame between words, and the video's grid."""
    ids = torch.cat([torch.full((1, text), words), torch.full((1, 12 * frames), 9), torch.full((1, 2), words)], 1)
    return ids, None, None, torch.tensor([[frames, 6, 8]]), None


def compression() -> Compression:
    return Compression(CompressionConfig.preset("ppe", k=4), VISION, contiguous_channels([16, 24, 24]), 4)


def merged(made: Compression, *given) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings that the decoder gets, and the visual features they were made from."""
    plan = made.plan(*given)
    features = torch.randn(len(plan.visual), 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    text = torch.zeros(len(plan.before(0).text), 8)
    return made.prefill(plan, text, features)[1], features


def test_what_stands_alike_is_laid_out_once(monkeypatch):
    made, laid = compression(), []
    lay_out = engine.lay_out
    monkeypatch.setattr(engine, "lay_out", lambda *given: laid.append(1) or lay_out(*given))
    for words in (1, 2, 1):
        made.plan(*prompt(words=words))
    assert len(laid) == 1
    for other in (prompt(text=3), prompt(frames=4)):
        made.plan(*other)
    made.plan(*prompt(), left=False)
    made.plan(*prompt()[:4], [0.5])  # other seconds, other positions
    assert len(laid) == 5
    made.plan(*prompt(), position_ids=torch.arange(40)[None])
    made.plan(*prompt(), start=torch.tensor([7]))
    assert len(laid) == 7


def test_spans_are_found_once(monkeypatch):
    made, found = compression(), []
    find_spans = engine.find_spans
    monkeypatch.setattr(engine, "find_spans", lambda *given: found.append(1) or find_spans(*given))
    for words in (1, 2, 1):
        made.plan(*prompt(words=words))
    assert len(found) == 1
    made.plan(*prompt(), start=torch.tensor([7]))
    assert len(found) == 2


def test_no_plan_is_taken_for_that_of_another_prompt():
    """The same plans are requested twice for prompts that each differ in one respect; each equals a fresh plan."""
    ids, _, _, grid, _ = prompt()
    padded = torch.ones_like(ids)
    padded[0, 0] = 0
    swapped = ids.where(ids != 9, 8)  # images' placeholders in the place of videos'
    prompts = {
        "as it is": ((ids, None, None, grid, None), {}),
        "padded": ((ids, padded, None, grid, None), {}),
        "other seconds": ((ids, None, None, grid, [0.5]), {}),
        "seconds in a tensor": ((ids, None, None, grid, torch.tensor([0.50004])), {}),
        "as text the same": ((ids, None, None, grid, torch.tensor([0.49996])), {}),
        "other grid": ((ids, None, None, grid[:, [0, 2, 1]], None), {}),
        "placeholders as text": ((ids, None, None, None, None), {}),
        "an image": ((swapped, None, torch.tensor([[1, 12, 12]]), None, None), {}),
        "generated behind it": ((torch.cat([ids, ids[:, 2:3]], 1), None, None, grid, None), {"prompt": ids.shape[1]}),
        "packed": ((ids, None, None, grid, None), {"packed": True}),
        "on the right": ((ids, padded, None, grid, None), {"left": False}),
    }
    made = compression()
    for _ in range(2):
        for name, (given, options) in prompts.items():
            own, new = made.plan(*given, **options), compression().plan(*given, **options)
            assert own.layout.spans == new.layout.spans, name
            assert (own.layout.real == new.layout.real).all(), name
            assert_equal(own.positions, new.positions)
            assert_equal(own.stages[0].rows, new.stages[0].rows)
            assert own.stages[0].borders == new.stages[0].borders, name


def test_a_known_plan_gives_what_a_new_one_gives():
    made = compression()
    expected, _ = merged(compression(), *prompt())
    for _ in range(3):
        assert_equal(merged(made, *prompt())[0], expected)
        merged(made, *prompt(frames=2))


def test_a_plan_of_inference_serves_training():
    made = compression()
    with torch.inference_mode():
        made.plan(*prompt())
    embeds, features = merged(made, *prompt())
    embeds.sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


def test_the_last_few_are_kept():
    recent, made = Recent(most=2), []
    for key in (1, 2, 1, 3, 1, 2):
        assert recent.made(key, lambda key=key: made.append(key) or -key) == -key
    assert made == [1, 2, 3, 2]


def test_threads_that_ask_at_once_are_all_answered():
    """There are more keys than the cache keeps, so one thread drops entries that another has just found."""
    kept, wrong = Recent(2), []

    def ask(seed: int) -> None:
        for number in range(4000):
            key = (number * seed) % 5
            try:
                if kept.made(key, lambda key=key: key) != key:
                    wrong.append(key)
            except Exception as error:
                wrong.append(error)

    switching = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in (1, 2, 3, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switching)
    assert not wrong
