"""The command with the ComfyUI that it starts itself: nothing of it may be left behind."""
import json
import os
import signal
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from portrait_atelier.headless.server import free_port

HOME = Path(__file__).resolve().parents[2] / ".atelier"


def leftovers():
    """Processes that run ComfyUI on a base folder of this clone, and folders of runs."""
    found = [path.name for path in HOME.glob("run-*")]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it ended meanwhile
            continue
        if "main.py" in words and str(HOME / "base") in words:
            found.append(" ".join(words))
    return found


@pytest.fixture(autouse=True)
def nothing_left():
    before = leftovers()
    yield
    assert [found for found in leftovers() if found not in before] == []


@pytest.fixture(scope="module", autouse=True)
def linux():
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("looks for processes in /proc")


def test_stylize_starts_runs_saves_and_stops(atelier, pictures, tmp_path):
    result = atelier("stylize", "--content", pictures[0], "--style", pictures[1], "--prompt", "a head", "--negative", "hat")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "content_style.png\n"
    assert Image.open(tmp_path / "content_style.png").size == (256, 256)
    assert "Starting ComfyUI" in result.stderr and "] KSampler  [####################] 4/4" in result.stderr


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_during_the_run(atelier, pictures, sign):
    process = atelier.start("stylize", "--content", pictures[0], "--style", pictures[1], "--steps", 10000)
    line = ""
    while "] KSampler  [" not in line:
        line = process.stderr.readline()
        assert line
    process.send_signal(sign)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and err.endswith("atelier.py: interrupted\n") and "Traceback" not in err


def test_ctrl_c_while_comfyui_starts(atelier, pictures):
    process = atelier.start("stylize", "--content", pictures[0], "--style", pictures[1])
    while "Starting ComfyUI" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].endswith("atelier.py: interrupted\n")
    assert process.returncode == 130


def loads(name):
    """A workflow that loads checkpoint `name` and decodes nothing with it."""
    return json.dumps({
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": name}, "_meta": {"title": "Load"}},
        "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "3": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 2]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}},
    })


def test_a_checkpoint_file_is_found_where_it_lies_and_others_are_listed(atelier, tmp_path):
    """The file is no checkpoint, so that the loader names it: ComfyUI found it, and by a path only we gave."""
    (tmp_path / "w.json").write_text(loads("default.safetensors"))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.safetensors").write_bytes(b"no checkpoint")
    found = atelier("stylize", "--workflow", "w.json", "--checkpoint", "models/mine.safetensors")
    assert found.returncode == 2
    assert 'node "Load" (CheckpointLoaderSimple, id 1) failed' in found.stderr.splitlines()[-1]
    missing = atelier("stylize", "--workflow", "w.json")
    assert missing.returncode == 2
    assert "checkpoint 'default.safetensors' not found; looked in " in missing.stderr.splitlines()[-1]
    assert str(HOME / "base" / "models" / "checkpoints") in missing.stderr.splitlines()[-1]
    gone = atelier("stylize", "--workflow", "w.json", "--checkpoint", tmp_path / "gone.safetensors")
    assert gone.returncode == 2 and "no such file" in gone.stderr


def test_a_comfyui_that_does_not_start_shows_its_reason_and_log(atelier, pictures):
    result = atelier("stylize", "--content", pictures[0], "--style", pictures[1], "--", "--no-such-option")
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert "ComfyUI ended with code 2" in last and "--no-such-option" in last and str(HOME / "logs" / "comfyui.log") in last


def test_serve_answers_at_its_port_and_stops(atelier):
    port = free_port()
    process = atelier.start("serve", "--port", port, "--", "--database-url", "sqlite:///:memory:")
    line = ""
    while "is ready" not in line:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
    assert f"http://127.0.0.1:{port}" in line
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    assert b"AtelierSEACPatch" in opener.open(f"http://127.0.0.1:{port}/object_info/AtelierSEACPatch").read()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].endswith("atelier.py: interrupted\n")
    assert process.returncode == 130


def test_the_users_own_comfyui_lends_its_models(atelier, tmp_path):
    """COMFYUI_PATH names a checkout; names in its models folder are found."""
    real = Path(os.environ["COMFYUI_PATH"])
    checkout = tmp_path / "ComfyUI"
    checkout.mkdir()
    for path in real.iterdir():
        if path.name != "models":
            (checkout / path.name).symlink_to(path)
    (checkout / "models" / "checkpoints").mkdir(parents=True)
    (checkout / "models" / "checkpoints" / "theirs.safetensors").write_bytes(b"no checkpoint")
    (tmp_path / "w.json").write_text(loads("theirs.safetensors"))
    result = atelier("stylize", "--workflow", "w.json", COMFYUI_PATH=str(checkout))
    assert 'node "Load" (CheckpointLoaderSimple, id 1) failed' in result.stderr.splitlines()[-1], result.stderr
