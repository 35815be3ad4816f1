"""The command `stylize`: check the call, upload pictures, run a workflow, save its picture."""
import argparse
import os
from pathlib import Path
from urllib.parse import urlsplit

from . import families, models, pictures, sweep as sweeps, workflow as workflows
from .checkpoint import Checkpoint, inspect, named, read_header
from .client import Client, Progress, title
from .errors import AtelierError, ServerError
from .pictures import picture
from .progress import Display

DEMO = "AtelierDemoModelLoader"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("pictures", nargs="*", metavar="PICTURE", help="the pictures without options: content and style, or the face for a fastface workflow")
    add("--content", metavar="FILE", help="portrait to stylize (default: the shipped one); it is cut to a square from the middle")
    add("--style", metavar="FILE", help="picture that gives the style (default: the shipped one)")
    add("--face", metavar="FILE", help="photo of the person, for the fastface workflows (default: the shipped portrait)")
    add("--output", metavar="FILE", help="where to save the PNG, replacing a file of that name; a folder is fine "
        "(default: CONTENT_STYLE.png or FACE_WORKFLOW.png here, numbered where that exists)")
    add("--server", metavar="URL", help="use the ComfyUI that runs there (it needs this pack) instead of starting one")
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options that say which workflow runs, and with which values: those of `stylize` and of `batch`."""
    add = parser.add_argument
    add("--workflow", metavar="NAME", help="by default zepo_demo, fastface_demo with --face, and with --checkpoint the one for its family; "
        f"one of {', '.join(workflows.shipped())}, or a file in ComfyUI's API format")
    add("--checkpoint", metavar="FILE", help="an SD1.5, SD2.1 or SDXL checkpoint: a file, or its name in the server's list")
    add("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", dest="assignments",
        help="set any input of the workflow; NODE is a title, a class or an id; may be repeated. Here and below, several numbers or choices "
        "with commas between give a picture each and a contact sheet; two such lists give a grid")
    add("--seed", metavar="N", help="seed of the sampler")
    add("--strength", metavar="0..1", help="strength of the whole control; 0 is off")
    add("--style-enhancement", metavar="0..3", help="lambda of the paper: sharpens the attention to the style")
    add("--style-share", metavar="0..1", help="weight of the style against the content in attention")
    add("--merge", metavar="0..0.75", help="share of the feature tokens that are merged")
    add("--steps", metavar="N", help="sampling steps")
    add("--cfg", metavar="X", help="guidance scale")
    add("--denoise", metavar="0..1", help="how far the content is noised")
    add("--prompt", metavar="TEXT", help="prompt")
    add("--negative", metavar="TEXT", help="negative prompt")


def stylize(args, start, display: Display) -> "list[Path]":
    """Do what `args` (see add_arguments) say and return the paths of the pictures, of which there is one but for lists of values.

    `start(checkpoint_folder)` gives a LocalServer; it is called only without --server, and stopped here.
    """
    face = args.face is not None and args.content is None and args.style is None and not args.pictures
    chosen = args.workflow is None and args.checkpoint is not None
    # For the checks before ComfyUI runs any graph of the kind does; which one it becomes, its files tell later.
    args.workflow = args.workflow or ("fastface_demo" if face else "zepo_demo")
    workflow = workflows.load(args.workflow)
    given = given_pictures(args, workflow)
    shipped = pictures.named(workflow)
    names = {wanted: file for wanted, (file, _) in shipped.items()} | given
    names = dict(sorted(names.items(), key=lambda item: (*pictures.TITLES, item[0]).index(item[0])))
    output = output_path(args.output, names, "fastface" if face and chosen else args.workflow)
    same = [path for path in given.values() if output.exists() and output.samefile(path)]
    if same:
        raise AtelierError(f"--output {output} is the picture {same[0]} itself, which would be lost: name another")
    upload = given | {wanted: file for wanted, (file, needed) in shipped.items() if needed and wanted not in given}
    check_file(args.checkpoint, None if chosen else args.workflow, args.server)
    note = own_pictures_note(workflow, list(given.values())) if not chosen else None
    if note:
        display.say(note)

    def work(client: Client, python: "str | None") -> "list[Path]":
        graph = choose(args, client, face, display) if chosen else workflow
        return run(args, graph, upload, output, client, display, python)

    paths = on_server(args, start, display, work)
    if note:
        display.say(note)
    return paths


def given_pictures(args, workflow: dict) -> "dict[str, Path]":
    """{title: file} of the pictures that the call gives, with and without options."""
    given, places = {wanted: getattr(args, wanted.lower()) for wanted in pictures.TITLES}, pictures.titles(workflow)
    for wanted, name in given.items():
        if name is not None and wanted not in places:
            fitting = [other for other in workflows.shipped() if wanted in pictures.titles(workflows.load(other))]
            raise AtelierError(f'--{wanted.lower()} {name}: workflow {args.workflow} has no Load Image node titled "{wanted}"; '
                               f"with --workflow it fits {', '.join(fitting)}")
    given |= pictures.place(args.pictures, given, places, args.workflow)
    return {wanted: picture(name, wanted.lower()) for wanted, name in given.items() if name is not None}


def own_pictures_note(workflow: dict, given: "list[Path]") -> "str | None":
    """What to tell who gives pictures of his own to the demo model, which turns a photograph into a smear."""
    own = [path.name for path in given if not pictures.is_shipped(path)]
    if not own or not workflows.titled(workflow, (DEMO,), None):
        return None
    return (f"Note: the demo model knows the drawn portraits of demo/pictures only and spoils anything else, as {own[0]}. For pictures of your "
            "own give a checkpoint: python3 atelier.py stylize me.png painting.png --checkpoint FILE (python3 atelier.py models lists files)")


def choose(args, client: Client, face: bool, display: Display) -> dict:
    """The workflow for args.checkpoint, which the server at `client` has."""
    checkpoint = look(args.checkpoint, client)
    known = workflows.choices(((client.node_info("LoraLoaderModelOnly") or {}).get("input", {}).get("required") or {}).get("lora_name", ["", {}]))
    args.workflow, graph, told = families.choose(checkpoint, known or [], models.where(client, "loras"), face)
    display.say(told)
    return graph


def look(name: str, client: Client) -> Checkpoint:
    """What the checkpoint called `name` in the server's list is: from its file where it is on this machine, else from what the server tells."""
    known = client.models("checkpoints")
    if name not in known:
        raise AtelierError(f"checkpoint {name!r} not found; looked in {models.where(client, 'checkpoints')}; "
                           f"found {', '.join(known) or 'none'}; give one of these or, without --server, the path of a file")
    here = urlsplit(client.url).hostname in ("127.0.0.1", "localhost", "::1")
    found = next((path for path in (Path(folder) / name for folder in client.model_folders("checkpoints")) if here and path.is_file()), None)
    checkpoint = inspect(found) if found else named(name, client.metadata("checkpoints", name))
    if not checkpoint:
        raise AtelierError(f"neither the name nor the metadata of checkpoint {name} at {client.url} tells its family: "
                           "say which workflow with --workflow zepo_sd15_lcm or zepo_sdxl_lightning")
    return checkpoint


