"""One level of a graph, a surface or the inside of a subgraph, and its form in the editor's JSON."""

import uuid

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "IMAGECOMPARE"}
SPACE = uuid.UUID("6f0c1a52-53a1-4d5b-9f5b-2f9a3c0f7d11")
NOTE = {"color": "#432", "bgcolor": "#653"}
GROUP = "#3f789e"


class Level:
    """Nodes with their links. `info` describes the server's nodes (/object_info); `first` is the id of the first node.

    Every subgraph numbers its nodes from a hundred of its own: the editor would renumber equal ids, and with them
    those of the API form.
    """

    def __init__(self, info: dict, name: str = "", first: int = 1):
        self.info, self.name, self.next = info, name, first
        self.nodes, self.links, self.groups, self.inputs, self.outputs = {}, [], [], [], []

    @property
    def id(self) -> str:
        return unique("subgraph", self.name)

    def note(self, text: str, pos, size) -> None:
        self._add(
            {
                "type": "MarkdownNote",
                "title": "Read me",
                "pos": pos,
                "size": size,
                "flags": {},
                "mode": 0,
                "inputs": [],
                "outputs": [],
                "properties": {},
                "widgets_values": [text],
                **NOTE,
            }
        )

    def node(self, kind: str, pos, size, title: str = "", /, models=None, **values) -> int:
        """Add a node of class `kind`. `values`: widget values; a tuple (node, output) is a link. The id of the node."""
        info, inputs, widgets, links = self.info[kind], [], [], {}
        for name, type_, options, optional in specs(info):
            value = values.pop(name, None)
            if type_ in WIDGETS and not options.get("forceInput"):
                if isinstance(value, tuple):
                    links[name], value = value, None
                widgets.append(default(type_, options) if value is None else value)
                if not options.get("socketless"):
                    inputs.append({"name": name, "type": type_, "widget": {"name": name}, "link": None})
                if options.get("control_after_generate"):
                    widgets.append("fixed")
                if options.get("image_upload"):
                    inputs.append({"name": "upload", "type": "IMAGEUPLOAD", "widget": {"name": "upload"}, "link": None})
                    widgets.append("image")
                continue
            inputs.append({"name": name, "type": type_, "link": None, **({"shape": 7} if optional else {})})
            if value is not None:
                links[name] = value
        # As the editor orders them: on loading it may look a link up by its number in its own order.
        inputs.sort(key=lambda slot: "widget" in slot)
        if values:
            raise ValueError(f"{kind} has no input {', '.join(values)}")
        pack = "portrait-atelier" if kind.startswith("Atelier") else "comfy-core"
        properties = {"cnr_id": pack, "Node name for S&R": kind, **({"models": models} if models else {})}
        outputs = [
            {"name": name, "type": any_type(type_), "links": []}
            for name, type_ in zip(info["output_name"], info["output"])
        ]
        entry = {
            "type": kind,
            "title": title or info["display_name"] or kind,
            "pos": pos,
            "size": size,
            "flags": {},
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "properties": properties,
            **({"widgets_values": widgets} if widgets else {}),
        }
        return self._add(entry, links)

    def subgraph(self, level: "Level", pos, size, title: str = "", /, **values) -> int:
        """Add an instance of the subgraph `level`. `values` by the names of its inputs, as in `node`. Its id."""
        inputs, widgets, links = [], [], {}
        for slot in level.inputs:
            value = values.pop(slot["name"], None)
            inputs.append({"name": slot["name"], "type": slot["type"], "link": None, **named(slot)})
            if "widget" in slot:
                inputs[-1]["widget"] = {"name": slot["name"]}
                widgets.append(
                    level.widget(*slot["targets"][0]) if value is None or isinstance(value, tuple) else value
                )
            if isinstance(value, tuple):
                links[slot["name"]] = value
        if values:
            raise ValueError(f"{level.name} has no input {', '.join(values)}")
        outputs = [{"name": slot["name"], "type": slot["type"], "links": []} for slot in level.outputs]
        entry = {
            "type": level.id,
            "title": title or level.name,
            "pos": pos,
            "size": size,
            "flags": {},
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "properties": {"previewExposures": []},
            **({"widgets_values": widgets} if widgets else {}),
        }
        return self._add(entry, links)

    def input(self, name: str, *targets: tuple, label: str = "") -> None:
        """Give the subgraph an input that leads to `targets`, (node, input) each; where they are widgets it is one too."""
        slots = [self._slot("inputs", *target) for target in targets]
        entry = {"name": name, "type": slots[0][1]["type"], "label": label, "targets": targets, "links": []}
        if "widget" in slots[0][1]:
            entry["widget"] = True
        for (at, slot), (node, _) in zip(slots, targets):
            slot["link"] = self._link(-10, len(self.inputs), node, at, entry["type"])
            entry["links"].append(slot["link"])
        self.inputs.append(entry)

    def output(self, name: str, origin: tuple) -> None:
        """Give the subgraph the output `origin`, (node, output)."""
        at, slot = self._slot("outputs", *origin)
        slot["links"].append(self._link(origin[0], at, -20, len(self.outputs), slot["type"]))
        self.outputs.append({"name": name, "type": slot["type"], "links": [slot["links"][-1]]})

    def group(self, title: str, bounding) -> None:
        self.groups.append(
            {"id": len(self.groups) + 1, "title": title, "bounding": bounding, "color": GROUP, "flags": {}}
        )

    def widget(self, node: int, name: str):
        """The value of a widget of a node of this level."""
        at = 0
        for known, type_, options, _ in specs(self.info[self.nodes[node]["type"]]):
            if type_ in WIDGETS and not options.get("forceInput"):
                if known == name:
                    return self.nodes[node]["widgets_values"][at]
                at += 1 + bool(options.get("control_after_generate")) + bool(options.get("image_upload"))
        raise KeyError(name)

    def definition(self, description: str, left, right) -> dict:
        """The subgraph for `definitions`. `left` and `right`: places of its inputs and outputs."""

        def slots(entries, pos):
            return [
                {
                    "id": unique(self.name, pos, entry["name"]),
                    "name": entry["name"],
                    "type": entry["type"],
                    "linkIds": entry["links"],
                    **named(entry),
                    "pos": [pos[0] + 100, pos[1] + 20 + 20 * at],
                }
                for at, entry in enumerate(entries)
            ]

        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        return {
            "id": self.id,
            "version": 1,
            "revision": 0,
            "config": {},
            "name": self.name,
            "category": "Portrait Atelier",
            "description": description,
            "state": {
                "lastGroupId": len(self.groups),
                "lastNodeId": max(self.nodes),
                "lastLinkId": len(self.links),
                "lastRerouteId": 0,
            },
            "inputNode": {"id": -10, "bounding": [*left, 120, 40 + 20 * len(self.inputs)]},
            "outputNode": {"id": -20, "bounding": [*right, 120, 40 + 20 * len(self.outputs)]},
            "inputs": slots(self.inputs, left),
            "outputs": slots(self.outputs, right),
            "widgets": [],
            "nodes": list(self.nodes.values()),
            "groups": self.groups,
            "links": [dict(zip(names, link)) for link in self.links],
            "extra": {},
        }

    def workflow(self, name: str, definitions: list, extra: dict) -> dict:
        return {
            "id": unique("workflow", name),
            "revision": 0,
            "last_node_id": max(self.nodes),
            "last_link_id": len(self.links),
            "nodes": list(self.nodes.values()),
            "links": self.links,
            "groups": self.groups,
            "definitions": {"subgraphs": definitions},
            "config": {},
            "extra": extra,
            "version": 0.4,
        }

    def _add(self, entry: dict, links=()) -> int:
        number, self.next = self.next, self.next + 1
        self.nodes[number] = {"id": number, "order": len(self.nodes), **entry}
        for name in links:
            self.link(links[name], number, name)
        return number

    def link(self, origin: tuple, node: int, name: str) -> None:
        """From `origin`, (node, output), to an input of a node of this level."""
        (out, source), (into, target) = self._slot("outputs", *origin), self._slot("inputs", node, name)
        target["link"] = self._link(origin[0], out, node, into, source["type"])
        source["links"].append(target["link"])

    def _slot(self, side: str, node: int, name) -> tuple:
        slots = self.nodes[node][side]
        return next((at, slot) for at, slot in enumerate(slots) if name in (at, slot["name"]))

    def _link(self, *ends) -> int:
        self.links.append([len(self.links) + 1, *ends])
        return len(self.links)


def specs(info: dict):
    """(name, type, options, whether optional) per input, in the editor's order."""
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            kind, *options = info["input"][group][name]
            options = options[0] if options else {}
            if isinstance(kind, list):
                kind, options = "COMBO", {**options, "options": kind}
            yield name, any_type(kind), options, group == "optional"


def default(kind: str, options: dict):
    if "default" in options:
        return options["default"]
    return options["options"][0] if kind == "COMBO" else {"INT": 0, "FLOAT": 0, "BOOLEAN": False}.get(kind, "")


def any_type(kind: str) -> str:
    return "*" if kind == "COMFY_MATCHTYPE_V3" else kind


def named(slot: dict) -> dict:
    return {"label": slot["label"]} if slot.get("label") else {}


def unique(*words) -> str:
    """The same words give the same id in every run."""
    return str(uuid.uuid5(SPACE, "/".join(map(str, words))))
