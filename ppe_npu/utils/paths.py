"""Checks of paths that a user gives, before anything is opened: only regular files on this machine are read.

Opening a named pipe or a device may wait forever, and an address would need a network. Each is refused with a message
of its own.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import stat
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError, first_line

_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]+):(//|/|)", re.IGNORECASE)
# These are addresses with one slash, too, because pathlib turns "//" into "/". Any other word is a scheme only in
# "word://", so that a file name may contain a colon.
_WEB = ("http", "https", "ftp", "ftps", "sftp", "ssh", "rtsp", "rtsps", "rtmp", "mms", "udp", "tcp")
_STORES = ("s3", "s3a", "gs", "gcs", "hdfs", "hf", "az", "abfs", "abfss", "wasb", "oss", "tos", "cos", "obs", "ceph")
_KINDS = (
    (stat.S_ISDIR, "is a folder: give the path of a file"),
    (stat.S_ISFIFO, "is a named pipe, which may never end: save it to a file first"),
    (stat.S_ISSOCK, "is a socket: save what it sends to a file first"),
    (stat.S_ISCHR, "is a device, which never ends: give the path of a file"),
    (stat.S_ISBLK, "is a device: give the path of a file"),
)
LFS_POINTER = b"version https://git-lfs"  # how a pointer starts that git left in place of a large file
# Content that may be in place of a file that was not downloaded, by how it starts.
IN_ITS_PLACE = ((b"<!DOCTYPE", "a web page"), (b"<html", "a web page"), (LFS_POINTER, "a Git LFS pointer"))
_RIGHT = "change its permissions, or give another path"
_LONGEST = 255  # bytes of one name, on all common file systems
_SHOWN = 200  # characters of a path in a message; an address may contain a whole picture


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder at this path. False also for what cannot be a path; existing_file() says why."""
    try:
        return not address_fault(path) and expanded(path).is_dir()
    except (OSError, ValueError, TypeError):
        return False


def address_fault(path: str | Path) -> str | None:
    """The message for an address (http, s3, file, data, a Windows share) given as a path; None for a path."""
    text = str(path)
    if text.startswith("\\\\") or (os.name == "nt" and text.startswith("//")):
        return "is a Windows network path: mount it, or copy the file to this machine, and give its path there"
    found = _SCHEME.match(text)
    scheme, slashes = (found[1].lower(), found[2]) if found else ("", "")
    if scheme == "data" and "," in text:
        return "is a file written as text (data:): write it to a file, and give the file's path"
    if scheme == "file" and slashes:
        return "is an address on this machine: give the path alone, without file://"
    if scheme in _STORES and slashes:
        return "is an address in an object store: copy it to this machine and give the file's path"
    if slashes == "//" or (scheme in _WEB and slashes):
        return "is an address: download it first and give the file's path"
    return None


def expanded(path: str | Path) -> Path:
    """The path with ~ and ~name replaced by a home folder; if there is no such home, they are part of a name."""
    path = Path(os.fsdecode(path))  # an os.DirEntry may contain bytes
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def may_be_read(path: str | Path, listed: bool = True) -> bool:
    """Whether this process may read an existing file, or enter a folder and, if `listed`, list it."""
    if os.path.isdir(path):
        return os.access(path, os.R_OK | os.X_OK if listed else os.X_OK)
    return os.access(path, os.R_OK)


