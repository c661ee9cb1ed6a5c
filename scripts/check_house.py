"""The house rules that a program can check: arrows run one way, device packages stay in their room, files stay short.

cli -> demo -> serving, training, evaluation -> models -> engine, inspect -> config -> methods -> backends
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 400  # lines
WIDEST = 160  # characters of a document's line
DOCUMENTS = ("*.md", "docs/**/*.md", "tests/**/*.md", "scripts/**/*.md")

# A module may import modules of its own level or of a lower one. Longest matching prefix decides.
LEVELS = {
    "ppe_npu.errors": 0,
    "ppe_npu.settings": 0,
    "ppe_npu.optional": 0,
    "ppe_npu.backends": 0,
    "ppe_npu": 1,
    "ppe_npu.methods": 2,
    "ppe_npu.released": 3,
    "ppe_npu.shorthand": 3,
    "ppe_npu.config": 3,
    "ppe_npu.engine": 4,
    "ppe_npu.inspect": 4,
    "ppe_npu.models": 5,
    "ppe_npu.media": 5,
    "ppe_npu.data": 5,
    "ppe_npu.placeholders": 6,
    "ppe_npu.inputs": 6,
    "ppe_npu.loading": 6,
    "ppe_npu.parity": 7,
    "ppe_npu.training": 7,
    "ppe_npu.evaluation": 7,
    "ppe_npu.serving": 7,
    "ppe_npu.demo": 8,
    "ppe_npu.cli": 9,
}
DEVICE_PACKAGES = {"torch_npu", "mindspeed", "flash_attn", "triton", "liger_kernel"}


def level(module: str) -> int:
    prefix = max((p for p in LEVELS if module == p or module.startswith(p + ".")), key=len)
    return LEVELS[prefix]


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "backends":
        parts.insert(0, "ppe_npu")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, module: str) -> list[tuple[int, str]]:
    """(line, absolute module) of every import, those inside functions among them."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
    return found


def wide_lines(root: Path) -> list[str]:
    """The lines of documents that are wider than a screen."""
    return [
        f"{path.relative_to(root)}:{number} has {len(line)} characters: break lines at {WIDEST}, shorten a table's cells"
        for path in sorted(path for pattern in DOCUMENTS for path in root.glob(pattern))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > WIDEST
    ]


def problems() -> list[str]:
    out = wide_lines(ROOT)
    for path in sorted([*ROOT.glob("ppe_npu/**/*.py"), *ROOT.glob("backends/**/*.py")]):
        module, name = module_name(path), path.relative_to(ROOT)
        for line, target in imports(path, module):
            if target.split(".")[0] in DEVICE_PACKAGES and not module.startswith("ppe_npu.backends"):
                out.append(f"{name}:{line} imports {target}: device packages belong in backends/")
            if target.split(".")[0] == "ppe_npu" and level(target) > level(module):
                out.append(f"{name}:{line} imports {target}, which stands above it")
    for path in sorted(
        p for folder in ("ppe_npu", "backends", "scripts", "tests") for p in ROOT.glob(f"{folder}/**/*.py")
    ):
        lines = len(path.read_text().splitlines())
        if lines > LONGEST:
            out.append(f"{path.relative_to(ROOT)} has {lines} lines: more than {LONGEST} are two ideas")
    return out


if __name__ == "__main__":
    found = problems()
    print("\n".join(found) or "imports run one way, files are short")
    sys.exit(bool(found))
