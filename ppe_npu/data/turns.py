"""Text with <image> and <video> placeholders -> the content of a user turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppe_npu.errors import InputError, counted

PLACEHOLDERS = {"image": "<image>", "video": "<video>"}


def user_turn(text: str, images: Sequence[Any] = (), videos: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """A conversation of one user turn: visuals replace the text's placeholders if it has one for each, else they come
    before the text."""
    given = {"image": images, "video": videos}
    if (images or videos) and all(text.count(token) == len(given[kind]) for kind, token in PLACEHOLDERS.items()):
        return [{"role": "user", "content": split_placeholders(text, images, videos)}]
    content = [{"type": kind, kind: visual} for kind, visuals in given.items() for visual in visuals]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def split_placeholders(
    text: str, images: Sequence[Any] = (), videos: Sequence[Any] = (), where: str = "the prompt"
) -> list[dict[str, Any]]:
    """Text with <image> and <video> placeholders -> content items, with the visuals in place of the placeholders.

    One line break on either side of a placeholder is removed: LLaVA data writes "<image>\\n", chat templates do not.

    Raises:
        InputError: placeholders and visuals differ in number.
    """
    left = {"image": list(images), "video": list(videos)}
    for kind, token in PLACEHOLDERS.items():
        if text.count(token) != len(left[kind]):
            held, given = text.count(token), len(left[kind])
            raise InputError(f"{where} has {held} {token} for {counted(given, kind)}: write one {token} per {kind}")
    items: list[dict[str, Any]] = []
    while text:
        found = [(text.find(token), kind) for kind, token in PLACEHOLDERS.items() if token in text]
        at, kind = min(found, default=(len(text), None))
        before, text = text[:at], text[at:]
        if kind is not None:
            before, text = before.removesuffix("\n"), text.removeprefix(PLACEHOLDERS[kind]).removeprefix("\n")
        if before:
            items.append({"type": "text", "text": before})
        if kind is not None:
            items.append({"type": kind, kind: left[kind].pop(0)})
    return items
