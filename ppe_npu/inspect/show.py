"""Pictures of what was merged: the groups drawn over an image, or over the frames of a video.

    model.compression.keep_groups = True
    model(**inputs)
    visual = model.compression.trace.visuals()[0]
    draw_visual([image], visual).save("groups.png")

Tokens of one colour became one token; a token without colour stayed by itself. A white dot marks the representative.
A line joins each token that was dropped before the vision tower to the kept token that represents it.
The chosen merged token is outlined in yellow. The numbers in it mark the positions that it keeps, in the order in which
the rotary channels read them (the representative's is white, if it is one of them).
"""

import colorsys
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ppe_npu.errors import InputError, counted
from ppe_npu.inspect.trace import Groups, Visual

_WIDTH = 1600  # pixels, the approximate width of a sheet
_PANEL = 1000  # pixels, the longest side of a panel
_GAP, _TITLE = 12, 30
_BETWEEN = 3  # pixels between the frames of a strip
_TINT = 0.5  # fraction of the group's colour in a pixel
_YELLOW, _WHITE, _DARK, _GREY = (255, 221, 0), (255, 255, 255), (20, 20, 20), (90, 90, 90)


def draw_visual(frames: Sequence[Image.Image], visual: Visual, token: int | None = None) -> Image.Image:
    """Draw an image with one panel per stage, or the last stage of a video with one panel per frame.

    Args:
        frames: the picture, or one picture for each temporal step of the video; of any size.
        token: the merged token of the last stage that is outlined; None: the one with the most original tokens.

    Raises:
        InputError: the frames do not match the groups, or there is no such token.
    """
    last = visual.stages[-1]
    steps, kept = len(last.labels), len(last.representatives)
    if len(frames) != steps:
        raise InputError(f"{len(frames)} picture(s) for {steps} temporal step(s): give one for each")
    if token is not None and not 0 <= token < kept:
        raise InputError(f"token {token} does not exist: {kept} are left, give 0 to {kept - 1}")
    token = int(last.sizes.argmax()) if token is None else token
    if visual.modality == "image":
        shown = [(frames[0], groups, 0, token if groups is last else None) for groups in visual.stages]
        entering = [visual.stages[0].labels.size, *(len(groups.representatives) for groups in visual.stages)]
        titles = [(_stage_title(*both), None) for both in zip(visual.stages, entering)]
    else:
        shown = [(frame, last, step, token) for step, frame in enumerate(frames)]
        titles = [_frame_title(visual, step) for step in range(steps)]
    columns = min(len(shown), 4)
    side = min(_PANEL, (_WIDTH - _GAP) // columns - _GAP)
    panels = [draw_groups(*what, numbered=not visual.renumbered, side=side) for what in shown]
    return _sheet(panels, titles, columns, _caption(visual, token))


def draw_groups(
    picture: Image.Image,
    groups: Groups,
    step: int = 0,
    token: int | None = None,
    numbered: bool = True,
    side: int = _PANEL,
) -> Image.Image:
    """Draw one picture with its groups.

    Args:
        step: the temporal step of the groups that the picture shows.
        token: the merged token that is outlined; None for none.
        numbered: whether the positions that it keeps are numbered.
        side: approximate length in pixels of the drawing's longer side.
    """
    labels, merged = groups.labels[step], groups.sizes > 1
    height, width = labels.shape
    cell = max(8, side // max(height, width))
    colours = np.array([_colour(group) for group in range(len(merged))])
    tint, share = (part[labels].repeat(cell, 0).repeat(cell, 1) for part in (colours, merged * _TINT))
    pixels = np.asarray(picture.convert("RGB").resize((width * cell, height * cell)), dtype=np.float64)
    drawn = Image.fromarray((pixels + (tint - pixels) * share[..., None]).round().astype(np.uint8))
    draw, first = ImageDraw.Draw(drawn), step * height * width
    _border(draw, labels, cell, _DARK, max(1, cell // 20))
    if groups.layer == "pixels":
        _leaning(draw, groups, first, width, cell)
    here = groups.representatives[merged] - first
    for index in here[(here >= 0) & (here < height * width)].tolist():
        _disc(draw, index, width, cell, cell / 9, _WHITE)
    if token is None:
        return drawn
    _border(draw, labels == token, cell, _YELLOW, max(3, cell // 8))
    for number, index in enumerate(dict.fromkeys(groups.held[token].tolist()) if numbered else (), start=1):
        if 0 <= index - first < height * width:
            colour = _WHITE if index == groups.representatives[token] else _YELLOW
            _disc(draw, index - first, width, cell, max(7, 0.36 * cell), colour, str(number))
    return drawn


def draw_strip(
    frames: Sequence[Image.Image],
    groups: Groups,
    side: int,
    token: int | None = None,
    numbered: bool = True,
    columns: int | None = None,
) -> Image.Image:
    """Draw the groups over a picture, or over the frames of a video side by side; dropped tokens are dark.

    Args:
        side: approximate length in pixels of a frame's longer side. columns: frames in a row; None: all.
        token, numbered: see draw_groups.
    """
    panels = [draw_shaded(frame, groups, step, side, token, numbered) for step, frame in enumerate(frames)]
    return side_by_side(panels, columns)


def draw_shaded(
    picture: Image.Image, groups: Groups, step: int, side: int, token: int | None = None, numbered: bool = True
) -> Image.Image:
    """As draw_groups(), but dropped tokens are dark."""
    panel, gone = draw_groups(picture, groups, step, token, numbered, side), groups.labels[step] < 0
    cell = panel.width // gone.shape[1]
    pixels = np.asarray(panel).copy()
    pixels[gone.repeat(cell, 0).repeat(cell, 1)] //= 4
    return Image.fromarray(pixels)


def side_by_side(panels: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Pictures in rows, each in a cell as large as the largest picture. columns: pictures in a row; None: all."""
    columns = min(columns or len(panels), len(panels))
    across, down = (max(part) + _BETWEEN for part in zip(*(panel.size for panel in panels)))
    size = (columns * across - _BETWEEN, -(-len(panels) // columns) * down - _BETWEEN)
    strip = Image.new("RGB", size, _WHITE)
    for number, panel in enumerate(panels):
        strip.paste(panel, (number % columns * across, number // columns * down))
    return strip


def token_at(point: tuple[int, int], shape: tuple[int, int, int], side: int, columns: int | None = None) -> int | None:
    """The original token (in raster order, frame after frame) that is drawn at a pixel of a strip, or None.

    Args:
        point: (x, y). shape: that of the groups' labels. side, columns: those given to draw_strip.
    """
    steps, height, width = shape
    cell, columns = max(8, side // max(height, width)), min(columns or steps, steps)
    column, x = divmod(point[0], width * cell + _BETWEEN)
    row, y = divmod(point[1], height * cell + _BETWEEN)
    step = row * columns + column
    if x >= width * cell or y >= height * cell or not 0 <= column < columns or not 0 <= step < steps:
        return None
    return (step * height + y // cell) * width + x // cell


def _leaning(draw, groups: Groups, first: int, width: int, cell: int) -> None:
    """Draw a line from every token that was dropped before the vision tower to the kept one that represents it."""
    anchors = groups.representatives[groups.labels.reshape(-1)]
    size = groups.labels[0].size
    for index, anchor in enumerate((anchors[first : first + size] - first).tolist()):
        if anchor != index:
            ends = [((at % width + 0.5) * cell, (at // width + 0.5) * cell) for at in (index, anchor)]
            draw.line(ends, _DARK, max(1, cell // 24))
            _disc(draw, index, width, cell, cell / 18, _DARK)


def _colour(number: int) -> tuple[float, ...]:
    """A colour that differs clearly from those of neighbouring numbers."""
    hue = number * 0.61803398875 % 1
    return tuple(255 * part for part in colorsys.hsv_to_rgb(hue, (0.9, 0.65)[number // 2 % 2], (1.0, 0.75)[number % 2]))


def _border(draw: ImageDraw.ImageDraw, labels: np.ndarray, cell: int, colour: tuple, width: int) -> None:
    """Draw lines between tokens of different groups, or around the True region of a bool array."""
    framed = np.pad(labels, 1, constant_values=False) if labels.dtype == bool else np.pad(labels, 1, mode="edge")
    for row, column in np.argwhere(framed[1:-1, 1:] != framed[1:-1, :-1]).tolist():
        draw.line([column * cell, row * cell, column * cell, (row + 1) * cell], colour, width)
    for row, column in np.argwhere(framed[1:, 1:-1] != framed[:-1, 1:-1]).tolist():
        draw.line([column * cell, row * cell, (column + 1) * cell, row * cell], colour, width)


def _disc(draw, index: int, width: int, cell: int, radius: float, colour: tuple, text: str = "") -> None:
    """Draw a disc in the middle of a token, with text in it if given."""
    x, y = (index % width + 0.5) * cell, (index // width + 0.5) * cell
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], colour, _DARK)
    if text:
        draw.text((x, y), text, _DARK, ImageFont.load_default(1.4 * radius), "mm")


def _stage_title(groups: Groups, entering: int) -> str:
    """entering: how many tokens the merge before left, which the labels do not tell because they cover all tokens."""
    places = {None: "before the LLM", "pixels": "before the vision tower"}
    where = places.get(groups.layer) or f"on entry of layer {groups.layer}"
    return f"{where}: {entering} tokens, {len(groups.representatives)} left"


def _frame_title(visual: Visual, step: int) -> tuple[str, tuple | None]:
    """The title of a temporal step, and the colour of its event if there are events."""
    present = len(np.unique(visual.stages[-1].labels[step]))
    if visual.events is None:
        return f"step {step}: {visual.stages[-1].labels[step].size} tokens, {present} left", None
    event = int(visual.events[step])
    return f"step {step}, event {event}: its tokens are part of {present}", tuple(int(part) for part in _colour(event))


def _caption(visual: Visual, token: int) -> str:
    last = visual.stages[-1]
    places = [np.unravel_index(index, last.labels.shape) for index in dict.fromkeys(last.held[token].tolist())]
    axes = slice(1 if visual.modality == "image" else 0, 3)
    listed = [f"({', '.join(str(part) for part in place[axes])})" for place in places]
    size = int(last.sizes[token])
    own = f"Token {token} (yellow) stands for {counted(size, 'token')}"
    if visual.renumbered:
        kept = "and keeps no position: the prompt is numbered anew."
    else:
        named = "(row, column)" if visual.modality == "image" else "(step, row, column)"
        kept = f"and keeps the position {named} {listed[0]}."
        if len(listed) > 1:
            numbered = ", ".join(f"{number}: {place}" for number, place in enumerate(listed, start=1))
            kept = f"and keeps the positions {named} {numbered}."
    before, after = last.labels.size, len(last.representatives)
    return (
        f"{before} visual tokens, {after} left ({after / before:.1%}). Tokens of one colour are one now; those without "
        f"colour stayed. Dots: representatives. {own} {kept}"
    )


def _sheet(panels: list, titles: list, columns: int, caption: str) -> Image.Image:
    """Arrange the panels in rows, each under its title, with the caption below."""
    width, height = panels[0].size
    rows = -(-len(panels) // columns)
    font = ImageFont.load_default(17)
    across = max(columns * (width + _GAP) + _GAP, 640)
    lines = textwrap.wrap(caption, width=int(0.94 * (across - 2 * _GAP) * len(caption) / font.getlength(caption)))
    sheet = Image.new("RGB", (across, rows * (height + _TITLE + _GAP) + 24 * len(lines) + 2 * _GAP), _WHITE)
    draw = ImageDraw.Draw(sheet)
    for number, (panel, (title, colour)) in enumerate(zip(panels, titles)):
        x, y = _GAP + number % columns * (width + _GAP), _GAP + number // columns * (height + _TITLE + _GAP)
        if colour is not None:
            draw.rectangle([x, y + 4, x + 18, y + 22], colour)
        draw.text((x + (0 if colour is None else 26), y + 13), title, _DARK, ImageFont.load_default(16), "lm")
        sheet.paste(panel, (x, y + _TITLE))
    for number, line in enumerate(lines):
        draw.text((_GAP, rows * (height + _TITLE + _GAP) + _GAP + 24 * number), line, _GREY, font)
    return sheet
