"""Loads models and processors from checkpoint folders; errors are reported in one line before weights are read."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from ppe_npu.backends.common import DTYPES as COMMON_DTYPES
from ppe_npu.checkpoints.generation_defaults import of_checkpoint, token_ids, transformers_takes, unloadable
from ppe_npu.checkpoints.trial import check_amount, check_sizes, try_processor
from ppe_npu.checkpoints.trust import NO_CODE, check_no_code, check_weight_files, refused_code, weight_options
from ppe_npu.compat import set_pixels
from ppe_npu.config import CompressionConfig
from ppe_npu.data.pictures import MOST
from ppe_npu.data.tiles import is_tiled
from ppe_npu.errors import InputError, counted, first_line, shown
from ppe_npu.utils.paths import as_path
from ppe_npu.utils.reading import UnreadableError, read_json

_FILES = tuple(f"{name}.json" for name in (
    "processor_config", "preprocessor_config", "video_preprocessor_config", "tokenizer_config", "tokenizer", "vocab",
    "special_tokens_map", "added_tokens", "chat_template",
))  # fmt: skip
_LABELS = 10**6
_TOKENIZER, _REMEDY = "tokenizer_config.json", "save the processor there again"

DTYPES = {name: COMMON_DTYPES[name] for name in ("fp32", "bf16")}
SERVED = "ppe_compression"  # a key in each config.json that was written for vLLM


def load_model(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = "fp32",
    attn_implementation: str = "sdpa",
    quantization_config: Any = None,
    allow_bin: bool = False,
    tiled: bool = False,
) -> Any:
    """A supported model in eval mode on a device, its norms, MLPs and vision attention fused (ppe_npu.models.fused).

    Args:
        path: a checkpoint folder (config.json and weights), or a model's id on the Hugging Face hub.
        device: the device to move the model to.
        dtype: "fp32", "bf16" or a torch dtype.
        attn_implementation: one that transformers supports.
        quantization_config: transformers' own, to store weights in fewer bits (adapters.quantization).
        allow_bin: whether to read pytorch_model.bin (with torch's weights_only) if there are no safetensors.
        tiled: whether to accept InternVL, whose pictures are tiles; only `train` and `eval` can make its inputs.

    Raises:
        InputError: path is not a checkpoint, its class is not supported, it asks for code of its own, it has only
            pickled weights, or its files cannot be read.
    """
    architecture = check_checkpoint(path, allow_bin, tiled)
    asked = of_checkpoint(path)
    import transformers

    from ppe_npu.models.fused import fuse
    from ppe_npu.models.pvc.install import model_class

    more: dict[str, Any] = {}
    if quantization_config is not None:
        more = {"quantization_config": quantization_config, "device_map": {"": str(device)}}  # packed on its device
    if not transformers_takes(asked):  # conflicting settings of generate() must not prevent loading
        more["generation_config"] = transformers.GenerationConfig(**token_ids(asked))
    more |= {
        "dtype": DTYPES.get(dtype, dtype),
        "attn_implementation": attn_implementation,
        **NO_CODE,
        **unloadable(path),
    }
    model = _read(model_class(architecture), path, **more, **weight_options(path, allow_bin))
    model.checkpoint_generation = asked
    return fuse(model.to(device).eval())


def _read(architecture: Any, path: str | Path, **options: Any) -> Any:
    """The model of this class with all of its weights."""
    try:
        model, found = architecture.from_pretrained(str(path), output_loading_info=True, **options)
    except Exception as error:  # a wrong field or file makes transformers raise errors of any type
        raise InputError(f"model {path} cannot be loaded ({first_line(error)}): download or save it again") from error
    if missing := sorted(found["missing_keys"]):  # transformers would initialize them at random, with a warning
        lacking = f"{counted(len(missing), 'weight')} ({missing[0]}{', ...' * (len(missing) > 1)})"
        raise InputError(f"model {path} lacks {lacking}: download or save it again")
    return model


def check_checkpoint(path: str | Path, allow_bin: bool = False, tiled: bool = False) -> str:
    """The name of a checkpoint's model class, after checking that the folder is complete and the class supported.

    Args:
        path, allow_bin, tiled: as in load_model.

    Raises:
        InputError: the checkpoint cannot be loaded; one line names the folder and what is missing.
    """
    from ppe_npu.models import commanded_classes, supported_classes

    folder = Path(as_path(str(path), "model "))
    if folder.is_dir():
        config = _read_config(folder)
        check_no_code(folder)
        check_weight_files(folder, allow_bin)
        check_amount(folder, config)
    else:
        config = _hub_config(path)
    names = config.get("architectures")
    names = names if isinstance(names, list) and names else ["model of no stated class"]
    supported = commanded_classes(tiled)
    if names[0] not in supported and names[0] in supported_classes():
        made = "only train and eval prepare" if names[0] in commanded_classes(True) else "no command prepares yet"
        raise InputError(
            f"model {path} is a {names[0]}, which compress() supports, but whose inputs {made}: load and "
            f"compress it in a program of your own (docs/families.md), or use one of {', '.join(supported)}"
        )
    if names[0] not in supported and SERVED in config:
        raise InputError(f"model {path} was exported for vLLM ({SERVED}): name the checkpoint that it was made from")
    if names[0] not in supported:
        raise InputError(f"model {path} is a {names[0]}, which is not supported: use one of {', '.join(supported)}")
    return names[0]


def check_compression(
    path: str | Path, *configs: CompressionConfig, allow_bin: bool = False, tiled: bool = False
) -> list[CompressionConfig]:
    """Check that compressions fit the checkpoint's model, before its weights are read.

    Returns:
        The compressions, with k set to the largest that fits if none was given and the default does not fit.

    Raises:
        InputError: a compression does not fit; the message says what would.
    """
    from transformers import AutoConfig

    from ppe_npu.models import check_fit

    architecture = check_checkpoint(path, allow_bin, tiled)
    try:
        model_config = AutoConfig.from_pretrained(str(path), **NO_CODE)
        check_sizes(model_config)
        check_fit(architecture, model_config, CompressionConfig.preset("dense"))
    except Exception as error:  # validation in transformers raises errors of any type
        refused = refused_code(path, error)
        if refused is not None:
            raise refused from error
        raise InputError(f"config of {path} cannot be used ({first_line(error)}): save the checkpoint again") from error
    if Path(path).is_dir():
        check_amount(Path(path), model_config.to_dict())  # with transformers' defaults for missing keys
    return [check_fit(architecture, model_config, config) for config in configs]


def load_processor(
    path: str | Path, min_pixels: int | None = None, max_pixels: int | None = None, model: str | Path | None = None
) -> Any:
    """The processor of a checkpoint.

    Args:
        path: a folder with processor and tokenizer files, or an id on the hub.
        min_pixels, max_pixels: bounds on height * width of an image after resizing; None: the checkpoint's own.
        model: the folder of the model that it is for, such as an adapter's base; None: `path` has the model, too.

    Raises:
        InputError: there is no processor or no chat template, its patches or vocabulary do not match the model, or the
            bounds contradict each other.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise InputError(
            "torchvision is not installed, which transformers' image and video processors need: "
            f"pip install --no-deps the release that matches torch {torch.__version__.split('+')[0]}"
        )
    from transformers import AutoProcessor

    for name, pixels in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if pixels is not None and pixels < 1:
            raise InputError(f"{name}={pixels}: give at least 1, or leave it out for the checkpoint's own")
    check_no_code(path)
    if Path(path).is_dir() and not (Path(path) / _TOKENIZER).is_file():
        raise InputError(
            f"processor of {path} cannot be loaded: the folder lacks {_TOKENIZER}, without which text may be "
            "tokenized differently: copy it from where the model came from"
        )
    try:
        processor = AutoProcessor.from_pretrained(str(path), **NO_CODE)
    except Exception as error:  # parts of transformers raise OSError, KeyError, ImportError, ...
        refused = refused_code(path, error)
        if refused is not None:
            raise refused from error
        why = _damaged(Path(path)) or first_line(error)
        raise InputError(f"processor of {path} cannot be loaded ({why}): {_REMEDY}") from error
    for name in ("image_processor", "video_processor", "tokenizer"):
        if getattr(processor, name, None) is None:
            raise InputError(f"processor of {path} has no {name}: {_REMEDY}")
    processor.chat_template = _chat_template(path, processor)
    try_processor(processor, path, model)
    _bound(processor, min_pixels, max_pixels, path)
    return processor


def _damaged(folder: Path) -> str | None:
    """What is wrong with one of the files that a processor is read from; None if nothing is found."""
    for name in _FILES:
        try:
            found = {} if not (folder / name).exists() else read_json(folder / name)
        except UnreadableError as error:
            return f"{name}: {error.why}"
        if not isinstance(found, dict):
            return f"{name} contains {shown(found)}, not settings"
    return None


def _bound(processor: Any, min_pixels: int | None, max_pixels: int | None, path: str | Path) -> None:
    """Set the bounds on the processor's pictures; None leaves a bound as it is."""
    if is_tiled(processor):
        if min_pixels or max_pixels:
            raise InputError(
                f"min_pixels and max_pixels do not apply to {path}, whose pictures are tiles of one size: leave them "
                "out (eval's protocol named checkpoint sets none)"
            )
        return
    size = dict(processor.image_processor.size)
    size["shortest_edge"] = min_pixels or size["shortest_edge"]
    size["longest_edge"] = max_pixels or size["longest_edge"]
    if size["shortest_edge"] > size["longest_edge"]:
        own = f" of {path}"
        least = f"min_pixels={size['shortest_edge']}{'' if min_pixels else own}"
        most = f"max_pixels={size['longest_edge']}{'' if max_pixels else own}"
        raise InputError(f"{least} is larger than {most}: give both, the larger one as max_pixels")
    for part in (size, processor.video_processor.size):
        if part["shortest_edge"] > MOST:  # every picture would be enlarged to this size
            least = f"min_pixels={part['shortest_edge']} of {path}"
            raise InputError(f"{least} exceeds the largest picture that can be read: give {MOST} or less")
    set_pixels(processor.image_processor, size["shortest_edge"], size["longest_edge"])


def _chat_template(path: str | Path, processor: Any) -> str:
    """The processor's chat template, else the tokenizer's; if several are named, the one called "default".

    Raises:
        InputError: there is no template, or none of several is called "default".
    """
    given = processor.chat_template or getattr(processor.tokenizer, "chat_template", None)
    if isinstance(given, (list, tuple)):  # the format of files: [{"name", "template"}]
        given = {item.get("name"): item.get("template") for item in given if isinstance(item, dict)}
    if isinstance(given, dict):
        if "default" not in given and len(given) > 1:
            raise InputError(f"processor of {path} has chat templates {', '.join(map(str, given))}: name one default")
        given = given.get("default", next(iter(given.values()), None))
    if not given or not isinstance(given, str):
        raise InputError(f"processor of {path} has no chat template: put chat_template.jinja into the folder")
    return given.removeprefix("\ufeff")  # some editors put it at the start of a file; the model would get it


def quiet_transformers() -> None:
    """Let transformers print only errors, because its advice is for programmers, not for users of a command."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()  # for loading and saving weights; the Trainer's bar is not affected


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file() and (folder / "adapter_config.json").is_file():
        raise InputError(
            f"model folder {folder} contains only an adapter: run `ppe-npu merge-lora --adapter {folder} --output "
            "FOLDER` to make a model of it"
        )
    if not file.is_file():
        raise InputError(f"model folder {folder} is not a checkpoint: it contains no config.json")
    try:
        config = read_json(file)
    except UnreadableError as error:
        raise InputError(f"{file} cannot be read as JSON ({error.why}): save the checkpoint again") from error
    if not isinstance(config, dict):
        raise InputError(f"{file} is not a model config: save the checkpoint again")
    if config.get("vision_config", {}) is None:  # transformers would build a large tower of its own
        raise InputError(f"{file}: vision_config is null: save the checkpoint again")
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        labels = part.get("num_labels")
        if isinstance(labels, int) and labels > _LABELS:  # transformers would make a name for each
            raise InputError(f"{file}: num_labels={shown(labels)} is more than any model has: leave it out")
    return config


def _hub_config(path: str | Path) -> dict[str, Any]:
    """The config of a model on the hub, or in the hub's local cache."""
    name = str(path)
    if Path(name).exists():
        raise InputError(f"model {name} is not a folder: give the checkpoint's folder")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise InputError(f"model {name} does not exist: give a checkpoint folder or a hub id such as owner/name")
    from transformers.utils import cached_file

    try:
        return _read_config(Path(cached_file(name, "config.json")).parent)
    except OSError as error:
        raise InputError(
            f"model {name} is neither a folder nor reachable on the hub: check its name, and the network"
        ) from error
