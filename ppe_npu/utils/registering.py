"""Which files of a folder register something, so that it can be listed before any of them is imported."""

import functools
import pkgutil
import re
from pathlib import Path


def files_that_register(folder: str) -> tuple[str, ...]:
    """Names of the modules in a folder that use @register(...). All others there are helpers."""
    names = (file.name for file in pkgutil.iter_modules([folder]) if not file.ispkg)
    return tuple(name for name in names if _registers(Path(folder, f"{name}.py")))


@functools.cache
def _registers(file: Path) -> bool:
    return re.search(r"^@register\(", file.read_text(encoding="utf-8"), re.MULTILINE) is not None
