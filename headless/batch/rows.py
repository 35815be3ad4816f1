"""What a batch makes: rows with pictures, settings and a name, from folders, globs and CSV files."""
import csv
import glob
import itertools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator

from ..errors import AtelierError
from ..pictures import TITLES
from ..workflow import OPTIONS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".heic")
SIDES = tuple(title.lower() for title in TITLES)  # content, style, face
OUTPUT = "output"  # the column that names the result
LONGEST = 80  # letters of one value in a name


@dataclass(frozen=True)
class Entry:
    """What one line of a CSV, or one picture of a folder, says: pictures {title: path}, settings {option or NODE.INPUT: text}."""

    pictures: dict
    settings: dict = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Row(Entry):
    """One result. `name` is its file's, without suffix, below the output folder; `number` counts rows from 1."""

    number: int = 0


def entries(given: str, side: str) -> "list[Entry]":
    """The entries that --content, --style or --face names. AtelierError for none, and for a CSV that cannot be understood."""
    path, said = Path(given).expanduser(), f"--{side} {given}"
    if path.suffix.lower() == ".csv":
        return table(path, side)
    if path.is_dir():
        try:
            found = sorted(entry.path for entry in os.scandir(path)
                           if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") and entry.is_file())
        except OSError as error:
            raise AtelierError(f"{said} cannot be read: {error.strerror}") from error
        if not found:
            raise AtelierError(f"{said}: there is no picture in {path.resolve()}; pictures end in {', '.join(SUFFIXES)}")
    elif path.is_file():
        found = [str(path)]
    else:
        found = sorted(name for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
        if not found:
            raise AtelierError(f"{said}: there is no such file or folder, and no file fits it as a pattern, seen from {Path.cwd()}")
    return [Entry({side.title(): Path(name)}) for name in found]


def table(path: Path, side: str) -> "list[Entry]":
    """The lines of a CSV file with a column `side`. Pictures are looked for beside the file."""
    said = f"--{side} {path}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = {name: name.strip().lower().replace("-", "_") if "." not in name else name.strip() for name in reader.fieldnames or []}
            unknown = [name for name, column in columns.items() if column not in (*SIDES, OUTPUT, *OPTIONS) and "." not in column]
            if side not in columns.values():
                raise AtelierError(f"{said} has no column '{side}': its columns are {', '.join(columns) or 'none'}, and the first line names them")
            if unknown:
                raise AtelierError(f"{said}: column '{unknown[0]}' is nothing that can be set: columns are {', '.join((*SIDES, OUTPUT, *OPTIONS))}, "
                                   "and NODE.INPUT as for --set")
            found = []
            for line in reader:
                if any("\0" in text for text in line.values() if isinstance(text, str)):
                    raise AtelierError(f"{said}, line {reader.line_num}: there is a NUL in it, so it is no text file")
                if None in line or None in line.values():
                    raise AtelierError(f"{said}, line {reader.line_num}: it has {'more' if None in line else 'fewer'} cells than the {len(columns)} "
                                       "columns; a text with commas takes quotes")
                cells = {columns[name]: text.strip() for name, text in line.items() if text.strip()}
                pictures = {name.title(): path.parent / Path(cells.pop(name)).expanduser() for name in SIDES if name in cells}
                if side.title() not in pictures:
                    raise AtelierError(f"{said}, line {reader.line_num}: the cell of '{side}' is empty")
                found.append(Entry(pictures, cells, cells.pop(OUTPUT, "")))
    except (OSError, UnicodeError, csv.Error) as error:
        raise AtelierError(f"{said} cannot be read as a CSV file in UTF-8: {error}") from error
    if not found:
        raise AtelierError(f"{said} has no lines below its columns")
    return found


class Rows:
    """All rows: every entry of each side with every one of the others. Made one content at a time, as there may be millions."""

    def __init__(self, sides: "dict[str, list[Entry]]", pattern: "str | None" = None):
        self.first, *self.others = sides.values()
        self.pattern = pattern or "_".join("{%s}" % side for side in sides)
        pictures = [title for side in sides.values() for title in side[0].pictures]
        twice = [title for title in dict.fromkeys(pictures) if pictures.count(title) > 1]
        if twice:
            raise AtelierError(f"the {twice[0].lower()} picture is given twice: by --{twice[0].lower()} and by a column of a CSV file; leave one out")
        self.check_names()

    def __len__(self) -> int:
        count = len(self.first)
        for side in self.others:
            count *= len(side)
        return count

    def groups(self) -> "Iterator[list[Row]]":
        """The rows of one first picture at a time, those of equal other pictures together."""
        combined = list(itertools.product(*self.others))
        places = {}  # first picture -> numbers of its entries, in the order of the call
        for at, entry in enumerate(self.first):
            places.setdefault(tuple(sorted(entry.pictures.items()))[:1] if not self.others else at, []).append(at)
        for at in places.values():
            rows = [self.row(self.first[i], others, i * len(combined) + j + 1) for i in at for j, others in enumerate(combined)]
            yield sorted(rows, key=lambda row: (row.settings.get("checkpoint", ""), [str(path) for path in row.pictures.values()]))

    def row(self, entry: Entry, others: tuple, number: int) -> Row:
        pictures, settings, name = dict(entry.pictures), dict(entry.settings), entry.name
        for other in others:
            pictures |= other.pictures
            settings |= other.settings
            name = f"{name}_{other.name}".strip("_")
        if not name:
            values = {side: Path(pictures[side.title()]).stem for side in SIDES if side.title() in pictures} | settings
            try:
                name = self.pattern.format_map({**{key: clean(value) for key, value in values.items()}, "row": number})
            except KeyError as error:
                raise AtelierError(f"--names {self.pattern}: there is no {error.args[0]!r} here; known are {', '.join((*values, 'row'))}") from error
            except (ValueError, IndexError, AttributeError) as error:
                raise AtelierError(f"--names {self.pattern} is no pattern: {error}; write it as {{content}}_{{style}}") from error
        return Row(pictures, settings, name, number)

    def check_names(self) -> None:
        """AtelierError where two rows would write one file, or one would be written outside of the output folder."""
        seen: "dict[int, int]" = {}
        for group in self.groups():
            for row in group:
                parts = re.split(r"[/\\]", row.name)
                if any(not part.strip(". ") for part in parts) or Path(row.name).is_absolute() or ":" in row.name or "\0" in row.name:
                    raise AtelierError(f"row {row.number} would be called {row.name!r}, which is no file below the output folder: "
                                       "choose other names with --names or in the column 'output'")
                key = hash(row.name.casefold())  # some systems take A and a for one name
                if key in seen:
                    raise AtelierError(f"rows {seen[key]} and {row.number} would both be called {row.name}, made from "
                                       f"{', '.join(str(path) for path in row.pictures.values())}: give a pattern that tells them apart, as "
                                       "--names {row}_{content}, or rename a picture")
                seen[key] = row.number


def clean(value) -> str:
    """A value as part of a file's name, on any system."""
    return re.sub(r'[<>:"|?*\\/\x00-\x1f]+', "-", str(value))[:LONGEST].strip(". ") or "-"
