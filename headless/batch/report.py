"""report.jsonl in the output folder: a line per call, and one per result or failure. A later call reads it to go on."""
import errno
import json
import os
import threading
import time
from pathlib import Path

from ..errors import AtelierError

NAME = "report.jsonl"


class DiskFull(AtelierError):
    """Nothing can be written any more: the whole batch stops, and the same call goes on later."""


def stamp(paths) -> str:
    """What changes when one of these files does: sizes and times, as reading ten thousand photos takes an hour."""
    found = [os.stat(path) for path in paths]
    return " ".join(f"{status.st_size}-{status.st_mtime_ns}" for status in found)


class Report:
    """The report of the output folder `folder`, locked for this process. Several threads may write to it.

    call: what all results have in common. AtelierError where another call writes here, or results of another kind lie here.
    """

    def __init__(self, folder: Path, call: dict):
        self.folder, self.lock = folder, threading.Lock()
        self.made: "dict[str, int]" = {}  # name -> hash of its inputs
        self.path, self.where = folder / NAME, None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a+b")
        except OSError as error:
            raise AtelierError(f"--output {folder}: results cannot be written there: {error.strerror}; name another folder") from error
        try:
            if not alone(self.file):
                raise AtelierError(f"--output {folder}: another batch is writing there; wait for it, or name another folder")
            earlier = self.read()
            if earlier and self.made and earlier != call:
                changed = [key for key in dict.fromkeys((*earlier, *call)) if earlier.get(key) != call.get(key)]
                raise AtelierError(f"--output {folder} holds results of another call ({', '.join(changed)} differ): name another folder, or "
                                   "repeat that call")
            here = os.getcwd()  # what the paths of inputs start from
            if (earlier, self.where) != (call, here):
                self.write({"call": call, "folder": here, "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
        except BaseException:
            self.file.close()
            raise

    def read(self) -> "dict | None":
        """Takes in what the report says; the last call in it. A line that was cut off, as by a full disk, is removed."""
        call, whole = None, 0
        self.file.seek(0)
        for line in self.file:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise AtelierError(f"{self.path} is no report of a batch: {error}; name another output folder") from error
            if "call" in entry:
                call, self.where = entry["call"], entry.get("folder")
            elif entry.get("output") and not entry.get("error"):
                self.made[entry["output"]] = hash(entry.get("stamp"))
        self.file.seek(0, os.SEEK_END)
        if self.file.tell() > whole:
            self.file.truncate(whole)
        return call

    def done(self, name: str, inputs: str) -> bool:
        """Whether the result `name` is there, made from these inputs."""
        try:
            if not (self.folder / name).is_file():
                return False
        except OSError:  # a name that the system does not take: told when it is saved
            return False
        return self.made.get(name, hash(inputs)) == hash(inputs)

    def told(self, name: str) -> bool:
        """Whether the report has a line for this result; it has none when the call was killed just after saving it."""
        return name in self.made

    def write(self, entry: dict) -> None:
        line = json.dumps(entry, ensure_ascii=False).encode(errors="replace") + b"\n"
        with self.lock:
            try:
                self.file.write(line)
                self.file.flush()
            except OSError as error:
                raise full(error, self.path) from error
            if entry.get("output") and not entry.get("error"):
                self.made[entry["output"]] = hash(entry.get("stamp"))

    def save(self, name: str, data: bytes) -> None:
        """Writes a result below the folder, whole or not at all."""
        path = self.folder / name
        part = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as error:
            try:
                part.unlink(missing_ok=True)
            except OSError:  # nothing was written
                pass
            raise full(error, path) from error

    def close(self) -> None:
        try:
            self.file.close()
        except OSError:  # a full disk, of which has been told
            pass


def full(error: OSError, path: Path) -> AtelierError:
    """DiskFull for what no other result would survive, else an error of this result alone."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return DiskFull(f"no space left on the disk of {path}: make room there, then repeat the call, which goes on where it stopped")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENODEV):
        return DiskFull(f"cannot write {path}: {error.strerror}; mend that, then repeat the call, which goes on where it stopped")
    return AtelierError(f"cannot save {path}: {error.strerror}")


def alone(file) -> bool:
    """Locks the open report for this process, and the system frees it with the process. True where locks are unknown."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
