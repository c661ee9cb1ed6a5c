"""Tensors after which memory ends, so that reading or writing one number past them kills the process (SIGSEGV)."""

import ctypes
import mmap

import torch


def at_the_end_of_a_page(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the tensor whose last byte is the last of a page, before a page without access. It is never freed."""
    size, page = tensor.numel() * tensor.element_size(), mmap.PAGESIZE
    whole = -(-size // page) * page
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    ours = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start = libc.mmap(None, whole + page, mmap.PROT_READ | mmap.PROT_WRITE, ours, -1, 0)
    assert libc.mprotect(start + whole, page, 0) == 0
    buffer = (ctypes.c_byte * size).from_address(start + whole - size)
    return torch.frombuffer(buffer, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
