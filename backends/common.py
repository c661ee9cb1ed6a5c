"""What every room means by the same word: names of dtypes, and the label that is no label."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IGNORED = -100  # the label of a token without a loss, as transformers and torch have it
