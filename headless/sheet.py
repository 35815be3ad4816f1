"""A contact sheet: pictures in a grid, each under its label. It needs Pillow, so it may run as a program in another Python.

    python sheet.py < {"cells": [[label, path], ...], "columns": 3, "output": path}
"""
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

SIDE = 512  # pixels that a picture gets at most
GAP, LINE = 8, 22


def make(cells: list, columns: int, output: Path, python: "str | None") -> "str | None":
    """Write a PNG of `cells`, (label, path of a picture or None) row by row, and return None; else why there is none.

    `python`: one that has Pillow, for when the running one has not.
    """
    task = {"cells": [[label, path and str(path)] for label, path in cells], "columns": columns, "output": str(output)}
    if importlib.util.find_spec("PIL"):
        try:
            return draw(**task)
        except OSError as error:
            return str(error)
    if not python:
        return f"{sys.executable} has no Pillow: {sys.executable} -m pip install pillow"
    done = subprocess.run([python, __file__], input=json.dumps(task), capture_output=True, text=True)
    return (done.stderr.strip().splitlines() or ["it was stopped"])[-1] if done.returncode else None


def draw(cells: list, columns: int, output: str) -> None:
    from PIL import Image, ImageDraw, ImageFont
    try:
        font = ImageFont.load_default(16)
    except (TypeError, OSError):  # an older Pillow, or one without FreeType
        font = ImageFont.load_default()
    pictures = []
    for _, path in cells:
        picture = Image.new("RGB", (1, 1), "white")
        if path:
            with Image.open(path) as file:
                picture = file.convert("RGB")
        picture.thumbnail((SIDE, SIDE))
        pictures.append(picture)
    width = max([picture.width for picture in pictures] + [int(font.getlength(label)) for label, _ in cells])
    height = max(picture.height for picture in pictures) + LINE
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for number, ((label, path), picture) in enumerate(zip(cells, pictures)):
        left, top = GAP + number % columns * (width + GAP), GAP + number // columns * (height + GAP)
        if path:
            pen.text((left, top), label, fill="black", font=font)
            sheet.paste(picture, (left, top + LINE))
    sheet.save(output, format="PNG")


if __name__ == "__main__":
    draw(**json.load(sys.stdin))
