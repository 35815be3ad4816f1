"""The command `stylize`: check the call, upload pictures, run a workflow, save its picture."""
import argparse
import os
from pathlib import Path

from . import workflow as workflows
from .client import Client, Progress, title
from .errors import AtelierError, ServerError
from .progress import Display
from .server import LocalServer

PICTURES = Path(__file__).resolve().parents[1] / "demo" / "pictures"
# Titles of Load Image nodes, each an option's name too, and what they load by default.
GIVEN = ("Content", "Style", "Face")  # titles of Load Image nodes, and options
# The first bytes of the formats that Load Image reads.
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--content", metavar="FILE", help="portrait to stylize (default: the shipped one)")
    add("--style", metavar="FILE", help="picture that gives the style (default: the shipped one)")
    add("--face", metavar="FILE", help="photo of the person, for the fastface workflows (default: the shipped portrait)")
    add("--output", metavar="FILE", help="where to save the PNG, replacing a file of that name; a folder is fine "
        "(default: CONTENT_STYLE.png or FACE_WORKFLOW.png here, numbered where that exists)")
    add("--workflow", default="zepo_demo", metavar="NAME", help="%(default)s by default; "
        f"one of {', '.join(workflows.shipped())}, or a file in ComfyUI's API format")
    add("--checkpoint", metavar="FILE", help="checkpoint file, or its name in the server's list")
    add("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", dest="assignments",
        help="set any input of the workflow; NODE is a title, a class or an id; may be repeated")
    add("--server", metavar="URL", help="use the ComfyUI that runs there (it needs this pack) instead of starting one")
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


def stylize(args, start, display: Display) -> Path:
    """Do what `args` (see add_arguments) say and return the path of the picture.

    `start(checkpoint_folder)` gives a LocalServer; it is called only without --server, and stopped here.
    """
    workflow = workflows.load(args.workflow)
    given = {wanted: picture(getattr(args, wanted.lower()), wanted.lower()) for wanted in GIVEN if getattr(args, wanted.lower()) is not None}
    pictures = dict(sorted((shipped(workflow) | given).items(), key=lambda item: (*GIVEN, item[0]).index(item[0])))
    output = output_path(args.output, pictures, args.workflow)
    return on_server(args, start, display, lambda client: run(args, workflow, pictures, output, client, display))


def on_server(args, start, display: Display, work):
    """The result of work(client) on the ComfyUI at args.server, or on one started for it that finds the file args.checkpoint."""
    checkpoint = Path(args.checkpoint or "").expanduser()
    if args.server:
        client = Client(args.server)
        client.version()
        return work(client)
    is_file = checkpoint.is_file()  # else it may be a name in the server's list
    if checkpoint.is_absolute() and not is_file:
        raise AtelierError(f"checkpoint {checkpoint} not found: there is no such file")
    with start(checkpoint.resolve().parent if is_file else None) as server:
        server.wait(lambda seconds: display.show(f"Starting ComfyUI ... {seconds:.0f} s", key="start"))
        if is_file:
            args.checkpoint = checkpoint.name
        try:
            return work(server.client)
        except ServerError as error:
            if server.process.poll() is None:
                raise
            raise AtelierError(f"ComfyUI ended during the run: {server.last_line()} (log: {server.log})") from error
        except AtelierError as error:
            raise type(error)(f"{error} (log: {server.log})") from error


def run(args, workflow: dict, pictures: dict, output: Path, client: Client, display: Display) -> Path:
    editor = workflows.Editor(workflow, args.workflow, client)
    for option in workflows.OPTIONS:
        value = getattr(args, option)
        if value is not None:
            editor.set_option(option, value)
    for assignment in args.assignments:
        editor.set_input(assignment)
    editor.check_checkpoints()
    for wanted, path in pictures.items():
        editor.set_picture(wanted, client.upload(path))
    outputs = client.run(editor.workflow, lambda progress: display.show(line(progress)))
    display.clear()
    results = {node: output for node, output in outputs.items() if title(editor.workflow, node) == "Result"}
    images = client.images(results or outputs)
    if not images:
        raise AtelierError(f"workflow {args.workflow} saved no picture: it needs a Save Image node")
    paths = [output] + [output.with_name(f"{output.stem}_{i}{output.suffix}") for i in range(2, len(images) + 1)]
    for path, image in zip(paths, images):
        save(path.with_suffix(Path(image["filename"]).suffix), client.download(image))
    return output.with_suffix(Path(images[0]["filename"]).suffix)


def line(progress: Progress) -> str:
    text = f"[{progress.number:2}/{progress.total}] {progress.title}"
    if progress.steps > 1:
        filled = 20 * progress.step // progress.steps
        text += f"  [{'#' * filled}{'.' * (20 - filled)}] {progress.step}/{progress.steps}"
    return text


def shipped(workflow: dict) -> "dict[str, Path]":
    """The pictures of `demo/pictures` that Load Image nodes name, by the nodes' titles: a server need not have them."""
    names = {title(workflow, node): workflow[node]["inputs"].get("image") for node in workflows.titled(workflow, ("LoadImage",), None)}
    files = {file.name: file for file in PICTURES.iterdir()}
    return {wanted: files[name] for wanted, name in names.items() if isinstance(name, str) and name in files}


def picture(name, which: str) -> Path:
    """The path of a picture that exists and looks like one. AtelierError otherwise."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise AtelierError(f"--{which} {name}: there is no such file in {path.resolve().parent}")
    with path.open("rb") as file:
        head = file.read(12)
    if not head.startswith(SIGNATURES) and not (head[:4] == b"RIFF" and head[8:] == b"WEBP"):
        raise AtelierError(f"--{which} {name} is no picture: give a PNG, JPEG, WebP, GIF, BMP or TIFF file")
    return path


def output_path(name, pictures: dict, workflow: str) -> Path:
    """Where the result goes, by default CONTENT_STYLE.png; a single picture's name alone would be that of the picture itself."""
    names = [path.stem for path in pictures.values()]
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
