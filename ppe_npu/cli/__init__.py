"""ppe-npu train | data | convert | merge-lora | export | serve | eval | report | describe | explore | methods |
parity | demo | doctor | completion.

What the user can mend (UserError) is one line on stderr, and the exit code says so; PPE_NPU_DEBUG=1 shows where it was
raised. Anything else is a fault of this package: its traceback, and a line that asks for a report. parser.py has all
options and imports little; each command's module is loaded when it runs.
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

# `import torch` imports torch_npu, and fails with it, whatever the device.
_NO_CANN = (
    "torch cannot be imported, because torch_npu is installed and finds no CANN: on an Ascend machine source CANN's "
    "set_env.sh, anywhere else add EMULATE=1 to the make target; TORCH_DEVICE_BACKEND_AUTOLOAD=0 does without an NPU"
)
_TEXTS = ("prompt", "title", "run", "host", "vllm", "generation")  # no paths; they may be empty
_BY_PLACE = ("folder", "bundle")  # and without a flag
_WRITTEN = ("output", "out", "show")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0; 1 (it ran and failed); 2 (it was asked for something impossible); 130 (stopped from the keyboard); 141 (nobody
    reads its output any more). A fault of this package is raised.
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
            return _complain(InputError(f"{why}; `ppe-npu doctor` says what is there"), 2)
        _ask_for_a_report(error, argv)
        raise


def _open_streams() -> None:
    """Where standard streams are closed (`>&-`), what is said there goes nowhere, and no file that is opened later gets
    their numbers, to which libraries print."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def no_torch(error: BaseException) -> str | None:
    """Why torch cannot be imported, and the remedy; None where the error is another one."""
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
    except OSError as error:  # torch's libraries would not be found, and say so in other words
        raise InputError(f"the working directory cannot be read ({error.strerror}): cd to one that is there") from error
    _check_paths(args)
    module, _, function = args.run.partition(":")
    # Read when torch is loaded, below. By default torch's threads spin while they wait; on cores that are shared with
    # other work that cost a factor of 2 to 10 on the tiny model, and waiting asleep cost nothing that was measured.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # DeepSpeed says it on standard output wherever it is imported on a CPU, which is what was asked for, or is said.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    args.json_stream = sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if getattr(args, "json", False) else contextlib.nullcontext():
        return getattr(import_module(f"{__name__}.{module}"), function)(args)


def _check_paths(args: argparse.Namespace) -> None:
    """Every argument that may be a path becomes what as_path() makes of it; InputError names the flag."""
    for name, value in vars(args).items():
        if name not in _TEXTS:
            flag = name if name in _BY_PLACE else f"--{name.replace('_', '-')}"
            setattr(args, name, as_path(value, f"{flag} ", name in _WRITTEN))


class _OutputError(UserError):
    """No InputError: commands that add to what those say would hide it."""

    errno = 0


class _Output:
    """Standard output, whose errors are told from those of files. What its encoding has no bytes for, an answer's signs
    on a terminal of another language or a file's name that is no text, is spelt out, as on standard error."""

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
    """The line that stands below the traceback of a fault of this package."""
    command = shlex.join(["ppe-npu", *(sys.argv[1:] if argv is None else map(str, argv))])
    error.add_note(f"ppe-npu: a fault of ppe-npu {__version__}, not yours: please report all of this; it was {command}")
