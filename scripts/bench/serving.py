"""vLLM with and without compression: time to the first token, requests/s and tokens/s at several loads.

Every engine is in this process, and they take turns at each load, so that what else the machine does meets all alike.
A load of n is n requests at once, each with a picture of its own (no cache of pictures or prefixes); TTFT is the mean
over them, from when a request came.

    python tests/serving/checkpoints.py /tmp/random qwen2_5_vl small      # or any Qwen-VL checkpoint
    python scripts/bench/serving.py --model /tmp/random [--loads 1 4 16 32] [--side 256] [--new-tokens 16]
        [--settings stock ppe:ratio=0.45 ppe:ratio=0.25] [--dtype float32] [--output FILE.json]

On a GPU: --dtype bfloat16 --side 1024 --graphs, a real checkpoint, and --memory 0.3 (each engine's share of it).
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

import numpy as np

from ppe_npu.files import write_json

SETTINGS = ("stock", "ppe:ratio=0.45", "ppe:ratio=0.25")
PROMPT = "<|im_start|> user <|vision_start|><|image_pad|><|vision_end|> colour 1 2 <|im_end|> <|im_start|> assistant"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="compressions, or stock: vLLM's own class")
    parser.add_argument("--loads", nargs="+", type=int, default=[1, 4, 16, 32])
    parser.add_argument("--rounds", type=int, default=1, help="of every load; a load of 1 has three times as many")
    parser.add_argument("--side", type=int, default=256, help="pixels of a picture's side")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--memory", type=float, default=0.3, help="share of a GPU's memory, of each engine")
    parser.add_argument("--graphs", action="store_true", help="compile, and record CUDA graphs")
    parser.add_argument("--output", help="a JSON file")
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
    """Smooth patches of random colour with noise."""
    from PIL import Image

    draw = np.random.default_rng(seed)
    small = draw.integers(0, 255, (side // 32, side // 32, 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray(np.clip(large + draw.integers(-12, 12, large.shape), 0, 255).astype(np.uint8))


def measure(llm: Any, load: int, seed: int, asked: argparse.Namespace) -> dict[str, float]:
    """One round of a load."""
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


def main() -> int:
    asked = arguments()
    engines = {setting: engine(asked, setting) for setting in asked.settings}
    for llm in engines.values():
        measure(llm, 1, 10**6, asked)  # the first one loads what is loaded late
    rows, first = [], asked.settings[0]
    for load in asked.loads:
        rounds: dict[str, list[dict[str, float]]] = {setting: [] for setting in engines}
        for number in range(asked.rounds * (3 if load == 1 else 1)):
            for setting, llm in engines.items():
                rounds[setting].append(measure(llm, load, 1000 * load + 100 * number, asked))
        medians = {s: {key: statistics.median(r[key] for r in own) for key in own[0]} for s, own in rounds.items()}
        for setting, found in medians.items():
            own = {key: found[key] / medians[first][key] for key in ("requests_per_s", "tokens_per_s")}
            own["ttft"] = medians[first]["ttft"] / found["ttft"]
            rows.append({"load": load, "setting": setting, **found, "times": own})
            print(
                f"| {load} | {setting} | {found['prompt']:.0f} | {found['ttft']:.2f} ({own['ttft']:.2f}x) | "
                f"{found['requests_per_s']:.2f} ({own['requests_per_s']:.2f}x) | {found['tokens_per_s']:.1f} |",
                flush=True,
            )
        if asked.output:
            write_json(asked.output, {"settings": vars(asked), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
