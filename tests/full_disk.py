"""The command line in a child process whose disk takes no more from some moment on."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import resource
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path


class Disk:
    """Counts what is made below a folder, and refuses what comes at a number or later, or has a name; whoever asks."""

    def __init__(self, folder: Path, at: int, named: str):
        self.folder, self.at, self.named, self.made = os.path.abspath(folder), at, named, 0

    def ask(self, path) -> None:
        if isinstance(path, int) or not os.path.abspath(os.fsdecode(path)).startswith(self.folder):
            return
        self.made += 1
        if (self.at and self.made >= self.at) or (self.named and self.named in os.path.basename(os.fsdecode(path))):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def fill(self) -> None:
        """From here on in this process."""
        plain, system, mkdir = builtins.open, os.open, os.mkdir

        def opening(file, mode="r", *args, **kwargs):
            if set("wax") & set(mode):
                self.ask(file)
            return plain(file, mode, *args, **kwargs)

        def creating(path, flags, *args, **kwargs):
            if flags & os.O_CREAT and not os.path.lexists(path):
                self.ask(path)
            return system(path, flags, *args, **kwargs)

        def making(path, *args, **kwargs):
            if not os.path.isdir(path):
                self.ask(path)
            return mkdir(path, *args, **kwargs)

        builtins.open = io.open = opening
        os.open, os.mkdir = creating, making


def run_full(argv: Sequence, folder: Path, at: int = 0, named: str = "", size: int = 0) -> tuple[int, str, int]:
    """Run a command in `folder`.

    Args:
        at: what it makes below the folder from this number on finds no room; 0: all does.
        named: as at, whatever has this in its name.
        size: bytes that no file may outgrow, also one that a library writes.

    Returns:
        (exit code, what it said, how many files and folders it made).
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _run(argv, Disk(folder, at, named), size, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        said, _, last = told.read().decode(errors="replace").rpartition("\n")
    os.waitpid(child, 0)
    code, made = json.loads(last)
    return code, said, made


def _run(argv: Sequence, disk: Disk, size: int, writer: int) -> None:
    import torch

    from ppe_npu import cli

    sys.dont_write_bytecode = True  # Python itself would leave half of a module
    torch.set_num_threads(1)  # those of the parent are not here: OpenMP would wait for them for ever
    os.dup2(writer, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))  # not pytest's
    os.chdir(disk.folder)
    if size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    disk.fill()
    try:
        code = cli.main([str(argument) for argument in argv])
    except BaseException:
        code = 99
        sys.stderr.write(traceback.format_exc())
    sys.stderr.flush()
    os.write(2, f"\n{json.dumps([code, disk.made])}".encode())
    os._exit(0)
