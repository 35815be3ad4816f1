"""Programs that end when this process ends, however it ends: in order, by an error, or by SIGKILL.

Between us and the program stands a keeper: this file, run as a script. It reads a pipe whose writing end only we hold, so
it sees the pipe end as soon as we are gone, and ends the program. That works on every system and, unlike Linux's signal at
a parent's death, reaches what the program has started itself and does not depend on the thread that started it.
"""
import contextlib
import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

PATIENCE = 10  # seconds between asking a program to end and ending it by force


class Child(subprocess.Popen):
    """Popen of `words` that outlives neither this process nor stop(). A code above 128 is 128 + the signal that ended it.

    With `group` it has a process group of its own: Ctrl-C in the terminal does not reach it, and what it has started
    ends with it. Without, it is in the foreground. The file descriptors `held`, as those of locks, stay open until it
    has ended, also where that is after us (not on Windows).
    """

    def __init__(self, words, group: bool = True, held=(), **options):
        if not shutil.which(words[0]):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(words[0]))
        self.group = group and hasattr(os, "killpg")
        end, life = os.pipe()
        self.life = open(life, "wb", buffering=0)
        if os.name == "nt":  # only standard streams can be handed on there: the program goes without input
            number, options = 0, {**options, "stdin": end}
        else:
            number, options = end, {**options, "pass_fds": (end, *held), "start_new_session": group}
        # -I -S: the standard library is all that the keeper needs, and nothing of the user's may change it.
        keeper = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(number), str(int(self.group)), str(PATIENCE)]
        try:
            super().__init__(keeper + [str(word) for word in words], **options)
        finally:
            os.close(end)

    def stop(self) -> None:
        """End the program and what it has started: politely, and by force after PATIENCE or a second Ctrl-C."""
        self.life.close()
        try:
            self.wait()
        except KeyboardInterrupt:
            self._kill_group()
            self.wait()
        if self.returncode < 0:  # the keeper was killed, perhaps alone
            self._kill_group()

    def _kill_group(self) -> None:
        if self.group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def end_with_keeper() -> None:
    """For a keeper that is killed together with its parent, as Ray kills a worker and what it started: ask Linux for it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def keep(end: int, group: bool, patience: float, words: list) -> int:
    """Run `words` and return its code; end it when the pipe `end` ends."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # for the program to obey: its keeper goes after it
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    linux = sys.platform == "linux"
    program = subprocess.Popen(words, stdin=subprocess.DEVNULL if end == 0 else None, preexec_fn=end_with_keeper if linux else None)
    stopping, ended = threading.Event(), threading.Event()

    def watch():
        os.read(end, 1)  # nobody writes
        stopping.set()
        for sign in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
            if group:
                os.killpg(0, sign)  # SIGKILL takes the keeper with it
            else:
                program.send_signal(sign)
            ended.wait(patience)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    code = program.wait()
    ended.set()
    if stopping.is_set():
        watcher.join()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), sys.argv[2] == "1", float(sys.argv[3]), sys.argv[4:]))
