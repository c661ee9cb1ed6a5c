"""The host's time for planning a prompt: finding its spans, numbering it, laying out what each stage will keep.

The layouts of the last eight prompts are cached. "known": each prompt has the layout of the one before, with other
words; "new": each prompt is one word longer than the one before. Times are medians of the thread's CPU time in
milliseconds. They include neither transfers to a device nor what can be laid out only once features are known (the
second stage of the setting "events").

    python scripts/bench_planning.py [--rounds 60]
"""

import argparse
import dataclasses
import statistics

import torch
from bench.models import PROMPTS, Prompt
from bench.timing import thread_ms

from ppe_npu import CompressionConfig
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.positions import contiguous_channels
from ppe_npu.engine.spans import VisionTokens
from ppe_npu.methods import DPCKNN, Events

IMAGE, VIDEO, WORDS, LAYERS = 8, 9, (10, 1000), 36
APART = "apart "  # begins the name of a video whose frames have text between them, as in Qwen3-VL's prompts
CASES = ("video-64x256", APART + "video-64x256", "image-1280")
SETTINGS = {
    "ppe": CompressionConfig.preset("ppe"),
    "ppe_cascade": CompressionConfig.preset("ppe_cascade"),
    "events": CompressionConfig(steps=[DPCKNN(0.45), Events(0.5)], positions="ppe", k=8),
}


def compression(config: CompressionConfig, apart: bool = False) -> Compression:
    seconds = None if apart else 2
    vision = VisionTokens(
        image_token_id=IMAGE, video_token_id=VIDEO, merge_size=2, tokens_per_second=seconds, frames_apart=apart
    )
    return Compression(config, vision, contiguous_channels([16, 24, 24]), LAYERS)


def planned(made: Compression, prompt: Prompt, seed: int) -> float:
    """Milliseconds of planning a prompt whose words depend on the seed."""
    frames, height, width = prompt.grid
    apart = made.vision.frames_apart
    visual = torch.full((frames, height * width), VIDEO if frames > 1 else IMAGE)
    words = torch.randint(*WORDS, (prompt.text + 3 * frames,), generator=torch.Generator().manual_seed(seed))
    text, between = words[: prompt.text], words[prompt.text :].view(frames, 3)  # before each frame its time
    visual = torch.cat([between, visual], dim=1) if apart else visual
    first = prompt.text // 2
    ids = torch.cat([text[:first], visual.flatten(), text[first:]])[None]
    grid = torch.tensor([[frames, 2 * height, 2 * width]])
    grids = (None, grid, None if apart else [1.0]) if frames > 1 else (grid, None, None)
    return thread_ms(lambda: made.plan(ids, None, *grids))


def measure(setting: str, case: str, rounds: int) -> dict[str, float]:
    """Median milliseconds for known and for new layouts."""
    made, prompt = compression(SETTINGS[setting], case.startswith(APART)), PROMPTS[case.removeprefix(APART)]
    longer = [dataclasses.replace(prompt, text=prompt.text + more) for more in range(1, rounds + 1)]
    new = [planned(made, one, seed) for seed, one in enumerate(longer)]
    planned(made, prompt, 0)
    known = [planned(made, prompt, seed) for seed in range(rounds)]
    return {"known": statistics.median(known), "new": statistics.median(new)}


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"{'prompt':<22}{'setting':<18}{'known ms':>10}{'new ms':>10}")
    rows = []
    for case in CASES:
        for setting in SETTINGS:
            if case.startswith(APART) and setting == "events":
                continue  # frames that stand apart have no events
            row = measure(setting, case, args.rounds)
            rows.append({"prompt": case, "setting": setting, **row})
            print(f"{case:<22}{setting:<18}{row['known']:>10.2f}{row['new']:>10.2f}", flush=True)
    return rows


if __name__ == "__main__":
    main()
