"""A worker: one ComfyUI that makes rows, one after another or several contents at once."""
import contextlib
import copy
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from .. import models, pictures, workflow as workflows
from ..client import Client, Progress
from ..errors import AtelierError, ExecutionError, InterruptedRun, ServerError
from . import files, graph as graphs
from .report import DiskFull, Report, stamp
from .rows import Row

KEPT = 500  # files of features that a worker keeps; the one that was not used for longest makes room
DEATHS = 2  # times that a server may end on one picture before the picture is given up
TRIES = 3  # times that a server is started anew without a result between


RUBBISH = (ValueError, KeyError, TypeError, IndexError, AttributeError)  # what reading an answer raises that is not ComfyUI's


class Stopped(Exception):
    """The batch is interrupted, or another worker met a full disk."""


@dataclass
class Job:
    """What all rows of a batch have in common.

    workflow and its name; settings: [(option or None, text)] of the call, None for --set; sides: the titles of pictures that
    rows give, the first of which stays while the others change; uploads: {title: file} of shipped pictures; returning: the
    pictures beside the first side's that come more than once.
    """

    workflow: dict
    name: str
    settings: list
    sides: "list[str]"
    uploads: "dict[str, Path]"
    returning: "set[Path] | None"
    report: Report
    kind: str = "png"
    quality: int = 95
    metadata: bool = True
    mark: str = "batch"
    deaths: dict = field(default_factory=dict)
    on_progress: Callable = lambda *_: None


