"""Inputs in which images are videos: one picture, shown several times."""

import torch

from ppe_npu.errors import InputError


def shown_repeatedly(model, inputs: dict, times: int) -> dict:
    """A processor's inputs with every image shown so many times, one showing behind the other, for a model with PVC.

    Args:
        inputs: input_ids [B, S], attention_mask and the pixels of images; of InternVL num_frames, where there are
            videos: for each image or video how many runs of image tokens it has.
        times: how often an image is shown (the paper's 4); videos stay as they are.

    Returns:
        the same with longer prompts, padded on the left, and more pixels. InternVL is told time_steps; the images of
        Qwen2.5-VL are videos from then on.
    """
    if times < 1:
        raise InputError(f"times={times}: show an image at least once")
    change = {"internvl": _internvl, "qwen2_5_vl": _qwen2_5_vl}[model.config.model_type]
    return change(model, dict(inputs), times)


def _internvl(model, inputs: dict, times: int) -> dict:
    from ppe_npu.models.one_dimension_families import FAMILIES, Asked

    ids, image = inputs["input_ids"], model.config.image_token_id
    asked = Asked(model.config, ids.cpu().numpy(), inputs)
    height, width = FAMILIES["internvl"].tile(model.config)
    counts = [int(count) for count in inputs.pop("num_frames", None) or [1] * len(asked.runs)]
    repeats, steps, tiles, at = torch.ones_like(ids), [], [], 0
    pixels, first = inputs["pixel_values"], 0
    for count in counts:
        runs = asked.runs[at : at + count]
        at, own = at + count, sum(length for _, _, length in runs) // (height * width)
        rows = list(range(first, first + own))
        first += own
        steps.append((count, 1) if count > 1 else (times, own))
        tiles += rows if count > 1 else rows * times
        for sample, start, length in runs if count == 1 else ():
            repeats[sample, start : start + length] = times
    if first != len(pixels):
        raise InputError(f"the prompts hold {first} tiles of token {image}, but pixel_values has {len(pixels)}")
    return _longer(inputs, repeats) | {"pixel_values": pixels[tiles], "time_steps": steps}


def _qwen2_5_vl(model, inputs: dict, times: int) -> dict:
    config, ids = model.config, inputs["input_ids"]
    if inputs.get("pixel_values") is None:
        return inputs
    if inputs.get("pixel_values_videos") is not None:
        raise InputError("images beside videos: show them repeatedly in a call of their own")
    grids = inputs.pop("image_grid_thw")
    parts = inputs.pop("pixel_values").split(grids.prod(-1).tolist())
    image = ids == config.image_token_id
    moved = {"input_ids": ids.masked_fill(image, config.video_token_id)}
    if inputs.get("mm_token_type_ids") is not None:
        moved["mm_token_type_ids"] = inputs["mm_token_type_ids"].masked_fill(image, 2)
    moved["pixel_values_videos"] = torch.cat([part.repeat(times, 1) for part in parts])
    moved["video_grid_thw"] = grids * torch.tensor([times, 1, 1], device=grids.device)
    return _longer(inputs | moved, torch.where(image, times, 1))


def _longer(inputs: dict, repeats: torch.Tensor) -> dict:
    """Token by token: a run of image tokens is repeated by its length, and so stands there as one longer run."""
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    real = [row.bool() for row in mask]
    counts = [int(own[row].sum()) for own, row in zip(repeats, real)]
    out = dict(inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "labels"):
        values = mask if name == "attention_mask" else inputs.get(name)
        if values is None:
            continue
        rows = [value[row].repeat_interleave(own[row]) for value, own, row in zip(values, repeats, real)]
        fill = {"labels": -100}.get(name, 0)
        gaps = [max(counts) - count for count in counts]
        out[name] = torch.stack([torch.nn.functional.pad(row, (gap, 0), value=fill) for row, gap in zip(rows, gaps)])
    return out
