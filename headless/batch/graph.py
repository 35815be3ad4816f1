"""The workflow that a worker runs for a row, from the workflow in API format: pure changes of the graph."""
import copy
import hashlib
import json

from ..client import title
from ..errors import AtelierError
from ..workflow import PICTURES, titled

EXTRACT, MERGE, SAVE, LOAD, NOISE = ("Atelier" + name for name in (
    "ConsistencyFeatureExtract", "TokenMerge", "SaveFeatures", "LoadFeatures", "SameNoise"))
SAMPLER, ENCODE, SCALE, JOIN = "KSampler", "VAEEncode", "ImageScale", "LatentBatch"
# What may follow a VAE Encode for several contents to go through together: each gives picture i for picture i.
SAMPLERS = ("lcm", "euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "ddpm", "euler", "heun", "dpm_2", "dpmpp_2m", "ddim", "lms", "ipndm",
            "deis", "uni_pc")
TOGETHER = {EXTRACT, MERGE, "AtelierSEACPatch", SAMPLER, "VAEDecode", "SaveImage"}


def links(entry: dict) -> "list[str]":
    """The ids of the nodes that a node takes something from."""
    return [value[0] for value in entry["inputs"].values() if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)]


def ancestors(graph: dict, nodes) -> "set[str]":
    """These nodes and all that they are made from."""
    found, todo = set(), [node for node in nodes if node in graph]
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += [other for other in links(graph[node]) if other in graph]
    return found


def descendants(graph: dict, nodes) -> "set[str]":
    """These nodes and all that is made from them."""
    found, before = set(nodes), 0
    while len(found) > before:
        before = len(found)
        found |= {node for node, entry in graph.items() if found.intersection(links(entry))}
    return found


def result_only(graph: dict) -> dict:
    """The nodes that the saved picture needs, without previews and comparisons. AtelierError where no node saves one."""
    saving = [node for node, entry in graph.items() if entry["class_type"] == "SaveImage"]
    results = [node for node in saving if title(graph, node) == "Result"] or saving
    if not results:
        raise AtelierError("the workflow saves no picture: it needs a Save Image node")
    needed = ancestors(graph, results[:1])
    return {node: copy.deepcopy(entry) for node, entry in graph.items() if node in needed}


def result_node(graph: dict) -> str:
    return next(node for node, entry in graph.items() if entry["class_type"] == "SaveImage")


def kept_features(graph: dict, first: str, changing) -> "list[str]":
    """The nodes whose features come from pictures titled as in `changing` and not from those titled `first`."""
    own = set(titled(graph, PICTURES, first))
    others = {node for wanted in changing for node in titled(graph, PICTURES, wanted)}
    found = {node for node, entry in graph.items() if entry["class_type"] in (EXTRACT, MERGE)
             and (made := ancestors(graph, [node])) & others and not made & own}
    return sorted(node for node in found
                  if any(node in links(entry) for other, entry in graph.items() if other not in found))


def model_of(graph: dict, node: str) -> list:
    """The link to the model that the features of a node came from."""
    while graph[node]["class_type"] == MERGE:
        node = graph[node]["inputs"]["features"][0]
    return graph[node]["inputs"]["model"]


def key(graph: dict, node: str) -> str:
    """Equal for features that are equal: made from equal files by equal nodes."""
    made = {other: [graph[other]["class_type"], graph[other]["inputs"]] for other in sorted(ancestors(graph, [node]))}
    return hashlib.sha256(json.dumps([node, made], sort_keys=True).encode()).hexdigest()


def with_files(graph: dict, saved: "dict[str, str]", loaded: "dict[str, str]") -> dict:
    """The graph in which the features of the nodes `saved` go through a Save Features, {node: name of the file}, and those of
    `loaded` come from a file, {node: its name in the list}, without what only they needed."""
    changed = {node: copy.deepcopy(entry) for node, entry in graph.items()}
    for node, name in saved.items():
        keep = f"{node}.save"
        for entry in changed.values():
            for item, value in entry["inputs"].items():
                if value == [node, 0]:
                    entry["inputs"][item] = [keep, 0]
        changed[keep] = {"class_type": SAVE, "_meta": {"title": "Keep the features"}, "inputs": {
            "model": model_of(graph, node), "features": [node, 0], "name": name, "replace": True}}
    for node, name in loaded.items():
        changed[node] = {"class_type": LOAD, "inputs": {"model": model_of(graph, node), "file": name}, "_meta": {"title": title(graph, node)}}
    needed = ancestors(changed, [result_node(graph)])
    return {node: entry for node, entry in changed.items() if node in needed}


