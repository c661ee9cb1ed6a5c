"""The arguments of a vision-language model's forward: the images and videos in them, and the tower's features."""

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.integrations import is_deepspeed_zero3_enabled

from ppe_npu.engine.cache import CacheState
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.plan import PromptPlan
from ppe_npu.engine.positions import prompt_positions
from ppe_npu.engine.spans import IMAGE, VIDEO, HiddenItems, Parts, VisionTokens
from ppe_npu.engine.tower import NEEDS as TOWER_NEEDS
from ppe_npu.engine.tower import TowerTokens
from ppe_npu.engine.tower_pass import pass_of_plan
from ppe_npu.errors import InputError
from ppe_npu.models.caches import keeps_no_cache
from ppe_npu.models.forward_pass import KEYWORD, NOTHING
from ppe_npu.models.numbering import is_numbered_without_time
from ppe_npu.models.pixels import chosen_cells, run_on_chosen
from ppe_npu.models.tower import watched

IDLE = "_ppe_idle_tower"  # attribute of a ...Model: what untouched_tower() calls, where a tower takes no grids
RUN = "_ppe_run_tower"  # attribute of a ...Model: called in the tower's place, where more than it makes the features
SECONDS = ("second_per_grid_ts", "video_second_per_grid")  # one per video; the second name is Qwen2.5-Omni's
PIXELS = {IMAGE: "pixel_values", VIDEO: "pixel_values_videos"}
VISUAL = (*PIXELS.values(), "image_grid_thw", "video_grid_thw", *SECONDS)
# Arguments that the compressed inputs replace, or that only the vision tower and transformers' own numbering read.
CONSUMED = (
    *("input_ids", "inputs_embeds", "attention_mask", "position_ids", "pixel_values", "pixel_values_videos"),
    *("image_grid_thw", "video_grid_thw", *SECONDS, "mm_token_type_ids", "rope_deltas", "cache_position"),
    *("mm_encoder_outputs", KEYWORD),
)


@dataclass(frozen=True)
class Features:
    """The vision tower's features of all images, then of all videos.

    Args:
        tokens: [V, C], or None without any.
        deepstack: for each of the first decoder layers [V, C], added to the visual tokens that leave it (Qwen3-VL).
        tower: keys and saliency from the tower's blocks, where a method looks at them.
    """

    tokens: torch.Tensor | None
    deepstack: tuple[torch.Tensor, ...] = ()
    tower: TowerTokens | None = None


def is_given(kind: str, kwargs: dict) -> bool:
    """Whether images (or videos) are given, as pixels, as the tower's output, or as embeddings with grids."""
    grid_alone = kwargs.get("inputs_embeds") is not None and kwargs.get(f"{kind}_grid_thw") is not None
    return kwargs.get(PIXELS[kind]) is not None or _encoded(kind, kwargs) is not None or grid_alone


@torch.compiler.disable  # it works on host arrays
def make_plan(
    model, compression: Compression, kwargs: dict, past: CacheState | None = None, labels: torch.Tensor | None = None
) -> PromptPlan:
    """The plan for a forward's arguments.

    Args:
        model: the ...Model inside the one for conditional generation.
        kwargs: those of its forward. Images and videos that attention_mask hides are removed from them, in place.
        labels: [B, S] training labels, or None.

    Raises:
        InputError: arguments that disagree, or that a compressed model cannot take.
    """
    ids, mask, given = kwargs.get("input_ids"), kwargs.get("attention_mask"), kwargs.get(KEYWORD, NOTHING)
    if ids is None and kwargs.get("inputs_embeds") is None:
        raise InputError("input_ids and inputs_embeds are both missing: give one")
    ids = ids_of_embeds(model, kwargs["inputs_embeds"], kwargs.get("mm_token_type_ids")) if ids is None else ids
    if kwargs.get("inputs_embeds") is not None and not compression.config.keeps_all:
        _check_seen(ids, kwargs, compression.vision)
    axes = 4 if RUN in vars(model) else 2  # dimensions of pixels; with 4 a patch is [channels, side, side]
    grids: dict = {kind: _grid(kind, kwargs, compression.config.keeps_all, axes) for kind in (IMAGE, VIDEO)}
    if compression.config.keeps_all or past is not None:
        grids |= dict.fromkeys(_grids_alone(kwargs, ids, compression.vision))
    if past is not None and mask is not None and mask.ndim == 2:
        mask = mask[:, -ids.shape[1] :]
    chosen = None
    if compression.config.at_pixels is not None:
        pixels = kwargs.get(PIXELS[IMAGE]) if _encoded(IMAGE, kwargs) is None else None
        chosen = chosen_cells(compression, compression.config.at_pixels, pixels, grids[IMAGE], grids[VIDEO])
    seconds, start = _seconds(kwargs) if grids[VIDEO] is not None else None, None if past is None else past.following[0]
    make = partial(compression.plan, ids, mask, grids[IMAGE], grids[VIDEO], seconds)
    others = start, given.left, given.packed, labels, given.prompt, chosen
    try:
        plan = make(kwargs.get("position_ids"), *others)
    except HiddenItems as hidden:
        if not _leave_out(kwargs, hidden.unseen):
            raise
        return make_plan(model, compression, kwargs, past, labels)
    if past is not None or not compression.config.keeps_all or not is_numbered_without_time(compression, kwargs):
        return plan
    positions, _ = prompt_positions(plan.layout, compression.vision, axes=compression.axes, behind_time=False)
    return make(torch.from_numpy(positions), *others)


