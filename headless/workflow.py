"""Workflows in ComfyUI's API format: find one, and set its values after checking them against the server's nodes."""
import copy
import json
import math
from pathlib import Path

from .client import Client, title
from .errors import AtelierError

SHIPPED = Path(__file__).resolve().parents[1] / "workflows" / "api"

PICTURES = ("LoadImage", "AtelierDemoPicture")  # nodes that a picture of the user's takes the place of

# option -> (node classes, title or None for any, input). An option sets every node that fits.
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "RandomNoise", "BasicScheduler", "CFGGuider", "AtelierFewStepPreset")
OPTIONS = {
    "prompt": (("CLIPTextEncode",), "Prompt", ("text",)),
    "negative": (("CLIPTextEncode",), "Negative prompt", ("text",)),
    "checkpoint": (("CheckpointLoaderSimple",), None, ("ckpt_name",)),
    "seed": (SAMPLERS, None, ("seed", "noise_seed")),
    "steps": (SAMPLERS, None, ("steps",)),
    "cfg": (SAMPLERS, None, ("cfg",)),
    "denoise": (SAMPLERS, None, ("denoise",)),
    "strength": (("AtelierSEACPatch",), None, ("strength",)),
    "style_enhancement": (("AtelierSEACPatch",), None, ("style_enhancement",)),
    "style_share": (("AtelierSEACPatch",), None, ("style_share",)),
    "merge": (("AtelierTokenMerge",), None, ("ratio",)),
}


def shipped() -> "list[str]":
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def load(name: str) -> dict:
    """The workflow called `name`: a shipped name, that of its card in the template browser, or the path of a file in API format."""
    card = SHIPPED.parent / f"{name}.json"
    if card.parent == SHIPPED.parent and card.is_file():  # the name that the template browser shows
        name = json.loads(card.read_text(encoding="utf-8"))["extra"]["portrait_atelier"]["api"]
    path = SHIPPED / f"{name}.json"
    if name not in shipped():
        path = Path(name)
        if not path.is_file():
            raise AtelierError(f"no workflow {name!r}: it is neither a file nor one of {', '.join(shipped())} in {SHIPPED}")
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AtelierError(f"cannot read the workflow {path}: {error}") from error
    if isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list):
        twin = ((workflow.get("extra") or {}).get("portrait_atelier") or {}).get("api")
        raise AtelierError(f"{path} is in the editor's format: " + (f"for the command it is --workflow {twin}; or, " if twin in shipped() else "")
                           + "save it there with File > Export (API), and give that file")
    if not isinstance(workflow, dict) or not workflow or not all(
        isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict) for node in workflow.values()
    ):
        raise AtelierError(f"{path} is no ComfyUI workflow in API format: its nodes need class_type and inputs")
    return workflow


def titled(workflow: dict, classes, wanted: "str | None") -> "list[str]":
    """The ids of all nodes of these classes with the title `wanted`; None: any title."""
    return [node for node, entry in workflow.items()
            if entry["class_type"] in classes and wanted in (None, title(workflow, node))]


