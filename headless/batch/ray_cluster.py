"""Workers on a Ray cluster: Ray places them, one per GPU or per some CPU cores, starts them again elsewhere when they or their
machines die, and adds machines where it may; the driver keeps the plan, the report and the results.

Pictures travel through Ray's object store: a style once per worker, a content once per machine that makes it, a result back.
So the machines need no shared storage, only the pack at the same path, in the same version. Every worker has one row at a
time in hand: that is all the back-pressure that is needed.
"""
import hashlib
import threading
from pathlib import Path

from ..environment import ROOT
from ..errors import AtelierError, ExecutionError
from .files import FORMATS
from .remote import version
from .report import DiskFull, stamp
from .rows import Row
from .worker import DEATHS, Job, Stopped

MOST = 64  # workers that are asked for at once where the cluster can grow


def connect(address: "str | None"):
    """The module ray, connected to the cluster at `address`; "local" starts one on this machine. AtelierError where there is none."""
    import ray

    try:
        # No log lines of workers between those of the plan; Ray keeps them in its own folder.
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AtelierError(f"--ray {address}: no Ray cluster there: {reason}; give HOST:6379 of its head, auto on one of its machines, or "
                           "local for this machine alone") from error
    return ray


def workers(ray, job: Job, about: dict, extra: list, checkpoint_folder, cpus: int, most: int) -> "list[RayWorker]":
    """As many as the cluster may come to hold; those that find no place wait for one."""
    gpus = ray.cluster_resources().get("GPU", 0)
    options = {"num_cpus": 1, "num_gpus": 1} if gpus else {"num_cpus": cpus}

    class Actor:
        """In a class made here, so that Ray sends its code, and the pack is found on the machine itself."""

        def __init__(self, root, about, extra, checkpoint_folder):
            import importlib
            import sys

            sys.path.insert(0, root)
            remote, self.rows = (importlib.import_module(f"headless.batch.{name}") for name in ("remote", "rows"))
            self.found = remote.version()
            self.maker = remote.Maker(about, extra, checkpoint_folder)

        def start(self, wanted):
            if self.found != wanted:
                return {"error": f"the pack there is of another version ({self.found}, here {wanted}): bring all machines to one"}
            try:
                return self.maker.start()
            except Exception as error:
                return {"error": str(error)}

        def about(self):
            return self.maker.about()

        def make(self, rows, names, *pictures):
            return self.maker.make([self.rows.Row(**row) for row in rows], dict(zip(names, pictures)))

    remote = ray.remote(max_restarts=-1, max_task_retries=0, **options)(Actor)
    shared = Shared(ray)
    return [RayWorker(ray, lambda: remote.remote(str(ROOT), about, extra, checkpoint_folder), job, number, shared) for number in range(min(most, MOST))]


class Shared:
    """Pictures in the object store. Styles stay there; contents only while they are in hand."""

    def __init__(self, ray):
        self.ray, self.kept, self.lock = ray, {}, threading.Lock()

    def __call__(self, path: Path, first: bool):
        """(key, reference) of a picture's bytes. OSError where it cannot be read."""
        # With the file's own name, which the result's metadata tell.
        key = ("first/" if first else "") + hashlib.sha256(f"{path} {stamp([path])}".encode()).hexdigest()[:24] + "/" + path.name
        if first:
            return key, self.ray.put(path.read_bytes())
        with self.lock:
            if key not in self.kept:
                self.kept[key] = self.ray.put(path.read_bytes())
            return key, self.kept[key]