def _seconds(kwargs: dict) -> list[float] | None:
    """The seconds per time step of each given video, with all their digits; None: they are not given."""
    given: Any = next((kwargs[name] for name in SECONDS if kwargs.get(name) is not None), [])
    return (given.tolist() if isinstance(given, torch.Tensor) else [float(second) for second in given]) or None


def _leave_out(kwargs: dict, unseen: dict[str, set[int]]) -> bool:
    """Remove images and videos that the mask hides from the arguments, in place. Returns False, and removes nothing,
    unless they are given as pixels with grids."""
    given = {name: kwargs[name] for name in VISUAL if kwargs.get(name) is not None}
    kinds = [kind for kind, sources in unseen.items() if sources]
    bare = any(PIXELS[kind] not in given or _encoded(kind, kwargs) is not None for kind in kinds)
    if bare or any(isinstance(given[f"{kind}_grid_thw"], Parts) for kind in kinds):
        return False
    for kind in kinds:
        seen = [source for source in range(len(given[f"{kind}_grid_thw"])) if source not in unseen[kind]]
        kwargs |= picked(given, kind, seen) if seen else dict.fromkeys((PIXELS[kind], f"{kind}_grid_thw"))
    return True


def _grids_alone(kwargs: dict, ids: torch.Tensor, vision: VisionTokens) -> list[str]:
    """The kinds whose grids are given beside embeddings in which no placeholder of theirs is found: the cache has seen
    the images or videos already, but the grids are still those of the whole conversation."""
    token = {IMAGE: vision.image_token_id, VIDEO: vision.video_token_id}
    pixels = {kind: kwargs.get(PIXELS[kind]) is not None or _encoded(kind, kwargs) is not None for kind in token}
    return [
        kind for kind in token if is_given(kind, kwargs) and not pixels[kind] and not bool((ids == token[kind]).any())
    ]


def _grid(kind: str, kwargs: dict, dense: bool, axes: int) -> Parts | list | None:
    """The grids of the given images (or videos), read by the host; None without any, so that their placeholders are
    text. Raises InputError unless the grids are well-formed and describe the given patches."""
    grid, pixels = kwargs.get(f"{kind}_grid_thw"), kwargs.get(PIXELS[kind])
    if not is_given(kind, kwargs):
        # A grid without its pixels is ambiguous: with [] its placeholders are refused for lack of a grid.
        return None if dense or grid is None else []
    if isinstance(grid, Parts):
        return grid
    if grid is None:
        raise InputError(f"{PIXELS[kind]} are given without {kind}_grid_thw: give both")
    fits = isinstance(grid, torch.Tensor) and grid.ndim == 2 and grid.shape[1] == 3 and not grid.is_floating_point()
    if not fits:
        shape = list(grid.shape) if isinstance(grid, torch.Tensor) else type(grid).__name__
        raise InputError(f"{kind}_grid_thw must be a tensor of whole numbers [n, 3], not {shape}")
    if pixels is not None and pixels.ndim != axes:
        patch = "values of a patch" if axes == 2 else "channels, side, side"
        raise InputError(f"{PIXELS[kind]} must be [patches, {patch}], not {list(pixels.shape)}")
    grids = grid.tolist()
    patches = sum(t * h * w for t, h, w in grids)
    if pixels is not None and len(pixels) != patches:
        raise InputError(
            f"{PIXELS[kind]} hold {len(pixels)} patches, but {kind}_grid_thw describes {patches}: give both as the "
            "processor returned them"
        )
    return grids


def take_ready_mask(kwargs: dict) -> None:
    """Replace a dict of ready masks, as transformers' generate() makes them, by the mask of full attention in it."""
    masks = kwargs.get("attention_mask")
    if isinstance(masks, dict):
        if set(masks) != {"full_attention"}:
            raise InputError(
                f"attention_mask is a dict of masks for {', '.join(sorted(masks))}: give a tensor, or a dict with "
                "full_attention alone"
            )
        kwargs["attention_mask"] = masks["full_attention"]
    elif not (masks is None or isinstance(masks, torch.Tensor)):
        raise InputError(f"attention_mask is a {type(masks).__name__}: give a tensor, 2D or 4D")


