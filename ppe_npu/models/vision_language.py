"""The part that the Qwen-VL families share: from a model's arguments through the engine to its decoder.

A family's model is a transformers class for conditional generation with `model.visual` (the vision tower) and
`model.language_model` (embed_tokens, layers, norm, rotary_emb).

Modifications (on the given instance only):
* ...ForConditionalGeneration.forward: arranges labels in the output's columns before the loss (alignment.py); the
  output carries them as `labels`. A pass with skip_logits gives only the loss, by the head's own call (see loss.py).
* ...Model.forward: finds the visual tokens in the ids, computes the prompt's (t, h, w) itself (transformers changed
  them between versions, and silently drops M-RoPE when mm_token_type_ids is missing), merges the vision tower's
  features, and hands the language model the compressed prompt. Later steps take their mask and positions from the
  tokens that were kept; that state travels with the cache.
* prepare_inputs_for_generation: when a conversation goes on, passes only the columns that the cache has not seen
  (counted before compression) and the images and videos in them. Prompts are padded on the left, whatever side they
  were padded on before, unless nothing is merged. A step into a static cache is given only its token, because the
  state that grows is on the device (engine/cache.py).
* _expand_inputs_for_generation: repeats images and videos by sample; newer transformers would repeat the tower's output
  instead, and pass the model no grids. So _supports_mm_encoder_outputs returns False.
* _get_candidate_generator: refuses speculative decoding where it would miscount columns.
* _prefill: prefills a prompt as a whole. init_continuous_batching: refused, because it passes the model no images.
* _valid_auto_compile_criteria: generate() with a static cache compiles only if a compile_config asks for it. By default
  transformers records CUDA graphs, which are untested on compressed models.
* _prepare_position_ids_for_generation: returns None, so that any position_ids that arrive are the caller's. If every
  token is kept, returns transformers' own for a prompt padded on the right, and ours for long videos (numbering.py).
* language_model.rotary_emb: takes any number of position rows (3 or 3K) and makes one table for all layers.
* the vision tower and its blocks, where a method works inside it: see tower_blocks.py.
* a decoder layer, where FastV runs as published: see seeing_ahead.py.
* language_model.forward, where layers merge on entry, take the tower's features or attention counts what merged tokens
  stand for (proportional_attention): runs the layers stage by stage.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ppe_npu.backends import segments
from ppe_npu.backends.common import IGNORED
from ppe_npu.backends.compiling import is_traced
from ppe_npu.backends.device import Stopwatch
from ppe_npu.compat import cache_of, cache_position, output_cache
from ppe_npu.engine.cache import CacheState, FixedState, kv_bytes
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.rotary import RowRotaryEmbedding
from ppe_npu.engine.rounds import as_tensor
from ppe_npu.engine.run import Run
from ppe_npu.engine.spans import IMAGE, VIDEO
from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method
from ppe_npu.models.alignment import aligned, arrange_loss_arguments, as_the_prompt, whole_labels
from ppe_npu.models.arguments import (
    CONSUMED,
    attention_mask_of,
    is_given,
    make_plan,
    take_ready_mask,
    tower_features,
    untouched_tower,
)
from ppe_npu.models.caches import continued, is_scored, keep_state, state_of
from ppe_npu.models.decoder import check_routers, is_routed, staged_forward
from ppe_npu.models.forward_pass import KEYWORD, NOTHING, WISHES, ForwardPass
from ppe_npu.models.fused import check_key_bias, takes_segments
from ppe_npu.models.generation import install_generation
from ppe_npu.models.known import check_decoder, has_attention
from ppe_npu.models.loss import loss_only
from ppe_npu.models.seam import original, override, own_submodules, restore_methods
from ppe_npu.models.seeing_ahead import detach_ahead, install_ahead, uninstall_ahead
from ppe_npu.models.tower_blocks import GRIDS

_DELTAS = "_ppe_saved_rope_deltas"


def decoder_layers(config) -> int:
    """The number of decoder layers of a model with this config."""
    return config.text_config.num_hidden_layers


def install(model, compression: Compression, staged: bool = False, said: tuple[str, ...] = ()) -> None:
    """Put the modifications on a model.

    Args:
        staged: run the decoder stage by stage in any case, because features of the vision tower enter its first layers,
            or because its own forward does not take rows of positions.
        said: arguments to add to the signature of forward, because generate() refuses those that are not in it.

    Raises:
        InputError: a rotary embedding, layer or attention that the modifications do not fit, or modules that are shared
            with another compressed model.
    """
    text = model.model.language_model
    if isinstance(text.rotary_emb, RowRotaryEmbedding):
        raise InputError(
            "this model shares its decoder with another compressed model, because one is a copy.copy of the other: "
            "restore() that model first, or use copy.deepcopy"
        )
    compression.linear, compression.routed = not all(map(has_attention, text.layers)), is_routed(text)
    compression.staged = staged or compression.stages > 1 or compression.config.proportional_attention
    check_decoder(text, compression.staged, len(compression.channels))
    if compression.config.proportional_attention:
        check_key_bias(text)
    table = compression.config.rule.table
    rotary = RowRotaryEmbedding(text.rotary_emb, compression.channels, compression.pairs, table)
    vars(model)["compression"] = compression
    vars(model.model)["compression"] = compression
    if hasattr(model.model, "rope_deltas"):
        vars(model.model)[_DELTAS] = model.model.rope_deltas
    # Older transformers' generate() refuses mm_token_type_ids, newer processors make them: accept them in both.
    override(model, "forward", causal_lm_forward, show=("mm_token_type_ids", *said))
    install_generation(model)
    override(model.model, "forward", model_forward)
    if compression.inside is not None and compression.vision.tower_blocks:
        GRIDS.install(model.model, compression)
    if compression.staged:
        override(text, "forward", staged_forward)
    install_ahead(text, compression.config.methods)
    text.rotary_emb = rotary


def uninstall(model) -> None:
    """Take the modifications off."""
    text = model.model.language_model
    if isinstance(text.rotary_emb, RowRotaryEmbedding):  # a shallow copy's may be restored already, with its original
        text.rotary_emb = text.rotary_emb.original
    GRIDS.uninstall(model.model)
    uninstall_ahead(text)
    for module in (text, model.model, model.lm_head, model):
        restore_methods(module)
        vars(module).pop("compression", None)
    if _DELTAS in vars(model.model):
        model.model.rope_deltas = vars(model.model).pop(_DELTAS)  # generate() may have overwritten it


def detach(model) -> None:
    """Give a shallow copy of a compressed model its own copies of the modified modules, so that restoring it does not
    change the original."""
    own_submodules(model, "model", "lm_head")
    own_submodules(model.model, "language_model")
    own_submodules(model.model.language_model)
    detach_ahead(model.model.language_model)
    GRIDS.detach(model.model)


def causal_lm_forward(self, labels=None, **kwargs):
    take_ready_mask(kwargs)
    if self.compression.routed:
        check_routers(self.model.language_model, kwargs, self.compression.config)
    wishes = {name: kwargs.pop(name) for name in WISHES if name in kwargs}
    if wishes:
        kwargs[KEYWORD] = replace(kwargs.get(KEYWORD, NOTHING), **wishes)
    if labels is None:
        return original(self, "forward")(labels=labels, **kwargs)
    if kwargs.get(KEYWORD, NOTHING).skip_logits:
        return loss_only(self, labels, kwargs, _planned_labels)
    arrange, late = _planned_labels(self, labels, kwargs)
    if late:
        return _late_loss(self, arrange, kwargs)
    labels = arrange()
    output = original(self, "forward")(labels=labels, **kwargs)
    if not isinstance(output, tuple):
        output.labels = labels
    return output


def _planned_labels(model, labels: torch.Tensor, kwargs: dict) -> tuple[Callable[[], torch.Tensor], bool]:
    """A function that arranges the labels, and the loss's other arguments, in the output's columns; and whether it can
    be called only after the pass. The prompt's plan is put into kwargs."""
    state = state_of(model.compression, kwargs)
    if not _compresses(state, kwargs):
        return lambda: labels, False
    whole, columns = whole_labels(labels, kwargs)
    past = None if state is None else state.settled()
    plan, scored = make_plan(model.model, model.compression, kwargs, past, whole), is_scored(model, kwargs)
    if isinstance(columns, torch.Tensor) and not (plan.as_given or scored):
        raise InputError(
            "logits_to_keep is a tensor of the compressed output's columns, but labels are in the prompt's: call with "
            "use_cache=False, so that outputs are in the prompt's columns, too, or give a number"
        )
    kwargs[KEYWORD] = replace(kwargs.get(KEYWORD, NOTHING), plan=plan, scored=scored)

    def arrange() -> torch.Tensor:
        arranged = aligned(plan, whole, True, IGNORED) if scored else plan.labels(whole)
        arrange_loss_arguments(plan, whole, arranged, kwargs)
        return arranged[:, columns]

    return arrange, plan.ahead is not None


