"""The decoder of a vision-language model, run stage by stage: a stage's layers see the tokens that its merge left.

transformers gives all layers one mask and one rotary table. Here each stage has its own, because it has fewer tokens;
its layers' caches are shorter, too. Merges run between layers, outside the part that gradient checkpointing runs twice.
"""

import contextlib
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast, MoeModelOutputWithPast

from ppe_npu.compat import cache_argument, cache_of, cache_position, decoder_cache, layer_causal_mask, run_linear
from ppe_npu.config import CompressionConfig
from ppe_npu.engine.masks import key_bias, proportional_mask
from ppe_npu.engine.packing import Unpacked
from ppe_npu.engine.run import Prefill, Run
from ppe_npu.errors import InputError
from ppe_npu.models.forward_pass import KEYWORD, NOTHING, ForwardPass
from ppe_npu.models.fused import adds_to_keys
from ppe_npu.models.known import has_attention
from ppe_npu.models.looking import Looking
from ppe_npu.models.seam import is_overridden, original

_TABLE = "position_embeddings"  # the argument of a layer


def staged_forward(self, **kwargs):
    """Replaces a text model's forward. It reads inputs_embeds [B, L, C], the KV cache, use_cache, output_hidden_states,
    output_attentions, output_router_logits, and the pass (forward_pass.py), whose run has the positions and masks."""
    run: Run | None = kwargs.get(KEYWORD, NOTHING).run
    if run is None:  # called directly
        return original(self, "forward")(**kwargs)
    hidden, cache = kwargs["inputs_embeds"], cache_of(kwargs)
    if hidden is None:
        hidden = self.embed_tokens(kwargs["input_ids"])
    use_cache = self.config.use_cache if kwargs.get("use_cache") is None else kwargs["use_cache"]
    if self.training and getattr(self.layers[0], "gradient_checkpointing", False):
        use_cache, cache = False, None
    if use_cache or cache is not None:
        cache = decoder_cache(self, cache)
    wanted = _wanted(self, kwargs, "output_hidden_states")
    states = [hidden]  # the first layer's input, and every layer's output
    inputs: dict[str, Any] = {}  # no dict[str, Any](): torch.compile does not trace that
    with _outputs_of(_attending(self, kwargs), 1) as attentions, _outputs_of(_routers(self, kwargs, run), 0) as routers:
        for index, layer in enumerate(self.layers):
            for stage in _stages_from(run, index):
                enter = _lay_out_and_enter if run.is_late(stage) else type(run).enter
                hidden = enter(run, stage, hidden, _looking(self, hidden, inputs, run, stage - 1, index))
                inputs = _stage_inputs(self, run, stage, hidden, cache, index, inputs) | {"use_cache": use_cache}
            run.pass_by(index, _looking(self, hidden, inputs, run, stage, index))
            states.append(_run_layer(layer, hidden, inputs, run, stage))
            hidden = run.leave(index, states[-1])
            if not wanted:
                states.clear()
    hidden = self.norm(hidden)
    # The output of a mixture of experts must have the field router_logits, even if it is None.
    made = MoeModelOutputWithPast if is_routed(self) else BaseModelOutputWithPast
    more: dict[str, Any] = {} if routers is None else {"router_logits": tuple(routers)}
    return made(
        last_hidden_state=hidden,
        hidden_states=_shown_states(wanted, states, hidden),
        attentions=None if attentions is None else tuple(attentions),
        **cache_argument(made, cache),
        **more,
    )


@torch.compiler.disable  # it works on host arrays
def _lay_out_and_enter(run: Run, stage: int, hidden: torch.Tensor, look: Looking | None) -> torch.Tensor:
    return run.enter(stage, hidden, look)


def _stages_from(run: Run, layer: int) -> list[int]:
    """The stages that begin with this layer. Two may begin with layer 0: the first one, and one that merges there."""
    return [stage for stage, first in enumerate((0, *run.layers)) if first == layer]


def _stage_inputs(model, run: Run, stage: int, hidden: torch.Tensor, cache, layer: int, before: dict) -> dict:
    """The arguments of a stage's layers, the first of which is `layer`; the mask is that of attention. before: the
    arguments of the stage before, whose rotary table is reused if the positions are the same."""
    past, sizes = run.past_length(stage), run.sizes[stage]
    again = stage > 0 and run.rows[stage] is run.rows[stage - 1]
    end = next((first for first in run.layers if first > layer), len(model.layers))
    sized = next((number for number in range(layer, end) if has_attention(model.layers[number])), None)
    segments, unpacked, real, batch = run.segments[stage], None, run.masks[stage], hidden
    table = before[_TABLE] if again else model.rotary_emb(hidden, run.rows[stage])
    if segments is not None and segments.places is None and not all(map(has_attention, model.layers)):
        unpacked, segments = Unpacked.of(segments.borders, hidden.device), None
        real, batch = unpacked.real, unpacked.batch(hidden)
        table = table if again else tuple(map(unpacked.batch, table))
    mask, bias = None if sized is None else layer_causal_mask(model.config, batch, real, cache, sized, past), None
    if sizes is not None and sized is not None:
        if adds_to_keys(model, mask, hidden):
            bias = key_bias(sizes, hidden.dtype, 0 if mask is None else mask.shape[-1])
        else:
            room = cache.layers[sized].max_cache_len if cache is not None and cache.is_compileable else 0
            mask = proportional_mask(mask, sizes, hidden, room)
    return {
        "attention_mask": mask,
        _TABLE: table,
        "position_ids": None,
        KEYWORD: ForwardPass(segments=segments, unpacked=unpacked, key_bias=bias),
        **cache_argument(type(model.layers[layer]).forward, cache),
        **cache_position(type(model.layers[layer]).forward, past, hidden),
    }


