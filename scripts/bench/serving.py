"""vLLM with and without compression: time to the first token, requests/s and tokens/s at several loads.

All engines run in this process and alternate in each round of a load, so that other work of the machine affects all of
them. A load of n is n simultaneous requests, each with its own picture (pictures and prefixes are not cached); TTFT is
the mean over them, from a request's arrival. Numbers are medians of the rounds; in brackets is how many times better
than the first setting they are in the same round: the median and the range.

    python tests/serving/checkpoints.py /tmp/random qwen2_5_vl small      # or any Qwen-VL checkpoint
    python scripts/bench/serving.py --model /tmp/random [--loads 1 4 16 32] [--rounds 1] [--side 256] [--new-tokens 16]
        [--settings stock ppe:ratio=0.45 ppe:ratio=0.25] [--dtype float32] [--output FILE.json]

On a GPU: --dtype bfloat16 --side 1024 --graphs, a real checkpoint, and --memory 0.3 (the share of memory per engine).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
if "--graphs" not in sys.argv:
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # else the first answer of each engine takes a minute

import numpy as np
import torch

from ppe_npu.files import write_json

SETTINGS = ("stock", "ppe:ratio=0.45", "ppe:ratio=0.25")
PROMPT = "<|im_start|> user <|vision_start|><|image_pad|><|vision_end|> colour 1 2 <|im_end|> <|im_start|> assistant"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="compressions, or stock for vLLM's own class")
    parser.add_argument("--loads", nargs="+", type=int, default=[1, 4, 16, 32])
    parser.add_argument("--rounds", type=int, default=1, help="rounds per load; a load of 1 gets three times as many")
    parser.add_argument("--side", type=int, default=256, help="side of the pictures in pixels")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--memory", type=float, default=0.3, help="share of the GPU's memory for each engine")
    parser.add_argument("--graphs", action="store_true", help="compile and record CUDA graphs")
    parser.add_argument("--output", help="JSON file for the numbers")
    return parser.parse_args()


def engine(asked: argparse.Namespace, setting: str) -> Any:
    from vllm import LLM

    (architecture,) = json.loads((Path(asked.model) / "config.json").read_text())["architectures"]
    said = {} if setting == "stock" else {"architectures": [f"PPE{architecture}"], "ppe_compression": setting}
    return LLM(
        asked.model, hf_overrides=said, dtype=asked.dtype, enforce_eager=not asked.graphs, max_model_len=8192, seed=0,
        max_num_batched_tokens=8192, limit_mm_per_prompt={"image": 1, "video": 0}, enable_prefix_caching=False,
        mm_processor_cache_gb=0, disable_log_stats=False, gpu_memory_utilization=asked.memory,
    )  # fmt: skip


def picture(seed: int, side: int) -> Any:
    """A picture of smooth patches of random colours, with noise."""
    from PIL import Image

    draw = np.random.default_rng(seed)
    small = draw.integers(0, 255, (side // 32, side // 32, 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray(np.clip(large + draw.integers(-12, 12, large.shape), 0, 255).astype(np.uint8))


def measure(llm: Any, load: int, seed: int, asked: argparse.Namespace) -> dict[str, float]:
    """The results of one round of a load."""
    from vllm import SamplingParams

    greedy = SamplingParams(max_tokens=asked.new_tokens, temperature=0, ignore_eos=True)
    prompts = [{"prompt": PROMPT, "multi_modal_data": {"image": picture(seed + n, asked.side)}} for n in range(load)]
    start = time.perf_counter()
    outputs = llm.generate(prompts, greedy, use_tqdm=False)
    took = time.perf_counter() - start
    return {
        "prompt": len(outputs[0].prompt_token_ids),
        "ttft": statistics.mean(output.metrics.first_token_latency for output in outputs),
        "requests_per_s": load / took,
        "tokens_per_s": sum(len(output.outputs[0].token_ids) for output in outputs) / took,
    }


def table_row(load: int, setting: str, own: list[dict[str, float]], first: list[dict[str, float]]) -> dict[str, Any]:
    """A setting's medians over rounds, and (median, least, most) of its improvement over the first setting."""
    found = {key: statistics.median(one[key] for one in own) for key in own[0]}
    better = {
        "ttft": [other["ttft"] / one["ttft"] for one, other in zip(own, first)],
        "requests_per_s": [one["requests_per_s"] / other["requests_per_s"] for one, other in zip(own, first)],
    }
    times = {key: (statistics.median(ratios), min(ratios), max(ratios)) for key, ratios in better.items()}
    return {"load": load, "setting": setting, **found, "times": times, "rounds": own}


def printed(row: dict[str, Any]) -> str:
    """A line of the table."""
    ttft, requests = (f"{times[0]:.1f}x, {times[1]:.1f} to {times[2]:.1f}" for times in row["times"].values())
    return (
        f"| {row['load']} | {row['setting']} | {row['prompt']:.0f} | {row['ttft']:.2f} ({ttft}) | "
        f"{row['requests_per_s']:.2f} ({requests}) | {row['tokens_per_s']:.1f} |"
    )


def main() -> int:
    asked = arguments()
    engines = {setting: engine(asked, setting) for setting in asked.settings}
    for llm in engines.values():
        measure(llm, 1, 10**6, asked)  # a warm-up: the first request triggers late loading
    rows = []
    print("| load | setting | prompt | TTFT s | requests/s | tokens/s |\n|---|---|---|---|---|---|", flush=True)
    for load in asked.loads:
        rounds: dict[str, list[dict[str, float]]] = {setting: [] for setting in engines}
        for number in range(asked.rounds * (3 if load == 1 else 1)):
            for setting, llm in engines.items():
                rounds[setting].append(measure(llm, load, 1000 * load + 100 * number, asked))
        for setting, own in rounds.items():
            rows.append(table_row(load, setting, own, rounds[asked.settings[0]]))
            print(printed(rows[-1]), flush=True)
        if asked.output:
            write_json(asked.output, {"settings": vars(asked), "threads": torch.get_num_threads(), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
