"""Paths that stand in other people's data: no addresses, and nothing outside the folder that they belong to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ppe_npu.errors import InputError, first_line
from ppe_npu.escape import printable

# A scheme and two slashes, of which pathlib leaves one of the well-known ones; "12:30.png" and "data:1.png" are files.
_ADDRESS = re.compile(r"\s*(?:(?P<any>[a-z][a-z0-9+.-]+)://|(?P<known>https?|file):/|(?P<data>data):[^\s,]*,)", re.I)
_SHOWN = 80  # characters of an address that a message quotes


def refuse_address(path: str | Path, kind: str) -> None:
    """Raise InputError for an address, which is no path: nothing is ever fetched."""
    found = _ADDRESS.match(str(path))
    if found is None:
        return
    text = str(path).strip()
    shown = printable(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
    scheme = next(name for name in found.groups() if name).lower()
    remedy = "download it first and give the file's path"
    if scheme == "file":
        remedy = f"give the path alone, {printable(unquote(urlsplit(text).path))}"
    elif scheme == "data":
        remedy = f"it holds the {kind} itself: write it to a file and give the file's path"
    raise InputError(f"{kind} {shown} is an address: {remedy}")


class Room:
    """A folder that the paths in its data stay inside of, whatever they say.

    Args:
        root: the folder. Of a snapshot in the Hugging Face hub's cache the blobs, to which it links, are inside, too.
        anywhere: whether paths may lead out of it.
        also: further folders that count as inside.
        remedy: what to do about a path that leads out.
    """

    def __init__(
        self, root: str | Path, anywhere: bool = False, also: Iterable[str | Path] = (), remedy: str = "leave it out"
    ) -> None:
        self.root, self._anywhere, self._remedy = Path(root), anywhere, remedy
        self._inside = [os.path.realpath(folder) for folder in (root, *also, *_blobs(root))]
        self._folders: dict[str, str] = {}  # where folders really are

    def path(self, given: str, kind: str) -> str:
        """The path that a text in the data names, joined to the root; whether a file is there is not looked at.

        Raises:
            InputError: an address, or a path that leads out of the root, by ".." or a link or by itself.
        """
        refuse_address(given, kind)
        path = self.root / given
        if not self._anywhere:
            self.check(path, kind, given)
        return str(path)

    def check(self, path: str | Path, kind: str, given: str | None = None) -> None:
        """Raise InputError for a path, as `given` in the data, that leads out of the root."""
        named = printable(str(path) if given is None else given)
        try:
            real = self._real(str(path))
        except ValueError as error:  # it holds a NUL, or half of a surrogate pair
            raise InputError(f"{kind} {named} cannot be a file ({first_line(error)}): check the path") from error
        if not any(real == folder or real.startswith(folder.rstrip(os.sep) + os.sep) for folder in self._inside):
            leads = "" if real == named else f" (it leads to {printable(real)})"
            raise InputError(f"{kind} {named} lies outside of {self.root}{leads}: {self._remedy}")

    def _real(self, path: str) -> str:
        """os.path.realpath, each folder looked at once."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        place = os.path.join(self._folders[folder], name)
        return os.path.realpath(place) if name in ("", ".", "..") or os.path.islink(place) else place


def _blobs(root: str | Path) -> list[Path]:
    """Where the files of a snapshot in the hub's cache really are: NAME/blobs of NAME/snapshots/REVISION."""
    place = Path(os.path.abspath(root))
    return [folder.parent / "blobs" for folder in place.parents if folder.name == "snapshots"]
