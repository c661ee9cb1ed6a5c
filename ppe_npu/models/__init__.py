"""compress() and restore(): the seam to transformers, with one file per model family.

A family is a module that defines
* CLASSES: the names of the transformers classes that it serves;
* LAYERS: the class names of its decoder layers, and of the attention in each;
* PAIRS: which channels of a head that attention rotates together;
* TOWER: the class names of the vision tower's blocks, and of the attention in each;
* vision_tokens(config), channels(config) and decoder_layers(config), which read the model's config;
* install(model, compression), uninstall(model) and detach(model).

A family imports those that another file already defines (usually vision_language.py) under the same name. A new family
is a new file and its name in _FAMILIES. A family that differs from Qwen's only in what the fields of GridFamily state
is an entry of grid_families.py, and one whose decoder counts in one dimension an entry of one_dimension_families.py.
"""

import contextlib
import logging
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from ppe_npu.backends.device import process_rank
from ppe_npu.config import CompressionConfig
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.positions import most_positions
from ppe_npu.errors import InputError
from ppe_npu.models.known import REFUSED, check_layers, check_looked_at, check_tower, check_with_pvc, text_model
from ppe_npu.models.pixels import pixel_values
from ppe_npu.models.seam import is_shallow_copy
from ppe_npu.models.seeing_ahead import check_ahead

_QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
_FAMILIES = (*_QWEN, "one_dimension")
_TILED = ("InternVLForConditionalGeneration", "PVCInternVLForConditionalGeneration")


def supported_classes() -> tuple[str, ...]:
    """The names of the transformers model classes that can be compressed."""
    return tuple(name for family in _families() for name in family.CLASSES)


def commanded_classes(tiled: bool = False) -> tuple[str, ...]:
    """The supported classes whose inputs the commands can make (`ppe-npu train`, `eval`, and all others that read a
    checkpoint's processor).

    Args:
        tiled: include InternVL, whose pictures are tiles; only `train` and `eval` make its inputs.
    """
    names = tuple(name for family in _families()[: len(_QWEN)] for name in family.CLASSES)
    return (*names, *_TILED) if tiled else names


def compress(model, config: CompressionConfig, processor=None):
    """Compress the visual tokens of a transformers model, in place.

    Afterwards model(...) and model.generate(...) take the same inputs as before; logits, loss and the KV cache have the
    compressed length, out.labels are the labels at that length, and model.compression.report tells what was merged. A
    pass without a KV cache (use_cache=False) gives logits and labels in the prompt's own columns; ppe_npu.align brings
    any other per-token values to the output's columns. No class, no module global and no config object is changed;
    checkpoints load in plain transformers.
    A copy.copy shares its modules with the original: to keep the original uncompressed, compress a copy.deepcopy.

    Args:
        model: an instance of one of supported_classes(), or a peft model around one.
        config: how to compress; compressing again with another config replaces the first.
        processor: the processor whose normalisation a step at the pixels undoes. None: the settings in the folder that
            the model was loaded from, or else the family's defaults.

    Returns:
        The model itself.

    Raises:
        InputError: an unsupported class, or a config that does not fit the model.
    """
    if not isinstance(config, CompressionConfig):
        raise InputError(
            f"config is a {type(config).__name__}: give a CompressionConfig, e.g. CompressionConfig.preset('ppe')"
        )
    base, family = _seam(model)
    compression = _compression(family, base.config, config)
    if (said := another_k(config, compression.config)) and process_rank() == 0:
        logging.getLogger("ppe_npu").warning(said)
    if config.at_pixels is not None:
        compression.vision = pixel_values(base, compression.vision, processor)
    check_layers(text_model(base.model).layers, family.LAYERS)
    check_looked_at(text_model(base.model).layers, config.methods)
    check_ahead(text_model(base.model).layers, config.methods)
    blocks = range(compression.vision.tower_blocks) if compression.inside is not None else compression.tower.all
    if compression.inside is not None and compression.vision.tile_blocks:
        check_tower(base.model.vision_tower.encoder.layer, family.TOWER)
    check_tower((base.model.visual.blocks[block] for block in blocks), family.TOWER)
    _take_off(base, family)
    family.install(base, compression)
    return model


def check_fit(class_name: str, model_config, config: CompressionConfig) -> CompressionConfig:
    """`config` as fitted to a model of this class with this transformers config: k may be lowered. Needs no weights.
    Raises InputError unless it fits."""
    return compression_for(class_name, model_config, config).config


def another_k(asked: CompressionConfig, fitted: CompressionConfig) -> str | None:
    """The warning that the default k was lowered to fit the model; None if it was not."""
    if asked.k == fitted.k:
        return None
    return f"k={fitted.k} replaces the default k={asked.k}: it is the most that this model's rotary sections allow"


def compression_for(class_name: str, model_config, config: CompressionConfig) -> Compression:
    """The Compression that compress() would attach to a model of this class with this transformers config; for
    inference engines that bring their own model.

    Raises:
        InputError: an unsupported class, or a config that does not fit the model.
    """
    return _compression(_family(class_name), model_config, config)


def restore(model):
    """Undo compress(): the model is what it was, bit for bit. A model that is not compressed is left alone.

    A copy.deepcopy of a compressed model is compressed independently. A copy.copy shares its modules with the original:
    when it is restored, it gets its own decoder and head around the same weights, and the original stays compressed.
    """
    _take_off(*_seam(model))
    return model


@contextlib.contextmanager
def without_compression(model) -> Iterator[None]:
    """Context in which a compressed model is what it was before compress(); afterwards the same Compression is in force
    again. A model that is not compressed is left alone."""
    if not is_compressed(model):
        yield
        return
    base, family = _seam(model)
    compression = base.compression
    _take_off(base, family)
    try:
        yield
    finally:
        family.install(base, compression)


def _take_off(base, family: ModuleType) -> None:
    if not is_compressed(base):
        return
    if is_shallow_copy(base):
        family.detach(base)
    family.uninstall(base)


def is_compressed(model) -> bool:
    """Whether compress() is in force on this model."""
    return isinstance(vars(base_of(model)).get("compression"), Compression)


def _compression(family: ModuleType, model_config, config: CompressionConfig) -> Compression:
    vision, channels = family.vision_tokens(model_config), family.channels(model_config)
    most = most_positions(channels)
    fitted = config if config.k_named or not config.k or config.k <= most else config.changed(k=most)
    if hasattr(model_config, "pvc"):
        check_with_pvc(config.methods)
    return Compression(fitted, vision, channels, family.decoder_layers(model_config), family.PAIRS)


def _seam(model) -> tuple[Any, ModuleType]:
    base = base_of(model)
    return base, _family(type(base).__name__)


def _family(class_name: str) -> ModuleType:
    for family in _families():
        if class_name in family.CLASSES:
            return family
    why = f" ({REFUSED[class_name]})" if class_name in REFUSED else ""
    raise InputError(f"{class_name} is not supported{why}: use one of {', '.join(supported_classes())}")


def base_of(model):
    """The transformers model inside a peft model or a (distributed) data-parallel wrapper."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            model = model.module
        else:
            return model


def _families() -> list:
    """The families: modules, or GridFamily objects with the same attributes."""
    grids = import_module(f"{__name__}.grid_families")
    return [*(import_module(f"{__name__}.{name}") for name in _FAMILIES), *grids.FAMILIES]
