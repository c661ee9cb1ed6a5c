"""How far apart two results may be: the one place that tests take a tolerance from, each with its reason.

Nothing here is tuned. A bound follows from eps of the dtype (the distance from 1 to the next number), how many
roundings one number goes through and how large the numbers are; from what plain PyTorch is off by against fp64 in the
same computation; from how many random draws a share was counted on; or from what a format throws away. What is claimed
to be the same bit by bit goes through `assert_equal`. scripts/check_house.py refuses tolerances anywhere else.
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
# found may be 2 plain errors from exact, and plain is 1 from it: so far are they apart at most.
APART = 3
SIGMAS = 6  # a fair draw is further from its mean than that once in 500 million tests


def eps(*values: Tensor | torch.dtype) -> float:
    """Of the coarsest dtype among these."""
    return max(torch.finfo(value if isinstance(value, torch.dtype) else value.dtype).eps for value in values)


# -- one operator: roundings x eps x size ------------------------------------------------------------------------------


def assert_equal(found, expected, what: str = "") -> None:
    """Bit by bit, NaN being NaN, on one device."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{what}: {text}")


def assert_near(found: Tensor, expected: Tensor, roundings: float, size: float | Tensor | None = None) -> None:
    """Every number of `found` went through so many roundings, of numbers of this size.

    A sum of n terms is rounded n times, and `size` is then the sum of what its terms are without their signs; without
    `size` it is the largest number of `expected`. eps is that of the coarser dtype.
    """
    size = expected.abs().max() if size is None and expected.numel() else size
    limit = roundings * eps(found, expected) * torch.as_tensor(0.0 if size is None else size, dtype=torch.float64)
    assert found.shape == expected.shape, f"{tuple(found.shape)} is not {tuple(expected.shape)}"
    apart = (found.detach().double() - expected.detach().double()).abs()
    worst = (apart / limit.clamp(min=torch.finfo(torch.float64).tiny)).max().item() if apart.numel() else 0.0
    assert worst <= 1, f"{worst:.2f} times what {roundings} roundings explain, {apart.max().item():.2e} apart"


def near(expected, roundings: float, dtype: torch.dtype = torch.float64):
    """pytest.approx for numbers (a list, a dict) that went through so many roundings in this dtype."""
    return pytest.approx(expected, rel=roundings * eps(dtype), abs=0)


def attention_roundings(query: Tensor, key: Tensor, scale: float | None = None) -> float:
    """Roundings of a weighted value, for `assert_near` with the largest value as size.

    A score is a sum of D terms, at most |q| |k| large; what it is off by, its weight is off by relatively, in the
    numerator and in the sum; the output sums S weighted values. exp, the division and the scale add a few.
    """
    width, keys = key.shape[-1], key.shape[-2]
    largest = query.detach().double().norm(dim=-1).max() * key.detach().double().norm(dim=-1).max()
    return 2 * (width + 2) * largest.item() * (width**-0.5 if scale is None else scale) + keys + 8


def angle_roundings(largest: float) -> float:
    """Of cos and sin (size 1) at angles position x frequency up to `largest`: half a rounding of the frequency and half
    a one of the product are as much larger, and cos itself takes two."""
    return largest + 2


# -- a whole model: what plain PyTorch is off by -----------------------------------------------------------------------


def depth_error(layers: int, dtype: torch.dtype = torch.float32) -> float:
    """Relative error of a model of so many layers, if the roundings of its operators add up like random numbers.

    It is the least that is allowed, for where plain PyTorch is nearer to fp64 by chance.
    """
    return eps(dtype) * math.sqrt(OPERATORS * layers)


def exact(model: torch.nn.Module, run: Callable):
    """What `run()` gives with the model's weights in fp64, which are fp32 again afterwards, bit by bit.

    transformers takes norms and vision rope in fp32 even then: what plain PyTorch is off by is counted from there.
    """
    model.double()
    try:
        return run()
    finally:
        model.float()


def rms(values: Tensor) -> float:
    return values.detach().double().square().mean().sqrt().item() if values.numel() else 0.0


def plain_error(plain, exact, layers: int = 4, dtype: torch.dtype = torch.float32) -> float:
    """RMS of what plain PyTorch is off by, the largest among these tensors; at least that of the model's depth."""
    pairs = list(zip(_tensors(plain), _tensors(exact), strict=True))
    size = max(rms(true) for _, true in pairs)
    found = max(rms(one.double() - true.double()) for one, true in pairs)
    _assert_rounding(found, size, layers, dtype)
    return max(depth_error(layers) * size, found)


