"""The answers of this package and of other engines to a case, computed by the engines' own code without weights.

A function returns None if its engine cannot handle the case.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ppe_npu.engine.spans import IMAGE, VIDEO
from ppe_npu.serving.conformance import (
    END,
    FAMILIES,
    IMAGE_ID,
    MERGE,
    START,
    VIDEO_ID,
    Answer,
    ConformanceCase,
    Item,
    ours,
)

_NAMES = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}


@functools.cache
def _config(family: str) -> Any:
    """The config of a tiny model of the family."""
    import transformers

    vision: dict[str, Any] = {"depth": 1, "num_heads": 1, "spatial_merge_size": MERGE}
    vision |= {"embed_dim": 16, "hidden_size": 16} if family == "qwen2_vl" else {"hidden_size": 16}
    if family == "qwen2_5_vl":
        vision["tokens_per_second"] = FAMILIES[family].tokens_per_second
    if family == "qwen3_vl":
        vision["deepstack_visual_indexes"] = []
    text = {
        "vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    }  # fmt: skip
    made = getattr(transformers, f"{_NAMES[family]}Config")
    return made(
        vision_config=vision, text_config=text, image_token_id=IMAGE_ID, video_token_id=VIDEO_ID,
        vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip


def transformers(case: ConformanceCase) -> Answer | None:
    """get_rope_index of the installed transformers. It handles only whole prompts; the kept tokens are picked after."""
    model = _transformers_model(case.family)
    ids = torch.from_numpy(case.tokens(whole=True))[None]
    asked: dict[str, Any] = {"mm_token_type_ids": (ids == IMAGE_ID).int() + 2 * (ids == VIDEO_ID).int()}
    for kind in (IMAGE, VIDEO):
        grids = [item.grid for item in case.items if item.kind == kind]
        asked[f"{kind}_grid_thw"] = torch.tensor(grids) if grids else None
    if case.family == "qwen2_5_vl":
        seconds = [item.seconds for item in case.items if item.kind == VIDEO]
        asked["second_per_grid_ts"] = torch.tensor(seconds) if seconds else None
    positions, delta = model.get_rope_index(ids, attention_mask=torch.ones_like(ids), **asked)
    whole = positions[:, 0].numpy()
    return case.read(whole[:, case.stays], int(delta[0, 0]) + whole.shape[1])


@functools.cache
def _transformers_model(family: str) -> Any:
    import transformers as theirs

    with torch.device("meta"):
        return getattr(theirs, f"{_NAMES[family]}Model")(_config(family))


def vllm(case: ConformanceCase) -> Answer | None:
    """get_mrope_input_positions of the installed vLLM's own classes, which do not handle pruned prompts."""
    if case.pruned:
        return None
    stock = _vllm_class(case.family)
    stub = SimpleNamespace(config=_config(case.family))
    for name in ("iter_mm_grid_thw", "_get_mrope_input_positions"):
        method = getattr(stock, name, None)
        if method is not None:
            own = method if isinstance(vars(stock).get(name), staticmethod) else method.__get__(stub)
            vars(stub)[name] = own
    positions, delta = stock.get_mrope_input_positions(stub, case.tokens().tolist(), _features(case))
    return case.read(positions.numpy(), delta + positions.shape[1])


def vllm_evs(case: ConformanceCase) -> Answer | None:
    """vLLM's numbering of the tokens that stay under its own video pruning (Qwen2.5-VL only)."""
    if case.family != "qwen2_5_vl":
        return None
    from vllm.multimodal.video_prune import evs

    media = []
    for item in case.items:
        # Called as by vLLM's class, which passes seconds as integers, and no time for an image.
        more = {} if item.kind == IMAGE else {"tokens_per_second": 2, "video_second_per_grid": int(item.seconds)}
        own = evs.compute_mrope_for_media(torch.tensor(item.grid), MERGE, **more)
        media.append(own[item.stays].permute(1, 0).long())
    tokens = torch.from_numpy(case.tokens())
    guess = torch.arange(len(tokens)).expand(3, -1).clone()
    positions, delta = evs.recompute_mrope_positions(tokens, media, guess, 0, START, IMAGE_ID, VIDEO_ID)
    return case.read(positions.numpy(), int(delta) + positions.shape[1])


def vllm_plug_in(case: ConformanceCase) -> Answer | None:
    """The answer of this package's vLLM plug-in, from the prompt's line and the items' rows."""
    from ppe_npu.engine.items import ItemRun, item_extents
    from ppe_npu.engine.positions import grid_positions
    from ppe_npu.engine.spans import item_spans
    from ppe_npu.serving.rows import placed_rows, prompt_line

    vision, tokens = FAMILIES[case.family], case.tokens()
    visual, items, local, at = np.flatnonzero(np.isin(tokens, (IMAGE_ID, VIDEO_ID))), [], [], 0
    for item in case.items:
        spans, runs = item_spans(item.kind, item.grid, item.seconds, vision), []
        for span, extent in zip(spans, item_extents(item.kind, item.grid, vision, item.seconds)):
            own = [n - span.start for n in item.stays if span.start <= n < span.start + span.tokens]
            local.append(grid_positions(span, vision)[:, own])
            runs.append(ItemRun(len(own), extent))
        kept = sum(run.kept for run in runs)
        items.append((visual[at : at + kept], runs))
        at += kept
    line, following = prompt_line(len(tokens), items)
    rows = np.zeros((3, len(tokens)), np.int64)
    rows[:, visual] = np.concatenate([rows[:, :0], *local], axis=1)
    return case.read(placed_rows(torch.from_numpy(line), torch.from_numpy(rows)).numpy(), following)


ENGINES = {
    "ours": ours,
    "vllm_plug_in": vllm_plug_in,
    "transformers": transformers,
    "vllm": vllm,
    "vllm_evs": vllm_evs,
}


def _vllm_class(family: str) -> Any:
    from importlib import import_module

    module = import_module(f"vllm.model_executor.models.{family}")
    return getattr(module, f"{_NAMES[family]}ForConditionalGeneration")


def _features(case: ConformanceCase) -> list[Any]:
    """The items as vLLM's runner describes them."""
    tokens, out, at = case.tokens(), [], 0
    visual = np.flatnonzero(np.isin(tokens, (IMAGE_ID, VIDEO_ID)))
    for item in case.items:
        own = visual[at : at + len(item.stays)]
        at += len(own)
        before = 1 if _apart(case, item) else 0  # Qwen3-VL's placeholder includes START and END
        place = SimpleNamespace(offset=int(own[0]) - before, length=int(own[-1] - own[0]) + 1 + 2 * before)
        data = {f"{item.kind}_grid_thw": SimpleNamespace(data=torch.tensor(item.grid))}
        if item.kind == VIDEO and case.family == "qwen2_5_vl":
            data["second_per_grid_ts"] = SimpleNamespace(data=torch.tensor(item.seconds))
        out.append(SimpleNamespace(modality=item.kind, mm_position=place, data=data))
    return out


def _apart(case: ConformanceCase, item: Item) -> bool:
    return item.kind == VIDEO and FAMILIES[case.family].frames_apart