def _run_layer(layer, hidden: torch.Tensor, inputs: dict, run: Run, stage: int) -> torch.Tensor:
    """[B, L, C] output of a layer for hidden [B, L, C]. A layer with linear attention gets, instead of a mask, [B, L]
    which tokens are real. In a model with such layers, every layer sees a packed row as a batch."""
    unpacked, mask = inputs[KEYWORD].unpacked, run.masks[stage]
    if unpacked is not None:
        hidden, mask = unpacked.batch(hidden), unpacked.real
    if has_attention(layer):
        output = layer(hidden, **inputs)
    else:
        real = None if mask is None else mask[:, -hidden.shape[1] :]
        output = run_linear(layer, hidden, inputs | {"attention_mask": real}, run.past_length(stage))
    output = output[0] if isinstance(output, tuple) else output
    return output if unpacked is None else unpacked.row(output)


def _looking(model, hidden: torch.Tensor, inputs: dict, run: Run, stage: int, index: int) -> Looking | None:
    """What methods use to look into the layer `index`, as if it were given the tokens of `stage`; None before the first
    stage, and where nothing is merged. inputs: those of that stage's layers."""
    if stage < 0 or not run.merges:
        return None
    cache, table, unpacked = cache_of(inputs), inputs[_TABLE], inputs[KEYWORD].unpacked
    table = table if unpacked is None else tuple(map(unpacked.row, table))
    layers = getattr(cache, "layers", ())
    past = layers[index] if index < len(layers) else None
    pairs = model.rotary_emb.pairs
    return Looking(model.layers[index], hidden, table, run, stage, past, pairs)


def _wanted(model, kwargs: dict, name: str):
    value = kwargs.get(name)
    return getattr(model.config, name, False) if value is None else value


def _shown_states(wanted, states: list[torch.Tensor], last: torch.Tensor) -> tuple[Any, ...] | None:
    """Hidden states as transformers returns them: all, the last one after the norm; or, for a list of layers, their
    outputs, and None for the others."""
    if not wanted:
        return None
    shown = [*states[:-1], last]
    if not isinstance(wanted, (list, tuple, set)):
        return tuple(shown)
    return tuple(state if layer in wanted else None for layer, state in enumerate(shown[1:]))


def _attending(model, kwargs: dict) -> list[torch.nn.Module] | None:
    """The attention modules of the layers, if attention weights are wanted (sdpa returns none)."""
    if not _wanted(model, kwargs, "output_attentions"):
        return None
    if any(is_overridden(layer, "forward") for layer in model.layers):
        raise InputError("output_attentions=True with fastv's released=true, whose layer returns none: leave one out")
    return [layer.self_attn for layer in model.layers if has_attention(layer)]


def is_routed(model) -> bool:
    """Whether a text model is a mixture of experts whose router logits transformers can record."""
    return _recorder(model) is not None


def _recorder(model):
    """transformers' record for router logits: the routers' class, and which part of their output; or None."""
    return (getattr(model, "_can_record_outputs", None) or {}).get("router_logits")


def check_routers(model, kwargs: dict, config: CompressionConfig) -> None:
    """Raise InputError where the router logits of a text model are wanted, but tokens are merged."""
    wanted = is_routed(model) and _wanted(model, kwargs, "output_router_logits")
    if wanted and not config.keeps_all:
        raise InputError(
            "output_router_logits=True: a model that merges tokens returns neither router logits nor a load-balancing "
            "loss; use the dense preset"
        )


def _routers(model, kwargs: dict, run: Run) -> list[torch.nn.Module] | None:
    """The routers of a mixture of experts, if their logits are wanted; else None."""
    recorder = _recorder(model)
    if recorder is None or not _wanted(model, kwargs, "output_router_logits"):
        return None
    if isinstance(run, Prefill):
        check_routers(model, kwargs, run.config)
    return [module for module in model.modules() if isinstance(module, recorder.target_class)]


@contextlib.contextmanager
def _outputs_of(modules: list[torch.nn.Module] | None, part: int):
    """A context with a list that collects this part of each module's output, if it exists; None without modules."""
    if modules is None:
        yield None
        return
    seen: list[torch.Tensor] = []

    def note(module, given, output):
        parts = output if isinstance(output, tuple) else (output,)
        seen.extend(tensor for tensor in parts[part : part + 1] if tensor is not None)

    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
