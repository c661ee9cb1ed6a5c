"""Creates one of the Makefile's virtual environments from setup.cfg and scripts/constraints.txt.

    python3.11 scripts/environment.py .venv [--add-torch-npu]

.venv          the base, for nearly every target; --add-torch-npu adds torch_npu to an existing environment
.venv-npu      the base with torch_npu, for EMULATE=1; .venv-npu-2.10.0.post4: with that release and its torch
.venv-oldest   the base with the oldest supported transformers (scripts/oldest.txt), for test-matrix
.venv-newest   the base with the newest torch and transformers of the index, ignoring our bounds, for test-newest
.venv-lmms     the base with lmms-eval, which has a hundred dependencies, for test-lmms
.venv-vllm     vLLM for the CPU, with the torch and transformers that it pins (scripts/vllm.txt), and apart from them
               the newer transformers that InternVL needs, for test-vllm
.venv-ascend   torch with triton-ascend in place of Triton and two of Huawei's compilers, for test-ascend-compiler
.venv-lent     Python 3.12 with the versions of a GPU machine that is lent for minutes (scripts/lent.txt), for test-lent
.venv-docs     only mkdocs-material (scripts/docs.txt), for docs
.venv-app      the base with Gradio, Selenium and a Jupyter kernel, for test-app; uses the system's chromium
.venv-integrations   the base with TRL, the accelerate that TRL needs, and transformers' source package, whose tests are
               run on our models, for test-integrations
.venv-frameworks   LLaMA-Factory and ms-swift in compatible versions (scripts/frameworks.txt), for test-frameworks

The script needs only Python, and runs in the repository's folder. A complete environment has a file .ready (and
.torch_npu, if that was added). The exit code is 2 if Python is too old, else that of the first failed command.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path("scripts/constraints.txt")
# Named in the command that installs everything else, so that no dependency pulls another release of it.
TORCH = "torch==2.13.0"
LOOSER = {  # environment -> constraints that are dropped there
    # wandb and pandas, dependencies of lmms-eval, need older releases of these than we test with.
    ".venv-lmms": r"(?m)^(protobuf|python-dateutil)=.*\n",
    ".venv-app": r"(?m)^(pillow|python-dateutil)=.*\n",  # Gradio and pandas need older ones
    ".venv-integrations": r"(?m)^accelerate=.*\n",  # TRL needs a newer one
}
BESIDE_APP = ("selenium", "nbclient", "nbformat", "ipykernel")
TRL = ("accelerate>=1.10", "trl==1.16.0", "datasets")
# LLaMA-Factory imports torchaudio, whose compiled part needs CUDA libraries on PyPI. frameworks() removes that part.
FRAMEWORKS = ("llamafactory==0.9.5", "ms-swift==4.6.0", "torchaudio==2.11.1", "torchvision==0.28.0")
UV = "uv==0.13.9"  # used for .venv-vllm, as it takes one minute where pip takes four
OF_TORCH = ("torch", "torch_npu", "torchvision", "triton")  # their releases go together
NAMES = (
    ".venv",
    ".venv-npu",
    ".venv-oldest",
    ".venv-newest",
    ".venv-lmms",
    ".venv-integrations",
    ".venv-frameworks",
    ".venv-vllm",
    ".venv-ascend",
    ".venv-lent",
    ".venv-docs",
    ".venv-app",
)
# One package in two releases: of both only the compiler is used, found by its folder (tests/ascend_compiler).
ASCEND = ("triton-ascend==3.2.0", "ascendnpu-ir==1.2.0", "pybind11")
OLDER_COMPILER = "ascendnpu-ir==1.1.0"


def torch_npu_of(folder: str) -> str | None:
    """The release of torch_npu at the end of an environment's name (.venv-npu-2.10.0.post4), or None."""
    found = re.fullmatch(r"\.venv-npu-(\d+\.\d+\.\d+(\.post\d+)?)", folder)
    return found and found[1]


