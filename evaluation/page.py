"""The page of a run: one HTML file with a thumbnail and all values of each picture, sorted by any column, offline.

Names of files and methods are foreign text. They are escaped, and the page's own rule lets no script run but the one
below.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
from pathlib import Path

from PIL import Image

from . import pictures
from .errors import EvaluationError

SIDE, MOST = 112, 2000  # pixels of a thumbnail; pictures that get one, of about 4 kB each, as a page has to open
SIDES = ("generated", "content", "style", "identity")

STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 16px; color-scheme: light dark }
table { border-collapse: collapse; margin: 8px 0 24px }
td, th { padding: 3px 8px; text-align: left; vertical-align: middle }
tr + tr td, tbody td { border-top: 1px solid #8884 } .number { text-align: right; font-variant-numeric: tabular-nums }
thead th { position: sticky; top: 0; background: Canvas; white-space: nowrap }
th button { all: unset; cursor: pointer; font-weight: 600 }
th button:focus-visible { outline: 2px solid }
th[aria-sort=ascending]::after { content: " \\2191" } th[aria-sort=descending]::after { content: " \\2193" }
i { display: inline-block; width: 112px; height: 112px; background: no-repeat center / contain }
.told { max-width: 40em; overflow-wrap: anywhere }
"""
SCRIPT = """
for (const table of document.querySelectorAll("table.sorted")) {
  table.tHead.addEventListener("click", event => {
    const head = event.target.closest("th"), body = table.tBodies[0];
    if (!head?.querySelector("button")) return;
    const sign = head.ariaSort === "ascending" ? -1 : 1, at = head.cellIndex;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const keyed = [...body.rows].map(row => [row.cells[at].dataset.value ?? "", row]);
    const numbers = head.classList.contains("number");
    // What has no value comes last either way.
    const order = (a, b) => numbers ? a - b : a.localeCompare(b, undefined, { numeric: true });
    keyed.sort(([a], [b]) => (a === "") - (b === "") || sign * order(a, b));
    for (const [, row] of keyed) body.append(row);
  });
}
"""


class Thumbnails:
    """Small pictures, each once in the page however many rows show it."""

    def __init__(self):
        self.numbers: dict[str, int | None] = {}  # path -> number of its rule; None for one that cannot be read
        self.rules: list[str] = []

    def cell(self, path: str | None) -> str:
        if path is None:
            return "<td></td>"
        if path not in self.numbers and len(self.rules) < MOST:
            data = thumbnail(Path(path))
            self.numbers[path] = len(self.rules) if data else None
            rule = f".t{len(self.rules)} {{ background-image: url(data:image/jpeg;base64,{data}) }}"
            self.rules += [rule] * bool(data)
        number = self.numbers.get(path)
        mark = "" if number is None else f'<i class="t{number}"></i>'
        return f'<td title="{escaped(path)}" data-value="{escaped(Path(path).name)}">{mark}</td>'


def thumbnail(path: Path) -> str | None:
    """A JPEG in base64."""
    try:
        picture = pictures.load(path).copy()
    except EvaluationError:  # told in the picture's row
        return None
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()


def escaped(value) -> str:
    """Foreign text for HTML; names that are no UTF-8 get question marks."""
    return html.escape(str(value).encode("utf-8", "replace").decode())


def words(value) -> str:
    # bdi: letters of a name that run from right to left turn nothing but the name.
    return f'<td class="told" data-value="{escaped(value)}"><bdi>{escaped(value)}</bdi></td>'


def number(value: float | None) -> str:
    if value is None:
        return '<td class="number"></td>'
    return f'<td class="number" data-value="{value!r}">{value:.4g}</td>'


def table(heads: list[tuple[str, bool]], rows: list[str]) -> str:
    """heads: (text, whether its column holds numbers)."""
    cells = "".join(f'<th{" class=number" * numeric}><button>{escaped(head)}</button></th>' for head, numeric in heads)
    return f'<table class="sorted"><thead><tr>{cells}</tr></thead><tbody>\n' + "\n".join(rows) + "\n</tbody></table>"


def page(report: dict, arrows: dict[str, str], tables: list[str]) -> str:
    """The HTML of a run's report (run.py writes it as JSON).

    arrows: metric -> "up" or "down"; tables: texts to show as they are.
    """
    methods = report["methods"]
    metrics = list(dict.fromkeys(metric for result in methods.values() for metric in result["metrics"]))
    heads = [(metric + {"up": " \u2191", "down": " \u2193"}.get(arrows.get(metric), ""), True) for metric in metrics]
    means = []
    for name, result in methods.items():
        cells = "".join(number(result["metrics"].get(metric, {}).get("mean")) for metric in metrics)
        means.append(f"<tr>{words(name)}{number(result['pictures'])}{cells}</tr>")
    thumbnails, rows = Thumbnails(), []
    items = [(name, item) for name, result in methods.items() for item in result["items"]]
    sides = [side for side in SIDES if any(side in item for _, item in items)]
    each = [metric for metric in metrics if any(metric in item["values"] for _, item in items)]
    for name, item in items:
        shown = "".join(thumbnails.cell(item.get(side)) for side in sides)
        told = "; ".join([*item["notes"], *item["errors"]])
        rows.append(f"<tr>{shown}{words(Path(item['generated']).name)}{words(name)}"
                    + "".join(number(item["values"].get(metric)) for metric in each) + f"{words(told)}</tr>")
    found = {metric: head for metric, head in zip(metrics, heads)}
    every = [(side, False) for side in (*sides, "name", "method")]
    every += [*(found[metric] for metric in each), ("notes", False)]
    notes = [f"{metric} is skipped: {why}" for metric, why in report["skipped"].items()]
    notes += [f"{name}: {line}" for name, result in methods.items() for line in result["notes"] + result["errors"]]
    notes += ["Interrupted: only a part was measured."] * (not report["complete"])
    notes += [f"The first {MOST} pictures have thumbnails."] * (len(thumbnails.rules) >= MOST)
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>How good the results are</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'">
<style>{STYLE}{chr(10).join(thumbnails.rules)}</style></head><body>
<h1>How good the results are</h1>
<p>Click a column's head to sort. Arrows point to better values. Means are over the pictures that have a value.</p>
{table([("method", False), ("pictures", True), *heads], means)}
{"".join(f"<pre>{escaped(text)}</pre>" for text in tables)}
<ul>{"".join(f"<li>{escaped(note)}</li>" for note in notes)}</ul>
{table(every, rows)}
<script>{SCRIPT}</script></body></html>
"""
