"""Which aten operators the CPU computes, and what an Ascend device refuses of them."""

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
# Only what they exclude outright and in every release: unique_consecutive, which transformers' vision towers call, is
# excluded in 2.12 and supported in 2.7.1.
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


def install() -> None:
    """Takes over the aten operators for which torch_npu has a kernel."""
    import torch

    torch.ops.ascend_emulator.install(list(NATIVE), list(UNSUPPORTED), list(NO_FLOAT64), REFUSED_VALUES)
