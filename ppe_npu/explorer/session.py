"""The state of one visitor of the page."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

from ppe_npu.config import CompressionConfig
from ppe_npu.errors import InputError
from ppe_npu.evaluation.generation import Generated
from ppe_npu.explorer import sources
from ppe_npu.explorer.groups import Explorer, Look
from ppe_npu.explorer.sources import Source
from ppe_npu.explorer.state import YOURS, Settings
from ppe_npu.inspect.show import draw_strip

COLUMNS = ("dense", "left", "right")
_SIDE, _SIDE_VIDEO = 560, 280  # pixels of the longer side of a drawn picture, and of a video's frame


@dataclass
class Session:
    """One visitor's settings and results.

    Attributes:
        uploaded: the visitor's own picture or video. source: the one that is shown.
        prepared: (source, question, model inputs). looks: each column's groups and costs. done: each column's answer.
    """

    settings: Settings = field(default_factory=Settings)
    uploaded: Source | None = None
    source: Source | None = None
    prepared: tuple[Source, str, Any] | None = None
    configs: dict[str, CompressionConfig] = field(default_factory=dict)
    looks: dict[str, Look] = field(default_factory=dict)
    done: dict[str, Generated] = field(default_factory=dict)
    seconds: float = 0.0

    def upload(self, explorer: Explorer, path: str) -> None:
        """Read a visitor's file; InputError states in one line what is wrong with it."""
        self.uploaded = sources.yours(path, explorer.sampling, explorer.temporal_patch)

    def update(self, explorer: Explorer, settings: Settings) -> None:
        """Apply new settings. If they are invalid, raise InputError and leave the session unchanged."""
        started = time.perf_counter()
        configs = {"dense": CompressionConfig.preset("dense")}
        for side in COLUMNS[1:]:
            config = settings.compression(side, explorer.layers)
            configs |= {} if config is None else {side: config}
        if settings.source == YOURS:
            if self.uploaded is None:
                raise InputError("source yours needs an upload, as a link holds no files: upload a picture or a video")
            source = self.uploaded
        elif self.source is not None and self.settings.source == settings.source:
            source = self.source
        else:
            source = sources.ours(settings.source, explorer.unit, explorer.temporal_patch)
        prepared, kept = self.prepared, self.looks
        if prepared is None or prepared[0] is not source or prepared[1] != settings.question:
            prepared, kept = (source, settings.question, explorer.inputs(source, settings.question)), {}
        kept = {name: look for name, look in kept.items() if self.configs[name] == configs.get(name)}
        looks = {name: kept.get(name) or explorer.look(prepared[2], config) for name, config in configs.items()}
        place = min(settings.place, looks["dense"].groups.labels.size - 1)
        self.done = {name: done for name, done in self.done.items() if name in kept}
        self.settings, self.source = dataclasses.replace(settings, place=place), source
        self.prepared, self.configs, self.looks = prepared, configs, looks
        self.seconds = time.perf_counter() - started

    def prompt(self) -> Any:
        """The model's inputs."""
        if self.prepared is None:
            raise InputError("no picture is selected any more: choose one again")
        return self.prepared[2]

    @property
    def drawn(self) -> tuple[int, int | None]:
        """(longer side of a frame in pixels, columns of frames), as draw_strip() takes them."""
        frames = 1 if self.source is None else len(self.source.frames)
        return (_SIDE, 1) if frames == 1 else (_SIDE_VIDEO, 2 if frames <= 4 else 4)

    def picture(self, name: str) -> Any:
        """A drawing of a column's groups, with the group of the selected token outlined."""
        look, (side, columns) = self.looks[name], self.drawn
        token = int(look.groups.labels.reshape(-1)[self.settings.place])
        frames = self.source.frames if self.source is not None else ()
        return draw_strip(frames, look.groups, side, None if token < 0 else token, not look.renumbered, columns)