def _late_loss(model, arrange: Callable[[], torch.Tensor], kwargs: dict):
    """A forward pass whose loss is computed afterwards, because only then the labels' columns are known."""
    return_dict = kwargs.pop("return_dict", None)
    output = original(model, "forward")(labels=None, **kwargs, return_dict=True)
    labels = arrange()
    given = {name: kwargs[name] for name in ("num_items_in_batch", "shift_labels") if name in kwargs}
    words = model.config.text_config.vocab_size
    loss = model.loss_function(logits=output.logits, labels=labels, vocab_size=words, **given)
    output = type(output)(loss=loss, **output)  # loss comes first, also in the tuple
    if return_dict is False:
        return output.to_tuple()
    output.labels = labels
    return output


def _compresses(state: CacheState | FixedState | None, kwargs: dict) -> bool:
    """Whether there is something to compress: a first prompt, or new images or videos in a later turn."""
    return state is None or is_given(IMAGE, kwargs) or is_given(VIDEO, kwargs)


def model_forward(self, **kwargs):
    take_ready_mask(kwargs)
    packed = kwargs.get(KEYWORD, NOTHING).packed
    if packed:
        _check_packed(self.language_model, kwargs, self.compression.config.methods)
        if self.compression.config.proportional_attention:
            check_key_bias(self.language_model, packed=True)
    state, places = state_of(self.compression, kwargs), None
    compresses = _compresses(state, kwargs)
    if compresses:
        past = None if state is None else state.settled()
        inputs, run, places = _prefill(self, past, kwargs, torch.compiler.is_compiling())
    else:
        assert state is not None, "without a cache there is a prompt to compress"
        inputs, run = continued(self.compression, kwargs, state)
    inputs |= {"attention_mask": run.masks[0], "position_ids": run.rows[0]}
    if packed:
        kwargs["use_cache"] = False
    if self.compression.staged:
        inputs[KEYWORD] = ForwardPass(run=run)
    else:
        if run.segments[0] is not None:
            inputs[KEYWORD] = ForwardPass(segments=run.segments[0])
        forward, hidden = type(self.language_model).forward, next(iter(inputs.values()))
        inputs |= cache_position(forward, run.past_length(0), hidden)
    return_dict = kwargs.pop("return_dict", None)
    for name in CONSUMED:
        kwargs.pop(name, None)
    output = original(self, "forward")(**inputs, **kwargs, return_dict=True)
    if compresses and run.plan.in_tower is not None:
        run.plan.in_tower.decoding.mark()
    if compresses and places is None and self.compression.last_scored and not run.plan.as_given:
        places = as_tensor(run.plan.places_of_columns).to(run.rows[0].device)  # late counts: known only now
    if places is not None:
        output.last_hidden_state = as_the_prompt(output.last_hidden_state, places)
    cache = output_cache(output)
    if cache is not None and run.state is not state:
        keep_state(cache, run.state)
        if compresses:
            self.compression.kv_bytes = kv_bytes(cache)
    return output.to_tuple() if return_dict is False else output


