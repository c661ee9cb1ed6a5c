"""Files and folders that are either complete or absent: written under a temporary name, synced to disk, then renamed.

A failure to write raises a FileError that names the file, also where a library does the writing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import resource
import shutil
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppe_npu.errors import FileError, InputError

if TYPE_CHECKING:
    from filelock import FileLock

_MAKE_ROOM, _OTHER_PLACE = "make room there", "name another place"
# Why a file cannot be written, and what to do.
_CAUSES = {
    errno.ENOSPC: ("no space is left on its disk", _MAKE_ROOM),
    errno.EDQUOT: ("the disk quota is used up", _MAKE_ROOM),
    errno.EFBIG: ("it exceeds the file size limit", "raise the limit (ulimit -f)"),
    errno.EACCES: ("permission denied", f"change the permissions there, or {_OTHER_PLACE}"),
    errno.EPERM: ("not permitted", f"change the permissions there, or {_OTHER_PLACE}"),
    errno.EROFS: ("its file system is read-only", _OTHER_PLACE),
    errno.ENOTDIR: ("a part of its path is a file", _OTHER_PLACE),
    errno.EEXIST: ("a file has the name that a folder needs", _OTHER_PLACE),
    errno.EISDIR: ("it is a folder", _OTHER_PLACE),
    errno.ENOENT: ("a folder that it needs does not exist, or was removed", _OTHER_PLACE),
    errno.EIO: ("its disk reports an error", f"check the disk, or {_OTHER_PLACE}"),
}
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF)  # folders that cannot be synced
_RUST = re.compile(r"\(os error (\d+)\)")  # safetensors and tokenizers
_TORCH = ("PytorchStreamWriter failed", "unexpected pos ")  # torch.save; its messages do not say why
_ELSEWHERE = (ConnectionError, TimeoutError, ChildProcessError)  # OSErrors that are not about files
_NEAR = 2**20  # bytes: a file this close to its limit, or a disk this close to full, is taken to have reached it
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def check_regular(path: str | Path) -> None:
    """Check that a path, if it exists, is a regular file, which can be read without waiting forever.

    Raises:
        InputError: it is a pipe, a device or a folder.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # without access both are False, and open() will fail
        raise InputError(f"{path} is a folder, a pipe or a device, not a file: move it away, or name another place")


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text so that path holds the old content or all of the new one, even after a kill or a power cut.

    A lone surrogate, which UTF-8 cannot encode, is written as its JSON escape.

    Raises:
        FileError: it cannot be written; the old content stays.
    """
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: str | Path, data: bytes) -> Path:
    """write_text() for bytes."""
    path = Path(path)
    temporary = _beside(path, "tmp")
    with writing(temporary, named=path):
        _check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb", buffering=0) as file:
                write_whole(file, data)
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    return path


def _check_replaceable(path: Path) -> None:
    """Raise FileError where the path is a device or a pipe: a rename would replace it (/dev/null) for all processes."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileError(f"{path} is a device or a pipe, not a file or a folder: {_OTHER_PLACE}")


def write_whole(file: Any, data: bytes) -> None:
    """Write all of data to an unbuffered file, whose write() may take only a part of it."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def write_json(path: str | Path, value: Any) -> Path:
    """write_text() of a value as indented JSON."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A new folder to fill; when the block ends without error, it replaces `path`.

    Anything that a killed process left half done there is first brought back or removed.

    Raises:
        FileError: it cannot be written; the old folder stays.
    """
    path = Path(os.path.realpath(path) if os.path.islink(path) and os.path.isdir(path) else path)
    temporary = _beside(path, "tmp")
    with writing(temporary, named=path):
        _check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        remove(temporary)
        temporary.mkdir()
    try:
        with _held(temporary), writing(temporary, named=path):
            yield temporary
            put_folder(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            remove(temporary)


def check_writable(path: str | Path, file: bool = False) -> None:
    """Check that new_folder(), or with `file` write_bytes(), can write here now. Leaves nothing behind.

    Raises:
        FileError: it cannot be written.
    """
    probe = _beside(Path(path), f"{uuid.uuid4().hex}.tmp")  # processes in two containers may have the same id
    with writing(probe, named=path):
        _check_replaceable(Path(path))
        if file and Path(path).is_dir():
            raise FileError(f"{path} is a folder: name a file in it")
        made = [part for part in (probe, *probe.parents) if not part.exists()]
        try:
            probe.mkdir(parents=True)
        finally:
            with contextlib.suppress(OSError):
                for part in made:  # the innermost first; rmdir fails if another process has put something there
                    part.rmdir()


def put_folder(new: Path, place: Path) -> None:
    """Rename a finished folder; at every moment `place` is all of the old folder (or file) or all of the new one.

    Where the file system cannot exchange two names, there is a gap between two renames; recover() repairs a kill in it.
    """
    sync_tree(new)
    if not os.path.lexists(place):
        os.rename(new, place)
        sync_folder(place.parent)
        return
    old = new
    if not _exchange(new, place):
        old = _beside(place, "old")
        with _held(place):
            os.rename(place, old)
            os.rename(new, place)
    sync_folder(place.parent)
    remove(old)


def recover(path: Path, alone: bool = False) -> None:
    """Bring back, or remove, what killed processes left of `path` in new_folder().

    Args:
        alone: assume that no living process is writing it; else folders that a living process has locked are skipped.
    """
    name = re.compile(rf"\.{re.escape(path.name)}\.\d+\.(tmp|old)")
    left = [found for found in path.parent.iterdir() if name.fullmatch(found.name)] if path.parent.is_dir() else []
    for folder in sorted(left):  # .old before .tmp
        if not (alone or _free(folder)):
            continue
        if folder.suffix == ".old" and not os.path.lexists(path):
            os.rename(folder, path)
        else:
            remove(folder)


def remove(path: Path) -> None:
    """Remove a file, a folder with its content, or a link (not its target); does nothing if the path does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Wait until a folder, and all files and folders in it, are on disk."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            with open(os.path.join(root, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(root)


