"""What a forward pass carries beside the caller's arguments: one object, under one keyword.

    model(**inputs, labels=labels, ppe=ForwardPass(skip_logits=True, packed=True))

A caller may put its wishes into it, or spell them as keywords: model(**inputs, packed=True). On its way from the model
for conditional generation to the attention of a layer the pass is handed on under the same keyword, each time as a new
object with what the next part needs to know.

Two things outlive a pass, and so are kept where they belong: the state of a compressed prompt on its KV cache
(`cache.ppe_state`, engine/cache.py), without which nobody could continue it, and `output.labels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppe_npu.engine.packing import Segments, Unpacked
    from ppe_npu.engine.plan import PromptPlan
    from ppe_npu.engine.run import Run
    from ppe_npu.models.loss import Distillation

KEYWORD = "ppe"
WISHES = ("packed", "skip_logits", "distill")  # a caller may give these as plain keywords, too


@dataclass(frozen=True)
class ForwardPass:
    """Of a model for conditional generation's forward:

    Args:
        packed: lay the batch out as one row of samples, without padding (engine/packing.py); for training.
        skip_logits: with labels, give the loss alone, by the head's own call (loss.py).
        distill: with skip_logits, what the loss adds of a teacher that sees all tokens.

    Of the parts inside:

    Args:
        prompt: how many columns of the ids the prompt has; what stands behind it was generated. None: all.
        columns: how many the mask of a conversation had, which generate() set aside; None: unknown.
        scored: whether the output stands as the prompt was given (alignment.py); None: nobody has decided yet.
        left: where the prompt's padding goes; None: it stays on its side.
        plan: the prompt's plan, where labels have asked for it already.
        run: the pass through the decoder. segments: what attention keeps apart.
        unpacked: a packed row as a batch, for layers that cannot keep its samples apart.
    """

    packed: bool = False
    skip_logits: bool = False
    distill: Distillation | None = None
    prompt: int | None = None
    columns: int | None = None
    scored: bool | None = None
    left: bool | None = None
    plan: PromptPlan | None = None
    run: Run | None = None
    segments: Segments | None = None
    unpacked: Unpacked | None = None


NOTHING = ForwardPass()  # what a pass carries that was given none: kwargs.get(KEYWORD, NOTHING)
