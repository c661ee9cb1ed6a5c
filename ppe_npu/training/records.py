"""Training records: Record for one that has been checked, Fault for one that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ppe_npu.data.turns import PLACEHOLDERS, split_placeholders
from ppe_npu.utils.escape import printable


@dataclass(frozen=True)
class Record:
    """One checked training record.

    Attributes:
        where: file and line, for messages.
        images, videos: absolute paths.
        turns: (role, text) with role system, user or assistant; placeholders still in the text.
        independent: every user/assistant pair is a question of its own.
        id: the record's own, else file and line.
    """

    where: str
    images: tuple[str, ...]
    videos: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]
    independent: bool = False
    id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", self.id or self.where)

    def messages(self) -> list[dict[str, Any]]:
        """The conversation in transformers' message form."""
        images, videos = list(self.images), list(self.videos)
        messages = []
        for role, text in self.turns:
            taken = [[items.pop(0) for _ in range(text.count(PLACEHOLDERS[kind]))] for kind, items in
                     (("image", images), ("video", videos))]  # fmt: skip
            messages.append({"role": role, "content": split_placeholders(text, *taken, self.where)})
        return messages

    def questions(self) -> list[list[dict[str, Any]]]:
        """The question-and-answer pairs of an independent record, each as its own conversation with all visuals."""
        messages = self.messages()
        visuals = [item for item in messages[0]["content"] if item["type"] != "text"]
        pairs = zip(messages[::2], messages[1::2])
        return [
            [{"role": "user", "content": visuals + [i for i in user["content"] if i["type"] == "text"]}, assistant]
            for user, assistant in pairs
        ]


@dataclass(frozen=True)
class Fault:
    """A record that cannot be used: its file and line, its id, and the reason."""

    where: str
    id: str
    reason: str

    def __str__(self) -> str:
        return printable(f"{self.where}: {self.reason}")
