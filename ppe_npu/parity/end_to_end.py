"""A tiny model on a device against the same model in fp64: logits, loss, gradients, optimizer steps, generated ids.

The allowed error is that of backends/parity/compare.py: twice the error of plain PyTorch (unchanged transformers on the
CPU, in the same dtype), with a floor. In fp32, images and videos go through the vision tower. In 16 bits its features
are given (see model.with_features); cascades are left out, because their groups come from 16-bit hidden states, and
greedy ids are not compared, because they depend on the last bit of two close logits. In fp16 only logits are compared,
because gradients overflow without a loss scale.
"""

import copy
from dataclasses import dataclass

import torch

from ppe_npu import CompressionConfig, compress
from ppe_npu.backends import device as devices
from ppe_npu.backends import dispatch
from ppe_npu.backends.common import DTYPES, IGNORED
from ppe_npu.backends.parity import Row, compare
from ppe_npu.models.fused import fuse
from ppe_npu.parity.model import SETTINGS, parity_inputs, parity_model, with_features

STEPS, NEW_TOKENS, LEARNING_RATE = 5, 6, 1e-3
CPU = torch.device("cpu")
# Losses after a few optimizer steps vary more than the result of one operator.
_LOSS_FLOOR = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@dataclass(frozen=True)
class ModelResults:
    """The results of one run, on the CPU.

    Args:
        logits: [n, vocab] of all text tokens. gradients: those of all parameters that have one, by name.
        losses: [STEPS + 1], before each optimizer step and after the last.
        ids: [B, NEW_TOKENS], generated greedily, or None.
    """

    logits: torch.Tensor
    gradients: dict[str, torch.Tensor]
    losses: torch.Tensor
    ids: torch.Tensor | None


def run_end_to_end(device: torch.device, dtypes: tuple[str, ...] = tuple(DTYPES)) -> list[Row]:
    """One row for each setting, dtype and quantity; parity holds if `row.ok` for all."""
    rows = []
    for name in dtypes:
        if not devices.supports(device, DTYPES[name]):
            rows.append(Row.unsupported("model", name, device))
            continue
        for setting in settings(name):
            rows += _compare(setting, name, device)
    return rows


def settings(dtype: str) -> list[str]:
    """The names of the settings that are compared in a dtype."""
    return [name for name, config in SETTINGS.items() if dtype == "fp32" or not config.layers]


def _compare(setting: str, dtype: str, device: torch.device) -> list[Row]:
    model, inputs = parity_model(), parity_inputs()
    if dtype != "fp32":
        model = model.to(DTYPES[dtype])
        inputs = with_features(model, inputs)
    references = run_references(model, inputs, setting, dtype)
    dispatch.reset()
    try:
        ours = run(model, inputs, SETTINGS[setting], device, DTYPES[dtype], fused=True)
    except Exception as error:
        return [Row.failed("model", setting, "-", dtype, "-", error)]
    return rows_of(setting, dtype, ours, *references)


def run_references(
    model, inputs: dict[str, torch.Tensor], setting: str, dtype: str
) -> tuple[ModelResults, ModelResults]:
    """Results to compare a device's with: those of plain transformers on the CPU in `dtype`, and the same in fp64."""
    plain = run(model, inputs, SETTINGS[setting], CPU, DTYPES[dtype], fused=False, answers=False)
    exact = run(model, inputs, SETTINGS[setting], CPU, torch.float64, fused=False)
    return plain, exact


def rows_of(setting: str, dtype: str, ours: ModelResults, plain: ModelResults, exact: ModelResults) -> list[Row]:
    """One row per quantity, with the implementations that dispatch has chosen since its reset."""
    chosen = ", ".join(sorted(set(dispatch.chosen().values())))
    fixed = {"op": "model", "dtype": dtype, "implementation": chosen, "shapes": f"{len(ours.logits)} tokens"}
    rows = []
    for quantity, direction, error, bound in model_errors(ours, plain, exact, DTYPES[dtype]):
        ok = compare.within(error, bound)
        rows.append(Row(**fixed, case=f"{setting}: {quantity}", direction=direction, error=error, allowed=bound, ok=ok))
    return rows


