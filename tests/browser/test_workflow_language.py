"""The shipped workflows in an editor that speaks Chinese."""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = json.loads((ROOT / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))["portraitAtelier"]["workflows"]
FILES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "workflows").glob("*.json"))}
MARKED = {name: graph for name, graph in FILES.items() if "portrait_atelier" in graph.get("extra", {})}

# Load a workflow, and tell what a user reads of it at all levels, and what a run would get.
READ = """async graph => {
    await app.loadGraphData(graph);
    const levels = graph => [graph, ...graph.nodes.filter(node => node.subgraph).flatMap(node => levels(node.subgraph))];
    const found = levels(app.graph), nodes = found.flatMap(level => level.nodes);
    const faces = nodes.filter(node => node.subgraph).map(node => [...node.inputs, ...node.outputs, ...(node.widgets ?? [])]);
    return {
        titles: nodes.map(node => node.title),
        groups: found.flatMap(level => level.groups.map(group => group.title)),
        notes: nodes.filter(node => node.type === 'MarkdownNote').map(node => node.widgets[0].value),
        labels: faces.flat().map(slot => slot.label ?? slot.name),
        output: (await app.graphToPrompt()).output,
    };
}"""


def without_titles(output):
    return {node: {**entry, "_meta": None} for node, entry in output.items()}


def test_workflows_in_chinese(open_tab):
    """One tab for all: only what is read changes, and only in our own workflows."""
    tab = open_tab(Comfy_Locale="zh")
    english, chinese = set(TABLE) - set(TABLE.values()), set(TABLE.values()) - set(TABLE)
    try:
        for name, graph in MARKED.items():
            shown = tab.evaluate(READ, graph)
            assert not english & {*shown["titles"], *shown["groups"], *shown["labels"]}, name
            assert chinese & set(shown["titles"])
            for note in shown["notes"]:
                assert all(re.search("[\u4e00-\u9fff]", line) for line in note.split("\n") if line.strip()), note
            api = graph["extra"]["portrait_atelier"]["api"]
            twin = json.loads((ROOT / "workflows" / "api" / f"{api}.json").read_text(encoding="utf-8"))
            assert without_titles(shown["output"]) == without_titles(twin), name
        foreign = tab.evaluate(READ, {**graph, "extra": {}})
        assert not chinese & {*foreign["titles"], *foreign["groups"], *foreign["labels"]} and english & set(foreign["titles"])
        assert tab.errors == []
    finally:
        tab.context.close()
