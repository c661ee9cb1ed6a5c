"""Checks the house rules that a program can check: imports run one way and in no circle, device packages are imported
only in backends/ and kinds of devices are distinguished in one file there, files and functions are short, lines of
documents are not too wide, tests derive their tolerances.

cli -> explorer -> demo -> serving, training, evaluation -> models -> engine, inspect -> config -> methods -> backends
"""

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("ppe_npu", "backends", "scripts", "tests")
LONGEST, LONGEST_FUNCTION = 350, 45  # lines
ASKS_OF_DEVICES = "backends/device.py"
# What device.py imports, so that it cannot ask there: which devices are there, and the settings of all of them.
ASK_THEMSELVES = (ASKS_OF_DEVICES, "backends/finding.py", "backends/precision.py")
WIDEST = 160  # characters of a document's line
DOCUMENTS = ("*.md", "docs/**/*.md", "tests/**/*.md", "scripts/**/*.md")

# A module may import modules of its own level or a lower one. The longest matching prefix gives a module's level.
LEVELS = {
    "ppe_npu": 0,
    "ppe_npu.errors": 0,
    "ppe_npu.settings": 0,
    "ppe_npu.files": 0,
    "ppe_npu.utils": 0,
    "ppe_npu.backends": 0,
    "ppe_npu.compat": 1,
    "ppe_npu.methods": 2,
    "ppe_npu.released": 3,
    "ppe_npu.shorthand": 3,
    "ppe_npu.config": 3,
    "ppe_npu.engine": 4,
    "ppe_npu.inspect": 4,
    "ppe_npu.models": 5,
    "ppe_npu.data": 5,
    "ppe_npu.checkpoints": 6,
    "ppe_npu.parity": 7,
    "ppe_npu.training": 7,
    "ppe_npu.evaluation": 7,
    "ppe_npu.serving": 7,
    "ppe_npu.demo": 8,
    "ppe_npu.explorer": 9,
    "ppe_npu.cli": 10,
    "ppe_npu.old_names": 11,
}
# Functions with a default tolerance, and arguments that set one: tests must take theirs from tests/tolerances.py.
COMPARE = {"assert_close", "assert_allclose", "allclose", "isclose", "assert_array_almost_equal", "assert_almost_equal"}
LESS = {"lt", "le", "less", "less_equal"}
TOLERANCES = {"atol", "rtol", "abs", "rel", "abs_tol", "rel_tol", "tol", "tolerance"}
# Small numbers in tests that are not tolerances: (file, the stripped line) -> what specifies the number.
SPECIFIED: dict[tuple[str, str], str] = {}
KINDS = {"npu", "cuda", "cpu"}
HOLD_DEVICES = ("device", "where", "there")  # ends of the names of variables and attributes
COMPARE_TEXT = {"startswith", "endswith", "match", "fullmatch"}
DEVICE_PACKAGES = {"torch_npu", "mindspeed", "flash_attn", "triton", "liger_kernel"}


