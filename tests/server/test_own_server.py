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


SMALL = [word for name in ("Content", "Style") for side in ("width", "height") for word in ("--set", f"{name}, 512 x 512.{side}=64")]


def test_a_photo_a_style_and_a_checkpoint_are_enough(atelier, pictures, checkpoint, tmp_path):
    """Found where they lie: the checkpoint through a link of another name, as download caches have them, and the LoRA beside that."""
    (tmp_path / "link ü").mkdir()
    (tmp_path / "link ü" / "painted.safetensors").symlink_to(checkpoint)
    (tmp_path / "link ü" / "lcm-lora-sdv1-5.safetensors").symlink_to(checkpoint.with_name("lcm-lora-sdv1-5.safetensors"))
    result = atelier("stylize", pictures[0], pictures[1], "--checkpoint", "link ü/painted.safetensors", *SMALL, "--steps", 1)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "content_style.png\n" and Image.open(tmp_path / "content_style.png").size == (64, 64)
    assert ("painted.safetensors is SD1.5 (its cross-attention reads 768 values): workflow zepo_sd15_lcm with lcm-lora-sdv1-5.safetensors, "
            "512 x 512 pixels, 4 steps, CFG 2, lcm, simple\n") in result.stderr
    assert "] KSampler  [####################] 1/1" in result.stderr or "] KSampler\n" in result.stderr
    assert "Note: " not in result.stderr and "not loaded" not in (HOME / "logs" / "comfyui.log").read_text(encoding="utf-8")


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
    folder = checkout / "models" / "loras"
    folder.mkdir()
    (folder / "lcm-lora-sdv1-5.safetensors").touch()
    extra = tmp_path / "other loras"
    extra.mkdir()
    (extra / "my_style.safetensors").touch()
    (checkout / "extra_model_paths.yaml").write_text(f"elsewhere:\n  base_path: {tmp_path}\n  loras: |\n    other loras\n")
    listed = atelier("models", COMFYUI_PATH=str(checkout))
    assert listed.returncode == 0, listed.stderr
    assert "there    loras/lcm-lora-sdv1-5.safetensors" in listed.stdout and "there    loras/my_style.safetensors" in listed.stdout
    assert "missing  loras/my_style_2.safetensors" in listed.stdout
    assert str(folder) in listed.stdout and str(extra) in listed.stdout and str(HOME / "base" / "models" / "loras") in listed.stdout


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
