"""Builds the emulator for the torch and torch_npu that are installed beside this Python.

    python -m tests.ascend_emulator.build                 # builds unless that is done, and prints the folder
    eval "$(python -m tests.ascend_emulator.build --env)"  # puts this shell, and what it starts, on the emulator
    python -m tests.ascend_emulator.build --make          # the same as a make file

The folder lies in the virtual environment, and its name tells the versions and the sources that it was built from.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import environment, symbols

HERE = Path(__file__).resolve().parent
STUBS = HERE / "stubs"
RUNTIME = [STUBS / name for name in ("runtime.c", "memory.c", "streams.c")]
HCCL = [STUBS / name for name in ("hccl.cpp", "communicator.cpp")]
EXTENSION = [HERE / name for name in ("aten_fallback.cpp", "extension.cpp")]
# Libraries that torch_npu is linked against for functions that are all in libascendcl.so here.
EMPTY = ("acl_op_compiler", "acl_tdt_channel", "atb", "ge_runner", "graph")


class BuildError(RuntimeError):
    """The emulator cannot be built here. The message is one line: what is missing, what to do."""


@dataclass(frozen=True)
class Wheels:
    """Where torch and torch_npu are installed, and their versions. Neither is imported: torch_npu's needs the stubs."""

    torch: Path
    torch_npu: Path
    versions: str

    @staticmethod
    def find() -> "Wheels":
        """Raises BuildError where one is missing or they do not belong together."""
        folders = []
        for package in ("torch", "torch_npu"):
            spec = importlib.util.find_spec(package)
            if spec is None or spec.origin is None:
                raise BuildError(
                    f"{package} is not installed in {sys.prefix}; make EMULATE=1 has an environment with it"
                )
            folders.append(Path(spec.origin).parent)
        torch, npu = (importlib.metadata.version(package) for package in ("torch", "torch_npu"))
        if torch.split(".")[:2] != npu.split(".")[:2]:  # 2.10.0.post4 is of torch 2.10
            raise BuildError(
                f"torch {torch} and torch_npu {npu} do not belong together: install the same release of both"
            )
        return Wheels(*folders, f"torch-{torch}-npu-{npu}")

    @property
    def npu_libraries(self) -> list[Path]:
        return [*sorted(self.torch_npu.glob("lib/*.so")), *sorted(self.torch_npu.glob("_C*.so"))]


def build(root: Path | None = None) -> Path:
    """Builds what is not there yet.

    Args:
        root: folder for all builds; "ascend-emulator" in the virtual environment if None.

    Returns:
        The folder of this build: lib/, python/ and cann/.

    Raises:
        BuildError: a wheel or a compiler is missing, or does not work.
    """
    wheels = Wheels.find()
    root = Path(root or Path(sys.prefix) / "ascend-emulator").resolve()
    folder = root / f"{wheels.versions}-{_fingerprint()}"
    if not folder.exists():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix="building-") as scratch:
            _compile(wheels, Path(scratch))
            _publish(Path(scratch), folder)
    _point_at_sources(folder / "python" / "ascend_emulator")
    return folder


def _fingerprint() -> str:
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(
        [*STUBS.iterdir(), *HERE.glob("*.cpp"), *HERE.glob("*.h"), HERE / "symbols.py", HERE / "build.py"]
    ):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _publish(scratch: Path, folder: Path) -> None:
    # A rename is atomic: no process sees half a build, and of two at the same time, the second is dropped.
    ready = scratch / "ready"
    try:
        ready.rename(folder)
    except OSError:
        if not folder.exists():
            raise


def _point_at_sources(link: Path) -> None:
    """python/ascend_emulator is a link, so that an operator that is edited needs no build."""
    if link.is_symlink() and link.resolve() == HERE:
        return
    fresh = link.with_name(f"{link.name}.{os.getpid()}")
    fresh.symlink_to(HERE)
    fresh.replace(link)


