"""Images and videos of batches that generate() changes: repeated for beams, and cut where a conversation goes on."""

import torch

from ppe_npu.engine.spans import IMAGE, VIDEO, VisionTokens, find_spans
from ppe_npu.models.arguments import PIXELS

_VISUAL = ("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")


def repeat_visual_inputs(inputs: dict, input_ids: torch.Tensor, times: int, vision: VisionTokens) -> dict:
    """The visual inputs of a batch in which every sample stands `times` times in a row.

    Patches and grids have no batch dimension: a sample's are all that its spans use, and are repeated together.

    Args:
        inputs: model inputs; read are pixel_values[_videos] [patches, C], *_grid_thw [n, 3], second_per_grid_ts [n].
        input_ids: [B, S], not repeated yet.
    """
    given = {name: inputs[name] for name in _VISUAL if inputs.get(name) is not None}
    grids = {kind: given[f"{kind}_grid_thw"].tolist() if f"{kind}_grid_thw" in given else [] for kind in (IMAGE, VIDEO)}
    mask = inputs.get("attention_mask")
    layout = find_spans(
        input_ids.cpu().numpy(), None if mask is None else mask.cpu().numpy(), grids[IMAGE], grids[VIDEO], None, vision
    )
    out: dict[str, torch.Tensor] = {}
    for kind in (IMAGE, VIDEO):
        owners = {span.source: span.sample for span in layout.spans if span.modality == kind}
        order = [
            source
            for sample in range(input_ids.shape[0])
            for _ in range(times)
            for source, owner in owners.items()
            if owner == sample
        ]
        if order:
            out |= _picked(given, kind, order)
    return out


def new_visual_inputs(inputs: dict, input_ids: torch.Tensor, seen: int, vision: VisionTokens) -> dict:
    """The visual inputs of a conversation's new part, where those of all of it are given.

    Args:
        inputs: model inputs, as repeat_visual_inputs takes them.
        input_ids: [B, S] of the whole conversation. seen: columns that the cache stands for.

    Returns:
        what replaces the visual inputs, None where nothing is new; {} where just the new ones are given.
    """
    given = {name: inputs[name] for name in _VISUAL if inputs.get(name) is not None}
    out: dict[str, torch.Tensor | None] = {}
    for kind, token in ((IMAGE, vision.image_token_id), (VIDEO, vision.video_token_id)):
        if f"{kind}_grid_thw" not in given or PIXELS[kind] not in given:
            continue
        grids, ids = given[f"{kind}_grid_thw"].tolist(), input_ids.cpu().numpy()
        tokens = [t * h * w // vision.merge_size**2 for t, h, w in grids]
        if sum(tokens) == int((ids[:, seen:] == token).sum()):
            continue
        # Those of the whole conversation, sample by sample: what of a sample's tokens was seen is not new.
        order, at = [], 0
        for sample in ids == token:
            before, total = int(sample[:seen].sum()), int(sample.sum())
            place = 0
            while place < total and at < len(tokens):
                if place >= before:
                    order.append(at)
                place += tokens[at]
                at += 1
        out |= _picked(given, kind, order) if order else dict.fromkeys((PIXELS[kind], f"{kind}_grid_thw"))
    return out


def _picked(given: dict, kind: str, order: list[int]) -> dict:
    """The pixels, grids and durations of the images or videos with these indices, in this order."""
    grid = given[f"{kind}_grid_thw"]
    parts = given[PIXELS[kind]].split([t * h * w for t, h, w in grid.tolist()])
    out = {PIXELS[kind]: torch.cat([parts[index] for index in order]), f"{kind}_grid_thw": grid[order]}
    if kind == VIDEO and "second_per_grid_ts" in given:
        out["second_per_grid_ts"] = torch.as_tensor(given["second_per_grid_ts"])[order]
    return out
