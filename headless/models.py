"""The files of weights: what each workflow needs, where it is looked for, and where it comes from. The command `models`.

models.json has one entry per file: name and folder below models/, the page to get it from and its licence; where that
matters also its size, direct address, what to know about it, and the family of checkpoints it belongs to. A few-step LoRA
has the kind of distilled model it makes, and the steps it was made for.
"""
import json
import os
import subprocess
from pathlib import Path

from . import workflow as workflows
from .checkpoint import inspect
from .client import Client, title
from .environment import HOME, ROOT, environment
from .errors import AtelierError
from .progress import Display

# Inputs that name a file of weights, and its folder below models/.
INPUTS = {
    ("CheckpointLoaderSimple", "ckpt_name"): "checkpoints", ("LoraLoaderModelOnly", "lora_name"): "loras",
    ("UNETLoader", "unet_name"): "diffusion_models", ("CLIPLoader", "clip_name"): "text_encoders", ("VAELoader", "vae_name"): "vae",
    ("AtelierFastSAMMaskBlend", "lora_name"): "loras", ("CLIPVisionLoader", "clip_name"): "clip_vision",
    ("AtelierFaceAdapterLoader", "file"): "ipadapter", ("AtelierFaceAnalysisLoader", "pack"): "insightface",
    ("AtelierFastSAMLoader", "file"): "fastsam", ("AtelierCLIPSimilarityLoader", "model"): "clip_vision",
    ("AtelierCLIPSimilarityLoader", "dino"): "dino", ("AtelierMMFSLoader", "file"): "mmfs",
    ("AtelierStyleGANLoader", "file"): "stylegan",
    ("LoadMediaPipeFaceLandmarker", "model_name"): "detection",
    ("AtelierLoadFeatures", "file"): "features",
}
NONE = "none"  # what an input says that takes no file


def entries() -> "list[dict]":
    return json.loads(Path(__file__).with_name("models.json").read_text(encoding="utf-8"))


def entry(name: str, folder: str) -> "dict | None":
    return next((entry for entry in entries() if (entry["name"], entry["folder"]) == (name, folder)), None)


def source(name: str, folder: str) -> str:
    """Where a file comes from, in a few words; empty for one that is not known here."""
    known = entry(name, folder) or {}
    return "; ".join(text for text in (known.get("page") and f"get it from {known['page']}", known.get("note")) if text)


def needs(workflow: dict) -> "list[tuple[str, str, str, str]]":
    """(node id, input, file, folder) for each file of weights that a workflow names."""
    return [(node, name, value, INPUTS[entry["class_type"], name]) for node, entry in workflow.items()
            for name, value in entry["inputs"].items()
            if (entry["class_type"], name) in INPUTS and isinstance(value, str) and value != NONE]


def check(editor: workflows.Editor) -> None:
    """Every file that the workflow names must be in the server's lists. AtelierError with folders, page and what is there."""
    for node, name, wanted, folder in needs(editor.workflow):
        known = workflows.choices(editor.inputs(node)[name])
        if known is None or wanted in known:
            continue
        called, folders = title(editor.workflow, node), where(editor.client, folder)
        found = f"looked in {folders}; found {', '.join(map(str, known[:20])) or 'none'}"
        if folder == "checkpoints":
            more = source(wanted, folder)
            raise AtelierError(f"checkpoint {wanted!r} not found; {found}; give --checkpoint one of these or, without --server, the path "
                               f"of a file" + (f"; or {more}" if more else ""))
        raise AtelierError(f'{folder}/{wanted} not found, which node "{called}" needs; {found}; {source(wanted, folder) or "put it there"}; '
                           f"python3 atelier.py models lists all files; with another one: --set \"{called}.{name}=FILE\"")


def where(client: Client, folder: str) -> str:
    """The folders to put such a file into; what ComfyUI saved itself, in its output folder, it finds as well."""
    folders = [path for path in client.model_folders(folder) if Path(path).parent.name != "output"]
    return ", ".join(folders) or f"the folders of {client.url}"


# --- the command

def report(server: "str | None", display: Display) -> str:
    """The answer of the command `models`: of the ComfyUI at the address `server`, else of the folders of this machine's."""
    return "\n".join(table(*(served(server) if server else local(display))))


def local(display: Display) -> "tuple[dict, dict]":
    """({folder: paths of folders}, {folder: {name: path}}) of the ComfyUI that the other commands use, without starting it."""
    names = sorted(set(INPUTS.values()))
    if os.environ.get("COMFYUI_PATH"):
        folders = asked(environment(display), names)
    else:
        folders = {name: [str(HOME / "base" / "models" / name)] for name in names}
    return folders, {name: {file: path for folder in reversed(paths) for file, path in files(Path(folder)).items()}
                     for name, paths in folders.items()}


