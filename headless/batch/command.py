"""The command `batch`: its options, its plan, its workers together, its exit code."""
import argparse
import contextlib
import hashlib
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Callable

from .. import pictures, workflow as workflows
from ..client import Client
from ..errors import AtelierError
from ..progress import Display
from ..stylize import add_settings, check_file, choose
from . import files, graph as graphs
from .report import DiskFull, Report, stamp
from .rows import SIDES, Rows, entries
from .worker import Job, Stopped, Worker

DONE, SOME_FAILED, ENDED = 0, 1, 2
MOST = 8  # contents in one run with --batch auto
BYTES = 3.0  # that a pixel of a PNG takes at most, for the plan
AREA = 512 * 512  # pixels that take MEMORY bytes of a GPU's memory in a sampler batch, by --batch auto's guess
MEMORY = 1.5e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    for side in SIDES:
        add(f"--{side}", metavar="FOLDER|GLOB|CSV", help={
            "content": "portraits to stylize: a folder, a pattern such as 'in/**/*.jpg', or a CSV file whose columns are content, style, face, output "
            "(the result's name), any option below (prompt, seed, checkpoint ...) or NODE.INPUT. Two such lists give all pairs",
            "style": "pictures that give the style", "face": "photos of people, for the fastface workflows"}[side])
    add("--output", metavar="FOLDER", required=True, help="where results and report.jsonl go; the same call goes on where it stopped")
    add("--names", metavar="PATTERN", help="names of results, as {content}_{style} or {style}/{content}_{seed}; {row} is a number, "
        "and any column stands for its value")
    add("--format", choices=list(files.FORMATS), default="png", help="of the results (default: %(default)s)")
    add("--quality", type=int, default=95, metavar="1..100", help="of WebP and JPEG (default: %(default)s)")
    add("--metadata", choices=("keep", "strip"), default="keep", help="whether the workflow is in the results (default: %(default)s)")
    add("--batch", default="1", metavar="auto|N", help="contents that are sampled together, where the workflow allows it; auto goes by the "
        "GPU's memory (default: %(default)s)")
    add("--servers", metavar="URL,URL", help="use the ComfyUIs that run there (they need this pack) instead of starting one")
    add("--ray", nargs="?", const="local", metavar="ADDRESS", help="workers on a Ray cluster: HOST:PORT of its head, auto on one of its machines, "
        "or nothing for this machine alone; one worker per GPU, else per --ray-cpus cores (docs/scale.md)")
    add("--ray-cpus", type=int, default=4, metavar="N", help="cores of a worker where the cluster has no GPUs (default: %(default)s)")
    add("--evaluate", action="store_true", help="measure the results afterwards: a table here, evaluation.json and evaluation.html in the "
        "output folder (docs/evaluation.md)")
    add_settings(parser)