class Worker:
    """`open()` is a context that gives a LocalServer which answers, or a Client of a server that runs already."""

    def __init__(self, name: str, open: Callable, job: Job, number: int = 0):
        self.name, self.open, self.job = name, open, job
        self.mark = f"{job.mark}-{number}"  # of its files on the server, which another worker may use as well
        self.context = contextlib.ExitStack()
        self.client: "Client | None" = None
        self.server = None
        self.failures = 0
        self.extractions = 0

    def start(self) -> None:
        """AtelierError where the server does not start, does not answer, answers rubbish, or lacks what the workflow needs."""
        try:
            self.prepare()
        except RUBBISH as error:
            raise rubbish(self.client, error) from error

    def prepare(self) -> None:
        served = self.context.enter_context(self.open())
        self.server = served if hasattr(served, "client") else None
        self.client = served.client if self.server else served
        self.client.version()
        self.base = workflows.Editor(self.job.workflow, self.job.name, self.client)
        for option, value in self.job.settings:
            self.base.set_option(option, value) if option else self.base.set_input(value)
        if self.base.lists:
            raise AtelierError(f"{next(iter(self.base.lists))} gives several values, and a batch takes one: several go into a column of a CSV file")
        models.check(self.base)
        for wanted, path in self.job.uploads.items():
            self.base.set_picture(wanted, self.client.upload(path))
        self.features: "OrderedDict[str, str]" = OrderedDict()  # key -> name of its file, those used last at the end
        self.kept: "set[str]" = set()  # the keys whose files are there
        self.sent: "dict[tuple, str]" = {}  # (path, stamp) -> value of Load Image
        self.lent: dict = {}  # place -> ((path, stamp), value of Load Image)
        self.looked: "set[Path]" = set()
        self.edited = None, None

    def about(self) -> dict:
        """What the plan says: the workflow with the settings of the call, and the server's devices."""
        return {"workflow": self.base.workflow, "stats": self.client.json("/system_stats")[1]}

    def restart(self) -> None:
        self.context.close()
        self.context = contextlib.ExitStack()
        self.start()

    def stop(self) -> None:
        self.context.close()

    # --- one row, or the rows of several contents

    def make(self, rows: "list[Row]") -> None:
        """Makes these rows in one run and reports them; they differ in their first picture only.

        A run of several that fails is repeated one by one. Raises DiskFull, Stopped, and ServerError for a server that is gone.
        """
        start, began = time.time(), time.monotonic()
        try:
            images = self.run(rows)
        except (DiskFull, Stopped):
            raise
        except (ServerError, *RUBBISH) as error:
            self.server_failed(rows, rubbish(self.client, error))
            return
        except (AtelierError, OSError) as error:
            if len(rows) > 1 and isinstance(error, AtelierError):
                for row in rows:
                    self.make([row])
                return
            if "no space left" in str(error).lower():
                raise DiskFull(f"{error}; make room there, then repeat the call, which goes on where it stopped") from error
            for row in rows:
                self.failed(row, error)
            return
        seconds = (time.monotonic() - began) / len(rows)
        for row, found, inputs in images:
            name = self.file(row)
            try:
                for number, data in reversed(list(enumerate(found, 1))):  # the one that tells that all are there comes last
                    self.job.report.save(name if number == 1 else numbered(name, number), data)
            except DiskFull:
                raise
            except AtelierError as error:
                self.failed(row, error)
                continue
            self.write(row, seconds=round(seconds, 3), started=round(start, 3), together=len(rows), error=None, stamp=inputs)
            self.job.on_progress(self, row)
        self.failures = 0

    def run(self, rows: "list[Row]") -> list:
        """[(row, pictures, stamp)] of a run."""
        inputs = [stamp(row.pictures.values()) for row in rows]
        first, *others = self.job.sides
        for row in rows:
            for wanted, path in row.pictures.items():
                self.check(path, wanted.lower())
        graph = self.graph(rows[0])
        for wanted in others:
            path = rows[0].pictures[wanted]
            back = self.job.returning is None or path in self.job.returning
            self.set_picture(graph, wanted, self.send(path) if back else self.lend(path, wanted.lower()))
        values = [self.lend(row.pictures[first], number) for number, row in enumerate(rows)]
        plain = copy.deepcopy(graph)
        self.set_picture(graph, first, values[0])
        kept = [node for node in graphs.kept_features(graph, first, others)
                if self.job.returning is None or any(rows[0].pictures[wanted] in self.job.returning for wanted in others)]
        keys = {node: graphs.key(graph, node) for node in kept}
        places = {node: self.place(key) for node, key in keys.items()}
        saved = {node: name for node, name in places.items() if keys[node] not in self.kept}
        graph = graphs.with_files(graph, saved, {node: name + ".safetensors" for node, name in places.items() if node not in saved})
        if len(rows) > 1:
            graph = graphs.joined(graph, first, values)
        outputs = self.execute(graph)
        self.kept.update(keys.values())
        images = self.client.images({graphs.result_node(graph): outputs.get(graphs.result_node(graph), {})})
        if not images or len(images) % len(rows):
            raise AtelierError(f"the run saved {len(images)} pictures for {len(rows)} contents")
        each = len(images) // len(rows)
        found = []
        for number, row in enumerate(rows):
            told = self.named(plain, row)
            mine = [files.fetch(self.client, image, self.job.kind, self.job.quality) for image in images[number * each:(number + 1) * each]]
            found.append((row, [files.with_workflow(data, told) if self.job.metadata else data for data in mine], inputs[number]))
        self.forget(images)
        return found

    def execute(self, graph: dict) -> dict:
        seen = set()

        def progress(event: Progress) -> None:
            if event.node not in seen and graph.get(event.node, {}).get("class_type") == graphs.EXTRACT:
                self.extractions += 1
            seen.add(event.node)
            self.job.on_progress(self)

        return self.client.run(graph, progress)

    # --- what a run needs

    def graph(self, row: Row) -> dict:
        """The workflow with the settings of the call and of the row, and only what the result needs."""
        if self.edited[0] != row.settings:
            editor = copy.copy(self.base)
            editor.workflow, editor.lists = copy.deepcopy(self.base.workflow), {}
            for name, value in row.settings.items():
                editor.set_option(name, value) if name in workflows.OPTIONS else editor.set_input(f"{name}={value}")
            if editor.lists:
                raise AtelierError(f"{next(iter(editor.lists))} gives several values in one cell: give each a line of its own")
            models.check(editor)
            self.edited = dict(row.settings), graphs.result_only(editor.workflow)
        return copy.deepcopy(self.edited[1])

    def set_picture(self, graph: dict, wanted: str, value: str) -> None:
        for node in workflows.titled(graph, workflows.PICTURES, wanted):
            graph[node] = {"class_type": "LoadImage", "inputs": {"image": value}, "_meta": {"title": wanted}}

    def send(self, path: Path) -> str:
        """The value for Load Image of a picture that may come back: it is sent once."""
        place = path, stamp([path])
        if place not in self.sent:
            self.sent[place] = self.client.upload(path)
        return self.sent[place]

    def check(self, path: Path, which: str) -> None:
        """AtelierError for what is no whole picture. One that is on the server already was looked at."""
        if path in self.looked:
            return
        if files.cut_off(pictures.picture(path, which).read_bytes()):
            raise AtelierError(f"--{which} {path} is cut off: copy or download it again")
        self.looked.add(path)

    def lend(self, path: Path, place) -> str:
        """As `send`, for one that does not come back: it replaces the last one at this place, so that the server's disk does not fill."""
        picture = path, stamp([path])
        if self.lent.get(place, (None,))[0] != picture:
            self.lent[place] = picture, self.client.upload(path, stored=f"{self.mark}-{place}")
        return self.lent[place][1]

    def place(self, key: str) -> str:
        """The name of the file for the features `key`: its own, a new one, or that of those not used for longest."""
        if key not in self.features:
            full = len(self.features) >= KEPT
            oldest, name = self.features.popitem(last=False) if full else (None, f"{self.mark}/{len(self.features)}")
            self.kept.discard(oldest)
            self.features[key] = name
        self.features.move_to_end(key)
        return self.features[key]

    def named(self, plain: dict, row: Row) -> dict:
        """The workflow as a user would have run it, with the names of his files, for the metadata."""
        told = copy.deepcopy(plain)
        for wanted, path in row.pictures.items():
            self.set_picture(told, wanted, path.name)
        return told

    def forget(self, images: list) -> None:
        """Removes the server's own copies where it is ours; those of another server stay there."""
        folder = getattr(self.server, "folder", None)
        for image in images if folder else ():
            with contextlib.suppress(OSError):
                (folder / image["type"] / image["subfolder"] / image["filename"]).unlink()

    # --- the report

    def file(self, row: Row) -> str:
        return row.name + files.FORMATS[self.job.kind]

    def write(self, row: Row, **more) -> None:
        """A line of the report."""
        told = {wanted.lower(): str(path) for wanted, path in row.pictures.items()}
        self.job.report.write({"output": self.file(row), "row": row.number, "inputs": told, "settings": row.settings, "worker": self.name, **more})

    def failed(self, row: Row, error: Exception) -> None:
        self.write(row, error=str(error))
        self.job.on_progress(self, row, error)

    def server_failed(self, rows: "list[Row]", error: ServerError) -> None:
        """The server is gone, or answers rubbish: starts it anew if it is ours, and tries these rows again, but not for ever."""
        self.job.on_progress(self)  # Stopped, where it was stopped with all the others
        names = tuple(row.name for row in rows)
        self.job.deaths[names] = self.job.deaths.get(names, 0) + 1
        self.failures += 1
        if self.failures >= TRIES:
            raise error
        if self.server:
            self.restart()
        else:
            self.client.version()  # ServerError: it is gone for good
            self.kept.clear()
            self.sent.clear()
            self.lent.clear()
        if len(rows) > 1:
            for row in rows:
                self.make([row])
        elif self.job.deaths[names] < DEATHS:
            self.make(rows)
        else:
            self.failed(rows[0], ServerError(f"the server ended {DEATHS} times on this picture: {error}"))


def rubbish(client: "Client | None", error: Exception) -> ServerError:
    """The error itself if it is one of the server, else what an answer was that could not be read."""
    if isinstance(error, ServerError):
        return error
    where = client.url if client else "the server"
    return ServerError(f"{where} gave an answer that ComfyUI would not give ({type(error).__name__}: {error}): look at what runs there")


def numbered(name: str, number: int) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}_{number}{dot}{suffix}"
