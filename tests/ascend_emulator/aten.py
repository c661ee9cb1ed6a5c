"""Which aten operators the CPU computes, and what an Ascend device refuses of them."""

import os
import warnings
from collections.abc import Callable
from typing import Any

from . import environment

# torch_npu's own kernels stay where memory is made, viewed or moved: they do not compute, and what they do to storages
# is part of what is tested. Its SDPA stays because it is the way to npu_fusion_attention_v3.
NATIVE = (
    "aten::empty.memory_format",
    "aten::empty_strided",
    "aten::empty_like",
    "aten::new_empty_strided",
    "aten::as_strided",
    "aten::as_strided_",
    "aten::view",
    "aten::_reshape_alias",
    "aten::view_as_complex",
    "aten::view_as_real",
    "aten::unfold",
    "aten::squeeze",
    "aten::squeeze.dim",
    "aten::unsqueeze",
    "aten::resize_",
    "aten::resize_as_",
    "aten::set_",
    "aten::set_.source_Storage",
    "aten::set_.source_Storage_storage_offset",
    "aten::set_.source_Tensor",
    "aten::is_set_to",
    "aten::record_stream",
    "aten::is_pinned",
    "aten::_pin_memory",
    "aten::scaled_dot_product_attention",
    "aten::_fused_sdp_choice",
)

# What the tables of native operators exclude (Ascend/pytorch, docs/zh/api/native_api, release 2.12; A2 and A3 devices).
# Only what they exclude outright and in every release. unique_consecutive, which the vision tower of transformers'
# Qwen2.5-VL calls in every forward pass, is excluded in 2.12 and supported in 2.7.1: it is allowed here, and whether
# a device has it is not shown.
UNSUPPORTED = ("aten::scatter_reduce", "aten::scatter_reduce_")
NO_FLOAT64 = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::addbmm",
    "aten::mv",
    "aten::addmv",
    "aten::dot",
    "aten::vdot",
    "aten::sort",
    "aten::kthvalue",
    "aten::_cdist_forward",
)
REFUSED_VALUES = {"aten::topk": "sorted=0"}  # argument=value that it must not have

# Under torch.npu.conv.allow_hf32, which is on by default, CANN may take their fp32 inputs as HF32.
CONVOLUTIONS = ("convolution", "convolution_backward")
HF32_DROPPED_BITS = 12  # of fp32's 23 bits of mantissa; 11 stay


def install() -> None:
    """Takes over the aten operators for which torch_npu has a kernel."""
    import torch

    torch.ops.ascend_emulator.install(list(NATIVE), list(UNSUPPORTED), list(NO_FLOAT64), REFUSED_VALUES)
    library = torch.library.Library("aten", "IMPL")
    for name in CONVOLUTIONS:
        with warnings.catch_warnings():  # torch says that a kernel is replaced, which is what is wanted
            warnings.simplefilter("ignore")
            library.impl(name, _in_hf32(torch, name), "PrivateUse1")
    _kept.append(library)


_kept: list = []  # keeps libraries alive, because their registrations end with them


def _in_hf32(torch: Any, name: str) -> Callable:
    """A convolution that rounds its fp32 inputs where HF32 is allowed."""
    kernel = torch.library.get_kernel(f"aten::{name}", "PrivateUse1")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)

    def run(*args: Any, **kwargs: Any) -> Any:
        if os.environ.get(environment.HF32, "1") != "0" and torch.npu.conv.allow_hf32:
            args = tuple(_rounded(torch, value) for value in args)
        return kernel.call_boxed(keys, *args, **kwargs)

    return run


def _rounded(torch: Any, value: Any) -> Any:
    """Rounds to the nearest number with HF32's mantissa: adds half a step, and cuts off what HF32 lacks."""
    if not isinstance(value, torch.Tensor) or value.dtype is not torch.float32:
        return value
    step = 1 << HF32_DROPPED_BITS
    bits = torch.ops.ascend_emulator.as_cpu(value).contiguous().view(torch.int32)
    return ((bits + step // 2) & -step).view(torch.float32).to(value.device)
