"""A naive merge of cells in a tower, as an oracle: one frame and one pair at a time, dense masks. Gradients flow.

As in naive_ipcv.py, the naive outputs of the blocks take the place of the plain tower's own.
"""

from __future__ import annotations

import torch
from naive_ipcv import attention, heads_of, segments_of, with_blocks


def naive(visual, pixels, grid, method, frames, match=None, mean=None):
    """(The tower's output under a method's settings, for each cell in the tower's order the cell at which its group
    continues).

    Args:
        frames: how many cells each frame has. match, mean: in place of matched() and _mean() for the joined cells.
    """
    stands: list[int] = []
    how = match or matched, mean or _mean
    output = with_blocks(visual, pixels, grid, lambda calls: _blocks(visual, calls, method, frames, stands, *how))
    return output, stands


def _blocks(visual, calls, method, frames, stands, match, mean):
    """The output of each block."""
    state, out = calls[0][0], []
    joins = sorted(block % len(visual.blocks) for block in method.merge_blocks)
    members = {cell: [cell] for cell in range(sum(frames))}  # keyed by the cell at which a group continues
    for number, (block, (_, given)) in enumerate(zip(visual.blocks, calls)):
        table, segments = given["position_embeddings"], segments_of(given["cu_seqlens"].tolist())
        rows = torch.tensor([4 * cell + patch for cell in members for patch in range(4)])
        mid = dict(zip(members, (state[rows] + attention(block, state, table, rows, rows, segments)).split(4)))
        if number in joins:
            _, keys, _ = heads_of(block, state, table)
            keys = {cell: keys[4 * cell : 4 * cell + 4].detach().mean((0, 1)) for cell in members}
            groups, first = {}, 0
            for size in frames:
                own = {cell: len(members[cell]) for cell in members if first <= cell < first + size}
                gone = (size - method.kept(size)) * (joins.index(number) + 1) // len(joins)
                groups |= match(own, keys, size - gone)
                first += size
            sizes = {cell: len(own) for cell, own in members.items()}
            mid = {cell: mean(mid, joined, sizes) for cell, joined in groups.items()}
            members = {cell: [one for part in joined for one in members[part]] for cell, joined in groups.items()}
        fed = torch.cat(list(mid.values()))
        fed = dict(zip(members, (fed + block.mlp(block.norm2(fed))).split(4)))
        stands[:] = [next(at for at, own in members.items() if cell in own) for cell in range(sum(frames))]
        state = torch.cat([fed[at] for at in stands])
        out.append(state)
    return out


def matched(sizes, keys, left):
    """{the cell at which a group continues: the cells of the group}, once `left` groups remain."""
    groups = {cell: [cell] for cell in sizes}
    while len(groups) > left:
        means = {cell: _mean(keys, own, sizes) for cell, own in groups.items()}
        evens, odds = list(groups)[::2], list(groups)[1::2]
        pairs = []
        for even in evens:
            alike = [float(torch.cosine_similarity(means[even], means[odd], dim=0)) for odd in odds]
            pairs.append((max(alike), even, odds[alike.index(max(alike))]))
        pairs.sort(key=lambda pair: -pair[0])
        for _, even, odd in pairs[: min(len(groups) - left, len(groups) // 2)]:
            groups[odd] = groups[odd] + groups.pop(even)
    return groups


def _mean(values, cells, sizes):
    return sum(values[cell] * sizes[cell] for cell in cells) / sum(sizes[cell] for cell in cells)
