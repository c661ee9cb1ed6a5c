"""The training loss of a compressed model: only at labelled tokens, without storing logits, optionally with a teacher.

Most of a prompt's tokens are visual or the user's: they have no label, and with a vocabulary of 150,000 their logits
would cost more than the decoder. So the head runs only at labelled tokens, a chunk at a time, inside the head's own
call, because ZeRO-3 gathers its weight there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import CausalLMOutputWithPast

from ppe_npu import backends
from ppe_npu.backends.common import IGNORED
from ppe_npu.config import CompressionConfig
from ppe_npu.errors import InputError
from ppe_npu.models.forward_pass import KEYWORD, NOTHING
from ppe_npu.models.seam import is_overridden, original, override

_COUNT, _CHUNK = "num_items_in_batch", 1024  # an argument of the model's forward; tokens


@dataclass(frozen=True)
class Distillation:
    """Self-distillation: the teacher is the same model, but sees all visual tokens.

    Attributes:
        weight: the loss is (1 - weight) * cross entropy + weight * divergence from the teacher, in (0, 1].
        temperature: that of both distributions; the divergence is multiplied by its square (Hinton et al., arXiv
            1503.02531).
        teacher: a copy of the compressed model with frozen weights; None: the model itself, with its current weights.
    """

    weight: float
    temperature: float = 1.0
    teacher: Any = None


def loss_only(model, labels: torch.Tensor, kwargs: dict, arrange: Callable) -> CausalLMOutputWithPast:
    """A forward pass that computes the loss but no logits.

    Args:
        model: a compressed model for conditional generation.
        labels: int64 [B, S] for the original prompt.
        kwargs: the forward's arguments. The sum of losses is divided by `num_items_in_batch` (None: the number of
            labels in this batch); the ForwardPass among them may have a Distillation.
        arrange: (model, labels, kwargs) -> (a function that returns the labels in the columns of the decoder's output,
            whether it can be called only after the pass); adds the plan to kwargs.
    """
    asked, text = kwargs.get("output_router_logits"), model.config.get_text_config()
    if getattr(text, "output_router_logits", False) if asked is None else asked:
        raise InputError("output_router_logits=True: a pass with skip_logits adds no load-balancing loss; leave it out")
    distill = kwargs.get(KEYWORD, NOTHING).distill
    given = {name: value for name, value in kwargs.items() if name != _COUNT}
    hidden, targets, arranged = _labelled_hidden(model, labels, kwargs, arrange)
    count = kwargs.pop(_COUNT, None)
    count = len(targets) if count is None else count
    # A batch may have no label at all.
    divisor = count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)
    if computes_losses_itself(model.lm_head):
        loss = model.lm_head(hidden, labels=targets)
    else:
        loss = F.cross_entropy(model.lm_head(hidden).float(), targets, reduction="sum")
    if distill is not None:
        seer = model if distill.teacher is None else distill.teacher
        head = None if seer is model else seer.lm_head.weight
        said = _teacher(seer, labels, given, arrange)
        divergence = model.lm_head(hidden, teacher=said, temperature=distill.temperature, teachers_weight=head)
        loss = (1 - distill.weight) * loss + distill.weight * divergence
    output = CausalLMOutputWithPast(loss=loss / divisor)
    output.labels = arranged
    return output


@contextlib.contextmanager
def uncompressed(model) -> Iterator[None]:
    """Context in which a compressed model sees all visual tokens."""
    compression = model.compression
    dense = compression.with_config(CompressionConfig.preset("dense"))
    own = [module for module in model.modules() if vars(module).get("compression") is compression]  # the tower, too
    try:
        for module in own:
            vars(module)["compression"] = dense
        yield
    finally:
        for module in own:
            vars(module)["compression"] = compression


def _labelled(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[T] int64 index of the flattened tokens that predict a label, and [T] these labels. Computed before the vision
    tower runs if possible, because the host has to wait for T."""
    predicted = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1).flatten()
    rows = (predicted.cpu() != IGNORED).nonzero()[:, 0].to(labels.device)
    return rows, predicted.index_select(0, rows)


