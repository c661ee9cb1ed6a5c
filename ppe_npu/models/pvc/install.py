"""Adding PVC's modules to a model, and loading models that have them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError, shown
from ppe_npu.models.known import check_release
from ppe_npu.models.pvc.config import PVCConfig
from ppe_npu.utils.reading import UnreadableError, read_json

_BASES = {"internvl": "internvl", "qwen2_5_vl": "qwen2_5_vl"}  # model_type -> module
# All that is known of the released checkpoint (OpenGVLab/PVC-InternVL2-8B): configuration keys, but no tensors.
_RELEASED = ("image_repeat_time", "video_repeat_time", "tile_repeat_way", "use_temporal", "mlp_add_ops", "ps_version")


def add_pvc(model, config: PVCConfig | None = None):
    """Add PVC's modules to an InternVL or Qwen2.5-VL model, in place. Until they are trained, the model computes the
    same, bit for bit, except with an internvl_shuffle other than the base's, which makes fewer tokens per tile.

    Args:
        model: an instance of transformers' own class that is not compressed; compress() it afterwards.

    Raises:
        InputError: another class, a compressed model, or settings that do not fit the vision tower.
    """
    check_release("PVC")
    pvc, module = config or PVCConfig(), _module(model.config.model_type)
    if type(model).__name__.startswith("PVC"):
        raise InputError(f"{type(model).__name__} has PVC's modules already: do not add them again")
    if "compression" in vars(model):
        raise InputError("the model is compressed: restore() it, add_pvc(), and compress() again")
    known, like = {id(part) for part in model.modules()}, next(model.parameters())
    module.equip(model, pvc)
    # With these, transformers would save under the checkpoint's old names, which it can only load in its own classes.
    vars(model).pop("_weight_conversions", None)
    model.config.pvc = pvc.as_dict()
    for part in model.modules():
        if id(part) not in known:
            part.to(like.device, like.dtype)
    return model


def load_pvc(path: str | Path, config: PVCConfig | None = None, **options: Any):
    """A model with PVC's modules from a folder.

    Args:
        path: the folder of a model that was saved with them; or, with `config`, of a base InternVL or Qwen2.5-VL.
        options: those of from_pretrained().

    Raises:
        InputError: a folder of neither kind. The paper's released checkpoint is refused: its code and tensor names were
            not available, and this package's modules may differ from its own.
    """
    import transformers

    said = _read_config(path)
    released = [name for name in _RELEASED if name in said]
    named = "PVC" in " ".join(said.get("architectures") or ())
    if released or (named and "pvc" not in said):
        raise InputError(
            f"{path} is a checkpoint of the paper's own code ({', '.join(released) or 'by its architecture'}), which "
            f"cannot be loaded: only its configuration's keys {', '.join(_RELEASED)} are known, not the names of its "
            "tensors; call add_pvc() on its base and train"
        )
    module = _module(said.get("model_type"))
    if "pvc" not in said and config is None:
        raise InputError(f"{path} has no PVC modules (no pvc in its config.json): give a PVCConfig to add them")
    name = (said.get("architectures") or [""])[0]
    if "pvc" in said:
        return getattr(module, name).from_pretrained(path, **options)
    return add_pvc(getattr(transformers, name).from_pretrained(path, **options), config)


def pvc_of(path: str | Path, asked: PVCConfig | None = None) -> PVCConfig | None:
    """The PVC modules of a run that starts from a checkpoint: the checkpoint's own, or those asked for, or None.

    Raises:
        InputError: the modules asked for differ from the checkpoint's.
    """
    from transformers import AutoConfig

    said = getattr(AutoConfig.from_pretrained(str(path), trust_remote_code=False), "pvc", None)
    if said is None:
        return asked
    own = PVCConfig(**said)
    if asked not in (None, own):
        raise InputError(f"{path} has PVC's modules {own.as_dict()}, not {asked.as_dict()}: leave pvc out")
    return own


def fit_processor(processor, path: str | Path, pvc: PVCConfig | None) -> None:
    """Let a checkpoint's processor write as many image tokens per tile as the model with these modules makes."""
    from transformers import AutoConfig

    from ppe_npu.models.pvc.internvl import tile_tokens

    if pvc is None or not pvc.internvl_shuffle:
        return
    config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    if config.model_type == "internvl":
        processor.image_seq_length = tile_tokens(config, pvc.internvl_shuffle)


def model_class(name: str):
    """The class of this name, from PVC's modules or from transformers."""
    import transformers

    for module in map(_module, _BASES) if name.startswith("PVC") else ():
        if hasattr(module, name):
            return getattr(module, name)
    return getattr(transformers, name)


def _read_config(path: str | Path) -> dict:
    try:
        said = read_json(Path(path) / "config.json")
    except UnreadableError as error:
        raise InputError(f"{path} is no checkpoint: its config.json is {error.why}") from error
    return said if isinstance(said, dict) else {}


def _module(kind: str | None):
    if kind not in _BASES:
        raise InputError(
            f"PVC does not support model_type {shown(kind)}: take a model of type {', '.join(_BASES)}, or leave pvc out"
        )
    return import_module(f"ppe_npu.models.pvc.{_BASES[kind]}")