def with_torch_npu(folder: str, release: str) -> list[list[str]]:
    """Commands for the base with this release of torch_npu, and the torch and torchvision that belong to it."""
    looser, torch = ["--constraint", f"{folder}/{CONSTRAINTS.name}"], ".".join(release.split(".")[:3])
    major, minor, patch = torch.split(".")
    vision = f"torchvision=={int(major) - 2}.{int(minor) + 15}.{patch}"
    return [
        [sys.executable, "-m", "venv", folder],
        pip(folder, *looser, f"torch=={torch}", "--editable", ".[train,eval,dev]"),
        pip(folder, *looser, "--no-deps", vision, f"torch_npu=={release}"),
        [f"{folder}/bin/python", "scripts/mend_torchvision.py"],
    ]


def commands(folder: str) -> list[list[str]]:
    """The commands that create this environment, in order."""
    constrained, looser = ["--constraint", str(CONSTRAINTS)], ["--constraint", f"{folder}/{CONSTRAINTS.name}"]
    if (release := torch_npu_of(folder)) is not None:
        return with_torch_npu(folder, release)
    if folder == ".venv-lent":
        return [[python("3.12"), "-m", "venv", folder], pip(folder, "--requirement", "scripts/lent.txt")]
    if folder == ".venv-ascend":
        return [
            [sys.executable, "-m", "venv", folder],
            pip(folder, *constrained, TORCH, "numpy", "pytest", "pytest-xdist", "pytest-timeout", "hypothesis"),
            [f"{folder}/bin/pip", "uninstall", "--quiet", "--yes", "triton"],  # a dependency of PyPI's torch
            pip(folder, "--no-deps", *ASCEND),
            pip(folder, "--no-deps", "--target", f"{folder}/{OLDER_COMPILER.replace('==', '-')}", OLDER_COMPILER),
        ]
    mend = [f"{folder}/bin/python", "scripts/mend_torchvision.py"]
    new = [sys.executable, "-m", "venv", folder]
    if folder == ".venv-docs":
        return [new, pip(folder, "--no-deps", "--requirement", "scripts/docs.txt")]
    if folder == ".venv-frameworks":
        return [new, *frameworks(folder), mend]
    if folder == ".venv-vllm":
        return [new, pip(folder, "--no-deps", UV), *vllm(folder), mend]
    base = [
        new,
        pip(folder, *constrained, TORCH, "--editable", ".[train,eval,dev]"),
        # transformers' video processors need it. Without its dependencies, because PyPI's would install CUDA libraries.
        pip(folder, *constrained, "--no-deps", "torchvision"),
        mend,
    ]
    more = {
        ".venv-npu": [add_torch_npu(folder)],
        ".venv-oldest": [pip(folder, "--no-deps", "--requirement", "scripts/oldest.txt")],
        ".venv-newest": [pip(folder, "--upgrade", "torch", "torchvision", "transformers"), mend],
        ".venv-lmms": [pip(folder, *looser, TORCH, "--editable", ".[lmms]"), mend],
        ".venv-app": [pip(folder, *looser, TORCH, "--editable", ".[app]", *BESIDE_APP)],
        ".venv-integrations": [pip(folder, *looser, TORCH, *TRL, "parameterized"), source_of_transformers(folder)],
    }
    return base + more.get(folder, [])


def python(version: str) -> str:
    """A Python of this version: the running one, one on the path, one of pyenv's; its plain name if there is none."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python")
    for found in (sys.executable, shutil.which(name), *map(str, sorted(pyenv))):
        command = [found, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if found and subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == version:
            return found
    return name


def pip(folder: str, *arguments: str) -> list[str]:
    return [f"{folder}/bin/pip", "install", "--quiet", "--disable-pip-version-check", *arguments]


def source_of_transformers(folder: str) -> list[str]:
    """The command that downloads transformers' source package, which includes its tests (they import parameterized)."""
    download = [f"{folder}/bin/pip", "download", "--quiet", "--disable-pip-version-check", "--dest", folder]
    return [*download, "--no-deps", "--no-binary", "transformers", "--constraint", str(CONSTRAINTS), "transformers"]


