"""Answers lmms-eval's requests with a compressed model and this package's own preprocessing.

This module handles lmms-eval's requests but uses none of its classes; lmms_models.py wraps it in those.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ppe_npu.backends import device as devices
from ppe_npu.backends.common import IGNORED
from ppe_npu.checkpoints.generation_defaults import of_checkpoint
from ppe_npu.checkpoints.loading import DTYPES, check_compression, load_model, load_processor, quiet_transformers
from ppe_npu.compat import drop_unknown_types, ensure_mm_token_type_ids
from ppe_npu.data.inputs import PixelCache, build_inputs, encode, pad, to_device, visual_ids
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.turns import PLACEHOLDERS, user_turn
from ppe_npu.data.videos import load_video
from ppe_npu.errors import InputError
from ppe_npu.evaluation import protocols
from ppe_npu.evaluation.decoding import notice
from ppe_npu.evaluation.generation import Generated, generate
from ppe_npu.models import compress
from ppe_npu.training.args import as_compression
from ppe_npu.utils.memory import ran_out

_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tiff", ".webp")
_CLIP = "clip"  # key of a video's (start, end) in seconds; either may be None
_DEFAULT_TOKENS = 128  # new tokens if a task does not say how many
_PARAGRAPH = "\n\n"  # lmms-eval's default stop, which its own Qwen models ignore, too


@dataclass
class Answerer:
    """A compressed model that answers batches of conversations.

    Attributes:
        batch_size: how many conversations go through the model together.
        sampling: the rule that chooses a video's frames.
        done: a Generated, with its cost, of every batch. new_tokens: numbers of tokens of all answers, in their order.
    """

    model: Any
    processor: Any
    batch_size: int
    sampling: VideoSampling
    cache: PixelCache = field(default_factory=PixelCache)
    done: list[Generated] = field(default_factory=list)
    new_tokens: list[int] = field(default_factory=list)

    @classmethod
    def load(
        cls,
        pretrained: str,
        compression: str | None = None,
        ratio: float | None = None,
        k: int | None = None,
        device: str = "auto",
        dtype: str | None = None,
        batch_size: int | str = 1,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        nframes: int | None = None,
        fps: float | None = None,
        positions: str | None = None,
        max_num_frames: int | None = None,
        total_pixels: int | None = None,
        protocol: str = protocols.CHECKPOINT,
        **fields: Any,
    ) -> Answerer:
        """Make an Answerer from lmms-eval's --model_args, --device and --batch_size.

        Args:
            pretrained: checkpoint folder or hub id.
            compression: a preset, a method or a JSON file; None: the checkpoint's own, else ppe.
            ratio, positions, k, fields: override those of the compression; `fields` are a method's settings.
            dtype: fp32 or bf16; None: the protocol's, else fp32.
            min_pixels, max_pixels, nframes, fps: as for `ppe-npu eval`.
            max_num_frames, total_pixels: lmms-eval's names for the most frames of a video and Qwen's budget of pixels.
            protocol: gives the sizes, frames and dtype that are not asked for; prompts and rules are the task's.

        Raises:
            InputError: an argument is impossible; this is raised before the weights are read.
        """
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InputError(f"batch_size={batch_size}: give a whole number, at least 1")
        rules, where = protocols.load(protocol), devices.resolve(device)
        dtype = _dtype(dtype, rules, where)
        bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels, "total_pixels": total_pixels}
        sampling = rules.sampling(**bounds, **_frames(max_num_frames, rules, fps, nframes))
        config = as_compression(compression or _own(pretrained), ratio=ratio, positions=positions, k=k, **fields)
        quiet_transformers()
        config = check_compression(pretrained, config)[0]
        processor = load_processor(pretrained, *rules.pixels(min_pixels, max_pixels))
        _say(notice(of_checkpoint(pretrained), {}))
        return cls(compress(load_model(pretrained, where, dtype), config), processor, int(batch_size), sampling)

    def answers(self, conversations: Sequence[Sequence[Mapping]], options: Mapping[str, Any]) -> list[str]:
        """Greedy answers to one batch, each cut before the first of the task's stops. A batch that does not fit into
        the device's memory is halved, and later batches have the smaller size.

        Args:
            options: a task's generation_kwargs, of which max_new_tokens and until are used.

        Raises:
            InputError: the task asks for sampling or beam search.
        """
        stops, most = _stops(options), int(options.get("max_new_tokens") or _DEFAULT_TOKENS)

        def answered(part: Sequence[Sequence[Mapping]]) -> list[str]:
            opened = [[self._opened(message) for message in one] for one in part]
            inputs = build_inputs(self.processor, opened, sampling=self.sampling, cache=self.cache)
            done = generate(self.model, self.processor, inputs, most)
            self.done.append(done)
            self.new_tokens += done.new_tokens
            return [_cut(answer, stops) for answer in done.answers]

        return self._fitting(answered, conversations)

    def _fitting(self, work: Callable[..., list], *lists: Sequence[Any]) -> list:
        """work(*lists), a list with a result per item; the lists are halved if they do not fit into memory."""
        try:
            return work(*lists)
        except Exception as error:  # out-of-memory errors have a different class on each device
            if len(lists[0]) == 1 or not ran_out(error):
                raise
        # Outside the except clause the error is freed, and with it the tensors that its traceback held.
        devices.release_memory(self.model.device)
        half = self.batch_size = len(lists[0]) // 2
        first = self._fitting(work, *(part[:half] for part in lists))
        return [*first, *self._fitting(work, *(part[half:] for part in lists))]

    def _opened(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message with its clips loaded, because each has its own bounds, while a batch has one rule for frames."""
        maker = self.processor.video_processor
        items = [
            {"type": "video", "video": load_video(item["video"], self._clip(item), maker.temporal_patch_size)}
            if isinstance(item, Mapping) and _CLIP in item
            else item
            for item in message["content"]
        ]
        return {**message, "content": items}

    def _clip(self, item: Mapping[str, Any]) -> VideoSampling:
        start, end = item[_CLIP]
        return replace(self.sampling, start=start, end=end)

    def losses(
        self, conversations: Sequence[Sequence[Mapping]], continuations: Sequence[str]
    ) -> list[tuple[float, bool]]:
        """(mean cross-entropy per token in nats, whether greedy decoding would give the same) of each continuation as
        the assistant's answer, for one batch; halved like answers().

        lmms-eval calls this loglikelihood, but chooses the answer with the lowest of these numbers.
        """
        return self._fitting(self._losses, conversations, continuations)

    @torch.inference_mode()
    def _losses(
        self, conversations: Sequence[Sequence[Mapping]], continuations: Sequence[str]
    ) -> list[tuple[float, bool]]:
        encoded = encode(self.processor, conversations, True, self.sampling, self.cache)
        # The assistant's turn starts on a new line, so the blank that would join the answer to a text is removed.
        ends = self.processor.tokenizer([text.lstrip() for text in continuations], add_special_tokens=False)[
            "input_ids"
        ]
        if not all(ends):
            raise InputError(f"continuation {continuations[ends.index([])]!r} has no tokens: give an answer to score")
        rows = [ids + end for ids, end in zip(encoded.ids, ends)]
        inputs = pad(rows, self.processor.tokenizer.pad_token_id, "right")
        labels = torch.full_like(inputs["input_ids"], IGNORED)
        for row, (ids, end) in enumerate(zip(encoded.ids, ends)):
            labels[row, len(ids) : len(ids) + len(end)] = torch.tensor(end)
        ensure_mm_token_type_ids(inputs, *visual_ids(self.processor).values())
        inputs = to_device({**inputs, **encoded.visuals}, self.model.device, self.model.dtype)
        out = self.model(**drop_unknown_types(self.model, inputs), labels=labels.to(self.model.device), use_cache=False)
        logits, wanted = out.logits[:, :-1].float(), out.labels[:, 1:]
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none")
        means = each.sum(1) / (wanted != IGNORED).sum(1)
        greedy = ((logits.argmax(-1) == wanted) | (wanted == IGNORED)).all(1)
        return list(zip(means.tolist(), greedy.tolist()))

    def summary(self) -> str:
        """The cost of the generated answers, in one line."""
        before = sum(sum(part.tokens_before) for part in self.done)
        after = sum(sum(part.tokens_after) for part in self.done)
        answers, seconds = sum(len(part.answers) for part in self.done), sum(part.seconds for part in self.done)
        kept = f"{before} visual tokens, {after:g} kept ({after / before:.1%})" if before else "no visual tokens"
        return f"ppe_npu: {answers} answers, {kept}, {seconds:.1f} s in generate()"


