"""The arguments of the operations, and their implementations in order of preference: plain data that `dispatch` reads.

To add an implementation: write `<device>/<op>.py` with a function of the op's name and signature and, if the function
has limits, a function `refusal` of the same signature; add a line here; run the parity cases on the device.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ANY = ("any",)

ARGUMENTS = {  # op -> argument -> its kind, which `dispatch.check_kinds` checks
    "attention": {
        "query": "floating", "key": "floating", "value": "floating", "mask": "tensor or None",
        "key_bias": "floating or None", "causal": "flag", "scale": "number or None", "dropout": "number",
    },
    "rotary": {"query": "floating", "key": "floating", "cos": "floating", "sin": "floating"},
    "dpc_knn": {
        "tokens": "floating", "valid": "tensor or None", "budgets": "integers", "num_neighbors": "integers",
        "max_groups": "whole", "strict": "flag", "most_neighbors": "whole",
    },
    "group_mean": {"tokens": "floating", "labels": "integers", "counts": "integers"},
    "rms_norm": {"x": "floating", "weight": "floating", "eps": "number"},
    "swiglu": {"gate": "floating", "up": "floating"},
    "linear_cross_entropy": {
        "hidden": "floating", "weight": "floating", "labels": "integers",
        "ignore_index": "whole", "chunk_size": "whole",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Implementation:
    """One way to compute one op.

    Attributes:
        op: the op's name, a function of `ppe_npu.backends`.
        name: the name that `using(op=name)` and `implementation=name` request. Unique per op and device kind.
        devices: kinds of device that it runs on ("npu", "cuda", "cpu"), or ANY.
        module: module in ppe_npu.backends that contains it; imported when it is first considered.
        function: the function's name there; it takes the op's arguments.
        requires: package that must be importable, or None.
        distribution: the name under which pip installs that package; None if it is the package's name.
        verify: name in `module` of a pure function of the op's arguments that returns why this implementation refuses
            them, or None; None if the implementation takes everything that the op takes. Each reason is logged once,
            so reasons state limits, not the numbers of one call.
        made_for: name in `module` of a pure function of the op's arguments that returns whether this implementation is
            made for such a call; None if it is for all. Other calls skip it silently, or fail if they request it.
        least_tokens: smallest N for which it is worthwhile (the op's first argument is tokens [F, N, C]). For fewer
            tokens per frame it is skipped unless it is requested by name. 0: no limit.
        traced: whether it is also worthwhile under torch.compile; if not, it is skipped there unless requested by name.
        gradient: whether results can be differentiated; if not, calls that need a gradient are refused.
        automatic: whether it is used without being requested by name.
    """

    op: str
    name: str
    devices: tuple[str, ...]
    module: str
    function: str
    requires: str | None = None
    distribution: str | None = None
    verify: str | None = None
    made_for: str | None = None
    least_tokens: int = 0
    traced: bool = True
    gradient: bool = True
    automatic: bool = True

    def missing(self) -> str | None:
        """Why the required package cannot be used, or None. The first call imports that package."""
        return None if self.requires is None else _import_problem(self.requires, self.distribution)

    def load(self) -> Callable:
        """The function itself."""
        return getattr(_module(self.module), self.function)

    def concerns(self, *args, **kwargs) -> bool:
        """Whether the implementation is made for such a call, and worthwhile for it."""
        made_for = self.made_for is None or getattr(_module(self.module), self.made_for)(*args, **kwargs)
        return made_for and (self.least_tokens == 0 or args[0].shape[1] >= self.least_tokens)


@functools.cache
def _module(name: str):
    return importlib.import_module(f"{__package__}.{name}")


@functools.cache
def _import_problem(package: str, distribution: str | None = None) -> str | None:
    # find_spec is not enough: a flash_attn that was built for another torch is installed but fails on import.
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name == package.partition(".")[0]:
            return f"{distribution or error.name} is not installed"
        return f"{package} cannot be imported ({error})"
    except Exception as error:
        return f"{package} cannot be imported ({type(error).__name__}: {str(error).strip().splitlines()[:1]})"
    return None


def _reference(op: str, gradient: bool = True) -> Implementation:
    return Implementation(op, "reference", ANY, f"reference.{op}", op, gradient=gradient)


def _on_cpu(op: str, **limits: Any) -> Implementation:
    return Implementation(op, "cpu", ("cpu",), f"cpu.{op}", op, **limits)


def _torch_npu(op: str) -> Implementation:
    return Implementation(op, "torch_npu", ("npu",), f"npu.{op}", op, requires="torch_npu", verify="refusal")


def _mindspeed(op: str) -> Implementation:
    module, verify = "npu.mindspeed", f"{op}_refusal"
    return Implementation(op, "mindspeed", ("npu",), module, op, requires="mindspeed", verify=verify, automatic=False)


def _triton(op: str, gradient: bool = True) -> Implementation:
    kernel = Implementation(op, "triton", ("cuda",), f"cuda.{op}", op, requires="triton", verify="refusal")
    return dataclasses.replace(kernel, gradient=gradient)


def _triton_ascend(op: str, module: str, gradient: bool = True) -> Implementation:
    kernel = Implementation(op, "triton_ascend", ("npu",), f"npu.{module}", op, requires="triton", verify="refusal")
    return dataclasses.replace(kernel, gradient=gradient, distribution="triton-ascend")


def _liger(op: str) -> Implementation:
    return Implementation(op, "liger", ("cuda",), f"cuda.{op}", op, requires="liger_kernel.ops", verify="refusal")


_DECODE = Implementation(
    "attention", "torch_npu_decode", ("npu",), "npu.decode", "attention",
    requires="torch_npu", verify="refusal", made_for="concerns", gradient=False,
)  # fmt: skip

REGISTRY: tuple[Implementation, ...] = (
    _DECODE,
    _torch_npu("attention"),
    _mindspeed("attention"),
    Implementation(
        "attention", "flash_attn", ("cuda",), "cuda.attention", "attention", requires="flash_attn", verify="refusal"
    ),
    Implementation("attention", "sdpa", ("cuda", "cpu"), "sdpa", "attention"),
    _reference("attention"),
    _torch_npu("rotary"),
    _mindspeed("rotary"),
    _triton("rotary"),
    _reference("rotary"),
    _triton_ascend("dpc_knn", "dpc_knn", gradient=False),
    _triton("dpc_knn", gradient=False),
    # For smaller frames the reference's batched products are faster. The limit is one more than a power of two because
    # the engine batches frames of 33 to 64 tokens, or of 65 to 128: all frames of such a range get one implementation.
    _on_cpu("dpc_knn", gradient=False, least_tokens=65),
    _reference("dpc_knn", gradient=False),
    _triton_ascend("group_mean", "row_mean"),
    Implementation("group_mean", "onehot", ("npu",), "npu.group_mean", "group_mean", verify="refusal"),
    _triton("group_mean"),
    Implementation("group_mean", "onehot", ("cuda",), "onehot", "group_mean"),
    _on_cpu("group_mean", traced=False),  # torch.compile fuses the reference into one loop
    _reference("group_mean"),
    _torch_npu("rms_norm"),
    _liger("rms_norm"),
    _reference("rms_norm"),
    _torch_npu("swiglu"),
    _liger("swiglu"),
    _reference("swiglu"),
    _liger("linear_cross_entropy"),
    _reference("linear_cross_entropy"),
)
