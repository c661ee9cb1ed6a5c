"""Keys and attention scores from inside the vision tower, for methods that look into its blocks.

While the tower runs, there are hooks on those blocks only. They take queries and keys from the projection that the
block has just computed, whichever operator attends with them afterwards. No additional module is called (ZeRO-3 needs
the same order in all processes), and a block that gradient checkpointing runs again is not looked into again.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from ppe_npu import backends
from ppe_npu.backends.compiling import is_traced
from ppe_npu.backends.device import Stopwatch
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.plan import PromptPlan
from ppe_npu.engine.rounds import as_tensor, upload
from ppe_npu.engine.tower import GROUPS, KEYS, SALIENCY, TowerTokens, frame_patches, kept_in_tower, received
from ppe_npu.methods.tower_methods import group_offsets


@dataclass
class Watch:
    """One run of the tower.

    Args:
        parts: what the blocks that have run gave, in the order of the tower, see TowerTokens.
        kept: [V] int64 index of the kept tokens in the tower, if it is given others, too; else None.
        spent: the time that looking took, once a block was looked into.
    """

    compression: Compression
    plan: PromptPlan
    kept: torch.Tensor | None = None
    parts: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    spent: Stopwatch | None = None

    def tokens(self, device: torch.device, stands: torch.Tensor | None = None) -> TowerTokens:
        """The parts on the device of the features, and in their order.

        Args:
            stands: [V] if cells were joined in the tower, for each cell the index of the cell that continues its group.
        """
        order = self.plan.on(device).tower_order
        parts = {at: part.to(device) for at, part in self.parts.items()}  # a tower may be spread over devices
        if order is not None:
            parts = {at: part.index_select(0, order) for at, part in parts.items()}
        if stands is not None:
            parts[GROUPS, 0] = group_offsets(stands.to(device), order)
        return TowerTokens(self.compression.tower, parts)

    @torch.no_grad()
    def see(self, number: int, attention, qkv: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Take what is wanted from a block's projection [T, 3 * H * D]; table: its cos, sin [T, D]."""
        if self.spent is None:
            self.spent = Stopwatch(qkv.device)
        else:
            self.spent.mark()
        vision, wanted, chosen = self.compression.vision, self.compression.tower, self.plan.chosen
        patches, whole = vision.merge_size**2, chosen is not None and chosen.runs_whole(number)
        if self.kept is not None and not whole:
            rows = self.kept.to(table[0].device)
            rows = (rows[:, None] * patches + torch.arange(patches, device=rows.device)).flatten()
            table = (table[0].index_select(0, rows), table[1].index_select(0, rows))
        heads = qkv.detach().unflatten(-1, (3, attention.num_heads, -1)).permute(1, 2, 0, 3)
        cos, sin = (part[None].float() for part in table)
        # In fp32, then rounded, like transformers' rotary embedding of the vision tower.
        query, key = heads[:2, None].float()
        query, key = (part[0].to(qkv.dtype) for part in backends.rotary(query, key, cos, sin))
        found: dict[tuple[str, int], torch.Tensor] = {}
        if number in wanted.keys:
            found[KEYS, number] = key.float().mean(0).unflatten(0, (-1, patches)).mean(1)
        if number in wanted.saliency:
            frames = frame_patches(self.plan.layout, vision.merge_size, None if whole else chosen)
            scores = received(query, key, frames, attention.scaling)
            found[SALIENCY, number] = scores.unflatten(0, (-1, patches)).sum(1)
        if self.kept is not None and whole:
            found = {at: part.index_select(0, self.kept.to(part.device)) for at, part in found.items()}
        self.parts |= found
        self.spent.mark()


@contextlib.contextmanager
def watched(model, plan: PromptPlan, where: torch.device) -> Iterator[Watch]:
    """Context that looks into the blocks that the model's methods name, while its tower runs on the device `where`."""
    watch, handles, eager = Watch(model.compression, plan), [], contextlib.nullcontext()
    numbers = model.compression.tower.all
    if numbers and plan.chosen is not None and plan.chosen.leave:
        kept = as_tensor(kept_in_tower(plan.layout, model.compression.vision.window, plan.chosen))
        watch.kept = upload(kept, where)
    if is_traced(model.visual):
        eager = torch.compiler.set_stance("force_eager")  # compiled code does not see hooks that are added later
    try:
        for number in numbers:
            handles += _hooked(watch, number, model.visual.blocks[number])
        with eager:
            yield watch
    finally:
        for handle in handles:
            handle.remove()


def _hooked(watch: Watch, number: int, block) -> list:
    table: list[torch.Tensor] = []

    def before(_module, _args, kwargs) -> None:
        table[:] = kwargs["position_embeddings"]

    def after(_module, _args, projected) -> None:
        cos, sin = table
        watch.see(number, block.attn, projected, (cos, sin))

    return [block.register_forward_pre_hook(before, with_kwargs=True), block.attn.qkv.register_forward_hook(after)]
