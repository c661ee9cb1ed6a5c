"""Beams and several answers a prompt: generate() repeats every sample, and so must its images and videos."""

import torch

from ppe_npu.spans import IMAGE, VIDEO, VisionTokens, find_spans

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
    out = {}
    for kind, pixels in ((IMAGE, "pixel_values"), (VIDEO, "pixel_values_videos")):
        if not grids[kind]:
            continue
        samples = [span.sample for span in layout.spans if span.modality == kind]
        order = [
            index
            for sample in range(input_ids.shape[0])
            for _ in range(times)
            for index, owner in enumerate(samples)
            if owner == sample
        ]
        sizes = [t * h * w for t, h, w in grids[kind]]
        parts = given[pixels].split(sizes)
        out[pixels] = torch.cat([parts[index] for index in order])
        out[f"{kind}_grid_thw"] = given[f"{kind}_grid_thw"][order]
        if kind == VIDEO and "second_per_grid_ts" in given:
            out["second_per_grid_ts"] = torch.as_tensor(given["second_per_grid_ts"])[order]
    return out
