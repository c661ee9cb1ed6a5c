"""PVC on Qwen2.5-VL: the classes that a model and its parts are changed to (see install.py).

A grid's frames are its time steps, so that no other argument is needed. The order of windows is the same in every frame
of a video, so that its patches are [T, patches of a frame] in that order, too.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as base

from ppe_npu.engine.rounds import as_tensor
from ppe_npu.errors import InputError
from ppe_npu.models.pvc.config import PVCConfig
from ppe_npu.models.pvc.modules import Frames, TemporalAttention, TimeEmbedding, TimeNorm, Timing

_TIMED = "pvc_timed"  # the keyword argument of blocks
# For each frame size, the index of patches [rows, P] and their timing.
TimedPatches = Sequence[tuple[torch.Tensor, Timing]]


class PVCQwen2_5_VLBlock(base.Qwen2_5_VLVisionBlock):
    """A block with attention over time between its attention over the picture and its MLP."""

    temporal: TemporalAttention

    def forward(self, hidden_states: torch.Tensor, cu_seqlens: torch.Tensor, position_embeddings=None, **kwargs):
        timed = kwargs.pop(_TIMED, ())
        hidden_states = hidden_states + self.attn(
            self.norm1(hidden_states), cu_seqlens=cu_seqlens, position_embeddings=position_embeddings, **kwargs
        )
        for places, timing in timed:
            own = hidden_states.index_select(0, places.flatten()).view(*places.shape, -1)
            own = self.temporal(own, timing).flatten(0, 1)
            whole = len(own) == len(hidden_states)  # then they are in order
            hidden_states = own if whole else hidden_states.index_copy(0, places.flatten(), own)
        return hidden_states + self.mlp(self.norm2(hidden_states))


class PVCQwen2_5_VLMerger(base.Qwen2_5_VLPatchMerger):
    time_norm: TimeNorm
    time: torch.Tensor | None = None  # [tokens, time_width]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.ln_q(x).view(-1, self.hidden_size)
        return self.mlp(normed if self.time is None else self.time_norm(normed, self.time))


class PVCQwen2_5_VLTower(base.Qwen2_5_VisionTransformerPretrainedModel):
    time_embedding: TimeEmbedding

    def forward(self, hidden_states: torch.Tensor, grid_thw: torch.Tensor, **kwargs):
        timed = self.timed(grid_thw.tolist(), hidden_states)
        tokens = hidden_states.shape[0] // self.spatial_merge_unit
        time = timed[0][1].time.new_zeros(tokens, timed[0][1].time.shape[1])
        for places, timing in timed:
            own = places[:, :: self.spatial_merge_unit] // self.spatial_merge_unit
            time = time.index_copy(0, own.flatten(), timing.time.repeat_interleave(own.shape[1], dim=0))
        self.merger.time = time
        try:
            return super().forward(hidden_states, grid_thw, **kwargs, **{_TIMED: timed})
        finally:
            del self.merger.time

    def timed(self, grids: list[list[int]], like: torch.Tensor) -> TimedPatches:
        """For each size of frames, the index of its patches and their timing."""
        firsts = np.cumsum([0, *(t * h * w for t, h, w in grids)])
        out = []
        for size in dict.fromkeys(h * w for _, h, w in grids):
            own = [(first, t) for first, (t, h, w) in zip(firsts, grids) if h * w == size]
            starts = np.concatenate([first + size * np.arange(t) for first, t in own])
            timing = Timing.of(Frames.of([(t, 1) for _, t in own]), self.time_embedding, like)
            out.append((as_tensor(starts[:, None] + np.arange(size)).to(like.device), timing))
        return out


class PVCQwen2_5_VLForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with PVC's modules."""

    def __init__(self, config):
        super().__init__(config)
        equip(self, PVCConfig(**config.pvc))


def equip(model, pvc: PVCConfig) -> None:
    """Change a model and its parts to the classes above, and add PVC's modules."""
    visual, vision = model.model.visual, model.config.vision_config
    if pvc.blocks > len(visual.blocks):
        raise InputError(
            f"pvc's blocks={pvc.blocks}: the vision tower has {len(visual.blocks)} blocks; give at most as many"
        )
    model.__class__, visual.__class__ = PVCQwen2_5_VLForConditionalGeneration, PVCQwen2_5_VLTower
    visual.merger.__class__ = PVCQwen2_5_VLMerger
    visual.time_embedding = TimeEmbedding(pvc.time_width)
    for block in visual.blocks[len(visual.blocks) - pvc.blocks :]:
        block.__class__ = PVCQwen2_5_VLBlock
        block.temporal = TemporalAttention(vision.hidden_size, pvc.heads or vision.num_heads, pvc.time_width)
    visual.merger.time_norm = TimeNorm(visual.merger.hidden_size, pvc.time_width)
