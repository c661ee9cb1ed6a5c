"""The modifications of generate() on a compressed model: which inputs it prepares, repeats for beams or refuses, and
how a batch's images and videos are split and repeated."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
import transformers
from packaging.version import Version

from ppe_npu.engine.cache import CacheState, FixedState
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.spans import IMAGE, VIDEO, HiddenItems, VisionTokens, find_spans
from ppe_npu.errors import InputError
from ppe_npu.models.arguments import PIXELS, VISUAL, ids_of_embeds, make_plan, picked
from ppe_npu.models.caches import state_of
from ppe_npu.models.forward_pass import KEYWORD, NOTHING, ForwardPass
from ppe_npu.models.numbering import is_numbered_without_time
from ppe_npu.models.seam import original, override


def install_generation(model) -> None:
    """Put generate()'s modifications on a model for conditional generation."""
    override(model, "prepare_inputs_for_generation", prepare_inputs_for_generation)
    override(model, "_expand_inputs_for_generation", expand_inputs_for_generation)
    override(model, "_get_candidate_generator", _get_candidate_generator)
    override(model, "_valid_auto_compile_criteria", _valid_auto_compile_criteria)
    newer: dict[str, Callable] = {
        "_prefill": _prefill,
        "_prepare_position_ids_for_generation": _prepare_position_ids_for_generation,
        "_supports_mm_encoder_outputs": _supports_mm_encoder_outputs,
        "init_continuous_batching": _init_continuous_batching,
    }
    for name, function in newer.items():
        if hasattr(type(model), name):  # not in older transformers
            override(model, name, function)


def prepare_inputs_for_generation(self, input_ids, **kwargs):
    prepare = original(self, "prepare_inputs_for_generation")
    inputs = prepare(input_ids=input_ids, **kwargs)
    state = state_of(self.compression, kwargs | {"input_ids": inputs.get("input_ids")})
    inputs[KEYWORD] = replace(kwargs.get(KEYWORD, NOTHING), left=True)
    if isinstance(state, FixedState):
        text = inputs.get("input_ids") is not None and all(inputs.get(name) is None for name in PIXELS.values())
        if kwargs.get("next_sequence_length") == 1 and text:
            inputs.pop("mm_token_type_ids", None)  # only for pictures, and grows in each step
            return inputs | _step(inputs["input_ids"], kwargs, self.compression)
        state = state.settled()
    # Pass the columns that the cache has not seen; generate() slices by the cache's length, which is compressed.
    unseen = state is not None and is_whole(input_ids, kwargs) and input_ids.shape[1] > state.seen
    if state is not None and unseen and inputs.get("input_ids") is not None:
        # Cloned, as in transformers: a view's stride differs in each step, which would recompile a compiled model.
        inputs["input_ids"] = input_ids[:, state.seen :].clone(memory_format=torch.contiguous_format)
        inputs |= new_visual_inputs(inputs, input_ids, state.seen, self.compression.vision)
    if state is not None and inputs.get("inputs_embeds") is not None:
        inputs |= _new_embeds(self, inputs, kwargs, state.seen)
    inputs["attention_mask"] = kwargs.get("attention_mask")  # transformers makes other masks for a static cache
    inputs["position_ids"] = _positions(kwargs, state, self.compression)
    return inputs


def is_whole(input_ids: torch.Tensor, kwargs: dict) -> bool:
    """Whether input_ids are the whole conversation. A caller that passes only the new ones passes a longer mask."""
    mask, asked = kwargs.get("attention_mask"), kwargs.get(KEYWORD, NOTHING).columns
    columns = asked if mask is None or mask.ndim != 2 else mask.shape[1]
    return columns in (None, input_ids.shape[1])


def _new_embeds(model, inputs: dict, kwargs: dict, seen: int) -> dict:
    """The inputs that the cache has not seen of a conversation in embeddings; {} if only those are given."""
    whole, types = kwargs["inputs_embeds"], kwargs.get("mm_token_type_ids")
    if whole.shape[1] <= seen:
        return {}
    new = {"inputs_embeds": whole[:, seen:], "mm_token_type_ids": None if types is None else types[:, seen:]}
    return new | new_visual_inputs(inputs, ids_of_embeds(model.model, whole, types), seen, model.compression.vision)


def _positions(kwargs: dict, state: CacheState | None, compression: Compression) -> torch.Tensor | None:
    """The caller's positions for the columns that the cache has not seen; None if the caller gave none."""
    given = kwargs.get("position_ids")
    if given is None or state is None:
        return given
    # Where tokens are merged, later steps continue the compressed prompt's own positions.
    return given[..., state.seen :] if compression.config.keeps_all else None