def _labelled_hidden(
    model, labels: torch.Tensor, kwargs: dict, arrange: Callable
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[T, C] the decoder's output where it predicts a label, in the head's dtype; [T] these labels; and all labels in
    the columns of the decoder's output."""
    arranged, late = arrange(model, labels, kwargs)
    hidden = _hidden(model, kwargs) if late else None
    arranged = arranged()
    rows, targets = _labelled(arranged)
    hidden = _hidden(model, kwargs) if hidden is None else hidden
    return hidden.flatten(0, 1).index_select(0, rows).to(model.lm_head.weight.dtype), targets, arranged


def _hidden(model, kwargs: dict) -> torch.Tensor:
    """[B, L, C] the decoder's output."""
    given = {name: value for name, value in kwargs.items() if name != _COUNT}
    return model.model(**{**given, "use_cache": False})[0]


@torch.no_grad()
def _teacher(model, labels: torch.Tensor, kwargs: dict, arrange: Callable) -> torch.Tensor:
    """[T, C] the decoder's output at the labelled tokens when the model sees all visual tokens."""
    training = model.training
    # Without mm_token_type_ids a long video is numbered as the student's.
    untold = {} if kwargs.get("input_ids") is None else {"mm_token_type_ids": None}
    model.eval()  # no dropout, and no gradient checkpointing
    try:
        with uncompressed(model):
            return _labelled_hidden(model, labels, {**kwargs, **untold}, arrange)[0]
    finally:
        model.train(training)


@torch.compiler.disable  # it installs an override, once
def computes_losses_itself(head: torch.nn.Module) -> bool:
    """Let the head's own call compute losses from now on, and return True; or return False, without a change, if the
    head is not a plain linear layer."""
    # fully_shard's subclass of Linear inherits its forward; a head that computes logits differently defines its own.
    plain = type(head).forward is torch.nn.Linear.forward and head.bias is None
    if plain and not is_overridden(head, "forward"):
        override(head, "forward", _head_forward)
    return plain


def _head_forward(
    self,
    input: torch.Tensor,
    labels: torch.Tensor | None = None,
    teacher=None,
    temperature: float = 1.0,
    teachers_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits; with labels [T] the sum of cross entropies instead; with a teacher's hidden states [T, C] the sum of
    divergences, where the teacher's head has teachers_weight (None: this head's weight)."""
    if labels is not None:
        return backends.linear_cross_entropy(input, self.weight, labels, reduction="sum")
    if teacher is not None:
        return divergence(input, teacher, self.weight, temperature, teachers_weight)
    return original(self, "forward")(input)


def divergence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    weight: torch.Tensor,
    temperature: float,
    teachers_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """temperature^2 * KL(teacher || student), summed over tokens; differentiable in student and in its head's weight.

    Args:
        student, teacher: [T, C] the inputs of the head. weight: [V, C].
        teachers_weight: [V, C] of the teacher's own head; None: the same weight.
    """
    own = weight if teachers_weight is None else teachers_weight
    total = torch.zeros((), dtype=torch.promote_types(student.dtype, torch.float32), device=student.device)
    for pair in zip(student.split(_CHUNK), teacher.split(_CHUNK)):
        total = total + checkpoint(
            _chunk_divergence, *pair, weight, own, temperature, use_reentrant=False, preserve_rng_state=False
        )
    return total


def _chunk_divergence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    weight: torch.Tensor,
    teachers_weight: torch.Tensor,
    temperature: float,
):
    wide = torch.promote_types(student.dtype, torch.float32)
    with torch.no_grad():
        expected = F.log_softmax((teacher @ teachers_weight.t()).to(wide) / temperature, dim=-1)
    found = F.log_softmax((student @ weight.t()).to(wide) / temperature, dim=-1)
    return temperature**2 * F.kl_div(found, expected, reduction="sum", log_target=True)