def level(module: str) -> int:
    prefix = max((p for p in LEVELS if module == p or module.startswith(p + ".")), key=len)
    return LEVELS[prefix]


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "backends":
        parts.insert(0, "ppe_npu")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree, including those inside functions, but not what stands under `if TYPE_CHECKING:`."""
    typed = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    for child in node.orelse if typed else ast.iter_child_nodes(node):
        yield child
        yield from executed(child)


def imports(path: Path, module: str, typed: bool = True) -> list[tuple[int, str]]:
    """(line, absolute module) of every import, including those inside functions; without those that only type checkers
    follow unless `typed`."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found, tree = [], ast.parse(path.read_text())
    for node in ast.walk(tree) if typed else executed(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
    return found


def wide_lines(root: Path) -> list[str]:
    """A message for each line of a document that is wider than WIDEST."""
    return [
        f"{path.relative_to(root)}:{number} has {len(line)} characters: break it at {WIDEST}, or shorten its cells"
        for path in sorted(path for pattern in DOCUMENTS for path in root.glob(pattern))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > WIDEST
    ]


def is_small(node: ast.AST) -> bool:
    """Whether an expression is a float literal between 0 and 0.1, or a power with a negative exponent."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return isinstance(node.left, ast.Constant) and isinstance(node.right, ast.UnaryOp)
    return isinstance(node, ast.Constant) and isinstance(node.value, float) and 0 < node.value < 0.1


def has_small(node: ast.AST, names: frozenset[str] = frozenset()) -> bool:
    """Whether an expression is a small literal or a name for one, or contains one in arithmetic or `if`/`else`."""
    if isinstance(node, ast.BinOp) and not is_small(node):
        return any(has_small(part, names) for part in (node.left, node.right))
    if isinstance(node, ast.IfExp):
        return any(has_small(part, names) for part in (node.body, node.orelse))
    return is_small(node) or (isinstance(node, ast.Name) and node.id in names)


def small_names(tree: ast.AST) -> frozenset[str]:
    """Names that are assigned a small number anywhere in a file."""
    given = [node for node in ast.walk(tree) if isinstance(node, ast.Assign) and has_small(node.value)]
    return frozenset(target.id for node in given for target in node.targets if isinstance(target, ast.Name))


def is_limit(node: ast.AST, names: frozenset[str]) -> bool:
    """Whether a condition requires something to be below a small number."""
    if isinstance(node, ast.Call):
        return getattr(node.func, "attr", "") in LESS and any(has_small(part, names) for part in node.args)
    above = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    comparison = node.operand if above else node
    if not isinstance(comparison, ast.Compare):
        return False
    sides = [comparison.left, *comparison.comparators]
    for left, operator, right in zip(sides, comparison.ops, sides[1:]):
        upper, lower = (right, left) if isinstance(operator, ast.Lt | ast.LtE) else (left, right)
        if isinstance(operator, ast.Lt | ast.LtE | ast.Gt | ast.GtE) and has_small(lower if above else upper, names):
            return True
    return False


def bare_tolerances(source: str) -> list[tuple[int, str]]:
    """(line, kind) of every tolerance in a test that is a bare number, or a library's default."""
    found, tree = [], ast.parse(source)
    names = small_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in COMPARE:
                found.append((node.lineno, f"{name}()"))
            if name == "approx" and any(has_small(part, names) for part in node.args[1:]):
                found.append((node.lineno, "approx()"))
            found += [(node.lineno, k.arg) for k in node.keywords if k.arg in TOLERANCES and has_small(k.value, names)]
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            stored = [n.id.lower() for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
            if any("tolerance" in name for name in stored) and any(map(is_small, ast.walk(node.value))):
                found.append((node.lineno, "a constant"))
        if is_limit(node, names):
            found.append((node.lineno, "a comparison with a small number"))
    return found


def tolerances() -> list[str]:
    out = []
    for path in sorted(ROOT.glob("tests/**/*.py")):
        name, source = path.relative_to(ROOT).as_posix(), path.read_text()
        if name == "tests/tolerances.py":
            continue
        for line, what in bare_tolerances(source):
            if (name, source.splitlines()[line - 1].strip()) not in SPECIFIED:
                out.append(f"{name}:{line} {what}: a tolerance is derived in tests/tolerances.py, or is specified here")
    return out


def is_kind(node: ast.AST) -> bool:
    """Whether an expression is the name of a kind of device, or a literal collection of such names, as the keys are of
    a literal dict."""
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    parts = node.keys if isinstance(node, ast.Dict) else parts
    names = [str(part.value) for part in parts if isinstance(part, ast.Constant)]
    return bool(parts) and len(names) == len(parts) and all(name.partition(":")[0] in KINDS for name in names)


def is_device_type(node: ast.AST) -> bool:
    """Whether an expression is the kind of a device, as in device.type or tensor.device.type."""
    if not isinstance(node, ast.Attribute) or node.attr != "type":
        return False
    return getattr(node.value, "attr", getattr(node.value, "id", "")).endswith(HOLD_DEVICES)


def is_asked_in_call(node: ast.Call) -> bool:
    """Whether a call compares the name of a kind, looks one up, or asks torch whether it has one."""
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    of, first = getattr(node.func, "value", node.func), node.args[:1]
    if name in COMPARE_TEXT:
        return any(map(is_kind, first)) or is_device_type(of)
    if name == "get":
        return any(map(is_device_type, first)) or (isinstance(of, ast.Dict) and is_kind(of))
    return name in ("hasattr", "getattr") and is_torch(*first) and any(map(is_kind, node.args[1:2]))


def is_torch(node: ast.AST | None = None) -> bool:
    return isinstance(node, ast.Name) and node.id == "torch"


def device_questions(source: str) -> list[int]:
    """Lines that test the kind of a device, or use what torch has for one kind alone. Only backends/device.py may;
    other code asks it what a device can do."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            typed = list(map(is_device_type, sides))  # all: whether devices are of one kind, which is no such question
            asked = any(map(is_kind, sides)) or (any(typed) and not all(typed))
        elif isinstance(node, ast.Call):
            asked = is_asked_in_call(node)
        elif isinstance(node, ast.Subscript):
            asked = is_device_type(node.slice) or (isinstance(node.value, ast.Dict) and is_kind(node.value))
        elif isinstance(node, ast.MatchValue):
            asked = is_kind(node.value)
        elif isinstance(node, ast.Attribute):
            runtime = isinstance(node.value, ast.Attribute) and node.value.attr in KINDS and is_torch(node.value.value)
            asked = runtime or node.attr in {f"is_{kind}" for kind in KINDS}
        else:
            asked = False
        found += [node.lineno] if asked else []
    return found


def long_functions(source: str) -> list[tuple[int, str, int]]:
    """(line, name, length in lines) of every function longer than LONGEST_FUNCTION."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    lengths = [(node.lineno, node.name, node.end_lineno - node.lineno + 1) for node in functions]
    return [found for found in lengths if found[2] > LONGEST_FUNCTION]


def of_every_file() -> list[str]:
    out = []
    for path in sorted(p for folder in FOLDERS for p in ROOT.glob(f"{folder}/**/*.py")):
        name, source = path.relative_to(ROOT).as_posix(), path.read_text()
        lines = len(source.splitlines())
        if lines > LONGEST:
            out.append(f"{name} has {lines} lines: more than {LONGEST} are two ideas")
        for line, function, length in long_functions(source):
            out.append(f"{name}:{line} {function}() has {length} lines: more than {LONGEST_FUNCTION} are two functions")
        if not name.startswith("tests/") and name not in ASK_THEMSELVES:
            for line in device_questions(source):
                out.append(f"{name}:{line} asks what kind a device is: {ASKS_OF_DEVICES} answers what it can")
    return out


def of_the_package() -> list[str]:
    out = []
    for path in sorted([*ROOT.glob("ppe_npu/**/*.py"), *ROOT.glob("backends/**/*.py")]):
        module, name = module_name(path), path.relative_to(ROOT)
        if module.count(".") == 1 and module not in LEVELS:
            out.append(f"{name} stands in no room: move it to the folder of what it knows, or give it a level here")
        for line, target in imports(path, module):
            if target.split(".")[0] in DEVICE_PACKAGES and not module.startswith("ppe_npu.backends"):
                out.append(f"{name}:{line} imports {target}: device packages belong in backends/")
            if target.split(".")[0] == "ppe_npu" and level(target) > level(module):
                out.append(f"{name}:{line} imports {target}, which stands above it")
    return out


def circles() -> list[str]:
    """A message for a circle of imports between the package's files, if there is one."""
    paths = [*ROOT.glob("ppe_npu/**/*.py"), *ROOT.glob("backends/**/*.py")]
    modules = {module_name(path): path for path in paths}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for module, path in modules.items():
        for _, target in imports(path, module, typed=False):
            while target and target not in modules:  # the name of a function or class, or another package
                target = target.rpartition(".")[0]
            graph[module] |= {target} - {"", module}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [f"{' imports '.join(reversed(error.args[1]))}: move what they share to a file that imports neither"]
    return []


def problems() -> list[str]:
    return [*tolerances(), *wide_lines(ROOT), *of_the_package(), *circles(), *of_every_file()]


if __name__ == "__main__":
    found = problems()
    print("\n".join(found) or "imports run one way, files and functions are short, tolerances are derived")
    sys.exit(bool(found))
