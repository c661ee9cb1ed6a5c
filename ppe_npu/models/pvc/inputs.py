"""Inputs in which an image becomes a video: the same picture, shown several times."""

import torch

from ppe_npu.backends.common import IGNORED
from ppe_npu.errors import InputError

# Inputs with a value for every token, and the value for padding; blocks and shifts are this package's, for training.
_EACH_TOKEN = {
    "input_ids": 0,
    "attention_mask": 0,
    "mm_token_type_ids": 0,
    "labels": IGNORED,
    "blocks": -1,
    "shifts": 0,
}


def shown_repeatedly(model, inputs: dict, times: int | None = None, side: str = "left") -> dict:
    """A processor's inputs with every image shown several times in succession, for a model with PVC.

    Args:
        model: a model with PVC, or its config.
        inputs: input_ids [B, S], attention_mask and the pixels of images and videos; for InternVL with videos also
            num_frames: how many runs of image tokens each image or video has.
        times: how often an image is shown; None: the model's pvc.showings. Videos stay as they are.
        side: where shorter prompts are padded: "left" or "right".

    Returns:
        The inputs with longer prompts and more pixels. For InternVL they have time_steps; for Qwen2.5-VL the images are
        videos now, with one second between showings.
    """
    config = getattr(model, "config", model)
    times = config.pvc["showings"] if times is None else times
    if times < 1:
        raise InputError(f"times={times}: show an image at least once")
    change = {"internvl": _internvl, "qwen2_5_vl": _qwen2_5_vl}[config.model_type]
    return change(config, dict(inputs), times, side)


def _internvl(config, inputs: dict, times: int, side: str) -> dict:
    from ppe_npu.models.one_dimension_families import FAMILIES, ForwardInputs

    if inputs.get("pixel_values") is None:
        return inputs
    ids, image = inputs["input_ids"], config.image_token_id
    asked = ForwardInputs(config, ids.cpu().numpy(), inputs)
    height, width = FAMILIES["internvl"].tile(config)
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
        raise InputError(
            f"the prompts hold {first} tiles of token {image}, but pixel_values has {len(pixels)}: give all that the "
            "processor returned"
        )
    return _longer(inputs, repeats, side) | {"pixel_values": pixels[tiles], "time_steps": steps}


def _qwen2_5_vl(config, inputs: dict, times: int, side: str) -> dict:
    if inputs.get("pixel_values") is None:
        return inputs
    ids, given = inputs["input_ids"], _given(inputs)
    image = ids == config.image_token_id
    moved = {"input_ids": ids.masked_fill(image, config.video_token_id)}
    if inputs.get("mm_token_type_ids") is not None:
        moved["mm_token_type_ids"] = inputs["mm_token_type_ids"].masked_fill(image, 2)
    order = _in_order(config, ids, {kind: [grid for _, grid, _ in parts] for kind, parts in given.items()})
    following = {kind: iter(parts) for kind, parts in given.items()}
    shown = [(kind, *next(following[kind])) for kind in order]
    moved["pixel_values_videos"] = torch.cat([p.repeat(times if kind == "image" else 1, 1) for kind, p, _, _ in shown])
    grids = torch.stack([grid for _, _, grid, _ in shown])
    longer = torch.tensor([[times if kind == "image" else 1, 1, 1] for kind in order], device=grids.device)
    moved["video_grid_thw"] = grids * longer
    if inputs.get("second_per_grid_ts") is not None:
        moved["second_per_grid_ts"] = torch.stack([seconds for *_, seconds in shown])
    rest = {name: value for name, value in inputs.items() if name not in ("pixel_values", "image_grid_thw")}
    return _longer(rest | moved, torch.where(image, times, 1), side)


def _given(inputs: dict) -> dict[str, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """For images and for videos a list of (pixels, grid, seconds between frames), in the order given."""
    out: dict[str, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = {}
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        grids = inputs.get(f"{kind}_grid_thw")
        if grids is None:
            out[kind] = []
            continue
        seconds = inputs.get("second_per_grid_ts") if kind == "video" else None
        seconds = torch.ones(len(grids), device=grids.device) if seconds is None else torch.as_tensor(seconds)
        out[kind] = list(zip(inputs[name].split(grids.prod(-1).tolist()), grids, seconds))
    return out


def _in_order(config, ids: torch.Tensor, grids: dict[str, list[torch.Tensor]]) -> list[str]:
    """ "image" or "video" for each of them, in the order of the prompts."""
    kinds = {config.image_token_id: "image", config.video_token_id: "video"}
    following = {kind: iter(own) for kind, own in grids.items()}
    flat, out, at = ids.flatten().tolist(), [], 0
    while at < len(flat):
        kind = kinds.get(flat[at])
        if kind is None:
            at += 1
            continue
        grid = next(following[kind], None)
        if grid is None:
            raise InputError(
                f"the prompts hold more {kind}s than the {len(grids[kind])} whose pixels are given: give all that the "
                "processor returned"
            )
        out.append(kind)
        at += int(grid.prod()) // config.vision_config.spatial_merge_size**2
    return out


def _longer(inputs: dict, repeats: torch.Tensor, side: str) -> dict:
    """The inputs with each token repeated `repeats` [B, S] times, so that runs of image tokens become longer runs."""
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    real = [row.bool() for row in mask]
    counts = [int(own[row].sum()) for own, row in zip(repeats, real)]
    out = dict(inputs)
    for name, fill in _EACH_TOKEN.items():
        values = mask if name == "attention_mask" else inputs.get(name)
        if values is None:
            continue
        rows = [value[row].repeat_interleave(own[row]) for value, own, row in zip(values, repeats, real)]
        gaps = [(max(counts) - count, 0) if side == "left" else (0, max(counts) - count) for count in counts]
        out[name] = torch.stack([torch.nn.functional.pad(row, gap, value=fill) for row, gap in zip(rows, gaps)])
    return out
