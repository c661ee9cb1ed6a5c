"""Makes the passes of the vision tower in which a method works between its blocks, with the pools that compete.

A method says which kind of pass it needs (tower_pass): patches leave and are rebuilt (rebuilding.py), or cells are
joined (joining.py). Cells that a step at the pixels has dropped leave (dropping.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ppe_npu.engine.dropping import Dropping
from ppe_npu.engine.inside import TowerPass
from ppe_npu.engine.joining import Joining
from ppe_npu.engine.pixels import Chosen, leave_after
from ppe_npu.engine.rebuilding import Rebuilding
from ppe_npu.engine.spans import PromptLayout, VisionTokens
from ppe_npu.engine.tower import kept_in_tower
from ppe_npu.errors import InputError
from ppe_npu.inspect.report import Stopwatch
from ppe_npu.inspect.tower_work import TowerReport
from ppe_npu.methods.base import Method
from ppe_npu.methods.checking import check_class
from ppe_npu.methods.tower_methods import TowerMethod

if TYPE_CHECKING:
    from ppe_npu.engine.compression import Compression
    from ppe_npu.engine.plan import PromptPlan

_PASSES: dict[str, type[TowerPass]] = {"": Dropping, "rebuilding": Rebuilding, "joining": Joining}


def pass_of_plan(compression: Compression, plan: PromptPlan, kinds: Sequence[str], where: torch.device) -> TowerPass:
    """The pass of a plan, in which prompts do not compete with each other.

    Args:
        kinds: "image", "video" or both, whatever the tower runs on. where: the device of the patches.
    """
    method, vision, patches = compression.inside, compression.vision, compression.vision.merge_size**2
    assert method is not None, "a method works inside the tower"
    leaving = plan.chosen is not None and plan.chosen.leave != 0
    pool = method.pool if isinstance(method, TowerMethod) else "prompt"
    pools = pools_of(pool, plan.layout, kinds, vision.merge_size, None if leaving else plan.chosen)
    passing = pass_of(method, pools, vision, where, compression.tower.all)
    if isinstance(passing, Dropping):
        assert plan.chosen is not None, "the cells that leave are chosen"
        cells = kept_in_tower(plan.layout, vision.window, plan.chosen)
        passing.keep(cells[cells < sum(pools) // patches], patches, where)
    if compression.widths is not None:
        passing.report = TowerReport(*compression.widths, Stopwatch(where))
    return passing


def pass_of(
    method: Method, pools: Sequence[int], vision: VisionTokens, where: torch.device, seen: Sequence[int] = ()
) -> TowerPass:
    """A new pass.

    Args:
        pools: patches of each pool. where: the device of the patches. seen: blocks that are looked into.
    """
    last = vision.tower_blocks - 1
    made = _PASSES[method.tower_pass]
    passing = made(method, tuple(pools), last + 1, frozenset((*vision.taps, last)), frozenset(seen))
    passing.prepare(vision.merge_size**2, where)
    return passing


def inside_of(methods: Sequence[Method], vision: VisionTokens) -> Method | None:
    """The method that works inside the tower, or whose dropped cells leave there; None if there is none.

    Raises:
        InputError: there are several, one that is not of a kind in methods/tower_methods.py, or it refuses this tower.
    """
    late = [method for method in methods if leave_after(method)]
    inside = [method for method in methods if method.place == "tower"]
    if len(inside) > 1:
        raise InputError(f"{inside[1].name} after {inside[0].name}: only one can run inside the vision tower; keep one")
    for method in inside:
        check_class(type(method))  # again, because a class may be used without being registered
        assert isinstance(method, TowerMethod), "check_class() refuses all others"
        method.check_tower(vision.tower_blocks or vision.tile_blocks, vision.tile_blocks > 0)
    if late and inside:
        raise InputError(
            f"{inside[0].name} after {late[0].name} with leave_after={leave_after(late[0])}: cells cannot leave inside "
            "the tower if another step runs there; use leave_after=0, with which they never enter it"
        )
    for method in late:
        if leave_after(method) > vision.tower_blocks:
            raise InputError(
                f"{method.name} leave_after={leave_after(method)}: the vision tower has {vision.tower_blocks} blocks; "
                "give a number up to that, or -1 for after all of them"
            )
    inside += [method for method in late if 0 < leave_after(method) < vision.tower_blocks]
    return inside[0] if inside else None


def pools_of(
    pool: str, layout: PromptLayout, kinds: Sequence[str], merge_size: int, chosen: Chosen | None = None
) -> list[int]:
    """The number of patches in each pool, in the order of the tower.

    Args:
        pool: as in TowerMethod.
        kinds: "image", "video" or both, whatever the tower runs on. chosen: the tokens that a step at the pixels keeps.
    """
    sizes: dict[tuple, int] = {}
    for span in sorted(layout.spans, key=lambda span: span.feature):
        for frame in range(span.grid[0]) if span.modality in kinds else ():
            of_kind = {"frame": (span.feature, frame), "image": (span.source,), "prompt": (span.sample,)}
            key = (span.modality, *of_kind[pool])
            first, tokens = span.feature + frame * span.frame_tokens, span.frame_tokens
            tokens = tokens if chosen is None else int(chosen.counts([first], [tokens])[0])
            sizes[key] = sizes.get(key, 0) + tokens * merge_size**2
    return list(sizes.values())


def pools_of_grids(pool: str, grids: torch.Tensor, patches: int) -> list[int]:
    """pools_of() for a tower that is called by itself: all patches compete that the method does not keep apart.

    Args:
        grids: [n, 3] (frames, height, width) in patches, which the host reads if necessary.
    """
    if pool == "frame":
        return [height * width for frames, height, width in grids.tolist() for _ in range(frames)]
    return [patches] if pool == "prompt" else grids.prod(-1).tolist()
