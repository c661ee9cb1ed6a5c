"""One batch through generate(), with its cost: seconds to the first token and in total, tokens kept, KV bytes.

Decoding follows this package's rules and the settings asked for by name (decoding.py), not the checkpoint's own ones.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ppe_npu.backends import device as devices
from ppe_npu.compat import drop_unknown_types, output_cache
from ppe_npu.data.inputs import to_device
from ppe_npu.evaluation.decoding import check_ids, generation_config
from ppe_npu.inspect.report import kv_bytes
from ppe_npu.models.failing import check_alone


@dataclass(frozen=True)
class Generated:
    """Answers to a batch of B prompts, and their cost.

    Attributes:
        answers: B texts without special tokens.
        new_tokens: B numbers of generated tokens, the end token included.
        tokens_before, tokens_after: B numbers: visual tokens in the prompt, and those that the LLM processed, averaged
            over its layers, so that compression in late layers counts only for those.
        prompt_kv_bytes: B numbers: bytes of the keys and values of the prompt's tokens after compression, in all
            layers, without padding and answer.
        prefill_seconds: time until every prompt had its first token.
        seconds: total time.
        work: processor seconds until the first token and in total, which other programs do not lengthen; None unless
            the model runs on the host.
        kv_bytes: the size of the whole batch's keys and values at the end, padding and answers included.
        peak_memory: peak bytes of the device's allocator, weights included; None on the CPU.
    """

    answers: list[str]
    new_tokens: list[int]
    tokens_before: list[int]
    tokens_after: list[float]
    prompt_kv_bytes: list[int]
    prefill_seconds: float
    seconds: float
    kv_bytes: int
    peak_memory: int | None = None
    work: tuple[float, float] | None = None


class FirstToken:
    """A stopping criterion that never stops; it records the time of the first token."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.at, self.worked = device, None, 0.0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self.at is None:
            devices.synchronize(self.device)
            self.at, self.worked = time.perf_counter(), time.process_time()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def generate(
    model: Any,
    processor: Any,
    inputs: Mapping[str, torch.Tensor],
    max_new_tokens: int,
    streamer: Any = None,
    generation: Mapping[str, Any] | None = None,
) -> Generated:
    """Answer a left-padded batch, greedily unless `generation` says otherwise.

    Args:
        inputs: what build_inputs returns, on any device.
        max_new_tokens: tokens per answer, at most.
        streamer: a transformers streamer that receives every token (for a batch of one without beams).
        generation: settings from ppe_npu.evaluation.decoding.generation_settings; None: greedy search.

    Raises:
        InputError: `generation` has a token id that the model lacks; or the model fails without compression, too.
    """
    inputs = to_device(inputs, model.device, model.dtype)
    end, pad = end_tokens(model, processor.tokenizer), processor.tokenizer.pad_token_id
    asked = generation or {}
    rules = generation_config(dict(asked), max_new_tokens, eos_token_id=end, pad_token_id=pad)
    clock = FirstToken(model.device)
    devices.reset_peak_memory(model.device)
    devices.synchronize(model.device)
    started, begun = time.perf_counter(), time.process_time()
    out = _run(model, inputs, rules, clock, streamer)
    devices.synchronize(model.device)
    seconds, worked = time.perf_counter() - started, time.process_time() - begun
    new, beams = out.sequences[:, inputs["input_ids"].shape[1] :].tolist(), asked.get("num_beams", 1)
    new = [row[: _length(row, end, pad if beams > 1 else None)] for row in new]
    before, after = visual_tokens(model, inputs, beams)
    return Generated(
        answers=processor.tokenizer.batch_decode(new, skip_special_tokens=True),
        new_tokens=list(map(len, new)),
        tokens_before=before,
        tokens_after=after,
        prompt_kv_bytes=prompt_kv_bytes(model, inputs, before, output_cache(out), beams),
        prefill_seconds=(clock.at or time.perf_counter()) - started,
        seconds=seconds,
        kv_bytes=kv_bytes(output_cache(out)),
        peak_memory=devices.peak_memory(model.device),
        work=((clock.worked - begun if clock.at else worked), worked) if devices.on_cpu(model.device) else None,
    )


