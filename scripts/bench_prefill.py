"""Prefill with and without compression, in one run: milliseconds, the compression's share of them, memory, cache.

The decoder alone (random weights, the visual features given), so that a vision tower does not dilute the ratios:
16 frames of 128 tokens and 66 text tokens; 12 layers, hidden size 1024. Settings take turns, round after round, so that
a disturbance of the machine meets all of them; medians are shown. Peak memory is what torch holds at most, in a fresh
process each.

The last line counts the operators of one merge: ours, for all frames at once, with masks and positions; and those of
the released algorithm, frame by frame, for grouping and means alone.

    python scripts/bench_prefill.py [--device cpu] [--rounds 5] [--threads 2] [--output bench.json]
"""

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import time

import torch
from bench_clustering import frame_by_frame
from torch.utils._python_dispatch import TorchDispatchMode

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.backends import device as devices
from ppe_npu.compat import prepare_transformers
from ppe_npu.compression import Compression
from ppe_npu.files import write_json
from ppe_npu.positions import contiguous_channels
from ppe_npu.spans import VisionTokens

FRAMES, FRAME, TEXT, VIDEO_ID = 16, (8, 16), 66, 9
SETTINGS = {
    "unmodified": None,
    "dense": CompressionConfig.preset("dense"),
    "chatunivi 0.45": CompressionConfig.preset("chatunivi"),
    "ppe 0.45": CompressionConfig.preset("ppe"),
    "ppe 0.10": CompressionConfig.preset("ppe", ratio=0.1),
    "ppe 0.90": CompressionConfig.preset("ppe", ratio=0.9),
    "cascade [3, 7, 11]": CompressionConfig.preset("ppe", layers=[3, 7, 11]),
    "cascade [0, 4, 8]": CompressionConfig.preset("ppe", layers=[0, 4, 8]),
}