def attention_mask_of(model, kwargs: dict) -> torch.Tensor | None:
    """The attention mask of a forward's arguments, [B, S] or [B, 1, S, S]. Without a mask and a cache, text positions
    (the first of four rows) that restart separate the sequences that they number, as in transformers."""
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if mask is not None or positions is None or not keeps_no_cache(model, kwargs):
        return mask
    if positions.ndim != 3 or len(positions) != 4:
        return None
    run = (positions[0].diff(dim=-1, prepend=positions[0, :, :1] - 1) != 1).cumsum(-1)
    if not bool(run.any()):
        return None
    lower = torch.ones(run.shape[1], run.shape[1], dtype=torch.bool, device=run.device).tril()
    seen = ((run[:, :, None] == run[:, None, :]) & lower)[:, None]
    if model.language_model.config._attn_implementation != "eager":
        return seen
    dtype = model.get_input_embeddings().weight.dtype  # transformers' eager attention adds its mask
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def _check_seen(ids: torch.Tensor, kwargs: dict, vision: VisionTokens) -> None:
    """Raise InputError where inputs_embeds contain images or videos that no other argument describes: they would be
    treated as text, uncompressed."""
    positions = kwargs.get("position_ids")
    if any(is_given(kind, kwargs) for kind in (IMAGE, VIDEO)):
        return
    rows = positions is not None and positions.ndim == 3 and bool((positions[-3:] != positions[-1:]).any())
    if rows or bool(((ids == vision.image_token_id) | (ids == vision.video_token_id)).any()):
        raise InputError(
            "inputs_embeds hold images or videos, according to position_ids or input_ids, but have no grids: add "
            "input_ids (or mm_token_type_ids) and image_grid_thw or video_grid_thw, or give input_ids and pixels"
        )


def tower_features(model, plan: PromptPlan, kwargs: dict) -> Features:
    """Run the vision tower on the given images and videos, images first.

    The tower is called directly: get_image_features would split its output by image, for which the host has to wait.

    Raises:
        InputError: the number of features is not that of the prompts' visual tokens, or the features are given
            ready-made although a method looks at the tower's blocks.
    """
    compression, tower = model.compression, None
    embeds: Any = kwargs.get("inputs_embeds")
    outputs = [output for output in (_encoded(kind, kwargs) for kind in (IMAGE, VIDEO)) if output is not None]
    if compression.config.needs & TOWER_NEEDS:
        _check_ready(compression, kwargs)
    given = [kind for kind in (IMAGE, VIDEO) if kwargs.get(PIXELS[kind]) is not None and _encoded(kind, kwargs) is None]
    if given:
        # One call for images and videos: under ZeRO-3 every process must call the same modules, whatever its prompts.
        output, tower = _run_tower(model, plan, given, kwargs)
        outputs = [output, *outputs] if IMAGE in given else [*outputs, output]
    if not outputs and plan.layout.spans:
        return Features(embeds.flatten(0, 1).index_select(0, plan.on(embeds.device).visual))
    tokens = [joined(output.pooler_output) for output in outputs]
    plan.in_tower = next((output.in_tower for output in outputs if hasattr(output, "in_tower")), plan.in_tower)
    expected, found = len(plan.visual), sum(len(part) for part in tokens)
    if expected != found:
        raise InputError(
            f"the prompts hold {expected} visual tokens, but the given pixels make {found} features: give the pixels "
            "of these prompts"
        )
    if not outputs:
        return Features(None)
    deepstack = zip(*((getattr(output, "deepstack_features", None) or ()) for output in outputs))
    layers = tuple(torch.cat([joined(part) for part in layer]) for layer in deepstack)
    return Features(torch.cat(tokens), layers, tower)


def _run_tower(model, plan: PromptPlan, given: list[str], kwargs: dict) -> tuple[Any, TowerTokens | None]:
    """The vision tower's output for the kept patches of images and videos that are given as pixels, and what methods
    look at in its blocks (None where no method does).

    Args:
        given: those of IMAGE and VIDEO that are given as pixels.
    """
    compression, chosen, inside = model.compression, plan.chosen, {}
    embeds = kwargs.get("inputs_embeds")
    where = (kwargs["input_ids"] if embeds is None else embeds).device
    pixels = torch.cat([kwargs[PIXELS[kind]] for kind in given])
    grid = torch.cat([kwargs[f"{kind}_grid_thw"] for kind in given]).to(where)
    grid = _frames(grid) if compression.vision.tower_frames else grid
    looked_into = compression.tower.all or compression.inside is not None
    with watched(model, plan, where) if looked_into else contextlib.nullcontext() as seen:
        if compression.inside is not None:
            inside[KEYWORD] = pass_of_plan(compression, plan, given, where)
        if chosen is not None and chosen.drops:
            output = run_on_chosen(model, pixels, grid, chosen, **inside)
        else:
            tower = partial(vars(model)[RUN], model) if RUN in vars(model) else model.visual
            output = tower(pixels.to(where, model.visual.dtype), grid_thw=grid, return_dict=True, **inside)
    passing, stands = inside.get(KEYWORD), None
    if passing is not None:
        plan.in_tower = passing.finished()
        stands = passing.stands
    plan.looking = None if seen is None else seen.spent
    if seen is None or not (compression.tower.all or stands is not None):
        return output, None
    return output, seen.tokens(joined(output.pooler_output).device, stands)


