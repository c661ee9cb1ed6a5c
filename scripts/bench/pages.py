"""Draws pages of documents and screens of computers: text, tables, charts, windows, icons."""

import io
import math
import random

import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import Qwen2VLImageProcessor

from ppe_npu.compat import ensure_mm_token_type_ids

WORDS = ("the", "of", "section", "and", "report", "to", "in", "annual", "total", "is", "that", "value", "for", "with")
WHITE, BLACK, GREY, BLUE = (255, 255, 255), (24, 24, 24), (226, 228, 232), (40, 90, 200)
VARIANTS = ("png", "jpeg 75", "resized")
_DRAWN_AT = 1.25  # scale at which a "resized" picture is drawn first


def picture(kind: str, variant: str, width: int, height: int, seed: int = 0) -> Image.Image:
    """A "page" or a "screen" of this size, in pixels.

    Args:
        variant: "png": as drawn; "jpeg 75": saved as JPEG and read again; "resized": drawn larger and scaled down.
    """
    draw = {"page": page, "screen": screen}[kind]
    if variant == "resized":
        large = draw(math.ceil(width * _DRAWN_AT), math.ceil(height * _DRAWN_AT), seed)
        return large.resize((width, height), Image.Resampling.BICUBIC)
    drawn = draw(width, height, seed)
    if variant == "png":
        return drawn
    file = io.BytesIO()
    drawn.save(file, "JPEG", quality=75)
    return Image.open(file).convert("RGB")


def page(width: int, height: int, seed: int = 0) -> Image.Image:
    """A white page: a title, two columns of text, a table, a chart."""
    rng, image = random.Random(seed), Image.new("RGB", (width, height), WHITE)
    draw, margin = ImageDraw.Draw(image), width // 10
    draw.text((margin, margin // 2), "Annual report of the section", BLACK, ImageFont.load_default(height // 28))
    column, top = (width - 3 * margin) // 2 + margin // 2, 2 * margin
    for left in (margin, margin + column + margin // 2):
        _text(draw, rng, (left, top, left + column, height // 2), height // 56)
    _table(draw, rng, (margin, height * 11 // 20, width - margin, height * 3 // 4), height // 56)
    base, step = height * 19 // 20, (width - 2 * margin) // 9
    draw.line([margin, base, width - margin, base], BLACK, 2)
    for bar in range(9):
        x, tall = margin + bar * step + step // 5, rng.randrange(height // 40, height // 7)
        draw.rectangle([x, base - tall, x + step // 2, base - 1], BLUE if bar % 2 else (220, 120, 40))
    return image


def screen(width: int, height: int, seed: int = 0) -> Image.Image:
    """A desktop with icons at the left, two overlapping windows, and a bar at the bottom."""
    rng, image = random.Random(seed), Image.new("RGB", (width, height), (58, 98, 140))
    draw, unit = ImageDraw.Draw(image), height // 16
    for number in range(6):
        y = unit // 2 + number * 2 * unit
        colour = tuple(rng.randrange(60, 256) for _ in range(3))
        draw.rounded_rectangle([unit // 2, y, unit // 2 + unit, y + unit], unit // 5, colour, WHITE)
        draw.text((unit // 2, y + unit + 2), rng.choice(WORDS), WHITE, ImageFont.load_default(unit // 3))
    _window(draw, rng, (width // 7, unit, width * 3 // 4, height * 3 // 4), unit, "Notes")
    over = (width * 2 // 5, height // 3, width - unit // 2, height - 2 * unit)
    _window(draw, rng, over, unit, "Accounts", table=True)
    draw.rectangle([0, height - unit, width, height], (32, 34, 40))
    draw.text((width - 4 * unit, height - unit * 3 // 4), "10:42  Mon", WHITE, ImageFont.load_default(unit // 2))
    return image


def _window(draw, rng, box: tuple[int, ...], unit: int, title: str, table: bool = False) -> None:
    left, top, right, bottom = box
    draw.rectangle(box, WHITE, (90, 90, 90))
    draw.rectangle([left, top, right, top + unit], GREY, (90, 90, 90))
    draw.text((left + unit // 2, top + unit // 4), title, BLACK, ImageFont.load_default(unit // 2))
    for number, colour in enumerate(((230, 80, 70), (240, 190, 60), (90, 190, 90))):
        x = right - (number + 1) * unit * 4 // 5
        draw.ellipse([x, top + unit // 4, x + unit // 2, top + unit * 3 // 4], colour)
    inner = (left + unit // 2, top + unit * 3 // 2, right - unit // 2, bottom - unit // 2)
    if table:
        _table(draw, rng, (*inner[:3], inner[1] + (inner[3] - inner[1]) // 2), unit // 2)
    else:
        _text(draw, rng, (*inner[:3], inner[1] + (inner[3] - inner[1]) // 2), unit // 2)


def _text(draw, rng, box: tuple[int, ...], size: int) -> None:
    left, top, right, bottom = box
    font, x, y = ImageFont.load_default(size), left, top
    while y + size <= bottom:
        word = rng.choice(WORDS)
        if x + font.getlength(word) > right or rng.random() < 0.01:  # the line is full, or a paragraph ends
            x, y = left, y + size * 3 // 2
            continue
        draw.text((x, y), word, BLACK, font)
        x += font.getlength(word + " ")


def _table(draw, rng, box: tuple[int, ...], size: int) -> None:
    left, top, right, bottom = box
    font, rows, columns = ImageFont.load_default(size), max(2, (bottom - top) // (2 * size)), 4
    down, across = (bottom - top) // rows, (right - left) // columns
    draw.rectangle([left, top, left + columns * across, top + down], GREY)
    for row in range(rows + 1):
        draw.line([left, top + row * down, left + columns * across, top + row * down], BLACK)
    for column in range(columns + 1):
        draw.line([left + column * across, top, left + column * across, top + rows * down], BLACK)
    for row in range(rows):
        for column in range(columns):
            words = f"{rng.randrange(10000) / 100:.2f}" if row and column else rng.choice(WORDS)
            draw.text((left + column * across + size // 2, top + row * down + size // 2), words, BLACK, font)


def inputs_of(image: Image.Image, model, text: int = 66) -> dict[str, torch.Tensor]:
    """Inputs of a Qwen2.5-VL model: a picture, whose sides are multiples of a cell's, between random words."""
    vision, config = model.config.vision_config, model.config
    processor = Qwen2VLImageProcessor(
        patch_size=vision.patch_size, merge_size=vision.spatial_merge_size, do_resize=False,
        temporal_patch_size=vision.temporal_patch_size,
    )  # fmt: skip
    made = processor(images=[image], return_tensors="pt")
    grid = made["image_grid_thw"]
    tokens = int(grid.prod()) // vision.spatial_merge_size**2
    ids = torch.randint(10, 1000, (1, text + tokens), generator=torch.Generator().manual_seed(1))
    ids[:, text // 2 : text // 2 + tokens] = config.image_token_id
    inputs = {"input_ids": ids, "image_grid_thw": grid}
    inputs = ensure_mm_token_type_ids(inputs, config.image_token_id, config.video_token_id)
    pixels = made["pixel_values"].to(model.dtype)
    return {name: value.to(model.device) for name, value in (inputs | {"pixel_values": pixels}).items()}
