"""The cost of compression in a decoding step: compressed models compared with an untouched one with as long a cache.

The models "ppe" and "ppe, fused" are given 16 frames of 128 visual tokens, of which preset ppe keeps 45 %; the others
are given as many tokens of text as those have in their cache. All run generate() in one process, one thread each, and
alternate token by token, so that disturbances of the machine affect all of them. A token's time is its thread's CPU
time; "longer by" is the median, over tokens, of the extra time relative to the untouched model's token in the same
turn. "staged" has steps before and inside the decoder; "fused" is also passed through fuse(). The table also gives the
number of Python function calls and of torch operators in a step.

    python scripts/bench_decode.py [--sizes tiny cpu] [--steps 60] [--output FILE]
"""

import argparse
import copy
import statistics
import sys
import threading
import time
from datetime import date

import torch
from bench.models import PROMPTS, SIZES, build
from bench.operators import Counter
from bench.results import output_file
from bench.timing import Times

from ppe_npu import CompressionConfig, compress
from ppe_npu.backends import device as devices
from ppe_npu.files import write_json
from ppe_npu.models.fused import fuse, unfuse

UNTOUCHED, PPE, PLUS, STAGED, FUSED = "untouched", "ppe", "ppe_plus", "ppe, staged", "ppe, fused"
CASE = "video-16x128"
COUNTED = 5  # the token in which functions are counted; operators are counted in the next one


class Turn:
    """A streamer for generate(): after each token it lets the next model in the ring continue, and waits for its turn.

    Args:
        own, following: semaphores that are released when this model, or the next one, may continue.
    """

    def __init__(self, own: threading.Semaphore, following: threading.Semaphore):
        self.own, self.following, self.start = own, following, 0.0
        self.ms: list[float] = []

    def put(self, _) -> None:
        """Called by generate() with the prompt, and then with every token."""
        self.ms.append((time.thread_time() - self.start) * 1e3)
        self.following.release()
        self.own.acquire()
        self.start = time.thread_time()

    def end(self) -> None:
        self.following.release()


class Counts:
    """A streamer that counts the Python function calls of one token, and the operators of the next."""

    def __init__(self):
        self.tokens, self.calls, self.operators = 0, 0, Counter()

    def put(self, _) -> None:
        self.tokens += 1
        if self.tokens == COUNTED:
            sys.setprofile(self._note)
        elif self.tokens == COUNTED + 1:
            sys.setprofile(None)
            self.operators.__enter__()
        elif self.tokens == COUNTED + 2:
            self.operators.__exit__(None, None, None)

    def _note(self, _, event: str, __) -> None:
        self.calls += event == "call"

    def end(self) -> None:
        """Called by generate() at the end; nothing is left to do."""


def contenders(size: str) -> dict[str, tuple]:
    """{name: (model, inputs)}: models with their own modules, which share one set of parameters."""
    model = unfuse(build(size, torch.device("cpu"), torch.float32))
    layers = model.config.text_config.num_hidden_layers

    def twin(config: CompressionConfig | None):
        made = copy.deepcopy(model, {id(part): part for part in model.parameters()})
        return made if config is None else compress(made, config)

    ppe = CompressionConfig.preset("ppe")
    staged = CompressionConfig.preset("ppe", layers=[0, layers // 3, 2 * layers // 3])
    video = PROMPTS[CASE].inputs(model)
    prompt = {name: value for name, value in video.items() if name != "second_per_grid_ts"}
    frames, tokens = PROMPTS[CASE].grid[0], PROMPTS[CASE].visual
    length = PROMPTS[CASE].text + frames * ppe.span_tokens(1, tokens // frames)
    text = {"input_ids": torch.full((1, length), 11)}
    return {
        UNTOUCHED: (twin(None), text),
        PPE: (twin(ppe), prompt),
        PLUS: (twin(CompressionConfig.preset("ppe_plus")), prompt),
        STAGED: (twin(staged), text),
        FUSED: (fuse(twin(ppe)), prompt),
    }


def generate(model, inputs: dict, steps: int, streamer) -> None:
    with torch.no_grad():
        mask = torch.ones_like(inputs["input_ids"])
        model.generate(**inputs, attention_mask=mask, do_sample=False, max_new_tokens=steps, streamer=streamer)


def in_turns(made: dict[str, tuple], steps: int) -> dict[str, Times]:
    """Milliseconds of every token after the first two."""
    gates = [threading.Semaphore(0) for _ in made]
    turns = {name: Turn(own, other) for name, own, other in zip(made, gates, [*gates[1:], gates[0]])}

    def run(name: str) -> None:
        turns[name].own.acquire()
        turns[name].start = time.thread_time()
        try:
            generate(*made[name], steps, turns[name])
        except BaseException as error:  # raised below, in the main thread
            faults.append(error)
            for gate in gates:
                gate.release(steps + 2)  # so that no thread waits for this one any more

    faults: list[BaseException] = []
    threads = [threading.Thread(target=run, args=(name,)) for name in made]
    for thread in threads:
        thread.start()
    gates[0].release()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return {name: Times(tuple(turn.ms[3:])) for name, turn in turns.items()}  # without prompt, prefill and first step


def measure(size: str, steps: int) -> dict[str, dict]:
    """Rows by model."""
    made, rows = contenders(size), {}
    times = in_turns(made, steps)
    for name, (model, inputs) in made.items():
        counts = Counts()
        generate(model, inputs, COUNTED + 2, counts)
        pairs = list(zip(times[name].rounds, times[UNTOUCHED].rounds))
        rows[name] = {
            **times[name].to_dict(),
            "share": statistics.median(mine / theirs - 1 for mine, theirs in pairs),
            "calls": counts.calls,
            "operators": counts.operators.count,
        }
    return rows


def table(size: str, rows: dict[str, dict]) -> str:
    layers = SIZES[size][0]["num_hidden_layers"]
    head = f"{f'{size}, {layers} layers':<18}{'ms/token':>10}{'fastest':>10}{'longer by':>11}{'functions':>11}"
    lines = [f"{head}{'operators':>11}"]
    for name, row in rows.items():
        counts = f"{row['calls']:>11}{row['operators']:>11}"
        lines.append(f"{name:<18}{row['ms']:>10.2f}{row['fastest_ms']:>10.2f}{row['share']:>11.1%}{counts}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "cpu"])
    parser.add_argument("--steps", type=int, default=60, help="tokens to generate, at least 8")
    parser.add_argument("--output", type=output_file, help="JSON file for the numbers")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    facts = {"device": devices.describe(torch.device("cpu")), "date": str(date.today()), "steps": args.steps}
    result = {**facts, "sizes": {}}
    for size in args.sizes:
        result["sizes"][size] = rows = measure(size, max(args.steps, 8))
        print(table(size, rows), flush=True)
        if args.output:
            write_json(args.output, result)


if __name__ == "__main__":
    main()
