"""Qwen2.5-VL in transformers.

Modifications (on the given instance only):
* Qwen2_5_VLForConditionalGeneration.forward: labels are brought to the compressed length before the loss; the output
  carries them as `labels`.
* Qwen2_5_VLModel.forward: finds the visual tokens in the ids, computes the prompt's (t, h, w) itself (transformers
  changed them between versions, and drops M-RoPE without a word when mm_token_type_ids is missing), merges the vision
  tower's features, and hands the language model the compressed prompt. Later steps take their mask and positions from
  what was kept; that state travels with the cache.
* prepare_inputs_for_generation: a conversation that goes on feeds what the cache has not seen, counted before
  compression; prompts are padded on the left whatever side they came padded on.
* _expand_inputs_for_generation: repeats images and videos by sample; newer transformers repeats the tower's output
  instead, and hands the model no grids, so generate() is not shown that forward could take that output.
* language_model.rotary_emb: takes any number of position rows (3 or 3K) and makes one table for all layers.
"""

import torch

from ppe_npu.compression import CacheState, Compression
from ppe_npu.models.generation import repeat_visual_inputs
from ppe_npu.models.seam import original, override, restore_methods
from ppe_npu.plan import PromptPlan
from ppe_npu.positions import rotary_table
from ppe_npu.spans import IMAGE, VIDEO, VisionTokens

CLASSES = ("Qwen2_5_VLForConditionalGeneration",)
# Arguments of our own between the overridden methods.
_PLAN, _LEFT = "ppe_plan", "ppe_left"
_PIXELS = {IMAGE: "pixel_values", VIDEO: "pixel_values_videos"}
_STATIC_ROPE = ("default", "linear", "yarn", "llama3")


def vision_tokens(config) -> VisionTokens:
    return VisionTokens(
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        merge_size=config.vision_config.spatial_merge_size,
        tokens_per_second=config.vision_config.tokens_per_second,
    )


def sections(config) -> tuple[int, ...]:
    """Channels of t, h and w in half a head."""
    return tuple(config.text_config.rope_parameters["mrope_section"])


def decoder_layers(config) -> int:
    return config.text_config.num_hidden_layers


def install(model, compression: Compression) -> None:
    rotary = model.model.language_model.rotary_emb
    if rotary.rope_type not in _STATIC_ROPE:
        raise ValueError(f"rope_type={rotary.rope_type!r} changes with the length: supported are {_STATIC_ROPE}")
    vars(model)["compression"] = compression
    vars(model.model)["compression"] = compression
    # Older transformers' generate() refuses mm_token_type_ids, newer ones' processors make them: take them anywhere.
    override(model, "forward", _causal_lm_forward, hide="mm_encoder_outputs", show="mm_token_type_ids")
    override(model, "prepare_inputs_for_generation", _prepare_inputs_for_generation)
    override(model, "_expand_inputs_for_generation", _expand_inputs_for_generation)
    override(model.model, "forward", _model_forward)
    model.model.language_model.rotary_emb = RowRotaryEmbedding(rotary, compression.sections)


def uninstall(model) -> None:
    model.model.language_model.rotary_emb = model.model.language_model.rotary_emb.original
    for module in (model.model, model):
        restore_methods(module)
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
    output = original(self, "forward")(labels=labels, **kwargs)
    if labels is not None and not isinstance(output, tuple):
        output.labels = labels
    return output


def _prepare_inputs_for_generation(self, input_ids, past_key_values=None, **kwargs):
    prepare = original(self, "prepare_inputs_for_generation")
    inputs = prepare(input_ids=input_ids, past_key_values=past_key_values, **kwargs)
    state = _state(past_key_values)
    # New are the columns that the cache has not seen; its length, by which generate() cuts, is the compressed one.
    if state is not None and inputs.get("input_ids") is not None and input_ids.shape[1] > state.seen:
        inputs["input_ids"] = input_ids[:, state.seen :]
    inputs.pop("position_ids", None)  # generate()'s own, before compression
    inputs[_LEFT] = True
    return inputs


