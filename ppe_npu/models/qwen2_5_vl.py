"""Qwen2.5-VL in transformers.

Modifications (on the given instance only):
* Qwen2_5_VLForConditionalGeneration.forward: labels are brought to the compressed length before the loss; the output
  carries them as `labels`.
* Qwen2_5_VLModel.forward: finds the visual tokens in the ids, computes the prompt's (t, h, w) itself (transformers
  changed them between versions, and drops M-RoPE without a word when mm_token_type_ids is missing), merges the vision
  tower's features, and hands the language model the compressed prompt. Later steps take their mask and positions from
  what was kept; that state travels with the cache.
* language_model.rotary_emb: takes any number of position rows (3 or 3K) and makes one table for all layers.
"""

import torch

from ..compression import CacheState, Compression, PromptPlan
from ..positions import rotary_table
from ..spans import IMAGE, VIDEO, VisionTokens
from .seam import original_forward, override_forward, restore_forward

CLASSES = ("Qwen2_5_VLForConditionalGeneration",)
_PLAN = "ppe_plan"
_PIXELS = {IMAGE: "pixel_values", VIDEO: "pixel_values_videos"}
_STATIC_ROPE = ("default", "linear", "yarn", "llama3")


def vision_tokens(model) -> VisionTokens:
    config = model.config
    return VisionTokens(
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        merge_size=config.vision_config.spatial_merge_size,
        tokens_per_second=config.vision_config.tokens_per_second,
    )


def sections(model) -> list[int]:
    """Channels of t, h and w in half a head."""
    return list(model.config.text_config.rope_parameters["mrope_section"])


def install(model, compression: Compression) -> None:
    rotary = model.model.language_model.rotary_emb
    if rotary.rope_type not in _STATIC_ROPE:
        raise ValueError(f"rope_type={rotary.rope_type!r} changes with the length: supported are {_STATIC_ROPE}")
    vars(model)["compression"] = compression
    vars(model.model)["compression"] = compression
    # generate() runs the vision tower beforehand, and drops the grids, if it sees that forward takes the tower's output.
    override_forward(model, _causal_lm_forward, hide="mm_encoder_outputs")
    override_forward(model.model, _model_forward)
    model.model.language_model.rotary_emb = RowRotaryEmbedding(rotary, compression.sections)


def uninstall(model) -> None:
    model.model.language_model.rotary_emb = model.model.language_model.rotary_emb.original
    for module in (model.model, model):
        restore_forward(module)
        del vars(module)["compression"]