def sync_folder(folder: str | Path) -> None:
    """Wait until the names in a folder are on disk; does nothing where its file system does not support that."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


@contextlib.contextmanager
def writing(path: str | Path, named: str | Path | None = None, then: str = "") -> Iterator[None]:
    """Context that turns system errors about writing a file, or the files of a folder, into a FileError.

    Errors of libraries are recognized by the messages of their writers; any other error passes through.

    Args:
        path: the file, or a folder that is being filled.
        named: the name to use in the message, if `path` is temporary.
        then: text for what to do after the remedy.
    """
    try:
        yield
    except Exception as error:
        number, text = _write_failure(error, Path(path)), str(error)
        if number is not None:
            file = _target(error) or _being_written(error, Path(path))
            why, remedy = _CAUSES.get(number, (os.strerror(number), _OTHER_PLACE))
            text = f"{os.fsdecode(file)} cannot be written ({why}): {remedy}"
        elif not isinstance(error, FileError):
            raise
        text = text if named is None else text.replace(str(path), str(named), 1)
        raise FileError(text + (then and f", {then}")) from error


def _write_failure(error: Exception, path: Path) -> int | None:
    """The errno behind an error that was raised while `path` was written; None if it is not about writing it."""
    if isinstance(error, OSError):
        known = error.errno is not None and not isinstance(error, _ELSEWHERE)
        return error.errno if known and _about(_target(error), path) else None
    found = _RUST.search(str(error))
    if found:
        return int(found.group(1))
    if not isinstance(error, RuntimeError) or not any(words in str(error) for words in _TORCH):
        return None
    file, limit = Path(_being_written(error, path)), resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and file.is_file() and file.stat().st_size + _NEAR > limit:
        return errno.EFBIG
    disk = os.statvfs(path)
    return errno.ENOSPC if disk.f_bavail * disk.f_frsize < _NEAR else errno.EDQUOT


def _target(error: Exception) -> Any:
    """The file that an error names (for a rename or a copy the new one), or None."""
    return getattr(error, "filename2", None) or getattr(error, "filename", None)


def _about(name: Any, path: Path) -> bool:
    """Whether a file name from an error may belong to writing `path`: None, or beneath or above its folder."""
    if name is None:
        return True
    file, folder = (Path(os.path.abspath(os.fsdecode(part))) for part in (name, path.parent))
    return file.is_relative_to(folder) or folder.is_relative_to(file)


def _being_written(error: BaseException, path: Path) -> str | Path:
    """The file that a library was writing when it raised an error without a file name: found in its frames' locals."""
    inside = f"{os.path.abspath(path)}{os.sep}"
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in frame.f_locals.values():
            if isinstance(value, (str, Path)) and os.path.abspath(value).startswith(inside):
                return value
    return path


@contextlib.contextmanager
def locked(lock: FileLock, folder: Path, wait: float = -1) -> Iterator[None]:
    """Context that holds a lock against other processes. It is a kernel lock, which is released when the process ends.

    Args:
        lock: a lock on a file in or below `folder`.
        wait: seconds until it gives up; -1: never.

    Raises:
        filelock.Timeout: another process held the lock all that time.
        InputError: the folder's file system has no locks.
        FileError: nothing can be written there.
    """
    from filelock import SoftFileLock

    no_locks = f"output {folder} is on a file system without file locks (flock): name a folder on another one"
    try:
        with writing(lock.lock_file):
            lock.acquire(timeout=wait, poll_interval=0.005)
    except NotImplementedError as error:  # filelock raises it on a file system without flock
        raise InputError(no_locks) from error
    try:
        if isinstance(lock, SoftFileLock):  # newer filelock's fallback: a file that a killed process leaves
            raise InputError(no_locks)
        yield
    finally:
        lock.release()


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{ending}")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names atomically; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Context with a lock on a folder, which the kernel releases when this process ends; no lock if unsupported."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _free(folder: Path) -> bool:
    """Whether no living process holds the lock on a folder; False if that cannot be determined."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        finally:
            os.close(handle)
    return False