def _step(tokens: torch.Tensor, kwargs: dict, compression: Compression) -> dict:
    """The inputs for one more token into a static cache, with the same shapes and strides in all steps, so that a
    compiled model is not compiled again (a view would have another stride in each step)."""
    positions = kwargs.get("position_ids") if compression.config.keeps_all else None
    last = {"input_ids": tokens, "attention_mask": kwargs.get("attention_mask"), "position_ids": positions}
    return {
        name: None if value is None else value[..., -1:].clone(memory_format=torch.contiguous_format)
        for name, value in last.items()
    }


def _prepare_position_ids_for_generation(self, inputs_tensor: torch.Tensor, model_kwargs: dict) -> torch.Tensor | None:
    """None, because a compressed model numbers its prompt itself: position_ids that arrive are then the caller's. But
    where every token is kept, answers must be transformers' own. For a prompt padded on the right, transformers numbers
    the padding, and the answer after it, in its own way: return its positions. Where text is numbered beside a video's
    time, transformers continues after the text: return that prompt's positions."""
    mask, on = model_kwargs.get("attention_mask"), self.compression
    if not on.config.keeps_all:
        return None
    ids = model_kwargs.get("input_ids")  # empty beside embeddings
    tokens = inputs_tensor if ids is None or not ids.shape[1] else ids
    if mask is not None and mask.ndim == 2 and _is_padded_behind(on, tokens, mask):
        return original(self, "_prepare_position_ids_for_generation")(inputs_tensor, model_kwargs)
    asked = {**model_kwargs, "input_ids": tokens}
    if tokens.ndim > 2 or state_of(on, asked) is not None or not is_numbered_without_time(on, asked):
        return None
    return make_plan(self.model, on, asked).positions[:, :-1].unflatten(1, tokens.shape).to(tokens.device)


