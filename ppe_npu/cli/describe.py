"""`ppe-npu describe`: asks a model about pictures and videos from disk. It prints the answer as it is generated, then
its costs, and with --show it draws the merged groups."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppe_npu.backends import device as devices
from ppe_npu.checkpoints.loading import load_model, quiet_transformers
from ppe_npu.cli import common
from ppe_npu.cli.looking import GroupsPicture
from ppe_npu.cli.output import check_apart, print_json, say
from ppe_npu.data.inputs import build_inputs
from ppe_npu.data.turns import PLACEHOLDERS, split_placeholders, user_turn
from ppe_npu.errors import InputError
from ppe_npu.evaluation.generation import Generated, generate
from ppe_npu.models import compress
from ppe_npu.utils.escape import printable


def run_describe(args: argparse.Namespace) -> int:
    """Run the command. Everything that can be wrong with the arguments is checked before the weights are read."""
    device = devices.resolve(args.device)
    if args.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens {args.max_new_tokens} must be at least 1")
    messages = question(args.prompt, args.image, args.video)
    sampling = common.video_sampling(args)
    quiet_transformers()
    checkpoint = common.checkpoint(args, args.model)
    chosen = common.fitted(checkpoint, common.compressions(args, Path(args.model))[:1])[0]
    picture = GroupsPicture.of(args.show, args.token, chosen)
    if picture is not None:
        check_apart("--show", picture.path, [*args.image, *args.video])
    asked, _ = common.generation(args.generation, checkpoint)
    processor = common.processor(checkpoint, args.min_pixels, args.max_pixels)
    if picture is not None:
        messages = picture.opened(messages, processor, sampling)
    inputs = build_inputs(processor, [messages], sampling=sampling)
    if picture is not None:
        picture.check_token(inputs, processor)
    model = compress(checkpoint.load(device, args.dtype, load_model), chosen)
    model.compression.keep_groups = picture is not None
    say(common.whose(args, Path(args.model), [chosen]))
    done = _answer(model, processor, inputs, args.max_new_tokens, asked)
    report, beams = model.compression.report, asked.get("num_beams", 1)
    print(cost_lines(done, report, beams), flush=True)
    drawn = None if picture is None else picture.write(model.compression.trace.visuals())
    if drawn is not None:
        print(f"groups              {drawn}")
    if args.json:
        print_json(args, costs(done, report, beams) | {"groups": drawn})
    return 0


def _answer(model: Any, processor: Any, inputs: Any, max_new_tokens: int, asked: Mapping[str, Any]) -> Generated:
    """Print the answer as it is generated or, with several beams, once the best one is known."""
    done = generate(
        model, processor, inputs, max_new_tokens, None if "num_beams" in asked else _streamer(processor), asked
    )
    if "num_beams" in asked:
        print(printable(done.answers[0], keep="\n\t"))
    return done


def _streamer(processor: Any) -> Any:
    """A streamer that prints text as it is generated, with control characters (cursor movements) written as escapes."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(printable(text, keep="\n\t"), stream_end)

    return Streamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)


def question(prompt: str, images: Sequence[str], videos: Sequence[str]) -> list[dict[str, Any]]:
    """One user turn. Visuals replace the placeholders of the prompt; if it has none, they precede the text.

    Raises:
        InputError: no visual, no text, or placeholders that do not match the visuals.
    """
    if not images and not videos:
        raise InputError("nothing to describe: give --image or --video")
    if not prompt.strip():
        raise InputError("--prompt is empty: ask something")
    if any(token in prompt for token in PLACEHOLDERS.values()):
        split_placeholders(prompt, images, videos)  # raises if they do not match
    return user_turn(prompt, images, videos)


def costs(done: Generated, report: Any, beams: int = 1) -> dict[str, Any]:
    """The answer and its costs, as JSON values. beams: how many times the report counts the prompt."""
    before, after = sum(done.tokens_before), sum(done.tokens_after)
    return {
        "answer": done.answers[0],
        "visual_tokens_before": before,
        "visual_tokens_after": after,
        "visual_tokens_kept": after / before,  # a mean over decoder layers, like visual_tokens_after
        "visual_tokens_by_layer": [tokens // beams for tokens in report.layers],
        "prompt_tokens_before": report.prompt_tokens_before // beams,
        "prompt_tokens_after": report.prompt_tokens_after // beams,
        "seconds_to_first_token": done.prefill_seconds,
        "seconds": done.seconds,
        "new_tokens": done.new_tokens[0],
        "kv_bytes": done.kv_bytes,
        "prompt_kv_bytes": sum(done.prompt_kv_bytes),
        **({} if report.in_tower is None else {"tower": report.in_tower.to_dict()}),
    }


def cost_lines(done: Generated, report: Any, beams: int = 1) -> str:
    """The costs of one answer, as lines of text. beams: how many times the report counts the prompt."""
    before, after = sum(done.tokens_before), sum(done.tokens_after)
    layers = [tokens // beams for tokens in report.layers]
    several = len(set(layers)) > 1
    mean = f", the mean over {len(layers)} decoder layers: {_by_layer(layers)}" if several else ""
    prompt_before, prompt_after = report.prompt_tokens_before // beams, report.prompt_tokens_after // beams
    rest = done.seconds - done.prefill_seconds
    speed = f"{(done.new_tokens[0] - 1) / rest:.1f} tokens/s after the first" if done.new_tokens[0] > 1 else "one token"
    return "\n".join(
        [
            "",
            f"visual tokens       {before} before, {after:g} after ({100 * after / before:.1f} % kept{mean})",
            f"prompt tokens       {prompt_before} before, {prompt_after} after{' the last merge' if several else ''}",
            *(() if report.in_tower is None else [f"vision tower        {report.in_tower}"]),
            f"time to first token {1000 * done.prefill_seconds:.1f} ms",
            f"speed               {speed} ({done.new_tokens[0]} in {done.seconds:.2f} s)",
            f"KV cache            {done.kv_bytes:,} bytes",
        ]
    )


def _by_layer(tokens: Sequence[int]) -> str:
    """How many tokens each layer sees, in words: "300 in 0 to 10, 135 in 11 to 22, 61 from 23 on"."""
    firsts = [layer for layer, count in enumerate(tokens) if layer == 0 or count != tokens[layer - 1]]
    parts = []
    for first, after in zip(firsts, [*firsts[1:], None]):
        where = (
            f"from {first} on"
            if after is None
            else f"in {first}"
            if after == first + 1
            else f"in {first} to {after - 1}"
        )
        parts.append(f"{tokens[first]} {where}")
    return ", ".join(parts)
