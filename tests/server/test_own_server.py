"""The command with the ComfyUI that it starts itself. The fixture `atelier` sees to it that nothing of it is left."""
import json
import os
import signal
import urllib.request
from pathlib import Path

from PIL import Image

from portrait_atelier.headless.server import free_port

HOME = Path(__file__).resolve().parents[2] / ".atelier"


def test_stylize_starts_runs_saves_and_stops(atelier, pictures, tmp_path):
    result = atelier("stylize", "--content", pictures[0], "--style", pictures[1], "--prompt", "a head", "--negative", "hat")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "content_style.png\n"
    assert Image.open(tmp_path / "content_style.png").size == (256, 256)
    assert "Starting ComfyUI" in result.stderr and "] KSampler  [####################] 4/4" in result.stderr


def test_ctrl_c_during_the_run(atelier, pictures):
    process = atelier.start("stylize", "--content", pictures[0], "--style", pictures[1], "--steps", 10000)
    line = ""
    while "] KSampler  [" not in line:
        line = process.stderr.readline()
        assert line
    process.send_signal(signal.SIGINT)
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


def test_a_checkpoint_file_is_found_where_it_lies(atelier, tmp_path):
    """The file is no checkpoint, so that the loader complains of it: ComfyUI found it, and by a path only we gave."""
    (tmp_path / "w.json").write_text(loads("default.safetensors"))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.safetensors").write_bytes(b"no checkpoint")
    found = atelier("stylize", "--workflow", "w.json", "--checkpoint", "models/mine.safetensors")
    assert found.returncode == 2
    assert 'node "Load" (CheckpointLoaderSimple, id 1) failed' in found.stderr.splitlines()[-1]


def test_a_missing_checkpoint_lists_folders_and_names_and_the_users_comfyui_lends_its_own(atelier, tmp_path):
    """COMFYUI_PATH names a checkout with a model of its own."""
    checkout = tmp_path / "ComfyUI"
    (checkout / "models" / "checkpoints").mkdir(parents=True)
    (checkout / "models" / "checkpoints" / "theirs.safetensors").touch()
    for path in Path(os.environ["COMFYUI_PATH"]).iterdir():
        if path.name != "models":
            (checkout / path.name).symlink_to(path)
    (tmp_path / "w.json").write_text(loads("default.safetensors"))
    missing = atelier("stylize", "--workflow", "w.json", COMFYUI_PATH=str(checkout))
    assert missing.returncode == 2
    last = missing.stderr.splitlines()[-1]
    assert "checkpoint 'default.safetensors' not found; looked in " in last and "found theirs.safetensors" in last
    assert str(HOME / "base" / "models" / "checkpoints") in last and str(checkout / "models" / "checkpoints") in last
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
