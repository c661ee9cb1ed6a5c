"""Visual-token compression with positional preservation (PPE) for multimodal LLMs.

    from ppe_npu import CompressionConfig, compress, restore

    compress(model, CompressionConfig.preset("ppe"))    # in place
    model.generate(**inputs)                            # as before, on fewer tokens
    restore(model)                                      # the model as it was, bit for bit

Importing this package imports neither transformers nor any device package: the names above are loaded when first used.
"""

from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"
__path__.append(str(Path(__file__).parent / "old_names"))  # keeps `import ppe_npu.media` working

_PUBLIC = {
    "CompressionConfig": "ppe_npu.config",
    "align": "ppe_npu.models.alignment",
    "compress": "ppe_npu.models",
    "from_pretrained": "ppe_npu.checkpoints.compressed",
    "restore": "ppe_npu.models",
}
__all__ = ["CompressionConfig", "__version__", "align", "compress", "restore"]  # `import *` leaves out from_pretrained


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'ppe_npu' has no attribute {name!r}")
