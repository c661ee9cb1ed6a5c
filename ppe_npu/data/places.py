"""Checks the paths that data files contain: no addresses, and nothing outside the folder that they belong to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ppe_npu.errors import InputError, first_line
from ppe_npu.utils.paths import address_fault, expanded, shown_path


class Room:
    """A folder that the paths in its data must not lead out of.

    Args:
        root: the folder. For a snapshot in the Hugging Face hub's cache, the blobs that it links to are inside, too.
        anywhere: whether paths may lead out of it.
        also: further folders that count as inside.
        remedy: what to do about a path that leads out.
    """

    def __init__(
        self, root: str | Path, anywhere: bool = False, also: Iterable[str | Path] = (), remedy: str = "leave it out"
    ) -> None:
        self.root, self._anywhere, self._remedy = Path(root), anywhere, remedy
        self._inside = [os.path.realpath(folder) for folder in (root, *also, *_blobs(root))]
        self._folders: dict[str, str] = {}  # real paths of folders

    def path(self, given: str, kind: str) -> str:
        """The path that a text in the data names, joined to the root; no file need exist there.

        Raises:
            InputError: an address, or a path that leads out of the root: by "..", by a link, or as an absolute path.
        """
        if fault := address_fault(given):
            raise InputError(f"{kind} {shown_path(given)} {fault}")
        path = self.root / given
        if str(path).startswith("~"):  # possible if the root is ".": readers would take it for a home folder
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
        """os.path.realpath, with each folder resolved only once."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        place = os.path.join(self._folders[folder], name)
        return os.path.realpath(place) if name in ("", ".", "..") or os.path.islink(place) else place


def _blobs(root: str | Path) -> list[Path]:
    """The folder that holds the files of a snapshot in the hub's cache: NAME/blobs for NAME/snapshots/REVISION."""
    place = Path(os.path.abspath(root))
    return [folder.parent / "blobs" for folder in place.parents if folder.name == "snapshots"]
