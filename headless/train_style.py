"""The command `train-style`: upload a picture, train a style LoRA on it through the node Style LoRA Train, fetch the file."""
import argparse
import re
import time
import uuid
from pathlib import Path

from . import models, pictures, workflow as workflows
from .client import Client
from .errors import AtelierError, ServerError
from .pictures import picture
from .progress import Display
from .stylize import DEMO, check_file, line, on_server, result_path, save

NODE, SAVE = "AtelierStyleLoRATrain", "SaveLoRA"
OPTIONS = ("steps", "rank", "learning_rate", "resolution", "seed", "augment", "targets")
PATIENCE = 60  # seconds that a cancelled server gets to end its step and save


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--picture", metavar="FILE", help="the picture whose style is learnt (default: a shipped one)")
    add("--caption", metavar="TEXT", help="what the picture shows, and a name for its style")
    add("--output", metavar="FILE", help="where to save the LoRA, replacing a file of that name; a folder is fine "
        "(default: PICTURE.safetensors here, numbered where that exists)")
    add("--checkpoint", metavar="FILE", help="checkpoint file, or its name in the server's list (default: the demo model)")
    add("--workflow", metavar="NAME", help="train_style_demo by default, train_style_sd15 with --checkpoint, or a file in ComfyUI's API format")
    add("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", dest="assignments",
        help="set any input of the workflow; NODE is a title, a class or an id; may be repeated")
    add("--server", metavar="URL", help="use the ComfyUI that runs there (it needs this pack) instead of starting one")
    add("--steps", metavar="N", help="training steps (default: 200)")
    add("--rank", metavar="N", help="size of the LoRA (default: 16)")
    add("--learning-rate", metavar="X", help="learning rate (default: 0.0002)")
    add("--resolution", metavar="PIXELS", help="the picture's short side in training (default: 512; SDXL takes 1024, the demo model 256)")
    add("--seed", metavar="N", help="seed of weights, noise and timesteps (default: 0)")
    add("--augment", metavar="KIND", help="none (default), flip, crop, or 'flip and crop', which is the default of the demo model")
    add("--targets", metavar="KIND", help="qkv (default, the paper) or qkv+out")


def train_style(args, start, display: Display, folder: Path) -> Path:
    """Do what `args` (see add_train_arguments) say and return the path of the LoRA.

    `start(checkpoint_folder)` gives a LocalServer whose output folder is `folder`; it is called only without --server.
    Ctrl-C keeps what is trained so far beside the result's place and goes on as KeyboardInterrupt.
    """
    check_file(args.checkpoint, args.workflow, args.server)
    args.workflow = args.workflow or ("train_style_sd15" if args.checkpoint else "train_style_demo")
    workflow = workflows.load(args.workflow)
    source = pictures.SHIPPED / "style.png" if args.picture is None else picture(args.picture, "picture")
    output = result_path(args.output, f"{source.stem}.safetensors")
    # A name of its own for this run, so that it is known what the server will call the file.
    name = f"{re.sub(r'[^A-Za-z0-9-]+', '-', output.stem)}-{uuid.uuid4().hex[:8]}"

    note = demo_note(workflow, source)
    if note:
        display.say(note)

    def work(client, _):
        try:
            run(args, workflow, source, output, name, client, display)
        except KeyboardInterrupt:
            if not args.server:
                keep_unfinished(client, folder / "loras", name, output, display)
            raise
        if not args.server:  # it has reached its place
            (folder / "loras" / saved(name)).unlink(missing_ok=True)
        return output

    path = on_server(args, start, display, work)
    if note:
        display.say(note)
    return path


def demo_note(workflow: dict, source: Path) -> "str | None":
    """What to tell who trains the demo model on a picture of his own: no other model can use what it learns."""
    if pictures.is_shipped(source) or not workflows.titled(workflow, (DEMO,), None):
        return None
    return ("Note: this LoRA is learnt by the demo model, which knows drawn portraits only, and fits no other model. For SD1.5, SD2.1 or SDXL "
            f"give a checkpoint: python3 atelier.py train-style --picture {source.name} --checkpoint FILE")


def saved(name: str) -> str:
    """What Save LoRA Weights calls the first file of a prefix."""
    return f"{name}_00001_.safetensors"


def run(args, workflow: dict, source: Path, output: Path, name: str, client: Client, display: Display) -> None:
    editor = workflows.Editor(workflow, args.workflow, client)
    editor.set_node(SAVE, "prefix", f"loras/{name}", "train-style")
    editor.set_node(NODE, "cancel_prefix", f"loras/{name}-unfinished", "train-style")
    for option in OPTIONS:
        value = getattr(args, option)
        if value is not None:
            editor.set_node(NODE, option, value, "--" + option.replace("_", "-"))
    if args.caption is not None:
        editor.set_node("Caption", "text", args.caption, "--caption")
    if args.checkpoint is not None:
        editor.set_option("checkpoint", args.checkpoint)
    for assignment in args.assignments:
        editor.set_input(assignment)
    if editor.lists:
        raise AtelierError(f"{next(iter(editor.lists))}: train-style takes one value; lists of values are for stylize")
    models.check(editor)
    editor.set_picture("Style", client.upload(source))
    client.run(editor.workflow, lambda progress: display.show(line(progress)))
    display.clear()
    data = client.download({"filename": saved(name), "subfolder": "loras", "type": "output"})
    try:
        save(output, data)
    except AtelierError as error:
        raise AtelierError(f"{error}; the LoRA itself is in the server's output folder: loras/{saved(name)}") from error


def keep_unfinished(client: Client, folder: Path, name: str, output: Path, display: Display) -> None:
    """After Ctrl-C: let the node end its step and save, and put what it saved in `folder` beside `output`."""
    end = time.monotonic() + PATIENCE
    try:
        while (client.json("/queue")[1] or {}).get("queue_running") and time.monotonic() < end:
            display.show("Saving what is trained so far ...", key="unfinished")
            time.sleep(0.2)
    except ServerError:
        pass
    for path in folder.glob(f"{name}-unfinished_*.safetensors"):
        kept = output.with_name(f"{output.stem}_unfinished.safetensors")
        save(kept, path.read_bytes())
        path.unlink()
        display.say(f"atelier.py: what is trained so far is in {kept} ({path.stem.split('_')[-2]} steps)")
