"""The templates' thumbnails: what the demo model gives, over the graph: `python3 -m workflows.make.thumbnails URL`.

The server at URL must list the files that the workflows name (empty ones will do), else the editor draws error frames.
"""

import io
import json
import shutil
import sys

from PIL import Image, ImageDraw, ImageOps
from playwright.sync_api import sync_playwright

from .__main__ import READY, ROOT

SIDE, GAP = 560, 4
TITLES = ("Content", "Second content", "Face", "Style", "Style 1", "Style 2", "Found face", "Stylized face", "Redrawn face", "Result")
OPEN = """async ([graph, name]) => {
    await app.loadGraphData(graph, true, true, name, {openSource: 'template'});
    app.canvas.setDirty(true, true);
}"""
RUN = """() => new Promise((done, fail) => {
    app.api.addEventListener('execution_success', done, {once: true});
    app.api.addEventListener('execution_error', event => fail(Error(JSON.stringify(event.detail))), {once: true});
    app.queuePrompt(0);
})"""
SHOWN = """title => {
    const node = app.graph.nodes.find(node => node.title === title);
    return node && [...document.querySelectorAll(`[data-node-id="${node.id}"] img`)].find(picture => picture.naturalWidth)?.src;
}"""
BOX = """() => {
    const boxes = app.graph.nodes.map(node => document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect());
    const x = Math.min(...boxes.map(box => box.left)), y = Math.min(...boxes.map(box => box.top));
    return {x, y, width: Math.max(...boxes.map(box => box.right)) - x, height: Math.max(...boxes.map(box => box.bottom)) - y};
}"""


def picture(page, title: str) -> Image.Image:
    address = page.wait_for_function(SHOWN, arg=title).json_value()
    return Image.open(io.BytesIO(page.request.get(address).body())).convert("RGB")


def screenshot(page) -> Image.Image:
    """The graph alone, as wide as the thumbnail."""
    page.wait_for_timeout(2000)  # the editor's toasts and fading
    graph = Image.open(io.BytesIO(page.screenshot(clip=page.evaluate(BOX)))).convert("RGB")
    return graph.resize((SIDE, round(graph.height * SIDE / graph.width)), Image.Resampling.LANCZOS)


def main(url: str, pattern: str = "*") -> None:
    """`pattern`: the workflows' names; the demo of their family must be among them."""
    paths = (ROOT / "workflows").glob(f"{pattern}.json")
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    apis = {graph["extra"]["portrait_atelier"]["api"]: name for name, graph in files.items()}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        for setting, value in {"TutorialCompleted": True, "VueNodes.Enabled": True, "Minimap.Visible": False}.items():
            page.request.post(f"{url}/settings/Comfy.{setting}", data=json.dumps(value))
        page.goto(url, wait_until="domcontentloaded")
        page.wait_for_function(READY, timeout=120_000)
        page.wait_for_timeout(3000)
        rows = {}
        for api, name in sorted(
            apis.items(), key=lambda item: "_demo" not in item[0]
        ):  # demos first: the others show theirs
            page.evaluate(OPEN, [files[name], name])
            page.wait_for_timeout(2000)
            family = (
                "stylize" if "_seac_" in api or api.startswith("zepo") else api.replace("_regions", "").split("_")[0]
            )
            family += next((kind for kind in ("_regions", "_face", "_save") if api.endswith(kind)), "")
            if "_demo" in api:
                page.evaluate(RUN)
                page.wait_for_function(SHOWN, arg="Result")
                titles = [title for title in TITLES if page.evaluate(SHOWN, title)]
                rows[family] = [picture(page, title) for title in titles]
            graph, row = screenshot(page), rows.get(family, [])     # none: a family without a demo shows its graph alone
            made = Image.new("RGB", (SIDE, SIDE), (24, 24, 27))
            side = min(184, SIDE // len(row) - GAP) if row else 0
            top = (SIDE - side - GAP - graph.height) // 2
            for at, shown in enumerate(row):
                made.paste(ImageOps.fit(shown, (side, side)), ((SIDE - len(row) * (side + GAP)) // 2 + at * (side + GAP), top))
            if row and "_demo" not in api:
                ImageDraw.Draw(made).text(
                    (GAP + 4, top + side - 14),
                    "drawn by the demo model",
                    (255, 255, 255),
                    stroke_width=2,
                    stroke_fill=(0, 0, 0),
                )
            made.paste(graph, (0, top + side + GAP))
            made.save(ROOT / "workflows" / f"{name}.jpg", quality=88, optimize=True)
            print(name, len(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