def _check_ready(compression: Compression, kwargs: dict) -> None:
    """Raise InputError where features are given ready-made, but a method looks at the blocks that made them."""
    looking = {method.name for method in compression.config.methods if method.needs & TOWER_NEEDS}
    for kind, pixels in PIXELS.items():
        encoded = _encoded(kind, kwargs) is not None
        if encoded or (is_given(kind, kwargs) and kwargs.get(pixels) is None):
            names = ", ".join(sorted(looking))
            ready = "mm_encoder_outputs" if encoded else "inputs_embeds"
            raise InputError(
                f"{names} must look into the vision tower, but {ready} hold only its output: give {pixels}"
            )


def untouched_tower(model) -> torch.Tensor | float:
    """0, computed from every parameter of the vision tower. It is added to the embeddings of a prompt without images or
    videos, so that all processes of distributed training run the same modules (else ZeRO-3 would wait forever)."""
    if not (model.training or is_deepspeed_zero3_enabled()):
        return 0.0
    if IDLE in vars(model):
        return vars(model)[IDLE](model)
    config = model.visual.config
    side, patch = config.spatial_merge_size, config.patch_size
    channels = getattr(config, "in_channels", None) or config.in_chans
    parameter = next(model.visual.parameters())
    pixels = parameter.new_zeros(side * side, channels * config.temporal_patch_size * patch * patch)
    grid = torch.tensor([[1, side, side]], device=parameter.device)
    output = model.visual(pixels.to(model.visual.dtype), grid_thw=grid, return_dict=True)
    parts = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
    # A sum of no rows is exactly 0, with gradients of 0, whatever the tower computes from zeros.
    return sum(part[:0].sum() for part in parts)


def _frames(grids: torch.Tensor) -> torch.Tensor:
    """[frames, 3] each frame of grids [n, 3] as its own grid."""
    alone = torch.repeat_interleave(grids, grids[:, 0], dim=0)
    return torch.cat([torch.ones_like(alone[:, :1]), alone[:, 1:]], dim=1)


def _encoded(kind: str, kwargs: dict):
    """The vision tower's output, if the caller has run it already (newer transformers); else None."""
    return (kwargs.get("mm_encoder_outputs") or {}).get(kind)


def joined(features: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """[V, C] features of an output that may be split by image."""
    return features if isinstance(features, torch.Tensor) else torch.cat(list(features))


def ids_of_embeds(model, embeds: torch.Tensor, types: torch.Tensor | None = None) -> torch.Tensor:
    """[B, S] int64 stand-ins for missing input_ids: a placeholder's id where the embedding is the placeholder's (as
    transformers finds it) or mm_token_type_ids mark a visual token, whose embedding may be a feature already."""
    ids = torch.zeros(embeds.shape[:2], dtype=torch.long, device=embeds.device)
    vision = model.compression.vision
    ids += 1 + max(vision.image_token_id, vision.video_token_id)  # an id that is no placeholder
    for token in (vision.image_token_id, vision.video_token_id):
        embedding = model.get_input_embeddings()(torch.tensor(token, device=embeds.device))
        ids = torch.where((embeds == embedding).all(-1), token, ids)
    if types is not None and types.shape == ids.shape:
        for kind, token in ((1, vision.image_token_id), (2, vision.video_token_id)):
            ids = torch.where(types == kind, token, ids)
    return ids


def picked(given: dict, kind: str, order: list[int]) -> dict:
    """The pixels, grids and durations of the images or videos with these indices, in this order."""
    grid = given[f"{kind}_grid_thw"]
    out = {f"{kind}_grid_thw": grid[order]}
    if PIXELS[kind] in given:  # absent beside embeddings that contain the features, or a grid alone
        parts = given[PIXELS[kind]].split([t * h * w for t, h, w in grid.tolist()])
        out[PIXELS[kind]] = torch.cat([parts[index] for index in order])
    for name in SECONDS if kind == VIDEO else ():
        out |= {name: torch.as_tensor(given[name])[order]} if name in given else {}
    return out
