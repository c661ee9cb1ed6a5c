"""FastV: keeps the tokens to which the prompt's last token attends most (Chen et al., arXiv 2403.06764, section 4)."""

from dataclasses import dataclass

from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method, at_layer, register, share
from ppe_npu.methods.choosing import best, dropped
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View


@register("fastv")
@dataclass(frozen=True)
class FastV(Method):
    """Keeps the tokens to which the prompt's last token attends most. On entry to layer K these are the M =
    floor(N * ratio) with the largest attention in layer K - 1, softmax(q k / sqrt(d)) over the whole prompt, the mean
    over heads.

    The published code switches that layer to eager attention, without a causal mask and with its softmax in fp16; the
    last token's row, and so the choice, is the same up to rounding. Here only that row is recomputed, from the layer's
    queries and keys. The published code looks only at the first sample of a batch and the first image of a prompt; here
    each image or video of each sample is a cell, scored by the last token of its prompt. Ties go to the first token.

    Args:
        ratio: fraction of the tokens to keep, 1 - R for the paper's R.
        dropped: what becomes of the other tokens, see choosing.dropped.
        released: prune only the first image or video of each prompt; and, in Qwen2-VL and Qwen2.5-VL, run layer K - 1
            as published: every token also attends to later ones, and weights are rounded to fp16.
        causal: with `released`, run that layer with its causal mask.
        layer: K.
    """

    ratio: float = share(0.5)
    dropped: str = dropped()
    released: bool = False
    causal: bool = False
    layer: int | tuple[int, ...] | None = at_layer(2)

    needs = frozenset({"tokens", "layer_row"})
    scope = "span"
    places = ("layer",)
    layer_before = True

    def __post_init__(self):
        super().__post_init__()
        if self.causal and not self.released:
            raise InputError(f"{self.name} causal=true without released: every layer is causal then; leave it out")

    @property
    def first_only(self) -> bool:
        return self.released

    @property
    def sees_ahead(self) -> bool:
        return self.released and not self.causal

    def kept(self, tokens: int) -> int:
        return max(int(tokens * self.ratio), 1)

    def group(self, view: View) -> Grouping:
        view.require(self.name, "layer_row")
        return Grouping.of_kept(view, best(view.layer_row, view), self.dropped)
