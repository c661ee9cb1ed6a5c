"""Counts the torch operators of a merge: of this package's, which merges all frames at once (with masks and positions,
and the reference implementations of clustering and means), and of the released loop."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench import released_loop
from ppe_npu import CompressionConfig
from ppe_npu.backends import dispatch
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.positions import contiguous_channels
from ppe_npu.engine.spans import VisionTokens

VIDEO_ID, FRAME = 9, (8, 16)


class Counter(TorchDispatchMode):
    """Counts the operators that run inside it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def operators(frames: int) -> dict[str, int]:
    """{"ours", "released"} operators of a merge of `frames` frames of 128 tokens at ratio 0.45, K = 8; on the CPU."""
    height, width = FRAME
    tokens, config = height * width, CompressionConfig.preset("ppe")
    vision = VisionTokens(image_token_id=8, video_token_id=VIDEO_ID, merge_size=2, tokens_per_second=2)
    compression = Compression(config, vision, contiguous_channels([16, 24, 24]), decoder_layers=12)
    ids = torch.full((1, frames * tokens), VIDEO_ID)
    plan = compression.plan(ids, None, None, torch.tensor([[frames, 2 * height, 2 * width]]), None)
    plan.on(ids.device)
    features = torch.randn(frames * tokens, 64)
    with dispatch.using(dpc_knn="reference", group_mean="reference"), Counter() as ours:
        compression.prefill(plan, features[:0], features)
    budget = config.span_tokens(1, tokens)
    rows = torch.arange(tokens).expand(frames, 3, -1)
    with Counter() as theirs:
        released_loop.merge(features.view(frames, tokens, -1), rows, budget, 5, config.k)
    return {"ours": ours.count, "released": theirs.count}
