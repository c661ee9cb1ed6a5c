"""The columns of outputs, and how callers' per-token values (labels, weights, masks) are brought to them.

A pass with a KV cache gives outputs of the compressed length. A caller without a cache (use_cache=False, or a config
that says so, as transformers' Trainer sets it) usually scores the outputs against its own labels, column by column of
the original prompt. So there the outputs are in the prompt's columns: text is in its own column, the kept tokens of an
image or video are at the end of its run (so that the text follows its last token), and all other columns are 0.
"""

import warnings

import torch

from ppe_npu.backends.common import IGNORED
from ppe_npu.engine.plan import PromptPlan
from ppe_npu.errors import InputError
from ppe_npu.models.forward_pass import KEYWORD

_COUNT, _SHIFTED = "num_items_in_batch", "shift_labels"  # arguments of a loss


def align(model, values: torch.Tensor, fill: float = IGNORED, shifted: bool = False) -> torch.Tensor:
    """Per-token values of the last prompt, arranged in the columns of that pass's output.

        output = model(**inputs)
        loss = my_loss(output.logits, align(model, labels), align(model, weights, fill=0))

    Args:
        model: a compressed model that has just run on the prompts, or a peft model around one.
        values: [B, S, ...] for every column of input_ids: labels, weights, masks, rewards; any dtype and device.
        fill: the value where there is no text: at the tokens of images and videos, at padding, and at a sample's first
            token if padding before it would have to predict it. -100, which losses ignore; use 0 for weights and masks.
        shifted: whether each value belongs to the token after its column, as in shift_labels.

    Returns:
        [B, L, ...] with L the output's length: logits.shape[1]. With the dense preset, the values unchanged.

    Raises:
        InputError: a model that is not compressed or has not run yet, or values for another batch or length.
    """
    from ppe_npu.models import base_of, is_compressed

    if not is_compressed(model):
        raise InputError(
            f"{type(model).__name__} is not compressed, so its outputs have the inputs' columns: use values unchanged"
        )
    compression = base_of(model).compression
    if compression.last is None:
        raise InputError("the compressed model has seen no prompt yet: call it before align()")
    return aligned(compression.last, values, compression.last_scored, fill, shifted)


def aligned(plan: PromptPlan, values: torch.Tensor, scored: bool, fill: float, shifted: bool = False) -> torch.Tensor:
    """As align(), for a prompt's plan. scored: whether the output is in the prompt's columns."""
    if tuple(values.shape[:2]) != plan.layout.real.shape:
        wanted = list(plan.layout.real.shape)
        raise InputError(
            f"values have shape {list(values.shape)}, but the prompt's input_ids had {wanted}: give [B, S, ...]"
        )
    if plan.as_given:
        return values
    if shifted:  # move values to the column that they belong to, and back afterwards
        edge = torch.full_like(values[:, :1], fill)
        moved = aligned(plan, torch.cat([edge, values[:, :-1]], dim=1), scored, fill)
        return torch.cat([moved[:, 1:], edge], dim=1)
    if scored:
        counted = torch.from_numpy(plan.counted).to(values.device)
        return torch.where(_like(counted, values), values, torch.full_like(values, fill))
    text, columns = (torch.from_numpy(part).to(values.device) for part in plan.text_columns)
    picked = values.gather(1, _like(columns, values).expand(-1, -1, *values.shape[2:]))
    return torch.where(_like(text, values), picked, torch.full_like(picked, fill))


def _like(part: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[B, L] -> [B, L, 1, ...] with as many dimensions as values."""
    return part.reshape(*part.shape, *[1] * (values.ndim - 2))


def whole_labels(labels: torch.Tensor, kwargs: dict) -> tuple[torch.Tensor, slice | torch.Tensor]:
    """Labels [B, S], and the columns that count. A caller of transformers may give labels only for the logits that
    logits_to_keep keeps; they are then filled up with IGNORED."""
    kept, tokens = kwargs.get("logits_to_keep"), kwargs.get("input_ids")
    tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
    columns: slice | torch.Tensor
    if tokens is not None and isinstance(kept, torch.Tensor) and kept.shape == labels.shape[1:]:
        columns = kept.to(labels.device)
    elif tokens is not None and isinstance(kept, int) and 0 < kept == labels.shape[1] < tokens.shape[1]:
        columns = slice(-kept, None)
    else:
        return labels, slice(None)
    whole = labels.new_full((len(labels), tokens.shape[1]), IGNORED)
    whole[:, columns] = labels
    return whole, columns


def as_the_prompt(hidden: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[B, S, C] outputs [B, L, C] in the prompt's columns. places: [B, S] index in the flattened output, or B * L."""
    rows = torch.cat([hidden.flatten(0, 1), hidden.new_zeros(1, hidden.shape[-1])])
    return rows.index_select(0, places.flatten()).unflatten(0, tuple(places.shape))


def arrange_loss_arguments(plan: PromptPlan, given: torch.Tensor, arranged: torch.Tensor, kwargs: dict) -> None:
    """Adapt the loss's other arguments to the output, in place: shift_labels are rearranged, and num_items_in_batch is
    scaled down by the labels that do not count here.

    Args:
        given, arranged: labels [B, S] of the prompt, and labels in the output's columns.
    """
    if plan.as_given:
        return
    if kwargs.get(_SHIFTED) is not None:
        given, columns = whole_labels(kwargs[_SHIFTED], kwargs)
        arranged = aligned(plan, given, bool(kwargs[KEYWORD].scored), IGNORED, shifted=True)
        kwargs[_SHIFTED] = arranged[:, columns]
    else:
        given, arranged = given[:, 1:], arranged[:, 1:]
    if kwargs.get(_COUNT) is None:
        return
    before, left = (int((part != IGNORED).sum()) for part in (given, arranged))
    if left < before:
        warnings.warn(
            f"{_COUNT} is scaled by {left} / {before}, because a compressed model ignores this batch's labels on "
            "images, videos and padding: set these to -100 and do not count them",
            stacklevel=2,
        )
        kwargs[_COUNT] = kwargs[_COUNT] * left / before
