"""The functions of CANN that the installed torch_npu needs, and C sources that define them.

Names are read from the wheel itself, so another version of it needs no list to be edited, unless it looks up at run
time a function that only has to succeed: stubs/optional_symbols.txt lists those.
"""

import ctypes
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

# A function's name where it is defined, at the start of a line of our own C.
_DEFINITION = re.compile(r"^\w[\w ]*?[ *](\w+)\(", re.MULTILINE)
_COMPUTED = re.compile(r"^COMPUTED\((\w+)\)", re.MULTILINE)


def wanted(npu_libraries: Iterable[Path], torch_libraries: Iterable[Path]) -> set[str]:
    """The symbols that torch_npu leaves undefined and neither torch, nor Python, nor the C and C++ runtime defines."""
    npu_libraries = list(npu_libraries)
    undefined = set().union(*(_undefined(library) for library in npu_libraries))
    defined = set().union(*(_defined(library) for library in [*npu_libraries, *torch_libraries]))
    process = ctypes.CDLL(None)
    return {name for name in undefined - defined if not name.startswith(("Py", "_Py")) and not hasattr(process, name)}


def _nm(library: Path, *options: str) -> list[list[str]]:
    text = subprocess.run(["nm", "-D", *options, library], capture_output=True, text=True, check=True).stdout
    return [line.split() for line in text.splitlines()]


def _undefined(library: Path) -> set[str]:
    # "U name": strong references. Those with a version ("@GLIBC_2.34") are the system's; CANN's have none.
    return {fields[1] for fields in _nm(library, "--undefined-only") if fields[0] == "U" and "@" not in fields[1]}


def _defined(library: Path) -> set[str]:
    return {fields[-1].split("@")[0] for fields in _nm(library, "--defined-only")}


def runtime_stubs(wanted_symbols: set[str], sources: Iterable[Path], optional: Path) -> str:
    """C that defines what `sources` do not: names listed in `optional` succeed, all other wanted ones refuse."""
    done = set().union(*(_DEFINITION.findall(source.read_text()) for source in sources))
    lines = (line.partition("#")[0].strip() for line in optional.read_text().splitlines())
    succeeding = [name for name in lines if name and name not in done]
    refusing = sorted(wanted_symbols - done - set(succeeding))
    return "\n".join(
        ["int emulator_refuse(const char *name);"]
        + [f"long {name}(void) {{ return 0; }}" for name in succeeding]
        + [f'int {name}(void) {{ return emulator_refuse("{name}"); }}' for name in refusing]
        + [""]
    )


def operator_names(library: Path) -> list[str]:
    """All aclnn functions whose names the wheel contains."""
    found = re.findall(rb"(?<=\0)aclnn[A-Z][A-Za-z0-9]*(?=\0)", library.read_bytes())
    return sorted({name.decode() for name in found})


def operator_stubs(names: Iterable[str], source: Path) -> str:
    """`source`, followed by definitions of all operators that it does not compute, which refuse."""
    text = source.read_text()
    computed = {name + suffix for name in _COMPUTED.findall(text) for suffix in ("", "GetWorkspaceSize")}
    rest = (name for name in names if name not in computed)
    shown = ((name, re.sub("Get(Max)?WorkspaceSize$", "", name)) for name in rest)
    return text + "".join(f'int {name}(void) {{ return emulator_refuse("{operator}"); }}\n' for name, operator in shown)
