"""The traps between the versions that this package pins: each is handled here, once, and nowhere else.

torchvision without its operators: the PyPI wheel's compiled part needs CUDA libraries, so beside a CPU torch it does
    not load, `import torchvision` fails, and transformers' Trainer and video processors fail with it.
Accelerator.unwrap_model: transformers >= 5.2 passes `keep_torch_compile`, which accelerate 1.1.1 does not know.
mm_token_type_ids: without them transformers >= 5.3 silently runs Qwen2.5-VL with text positions only.

tests/test_compat.py shows for each that the break is still there without the guard, and fails when it can be deleted.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from typing import Any

import torch

# What torchvision's Python part expects to be registered when it is imported: it gives these two fake kernels.
_TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []  # a Library takes its schemas away when it is collected


def prepare_transformers() -> None:
    """Make transformers' Trainer and processors importable. Call before the first import of them; may be called often.

    Raises:
        ImportError: torchvision is installed and cannot be imported for a reason that is not handled here (one line).
    """
    make_torchvision_importable()


def make_torchvision_importable() -> bool:
    """Import torchvision; where its compiled operators are missing, declare them (without a kernel) and import again.

    A torchvision that imports is left alone, and so is a missing one. The image transforms that transformers uses are
    plain torch; the declared operators would raise if they were called.

    Returns:
        True if torchvision is importable now, False if it is not installed.
    """
    if "torchvision" in sys.modules:
        return True
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise _torchvision_error(error) from error
    except (ImportError, OSError) as error:
        raise _torchvision_error(error) from error
    else:
        return True
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # the half-imported ones
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _TORCHVISION_SCHEMAS:
        library.define(schema)
    _libraries.append(library)
    importlib.import_module("torchvision")
    return True


def _torchvision_error(error: Exception) -> ImportError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ImportError(
        f"torchvision is installed but cannot be imported ({reason}): "
        f"install the release that belongs to torch {torch.__version__}, or uninstall it"
    )


def adapt_unwrap_model(accelerator: Any) -> Any:
    """Let this one accelerator's unwrap_model take `keep_torch_compile`, as accelerate >= 1.3 does; its class stays.

    accelerate 1.1.1 always gives a compiled model back compiled, so keep_torch_compile=False takes the shell off here.

    Args:
        accelerator: an accelerate.Accelerator, changed in place when its unwrap_model lacks the argument.

    Returns:
        The accelerator.
    """
    original = accelerator.unwrap_model
    if "keep_torch_compile" in inspect.signature(original).parameters:
        return accelerator

    @functools.wraps(original)
    def unwrap_model(model, keep_fp32_wrapper: bool = True, keep_torch_compile: bool = True):
        unwrapped = original(model, keep_fp32_wrapper=keep_fp32_wrapper)
        return unwrapped if keep_torch_compile else getattr(unwrapped, "_orig_mod", unwrapped)

    # functools.wraps would show the old signature, and a second call would wrap again.
    unwrap_model.__signature__ = inspect.signature(unwrap_model, follow_wrapped=False)
    accelerator.unwrap_model = unwrap_model
    return accelerator


def ensure_mm_token_type_ids(inputs: dict[str, Any], image_token_id: int, video_token_id: int) -> dict[str, Any]:
    """Put mm_token_type_ids into model inputs that lack them.

    Args:
        inputs: model inputs with input_ids, int64 [B, S]; changed in place.
        image_token_id: the id of an image's placeholder token.
        video_token_id: the id of a video's placeholder token.

    Returns:
        inputs, with mm_token_type_ids, int64 [B, S]: 1 at image tokens, 2 at video tokens, 0 elsewhere. Ids that
        are already there stay.
    """
    if inputs.get("mm_token_type_ids") is None:
        input_ids = inputs["input_ids"]
        inputs["mm_token_type_ids"] = (input_ids == image_token_id).long() + 2 * (input_ids == video_token_id).long()
    return inputs
