"""What every room means by the same word: names of dtypes, the label that is no label, how long a frame is."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IGNORED = -100  # the label of a token without a loss, as transformers and torch have it


def frame_lengths(tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """[F] int32, how many tokens of [F, N, C] each frame has: by its mask [F, N], or all."""
    if valid is None:
        return torch.full((len(tokens),), tokens.shape[1], dtype=torch.int32, device=tokens.device)
    return valid.sum(1, dtype=torch.int32)
