"""A worker on another machine: it gets pictures as bytes and gives results as bytes, whoever carries them. Ray does, in ray_cluster.

Nothing is shared but the code: the pack lies at the same path everywhere, in the same version.
"""
import hashlib
import os
import tempfile
from pathlib import Path

from ..environment import ROOT
from ..own import own_server
from ..progress import Display
from .rows import Row
from .worker import Job, Worker

FOLDERS = ("headless", "nodes", "host", "attention", "guidance", "identity", "segmentation", "workflows/api", "demo")


def version() -> str:
    """What differs between two versions of the pack: a hash of all its code, workflows and weights."""
    found = hashlib.sha256()
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".json", ".safetensors") and path.is_file():
                found.update(path.relative_to(ROOT).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]


class Collected:
    """In place of a Report: keeps what is saved and written, in its order."""

    def __init__(self):
        self.events: list = []

    def save(self, name: str, data: bytes) -> None:
        self.events.append(("save", name, data))

    def write(self, entry: dict) -> None:
        self.events.append(("write", entry))


class Maker:
    """Owns a ComfyUI and makes rows with it. about: the fields of a Job; extra: options of ComfyUI."""

    def __init__(self, about: dict, extra: list, checkpoint_folder: "str | None"):
        self.report, self.folder = Collected(), tempfile.TemporaryDirectory(prefix="atelier-")
        self.places: "dict[str, Path]" = {}
        job = Job(**about, report=self.report, mark=f"batch-{os.getpid()}")
        start = own_server(Display(), extra, log=f"comfyui-{os.getpid()}.log")
        folder = Path(checkpoint_folder) if checkpoint_folder else None

        def answering():
            return Answering(start(folder))

        self.worker = Worker(f"process {os.getpid()} of {os.uname().nodename if hasattr(os, 'uname') else 'a machine'}", answering, job)

    def start(self) -> dict:
        """Starts ComfyUI; what the driver must know of it. Raises AtelierError."""
        self.worker.start()
        return {"name": self.worker.name, "process": os.getpid()}

    def about(self) -> dict:
        """As Worker.about."""
        return self.worker.about()

    def make(self, rows: "list[Row]", pictures: "dict[str, bytes]") -> "tuple[list, int]":
        """(what to save and to report, extractions) for rows whose pictures are named by the keys of `pictures`.

        A key that came before needs no bytes again: {key: b""}. The first of them, the contents, are forgotten at the next call.
        """
        self.report.events, before = [], self.worker.extractions
        for key, data in pictures.items():
            if key not in self.places:
                place = Path(self.folder.name) / key
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
                self.places[key] = place
        firsts = {str(path) for row in rows for path in list(row.pictures.values())[:1]}
        mine = [Row({title: self.places[str(key)] for title, key in row.pictures.items()}, row.settings, row.name, row.number) for row in rows]
        self.worker.make(mine)
        for kind, entry in ((event[0], event[1]) for event in self.report.events):
            for key, place in self.places.items() if kind == "write" and entry["error"] else ():
                entry["error"] = entry["error"].replace(str(place), key)  # a place that the user does not know
        for key in [key for key in self.places if key.startswith("first/") and key not in firsts]:
            self.places.pop(key).unlink(missing_ok=True)
        return self.report.events, self.worker.extractions - before

    def stop(self) -> None:
        self.worker.stop()
        self.folder.cleanup()


class Answering:
    """A started server that is waited for when the context is entered."""

    def __init__(self, context):
        self.context = context

    def __enter__(self):
        server = self.context.__enter__()
        try:
            server.wait()
        except BaseException:
            self.context.__exit__(None, None, None)
            raise
        return server

    def __exit__(self, *error):
        return self.context.__exit__(*error)