def asked(env, names: list) -> "dict[str, list[str]]":
    """The folders of a user's ComfyUI, with its extra_model_paths.yaml, which takes its Python to read."""
    code = ("import json, sys; names = json.loads(sys.argv.pop()); sys.path.insert(0, '.'); import os, folder_paths, utils.extra_config; "
            "os.path.exists('extra_model_paths.yaml') and utils.extra_config.load_extra_path_config('extra_model_paths.yaml'); "
            "print(json.dumps({name: (folder_paths.folder_names_and_paths.get(name) or [[]])[0] for name in names}))")
    done = subprocess.run([env.python, "-c", code, json.dumps(names)], cwd=env.comfyui, env=env.variables, capture_output=True, text=True)
    if done.returncode:
        raise AtelierError(f"cannot read the model folders of {env.comfyui}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    # The command's ComfyUI has its own base folder, and every folder below models/ of the user's.
    own = {name: [str(HOME / "base" / "models" / name), str(Path(env.comfyui) / "models" / name)] for name in names}
    return {name: list(dict.fromkeys(own[name] + found[name])) for name in names}


def files(folder: Path) -> "dict[str, str]":
    """{name below `folder`: path} of its files and folders; links are followed, each folder once."""
    found, seen = {}, set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        for name in folders + names:
            path = Path(place, name)
            found[path.relative_to(folder).as_posix()] = str(path)
    return found


def served(url: str) -> "tuple[dict, dict]":
    """As `local`, from what a running server lists in its nodes."""
    client = Client(url)
    client.version()
    folders, lists = {}, {}
    for (kind, name), folder in INPUTS.items():
        info = client.node_info(kind)
        spec = ((info or {}).get("input", {}).get("required") or {}).get(name) or ((info or {}).get("input", {}).get("optional") or {}).get(name)
        lists.setdefault(folder, {}).update({file: None for file in (workflows.choices(spec) or [] if spec else [])})
        folders[folder] = client.model_folders(folder) or [f"models/{folder} of {client.url}"]
    return folders, lists


def table(folders: dict, lists: dict) -> "list[str]":
    """The lines of the answer: per workflow what it needs and whether it is there, then the missing files with their pages."""
    known = {(entry["name"], entry["folder"]): entry for entry in entries()}
    families: "dict[str, list[str]]" = {}  # family -> checkpoints that are there
    for name, path in lists.get("checkpoints", {}).items():
        try:
            if path and path.endswith(".safetensors"):
                families.setdefault(inspect(Path(path)).family, []).append(name)
        except AtelierError:  # not for portraits, or damaged
            pass
    width = max(map(len, workflows.shipped())) + 2
    lines, missing = ["Workflow".ljust(width) + "Files below models/"], {}
    for workflow in workflows.shipped():
        rows = []
        for _, _, name, folder in needs(workflows.load(workflow)):
            there = name in lists.get(folder, {})
            others = families.get(known.get((name, folder), {}).get("family"), []) if folder == "checkpoints" else []
            if not there and not others:
                missing[name, folder] = None
            what = "there  " if there else "missing"
            instead = f"; there: {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}" if others and not there else ""
            rows.append(f"{'other  ' if instead else what}  {folder}/{name}{instead}")
        rows = list(dict.fromkeys(rows)) or ["nothing to get: the demo model is in this folder"]
        lines += [(workflow if not at else "").ljust(width) + row for at, row in enumerate(rows)]
    lines += ["", "Looked in"] + [f"  {folder.ljust(12)} {path}" for folder, paths in sorted(folders.items()) for path in paths]
    if not os.environ.get("COMFYUI_PATH") and (ROOT.parents[1] / "main.py").is_file() and ROOT.parent.name == "custom_nodes":
        lines += [f"  COMFYUI_PATH={ROOT.parents[1]} in front of the command takes the ComfyUI that this folder lies in."]
    if missing:
        lines += ["", "Missing, and where to get it (nothing is downloaded for you; read the licences)"]
    for name, folder in missing:
        of = known.get((name, folder), {})
        lines += [f"  {folder}/{name}  " + ", ".join(text for text in (of.get("size"), of.get("licence")) if text)]
        lines += [f"      {text}" for text in (of.get("page"), of.get("note")) if text]
    if families:
        lines += ["", "With another checkpoint than the one named: python3 atelier.py stylize me.png painting.png --checkpoint FILE"]
    return lines
