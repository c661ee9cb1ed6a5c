"""Definitions shared by all devices: names of dtypes, the ignored label, lengths of frames, and why kernels refuse
tensors."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_NEIGHBORS = 5  # for a density: Chat-UniVi's k, less in frames that keep few tokens. Triton kernels take no more
IGNORED = -100  # the label of a token without a loss, as in transformers and torch


def frame_lengths(tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """int32 [F], the number of tokens of each frame of tokens [F, N, C]: by the mask valid [F, N], or N without one."""
    if valid is None:
        return torch.full((len(tokens),), tokens.shape[1], dtype=torch.int32, device=tokens.device)
    return valid.sum(1, dtype=torch.int32)


def refused_dtype(kernels: str, dtype: torch.dtype, narrow: bool = False) -> str | None:
    """Why kernels take no tensor of this dtype; None where they take it.

    Args:
        kernels: subject and verb of the message, such as "the Triton kernels take".
        narrow: whether they take only 16 bits, and not fp32.
    """
    if dtype in (torch.float16, torch.bfloat16) or (dtype == torch.float32 and not narrow):
        return None
    return f"{kernels} {'fp16 and bf16' if narrow else 'fp16, bf16 and fp32'}, not {dtype}"


def refused_clustering(tokens: torch.Tensor, most_neighbors: int) -> str | None:
    """Why no Triton kernel, for CUDA or Ascend, clusters tokens [F, N, C]; None if these checks find no reason."""
    if reason := refused_dtype("the Triton kernels take", tokens.dtype):
        return reason
    if most_neighbors > MAX_NEIGHBORS:
        return f"the Triton kernels take at most {MAX_NEIGHBORS} neighbours"
    return "the Triton kernels take no empty tensor" if tokens.numel() == 0 else None