def build_model(device: torch.device, dtype: torch.dtype):
    """A Qwen2.5-VL decoder: 12 layers, hidden 1024, 8 heads of 128, 2 key heads; its tower, one block, is not run."""
    prepare_transformers()
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        vision_config={"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 1024},
        text_config={
            "vocab_size": 1000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12,
            "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        image_token_id=8, video_token_id=VIDEO_ID, vision_start_token_id=6, vision_end_token_id=7,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config).eval().to(device, dtype)


def build_inputs(model) -> dict:
    """One prompt: text, the video, text; its features stand in inputs_embeds."""
    tokens = FRAMES * math.prod(FRAME)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, 1000, (1, TEXT + tokens), generator=generator)
    ids[:, TEXT // 2 : TEXT // 2 + tokens] = VIDEO_ID
    ids = ids.to(model.device)
    embeds = model.get_input_embeddings()(ids).detach()
    # Neighbouring cells of an image are alike: a smooth field and some noise.
    features = torch.randn(FRAMES, 4, 4, embeds.shape[-1], generator=generator).permute(0, 3, 1, 2)
    features = torch.nn.functional.interpolate(features, size=FRAME, mode="bilinear").permute(0, 2, 3, 1)
    features = features + 0.3 * torch.randn(features.shape, generator=generator)
    embeds[:, TEXT // 2 : TEXT // 2 + tokens] = features.reshape(1, tokens, -1).to(embeds)
    grid = torch.tensor([[FRAMES, 2 * FRAME[0], 2 * FRAME[1]]], device=model.device)
    return {"input_ids": ids, "inputs_embeds": embeds, "video_grid_thw": grid, "second_per_grid_ts": [1.0]}


def prefill(model, inputs: dict, setting: str):
    """One prefill under a setting; gives the model's output."""
    if SETTINGS[setting] is None:
        # Positions without M-RoPE cost the same, and transformers would want pixels beside the grid.
        return model(inputs_embeds=inputs["inputs_embeds"], use_cache=True)
    return model(**inputs, use_cache=True)


def configure(model, setting: str) -> None:
    restore(model)
    if SETTINGS[setting] is not None:
        compress(model, SETTINGS[setting])


@torch.no_grad()
def measure(device: torch.device, dtype: torch.dtype, rounds: int) -> dict[str, dict]:
    """Milliseconds of every setting, its share of compression, tokens and cache bytes."""
    model = build_model(device, dtype)
    inputs = build_inputs(model)
    times, shares, out = {name: [] for name in SETTINGS}, {name: [] for name in SETTINGS}, {}
    for number in range(rounds + 1):
        for setting in SETTINGS:
            configure(model, setting)
            devices.synchronize(device)
            start = time.perf_counter()
            result = prefill(model, inputs, setting)
            devices.synchronize(device)
            elapsed = (time.perf_counter() - start) * 1e3
            if number == 0:  # warms up
                kv = sum(
                    t.numel() * t.element_size() for c in result.past_key_values.layers for t in (c.keys, c.values)
                )
                out[setting] = {"output_length": result.logits.shape[1], "kv_mib": kv / 2**20}
                continue
            times[setting].append(elapsed)
            report = getattr(model, "compression", None) and model.compression.report
            shares[setting].append(report.milliseconds / elapsed if report else 0.0)
    for setting, values in out.items():
        values |= {
            "milliseconds": statistics.median(times[setting]),
            "fastest": min(times[setting]),
            "slowest": max(times[setting]),
            "compression_share": statistics.median(shares[setting]),
            "speedup": statistics.median(a / b for a, b in zip(times["unmodified"], times[setting])),
        }
    return out


@torch.no_grad()
def peak_memory(setting: str, device: torch.device, dtype: torch.dtype) -> float:
    """MiB above the model and its inputs during one prefill."""
    model = build_model(device, dtype)
    inputs = build_inputs(model)
    configure(model, setting)
    # A short prompt first: buffers that are made once are not what is asked for.
    model(input_ids=torch.randint(10, 1000, (1, 8), device=device))
    if device.type == "cpu":
        # Every allocation and release of torch's, added up: a process' size is rounded by the system, up to 30 MiB.
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            prefill(model, inputs, setting)
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
        return max(itertools.accumulate(sizes)) / 2**20
    devices.reset_peak_memory(device)
    before = devices.peak_memory(device)
    prefill(model, inputs, setting)
    return (devices.peak_memory(device) - before) / 2**20


def peak_memories(args) -> dict[str, float]:
    """Of every setting, each in a process of its own."""
    command = [sys.executable, __file__, "--device", args.device, "--dtype", args.dtype, "--threads", str(args.threads)]
    out = {}
    for setting in SETTINGS:
        result = subprocess.run([*command, "--memory-of", setting], capture_output=True, text=True, check=True)
        out[setting] = json.loads(result.stdout.splitlines()[-1])
    return out


class Counter(TorchDispatchMode):
    """Counts the operators that run inside it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def operators(frames: int) -> dict[str, int]:
    """How many operators a merge of so many frames takes: ours, and the released algorithm's."""
    tokens, config = math.prod(FRAME), SETTINGS["ppe 0.45"]
    vision = VisionTokens(image_token_id=8, video_token_id=VIDEO_ID, merge_size=2, tokens_per_second=2)
    compression = Compression(config, vision, contiguous_channels([16, 24, 24]), decoder_layers=12)
    ids = torch.full((1, frames * tokens), VIDEO_ID)
    plan = compression.plan(ids, None, None, torch.tensor([[frames, 2 * FRAME[0], 2 * FRAME[1]]]), None)
    plan.on(ids.device)
    features = torch.randn(frames * tokens, 64)
    with Counter() as ours:
        compression.prefill(plan, features[:0], features)
    with Counter() as theirs:
        frame_by_frame(features.view(frames, tokens, -1), config.tokens_kept((1, 2 * FRAME[0], 2 * FRAME[1])), 5)
    return {"ours": ours.count, "released": theirs.count}


def table(results: dict[str, dict]) -> str:
    head = f"{'setting':<20}{'length':>7}{'ms':>9}{'min..max':>16}{'speed-up':>10}"
    head += f"{'merge':>8}{'peak MiB':>10}{'KV MiB':>8}"
    lines = [head, "-" * len(head)]
    for setting, r in results.items():
        lines.append(
            f"{setting:<20}{r['output_length']:>7}{r['milliseconds']:>9.0f}"
            f"{r['fastest']:>8.0f}..{r['slowest']:<6.0f}{r['speedup']:>9.2f}x{r['compression_share']:>8.1%}"
            f"{r['peak_mib']:>10.0f}{r['kv_mib']:>8.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", help="a JSON file for the numbers")
    parser.add_argument("--memory-of", choices=SETTINGS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, dtype = devices.resolve(args.device), getattr(torch, args.dtype)
    if args.memory_of:
        print(json.dumps(peak_memory(args.memory_of, device, dtype)))
        return
    memories = peak_memories(args)
    results = measure(device, dtype, args.rounds)
    for setting, values in results.items():
        values["peak_mib"] = memories[setting]
    print(f"{devices.describe(device)}, {args.dtype}, {args.threads} thread(s), medians of {args.rounds} rounds")
    print(table(results))
    counts = {frames: operators(frames) for frames in (1, FRAMES, 4 * FRAMES)}
    said = (f"{n} frames {c['ours']}, released {c['released']}" for n, c in counts.items())
    print("operators of a merge: " + "; ".join(said))
    if args.output:
        facts = {"device": devices.describe(device), "dtype": args.dtype, "threads": args.threads}
        write_json(args.output, facts | {"settings": results, "operators": counts})


if __name__ == "__main__":
    main()
