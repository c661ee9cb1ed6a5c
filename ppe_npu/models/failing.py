"""Whose fault a failed forward pass is: what fails without compression, too, is the checkpoint's, or the prompt's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ppe_npu.backends.device import on_cpu
from ppe_npu.errors import InputError, UserError, first_line
from ppe_npu.models import without_compression
from ppe_npu.utils.memory import ran_out


def check_alone(model: Any, call: Callable[[], Any], error: Exception) -> None:
    """Look whether the model fails without compression, too: a checkpoint whose files do not fit each other loads, and
    ends in an IndexError of the embedding's.

    Nothing is tried behind what the user was told already, an end of memory, and an accelerator's own error, behind
    which every call fails; and these say nothing where they end the second call.

    Args:
        model: compressed or not, and the same afterwards.
        call: as little as possible of what failed, once more.
        error: what it raised.

    Raises:
        InputError: it fails without compression.
    """
    if not _tells(model, error):
        return
    found = _alone(model, call)
    if found is not None and _tells(model, found):
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        raise InputError(
            f"{name} fails in transformers, without compression, too ({type(found).__name__}: {first_line(found)}): "
            "its config, tokenizer and weights do not fit each other or this prompt; save or download them again"
        ) from error


def _tells(model: Any, error: Exception) -> bool:
    """Whether an error may be the model's."""
    told = isinstance(error, UserError) or ran_out(error)
    return not told and (on_cpu(model.device) or not isinstance(error, RuntimeError))


def _alone(model: Any, call: Callable[[], Any]) -> Exception | None:
    """What the call raises without compression, if anything."""
    with without_compression(model):
        try:
            call()
        except Exception as error:
            return error
    return None