def check_file(checkpoint: "str | None", workflow: "str | None", server: "str | None") -> None:
    """AtelierError, before anything starts, for a checkpoint file that is damaged or that does not fit the workflow.

    workflow: None where the file chooses it. Of a user's own workflow it is not known what it takes.
    """
    path = Path(checkpoint or "").expanduser()
    if checkpoint is None or server:
        return
    if path.is_dir():
        raise AtelierError(f"--checkpoint {path} is a folder: name the .safetensors file in it")
    if not path.is_file():  # it may be a name in the server's list, but no path
        if path.is_absolute() or checkpoint.startswith((".", "~")) or len(path.parts) > 1 and path.parent.is_dir():
            raise AtelierError(f"--checkpoint {path} not found: there is no such file{pictures.near(path)}")
    elif workflow is None or workflow in workflows.shipped():
        families.require_fit(inspect(path), workflow)
    elif path.suffix.lower() == ".safetensors":
        read_header(path)


def on_server(args, start, display: Display, work):
    """The result of work(client, python) on the ComfyUI at args.server, or on one started for it that finds the file args.checkpoint.

    `python` is the started one's, which has all packages; None with --server.
    """
    checkpoint = Path(args.checkpoint or "").expanduser()
    is_file = checkpoint.is_file()  # else it may be a name in the server's list
    if args.server:
        client = Client(args.server)
        client.version()
        known = client.models("checkpoints") if is_file else []
        if is_file and args.checkpoint not in known:
            if checkpoint.name not in known:
                raise AtelierError(f"--checkpoint {checkpoint} is a file of this machine, and the ComfyUI at {client.url} takes names of its own "
                                   f"list: {', '.join(known) or 'it is empty'}; put the file into one of {models.where(client, 'checkpoints')}")
            args.checkpoint = checkpoint.name
        return work(client, None)
    # Not the folder that a link leads to: there the file may have another name.
    with start(checkpoint.absolute().parent if is_file else None) as server:
        server.wait(lambda seconds: display.show(f"Starting ComfyUI ... {seconds:.0f} s", key="start"))
        if is_file:
            args.checkpoint = checkpoint.name
        try:
            return work(server.client, server.python)
        except ServerError as error:
            if server.process.poll() is None:
                raise
            raise AtelierError(f"ComfyUI ended during the run: {server.last_line()} (log: {server.log})") from error
        except AtelierError as error:
            raise type(error)(f"{error} (log: {server.log})") from error


