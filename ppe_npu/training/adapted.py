"""A checkpoint that is loaded to answer, not to train: a whole model, or an adapter added to its base in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ppe_npu.checkpoints.loading import DTYPES, check_checkpoint, load_model
from ppe_npu.checkpoints.trust import check_no_code
from ppe_npu.errors import InputError
from ppe_npu.models.fused import fuse
from ppe_npu.training.checkpoint import ADAPTER_CONFIG, read_base
from ppe_npu.training.export import base_path, merged


@dataclass(frozen=True)
class Checkpoint:
    """Where a model is read from.

    Attributes:
        folder: a folder or a hub id, as it was given.
        base: for an adapter, where the model is that it was trained on; None for a whole model.
        allow_bin: whether pytorch_model.bin is read where there is nothing else.
        tiled: whether InternVL, whose pictures are cut into tiles, is accepted.
    """

    folder: str
    base: str | None = None
    allow_bin: bool = False
    tiled: bool = False

    @classmethod
    def of(
        cls, folder: str | Path, base: str | Path | None = None, allow_bin: bool = False, tiled: bool = False
    ) -> Checkpoint:
        """The Checkpoint in a folder or of an id, after checking that it exists.

        Args:
            base: an adapter's base; None: the one that its base.json names.

        Raises:
            InputError: no checkpoint, an adapter without its base, or a base given for a whole model.
        """
        path = Path(folder).expanduser()
        adapter = (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()
        if not adapter:
            if base is not None:
                raise InputError(f"--base {base}: model {folder} is not an adapter and needs no base: leave it out")
            check_checkpoint(folder, allow_bin, tiled)
            return cls(str(folder), None, allow_bin, tiled)
        check_no_code(path)
        with _base_flag_in_messages():
            return cls(str(folder), base_path(path, read_base(path), base, allow_bin, tiled), allow_bin, tiled)

    @property
    def model(self) -> str:
        """Where the model's config and generation settings are."""
        return self.base or self.folder

    @property
    def processor(self) -> str:
        """Where the processor is: in the folder if one was saved there, else beside the model."""
        return self.folder if (Path(self.folder) / "tokenizer_config.json").is_file() else self.model

    def load(self, device: torch.device | str, dtype: str = "fp32", read: Callable = load_model) -> Any:
        """The model, as load_model() loads it. An adapter is added to its base's weights in the dtype in which it was
        trained, as `merge-lora` does, so that both give the same answers.

        Raises:
            InputError: as load_model; an adapter that is incomplete, or was trained on another base.
        """
        if self.base is None:
            asked = {name: True for name in ("allow_bin", "tiled") if getattr(self, name)}
            return read(self.folder, device, dtype, **asked)
        with _base_flag_in_messages():
            model = merged(Path(self.folder).expanduser(), self.base, self.allow_bin)
        model.config._name_or_path = self.folder  # evaluations are distinguished by it
        for (
            parameter
        ) in model.parameters():  # not the buffers: rotary frequencies stay fp32, as from_pretrained has them
            parameter.data = parameter.data.to(DTYPES[dtype])
        return fuse(model.to(device).eval())


@contextlib.contextmanager
def _base_flag_in_messages() -> Iterator[None]:
    """Rename --model to --base in messages: `merge-lora` takes the base as --model, here it is the adapter itself."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("with --model", "with --base")) from error