def can_join(graph: dict, first: str) -> bool:
    """Whether several pictures titled `first` can go through in one sampler batch, each as it would alone."""
    pictures = set(titled(graph, PICTURES, first))
    made = descendants(graph, pictures)
    encoders = {node for node in made if graph[node]["class_type"] == ENCODE}
    after = descendants(graph, encoders)
    before = made - after
    sized = all(scale["class_type"] == SCALE and scale["inputs"].get("width") and scale["inputs"].get("height")
                and scale["inputs"].get("crop") == "center" for scale in (graph[graph[node]["inputs"]["pixels"][0]] for node in encoders))
    inside = all(node in before | encoders for node, entry in graph.items() if before.intersection(links(entry)))
    known = all(graph[node]["inputs"].get("sampler_name") in SAMPLERS for node in after if graph[node]["class_type"] == SAMPLER)
    return bool(encoders) and sized and inside and known and all(graph[node]["class_type"] in TOGETHER for node in after - encoders)


def joined(graph: dict, first: str, images: "list[str]") -> dict:
    """The graph with all these `images`, values of Load Image, as one batch of latents; see can_join.

    Every latent keeps the number 0 in its batch_index, so that the sampler gives all the noise of the first; Same Noise
    does that for the noise that samplers add in every step.
    """
    pictures = set(titled(graph, PICTURES, first))
    made = descendants(graph, pictures)
    encoders = {node for node in made if graph[node]["class_type"] == ENCODE}
    chain = (made - descendants(graph, encoders)) | encoders
    found = {node: copy.deepcopy(entry) for node, entry in graph.items() if node not in chain}
    for number, image in enumerate(images):
        for node in chain:
            entry = copy.deepcopy(graph[node])
            for name, value in entry["inputs"].items():
                if isinstance(value, list) and value and value[0] in chain:
                    entry["inputs"][name] = [f"{value[0]}.{number}", value[1]]
            if node in pictures:
                entry["inputs"]["image"] = image
            found[f"{node}.{number}"] = entry
    for node in encoders:
        last = f"{node}.0"
        for number in range(1, len(images)):
            name = node if number == len(images) - 1 else f"{node}.with.{number}"
            found[name] = {"class_type": JOIN, "inputs": {"samples1": [last, 0], "samples2": [f"{node}.{number}", 0]}, "_meta": {"title": "Several contents"}}
            last = name
    for node in [node for node, entry in found.items() if entry["class_type"] == SAMPLER]:
        found[f"{node}.noise"] = {"class_type": NOISE, "inputs": {"model": found[node]["inputs"]["model"]}, "_meta": {"title": "Same Noise"}}
        found[node]["inputs"]["model"] = [f"{node}.noise", 0]
    return found


def unet_rows(graph: dict) -> int:
    """Rows that the sampling of one result sends through the network: steps, times two with guidance. 0 where it cannot be told."""
    rows = 0
    for entry in graph.values():
        if entry["class_type"] in ("KSampler", "KSamplerAdvanced"):
            steps, cfg = entry["inputs"].get("steps"), entry["inputs"].get("cfg")
            if isinstance(steps, int) and isinstance(cfg, (int, float)):
                rows += steps * (1 if cfg == 1 else 2)
    return rows


def size(graph: dict) -> "tuple[int, int]":
    """(width, height) of a result, as far as the graph says it; else 1024 x 1024."""
    for kind in (SCALE, "EmptyLatentImage"):
        for entry in graph.values():
            width, height = entry["inputs"].get("width"), entry["inputs"].get("height")
            if entry["class_type"] == kind and isinstance(width, int) and isinstance(height, int) and width and height:
                return width, height
    return 1024, 1024