def run(args, workflow: dict, upload: dict, output: Path, client: Client, display: Display, python: "str | None") -> "list[Path]":
    editor = workflows.Editor(workflow, args.workflow, client)
    for option in workflows.OPTIONS:
        value = getattr(args, option)
        if value is not None:
            editor.set_option(option, value)
    for assignment in args.assignments:
        editor.set_input(assignment)
    models.check(editor)
    for wanted, path in upload.items():
        editor.set_picture(wanted, client.upload(path))

    def one(graph: dict, place: Path, prefix: str = "") -> Path:
        outputs = client.run(graph, lambda progress: display.show(prefix + line(progress)))
        display.clear()
        results = {node: found for node, found in outputs.items() if title(graph, node) == "Result"}
        images = client.images(results or outputs)
        if not images:
            raise AtelierError(f"workflow {args.workflow} saved no picture: it needs a Save Image node")
        places = [place] + [place.with_name(f"{place.stem}_{i}{place.suffix}") for i in range(2, len(images) + 1)]
        for path, image in zip(places, images):
            save(path.with_suffix(Path(image["filename"]).suffix), client.download(image))
        return place.with_suffix(Path(images[0]["filename"]).suffix)

    if editor.lists:
        return sweeps.sweep(editor, output, one, display, python)
    return [one(editor.workflow, output)]


def line(progress: Progress) -> str:
    text = f"[{progress.number:2}/{progress.total}] {progress.title}"
    if progress.steps > 1:
        filled = 20 * progress.step // progress.steps
        text += f"  [{'#' * filled}{'.' * (20 - filled)}] {progress.step}/{progress.steps}"
    return text


def output_path(name, given: dict, workflow: str) -> Path:
    """Where the result goes, by default CONTENT_STYLE.png; a single picture's name alone would be that of the picture itself."""
    names = [path.stem for path in given.values()]
    return result_path(name, "_".join(names if len(names) > 1 else [*names, Path(workflow).stem]) + ".png")


def result_path(name, default: str) -> Path:
    """Where a result goes that is a file like `default`: checked before any work, so that no run is lost to a typing error."""
    suffix = "." + default.rpartition(".")[2]
    path = Path(name).expanduser() if name else Path(default)
    if path.is_dir():
        path = path / default
        name = None
    if path.suffix.lower() not in ("", suffix):
        kind = suffix[1:].upper() if suffix == ".png" else suffix[1:]
        raise AtelierError(f"--output {path}: the result is a {kind} file, so name it {path.stem}{suffix}")
    if not path.suffix:
        path = path.with_suffix(suffix)
    if not path.parent.is_dir():
        raise AtelierError(f"--output {path}: there is no folder {path.parent.resolve()}")
    if not os.access(path.parent, os.W_OK):
        raise AtelierError(f"--output {path}: the folder {path.parent.resolve()} is not writable; name another with --output")
    base, number = path, 2
    while name is None and path.exists():
        path, number = base.with_name(f"{base.stem}_{number}{base.suffix}"), number + 1
    return path


def save(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise AtelierError(f"cannot save {path}: {error}") from error
