"""Paths that stand in other people's data: no addresses, and nothing outside the folder that they belong to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ppe_npu.errors import InputError, first_line
from ppe_npu.utils.paths import address_fault, expanded, shown_path


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
        if fault := address_fault(given):
            raise InputError(f"{kind} {shown_path(given)} {fault}")
        path = self.root / given
        if str(path).startswith("~"):  # below the folder ".", where readers would take it for a home
            path = Path(os.path.abspath(path))
        if not self._anywhere:
            self.check(path, kind, given)
        return str(path)

    def check(self, path: str | Path, kind: str, given: str | None = None) -> None:
        """Raise InputError for a path, as `given` in the data, that leads out of the root."""
        named = shown_path(str(path) if given is None else given)
        try:
            real = self._real(str(expanded(path)))  # as it is opened
        except ValueError as error:  # it holds a NUL, or half of a surrogate pair
            raise InputError(f"{kind} {named} cannot be a file ({first_line(error)}): check the path") from error
        if not any(real == folder or real.startswith(folder.rstrip(os.sep) + os.sep) for folder in self._inside):
            leads = "" if real == named else f" (it leads to {shown_path(real)})"
            raise InputError(f"{kind} {named} lies outside of {shown_path(self.root)}{leads}: {self._remedy}")

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