def as_path(value: Any, before: str, written: bool = False) -> Any:
    """The path that an option or a setting names, with ~ expanded, and with a link followed if it is written to.

    Args:
        value: a string or a list of strings; anything else is returned unchanged.
        before: text before the path in messages: "--model ", "model=".
        written: whether something is to be written there.

    Raises:
        InputError: the string is empty, as from an unset shell variable (which does not mean the default); the system
            refuses to look at the path (it need not exist); or the path to write to is an address.
    """
    if isinstance(value, (list, tuple)):
        return type(value)(as_path(part, before, written) for part in value)
    if not isinstance(value, str):
        return value
    named = f"{before}'{shown_path(value)}'"
    if not value.strip():
        raise InputError(f"{named} is an empty string: give a value, or leave it out")
    if written and address_fault(value):
        raise InputError(f"{named} is an address: name a place on this machine, and copy it from there")
    path = os.path.expanduser(value)
    try:
        if any(len(os.fsencode(part)) > _LONGEST for part in path.split(os.sep)):  # below missing folders, too
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        os.stat(path)
        if not (may_be_read(path, listed=False) or (written and os.path.isfile(path))):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # rights, a long name, a loop of links; a null character
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{named} cannot be accessed ({why}): name another path") from error
    place = path.rstrip(os.sep) or path
    if not written or os.path.isdir(path) or not os.path.islink(place):  # a linked folder is filled in place
        return path
    target = os.path.realpath(path)
    return target if os.path.splitext(target)[1] == os.path.splitext(place)[1] else path


def real_place(path: Any) -> Any:
    """The absolute path with links followed, so that all spellings of a path are equal. A value that is not a path, or
    at which nothing exists, is returned unchanged. A list gives a list."""
    if isinstance(path, (list, tuple)):
        return type(path)(real_place(part) for part in path)
    try:
        if isinstance(path, (str, Path)) and (place := expanded(path)).exists():
            if place.is_symlink() or place.name in ("", ".."):
                return type(path)(os.path.realpath(place))
            return type(path)(os.path.join(_real_folder(os.path.join(os.getcwd(), place.parent)), place.name))
    except (OSError, ValueError):  # what cannot be a path
        pass
    return path


@functools.lru_cache(maxsize=1024)  # many thousands of files may be in few folders
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def existing_file(path: Any, kind: str) -> Path:
    """The path of an existing regular file; links are followed.

    Args:
        path: str or PathLike; ~ is the home folder.
        kind: what the file should be, for messages: image, video.

    Raises:
        InputError: this is not a path, or an address; or there is no file, or a folder, named pipe, socket or device.
    """
    try:
        shown = shown_path(None if isinstance(path, bytes) else path)
    except TypeError as error:  # not a path, or an object whose __fspath__ returns none
        given = f"{path!r:.{_SHOWN}} is of type {type(path).__name__}"
        raise InputError(f"{kind} {given}: give the path of a file") from error
    path = os.fsdecode(path)
    if not shown:
        raise InputError(f"{kind} is an empty string: give the path of a file")
    if fault := address_fault(path):
        raise InputError(f"{kind} {shown} {fault}")
    found = expanded(path)
    try:
        status = os.stat(found)
    except (FileNotFoundError, NotADirectoryError) as error:
        if found.is_symlink():
            target = shown_path(os.readlink(found))
            raise InputError(f"{kind} {shown} is a link to {target}, which does not exist: fix the link") from error
        raise InputError(f"{kind} {shown} does not exist: check the path") from error
    except (OSError, ValueError) as error:  # a long name or one with a NUL, a folder without rights, a loop of links
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{kind} {shown} cannot be a file ({reason}): check the path") from error
    for is_kind, words in _KINDS:
        if is_kind(status.st_mode):
            raise InputError(f"{kind} {shown} {words}")
    system = status.st_size == 0 and os.path.realpath(found).startswith(("/proc/", "/sys/"))
    if system or not stat.S_ISREG(status.st_mode):
        raise InputError(f"{kind} {shown} is not a regular file: give the path of a file")
    if not may_be_read(found):
        raise InputError(f"{kind} {shown} may not be read (permission denied): {_RIGHT}")
    return found


def shown_path(path: Any) -> str:
    """A path for a message: on one line, shortened, and printable."""
    text = os.fspath(path)
    text = text if isinstance(text, str) else os.fsdecode(text)
    text = text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 4 :]}"
    return text if text.isprintable() else ascii(text)[1:-1]