class Editor:
    """Sets values in a copy of `workflow`, each checked against the node descriptions of the server behind `client`.

    `lists` gathers what was given as several values, as in --seed 1,2: {where it was said: [(node, input, values)]}.

    Raises AtelierError at once when the server lacks a node class of the workflow.
    """

    def __init__(self, workflow: dict, name: str, client: Client):
        self.workflow, self.name, self.client = copy.deepcopy(workflow), name, client
        self.lists: "dict[str, list[tuple[str, str, list]]]" = {}
        classes = {node["class_type"] for node in self.workflow.values()}
        self.info = {kind: client.node_info(kind) for kind in sorted(classes)}
        missing = [kind for kind, info in self.info.items() if info is None]
        if missing:
            raise AtelierError(
                f"the ComfyUI at {client.url} has no node {', '.join(missing)}, which workflow {name} needs: "
                f"install the node pack there (for Atelier nodes, this one) or see its log for why it did not load"
            )

    def set_picture(self, wanted: str, value: str) -> None:
        """Let the picture nodes titled `wanted` load `value`, the answer of Client.upload: Load Image takes their place."""
        nodes = titled(self.workflow, PICTURES, wanted)
        if not nodes:
            places = ", ".join(dict.fromkeys(title(self.workflow, node) for node in titled(self.workflow, PICTURES, None)))
            raise AtelierError(f'workflow {self.name} has no Load Image node titled "{wanted}"; its pictures: {places or "none"}')
        for node in nodes:
            self.workflow[node] = {"class_type": "LoadImage", "inputs": {"image": value}, "_meta": {"title": wanted}}

    def set_option(self, option: str, value) -> None:
        """Set one of OPTIONS wherever it fits."""
        classes, wanted, names = OPTIONS[option]
        places = [
            (node, name) for node in titled(self.workflow, classes, wanted) for name in names
            if name in self.inputs(node)
        ]
        flag = "--" + option.replace("_", "-")
        if not places:
            what = " or ".join(classes) + (f' titled "{wanted}"' if wanted else "")
            fitting = [name for name in shipped() if any(node["class_type"] in classes for node in load(name).values())]
            raise AtelierError(f"{flag} fits nothing in workflow {self.name}: it has no node {what}; "
                               f"with --workflow it fits {', '.join(fitting) or 'your own workflows only'}")
        for node, name in places:
            if option == "checkpoint":  # models.check says more about a wrong one
                self.workflow[node]["inputs"][name] = value
            else:
                self._set(node, name, value, flag)
        if option == "negative":  # words in place of the zeros that SDXL takes for no prompt
            for node in titled(self.workflow, ("ComfySwitchNode",), "Which null prompt"):
                self.workflow[node]["inputs"]["switch"] = False

    def set_node(self, wanted: str, name: str, value, flag: str) -> None:
        """Set an input of every node with the title or class `wanted`; `flag` is the option that says so."""
        nodes = self._named(wanted)
        if not nodes:
            raise AtelierError(f"{flag}: workflow {self.name} has no node {wanted}")
        for node in nodes:
            self._set(node, name, value, flag)

    def set_input(self, assignment: str) -> None:
        """Apply "NODE.INPUT=VALUE"; NODE is an id, a title or a class that only one node has."""
        target, equals, value = assignment.partition("=")
        # Titles and input names may hold dots: take the first split that names a node.
        dots = [at for at, letter in enumerate(target) if letter == "."]
        if not equals or not dots:
            raise AtelierError(f"--set {assignment}: write it as NODE.INPUT=VALUE, as KSampler.steps=4")
        for at in dots:
            nodes = self._named(target[:at].strip())
            if len(nodes) > 1:
                ids = ", ".join(f'{node} "{title(self.workflow, node)}"' for node in nodes)
                raise AtelierError(f"--set {assignment}: several nodes are called {target[:at]!r}; name one by its id: {ids}")
            if nodes:
                return self._set(nodes[0], target[at + 1:].strip(), value, f"--set {assignment}")
        known = ", ".join(f'{node} "{title(self.workflow, node)}"' for node in self.workflow)
        raise AtelierError(f"--set {assignment}: workflow {self.name} has no such node; it has {known}")

    def _named(self, name: str) -> "list[str]":
        if name in self.workflow:
            return [name]
        called = [node for node in self.workflow if title(self.workflow, node) == name]
        return called or [node for node, entry in self.workflow.items()
                          if name in (entry["class_type"], self.info[entry["class_type"]].get("display_name"))]

    def inputs(self, node: str) -> dict:
        """{input: its description} of a node."""
        groups = self.info[self.workflow[node]["class_type"]]["input"]
        return {name: spec for group in ("required", "optional") for name, spec in (groups.get(group) or {}).items()}

    def _set(self, node: str, name: str, value, where: str) -> None:
        entry, known = self.workflow[node], self.inputs(node)
        if name not in known and name not in entry["inputs"]:
            raise AtelierError(
                f'{where}: node "{title(self.workflow, node)}" ({entry["class_type"]}) has no input {name!r}; '
                f"it has {', '.join(known) or 'none'}"
            )
        # An input that only the workflow knows belongs to a node with changing inputs: the server checks it.
        spec = known.get(name)
        values = listed(spec, str(value), where) if spec else [value]
        entry["inputs"][name] = values[0]
        if len(values) > 1:
            self.lists.setdefault(where, []).append((node, name, values))


def choices(spec) -> "list | None":
    """The values of a choice input in ComfyUI's node description, or None for any other input."""
    if isinstance(spec[0], list):
        return spec[0]
    return spec[1].get("options") if spec[0] == "COMBO" and len(spec) > 1 else None


def listed(spec, text: str, where: str) -> list:
    """The values in `text`: one, or several with commas between for numbers, switches and choices. Texts keep their commas."""
    parts = [part.strip() for part in text.split(",")]
    one = spec[0] not in ("INT", "FLOAT", "BOOLEAN") and (choices(spec) is None or text in map(str, choices(spec)))
    if one or len(parts) == 1:
        return [checked(spec, text, where)]
    try:
        return list(dict.fromkeys(checked(spec, part, where) for part in parts))
    except AtelierError as error:
        raise AtelierError(f"{error}; commas separate several values, and decimals take a point") from error


def checked(spec, text: str, where: str):
    """`text` as the value that an input described by `spec` takes: number, switch, choice or text.

    Raises AtelierError, with `where` in front, for a wrong type, a value outside the range or an unknown choice.
    """
    kind, limits = spec[0], spec[1] if len(spec) > 1 else {}
    options = choices(spec)
    if options is not None:
        found = [option for option in options if str(option) == text]
        if not found:
            shown = ", ".join(map(str, options[:30])) + (", ..." if len(options) > 30 else "")
            raise AtelierError(f"{where}: {text!r} is no choice here; choose from {shown or 'nothing: the list is empty'}")
        return found[0]
    if kind == "STRING":
        return text
    if kind == "BOOLEAN":
        words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
        if text.strip().lower() not in words:
            raise AtelierError(f"{where}: {text!r} is neither true nor false")
        return words[text.strip().lower()]
    if kind.startswith("COMFY_"):  # a widget whose choices depend on others: the server checks it
        return text
    if kind not in ("INT", "FLOAT"):
        raise AtelierError(f"{where}: this input is a {kind} socket; only numbers, texts, switches and choices can be set")
    try:
        value = int(text) if kind == "INT" else float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise AtelierError(f"{where}: {text!r} is no {'whole number' if kind == 'INT' else 'number'}")
    low, high = limits.get("min", -math.inf), limits.get("max", math.inf)
    if not low <= value <= high:
        raise AtelierError(f"{where}: {text} is out of range; it goes from {low} to {high}")
    return value
