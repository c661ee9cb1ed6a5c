"""How far apart two results may be: the only place from which tests take a tolerance, each with its reason.

Nothing here is tuned. A bound follows from eps of the dtype (the distance from 1 to the next number), how many
roundings one number goes through and how large the numbers are; from the error of plain PyTorch against fp64 in the
same computation; from how many random draws a fraction was counted on; or from what a format throws away. What must
be equal bit by bit goes through `assert_equal`. scripts/check_house.py refuses tolerances anywhere else.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping

import pytest
import torch
from torch import Tensor

# Operators that follow each other in a layer, each of which rounds its results: two norms, four products, rotary,
# softmax, weighted values, activation, two sums.
OPERATORS = 12
# `found` may be 2 plain errors from exact, and `plain` is 1 from it, so this is how far apart they may be.
APART = 3
SIGMAS = 6  # a fair draw is further from its mean than that once in 500 million tests


def eps(*values: Tensor | torch.dtype) -> float:
    """eps of the coarsest dtype among these."""
    return max(torch.finfo(value if isinstance(value, torch.dtype) else value.dtype).eps for value in values)


# -- one operator: roundings x eps x size ------------------------------------------------------------------------------


def assert_equal(found, expected, what: str = "") -> None:
    """Checks equality bit by bit, with NaN equal to NaN, on one device."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{what}: {text}")


def assert_near(found: Tensor, expected: Tensor, roundings: float, size: float | Tensor | None = None) -> None:
    """Checks that every number of `found` is off by at most `roundings` roundings of numbers of this size.

    A sum of n terms is rounded n times, and its `size` is then the sum of its terms' magnitudes; without `size` it is
    the largest magnitude in `expected`. eps is that of the coarser dtype.
    """
    size = expected.abs().max() if size is None and expected.numel() else size
    limit = roundings * eps(found, expected) * torch.as_tensor(0.0 if size is None else size, dtype=torch.float64)
    assert found.shape == expected.shape, f"{tuple(found.shape)} is not {tuple(expected.shape)}"
    apart = (found.detach().double() - expected.detach().double()).abs()
    worst = (apart / limit.clamp(min=torch.finfo(torch.float64).tiny)).max().item() if apart.numel() else 0.0
    assert worst <= 1, f"{worst:.2f} times what {roundings} roundings explain, {apart.max().item():.2e} apart"


def near(expected, roundings: float, dtype: torch.dtype = torch.float64):
    """pytest.approx for numbers (a list, a dict) that went through `roundings` roundings in this dtype."""
    return pytest.approx(expected, rel=roundings * eps(dtype), abs=0)


def attention_roundings(query: Tensor, key: Tensor, scale: float | None = None) -> float:
    """Roundings of a weighted value, for `assert_near` with the largest value as size.

    A score is a sum of D terms, at most |q| |k| large; its absolute error is the relative error of its weight, in the
    numerator and in the sum; the output sums S weighted values. exp, the division and the scale add a few.
    """
    width, keys = key.shape[-1], key.shape[-2]
    largest = query.detach().double().norm(dim=-1).max() * key.detach().double().norm(dim=-1).max()
    return 2 * (width + 2) * largest.item() * (width**-0.5 if scale is None else scale) + keys + 8


def angle_roundings(largest: float) -> float:
    """Roundings of cos and sin (size 1) of angles position x frequency up to `largest`: the frequency and the product
    are each rounded by half an eps of the angle, and cos itself takes two."""
    return largest + 2


# -- a whole model: what plain PyTorch is off by -----------------------------------------------------------------------


def depth_error(layers: int, dtype: torch.dtype = torch.float32) -> float:
    """Relative error of a model with this many layers, if its operators' roundings add up like random numbers.

    It is the least that is allowed, because plain PyTorch may be nearer to fp64 by chance.
    """
    return eps(dtype) * math.sqrt(OPERATORS * layers)


def exact(model: torch.nn.Module, run: Callable):
    """The result of `run()` with the model's weights in fp64; afterwards they are fp32 again, bit by bit.

    transformers takes norms and vision rope in fp32 even then, so plain PyTorch's error is measured from there.
    """
    model.double()
    try:
        return run()
    finally:
        model.float()


def rms(values: Tensor) -> float:
    return values.detach().double().square().mean().sqrt().item() if values.numel() else 0.0


