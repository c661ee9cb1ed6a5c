"""Full fp32: turns off the settings by which devices compute fp32 products in fewer bits, and restores them."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .compiling import traced_once


@contextlib.contextmanager
def exact_matmul() -> Iterator[None]:
    """fp32 products and convolutions keep all of fp32: TF32 (CUDA), HF32 (NPU) and bf16 or TF32 (oneDNN) are off.

    The settings belong to the process, so other threads see them while the context is open; it restores all of them.
    A graph of torch.compile cannot change them: the graph breaks here unless products already keep all of fp32.
    """
    if torch.compiler.is_compiling():
        if not _whole_products():
            raise RuntimeError(
                "fp32 products are set to fewer bits: call torch.set_float32_matmul_precision('highest') first"
            )
        yield
        return
    saved = _settings()
    for set_, _, exact, _ in saved:
        set_(exact)
    try:
        yield
    finally:
        for set_, before, _, _ in saved:
            set_(before)


@traced_once
def _whole_products() -> bool:
    return all(value in (exact, "none") for _, value, exact, products in _settings() if products)


def _settings() -> list[tuple[Callable[[Any], None], Any, Any, bool]]:
    """(setter, current value, value that keeps all of fp32, whether it is for matrix products) of every readable
    setting. torch refuses to read a legacy setting if only fp32_precision was set.

    torch keeps a legacy setting beside fp32_precision and complains if the two disagree. Only the legacy setters write
    both, so they come first, on entering the context and on leaving it.
    """
    attributes: list[tuple[Any, str, Any, bool]] = [(torch.backends.cudnn, "allow_tf32", False, False)]
    for library, name in itertools.product(("cuda", "cudnn", "mkldnn"), ("matmul", "conv", "rnn")):
        module = getattr(getattr(torch.backends, library), name, None)
        if hasattr(module, "fp32_precision"):
            attributes.append((module, "fp32_precision", "ieee", name == "matmul"))
    runtime: Any = getattr(torch, "npu", None)
    # torch_npu's own default is off for products, but on for convolutions: a vision tower's patch embedding is one.
    for module in () if runtime is None else (runtime.matmul, runtime.conv):
        if module.allow_hf32:
            attributes.append((module, "allow_hf32", False, module is runtime.matmul))
    found: list[tuple[Callable[[Any], None], Any, Any, bool]] = []
    with contextlib.suppress(RuntimeError):
        precision = torch.get_float32_matmul_precision()
        found.append((torch.set_float32_matmul_precision, precision, "highest", True))
    for owner, name, exact, products in attributes:
        with contextlib.suppress(RuntimeError):
            found.append((functools.partial(setattr, owner, name), getattr(owner, name), exact, products))
    return found
