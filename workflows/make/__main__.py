import json
import shutil
import sys
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

from . import diffstyler, fastface, mmfs, transformers, zepo
from .editor_json import Level

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = [zepo, fastface, diffstyler, mmfs, transformers]
READY = "() => window.app?.extensionManager && LiteGraph.registered_node_types.AtelierSEACPatch"
LOAD = "async graph => { await app.loadGraphData(graph); return (await app.graphToPrompt()).output; }"


def text(graph: dict) -> str:
    """JSON with a line for every node, link and subgraph input: small, and changes show."""

    def lines(value, depth):
        if isinstance(value, dict) and depth < 4 and (depth == 0 or "nodes" in value or "subgraphs" in value):
            inner = [f"{json.dumps(key)}: {lines(item, depth + 1)}" for key, item in value.items()]
            return "{\n" + ",\n".join(inner) + "\n}"
        if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
            return "[\n" + ",\n".join(lines(item, depth + 1) for item in value) + "\n]"
        return json.dumps(value, ensure_ascii=False)

    return lines(graph, 0) + "\n"


def blueprint(info: dict, level: Level, definition: dict) -> dict:
    graph = Level(info)
    graph.subgraph(level, [0, 0], [300, 400])
    return graph.workflow(level.name, [definition], {})


def main(url: str) -> None:
    info = json.load(urllib.request.urlopen(url + "/object_info"))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(url, wait_until="domcontentloaded")
        page.wait_for_function(READY, timeout=120_000)
        for family in FAMILIES:
            for make in family.BLUEPRINTS:
                level, definition = make(info)
                (ROOT / "subgraphs").mkdir(exist_ok=True)
                (ROOT / "subgraphs" / f"{level.name}.json").write_text(
                    text(blueprint(info, level, definition)), encoding="utf-8"
                )
            for make in family.WORKFLOWS:
                name, api, level, definitions = make(info)
                graph = level.workflow(api, definitions, {"portrait_atelier": {"api": api}})
                (ROOT / "workflows" / f"{name}.json").write_text(text(graph), encoding="utf-8")
                twin = page.evaluate(LOAD, graph)
                (ROOT / "workflows" / "api" / f"{api}.json").write_text(
                    json.dumps(twin, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
                )
                print(f"{name}: {len(level.nodes)} nodes, {len(twin)} in all")


if __name__ == "__main__":
    main(*sys.argv[1:])
