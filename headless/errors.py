"""What can go wrong, said in one line: what is wrong, where it was looked for, what to do."""
import errno
from pathlib import Path


class AtelierError(Exception):
    """A bad call or a failed step. The text is one line for the user; the command prints it and exits with code 2."""


class ServerError(AtelierError):
    """Nothing answers, what answers is not ComfyUI, or the connection broke."""


class RejectedError(AtelierError):
    """ComfyUI refused a workflow before running it. The text holds the messages of the nodes."""


class ExecutionError(AtelierError):
    """A node failed while the workflow ran. The text names the node and holds its message."""


class InterruptedRun(AtelierError):
    """The run was cancelled on the server, by this program or by someone else."""


def told(error: OSError, home: Path) -> str:
    """The line for an OSError that nothing else has explained; `home` is the folder that the command works in."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return f"no space left on the disk of {error.filename or home}: make room there, then repeat the call"
    ours = error.filename is not None and (home == Path(error.filename) or home in Path(error.filename).parents)
    if ours and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (f"cannot write {error.filename}: {error.strerror}; the command keeps its environment, logs and running "
                f"files in {home}, so clone the pack to a place where you may write")
    return str(error)