def model_errors(
    ours: ModelResults, plain: ModelResults, exact: ModelResults, dtype: torch.dtype
) -> list[tuple[str, str, float, float]]:
    """(quantity, direction, error, allowed) of everything that is compared."""
    out = []
    quantities = (("logits", "forward"), ("gradients", "grad"), ("losses", "5 steps"))
    for quantity, direction in quantities[: 1 if dtype is torch.float16 else None]:
        found = tuple(getattr(results, quantity) for results in (ours, plain, exact))
        error, bound = _worst_gradient(*found, dtype) if quantity == "gradients" else _error(*found, dtype)
        if quantity == "losses":
            bound = max(bound, _LOSS_FLOOR[dtype])
        out.append((quantity, direction, error, bound))
    if exact.ids is not None and ours.ids is not None and dtype is torch.float32:
        out.append(("greedy ids", "generate", float(not torch.equal(ours.ids, exact.ids)), 0.0))
    return out


def _error(mine, usual, true, dtype: torch.dtype) -> tuple[float, float]:
    if not true.isfinite().all():  # no machine gets finite results with such weights
        return float("inf"), 0.0
    return compare.relative_rms(mine, true), compare.allowed(compare.relative_rms(usual, true), dtype, gradient=False)


def _worst_gradient(mine: dict, usual: dict, true: dict, dtype: torch.dtype) -> tuple[float, float]:
    """(error, allowed) over all parameters: the largest error, and the bound from plain PyTorch's largest error. They
    are not compared one by one, because the errors of all parameters stem from the same rounding, and that of a single
    one varies by more than a factor of two. A gradient that is zero but for rounding (such as that of a key's bias,
    which does not change attention) has no meaningful relative error and is left out."""
    if mine.keys() != true.keys() or not all(gradient.isfinite().all() for gradient in true.values()):
        return float("inf"), 0.0
    sizes = {name: gradient.square().mean().sqrt() for name, gradient in true.items()}
    seen = [name for name, size in sizes.items() if size > 1e-6 * max(sizes.values())]
    error, plain = (max(compare.relative_rms(some[name], true[name]) for name in seen) for some in (mine, usual))
    return error, compare.allowed(plain, dtype, gradient=True)


def run(
    model,
    inputs: dict[str, torch.Tensor],
    config: CompressionConfig,
    device: torch.device,
    dtype: torch.dtype,
    fused: bool,
    answers: bool = True,
) -> ModelResults:
    """Compute everything that is compared, with a copy of the model on a device in a dtype.

    Args:
        inputs: those of parity_inputs or with_features, with labels.
        fused: whether to compute through ppe_npu.backends instead of plain transformers.
        answers: whether to also generate greedy ids, if the inputs have pixels.
    """
    model = copy.deepcopy(model).to(device, dtype)
    compress(fuse(model) if fused else model, config)
    inputs = {
        name: value.to(device, dtype if value.is_floating_point() and name != "second_per_grid_ts" else value.dtype)
        for name, value in inputs.items()
    }
    with devices.exact_matmul():
        ids = None
        if answers and "inputs_embeds" not in inputs:
            prompt = {name: value for name, value in inputs.items() if name != "labels"}
            settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "suppress_tokens": [60, 61, 62, 63]}
            ids = model.generate(**prompt, **settings)[:, -NEW_TOKENS:].cpu()
        out = model(**inputs)
        logits = out.logits[out.labels != IGNORED].detach().double().cpu()
        out.loss.backward()
        named = {name: p for name, p in model.named_parameters() if p.grad is not None}
        gradients = {name: p.grad.double().cpu() for name, p in named.items()}
        parameters, losses = list(named.values()), [out.loss.item()]
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
        for _ in range(STEPS):
            optimizer.step()
            optimizer.zero_grad()
            loss = model(**inputs).loss
            loss.backward()
            losses.append(loss.item())
    return ModelResults(logits, gradients, torch.tensor(losses, dtype=torch.float64), ids)