def _run(model: Any, inputs: Mapping[str, torch.Tensor], rules: Any, clock: FirstToken, streamer: Any) -> Any:
    """The output of transformers' generate(); a failure is traced to the model alone if that fails, too."""
    check_ids(vars(rules), model.get_input_embeddings().weight.shape[0])
    try:
        return _decoded(model, inputs, rules, clock, streamer)
    except Exception as error:
        if clock.at is None:  # otherwise the prompt went through, so the model is able to process it
            first = generation_config({}, 1, eos_token_id=rules.eos_token_id, pad_token_id=rules.pad_token_id)
            check_alone(model, lambda: _decoded(model, inputs, first, clock, None), error)
        raise


def _decoded(model: Any, inputs: Mapping[str, torch.Tensor], rules: Any, clock: FirstToken, streamer: Any) -> Any:
    from transformers import StoppingCriteriaList

    # fp32 is to be exact, but by default CUDA and Ascend round the inputs of a convolution.
    exact = devices.exact_matmul() if model.dtype == torch.float32 else contextlib.nullcontext()
    with exact, _only(model, rules):
        return model.generate(
            **drop_unknown_types(model, inputs),
            generation_config=rules,
            stopping_criteria=StoppingCriteriaList([clock]),
            streamer=streamer,
        )


@contextlib.contextmanager
def _only(model: Any, rules: Any) -> Iterator[None]:
    """Hide the checkpoint's own settings, from which generate() would fill in values that `rules` leaves open."""
    own = model.generation_config
    model.generation_config = rules
    try:
        yield
    finally:
        model.generation_config = own


def _length(row: list[int], end: list[int], pad: int | None) -> int:
    """Number of tokens of an answer, up to and including its end token; without one, trailing `pad` tokens, which
    beam search adds, are not counted (pad: their id, or None)."""
    for at, token in enumerate(row):
        if token in end:
            return at + 1
    return max((at + 1 for at, token in enumerate(row) if token != pad), default=0)


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer: the checkpoint's and tokenizer's own, and <|im_end|>, which some checkpoints omit."""
    named = model.generation_config.eos_token_id
    named = [] if named is None else [named] if isinstance(named, int) else list(named)
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    extra = [token for token in (turn_end, tokenizer.eos_token_id) if token not in (None, tokenizer.unk_token_id)]
    return sorted({*named, *extra})


def visual_tokens(model: Any, inputs: Mapping[str, torch.Tensor], beams: int = 1) -> tuple[list[int], list[float]]:
    """(tokens_before, tokens_after) of Generated for the last batch, in which each prompt had `beams` adjacent rows."""
    before = (inputs["mm_token_type_ids"] > 0).sum(1).tolist()
    compression = getattr(model, "compression", None)
    if compression is None or compression.report is None:
        return before, list(before)
    after = [0.0] * len(before)
    for span in compression.report.spans:
        after[span.sample // beams] += span.mean / beams
    return before, after


def prompt_kv_bytes(
    model: Any, inputs: Mapping[str, torch.Tensor], before: list[int], cache: Any, beams: int = 1
) -> list[int]:
    """Generated.prompt_kv_bytes for the last batch, for one beam of each prompt. Bytes per token in a layer are derived
    from the layer's cache."""
    compression = getattr(model, "compression", None)
    spans = () if compression is None or compression.report is None else compression.report.spans
    spans = [span for span in spans if span.sample % beams == 0]
    prompts = inputs["attention_mask"].sum(1).tolist()
    found = [0] * len(prompts)
    for number, layer in enumerate(cache.layers):
        if not hasattr(layer, "keys"):  # linear attention, whose state does not grow with the prompt
            continue
        token = sum(part.nbytes // (part.shape[0] * part.shape[2]) for part in (layer.keys, layer.values))
        kept = [prompt - (visual if spans else 0) for prompt, visual in zip(prompts, before)]
        for span in spans:
            kept[span.sample // beams] += span.layers[number]
        found = [total + token * tokens for total, tokens in zip(found, kept)]
    return found