def _dtype(asked: str | None, rules: protocols.Protocol, where: torch.device) -> str:
    """The dtype that was asked for; else, on an accelerator, the protocol's; else fp32."""
    dtype = asked or (None if devices.on_cpu(where) else rules.dtype) or "fp32"
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype}: use one of {', '.join(DTYPES)}")
    return dtype


def _frames(most: int | None, rules: protocols.Protocol, fps: float | None, nframes: int | None) -> dict[str, Any]:
    """{"fps", "nframes"} as asked for, and the bounds that max_num_frames (`most`) sets, if given; under a protocol
    with nframes, `most` frames are taken unless fps or nframes is asked for."""
    if most is None:
        return {"fps": fps, "nframes": nframes}
    if rules.video.get("nframes") and fps is None:
        nframes = nframes or most
    return {"fps": fps, "nframes": nframes, "max_frames": most, "min_frames": min(4, most)}


def _own(pretrained: str) -> str:
    """The compression file of a checkpoint, written by its training; "ppe" if there is none."""
    own = Path(pretrained) / "compression.json"
    return str(own) if own.is_file() else "ppe"


def _say(line: str | None) -> None:
    if line:
        logging.getLogger("ppe_npu").warning(line)


def in_batches(
    requests: Sequence[Any],
    options: Callable[[Any], Mapping],
    size: int | Callable[[], int],
    length: Callable[[Any], int] = lambda request: 0,
) -> Iterator[list[int]]:
    """Numbers of the requests of each batch: those with the same options, the longest first (in their order if equally
    long), `size` at a time; a function `size` is called for each batch.

    So a lack of memory shows at once, and a batch has little padding.
    """
    alike: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        alike.setdefault(repr(sorted(options(request).items())), []).append(number)
    for numbers in alike.values():
        left = sorted(numbers, key=lambda number: -length(requests[number]))
        while left:
            many = size() if callable(size) else size
            yield left[:many]
            left = left[many:]


