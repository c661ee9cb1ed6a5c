"""Base classes of our benchmarks: data below DATA_ROOT/<folder> is checked when opened; samples are made on demand."""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppe_npu.data.places import Room
from ppe_npu.errors import InputError, UserError, first_line, shown
from ppe_npu.evaluation.benchmarks.protocol import check_question
from ppe_npu.evaluation.benchmarks.readers import Parquet, Row, decode_image
from ppe_npu.evaluation.metrics import mean_by, official
from ppe_npu.evaluation.protocols import Protocol

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_NAMED = 20  # missing files that an error names; the others are only counted
_EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".MP4", ".mov")


class Sample(dict):
    """A sample whose image is loaded on first access, so that listing samples decodes nothing.

    sample["image"] and sample.get("image") load it; a copy made by dict(sample) before that has no image.
    """

    def __init__(self, fields: Row, image: Callable[[], Any] | None = None) -> None:
        super().__init__(fields)
        self._image = image

    def __missing__(self, key: str) -> Any:
        if key != "image" or self._image is None:
            raise KeyError(key)
        self["image"] = self._image()
        return self["image"]

    def get(self, key: str, default: Any = None) -> Any:
        """dict.get(), but "image" is loaded if necessary."""
        return self[key] if key in self or (key == "image" and self._image is not None) else default


class Dataset(ABC):
    """A benchmark over files below data_root/<folder>; a subclass declares what it needs and turns rows into samples.

    Class attributes:
        name, modality, max_new_tokens, headline, maximum, factor, decimals: as in benchmarks/protocol.py.
        folder: name of the folder below data_root; several benchmarks may share one.
        needs: files and folders below `folder` that must exist, as glob patterns.
        home: where to get them, in words.
        metric: what score() or metrics() compute, and where the rule was published.
        form: the prompt, with {names} that the subclass fills in.
        edition: number of the scoring rule's edition; runs that were scored by another edition are not continued.
        scored_as: name of the benchmark's rules in metrics/official.py; None: its own name.

    Raises:
        InputError: files are missing (one message names them and where to get them), or rows have another form.
    """

    name: str
    modality: str
    folder: str
    needs: tuple[str, ...]
    home: str
    metric: str
    form: str
    max_new_tokens = 16
    edition = 1
    scored_as: str | None = None
    headline: str | None = None
    maximum, factor, decimals = 1.0, 100.0, 1
    official: official.OfficialRule | None = None  # the protocol's rule, set by use()

    def __init__(self, data_root: str | Path) -> None:
        self.draws: int | None = None
        self.protocol: Protocol | None = None
        self.root = Path(data_root) / self.folder
        self._refuse([pattern for pattern in self.needs if not self.files(pattern)])
        with self._of_its_form(f"{self.name}: the data below {self.root}"):
            self.rows = list(self.read())
            self._check_rows()

    def use(self, protocol: Protocol) -> None:
        """Ask and score by a protocol: its prompts, its rule, its draws, its length of answers."""
        for name, text in protocol.prompts.get(self.name, {}).items():
            setattr(self, name, text)
        self.protocol = protocol.of(self.name)
        scored_as = self.scored_as or self.name
        self.official = official.rule(scored_as, protocol.rules) if protocol.rules else None
        self.edition = self.edition_by(protocol)
        self.draws = protocol.draws
        self.max_new_tokens = protocol.max_new_tokens or self.max_new_tokens

    @classmethod
    def edition_by(cls, protocol: Protocol) -> int:
        """The edition of the scoring under a protocol."""
        return cls.edition + official.CHANGED.get((cls.scored_as or cls.name, protocol.rules or ""), 0)

    def judged(self, answer: str, sample: Row) -> float | None:
        """An answer's score by the protocol's rule if it has one, else by the benchmark's own."""
        if self.official is None:
            return self.score(answer, sample)
        options = sample.get("options") or ()
        found = self.official(answer, sample["GT"], options)
        if found is None:  # the official script draws an option for this answer
            return 0.0 if self.draws is None else official.draw(sample["GT"], options, self.draws, sample["index"])
        return found

    def may_draw(self) -> bool:
        """Whether the protocol's script draws an option for an answer that names none."""
        return self.official is not None and self.official("", "A", ("a", "b")) is None

    @abstractmethod
    def read(self) -> Iterable[Row]:
        """The rows of the data, one per sample."""

    @abstractmethod
    def sample(self, row: Row) -> Row:
        """The sample of a row."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        return self.sample(self.rows[number])

    def __iter__(self) -> Iterator[Row]:
        return (self.sample(row) for row in self.rows)

    def unit(self, row: Mapping[str, Any]) -> Any:
        """The unit that is drawn when metrics() are resampled: the sample, unless several are scored together."""
        return row["index"]

    def from_sums(self, sums: np.ndarray) -> np.ndarray:
        """The headline from sums of addends(); by default a mean, for units whose addends are (score, 1)."""
        return sums[..., 0] / sums[..., 1]

    def files(self, pattern: str) -> list[Path]:
        """The paths below the folder that match a pattern of `needs`, sorted; if none does, case is ignored."""
        any_case = re.sub("[a-zA-Z]", lambda found: f"[{found[0].lower()}{found[0].upper()}]", pattern)
        return sorted(self.root.glob(pattern)) or sorted(self.root.glob(any_case))

    def file(self, pattern: str) -> Path:
        """The first of files(); the constructor has checked that it exists."""
        return self.files(pattern)[0]

    def video(self, folder: str, name: str) -> str:
        """Path of a video whose row names no extension: the file that exists, else NAME.mp4, reported as missing."""
        paths = [self.root / folder / f"{name}{extension}" for extension in _EXTENSIONS]
        return str(next((path for path in paths if path.is_file()), paths[0]))

    def room(self) -> Room:
        """The places where files named by rows may be: below the folder, or below folders of `needs` in it, which may
        be the user's links to other places."""
        folders = [path for pattern in self.needs for path in self.files(pattern) if path.is_dir()]
        return Room(self.root, also=folders, remedy="download the data again")

    def _check_rows(self) -> None:
        """Check that every sample can be made and asked, has a unique index, and that its files exist."""
        missing: dict[str, None] = {}
        seen: set[Any] = set()
        room = self.room()
        for number, row in enumerate(self.rows):
            where = f"{self.name}: row {number} below {self.root}"
            with self._of_its_form(where):
                sample = self.sample(row)
                check_question(sample, where)
                if "type" in sample and not isinstance(sample["type"], str):  # metrics count by it
                    raise TypeError(f"type {shown(sample['type'])} is not a string")
                if sample["index"] in seen:
                    twice = f"index {shown(sample['index'])} occurs twice below {self.root}"
                    raise InputError(f"{self.name}: {twice}: download the data again")
                seen.add(sample["index"])
                for path in _paths(sample):
                    room.check(path, f"{self.name}: a file of row {number},")
                missing |= dict.fromkeys(path for path in _paths(sample) if not Path(path).exists())
        self._refuse([str(Path(path).relative_to(self.root)) for path in missing])

    @contextlib.contextmanager
    def _of_its_form(self, where: str) -> Iterator[None]:
        """Turn errors that unexpected data raises (incomplete, of another edition) into an InputError of one line."""
        try:
            yield
        except InputError as error:
            if str(error).startswith(self.name) or str(self.root) in str(error):
                raise
            raise InputError(f"{where}: {error}") from error
        except UserError:
            raise
        except OSError as error:
            raise InputError(f"{where} cannot be read ({first_line(error)}): download it again") from error
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{where} has an unexpected form ({reason}): download it again") from error

    def _refuse(self, missing: Sequence[str]) -> None:
        if missing:
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise InputError(
                f"{self.name}: missing below {self.root}: {', '.join(missing[:_NAMED])}{more}; get it from {self.home}"
            )