def _compile(wheels: Wheels, scratch: Path) -> None:
    for program, package in (("gcc", "gcc"), ("g++", "g++"), ("nm", "binutils")):
        if shutil.which(program) is None:
            raise BuildError(f"{program} is not found: install it (Debian: apt-get install {package})")
    ready = scratch / "ready"
    for name in ("lib", "python", *(f"cann/{part}" for part in environment.CANN_FOLDERS)):
        (ready / name).mkdir(parents=True)
    _write_entry_point(ready / "python")
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(_compile_object, wheels, source, scratch) for source in EXTENSION]
        _compile_stubs(wheels, scratch, ready / "lib")
        objects = [job.result() for job in jobs]
    libraries = [f"-l{name}" for name in ("c10", "torch_cpu", "torch", "opapi", "ascendcl")]
    _run("g++", "-shared", *objects, f"-L{wheels.torch / 'lib'}", f"-L{ready / 'lib'}", *libraries,
         "-o", ready / "lib" / "ascend_emulator.so")  # fmt: skip


def _write_entry_point(folder: Path) -> None:
    """The metadata of a distribution, which is all that `import torch` looks for."""
    metadata = folder / "ppe_ascend_emulator-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: ppe-ascend-emulator\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text("[torch.backends]\nascend_emulator = ascend_emulator:activate\n")


def _compile_object(wheels: Wheels, source: Path, scratch: Path) -> Path:
    target = scratch / f"{source.stem}.o"
    headers = [f"-I{wheels.torch / 'include' / part}" for part in ("", "torch/csrc/api/include")]
    _run("g++", "-std=c++20", "-O1", "-fPIC", *headers, "-c", source, "-o", target)
    return target


def _compile_stubs(wheels: Wheels, scratch: Path, lib: Path) -> None:
    include = wheels.torch_npu / "include"
    flags = ["-O1", "-fPIC", "-shared", "-w", f"-I{STUBS}", f"-I{include}", f"-I{include / 'third_party/acl/inc'}"]

    def library(name: str, compiler: str, *sources: Path, needs: Sequence[str] = ()) -> None:
        linked = [f"-L{lib}", "-Wl,--no-as-needed", *(f"-l{other}" for other in needs)]
        _run(compiler, *flags, *sources, "-o", lib / f"lib{name}.so", f"-Wl,-soname,lib{name}.so", *linked)

    nothing = scratch / "nothing.c"
    nothing.write_text("")
    generated = scratch / "generated.c"
    missing = symbols.wanted(wheels.npu_libraries, (wheels.torch / "lib").glob("*.so*"))
    generated.write_text(symbols.runtime_stubs(missing, RUNTIME, STUBS / "optional_symbols.txt"))
    library("ascendcl", "gcc", *RUNTIME, generated)

    operators = scratch / "operators.c"
    names = symbols.operator_names(wheels.torch_npu / "lib" / "libtorch_npu.so")
    operators.write_text(symbols.operator_stubs(names, STUBS / "opapi.c"))
    library("opapi", "gcc", operators, needs=["ascendcl"])
    library("hccl", "g++", "-std=c++20", *HCCL, needs=["rt"])
    library("hcomm", "gcc", nothing, needs=["hccl"])
    for name in EMPTY:
        library(name, "gcc", nothing, needs=["ascendcl"])


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise BuildError(f"{command[0]} failed: {first}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.ascend_emulator.build", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder for builds (default: ascend-emulator in the environment)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--env", action="store_true", help="print the variables for a shell")
    form.add_argument("--make", action="store_true", help="print the variables for make")
    args = parser.parse_args(argv)
    try:
        folder = build(args.root)
    except BuildError as error:
        print(f"ascend_emulator: {error}", file=sys.stderr)
        return 2
    if not (args.env or args.make):
        print(folder)
        return 0
    for name, value in environment.variables(folder).items():
        escaped = value.replace("$", "$$").replace("#", "\\#")
        print(f"export {name} := {escaped}" if args.make else f"export {name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
