"""Detection of out-of-memory errors of all devices."""

from __future__ import annotations

import torch

_WORDS = ("out of memory", "can't allocate memory", "not enough memory")  # by devices, and by torch's CPU allocator


def ran_out(error: BaseException) -> bool:
    """Whether an error reports that memory ran out, so that smaller batches might succeed."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)
