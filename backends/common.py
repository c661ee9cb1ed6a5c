"""What every room means by the same word: names of dtypes, the label that is no label, how long a frame is, and how
kernels say which dtypes they take."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_NEIGHBORS = 5  # of a density: the k of Chat-UniVi; fewer where a frame keeps few tokens. Kernels take no more
IGNORED = -100  # the label of a token without a loss, as transformers and torch have it


def frame_lengths(tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """[F] int32, how many tokens of [F, N, C] each frame has: by its mask [F, N], or all."""
    if valid is None:
        return torch.full((len(tokens),), tokens.shape[1], dtype=torch.int32, device=tokens.device)
    return valid.sum(1, dtype=torch.int32)


def refused_dtype(kernels: str, dtype: torch.dtype, narrow: bool = False) -> str | None:
    """Why kernels take no tensor of this dtype; None where they take it.

    Args:
        kernels: which ones, and their verb: "the Triton kernels take".
        narrow: whether they take 16 bits alone, and not fp32.
    """
    if dtype in (torch.float16, torch.bfloat16) or (dtype == torch.float32 and not narrow):
        return None
    return f"{kernels} {'fp16 and bf16' if narrow else 'fp16, bf16 and fp32'}, not {dtype}"


def refused_clustering(tokens: torch.Tensor, most_neighbors: int) -> str | None:
    """Why Triton kernels, whoever's, do not cluster tokens [F, N, C]; None where nothing of that stands in the way."""
    if reason := refused_dtype("the Triton kernels take", tokens.dtype):
        return reason
    if most_neighbors > MAX_NEIGHBORS:
        return f"the Triton kernels take at most {MAX_NEIGHBORS} neighbours"
    return "the Triton kernels take no empty tensor" if tokens.numel() == 0 else None
