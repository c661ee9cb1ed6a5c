"""One prompt through a whole model under every setting: prefill, decoding, a training step."""

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from bench.models import Prompt
from bench.results import reason
from bench.timing import Times, stopwatch
from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.backends import device as devices
from ppe_npu.backends.common import IGNORED
from ppe_npu.errors import InputError
from ppe_npu.inspect.report import kv_bytes
from ppe_npu.methods import DPCKNN, IPCV, PixelPrune
from ppe_npu.methods.listing import default, of_pictures
from ppe_npu.models.forward_pass import ForwardPass
from ppe_npu.settings import fields_to_plain

PARTS = ("prefill", "decode", "train")
TOWER, UNMODIFIED, DENSE = "vision tower", "unmodified", "dense"
PIXELPRUNE, IN_TOWER = "pixelprune 0.45", "ipcv"
STEPS = 32
EVERY, SHARE = "all", 0.45  # --compression all: every method at this share of the tokens


def settings(layers: int, blocks: int = 1, picture: int = 0) -> dict[str, CompressionConfig | None]:
    """The settings that are compared in a decoder of `layers` layers; None: without compress().

    Args:
        blocks: blocks of the vision tower. IPCV drops patches before its default block, or before the last if there are
            fewer; 1: no IPCV.
        picture: visual tokens of a picture, of which PixelPrune keeps 45 %; 0: there is no picture.
    """
    third = layers // 3
    late, early = [third - 1, 2 * layers // 3 - 1, layers - 1], [0, third, 2 * layers // 3]
    before = {}
    if picture:
        before[PIXELPRUNE] = CompressionConfig(steps=[PixelPrune(max_kept=DPCKNN(0.45).kept(picture), fill=True)])
    if blocks > 1:
        before[IN_TOWER] = CompressionConfig(steps=[IPCV(prune_block=min(IPCV().prune_block, blocks - 1))])
    return {
        UNMODIFIED: None,
        DENSE: CompressionConfig.preset("dense"),
        "chatunivi 0.45": CompressionConfig.preset("chatunivi"),
        "ppe 0.45": CompressionConfig.preset("ppe"),
        "ppe 0.10": CompressionConfig.preset("ppe", ratio=0.1),
        "ppe 0.90": CompressionConfig.preset("ppe", ratio=0.9),
        "ppe_plus 0.45": CompressionConfig.preset("ppe_plus"),
        f"cascade {late}": CompressionConfig.preset("ppe", layers=late),
        f"cascade {early}": CompressionConfig.preset("ppe", layers=early),
        **before,
    }


def reaches_tower(config: CompressionConfig | None) -> bool:
    """Whether a step changes the vision tower's own time."""
    return config is not None and any(method.place in ("pixels", "tower") for method in config.methods)


def named(texts: Sequence[str], layers: int) -> dict[str, CompressionConfig]:
    """The settings that are compared if a user names them, after the dense model: {text: its compression}.

    Args:
        texts: as CompressionConfig.from_text takes them, or EVERY, each method with one position per token. A method
            whose default layers a decoder of `layers` layers lacks works at as many layers, spread evenly.

    Raises:
        InputError: a text that names no compression, or a name that is compared twice.
    """
    found = {DENSE: CompressionConfig.preset("dense")}
    for text in texts:
        for name, config in (every(layers) if text == EVERY else {text: CompressionConfig.from_text(text)}).items():
            if name in found:
                raise InputError(f"--compression {' '.join(texts)} has {name} twice: leave one out, or name its ratio")
            found[name] = config
    return found


def every(layers: int) -> dict[str, CompressionConfig]:
    """named() of EVERY."""
    found = {}
    for name in of_pictures():
        method = default(name)
        own = {"tower_windows": "frame"} if "tower_windows" in fields_to_plain(method) else {}
        if method.layers and method.layers[-1] >= layers:
            stages = len(method.layers)
            own["layer"] = [layers * stage // (stages + 1) for stage in range(1, stages + 1)]
        found[name] = CompressionConfig.preset(name, ratio=SHARE, **own)
    return found


def peak_mib(run: Callable[[], object]) -> float:
    """Peak MiB that run() allocates on a CPU, from a running sum of torch's allocations and releases, as the system
    rounds the size of a process."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes)) / 2**20


@dataclass(frozen=True)
class Bench:
    """A model, its inputs, and how often each setting is measured: `rounds` times, but no further round begins after
    `seconds` if at least one was measured. compression: the settings to compare, as named() takes them; (): settings().
    """

    model: torch.nn.Module
    inputs: dict
    device: torch.device
    rounds: int
    seconds: float = math.inf
    compression: Sequence[str] = ()

    @functools.cached_property
    def settings(self) -> dict[str, CompressionConfig | None]:
        config = self.model.config
        if self.compression:
            return named(self.compression, config.text_config.num_hidden_layers)
        cells = int((self.inputs["input_ids"] == config.image_token_id).sum())
        return settings(config.text_config.num_hidden_layers, config.vision_config.depth, cells)

    @property
    def short(self) -> list[str]:
        """The settings for decoding and training; the others cost as much as one of these with the same length."""
        return [name for name in self.settings if name not in (UNMODIFIED, "chatunivi 0.45", "ppe 0.90")]

    def configure(self, name: str) -> None:
        restore(self.model)
        config = self.settings.get(name)
        if config is not None:
            compress(self.model, config)

    def turns(
        self, names: Iterable[str], prepare: Callable[[str], None], run: Callable[[str], object]
    ) -> tuple[dict[str, Times], dict[str, list], dict[str, str]]:
        """(milliseconds of run(name) in every round, (result, wall-clock milliseconds) of every run, why settings could
        not run), each by name. A first round is only a warm-up. prepare(name) is not timed."""
        names, times, results, failed = list(names), {}, {}, {}
        end = time.perf_counter() + self.seconds
        for number, name in itertools.product(range(self.rounds + 1), names):
            if number > 1 and name == names[0] and time.perf_counter() > end:
                break
            if name in failed:
                continue
            try:
                prepare(name)
                elapsed, result = self._timed(functools.partial(run, name))
            except Exception as error:
                failed[name] = reason(error)
                self.model.zero_grad(set_to_none=True)
                continue
            if number:
                times.setdefault(name, []).append(elapsed)
                results.setdefault(name, []).append(result)
        return {name: Times(tuple(values)) for name, values in times.items() if name not in failed}, results, failed

    def _timed(self, function: Callable[[], object]) -> tuple[float, tuple[object, float]]:
        """(milliseconds by the benchmark's clock, (result, milliseconds of wall-clock time))."""
        result, start = [], time.perf_counter()
        elapsed = stopwatch(lambda: result.append(function()), self.device)
        return elapsed, (result[0], (time.perf_counter() - start) * 1e3)

    def peak_mib(self, run: Callable[[], object]) -> float:
        """Peak MiB that run() allocates."""
        if devices.on_cpu(self.device):
            return peak_mib(run)
        devices.reset_peak_memory(self.device)
        before = devices.peak_memory(self.device)
        run()
        return (devices.peak_memory(self.device) - before) / 2**20


def measure_part(
    part: str,
    model,
    prompt: Prompt,
    device: torch.device,
    rounds: int,
    checkpointing: bool,
    seconds: float = math.inf,
    compression: Sequence[str] = (),
) -> dict[str, dict]:
    """Rows by setting. checkpointing: use gradient checkpointing in a training step. The rest: as in Bench."""
    bench = Bench(model, prompt.inputs(model), device, rounds, seconds, compression)
    try:
        if part == "train":
            return _train(bench, checkpointing)
        with torch.no_grad():
            return _prefill(bench) if part == "prefill" else _decode(bench)
    finally:
        restore(model)


def _forward(bench: Bench):
    return bench.model(**bench.inputs, use_cache=True, logits_to_keep=1)


def _prefill(bench: Bench) -> dict[str, dict]:
    inputs, visual = bench.inputs, bench.model.model.visual
    kind = "video" if "video_grid_thw" in inputs else "image"
    pixels, grid = inputs["pixel_values_videos" if kind == "video" else "pixel_values"], inputs[f"{kind}_grid_thw"]

    def run(name: str):
        if name == TOWER:
            return visual(pixels, grid_thw=grid)
        _forward(bench)
        return getattr(bench.model, "compression", None) and bench.model.compression.report

    times, reports, failed = bench.turns([TOWER, *bench.settings], bench.configure, run)
    tower, rows = times.pop(TOWER, None), {}
    for name in bench.settings:
        if name in failed:
            rows[name] = {"not_measured": failed[name]}
            continue
        bench.configure(name)
        cache = _forward(bench).past_key_values
        rows[name] = {
            **_speed(name, times),
            **({} if reaches_tower(bench.settings[name]) else _without_tower(times[name], tower)),
            "compression_share": _share(reports[name]),
            "output_length": cache.layers[-1].keys.shape[2],
            "tokens_per_s": inputs["input_ids"].numel() / times[name].median * 1e3,
            "kv_mib": kv_bytes(cache) / 2**20,
            "peak_mib": bench.peak_mib(lambda: _forward(bench)),
        }
        del cache
    dense = rows[DENSE].get("decoder_ms")
    for row in rows.values():
        if dense and row.get("decoder_ms"):
            row["decoder_speedup"] = dense / row["decoder_ms"]
    return rows


def _without_tower(whole: Times, tower: Times | None) -> dict[str, float]:
    """Median milliseconds of tower and decoder; {} if the tower could not be measured alone."""
    if tower is None:
        return {}
    decoder = Times(tuple(max(0.0, both - part) for both, part in zip(whole.rounds, tower.rounds)))
    return {"tower_ms": tower.median, "decoder_ms": decoder.median}


def _decode(bench: Bench) -> dict[str, dict]:
    token, cache = torch.full((1, 1), 11, device=bench.device), {}

    def prepare(name: str) -> None:
        bench.configure(name)
        cache[0] = _forward(bench).past_key_values

    def run(name: str) -> None:
        for _ in range(STEPS):
            bench.model(input_ids=token, past_key_values=cache[0], use_cache=True)

    times, _, failed = bench.turns(bench.short, prepare, run)
    times = {name: Times(tuple(ms / STEPS for ms in value.rounds)) for name, value in times.items()}
    rows = {name: {**_speed(name, times), "tokens_per_s": 1e3 / times[name].median} for name in times}
    for name, row in rows.items():
        prepare(name)
        row["peak_mib"] = bench.peak_mib(functools.partial(run, name))
    return rows | {name: {"not_measured": why} for name, why in failed.items()}


def _train(bench: Bench, checkpointing: bool) -> dict[str, dict]:
    model, inputs = bench.model, bench.inputs
    visual = (inputs["input_ids"] == model.config.image_token_id) | (inputs["input_ids"] == model.config.video_token_id)
    labels = inputs["input_ids"].masked_fill(visual, IGNORED)
    model.train()
    model.model.visual.requires_grad_(False)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A learning rate of 0 costs the same as any other, and leaves the weights unchanged for the next setting.
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, fused=devices.has_fused_adamw(bench.device))

    def run(name: str):
        model(
            **inputs, labels=labels, use_cache=False, ppe=ForwardPass(skip_logits=True)
        ).loss.backward()  # as the trainer calls it
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return model.compression.report

    try:
        times, reports, failed = bench.turns(bench.short, bench.configure, run)
        rows = {name: {"not_measured": why} for name, why in failed.items()}
        for name in times:
            bench.configure(name)
            tokens = inputs["input_ids"].numel() / times[name].median * 1e3
            rows[name] = {
                **_speed(name, times),
                "compression_share": _share(reports[name]),
                "tokens_per_s": tokens,
                "peak_mib": bench.peak_mib(functools.partial(run, name)),
            }
        return rows
    finally:
        model.zero_grad(set_to_none=True)
        model.gradient_checkpointing_disable()
        model.requires_grad_(True).eval()


def _share(reports: list) -> float:
    """The fraction of a pass that compression takes, median over rounds. reports: (report or None, milliseconds)."""
    return statistics.median(report.milliseconds / wall if report else 0.0 for report, wall in reports)


def _speed(name: str, times: dict[str, Times]) -> dict[str, float]:
    speedup = {"speedup": times[name].ratio(times[DENSE])} if DENSE in times else {}
    return times[name].to_dict() | speedup | {"rounds": len(times[name].rounds)}
