"""One real ComfyUI for the whole run, with the pack and the test pack "kit"."""
import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from PIL import Image

from portrait_atelier.headless.environment import OLDEST
from portrait_atelier.headless.server import LocalServer, free_port

ROOT = Path(__file__).resolve().parents[2]
KIT = Path(__file__).parent / "kit"
FLAGS = """--cpu --listen 127.0.0.1 --database-url sqlite:///:memory: --disable-api-nodes
           --disable-all-custom-nodes --log-stdout --whitelist-custom-nodes portrait-atelier kit""".split()


@contextlib.contextmanager
def serving(comfyui, base: Path):
    """This ComfyUI with the pack and the kit, on the empty folder `base`: a LocalServer that answers."""
    for name in ("custom_nodes", "models/checkpoints", "input", "output", "user"):
        (base / name).mkdir(parents=True)
    (base / "custom_nodes" / "portrait-atelier").symlink_to(ROOT, target_is_directory=True)
    (base / "custom_nodes" / "kit").symlink_to(KIT, target_is_directory=True)
    port = free_port()
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "main.py", "--port", str(port),
               "--base-directory", str(base), *FLAGS]
    with LocalServer(command, f"http://127.0.0.1:{port}", comfyui, base / "server.log",
                     {**os.environ, "OMP_NUM_THREADS": "1"}) as server:
        server.wait()
        server.base = base
        yield server


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with serving(os.environ["COMFYUI_PATH"], tmp_path_factory.mktemp("comfyui")) as server:
        yield server


@pytest.fixture(scope="module")
def oldest_server(tmp_path_factory):
    """The oldest ComfyUI that the pack runs on, which only the set-up in .atelier/ brings."""
    if not OLDEST.exists() and not os.environ.get("CI"):
        pytest.skip(f"{OLDEST} is absent: COMFYUI_PATH names a ComfyUI of yours")
    with serving(OLDEST, tmp_path_factory.mktemp("oldest")) as server:
        yield server


@pytest.fixture
def client(server):
    return server.client


@pytest.fixture
def kit_workflow():
    """A complete ZePo run on a tiny random model, in the API format. Load Image nodes "Content" and "Style"."""
    return copy.deepcopy(json.loads((KIT / "workflow.json").read_text()))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """(content, style): paths of two PNG files, neither square."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, color, size in (("content", (200, 150, 120), (160, 128)), ("style", (20, 60, 200), (128, 144))):
        picture = Image.new("RGB", size, color)
        picture.paste((250, 240, 30), (20, 30, 70, 100))
        picture.save(folder / f"{name}.png")
    return folder / "content.png", folder / "style.png"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A small SD1.5 checkpoint of random weights under a name with space and umlaut, with lcm-lora-sdv1-5.safetensors beside it."""
    folder = tmp_path_factory.mktemp("my models")
    # In a process of its own: this one's ComfyUI has its folders already, and would keep the memory.
    subprocess.run([sys.executable, str(Path(__file__).with_name("checkpoints.py")), os.environ["COMFYUI_PATH"], str(folder)], check=True,
                   env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder / "Mein Modell ä.safetensors"


@pytest.fixture
def atelier(tmp_path):
    """atelier(*arguments) runs the command in an empty folder to its end; atelier.start(...) leaves it running.

    After the test none of their processes and none of their folders may be left.
    """
    mark, processes = f"ATELIER_TEST={uuid.uuid4().hex}", []

    def start(*arguments, **variables):
        processes.append(subprocess.Popen(
            [sys.executable, str(ROOT / "atelier.py"), *map(str, arguments)], cwd=tmp_path, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **dict([mark.split("=")]), **variables},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # A shell that runs the tests in the background ignores Ctrl-C, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ))
        return processes[-1]

    def run(*arguments, **variables):
        process = start(*arguments, **variables)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    run.start, run.left = start, lambda: marked(mark)
    yield run
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.kill()  # what it has started goes with it
        process.wait()
    assert [process.args for process in running] == []
    assert [path for process in processes for path in (ROOT / ".atelier").glob(f"run-{process.pid}-*")] == []
    assert marked(mark) == []


def until(process, condition) -> None:
    """Waits for condition(), which has to hold before the process ends. Looks now and then: servers need the cores."""
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def marked(mark: str) -> list:
    """The command lines of all processes that inherited the variable `mark` (where the system shows them)."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append((path / "cmdline").read_text())
        except OSError:  # it ended meanwhile, or is not ours
            pass
    return found