def translated(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """lmms-eval's chat messages as this package's messages: pictures as they are, videos as paths or lists of frames.

    Raises:
        InputError: a message has audio, or a visual of another type.
    """
    out = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else [_part(part) for part in content]
        out.append({"role": message["role"], "content": parts})
    return out


def question(text: str, visuals: Sequence[Any] | None) -> list[dict[str, Any]]:
    """A question of lmms-eval's simple interface as a conversation: pictures replace the text's <image> placeholders if
    there is one for each; else the visuals precede the text."""
    parts = [_part({"type": _kind(visual), "url": visual}) for visual in visuals or ()]
    images = [part["image"] for part in parts if part["type"] == "image"]
    if images and len(images) == len(parts) == text.count(PLACEHOLDERS["image"]):
        return user_turn(text.replace(PLACEHOLDERS["video"], ""), images)
    for token in PLACEHOLDERS.values():
        text = text.replace(token, "")
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def _kind(visual: Any) -> str:
    if isinstance(visual, Image.Image):
        return "image"
    if isinstance(visual, (str, Path)):
        return "image" if Path(visual).suffix.lower() in _PICTURES else "video"
    if isinstance(visual, (list, tuple)):
        return "video"
    raise InputError(f"a task gives a visual as {type(visual).__name__}: only pictures and files are supported")


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    kind, value = part["type"], part.get("url")
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind not in PLACEHOLDERS:
        raise InputError(f"a task asks about {kind}: these models take images and videos only")
    if kind == "image" and isinstance(value, Image.Image):
        return {"type": kind, kind: value}
    if kind == "video" and isinstance(value, (list, tuple)) and len(value):
        return {"type": kind, kind: list(value)}  # some tasks give a list of frames
    if not isinstance(value, (str, Path)):
        raise InputError(f"a task gives {kind}s as {type(value).__name__}: only pictures and files are supported")
    clip = (part.get("start_time"), part.get("end_time"))
    return {"type": kind, kind: value, **({_CLIP: clip} if clip != (None, None) and kind == "video" else {})}


def _stops(options: Mapping[str, Any]) -> list[str]:
    """The texts before which an answer is cut; raises as answers() does."""
    # lmms-eval's own Qwen models sample whenever a temperature is given, with or without do_sample.
    temperature = options.get("temperature", 1 if options.get("do_sample") else 0)
    if temperature not in (0, None):
        if options.get("do_sample") is not False:
            raise InputError(f"a task asks for sampling (temperature {temperature}): only greedy answers are supported")
        _say_greedy(temperature)
    if (options.get("num_beams") or 1) > 1:
        raise InputError(f"a task asks for {options['num_beams']} beams: only greedy answers are supported")
    until = options.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop and stop != _PARAGRAPH]


@functools.cache  # once for each temperature
def _say_greedy(temperature: float) -> None:
    _say(
        f"a task sets temperature {temperature} with do_sample=False: answers here are greedy, while lmms-eval's own "
        "Qwen models sample"
    )


def _cut(answer: str, stops: Sequence[str]) -> str:
    for stop in stops:
        answer = answer.split(stop)[0]
    return answer
