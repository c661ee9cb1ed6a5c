"""PyramidDrop: keeps fewer tokens stage by stage, by the last token's attention (Xing et al., arXiv 2410.17247, 3)."""

from dataclasses import dataclass

from ppe_npu.methods.base import at_layer, register, share
from ppe_npu.methods.fastv import FastV


@register("pyramiddrop")
@dataclass(frozen=True)
class PyramidDrop(FastV):
    """Keeps, at each of several layers, the tokens to which the prompt's last token attends most. These are M =
    floor(N * ratio) of the N that are left, by softmax(q k / sqrt(d)) over the whole prompt, the mean over heads.
    Unlike in FastV, it is the attention of the layer about to run, whose norm and projections are applied in advance.

    The published code renumbers what stays, so that the original positions are lost, and supports padding only on the
    right; here positions follow the config, and padding is ignored. In training the published code uses the mean query
    of the tokens before the answers; here the query is that of the last token, in training and in inference.

    Args:
        ratio: fraction of the tokens to keep in each stage; 0.5 leaves 0.5, 0.25 and 0.125 of all, as published.
        dropped: what becomes of the other tokens, see choosing.dropped.
        layer: the layers where the stages begin; the defaults are published for 32 layers.
    """

    ratio: float = share(0.5)
    layer: int | tuple[int, ...] | None = at_layer((8, 16, 24))

    layer_before = False