def batch(args, start: Callable, display: Display, extra: list) -> int:
    """Does what `args` (see add_arguments) say; the exit code. `start(checkpoint_folder)` gives a LocalServer, for without --servers
    and --ray; `extra` are more options of ComfyUI.

    Raises AtelierError where nothing could start.
    """
    sides = {side: entries(getattr(args, side), side) for side in SIDES if getattr(args, side)}
    if not sides:
        raise AtelierError("a batch needs pictures: give --content FOLDER, and --style FOLDER for all pairs (see atelier.py batch --help)")
    rows = Rows(sides, args.names)
    if args.batch != "auto" and not (args.batch.isdigit() and int(args.batch) > 0):
        raise AtelierError(f"--batch {args.batch}: give auto, or how many contents are sampled together")
    if args.ray is not None and args.servers:
        raise AtelierError("--ray starts its own servers: leave --servers out")
    if not 1 <= args.quality <= 100:
        raise AtelierError(f"--quality {args.quality} is out of range; it goes from 1 to 100")
    titles = [title for title in pictures.TITLES if any(title in side[0].pictures for side in sides.values())]
    face = titles == ["Face"]
    chosen = args.workflow is None and args.checkpoint is not None
    args.workflow = args.workflow or ("fastface_demo" if face else "zepo_demo")
    workflow = workflows.load(args.workflow)
    for title in titles:
        if title not in pictures.titles(workflow):
            raise AtelierError(f'workflow {args.workflow} has no Load Image node titled "{title}"; its pictures: '
                               f"{', '.join(pictures.titles(workflow)) or 'none'}")
    urls = [url for url in (args.servers or "").split(",") if url.strip()]
    check_file(args.checkpoint, None if chosen else args.workflow, args.servers)
    folder = Path(args.output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise AtelierError(f"--output {folder} is a file: name a folder")

    checkpoint = Path(args.checkpoint or "").expanduser()
    is_file = bool(args.checkpoint) and checkpoint.is_file() and not urls
    opens = [(url, lambda url=url: contextlib.nullcontext(Client(url))) for url in urls]
    opens = opens or [("local", lambda: answering(start, checkpoint.absolute().parent if is_file else None, display))]
    if is_file:
        args.checkpoint = checkpoint.name
    if chosen:
        with opens[0][1]() as served:
            workflow = choose(args, getattr(served, "client", served), face, display)
    settings = [(option, getattr(args, option)) for option in workflows.OPTIONS if getattr(args, option) is not None]
    settings += [(None, assignment) for assignment in args.assignments]
    shipped = {title: file for title, (file, needed) in pictures.named(workflow).items() if needed and title not in titles}
    call = {"workflow": args.workflow, "graph": hashlib.sha256(json.dumps(workflow, sort_keys=True).encode()).hexdigest()[:16],
            "settings": [list(pair) for pair in settings], "names": rows.pattern, "format": args.format, "quality": args.quality,
            "metadata": args.metadata}
    report = Report(folder, call)
    try:
        common = {"workflow": workflow, "name": args.workflow, "settings": settings, "sides": titles, "uploads": shipped,
                  "returning": None, "kind": args.format, "quality": args.quality, "metadata": args.metadata == "keep"}
        job = Job(**common, report=report, mark="batch-" + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8])
        if args.ray is not None:
            from . import ray_cluster

            ray = ray_cluster.connect(args.ray)
            workers = ray_cluster.workers(ray, job, common, extra, str(checkpoint.absolute().parent) if is_file else None, args.ray_cpus,
                                          len(rows.first))
        else:
            job.returning = returning(rows, titles)
            workers = [Worker(name, open, job, number) for number, (name, open) in enumerate(opens)]
        return Batch(rows, job, workers, args.batch, display).run()
    finally:
        report.close()


@contextlib.contextmanager
def answering(start: Callable, checkpoint_folder, display: Display):
    with start(checkpoint_folder) as server:
        server.wait(lambda seconds: display.show(f"Starting ComfyUI ... {seconds:.0f} s", key="start"))
        yield server


def returning(rows: Rows, titles: "list[str]") -> "set | None":
    """The pictures beside the first ones that come with more than one of those; None: all of them."""
    if rows.others:
        return None if len(rows.first) > 1 else set()
    found: "dict" = {}
    for entry in rows.first:
        for title in titles[1:]:
            found.setdefault(entry.pictures.get(title), set()).add(entry.pictures[titles[0]])
    return {path for path, firsts in found.items() if len(firsts) > 1}


