"""Start a ComfyUI as a child process, wait until it answers, stop it with everything it started."""
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

from .client import Client
from .errors import AtelierError, ServerError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def require_free(port: int) -> None:
    """AtelierError when `port` of this machine is taken."""
    with socket.socket() as probe:
        if os.name != "nt":  # as servers do: a port in TIME_WAIT is free (on Windows the option means something else)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise AtelierError(f"port {port} of 127.0.0.1 cannot be used: {error}; choose another with --port") from error


class LocalServer:
    """A ComfyUI in a process group of its own: Ctrl-C in the terminal reaches us, and we stop it in order.

    `command` starts it; `url` is where it will answer; what it prints goes to the file `log`.
    """

    def __init__(self, command: "list[str]", url: str, cwd, log, env=None):
        self.client, self.log = Client(url), Path(log)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )

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
        stop_group(self.process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def stop_group(process: subprocess.Popen) -> None:
    """End a process that was started with start_new_session, and what it started: politely, and by force after
    10 seconds or a second Ctrl-C."""
    for polite in (True, False):
        if process.poll() is None:
            try:
                if os.name == "nt":
                    process.terminate()
                else:
                    os.killpg(process.pid, signal.SIGTERM if polite else signal.SIGKILL)
                process.wait(10)
            except (subprocess.TimeoutExpired, KeyboardInterrupt, ProcessLookupError):
                continue
