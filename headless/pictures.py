"""The pictures that a call gives: files that exist and that ComfyUI can read, and the ones that are shipped."""
import difflib
import functools
import hashlib
from pathlib import Path

from . import workflow as workflows
from .client import title
from .errors import AtelierError

SHIPPED = Path(__file__).resolve().parents[1] / "demo" / "pictures"
TITLES = ("Content", "Style", "Face")  # of picture nodes, and options
# The first bytes of the formats that Load Image reads.
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
AVIF, HEIC = (b"avif", b"avis"), (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
TAKES = "give a PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF file"


def picture(name, which: str) -> Path:
    """The path of a picture that exists and looks like one. AtelierError otherwise."""
    path, said = Path(name).expanduser(), f"--{which} {name}"
    if "://" in str(name):
        raise AtelierError(f"{said} is an address: download the picture and give its file")
    if path.is_dir():
        raise AtelierError(f"{said} is a folder: name one picture in it")
    if not path.is_file():
        raise AtelierError(f"{said}: there is no such file in {path.resolve().parent}{near(path)}")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise AtelierError(f"{said} cannot be read: {error}") from error
    if path.suffix.lower() in (".safetensors", ".ckpt"):
        raise AtelierError(f"{said} is no picture: a checkpoint is given with --checkpoint")
    brands = {head[at:at + 4] for at in range(8, min(head[3], 64), 4)} if head[4:8] == b"ftyp" else set()
    avif = bool(brands.intersection(AVIF))
    if brands.intersection(HEIC) and not avif:
        raise AtelierError(f"{said} is a HEIC photo, which ComfyUI does not read: export it as JPEG (iPhone: Settings > Camera > Formats > "
                           "Most Compatible)")
    if avif and b"grid" in head:
        raise AtelierError(f"{said} is an AVIF picture in tiles, of which ComfyUI would read only one: save it as PNG or JPEG")
    if not (head.startswith(SIGNATURES) or head[:4] == b"RIFF" and head[8:12] == b"WEBP" or avif):
        raise AtelierError(f"{said} is no picture: " + ("it is empty" if not head else TAKES))
    return path


def near(path: Path) -> str:
    """What may have been meant: a file of nearly this name, or a shipped style by its word."""
    try:
        names = [file.name for file in path.parent.iterdir() if file.is_file()]
    except OSError:
        names = []
    same = [name for name in names if Path(name).stem.lower() == path.stem.lower()] or difflib.get_close_matches(path.name, names, 1, 0.8)
    if same:
        return f"; did you mean {same[0]}?"
    word = SHIPPED / f"style-{path.stem.lower()}.png"
    return f"; the shipped picture of that style is {word}" if word.is_file() else ""


def place(names: list, given: dict, titles: list, workflow: str) -> dict:
    """{title: file} of `names`, pictures given without an option, in the order of `titles`, which the workflow has.

    `given` holds those given by option. Raises AtelierError where one picture is given twice, or finds no place.
    """
    if len(names) > len(titles):
        wanted = " and ".join(word.lower() for word in titles) or "none"
        raise AtelierError(f"{len(names)} pictures are given ({', '.join(map(str, names[:4]))}), and workflow {workflow} takes {wanted}")
    placed = dict(zip(titles, names))
    for name in placed:
        if given.get(name) is not None:
            raise AtelierError(f"the {name.lower()} picture is given twice: {placed[name]} and --{name.lower()} {given[name]}; "
                               f"without options the order is {', '.join(word.lower() for word in titles)}")
    return placed


def titles(workflow: dict) -> "list[str]":
    """Which of TITLES the workflow has."""
    return [name for name in TITLES if workflows.titled(workflow, workflows.PICTURES, name)]


def named(workflow: dict) -> "dict[str, tuple[Path, bool]]":
    """{title: (file, whether it must be uploaded)} of the shipped pictures that a workflow names; Demo Picture has them itself."""
    files = {key: file for file in SHIPPED.iterdir() for key in (file.name, f"atelier/{file.name}")}  # Load Image's name, Demo Picture's
    found = {}
    for node in workflows.titled(workflow, workflows.PICTURES, None):
        entry = workflow[node]
        for value in entry["inputs"].values():
            if isinstance(value, str) and value in files:
                found[title(workflow, node)] = files[value], entry["class_type"] == "LoadImage"
    return found


@functools.cache
def shipped_contents() -> "set[bytes]":
    return {hashlib.sha256(file.read_bytes()).digest() for file in SHIPPED.iterdir()}


def is_shipped(path: Path) -> bool:
    return hashlib.sha256(path.read_bytes()).digest() in shipped_contents()