def _expand_inputs_for_generation(self, expand_size=1, input_ids=None, **kwargs):
    expand = original(self, "_expand_inputs_for_generation")
    if expand_size == 1 or input_ids is None:
        return expand(expand_size=expand_size, input_ids=input_ids, **kwargs)
    visual = repeat_visual_inputs(kwargs, input_ids, expand_size, self.compression.vision)
    others = {name: value for name, value in kwargs.items() if name not in visual}
    input_ids, others = expand(expand_size=expand_size, input_ids=input_ids, **others)
    return input_ids, others | visual


def _model_forward(self, **kwargs):
    cache = kwargs.get("past_key_values")
    state = _state(cache)
    if state is None or any(_is_given(kind, kwargs) for kind in (IMAGE, VIDEO)):
        inputs, state = _prefill(self, state, kwargs)
    else:
        inputs, state = _continue(state, kwargs)
    return_dict = kwargs.pop("return_dict", None)
    for name in _CONSUMED:
        kwargs.pop(name, None)
    output = original(self, "forward")(**inputs, **kwargs, return_dict=True)
    if output.past_key_values is not None:
        output.past_key_values.ppe_state = state
    return output.to_tuple() if return_dict is False else output


# What the compressed inputs replace, or what only the vision tower and transformers' own numbering read.
_CONSUMED = (
    *("input_ids", "inputs_embeds", "attention_mask", "position_ids", "pixel_values", "pixel_values_videos"),
    *("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids", "rope_deltas", "cache_position"),
    *("mm_encoder_outputs", _PLAN, _LEFT),
)


def _prefill(self, past: CacheState | None, kwargs: dict) -> tuple[dict, CacheState]:
    plan: PromptPlan = kwargs.get(_PLAN) or _plan(self.compression, kwargs, past)
    embeds, ids = kwargs.get("inputs_embeds"), kwargs["input_ids"]
    text = plan.on(ids.device).text  # everything is uploaded now, before the tower keeps the device busy
    features = _features(self, kwargs)
    expected, found = sum(span.tokens for span in plan.layout.spans), 0 if features is None else features.shape[0]
    if expected != found:
        raise ValueError(f"the prompts hold {expected} visual tokens but the pixels given make {found} features")
    if embeds is None:
        text_embeds = self.get_input_embeddings()(ids.flatten().index_select(0, text))
    else:
        text_embeds = embeds.flatten(0, 1).index_select(0, text)
    sdpa = self.language_model.config._attn_implementation == "sdpa"
    prompt = self.compression.compress(plan, text_embeds, features, kwargs.get("attention_mask"), past, ready_mask=sdpa)
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
    positions, after = Compression.continue_text(state, new, count, padded=mask is not None)
    return {
        name: tokens,
        "attention_mask": after.mask.long() if after.padded else None,
        "position_ids": positions,
    }, after


def _plan(compression: Compression, kwargs: dict, past: CacheState | None = None) -> PromptPlan:
    ids, mask, positions = (kwargs.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    if ids is None:
        raise ValueError(
            "input_ids are missing: a compressed model finds the visual tokens by them "
            "(inputs_embeds may be given beside them)"
        )
    if isinstance(mask, dict):
        raise ValueError("attention_mask is a dict of ready masks: give a 2D or 4D mask, and use a DynamicCache")
    grids = {kind: kwargs.get(f"{kind}_grid_thw") if _is_given(kind, kwargs) else None for kind in (IMAGE, VIDEO)}
    for kind, grid in grids.items():
        if grid is None and _is_given(kind, kwargs):
            raise ValueError(f"{_PIXELS[kind]} are given without {kind}_grid_thw")
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
        kwargs.get(_LEFT),
    )


def _features(self, kwargs: dict) -> torch.Tensor | None:
    """[V, C] features of all images, then all videos.

    The tower is called itself: get_image_features would split its output by image, for which the host has to wait.
    """
    parts = []
    for kind in (IMAGE, VIDEO):
        if _encoded(kind, kwargs) is not None:
            parts += _encoded(kind, kwargs).pooler_output
        elif _is_given(kind, kwargs):
            pixels = kwargs[_PIXELS[kind]].to(self.visual.dtype)
            parts.append(self.visual(pixels, grid_thw=kwargs[f"{kind}_grid_thw"], return_dict=True).pooler_output)
    return torch.cat(parts) if parts else None


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
    return state.cropped(cache.get_seq_length())