def _assert_rounding(found: float, size: float, layers: int, dtype: torch.dtype) -> None:
    """fp32 is never off by what one rounding to bf16 is: then what is compared with exact is another computation (and
    `exact` that of what is tested, say, whose faults it would share)."""
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
    """`found`, of `run()`, is what another machine recorded, each as far from exact as its order of adding takes it.

    Each is a tensor or a list of tensors.
    """
    for one, other, error in zip(_tensors(found), _tensors(recorded), sums_error(model, run), strict=True):
        assert one.shape == other.shape, f"{tuple(one.shape)} is not {tuple(other.shape)}"
        _assert_rounding(error, rms(other), 1, torch.float32)
        apart = rms(one.double() - other.double())
        assert apart <= 2 * error, f"{apart:.2e} apart, {apart / error:.1f} errors of {error:.2e}"


def sums_error(model: torch.nn.Module, run: Callable, draws: int = 3) -> list[float]:
    """What fp32 sums move each tensor of `run()` by (RMS), whatever a machine's order of adding: measured in fp64, with
    weights that are off as the widest sum of the model is.

    Each of its n additions rounds by up to half an eps, sqrt(n / 12) eps in all (RMS). The largest of a few draws, for
    prompts of which few places are delicate.
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
    """pytest.approx for fp32 losses of a model of so many layers, after each of so many steps.

    A step's gradient is off by the model's rounding, relatively, and so is what it moves: errors of steps add up.
    """
    return pytest.approx(expected, rel=APART * depth_error(layers) * steps, abs=0)


def divergence_error(logits: Tensor, layers: int = 4, dtype: torch.dtype = torch.float32) -> float:
    """Of a divergence between two models' answers: a mean of differences of logs, each off as its logits are."""
    return 2 * APART * depth_error(layers, dtype) * logits.detach().abs().max().item()


def moved_apart(rates: Iterable[float], weight: float = 1.0) -> float:
    """How far two runs of Adam may take one weight apart that differ by rounding alone.

    Where a gradient is rounding, its sign is, too: of each step, which is of the rate's size, both may go another way.
    Each step rounds the weight itself, once.
    """
    rates = list(rates)
    return 2 * sum(rates) + len(rates) * eps(torch.float32) * weight


def drift_error(path: float, steps: int, weight: float, layers: int) -> float:
    """How far (RMS) gradient descent in fp32 is from exact weights of size `weight` (RMS) after so many steps, which
    were `path` long together.

    Each step's gradient passed so many layers and is off by their rounding, relatively: all are, the same way at worst.
    Each step rounds the weights, by half an eps at most and in either direction.
    """
    return APART * depth_error(layers) * path + math.sqrt(steps) * eps(torch.float32) / 2 * weight


def learnt_error(drift: float, words: Tensor, layers: int) -> float:
    """Of log-probabilities (RMS) of a model whose weights are off by `drift`, relatively: these are to its products
    what a rounding is."""
    return APART * (depth_error(layers) + drift * math.sqrt(OPERATORS * layers)) * rms(words)


def slope_error(wide: float, narrow: float, value: float, step: float, layers: int = 4) -> float:
    """Of the central difference `narrow` over `step`, with that over twice the step, of numbers of this value.

    The series' next term is a third of what the two differ by (allowed whole, for those after it), and each of the two
    values is rounded in fp32.
    """
    return abs(wide - narrow) + depth_error(layers) * abs(value) / step


def assert_chosen(found: list[int], scores: Tensor, error: Tensor) -> None:
    """The `len(found)` best by exact scores [N], each of which is off by up to `error` [N] where it was found: who is
    clearly above the cutoff is among them, who is clearly below is not, and no one twice."""
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
    """Of the mean of so many independent draws with this standard deviation."""
    return SIGMAS * deviation / math.sqrt(draws)


def share_error(share: float, draws: int) -> float:
    """Of a share that was counted on so many independent draws."""
    return sampling_error(math.sqrt(share * (1 - share)), draws)


def printed(digits: int) -> float:
    """Half a unit of the last digit of a number that is published with so many behind the point, and its rounding."""
    return (0.5 + eps(torch.float32)) * 10.0**-digits


def codec_error(quantizer: int = 23 + 6) -> float:
    """Of the brightness (0 to 255) of a flat frame in H.264: half a step of its quantizer in four times the mean of a
    block, and one of the 219 levels of video range, there and back. A step is 1 at 4 and doubles every 6; x264's
    default is 23, and up to 6 more for frames that no others hang on."""
    return 2 ** ((quantizer - 4) / 6) / 2 / 4 + 2 * 255 / 219
