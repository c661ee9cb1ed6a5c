"""What a failed forward pass is due to: if it fails without compression, too, to the checkpoint or the prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ppe_npu.backends.device import on_cpu
from ppe_npu.errors import InputError, UserError, first_line
from ppe_npu.models import without_compression
from ppe_npu.utils.memory import ran_out


def check_alone(model: Any, call: Callable[[], Any], error: Exception) -> None:
    """Check whether the model fails without compression, too. A checkpoint whose files do not fit each other can be
    loaded, for example, but then fails with an IndexError in the embedding.

    No second call is made after a UserError, running out of memory, or an accelerator's own error (after which every
    call fails). If the second call ends in one of these, nothing follows from it.

    Args:
        model: compressed or not; the same afterwards.
        call: repeats as little as possible of what failed.
        error: what the failed call raised.

    Raises:
        InputError: it fails without compression.
    """
    if not _may_be_due_to_model(model, error):
        return
    found = _alone(model, call)
    if found is not None and _may_be_due_to_model(model, found):
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        raise InputError(
            f"{name} also fails in transformers without compression ({type(found).__name__}: {first_line(found)}): "
            "its config, tokenizer and weights do not fit each other or this prompt; save or download them again"
        ) from error


def _may_be_due_to_model(model: Any, error: Exception) -> bool:
    """Whether an error may be due to the model."""
    told = isinstance(error, UserError) or ran_out(error)
    return not told and (on_cpu(model.device) or not isinstance(error, RuntimeError))


def _alone(model: Any, call: Callable[[], Any]) -> Exception | None:
    """The exception that the call raises without compression, or None."""
    with without_compression(model):
        try:
            call()
        except Exception as error:
            return error
    return None
