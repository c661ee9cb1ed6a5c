"""A short name for a model's weights: two models with one fingerprint are, for all we do with them, the same."""

import contextlib
import hashlib

import torch


def fingerprint(model: torch.nn.Module) -> str:
    """16 hex digits of some values of every parameter: the same folder with other weights is another model.

    It hangs on the parameters' names and on their dtype's rounding: compare models that were loaded in one dtype, and
    before an adapter is attached. Under ZeRO-3 every process must call it, each holds a share of every parameter.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        with _whole(parameter):
            flat = parameter.detach().flatten()
            step = max(flat.numel() // 64, 1)
            digest.update(name.encode() + flat[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _whole(parameter: torch.nn.Parameter):
    """While it is open the parameter holds all its values, also where ZeRO-3 has cut it into shares."""
    if not hasattr(parameter, "ds_id"):
        return contextlib.nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters([parameter])
