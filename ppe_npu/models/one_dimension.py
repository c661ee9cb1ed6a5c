"""Models whose decoder counts positions in one dimension (InternVL, LLaVA and similar ones).

Each family is described by a Family (one_dimension_families.py): where the tokens of its images and videos are, in
tiles, frames, rows and columns. Everything else is here, and is the same for all of them.

Modifications: those of vision_language.py, and
* ...ForConditionalGeneration.forward, ...Model.forward: inputs in tiles (pixel_values, image_sizes, ...) are replaced
  by the Parts that they form in the prompts; the vision tower runs by get_image_features, when its output is read.
* prepare_inputs_for_generation, _expand_inputs_for_generation: tiles are assigned to the samples that they belong to.
* the vision tower, its encoder and layers, where a method works inside it: see tile_blocks.py.
* language_model.forward: always runs the layers stage by stage, because the language model's own forward does not take
  K rows of positions.

A merged token that keeps K positions splits the rotary channels into K even runs (arXiv 2510.22936, section 3, the case
of one dimension). Positions of visual tokens are their indices in the text; methods look at (frame, row, column).
"""

import functools
import inspect
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ppe_npu.engine.compression import Compression
from ppe_npu.engine.positions import HALVES
from ppe_npu.engine.rebuilding import Rebuilding
from ppe_npu.engine.spans import IMAGE, VIDEO, Parts, PromptLayout, VisionTokens, find_spans
from ppe_npu.errors import InputError
from ppe_npu.inspect.tower_work import TowerReport
from ppe_npu.models import generation, vision_language
from ppe_npu.models.arguments import IDLE, PIXELS, ids_of_embeds
from ppe_npu.models.caches import state_of
from ppe_npu.models.forward_pass import KEYWORD, NOTHING
from ppe_npu.models.known import DECODERS, check_release
from ppe_npu.models.one_dimension_families import FAMILIES, Family, ForwardInputs, images_of_each
from ppe_npu.models.seam import override, own_submodules
from ppe_npu.models.tile_blocks import BLOCKS, TILES, pass_of_parts
from ppe_npu.models.vision_language import decoder_layers as decoder_layers

CLASSES = (*(family.name for family in FAMILIES.values()), "PVCInternVLForConditionalGeneration")
LAYERS = DECODERS  # and the attention in them
PAIRS = HALVES  # which channels of a head are rotated together
TOWER = BLOCKS
_OF = {IMAGE: "get_image_features", VIDEO: "get_video_features"}
_SAID = ("num_frames", "time_steps")  # lists of InternVL, with an entry for each image and video


def vision_tokens(config) -> VisionTokens:
    family = FAMILIES[config.model_type]
    family.check(config)
    return VisionTokens(
        image_token_id=config.image_token_id,
        video_token_id=getattr(config, "video_token_id", config.image_token_id),
        merge_size=1,
        tokens_per_second=None,
        frames_apart=family.frames_apart,
        tile_blocks=family.blocks(config),
    )


