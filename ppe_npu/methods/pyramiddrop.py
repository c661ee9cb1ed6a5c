"""PyramidDrop: fewer tokens stage by stage, by the last token's attention (Xing et al., arXiv 2410.17247, 3)."""

from dataclasses import dataclass

from ppe_npu.methods.base import at_layer, register, share
from ppe_npu.methods.fastv import FastV


@register("pyramiddrop")
@dataclass(frozen=True)
class PyramidDrop(FastV):
    """Keeps, at each of several layers, the tokens to which the prompt's last token attends most. These are M =
    floor(N * ratio) of the N that are left, by softmax(q k / sqrt(d)) over the whole prompt, the mean over heads. Other
    than FastV's it is the attention of the layer that comes next, whose norm and projections are applied ahead of it.

    The published code numbers anew what stays, so that the original positions are lost, and takes padding on the right
    only; here positions are as the config says, and padding is never looked at. In training it takes the mean query of
    the tokens before the answers; here the query is the last token's, in training as in use.

    Args:
        ratio: share of a stage's tokens that is kept; 0.5 leaves 0.5, 0.25 and 0.125 of all, as published.
        dropped: what becomes of the others, see choosing.dropped.
        layer: where the stages begin; published for 32 layers.
    """

    ratio: float = share(0.5)
    layer: int | tuple[int, ...] | None = at_layer((8, 16, 24))

    layer_before = False
