"""Which errors say that memory ended, of whatever device."""

from __future__ import annotations

import torch

_WORDS = ("out of memory", "can't allocate memory", "not enough memory")  # of devices, and of torch's CPU allocator


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ended: with less to do at once there might have been enough."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)