def channels(config) -> tuple[int, ...]:
    """The axis of each rotary channel of half a head: always 0, the only axis."""
    text = config.text_config
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    partial = (getattr(text, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0)
    return (0,) * (int(width * partial) // 2)


def install(model, compression: Compression) -> None:
    check_release(type(model).__name__)
    inner = model.model
    if "language_model" not in inner._modules:
        vars(inner)["language_model"] = inner.text_model  # a second name, unseen by state dicts and hooks
    said = ("num_frames",) if "num_frames" in FAMILIES[model.config.model_type].others else ()
    vision_language.install(model, compression, staged=True, said=said)
    if compression.inside is not None:
        TILES.install(inner, compression)
    vars(inner)[IDLE] = _idle_tower
    override(model, "forward", _causal_lm_forward)
    override(inner, "forward", _model_forward)
    override(model, "prepare_inputs_for_generation", _prepare_inputs_for_generation)
    override(model, "_expand_inputs_for_generation", _expand_inputs_for_generation)


def uninstall(model) -> None:
    TILES.uninstall(model.model)
    vision_language.uninstall(model)
    for name in (IDLE, "language_model"):
        vars(model.model).pop(name, None)


def detach(model) -> None:
    own_submodules(model, "model", "lm_head")
    name = "language_model" if "language_model" in model.model._modules else "text_model"
    own_submodules(model.model, name)
    TILES.detach(model.model)
    text = model.model._modules[name]
    if name != "language_model":
        vars(model.model)["language_model"] = text
    own_submodules(text)


def _causal_lm_forward(self, labels=None, **kwargs):
    return vision_language.causal_lm_forward(self, labels=labels, **in_parts(self.model, kwargs))


def _model_forward(self, **kwargs):
    return vision_language.model_forward(self, **in_parts(self, kwargs))


class _Made:
    """The vision tower's output for the images (or videos), computed when it is read; and the report of its work.

    Args:
        run: runs the tower.
        passing: makes the pass of a method that works inside the tower; None, or returning None, where no method does.
    """

    in_tower: TowerReport | None = None

    def __init__(self, run: Callable[..., torch.Tensor], passing: Callable[[], Rebuilding | None] | None):
        self._run, self._passing = run, passing

    @property
    def pooler_output(self) -> torch.Tensor:
        passing = None if self._passing is None else self._passing()
        if passing is None:
            self.in_tower = None
            return self._run()
        features = self._run(**{KEYWORD: passing})
        self.in_tower = passing.finished()
        return features


def in_parts(model, kwargs: dict) -> dict:
    """A forward's arguments, with Parts and the tower's output (_Made) in place of tiles and their descriptions.

    Args:
        model: the ...Model inside the one for conditional generation.

    Raises:
        InputError: the prompts and the tiles do not fit each other.
    """
    family, given = FAMILIES[model.config.model_type], kwargs.get("mm_encoder_outputs") or {}
    kinds = [kind for kind in (IMAGE, VIDEO) if kwargs.get(PIXELS[kind]) is not None or kind in given]
    if not kinds or any(isinstance(kwargs.get(f"{kind}_grid_thw"), Parts) for kind in kinds):
        return kwargs
    asked = _asked(model, kwargs)
    parts = _parts(family, asked, kinds)
    made = {}
    for kind in kinds:
        inside = None
        if model.compression.inside is not None and kind not in given:
            samples, pixels = [sample for sample, _, _ in asked.runs], kwargs[PIXELS[kind]]
            inside = functools.partial(pass_of_parts, model, parts[kind], samples, pixels)
        made[kind] = _Made(functools.partial(_features, model, kind, kwargs, given.get(kind)), inside)
    rest = {name: value for name, value in kwargs.items() if name not in family.arguments}
    return rest | {f"{kind}_grid_thw": parts[kind] for kind in kinds} | {"mm_encoder_outputs": made}


def _asked(model, kwargs: dict) -> ForwardInputs:
    """The arguments of a ...Model's forward as ForwardInputs."""
    ids, prompt = kwargs.get("input_ids"), kwargs.get(KEYWORD, NOTHING).prompt
    if ids is None and kwargs.get("inputs_embeds") is None:
        raise InputError("input_ids and inputs_embeds are both missing: give one")
    ids = ids_of_embeds(model, kwargs["inputs_embeds"]) if ids is None else ids
    return ForwardInputs(model.config, ids.cpu().numpy()[:, :prompt], kwargs)


def _parts(family: Family, asked: ForwardInputs, kinds: Sequence[str]) -> dict[str, Parts]:
    parts = family.parts(family, asked)
    for kind in kinds:
        family.check_rows(kind, parts[kind], asked.arguments)
    return parts


def _features(model, kind: str, kwargs: dict, given, **inside: Rebuilding) -> torch.Tensor:
    """[V, C] features of all images, or of all videos. inside: the pass through the tower's layers, if there is one."""
    if given is None:
        pixels, run = PIXELS[kind], getattr(model, _OF[kind])
        # Those that it takes and the model's own forward passes on (LLaVA-OneVision's does not pass an aspect ratio).
        known = set(inspect.signature(run).parameters) & set(FAMILIES[model.config.model_type].arguments)
        others = {name: kwargs[name] for name in known - {pixels} if kwargs.get(name) is not None}
        given = run(kwargs[pixels], **others, **inside, return_dict=True)
    return _flat(given.pooler_output)


def _flat(features: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """[V, C] the rows of features [..., C], or of a list of them."""
    parts = [features] if isinstance(features, torch.Tensor) else features
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def _idle_tower(model) -> torch.Tensor:
    """0, computed from every parameter of the vision tower: see arguments.untouched_tower."""
    family = FAMILIES[model.config.model_type]
    parameter = next(model.get_submodule(family.tower).parameters())
    given = {name: value.to(parameter.device) for name, value in family.idle(model.config).items()}
    given[PIXELS[IMAGE]] = given[PIXELS[IMAGE]].to(parameter.dtype)
    return _features(model, IMAGE, given, None)[:0].sum()


# -- generation: which tiles belong to which sample --------------------------------------------------------------------


def _prepare_inputs_for_generation(self, input_ids, **kwargs):
    inputs = generation.prepare_inputs_for_generation(self, input_ids, **kwargs)
    family = FAMILIES[self.config.model_type]
    state = state_of(self.compression, kwargs | {"input_ids": inputs.get("input_ids")})
    if all(inputs.get(name) is None for name in PIXELS.values()) or state is None:
        return inputs
    if not generation.is_whole(input_ids, kwargs):
        return inputs  # only new ids are given, so that all tiles are new
    seen = state.settled().seen
    rows = _rows_by_place(self, family, input_ids, kwargs)
    for kind, places in rows.items():
        new = np.flatnonzero(places[:, 1] >= seen)
        inputs |= _picked(family, kind, inputs, len(places), new.tolist())
    for name, entries in _entries_by_place(self.model, family, input_ids, kwargs).items():
        inputs[name] = [entry for entry, _, column in entries if column >= seen]
    return inputs


def _expand_inputs_for_generation(self, expand_size=1, input_ids=None, **kwargs):
    expand = functools.partial(generation.expand_inputs_for_generation, self)
    family, held = FAMILIES[self.config.model_type], dict[str, torch.Tensor | list | None]()
    if expand_size > 1 and any(kwargs.get(name) is not None for name in PIXELS.values()):
        ids = input_ids if input_ids is not None and input_ids.shape[1] else None
        ids = ids_of_embeds(self.model, kwargs["inputs_embeds"]) if ids is None else ids
        for kind, places in _rows_by_place(self, family, ids, kwargs).items():
            own = [np.flatnonzero(places[:, 0] == sample).tolist() for sample in range(len(ids))]
            order = [row for rows in own for row in rows * expand_size]
            held |= _picked(family, kind, kwargs, len(places), order)
        for name, entries in _entries_by_place(self.model, family, ids, kwargs).items():
            said = [[entry for entry, owner, _ in entries if owner == sample] for sample in range(len(ids))]
            held[name] = [entry for again in said for entry in again * expand_size]
    others = {name: value for name, value in kwargs.items() if name not in held}
    input_ids, others = expand(expand_size=expand_size, input_ids=input_ids, **others)
    return input_ids, others | held


def _entries_by_place(model, family: Family, ids: torch.Tensor, kwargs: dict) -> dict[str, list[tuple]]:
    """{argument: [(entry, sample, column)]} the arguments with an entry per image and video, and where each begins."""
    given = {name: list(kwargs[name]) for name in _SAID if kwargs.get(name) is not None}
    if not given:
        return {}
    asked, places = _asked(model, kwargs | {"input_ids": ids}), dict[tuple, tuple[int, int]]()
    for part, (sample, column, _) in zip(_parts(family, asked, [IMAGE])[IMAGE], asked.runs):
        places.setdefault((part.modality, part.source), (sample, column))
    return {name: [(entry, *at) for entry, at in zip(entries, places.values())] for name, entries in given.items()}


def _rows_by_place(model, family: Family, ids: torch.Tensor, kwargs: dict) -> dict[str, np.ndarray]:
    """{kind: [rows, 2] int64}, the sample and the column of each row of the kind's arrays, for the given kinds."""
    if family.by == "sample":
        return {}  # its arrays have a row for each sample, like all others
    kinds = [kind for kind in (IMAGE, VIDEO) if kwargs.get(PIXELS[kind]) is not None]
    parts = _parts(family, _asked(model.model, kwargs | {"input_ids": ids}), kinds)
    found: dict[str, Parts | None] = {kind: parts[kind] if kind in kinds else None for kind in (IMAGE, VIDEO)}
    vision = model.compression.vision
    layout = find_spans(ids.cpu().numpy(), None, found[IMAGE], found[VIDEO], None, vision, hidden=True)
    return {kind: _places_of_rows(family, layout, kind, len(parts[kind])) for kind in kinds}


def _places_of_rows(family: Family, layout: PromptLayout, kind: str, count: int) -> np.ndarray:
    images = sorted(layout.spans, key=lambda span: span.feature)
    own = images[:count] if kind == IMAGE else images[len(images) - count :]
    rows: list[tuple[int, int]] = []
    for number, span in enumerate(own):
        first = number == 0 or (own[number - 1].modality, own[number - 1].source) != (span.modality, span.source)
        rows += [(span.sample, span.start)] * family.rows(span.grid, first)
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def _picked(family: Family, kind: str, kwargs: dict, rows: int, order: Sequence[int]) -> dict:
    """The rows `order` of a kind's arrays; None for each array if `order` is empty."""
    arrays = {name: kwargs[name] for name in family.arrays(kind) if kwargs.get(name) is not None}
    for name, array in arrays.items():
        if len(array) != rows:
            raise InputError(f"{name} has {len(array)} rows, but the prompts have {rows}: give one row for each")
    picked: dict = {name: torch.as_tensor(array)[list(order)] if order else None for name, array in arrays.items()}
    if kind == IMAGE and kwargs.get("batch_num_images") is not None:
        picked["batch_num_images"] = images_of_each(kwargs["batch_num_images"], order) if order else None
    return picked