class Batch:
    """The rows, and the workers that take them."""

    def __init__(self, rows: Rows, job: Job, workers: "list[Worker]", together: str, display: Display):
        self.rows, self.job, self.workers, self.display = rows, job, workers, display
        self.together = 1 if together == "auto" else int(together)
        self.auto = together == "auto"
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.finished = threading.Event()
        self.taking, self.active = threading.Condition(), 0
        self.made = self.failed = self.found = 0
        self.errors: "list[Exception]" = []
        self.counted: "set[int]" = set()  # numbers of the rows that are done, failed or found
        self.todo: "list[list]" = []  # chunks that a worker gave back
        self.left = iter(())
        self.began = time.monotonic()
        self.shown = 0.0
        job.on_progress = self.progress

    def run(self) -> int:
        """Makes everything that is not there yet. Raises AtelierError where no worker could start."""
        self.starting()
        display = self.display
        self.plan()
        self.left = self.groups()
        self.began = time.monotonic()
        threads = [threading.Thread(target=self.work, args=(worker,), daemon=True) for worker in self.workers]
        try:
            for thread in threads:
                thread.start()
            # Workers may still be starting, or waiting for a place, when the others are done.
            while not self.finished.wait(0.2) and any(thread.is_alive() for thread in threads):
                pass
        finally:
            self.stop.set()
            for worker in self.workers:
                worker.stop()
            for thread in threads:
                thread.join(10)
        display.clear()
        extracted = sum(worker.extractions for worker in self.workers)
        missing = len(self.rows) - self.made - self.failed - self.found
        display.say(f"{self.made} results made" + (f", {self.found} were there" if self.found else "") + (f", {self.failed} failed" if self.failed else "")
                    + (f", {missing} not begun" if missing else "")
                    + f"; features of pictures read {extracted} times; {duration(time.monotonic() - self.began)}; report: {self.job.report.path}")
        fatal = next((error for error in self.errors if not isinstance(error, AtelierError) or isinstance(error, DiskFull)), None)
        fatal = fatal or (self.errors[0] if self.errors and missing else None)
        if fatal:
            raise fatal
        return SOME_FAILED if self.failed else DONE

    def starting(self) -> None:
        """Starts workers until one is ready: the others start when they begin. AtelierError where none can."""
        self.display.show("Waiting for a worker ...", key="waiting")
        errors = []
        for worker in self.workers:
            try:
                worker.start()
                self.ready = worker
                return
            except AtelierError as error:
                worker.stop()
                if len(self.workers) == 1:
                    raise
                self.display.say(f"Note: {worker.name} is left out: {error}")
                errors.append((worker, error))
            except BaseException:
                worker.stop()
                raise
            finally:
                self.workers = [other for other in self.workers if other not in [failed for failed, _ in errors]]
        raise AtelierError(f"no server of {len(errors)} can be used; the first: {errors[0][1]}")

    def plan(self) -> None:
        """Says what will be done, before the first picture."""
        job, told = self.job, self.ready.about()
        graph = graphs.result_only(told["workflow"])
        if self.auto:
            self.together = fitting(told["stats"], graph)
        if self.together > 1 and not graphs.can_join(graph, job.sides[0]):
            self.display.say("Note: --batch has no effect: several contents cannot go through this workflow together, each as it would alone")
            self.together = 1
        width, height = graphs.size(graph)
        count, first = len(self.rows), len(self.rows.first)
        text = f"{count} results" + (f" ({' x '.join(str(len(side)) for side in (self.rows.first, *self.rows.others))})" if self.rows.others else "")
        rows = graphs.unet_rows(graph)
        if rows:
            text += f", {rows * count:,} UNet rows ({rows} each)"
        if graphs.kept_features(graph, job.sides[0], job.sides[1:]):
            text += f", features of {first} contents once, of each style once per worker"
        if self.together > 1:
            text += f", {self.together} contents together"
        need, free = width * height * BYTES * count * (1 if job.kind == "png" else 0.3), shutil.disk_usage(job.report.folder).free
        text += f"; {'up to ' * (len(self.workers) > 1)}{len(self.workers)} worker{'s' * (len(self.workers) > 1)}; up to {size(need)} of disk, {size(free)} are free"
        self.display.say("Plan: " + text)
        if need > free:
            self.display.say("Note: that may not fit; when the disk is full the batch stops, and the same call goes on after you made room")

    def groups(self):
        """Chunks of rows that belong to one worker: those of as many contents as go together."""
        chunk = []
        for group in self.rows.groups():
            chunk.append(group)
            if len(chunk) == self.together:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def take(self) -> "list | None":
        """The next chunk; None when none is left and no worker can give one back any more."""
        with self.taking:
            while not self.stop.is_set():
                chunk = self.todo.pop() if self.todo else next(self.left, None)
                if chunk is not None:
                    self.active += 1
                    return chunk
                if not self.active:
                    self.finished.set()
                    return None
                self.taking.wait(0.5)
            return None

    def work(self, worker: Worker) -> None:
        """A worker's thread: takes chunks until none is left. A worker whose server is gone gives its chunk back to the others."""
        if worker is not self.ready:
            try:
                worker.start()
            except Exception as error:
                if not self.stop.is_set() and not isinstance(error, Stopped):
                    self.say(f"Note: {worker.name} is left out: {error}")
                return
        while (chunk := self.take()) is not None:
            back = False
            try:
                self.make(worker, chunk)
            except Stopped:
                return
            except Exception as error:
                if self.stop.is_set():  # its server was stopped under it
                    return
                self.errors.append(error)
                if isinstance(error, DiskFull) or not isinstance(error, AtelierError):
                    self.stop.set()
                    return
                back = True
                self.say(f"Note: {worker.name} ends: {error}")
                return
            finally:
                with self.taking:
                    self.active -= 1
                    if back:
                        self.todo.append(chunk)
                    self.taking.notify_all()

    def say(self, text: str) -> None:
        with self.lock:
            self.display.say(text)

    def make(self, worker: Worker, chunk: list) -> None:
        """All rows of a chunk that are not there yet: for each style the contents together."""
        alike: "dict[str, list]" = {}
        for group in chunk:
            for row in group:
                others = {title: str(path) for title, path in row.pictures.items() if title != self.job.sides[0]}
                alike.setdefault(json.dumps([row.settings, others]), []).append(row)
        for rows in alike.values():
            wanted = [row for row in rows if row.number not in self.counted and not self.there(worker, row)]
            for at in range(0, len(wanted), self.together):
                if self.stop.is_set():
                    raise Stopped
                worker.make(wanted[at:at + self.together])

    def there(self, worker: Worker, row) -> bool:
        """Whether a row was made by an earlier call, or earlier in this one; its line is added where a kill came between."""
        name = worker.file(row)
        try:
            inputs = stamp(row.pictures.values())
        except OSError:  # told when it is made
            return False
        if not self.job.report.done(name, inputs):
            return False
        if not self.job.report.told(name):
            worker.write(row, seconds=None, error=None, note="found", stamp=inputs)
        with self.lock:
            self.counted.add(row.number)
            self.found += 1
        return True

    def progress(self, worker: Worker, row=None, error=None) -> None:
        """Called at every event of a run, and with a row when it is done or has failed."""
        if self.stop.is_set() and row is None:
            raise Stopped  # cancels the run on the server
        with self.lock:
            if row is not None:
                self.counted.add(row.number)
                self.made += error is None
                self.failed += error is not None
                if error is not None:
                    self.display.say(f"{', '.join(str(path) for path in row.pictures.values())}: {error}")
            now = time.monotonic()
            if row is not None or self.active and now - self.shown > 1:
                self.shown = now
                self.display.show(self.line(), key=f"{self.tenth()}")

    def tenth(self) -> int:
        """A step that is worth a line where no line can be renewed."""
        return 20 * (self.made + self.failed) // max(1, len(self.rows))

    def line(self) -> str:
        done, seconds = self.made + self.failed, time.monotonic() - self.began
        text = f"{done + self.found}/{len(self.rows)}" + (f", {self.failed} failed" if self.failed else "")
        if not done:
            return text
        return text + f", {seconds / done:.2f} s each, {duration(seconds / done * (len(self.rows) - done - self.found))} left"


def fitting(stats: "dict | None", graph: dict) -> int:
    """How many contents go together by the memory of the server's GPU; 1 without one. A guess: a run that fails is repeated singly."""
    devices = (stats or {}).get("devices") or [{}]
    if devices[0].get("type") in (None, "cpu"):
        return 1
    width, height = graphs.size(graph)
    return max(1, min(MOST, int(devices[0].get("vram_free", 0) / (MEMORY * width * height / AREA)) - 1))


def duration(seconds: float) -> str:
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours = seconds // 60, seconds // 3600
    if hours < 1:
        return f"{minutes} min {seconds % 60} s"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