def mean_of_shares(sums: np.ndarray) -> np.ndarray:
    """The mean of sum / count over the pairs (sum, count) in the last axis, leaving out pairs with count 0."""
    scores, counts = sums[..., 0::2], sums[..., 1::2]
    counted = counts > 0
    means = np.divide(scores, counts, out=np.zeros_like(scores), where=counted)
    return means.sum(-1) / np.maximum(counted.sum(-1), 1)


def _paths(sample: Row) -> list[str]:
    """Paths of the pictures and videos that a sample names."""
    found = [sample[key] for key in ("image_path", "video_path") if sample.get(key) is not None]
    return [path for value in found for path in (value if isinstance(value, (list, tuple)) else [value])]


class Pictured(Dataset):
    """A benchmark whose rows and pictures are in the parquet files of its first need.

    Class attributes:
        columns: names of the columns with pictures, which stay on disk until one is shown.
    """

    columns: tuple[str, ...] = ("image",)

    def read(self) -> Iterable[Row]:
        """The rows without their pictures; "number" is a row's place in the table."""
        self._table = Parquet(self.files(self.needs[0]), large=self.columns)
        return [{**row, "number": number} for number, row in enumerate(self._table.rows)]

    def picture(self, number: int, named: Any = None, column: str | None = None) -> Any:
        """The picture of a row, for Sample.

        Args:
            number: the row's place in the table.
            named: what messages call the row; None: its number.
            column: the picture's; None: the first of `columns`.
        """
        where = f"{self.name} {number if named is None else named}"
        return decode_image(self._table.cell(number, column or self.columns[0]), where)


class ByType(Dataset):
    """A benchmark that reports the accuracy of each type of sample, too."""

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """The mean score of each type."""
        return mean_by(rows, lambda row: str(row["type"]))


class Choice(Dataset):
    """A multiple-choice benchmark: an answer is right if letter() finds the letter in GT."""

    @abstractmethod
    def letter(self, answer: str, sample: Row) -> str:
        """The option that an answer names, as a capital; "" for none."""

    def score(self, answer: str, sample: Row) -> float:
        """1.0 for the right option, else 0.0."""
        return float(self.letter(answer, sample) == sample["GT"])


def lettered(options: Any) -> str:
    """Options as lines of the form "A. ..."."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, several(options)))


def bracketed(options: Any) -> str:
    """Options as lines of the form "(A) ..."."""
    return "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, several(options)))


def several(values: Any) -> Sequence[Any]:
    """A list in the data, unchanged; raises TypeError for anything else, such as a text, which is a sequence, too."""
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        return values
    raise TypeError(f"{shown(values)} is not a list")