def plain_error(plain, exact, layers: int = 4, dtype: torch.dtype = torch.float32) -> float:
    """RMS error of plain PyTorch, the largest among these tensors; at least that of a model of this depth."""
    pairs = list(zip(_tensors(plain), _tensors(exact), strict=True))
    size = max(rms(true) for _, true in pairs)
    found = max(rms(one.double() - true.double()) for one, true in pairs)
    _assert_rounding(found, size, layers, dtype)
    return max(depth_error(layers) * size, found)


def _assert_rounding(found: float, size: float, layers: int, dtype: torch.dtype) -> None:
    """Checks that an error in fp32 is below one rounding to bf16. Otherwise the result and `exact` are two computations
    (`exact` may be that of the code under test, say, whose faults it would share)."""
    most = eps(torch.bfloat16) / 2 if dtype == torch.float32 else depth_error(layers, dtype)
    assert found <= most * size, f"{found:.2e} from exact, of {size:.2e}: these are two computations"


def assert_rounds_alike(found, plain, exact, layers: int = 4, dtype: torch.dtype = torch.float32) -> None:
    """Two ways through the same model: `found` is at most twice as far from fp64 as plain PyTorch is.

    `exact` is computed as `plain` is, and `dtype` is the coarsest in which that rounds. Each is a tensor, a list of
    tensors (whose largest error counts for all) or a dict of gradients.
    """
    if isinstance(plain, Mapping):
        assert found.keys() == plain.keys() == exact.keys()
        errors = {key: rms(value.double() - exact[key].double()) for key, value in plain.items()}
        # Of fifty errors of one pass some are small by chance: each may be as large, relatively, as nine in ten are.
        relative = sorted(errors[key] / rms(value) for key, value in exact.items() if rms(value))
        usual = relative[9 * len(relative) // 10]
        _assert_rounding(usual, 1.0, layers, dtype)
        # A gradient that is zero by mathematics is a difference of numbers like the others.
        least = depth_error(layers) * statistics.median(map(rms, exact.values()))
        for key, value in plain.items():
            error = max(errors[key], usual * rms(exact[key]), least)
            _assert_apart(found[key], value, error, key)
    else:
        _assert_apart(found, plain, plain_error(plain, exact, layers, dtype))


def _assert_apart(found, plain, error: float, what: str = "tensor") -> None:
    for number, (one, other) in enumerate(zip(_tensors(found), _tensors(plain), strict=True)):
        assert one.shape == other.shape, f"{what} {number}: {tuple(one.shape)} is not {tuple(other.shape)}"
        apart = rms(one.double() - other.double())
        assert apart <= APART * error, f"{what} {number}: {apart:.2e} apart, {apart / error:.1f} errors of {error:.2e}"


def _tensors(values) -> Iterable[Tensor]:
    return [values] if isinstance(values, Tensor) else [value for row in values for value in _tensors(row)]


def assert_recorded(found, recorded, model: torch.nn.Module, run: Callable) -> None:
    """`found`, the result of `run()`, is what another machine recorded, up to the error of another order of adding.

    Each is a tensor or a list of tensors.
    """
    for one, other, error in zip(_tensors(found), _tensors(recorded), sums_error(model, run), strict=True):
        assert one.shape == other.shape, f"{tuple(one.shape)} is not {tuple(other.shape)}"
        _assert_rounding(error, rms(other), 1, torch.float32)
        apart = rms(one.double() - other.double())
        assert apart <= 2 * error, f"{apart:.2e} apart, {apart / error:.1f} errors of {error:.2e}"


def sums_error(model: torch.nn.Module, run: Callable, draws: int = 3) -> list[float]:
    """RMS error of each tensor of `run()` from fp32 sums in any order of adding: measured in fp64, with weights that
    are off by the error of the model's widest sum.

    Each of its n additions rounds by up to half an eps, sqrt(n / 12) eps in all (RMS). This is the largest of a few
    draws, meant for prompts in which few places are delicate.
    """
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    terms = max(module.in_features for module in model.modules() if isinstance(module, torch.nn.Linear))
    generator, off = torch.Generator().manual_seed(0), math.sqrt(terms / 12) * eps(torch.float32)

    def moved() -> list[float]:
        with torch.no_grad():
            true, found = list(_tensors(run())), []
            for _ in range(draws):
                for weight in model.parameters():
                    weight.mul_(1 + off * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
                found.append([rms(one - other) for one, other in zip(_tensors(run()), true, strict=True)])
                model.load_state_dict(kept)
        return [max(errors) for errors in zip(*found, strict=True)]

    return exact(model, moved)


def loss_near(expected, layers: int = 4, steps: int = 1):
    """pytest.approx for fp32 losses of a model with `layers` layers, after `steps` steps.

    A step's gradient has the relative error of the model's rounding, and so has the step: errors of steps add up.
    """
    return pytest.approx(expected, rel=APART * depth_error(layers) * steps, abs=0)


def divergence_error(logits: Tensor, layers: int = 4, dtype: torch.dtype = torch.float32) -> float:
    """Error of a divergence between two models' answers: a mean of differences of logs, each off as its logits are."""
    return 2 * APART * depth_error(layers, dtype) * logits.detach().abs().max().item()


def moved_apart(rates: Iterable[float], weight: float = 1.0) -> float:
    """How far apart two runs of Adam that differ only by rounding may take one weight.

    A gradient that is only rounding has a sign that is, too: each step is as large as the rate, and the two may step in
    opposite directions. Each step rounds the weight itself, once.
    """
    rates = list(rates)
    return 2 * sum(rates) + len(rates) * eps(torch.float32) * weight


def drift_error(path: float, steps: int, weight: float, layers: int) -> float:
    """How far (RMS) gradient descent in fp32 is from exact weights of size `weight` (RMS) after `steps` steps, whose
    lengths add up to `path`.

    Each step's gradient passed so many layers and has the relative error of their rounding, at worst in the same
    direction each time. Each step rounds the weights, by half an eps at most and in either direction.
    """
    return APART * depth_error(layers) * path + math.sqrt(steps) * eps(torch.float32) / 2 * weight


def learnt_error(drift: float, words: Tensor, layers: int) -> float:
    """Error (RMS) of log-probabilities of a model whose weights have the relative error `drift`, which acts on its
    products like a rounding."""
    return APART * (depth_error(layers) + drift * math.sqrt(OPERATORS * layers)) * rms(words)


def slope_error(wide: float, narrow: float, value: float, step: float, layers: int = 4) -> float:
    """Error of the central difference `narrow` over `step`, given `wide` over twice the step, of numbers like `value`.

    The series' next term is a third of the difference of the two (all of it is allowed, for later terms), and each of
    the two values is rounded in fp32.
    """
    return abs(wide - narrow) + depth_error(layers) * abs(value) / step


def assert_chosen(found: list[int], scores: Tensor, error: Tensor) -> None:
    """Checks that these are the `len(found)` best by exact scores [N], each off by up to `error` [N] where it was used:
    tokens clearly above the cutoff are found, tokens clearly below are not, and none is found twice."""
    count = len(found)
    assert len(set(found)) == count, f"chosen twice: {sorted(found)}"
    order = scores.argsort(descending=True)
    inside = order[:count]
    worst = inside[-1] if count else order[0]
    for token in range(len(scores)):
        apart = (scores[token] - scores[worst]).item()
        tied = abs(apart) <= (error[token] + error[worst]).item()
        assert tied or (token in found) == (token in inside), f"token {token} is {apart:.2e} from the cutoff"


# -- draws, formats, printed numbers -----------------------------------------------------------------------------------


def sampling_error(deviation: float, draws: int) -> float:
    """Error of the mean of `draws` independent draws with this standard deviation."""
    return SIGMAS * deviation / math.sqrt(draws)


def share_error(share: float, draws: int) -> float:
    """Error of a fraction that was counted on `draws` independent draws."""
    return sampling_error(math.sqrt(share * (1 - share)), draws)


def printed(digits: int) -> float:
    """Half a unit of the last digit of a number that is published with `digits` decimals, and its rounding."""
    return (0.5 + eps(torch.float32)) * 10.0**-digits


def codec_error(quantizer: int = 23 + 6) -> float:
    """Error of the brightness (0 to 255) of a flat H.264 frame: half a step of its quantizer in four times the mean of
    a block, and one of the 219 levels of video range, there and back. A step is 1 at 4 and doubles every 6; x264's
    default is 23, and up to 6 more for frames on which no others depend."""
    return 2 ** ((quantizer - 4) / 6) / 2 / 4 + 2 * 255 / 219
