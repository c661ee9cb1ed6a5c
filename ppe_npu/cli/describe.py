"""`ppe-npu describe`: asks a model about pictures and videos from disk. It prints the answer as it comes, then what
it cost, and with --show it draws what was merged."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppe_npu.backends import device as devices
from ppe_npu.checkpoints.loading import check_compression, load_model, load_processor, quiet_transformers
from ppe_npu.cli.common import compressions, generation, reading, video_sampling
from ppe_npu.cli.looking import Looking
from ppe_npu.data.inputs import PLACEHOLDERS, build_inputs, split_placeholders
from ppe_npu.errors import InputError
from ppe_npu.evaluation.generation import Generated, generate
from ppe_npu.models import compress
from ppe_npu.utils.escape import printable


def run_describe(args: argparse.Namespace) -> int:
    """The command: everything that can be wrong with the arguments is found before the weights are read."""
    device = devices.resolve(args.device)
    if args.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens {args.max_new_tokens} must be at least 1")
    messages = conversation(args.prompt, args.image, args.video)
    sampling = video_sampling(args)
    quiet_transformers()
    chosen = compressions(args, Path(args.model))[0]
    looking = Looking.of(args.show, args.token, chosen)
    check_compression(args.model, chosen, **reading(args))
    asked, _ = generation(args)
    processor = load_processor(args.model, args.min_pixels, args.max_pixels)
    if looking is not None:
        messages = looking.opened(messages, processor, sampling)
    inputs = build_inputs(processor, [messages], sampling=sampling)
    if looking is not None:
        looking.check_token(inputs, processor)
    model = compress(load_model(args.model, device, args.dtype, **reading(args)), chosen)
    model.compression.keep_groups = looking is not None
    done = _answer(model, processor, inputs, args.max_new_tokens, asked)
    print(cost_lines(done, model.compression.report, asked.get("num_beams", 1)), flush=True)
    if looking is not None:
        print(f"groups              {looking.write(model.compression.trace.visuals())}")
    return 0


def _answer(model: Any, processor: Any, inputs: Any, max_new_tokens: int, asked: Mapping[str, Any]) -> Generated:
    """Prints the answer as it comes; with several beams, when the best one is known."""
    done = generate(
        model, processor, inputs, max_new_tokens, None if "num_beams" in asked else _streamer(processor), asked
    )
    if "num_beams" in asked:
        print(printable(done.answers[0], keep="\n\t"))
    return done


def _streamer(processor: Any) -> Any:
    """Prints text as it comes; characters that would move a terminal's cursor are spelt out."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(printable(text, keep="\n\t"), stream_end)

    return Streamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)


def conversation(prompt: str, images: Sequence[str], videos: Sequence[str]) -> list[dict[str, Any]]:
    """One user turn. A prompt without placeholders comes after its visuals; with them, each stands at its place.

    Raises:
        InputError: no visual, no text, or placeholders that do not match the visuals.
    """
    if not images and not videos:
        raise InputError("nothing to describe: give --image or --video")
    if not prompt.strip():
        raise InputError("--prompt is empty: ask something")
    if not any(token in prompt for token in PLACEHOLDERS.values()):
        prompt = PLACEHOLDERS["image"] * len(images) + PLACEHOLDERS["video"] * len(videos) + prompt
    return [{"role": "user", "content": split_placeholders(prompt, images, videos)}]


def cost_lines(done: Generated, report: Any, beams: int = 1) -> str:
    """What one answer cost, as lines to read. beams: how often the prompt stands in the report."""
    before, after = sum(done.tokens_before), sum(done.tokens_after)
    prompt_before, prompt_after = report.prompt_tokens_before // beams, report.prompt_tokens_after // beams
    rest = done.seconds - done.prefill_seconds
    speed = f"{(done.new_tokens[0] - 1) / rest:.1f} tokens/s after the first" if done.new_tokens[0] > 1 else "one token"
    return "\n".join(
        [
            "",
            f"visual tokens       {before} before, {after:g} after ({100 * after / before:.1f} % kept)",
            f"prompt tokens       {prompt_before} before, {prompt_after} after",
            f"time to first token {1000 * done.prefill_seconds:.1f} ms",
            f"speed               {speed} ({done.new_tokens[0]} in {done.seconds:.2f} s)",
            f"KV cache            {done.kv_bytes:,} bytes",
        ]
    )
