"""Start a ComfyUI as a child process, wait until it answers, stop it with everything it started."""
import contextlib
import errno
import os
import re
import socket
import subprocess
import time
from pathlib import Path

from .child import Child
from .client import Client
from .errors import AtelierError, ServerError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def require_free(port: int) -> None:
    """AtelierError when `port` of this machine cannot be used; where it is taken, it says by whom."""
    with socket.socket() as probe:
        if os.name != "nt":  # as servers do: a port in TIME_WAIT is free (on Windows the option means something else)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            if getattr(error, "errno", None) != errno.EADDRINUSE:
                raise AtelierError(f"port {port} of 127.0.0.1 cannot be used: {error}; choose another with --port") from error
        else:
            return
    raise AtelierError(f"port {port} of 127.0.0.1 is taken by {occupant(port)}")


def occupant(port: int) -> str:
    """Who listens at `port` of this machine, and what to do about it."""
    found = listener(port)
    who = f" ({found[1]}, process {found[0]})" if found else ""
    client = Client(f"http://127.0.0.1:{port}", timeout=5)
    try:
        version = client.version()
        ours = client.node_info("AtelierDemoModelLoader") is not None
    except ServerError:
        return f"{f'{found[1]}, process {found[0]}' if found else 'another program'}: end it, or choose another port with --port"
    if ours:
        return f"a ComfyUI {version}{who} that has this pack: open {client.url}, or start a second one with another --port"
    return f"a ComfyUI {version}{who} without this pack: end it, or choose another port with --port"


def listener(port: int) -> "tuple[int, str] | None":
    """Process id and name of the program that listens at `port`, where the system tells us (Linux; our own programs)."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == "0A":  # listens
                    sockets.add(f"socket:[{fields[9]}]")
    for entry in Path("/proc").glob("[0-9]*/fd/*") if sockets else ():
        with contextlib.suppress(OSError):  # it ended meanwhile, or is not ours
            if os.readlink(entry) in sockets:
                process = entry.parents[1]
                return int(process.name), (process / "comm").read_text().strip()
    return None


class LocalServer:
    """A ComfyUI that ends when we do. Ctrl-C in the terminal reaches us alone, and we stop it in order.

    `command`, a Python's first, starts it; `url` is where it will answer; what it prints goes to the file `log`.
    """

    def __init__(self, command: "list[str]", url: str, cwd, log, env=None):
        self.client, self.log = Client(url), Path(log)
        self.python = str(command[0])
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as output:
            self.process = Child(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)

    def wait(self, on_wait=lambda seconds: None, limit: float = 600.0) -> None:
        """Return when ComfyUI answers; AtelierError, after stopping it, when it ends or takes more than `limit` seconds.

        `on_wait(seconds)` is called several times a second.
        """
        start = time.monotonic()
        while True:
            try:
                self.client.version()
                return
            except ServerError:
                waited = time.monotonic() - start
                ended = self.process.poll() is not None
                if ended or waited > limit:
                    self.stop()
                    what = f"ended with code {self.process.returncode}" if ended else f"did not answer in {limit:.0f} s"
                    raise AtelierError(f"ComfyUI {what}: {self.last_line()} (log: {self.log})") from None
                on_wait(waited)
                time.sleep(0.2)

    def last_line(self) -> str:
        text = re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(encoding="utf-8", errors="replace"))  # its colours
        lines = text.strip().splitlines()
        return lines[-1].strip() if lines else "it printed nothing"

    def stop(self) -> None:
        self.process.stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