def _check_packed(text, kwargs: dict, methods: Sequence[Method]) -> None:
    """Raise InputError for arguments, methods or attention that a row of packed samples does not allow."""
    for method in methods:
        if method.first_only:
            raise InputError(
                f"packed with {method.name} released=true, which counts images from the row's start: leave released out"
            )
    mask = kwargs.get("attention_mask")
    if cache_of(kwargs) is not None or (mask is not None and mask.ndim == 4):
        raise InputError("packed is for training, without a cache or a 4D attention_mask: leave these out")
    if all(map(has_attention, text.layers)) and not takes_segments(text):
        raise InputError(
            "packed needs attention by ppe_npu.backends: load the model with attn_implementation='sdpa' and call "
            "ppe_npu.models.fused.fuse(model)"
        )


@torch.compiler.disable  # it plans on the host, where the tower reads its grids, too
def _prefill(self, past: CacheState | None, kwargs: dict, compiling: bool) -> tuple[dict, Run, torch.Tensor | None]:
    """The decoder's inputs, the pass through it, and the output's place for each prompt column ([B, S], or None)."""
    mask, linear = attention_mask_of(self, kwargs), self.compression.linear
    if mask is not None and mask.ndim == 4 and linear:
        raise InputError("attention_mask is 4D: linear attention supports only padding; give [batch, tokens]")
    this, embeds = kwargs.get(KEYWORD, NOTHING), kwargs.get("inputs_embeds")
    plan = this.plan or make_plan(self, self.compression, kwargs, past)
    device = (kwargs["input_ids"] if embeds is None else embeds).device
    on = plan.on(device)  # upload everything now, before the tower keeps the device busy
    scored = self.compression.last_scored = is_scored(self, kwargs)
    known = scored and plan.ahead is None and not plan.as_given
    places = as_tensor(plan.places_of_columns).to(device) if known else None
    if plan.layout.spans and _DELTAS in vars(self) and (this.left or kwargs.get("position_ids") is None):
        # As transformers, which outside generate() sets none for given position_ids; cloned, because plans are shared.
        self.rope_deltas = on.deltas.clone()
    parts = [stage.segments for stage in on.stages if stage.segments is not None]
    apart = bool(parts or plan.ahead) and not compiling
    apart = apart and takes_segments(self.language_model) and not is_traced(self.language_model)
    for kept in parts if apart else ():
        segments.prepare(list(kept.borders), device, self.get_input_embeddings().weight.dtype)
    # The tower runs before the embeddings, even without images: ZeRO-3 needs the same order in all processes.
    features = tower_features(self, plan, kwargs)
    unseen, text = 0.0 if plan.layout.spans else untouched_tower(self), on.before(0).text
    if embeds is None:
        text_embeds = self.get_input_embeddings()(kwargs["input_ids"].flatten().index_select(0, text))
    else:
        text_embeds = embeds.flatten(0, 1).index_select(0, text)
    text_embeds = text_embeds + unseen if not plan.layout.spans else text_embeds
    fixed = getattr(cache_of(kwargs), "is_compileable", False)
    sdpa = self.language_model.config._attn_implementation == "sdpa" and not linear and not fixed
    run, inputs_embeds = self.compression.prefill(
        plan,
        text_embeds,
        features.tokens,
        mask,
        past,
        features.deepstack,
        ready_mask=sdpa,
        apart=apart and not fixed,
        tower=features.tower,
    )
    if plan.in_tower is not None:
        plan.in_tower.decoding = Stopwatch(device)
    return {"inputs_embeds": inputs_embeds}, run, places
