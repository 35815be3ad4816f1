"""Programs end with the process that started them, whatever ends it. The parents here are processes of their own."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from portrait_atelier.headless import child

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
LOADER = Path(child.__file__).with_name("pack.py")
IMPORT = f"import runpy, sys; runpy.run_path({str(LOADER)!r})['load_pack']()\n"
# Two processes that hold our pipe open: its end says that both are gone. The first says when the second runs.
FAMILY = ("import subprocess, sys; inner = subprocess.Popen([sys.executable, '-c', 'import time; print(2, flush=True); "
          "time.sleep(600)']); inner.wait()")
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(2, flush=True); time.sleep(600)"


def parent(program, options="", after="life.wait()"):
    """A process that starts `program` through Child, with the reading end of what the program prints."""
    text = (IMPORT + "from portrait_atelier.headless import child\nchild.PATIENCE = 0.3\n"
            f"life = child.Child([sys.executable, '-c', {program!r}], {options})\n{after}")
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("options", ["", "group=False"])
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_takes_its_program_along(sign, options):
    process = parent("import time; print(2, flush=True); time.sleep(600)", options)
    assert process.stdout.readline() == "2\n"
    process.send_signal(sign)
    assert process.communicate(timeout=60)[0] == ""  # returns when nobody holds the pipe


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's signal at a parent's death")
def test_a_parent_killed_with_its_keeper():
    """The keeper first, so that it cannot do its work."""
    process = parent("import time; print(2, flush=True); time.sleep(600)", after="print(life.pid, flush=True); life.wait()")
    keeper, _ = sorted((process.stdout.readline(), process.stdout.readline()), key=int, reverse=True)
    os.kill(int(keeper), signal.SIGKILL)
    process.kill()
    assert process.communicate(timeout=60)[0] == ""


def test_and_what_the_program_has_started():
    process = parent(FAMILY)
    assert process.stdout.readline() == "2\n"
    process.kill()
    process.communicate(timeout=60)


@pytest.mark.parametrize("options", ["", "group=False"])
def test_one_that_does_not_listen_is_ended_by_force(options):
    process = parent(STUBBORN, options)
    assert process.stdout.readline() == "2\n"
    process.kill()
    process.communicate(timeout=60)


def test_a_parent_that_ends_in_order():
    """Without stopping its program."""
    process = parent("import time; print(2, flush=True); time.sleep(600)", after="print(sys.stdin.readline())")
    process.communicate(timeout=60)


def test_stop_and_codes():
    def run(program):
        return child.Child([sys.executable, "-c", program], stdout=subprocess.PIPE)

    assert run("raise SystemExit(7)").wait() == 7
    assert run("import os; os.kill(os.getpid(), 9)").wait() == 128 + 9
    waiting = run("import time; print(2, flush=True); time.sleep(600)")
    assert waiting.stdout.readline() == b"2\n"
    waiting.stop()
    assert waiting.poll() is not None and waiting.stdout.read() == b""


def test_a_killed_keeper_leaves_nothing_after_stop():
    process = child.Child([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"2\n"
    process.kill()
    process.stop()
    assert process.stdout.read() == b""


def test_a_program_in_the_foreground_has_our_input():
    process = child.Child([sys.executable, "-c", "print(input())"], group=False, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.communicate(b"word\n")[0] == b"word\n"


def test_what_cannot_start_is_told():
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        child.Child(["no-such-program"])


def test_the_pipe_as_standard_input_as_on_windows():
    """The keeper by itself, called as it is there."""
    words = [sys.executable, child.__file__, "0", "0", "10", sys.executable, "-c", "import sys; print(repr(sys.stdin.read()))"]
    keeper = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert keeper.stdout.read() == b"''\n" and keeper.wait() == 0  # while the pipe is open
    words[-1] = "import time; print(2, flush=True); time.sleep(600)"
    keeper = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert keeper.stdout.readline() == b"2\n"
    keeper.communicate(timeout=60)
    assert keeper.returncode == 128 + signal.SIGTERM
