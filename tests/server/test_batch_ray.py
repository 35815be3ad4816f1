"""`batch --ray` on a local Ray cluster of several nodes: as in one process, whoever dies.

Ray is no part of the environment (the command installs it when asked for), so ATELIER_RAY_PYTHON names a Python that has it; it
needs nothing else.
"""
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("ATELIER_RAY_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="ATELIER_RAY_PYTHON names no Python with ray: pip install -r requirements-ray.txt into one")
SHIPPED = ROOT / "demo" / "pictures"
DONE, SOME_FAILED, ENDED = 0, 1, 2

# A cluster in a process of its own, which obeys the lines of its input: "add" prints a node's address, "remove" takes the last away.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
nodes = []
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "add":
        nodes.append(cluster.add_node(num_cpus=1))
        cluster.wait_for_nodes()
    elif line.strip() == "remove":
        cluster.remove_node(nodes.pop())
    print("done", flush=True)
cluster.shutdown()
"""


class Cluster:
    def __init__(self, folder):
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": "/tmp", "RAY_USAGE_STATS_ENABLED": "0"}
        self.process = subprocess.Popen([PYTHON, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(folder / "ray.log").open("wb"),
                                        text=True, env=variables)
        self.address = self.process.stdout.readline().strip()
        assert self.address, (folder / "ray.log").read_text()

    def tell(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("ray"))
    yield cluster
    cluster.process.stdin.close()
    cluster.process.wait(60)


@pytest.fixture
def folders(tmp_path):
    for name, pattern in (("photos", "content"), ("styles", "style-[in]")):
        (tmp_path / name).mkdir()
        for path in SHIPPED.glob(f"{pattern}*.png"):
            shutil.copy(path, tmp_path / name)
    (tmp_path / "photos" / "poison.png").write_bytes(b"no picture")
    return tmp_path


@pytest.fixture
def call(folders, cluster):
    """call(*arguments) starts the driver, without waiting for it."""
    started = []

    def call(*arguments):
        words = [PYTHON, ROOT / "atelier.py", "batch", "--content", "photos", "--style", "styles", "--steps", "2", *arguments, "--", "--cpu"]
        started.append(subprocess.Popen([str(word) for word in words], cwd=folders, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}))
        return started[-1]

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def lines(folder):
    path = folder / "report.jsonl"
    found = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [entry for entry in (json.loads(line) for line in found if line.endswith("\n")) if "output" in entry]


def until(process, count, folder):
    while len(list(folder.glob("*.png"))) < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)


def test_nothing_is_lost_and_nothing_comes_twice(call, cluster, folders):
    """One run sees a node added, a worker killed, a node removed, and the driver killed and started again; a poisoned picture is in it."""
    single = call("--output", "single")
    _, err = single.communicate(timeout=900)
    assert single.returncode == SOME_FAILED and "6 results made, 2 failed" in err, err
    cluster.tell("add")
    first = call("--output", "out", "--ray", cluster.address, "--ray-cpus", "1")
    until(first, 1, folders / "out")
    cluster.tell("add")  # while it runs
    worker, = re.findall(r"process (\d+)", lines(folders / "out")[0]["worker"])
    os.kill(int(worker), signal.SIGKILL)
    until(first, 2, folders / "out")
    first.kill()
    first.communicate()
    kept = {path.name: path.stat().st_mtime_ns for path in (folders / "out").glob("*.png")}
    again = call("--output", "out", "--ray", cluster.address, "--ray-cpus", "1")
    until(again, min(len(kept) + 1, 6), folders / "out")
    cluster.tell("remove")
    _, err = again.communicate(timeout=900)
    assert again.returncode == SOME_FAILED and "Traceback" not in err, err
    good = [entry["output"] for entry in lines(folders / "out") if not entry["error"]]
    assert len(good) == len(set(good)) == 6
    assert {entry["output"] for entry in lines(folders / "out") if entry["error"]} == {"poison_style-ink.png", "poison_style-neon.png"}
    told = {folder: {entry["error"] for entry in lines(folders / folder) if entry["error"]} for folder in ("single", "out")}
    assert told["single"] == told["out"] and "photos/poison.png is no picture" in "".join(told["out"])
    for path in (folders / "single").glob("*.png"):
        assert (folders / "out" / path.name).read_bytes() == path.read_bytes(), "bit for bit"
    assert all((folders / "out" / name).stat().st_mtime_ns == time for name, time in kept.items())


def test_an_address_that_is_not_there(call):
    process = call("--output", "out", "--ray", "127.0.0.1:9")
    _, err = process.communicate(timeout=120)
    assert process.returncode == ENDED and "Traceback" not in err
    assert err.splitlines()[-1].startswith("atelier.py: --ray 127.0.0.1:9: no Ray cluster there")
