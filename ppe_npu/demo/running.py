"""What the demo's comparisons share: a job for a worker process, the processes, data drawn once, models trained once.

Finished work is kept in the output folder with a note of what it was made from, and is not done again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from ppe_npu.config import CompressionConfig
from ppe_npu.files import write_json
from ppe_npu.utils.reading import json_or_none


@dataclass(frozen=True)
class Contender:
    """A row of the report: its name there and its compression."""

    name: str
    config: CompressionConfig


@dataclass(frozen=True)
class Job:
    """One method, fine-tuned and evaluated for one seed; everything a worker process needs."""

    method: Contender
    seed: int
    output: str
    device: str
    threads: int | None

    @property
    def folder(self) -> Path:
        slug = "-".join("".join(c if c.isalnum() else " " for c in self.method.name.lower()).split())
        return Path(self.output) / f"seed{self.seed}" / slug


def draw_once(folder: Path, name: str, asked: Sequence[Any], what: str, write: Callable[..., Any]) -> None:
    """Draw a split by write(folder, name, *asked), unless it was already drawn with the same `asked`: the number of
    items, and everything else that the split depends on."""
    drawn = folder / f"{name}.recipe.json"
    if json_or_none(drawn) != json.loads(json.dumps(asked)):
        print(f"drawing {asked[0]:,} {what} for {name}", flush=True)
        write(folder, name, *asked)
        write_json(drawn, list(asked))


def train_once(recipe, model: Path, data: Path, output: Path, compression, seed: int, device: str, **more) -> None:
    """Train with a recipe's settings, unless output/final was made with the same ones.

    Data and starting weights count as settings, identified by size and modification time and not by path. A model that
    was trained with other settings is deleted and trained again.
    """
    from ppe_npu.training.args import TrainConfig
    from ppe_npu.training.trainer import train

    settings = {field.name for field in dataclasses.fields(TrainConfig)}
    values = {"save_steps": recipe.max_steps // 4}
    values |= {key: value for key, value in dataclasses.asdict(recipe).items() if key in settings}
    config = TrainConfig(
        model=str(model),
        data=str(data),
        output=str(output),
        compression=compression,
        seed=seed,
        device=device,
        resume=True,
        cache_pixels=True,
        **values,
        **more,
    )
    weights = model / "model.safetensors"
    made_from = {"settings": config.identity(), "data": stamp(data), "model": stamp(weights)}
    note = output / "made_from.json"
    default = TrainConfig(config.model, config.data, config.output).identity()  # values that older notes lack
    noted, now = (_without_paths(found, default) for found in (json_or_none(note), made_from))
    same = noted == now
    if same and (output / "final" / "compression.json").is_file():
        return
    if not same:
        shutil.rmtree(output, ignore_errors=True)
        write_json(note, made_from)
    train(config, announce=False)


def _without_paths(made_from: Any, default: dict[str, Any]) -> Any:
    """`made_from` without paths, or None if it is not a valid note. default: settings for those that it lacks."""
    settings = made_from.get("settings") if isinstance(made_from, dict) else None
    if not isinstance(settings, dict):
        return None
    settings = {key: value for key, value in {**default, **settings}.items() if key not in ("model", "data")}
    return json.loads(json.dumps({**made_from, "settings": settings}))


def stamp(file: Path) -> list[int]:
    """Size and modification time of a file; if they have changed, the file was replaced."""
    seen = file.stat()
    return [seen.st_size, seen.st_mtime_ns]


def set_up_process(threads: int | None) -> None:
    import torch

    from ppe_npu.checkpoints.loading import quiet_transformers

    quiet_transformers()
    if threads is not None:
        torch.set_num_threads(threads)


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of spawned workers, because a forked copy of a process that has used torch's threads may hang."""
    context = get_context("spawn")
    slots = context.Queue()
    for slot in range(workers):
        slots.put(slot)
    return ProcessPoolExecutor(
        workers, mp_context=context, initializer=_set_up_worker, initargs=(slots, sys.stdout is sys.stderr)
    )


def _set_up_worker(slots, aside: bool) -> None:
    """Give this worker's progress bars a line of their own (tqdm reads the variable when it is first imported), and
    make the worker end when its parent process ends.

    Args:
        aside: whether to print to stderr, as the parent process does.
    """
    os.environ["TQDM_POSITION"] = str(slots.get())
    if aside:
        os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()  # type: ignore[union-attr]  # a worker has one
    os._exit(1)
