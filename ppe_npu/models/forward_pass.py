"""The one object that a forward pass carries beside the caller's arguments, under one keyword.

    model(**inputs, labels=labels, ppe=ForwardPass(skip_logits=True, packed=True))

A caller may set its options in it, or pass them as keywords: model(**inputs, packed=True). From the model for
conditional generation down to a layer's attention, each module passes a new ForwardPass under the same keyword, with
what the next module needs.

Two things outlive a pass and are kept elsewhere: the state of a compressed prompt on its KV cache (`cache.ppe_state`,
engine/cache.py), without which the prompt could not be continued, and `output.labels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ppe_npu.engine.packing import Segments, Unpacked
    from ppe_npu.engine.plan import PromptPlan
    from ppe_npu.engine.run import Run
    from ppe_npu.models.loss import Distillation

KEYWORD = "ppe"
WISHES = ("packed", "skip_logits", "distill")  # a caller may also pass these as plain keywords


@dataclass(frozen=True)
class ForwardPass:
    """Options of the forward of a model for conditional generation:

    Args:
        packed: lay the batch out as one row of samples, without padding (engine/packing.py); for training.
        skip_logits: with labels, return only the loss, computed by the head's own call (loss.py).
        distill: with skip_logits, the loss's additional term from a teacher that sees all tokens.

    Values for the modules inside:

    Args:
        prompt: how many columns of the ids are the prompt's; later ones were generated. None: all.
        columns: how many columns a conversation's mask had that generate() has dropped; None: unknown.
        scored: whether the output is in the prompt's columns (alignment.py); None: not decided yet.
        left: move the prompt's padding to the left (True) or right (False); None: it stays on its side.
        plan: the prompt's plan, if the labels needed it before.
        run: the pass through the decoder. segments: the segments that attention keeps apart.
        key_bias: [B, T] what attention by ppe_npu.backends adds to the scores of each key; None: nothing.
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
    key_bias: torch.Tensor | None = None
    unpacked: Unpacked | None = None


NOTHING = ForwardPass()  # the default: kwargs.get(KEYWORD, NOTHING)
