"""One-line descriptions of all methods, for `ppe-npu methods` and the documents."""

import dataclasses
import re
from importlib import import_module
from typing import Any

from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method, method_class, published
from ppe_npu.settings import to_plain

_TOKENS = 64  # of a picture


@dataclasses.dataclass(frozen=True)
class Listed:
    """A method with its default settings.

    Attributes:
        name: its name in settings, presets and on the command line.
        what: the first sentence of its file, without the reference to the paper.
        places: where it can be applied, from methods.base.PLACES. needs: its inputs there. scope: what forms a cell.
        budget: "exact", the number of tokens that stay follows from the grid; "late", it depends on the features.
        paper: its arXiv number, or None where the file names none (controls, a user's own method).
        fields: the default of each setting.
    """

    name: str
    what: str
    places: tuple[str, ...]
    needs: tuple[str, ...]
    scope: str
    budget: str
    paper: str | None
    fields: dict[str, Any]

    @classmethod
    def of(cls, name: str) -> "Listed":
        method = method_class(name)
        own = default(name)
        text = (import_module(method.__module__).__doc__ or "").strip()
        paper = re.search(r"arXiv (\d{4}\.\d{5})", f"{text} {method.__doc__}")
        what = re.split(r"(?<=[a-z\d)])\.\s|\.?\n\n", text, maxsplit=1)[0].rstrip(".").replace("\n", " ")
        return cls(
            name,
            re.sub(r",? ?\([^()]*arXiv[^()]*\)", "", what),
            own.places,
            tuple(sorted(own.needs)),
            own.scope,
            own.counts,
            paper[1] if paper else None,
            {field.name: to_plain(getattr(own, field.name)) for field in dataclasses.fields(own)},
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        values = dataclasses.asdict(self)
        return {**values, "places": list(self.places), "place": self.places[0], "needs": list(self.needs)}

    @property
    def source(self) -> str:
        """The paper; "control" for a method that others must beat; "-" for any other method without a paper."""
        if self.paper:
            return f"arXiv {self.paper}"
        return "control" if self.what.startswith("The control") else "-"

    @property
    def looks_at(self) -> str:
        return "places alone" if set(self.needs) <= {"places"} else ", ".join(self.needs)


def grouping() -> tuple[str, ...]:
    """Names of the published methods that group tokens: all except those that choose cells of a picture at the pixels,
    and those inside the vision tower."""
    return tuple(name for name in published() if default(name).place not in ("pixels", "tower"))


def of_pictures() -> tuple[str, ...]:
    """Those of grouping() that keep fewer tokens of a picture. The others group nothing but the frames of videos."""
    return tuple(name for name in grouping() if _fewer(default(name)))


def _fewer(method: Method) -> bool:
    return method.counts == "late" or method.kept_cells([_TOKENS]) != [_TOKENS]


def default(name: str) -> Method:
    """A method with its defaults, at layer 0 if it requires a layer and has no default."""
    method = method_class(name)
    try:
        return method()
    except InputError:
        return method(layer=0)