class RowRotaryEmbedding(torch.nn.Module):
    """Rotary table from position rows [R, B, S], R = 3K, with the frequencies of the module that it stands in for."""

    def __init__(self, original: torch.nn.Module, sections: tuple[int, ...]):
        super().__init__()
        self.original = original
        self.sections = sections
        # Until 5.3 or so transformers wants a table per axis and picks the sections in every layer.
        probe = original.inv_freq.new_zeros(1, 1, 1)
        self.axes = 3 if original(probe, probe.long().expand(3, 1, 1))[0].ndim == 4 else None

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos, sin: [B, S, D] in the dtype of x (or a view [3, B, S, D] of it for older transformers)."""
        inv_freq = self.original.inv_freq.to(position_ids.device)
        table = rotary_table(position_ids, inv_freq, self.sections, self.original.attention_scaling)
        cos, sin = (part.to(x.dtype) for part in table)
        return (
            (cos, sin) if self.axes is None else (cos.expand(self.axes, *cos.shape), sin.expand(self.axes, *sin.shape))
        )


def _causal_lm_forward(self, labels=None, **kwargs):
    if labels is not None and _state(kwargs.get("past_key_values")) is None:
        plan = _plan(self.compression, kwargs)
        labels = plan.labels(labels)
        kwargs[_PLAN] = plan
    output = original_forward(self)(labels=labels, **kwargs)
    if labels is not None and not isinstance(output, tuple):
        output.labels = labels
    return output


def _model_forward(self, **kwargs):
    cache = kwargs.get("past_key_values")
    state = _state(cache)
    if state is not None:
        _keep_new_columns(kwargs, state)
    if state is None or any(_is_given(kind, kwargs) for kind in (IMAGE, VIDEO)):
        inputs, state = _prefill(self, state, kwargs)
    else:
        inputs, state = _continue(state, kwargs)
    return_dict = kwargs.pop("return_dict", None)
    for name in _CONSUMED:
        kwargs.pop(name, None)
    output = original_forward(self)(**inputs, **kwargs, return_dict=True)
    if output.past_key_values is not None:
        output.past_key_values.ppe_state = state
    return output.to_tuple() if return_dict is False else output


# What the compressed inputs replace, or what only the vision tower and transformers' own numbering read.
_CONSUMED = (
    *("input_ids", "inputs_embeds", "attention_mask", "position_ids", "pixel_values", "pixel_values_videos"),
    *("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids", "rope_deltas", "cache_position"),
    *("mm_encoder_outputs", _PLAN),
)


def _prefill(self, past: CacheState | None, kwargs: dict) -> tuple[dict, CacheState]:
    plan: PromptPlan = kwargs.get(_PLAN) or _plan(self.compression, kwargs, past)
    embeds = kwargs.get("inputs_embeds")
    features = _features(self, kwargs)
    expected, found = sum(span.tokens for span in plan.layout.spans), 0 if features is None else features.shape[0]
    if expected != found:
        raise ValueError(f"the prompts hold {expected} visual tokens but the pixels given make {found} features")
    ids = kwargs["input_ids"]
    text = torch.from_numpy(plan.compressed.text).to(ids.device, non_blocking=True)
    if embeds is None:
        text_embeds = self.get_input_embeddings()(ids.flatten().index_select(0, text))
    else:
        text_embeds = embeds.flatten(0, 1).index_select(0, text)
    prompt = self.compression.compress(plan, text_embeds, features, kwargs.get("attention_mask"), past)
    inputs = {
        "inputs_embeds": prompt.embeds,
        "attention_mask": prompt.attention_mask,
        "position_ids": prompt.position_rows,
    }
    return inputs, prompt.state


def _continue(state: CacheState, kwargs: dict) -> tuple[dict, CacheState]:
    """Text that continues a compressed prompt: nothing to compress, and no host sync."""
    name = "input_ids" if kwargs.get("input_ids") is not None else "inputs_embeds"
    tokens, mask = kwargs[name], kwargs.get("attention_mask")
    count = tokens.shape[1]
    new = (
        torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask[:, -count:] != 0
    )
    positions, after = Compression.continue_text(state, new, count)
    return {name: tokens, "attention_mask": after.mask.long(), "position_ids": positions}, after


def _plan(compression: Compression, kwargs: dict, past: CacheState | None = None) -> PromptPlan:
    ids, mask, positions = (kwargs.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    if ids is None:
        raise ValueError(
            "input_ids are missing: a compressed model finds the visual tokens by them (inputs_embeds may be given beside them)"
        )
    if isinstance(mask, dict):
        raise ValueError("attention_mask is a dict of ready masks: give a 2D or 4D mask, and use a DynamicCache")
    grids = {kind: kwargs.get(f"{kind}_grid_thw") if _is_given(kind, kwargs) else None for kind in (IMAGE, VIDEO)}
    for kind, grid in grids.items():
        if grid is None and _is_given(kind, kwargs):
            raise ValueError(f"{_PIXELS[kind]} are given without {kind}_grid_thw")
    if positions is not None and positions.ndim == 3 and positions.shape[0] == 4:
        positions = None  # transformers' own numbering of a prompt, made by generate()
    if past is not None and mask is not None:
        mask = mask[:, -ids.shape[1] :]
    return compression.plan(
        ids,
        mask,
        grids[IMAGE],
        grids[VIDEO],
        kwargs.get("second_per_grid_ts") if grids[VIDEO] is not None else None,
        positions,
        None if past is None else past.following,
    )


def _features(self, kwargs: dict) -> torch.Tensor | None:
    """[V, C] features of all images, then all videos."""
    encode = {IMAGE: self.get_image_features, VIDEO: self.get_video_features}
    outputs = []
    for kind in (IMAGE, VIDEO):
        if _encoded(kind, kwargs) is not None:
            outputs.append(_encoded(kind, kwargs))
        elif _is_given(kind, kwargs):
            outputs.append(encode[kind](kwargs[_PIXELS[kind]], kwargs[f"{kind}_grid_thw"], return_dict=True))
    return torch.cat([torch.cat(output.pooler_output) for output in outputs]) if outputs else None


def _is_given(kind: str, kwargs: dict) -> bool:
    return kwargs.get(_PIXELS[kind]) is not None or _encoded(kind, kwargs) is not None


def _encoded(kind: str, kwargs: dict):
    """The vision tower's output, where the caller has run it already (newer transformers)."""
    return (kwargs.get("mm_encoder_outputs") or {}).get(kind)


def _state(cache) -> CacheState | None:
    """The compressed prompt that a cache holds, None for no cache or an empty one."""
    if cache is None:
        return None
    if getattr(cache, "is_compileable", False):
        raise ValueError(f"{type(cache).__name__} has a fixed length: use a DynamicCache (transformers' default)")
    if cache.get_seq_length() == 0:
        return None
    state = getattr(cache, "ppe_state", None)
    if state is None:
        raise ValueError("past_key_values was filled by a model without compression: start from an empty cache")
    return state


def _keep_new_columns(kwargs: dict, state: CacheState) -> None:
    """generate() cuts known columns off input_ids by the cache's length, which is the compressed one: cut the rest."""
    mask, ids = kwargs.get("attention_mask"), kwargs.get("input_ids")
    if mask is None or ids is None:
        return
    new = mask.shape[1] - state.seen
    if not 0 < new <= ids.shape[1]:
        raise ValueError(
            f"attention_mask has {mask.shape[1]} columns and input_ids {ids.shape[1]}, "
            f"but the cache stands for {state.seen}: the mask must cover the cached and the new tokens"
        )
    kwargs["input_ids"] = ids[:, -new:]