class RayWorker:
    """What Worker is, with the work done by an actor of Ray."""

    def __init__(self, ray, create, job: Job, number: int, shared: Shared):
        self.ray, self.create, self.job, self.shared = ray, create, job, shared
        self.name, self.actor, self.extractions, self.failures = f"ray {number}", None, 0, 0

    def start(self) -> None:
        """Waits until Ray has a place for it, and until its ComfyUI answers. AtelierError where it cannot start."""
        self.actor = self.create()
        try:
            self.begin()
        except self.ray.exceptions.RayActorError as error:
            last = (str(error).strip().splitlines() or ["no reason"])[-1].strip()
            raise AtelierError(f"{self.name} did not start: {last}; the pack must lie at {ROOT} on every machine of the cluster") from error

    def begin(self) -> None:
        told = self.get(self.actor.start.remote(version()))
        if "error" in told:
            raise AtelierError(f"{self.name}: {told['error']}")

    def get(self, reference):
        """The value, while looking whether the batch is stopped."""
        while True:
            ready, _ = self.ray.wait([reference], timeout=1)
            if ready:
                return self.ray.get(reference)
            self.job.on_progress(self)  # Stopped

    def about(self) -> dict:
        return self.get(self.actor.about.remote())

    def file(self, row: Row) -> str:
        return row.name + FORMATS[self.job.kind]

    def make(self, rows: "list[Row]") -> None:
        """As Worker.make: rows are made and reported, or reported as failed."""
        try:
            stamps = {row.number: stamp(row.pictures.values()) for row in rows}
            shares, sent = {}, []
            for row in rows:
                pictures = {}
                for at, (title, path) in enumerate(row.pictures.items()):
                    if (path, at) not in shares:
                        shares[path, at] = self.shared(path, at == 0)
                    pictures[title] = shares[path, at][0]
                sent.append({"pictures": pictures, "settings": row.settings, "name": row.name, "number": row.number})
        except OSError as error:
            for row in rows:
                self.failed(row, error)
            return
        names = [key for key, _ in shares.values()]
        try:
            events, extracted = self.get(self.actor.make.remote(sent, names, *(reference for _, reference in shares.values())))
        except Stopped:
            raise
        except self.ray.exceptions.RayActorError as error:
            return self.died(rows, error)
        except self.ray.exceptions.RayTaskError as error:
            raise AtelierError(f"{self.name}: {error.cause}") from error
        self.extractions += extracted
        lost = None  # why the result that the next line is about could not be saved
        for kind, *what in events:
            if kind == "save":
                try:
                    self.job.report.save(*what)
                except DiskFull:
                    raise
                except AtelierError as problem:
                    lost = problem
                continue
            entry, = what
            row = next(row for row in rows if row.number == entry["row"])
            error, lost = entry["error"] or (str(lost) if lost else None), None
            for (path, _), (key, _) in shares.items() if error else ():
                error = error.replace(key, str(path))
            entry["error"] = error
            told = {title.lower(): str(path) for title, path in row.pictures.items()}
            entry |= {"inputs": told} | ({} if error else {"stamp": stamps[row.number]})
            self.job.report.write(entry)
            self.job.on_progress(self, row, ExecutionError(error) if error else None)

    def died(self, rows: "list[Row]", error: Exception) -> None:
        """The worker or its machine is gone: Ray starts it again, on another machine where it must, and the rows are made there."""
        names = tuple(row.name for row in rows)
        self.job.deaths[names] = self.job.deaths.get(names, 0) + 1
        if self.job.deaths[names] > DEATHS:
            for row in rows:
                self.failed(row, ExecutionError(f"workers ended {DEATHS + 1} times on this picture: {error}"))
        while True:
            try:
                self.begin()
                break
            except self.ray.exceptions.RayActorError:
                self.job.on_progress(self)  # Stopped; else Ray is still at it
        if self.job.deaths[names] <= DEATHS:
            self.make(rows)

    def write(self, row: Row, **more) -> None:
        told = {title.lower(): str(path) for title, path in row.pictures.items()}
        self.job.report.write({"output": self.file(row), "row": row.number, "inputs": told, "settings": row.settings, "worker": self.name, **more})

    def failed(self, row: Row, error: Exception) -> None:
        self.write(row, error=str(error))
        self.job.on_progress(self, row, error)

    def stop(self) -> None:
        if self.actor is not None:
            try:
                self.ray.kill(self.actor)
            except Exception:  # the cluster may be gone
                pass