def _is_padded_behind(on: Compression, tokens: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether padding follows tokens in a mask [B, S]. A gap in the middle may instead hide an image or a video of ids
    [B, S]; it does not count, because transformers could not number the other images and videos then."""
    real = mask != 0
    if not real[:, -1].all():
        return True
    visual = (tokens == on.vision.image_token_id) | (tokens == on.vision.video_token_id)
    hides = tokens.shape == mask.shape and bool((visual & ~real).any())
    return not hides and bool((~real[:, 1:] & real[:, :-1]).any())


def expand_inputs_for_generation(self, expand_size=1, input_ids=None, **kwargs):
    expand = original(self, "_expand_inputs_for_generation")
    # Later columns are generated: a placeholder among them is text.
    prompt = input_ids.shape[1] if input_ids is not None and input_ids.shape[1] else None  # none beside embeddings
    own = {KEYWORD: ForwardPass(prompt=prompt)}
    if expand_size == 1:
        input_ids, others = expand(expand_size=expand_size, input_ids=input_ids, **kwargs)
        return input_ids, others | own
    embedded = kwargs.get("inputs_embeds") is not None and (input_ids is None or input_ids.shape[1] == 0)
    ids = ids_of_embeds(self.model, kwargs["inputs_embeds"], kwargs.get("mm_token_type_ids")) if embedded else input_ids
    hidden = self.compression.config.keeps_all
    visual = repeat_visual_inputs(kwargs, ids, expand_size, self.compression.vision, hidden)
    others = {name: value for name, value in kwargs.items() if name not in visual}
    if others.get("position_ids") is None:  # older transformers reads its shape
        others.pop("position_ids", None)
    input_ids, others = expand(expand_size=expand_size, input_ids=input_ids, **others)
    return input_ids, others | visual | own


def _get_candidate_generator(self, assistant_model=None, model_kwargs=None, **kwargs):
    dense = self.compression.config.keeps_all
    if not dense and assistant_model is not None:
        raise InputError(
            "assistant_model counts the columns of the uncompressed prompt: use prompt_lookup_num_tokens, or "
            "restore(model) first"
        )
    if Version(transformers.__version__) < Version("5.3"):
        if assistant_model is not None:
            raise InputError("assistant_model needs transformers>=5.3: older ones pass our arguments to the assistant")
        if not dense:
            raise InputError("prompt_lookup_num_tokens needs transformers>=5.3: older ones count the cache's columns")
    others = {name: value for name, value in (model_kwargs or {}).items() if name != KEYWORD}  # go to an assistant, too
    candidate = original(self, "_get_candidate_generator")
    made = candidate(assistant_model=assistant_model, model_kwargs=others, **kwargs)
    return made if dense else _behind_the_prompt(made)


def _behind_the_prompt(candidates):
    """The same candidate generator, but without candidates in the first step: in a pass over prompt and candidates,
    candidates would influence the compression, and wrong ones could not be removed again."""
    guess = candidates.get_candidates

    def prompt_alone(input_ids, **kwargs):
        candidates.get_candidates = guess
        return input_ids, None

    candidates.get_candidates = prompt_alone
    return candidates


def _valid_auto_compile_criteria(self, model_kwargs: dict, generation_config) -> bool:
    if generation_config.compile_config is None:
        return False
    valid = original(self, "_valid_auto_compile_criteria")
    return valid(model_kwargs=model_kwargs, generation_config=generation_config)


def _prefill(self, input_ids, generation_config, model_kwargs, **kwargs):
    if generation_config.prefill_chunk_size is not None:
        # In chunks, transformers would lose the pictures after the first chunk; and a compressed prompt is short.
        warnings.warn(
            f"prefill_chunk_size={generation_config.prefill_chunk_size} is ignored: a compressed model takes its "
            "prompt as a whole, with all its pictures",
            stacklevel=2,
        )
        generation_config = copy.copy(generation_config)
        generation_config.prefill_chunk_size = None
    # generate() drops a mask of ones, except for its length. In place, because transformers 5.2 updates this dict, too.
    before = model_kwargs.get(KEYWORD)
    columns = getattr(generation_config, "_mask_length", None)
    model_kwargs[KEYWORD] = replace(before or NOTHING, columns=columns)
    prefill = original(self, "_prefill")
    try:
        return prefill(input_ids=input_ids, generation_config=generation_config, model_kwargs=model_kwargs, **kwargs)
    finally:
        del model_kwargs[KEYWORD]
        model_kwargs |= {} if before is None else {KEYWORD: before}


def _supports_mm_encoder_outputs(self) -> bool:
    """False: generate() must not run the vision tower itself, because it would pass features without their grids. The
    signature cannot express that, because a wrapper around forward shows the signature of the class."""
    return False


def _init_continuous_batching(self, **kwargs):
    raise InputError(
        'continuous batching (generate_batch, cache_implementation="paged") gives the model no images: use generate() '
        "with another cache, or restore(model) first"
    )


def repeat_visual_inputs(
    inputs: dict, input_ids: torch.Tensor, times: int, vision: VisionTokens, hidden: bool = False
) -> dict:
    """The visual inputs of a batch in which every sample is repeated `times` times in a row.

    Patches and grids have no batch dimension: those that a sample's spans use are repeated together.

    Args:
        inputs: model inputs, of which pixel_values[_videos] [patches, C], *_grid_thw [n, 3] and second_per_grid_ts [n]
            are read.
        input_ids: [B, S], not repeated yet.
        hidden: as in find_spans().
    """
    given = {name: inputs[name] for name in VISUAL if inputs.get(name) is not None}
    grids = {
        kind: given[f"{kind}_grid_thw"].tolist() if f"{kind}_grid_thw" in given else None for kind in (IMAGE, VIDEO)
    }
    mask = inputs.get("attention_mask")
    real = None if mask is None else mask.cpu().numpy()
    given_to = input_ids.cpu().numpy(), real, grids[IMAGE], grids[VIDEO], None, vision
    try:
        layout = find_spans(*given_to, hidden=hidden)
    except HiddenItems:  # hidden ones are repeated, too
        layout = find_spans(*given_to, hidden=True)
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
            out |= picked(given, kind, order)
    return out


def new_visual_inputs(inputs: dict, input_ids: torch.Tensor, seen: int, vision: VisionTokens) -> dict:
    """The visual inputs of a conversation's new part, if those of the whole conversation are given.

    Args:
        inputs: model inputs, as in repeat_visual_inputs().
        input_ids: [B, S] of the whole conversation. seen: how many of its columns the cache has seen.

    Returns:
        The replacements for visual inputs, None where nothing is new; {} if only the new ones are given.
    """
    given = {name: inputs[name] for name in VISUAL if inputs.get(name) is not None}
    out: dict[str, torch.Tensor | None] = {}
    for kind, token in ((IMAGE, vision.image_token_id), (VIDEO, vision.video_token_id)):
        if f"{kind}_grid_thw" not in given or PIXELS[kind] not in given:
            continue
        grids, ids = given[f"{kind}_grid_thw"].tolist(), input_ids.cpu().numpy()
        tokens = [t * h * w // vision.merge_size**2 for t, h, w in grids]
        if sum(tokens) == int((ids[:, seen:] == token).sum()):
            continue
        # All of the conversation's, sample by sample: those whose tokens are among the columns seen are not new.
        order, at = [], 0
        for sample in ids == token:
            before, total = int(sample[:seen].sum()), int(sample.sum())
            place = 0
            while place < total and at < len(tokens):
                if place >= before:
                    order.append(at)
                place += tokens[at]
                at += 1
        out |= picked(given, kind, order) if order else dict.fromkeys((PIXELS[kind], f"{kind}_grid_thw"))
    return out
