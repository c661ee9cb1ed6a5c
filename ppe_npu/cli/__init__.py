"""ppe-npu train | data | convert | merge-lora | export | serve | eval | report | describe | explore | methods |
parity | demo | doctor | completion.

An error that the user can fix (UserError) is printed as one line on stderr and sets the exit code; PPE_NPU_DEBUG=1
shows where it was raised. Any other exception is a bug of this package: its traceback is printed, with a line that asks
for a report. parser.py defines all options and imports little; a command's module is loaded only when the command runs.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from ppe_npu import __version__
from ppe_npu.cli.parser import build_parser
from ppe_npu.errors import InputError, UserError, first_line
from ppe_npu.utils.escape import printable
from ppe_npu.utils.paths import as_path

# `import torch` imports torch_npu, and fails if that fails, even if no NPU is used.
_NO_CANN = (
    "torch cannot be imported, because torch_npu is installed and finds no CANN: on an Ascend machine source CANN's "
    "set_env.sh, anywhere else add EMULATE=1 to the make target, or set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to use no NPU"
)
_TEXTS = ("prompt", "title", "run", "host", "vllm", "generation")  # arguments that are not paths, and may be empty
_BY_PLACE = ("folder", "bundle")  # positional arguments
_WRITTEN = ("output", "out", "show")  # paths that are written


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    0: success; 1: the command ran and failed; 2: its arguments or inputs are invalid; 130: stopped from the keyboard;
    141: the reader of its output is gone (broken pipe). An exception that is a bug of this package is raised.
    """
    _open_streams()
    try:
        with contextlib.redirect_stdout(_Output(sys.stdout)):
            try:
                return _run(build_parser().parse_args(argv))
            finally:
                sys.stdout.flush()
    except KeyboardInterrupt as stopped:
        print(f"ppe-npu: stopped{f': {stopped}' if str(stopped) else ''}", file=sys.stderr)
        return 130
    except _OutputError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 141 if error.errno == errno.EPIPE else _complain(error, error.exit_code)
    except UserError as error:
        return _complain(error, error.exit_code)
    except Exception as error:
        if (why := no_torch(error)) is not None:
            return _complain(InputError(f"{why}; `ppe-npu doctor` lists what is installed"), 2)
        _ask_for_a_report(error, argv)
        raise


def _open_streams() -> None:
    """Replace closed standard streams (`>&-`) by /dev/null, so that no file opened later gets their descriptors, to
    which libraries print."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def no_torch(error: BaseException) -> str | None:
    """Why torch cannot be imported, and the remedy; None if the error has another cause."""
    if str(error).startswith("Failed to load the backend extension: torch_npu"):
        return _NO_CANN
    files = (Path(frame.filename).parts[-2:] for frame in traceback.extract_tb(error.__traceback__))
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        return "torch is not installed: install the build for this device (README.md)"
    if isinstance(error, (ImportError, OSError)) and "torch" not in sys.modules and ("torch", "__init__.py") in files:
        return f"torch cannot be imported ({first_line(error)}): install a build of it that fits this machine"
    return None


def _run(args: argparse.Namespace) -> int:
    try:
        os.getcwd()
    except OSError as error:  # without this check, torch would fail to find its libraries, with an unrelated message
        raise InputError(f"the working directory cannot be read ({error.strerror}): cd to one that exists") from error
    _check_paths(args)
    module, _, function = args.run.partition(":")
    # Read when torch is loaded, below. By default torch's threads spin while they wait. On cores shared with other work
    # this slowed the tiny model down by a factor of 2 to 10; with sleeping threads no slowdown was measurable.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # DeepSpeed prints this on standard output when it is imported on a CPU. It is redundant: either the user chose the
    # CPU, or the command reports it.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    args.json_stream = sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if getattr(args, "json", False) else contextlib.nullcontext():
        return getattr(import_module(f"{__name__}.{module}"), function)(args)


def _check_paths(args: argparse.Namespace) -> None:
    """Normalise every argument that may be a path with as_path(), whose InputError names the flag."""
    for name, value in vars(args).items():
        if name not in _TEXTS:
            flag = name if name in _BY_PLACE else f"--{name.replace('_', '-')}"
            setattr(args, name, as_path(value, f"{flag} ", name in _WRITTEN))


class _OutputError(UserError):
    """Standard output cannot be written. It is no InputError: a command may catch an InputError of a file to add to its
    message, and would then blame that file."""

    errno = 0


class _Output:
    """Standard output whose errors are distinguished from those of files. Characters that its encoding lacks (an answer
    in another script, an undecodable file name) are written as backslash escapes, as on standard error."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._tried(self._stream.write, text)

    def flush(self) -> None:
        self._tried(self._stream.flush)

    def _tried(self, function: Callable, *arguments: str) -> Any:
        try:
            return function(*arguments)
        except OSError as error:
            told = _OutputError(f"standard output cannot be written ({error.strerror}): make room there")
            told.errno = error.errno
            raise told from error


def _complain(error: UserError, code: int) -> int:
    if os.environ.get("PPE_NPU_DEBUG"):
        raise error
    text = str(error)
    if text.startswith("Caught ") and "DataLoader worker" in text:  # torch puts the worker's traceback into the message
        text = text.strip().splitlines()[-1].partition(": ")[2]
    print(f"ppe-npu: error: {printable(' '.join(text.split()))}", file=sys.stderr)
    return code


def _ask_for_a_report(error: Exception, argv: Sequence[str] | None) -> None:
    """Add the line that is printed below the traceback of a bug of this package."""
    command = shlex.join(["ppe-npu", *(sys.argv[1:] if argv is None else map(str, argv))])
    error.add_note(f"ppe-npu: this is a bug in ppe-npu {__version__}: please report all of this; command: {command}")