def frameworks(folder: str) -> list[list[str]]:
    """Commands that install the frameworks' dependencies and the frameworks, and remove torchaudio's compiled part."""
    wanted = "scripts/frameworks.txt"
    return [
        pip(folder, "--constraint", wanted, TORCH, "--requirement", wanted),
        pip(folder, "--no-deps", *FRAMEWORKS, "--editable", "."),
        ["sh", "-c", f"rm {folder}/lib/python3.*/site-packages/torchaudio/lib/*.so"],
    ]


def vllm(folder: str) -> list[list[str]]:
    """Commands that install vLLM and this package and, apart from both (in newer/), transformers by constraints.txt,
    which has models that cannot be compressed in the release that vLLM pins."""
    place = ["--python", f"{folder}/bin/python"]
    command = [f"{folder}/bin/uv", "pip", "install", "--quiet", "--no-config", "--system-certs", "--no-deps"]
    command += indexes_of_pip()
    return [
        [*command, *place, "--requirement", "scripts/vllm.txt", "--editable", "."],
        [*command, *place, "--target", f"{folder}/newer", "--constraint", str(CONSTRAINTS), "transformers"],
    ]


def indexes_of_pip() -> list[str]:
    """pip's settings of package indexes as options of uv, which does not read pip's settings. If pip finds a setting in
    several places, the environment overrides `install`, which overrides `global`; uv rejects duplicates."""
    asked = [sys.executable, "-m", "pip", "config", "list"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    words = {"index-url": "--default-index", "extra-index-url": "--index", "find-links": "--find-links"}
    found: dict[str, str] = {}
    for place in ("global", "install", ":env:"):
        found |= dict(re.findall(rf"(?m)^{place}\.({'|'.join(words)})='(.*)'$", said))
    # pip takes the best version of all indexes; uv by default uses the first index that has the package.
    options = ["--index-strategy", "unsafe-best-match"]
    for name, values in found.items():
        for value in values.replace("\\n", " ").split():
            options += [words[name], value]
    return options


def add_torch_npu(folder: str) -> list[str]:
    """The command that installs torch_npu, without its dependencies, which are installed already."""
    return pip(folder, "--constraint", str(CONSTRAINTS), "--no-deps", "torch_npu")


def known(folder: str) -> str:
    if folder not in NAMES and torch_npu_of(folder) is None:
        raise argparse.ArgumentTypeError(f"{folder} is none of {', '.join(NAMES)}, .venv-npu-RELEASE")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=known, metavar="FOLDER", help=", ".join(NAMES))
    parser.add_argument("--add-torch-npu", action="store_true")
    arguments = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 -- this file runs before an environment of the right Python is made
        print("Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11", file=sys.stderr)
        return 2
    other = rf"(?m)^({'|'.join(OF_TORCH)})=.*\n" if torch_npu_of(arguments.folder) else None
    if loose := LOOSER.get(arguments.folder, other):
        Path(arguments.folder).mkdir(exist_ok=True)
        text = re.sub(loose, "", CONSTRAINTS.read_text())
        Path(arguments.folder, CONSTRAINTS.name).write_text(text)
    wanted = [add_torch_npu(arguments.folder)] if arguments.add_torch_npu else commands(arguments.folder)
    for command in wanted:
        print(re.sub(r"(://)[^/@\s]+@", r"\1...@", " ".join(command)), flush=True)  # without passwords of indexes
        code = subprocess.run(command, check=False).returncode
        if code:
            return code
    Path(arguments.folder, ".torch_npu" if arguments.add_torch_npu else ".ready").touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
