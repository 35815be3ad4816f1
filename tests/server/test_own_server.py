"""The command with the ComfyUI that it starts itself. The fixture `atelier` sees to it that nothing of it is left.

Each start takes seconds: what can share a server does.
"""
import json
import os
import re
import signal
import uuid
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from PIL import Image

from portrait_atelier.headless import Client
from portrait_atelier.headless.serve import RESULTS, first_demo
from portrait_atelier.headless.server import free_port
from portrait_atelier.headless.websocket import WebSocket

from .conftest import until

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".atelier"
SMALL = [word for name in ("Content", "Style") for side in ("width", "height") for word in ("--set", f"{name}, cut to size.{side}=64")]


def test_after_a_kill_nothing_computes_and_the_next_run_clears_up(atelier, pictures, checkpoint, tmp_path):
    """That next run does all that a run does, for which a photo, a style and a checkpoint are enough. They are found where they
    lie: the checkpoint through a link of another name, as download caches have them, and the LoRA beside that."""
    killed = atelier.start("stylize", "--content", pictures[0], "--style", pictures[1], "--steps", 10000, "--", "--cpu")
    line = ""
    while "] KSampler  [" not in line:
        line = killed.stderr.readline()
        assert line
    folder, = HOME.glob(f"run-{killed.pid}-*")
    assert len(list((folder / "input" / "portrait-atelier").glob("*.png"))) == 2  # what was uploaded
    killed.kill()
    killed.wait()
    while atelier.left():  # ComfyUI sees its parent gone
        pass
    (tmp_path / "link ü").mkdir()
    (tmp_path / "link ü" / "painted.safetensors").symlink_to(checkpoint)
    (tmp_path / "link ü" / "lcm-lora-sdv1-5.safetensors").symlink_to(checkpoint.with_name("lcm-lora-sdv1-5.safetensors"))
    result = atelier("stylize", pictures[0], pictures[1], "--checkpoint", "link ü/painted.safetensors", *SMALL, "--steps", 1)
    assert result.returncode == 0, result.stderr
    assert not folder.exists()
    assert result.stdout == "content_style.png\n" and Image.open(tmp_path / "content_style.png").size == (64, 64)
    assert ("painted.safetensors is SD1.5 (its cross-attention reads 768 values): workflow zepo_sd15_lcm with lcm-lora-sdv1-5.safetensors, "
            "512 x 512 pixels, 4 steps, CFG 2, lcm, simple\n") in result.stderr
    assert "Starting ComfyUI" in result.stderr
    assert "] KSampler  [####################] 1/1" in result.stderr or "] KSampler\n" in result.stderr
    assert "Note: " not in result.stderr and "not loaded" not in (HOME / "logs" / "comfyui.log").read_text(encoding="utf-8")


def test_a_batch_outlives_its_comfyui_and_keeps_no_copies(atelier, tmp_path):
    """ComfyUI is killed in the middle: another takes its place, and everything is there."""
    out = tmp_path / "out"
    process = atelier.start("batch", "--content", ROOT / "demo/pictures/content*.png", "--style", ROOT / "demo/pictures/style-ink.png", "--output", out,
                            "--steps", 20, "--", "--cpu")
    until(process, lambda: list(out.glob("*.png")))
    folder, = HOME.glob(f"run-{process.pid}-*")
    copies = list((folder / "output").rglob("*.png")) + list((folder / "temp").rglob("*.png"))
    assert len(copies) <= 1, "ComfyUI's own copies go when a result is saved"
    words = [(path.parent, path.read_bytes().split(b"\0")) for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    comfyui, = [int(path.name) for path, line in words if b"main.py" in line[1:2] and f"{folder}/output".encode() in line]
    os.kill(comfyui, signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0 and "3 results made" in err and err.count("Starting ComfyUI") >= 1, err
    assert len(list(out.glob("*.png"))) == 3


def test_ctrl_c_while_comfyui_starts(atelier, pictures):
    """During a run: in test_train_style.py, and on another's server in test_stylize.py."""
    process = atelier.start("stylize", "--content", pictures[0], "--style", pictures[1], "--", "--cpu")
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


def test_a_missing_checkpoint_lists_folders_and_names_and_the_users_comfyui_lends_its_own(atelier, tmp_path):
    """COMFYUI_PATH names a checkout with a model of its own, and a folder that turns in circles."""
    checkout = tmp_path / "ComfyUI"
    (checkout / "models" / "checkpoints").mkdir(parents=True)
    (checkout / "models" / "checkpoints" / "theirs.safetensors").touch()
    (checkout / "models" / "circle").symlink_to(checkout / "models")
    for path in Path(os.environ["COMFYUI_PATH"]).iterdir():
        if path.name != "models":
            (checkout / path.name).symlink_to(path)
    (tmp_path / "w.json").write_text(loads("default.safetensors"))
    missing = atelier("stylize", "--workflow", "w.json", "--", "--cpu", COMFYUI_PATH=str(checkout))
    assert missing.returncode == 2
    last = missing.stderr.splitlines()[-1]
    assert "checkpoint 'default.safetensors' not found; looked in " in last and "found theirs.safetensors; " in last
    assert str(HOME / "base" / "models" / "checkpoints") in last and str(checkout / "models" / "checkpoints") in last
    assert f"the models in {checkout / 'models' / 'circle'} are left out: " in missing.stderr
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
    result = atelier("stylize", "--content", pictures[0], "--style", pictures[1], "--", "--cpu", "--no-such-option")
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert "ComfyUI ended with code 2" in last and "--no-such-option" in last and str(HOME / "logs" / "comfyui.log") in last


def run(client, workflow, **inputs):
    """Run the workflow with inputs set, as the editor does: what was cached, and the previews that came."""
    for node, values in inputs.items():
        workflow[node.strip("n")]["inputs"].update(values)
    mine, previews, cached = uuid.uuid4().hex, [], None
    events = WebSocket(f"{client.url}/ws?clientId={mine}")
    events._send(1, json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}).encode())
    try:
        status, answer = client.json("/prompt", {"prompt": workflow, "client_id": mine})
        assert status == 200 and not answer["node_errors"], answer
        while True:
            message = events.receive()
            if isinstance(message, bytes):
                previews.append(message)
                continue
            event = json.loads(message)
            assert event["type"] != "execution_error", event
            if event["type"] == "execution_cached":
                cached = event["data"]["nodes"]
            if event["type"] == "execution_success":
                return cached, previews
    finally:
        events.close()


def test_serve(atelier, tmp_path):
    """One server for all that it promises."""
    port = free_port()
    process = atelier.start("serve", "--port", port)
    printed = [process.stdout.readline()]
    while "results of nodes are kept" not in printed[-1]:
        assert printed[-1], process.communicate()[1]
        printed.append(process.stdout.readline())
    client = Client(f"http://127.0.0.1:{port}")
    text = "".join(printed)
    assert f"Portrait Atelier is ready: {client.url} (" in text and f"The first demo: {client.url}{first_demo()}\n" in text
    assert f"The last {RESULTS} results" in text
    name, = parse_qs(urlsplit(first_demo()).query)["template"]
    assert "nodes" in client.json(f"/api/workflow_templates/portrait-atelier/{quote(name)}.json")[1]

    # The features of a style survive another style; the sampler shows what it does.
    workflow = json.loads((ROOT / "workflows" / "api" / "zepo_demo.json").read_text(encoding="utf-8"))
    place = {entry["_meta"]["title"]: node for node, entry in workflow.items()}
    pictures = {name: client.upload(ROOT / "demo" / "pictures" / name) for name in ("content.png", "style.png", "style-neon.png")}
    for wanted in ("Content", "Style"):
        workflow[place[wanted]].update(class_type="LoadImage", inputs={"image": pictures["content.png"]})
    features, patch, style = (place[title] for title in ("Style features", "SEAC Patch", "Style"))
    for picture in ("style.png", "style-neon.png"):
        cached, previews = run(client, workflow, **{style: {"image": pictures[picture]}})
        assert features not in cached and len(previews) >= 2
    cached, _ = run(client, workflow, **{style: {"image": pictures["style.png"]}, patch: {"style_enhancement": 1.5}})
    assert features in cached and patch not in cached

    second = atelier("serve", "--port", port)
    assert second.returncode == 2
    assert re.search(rf"port {port} of 127.0.0.1 is taken by a ComfyUI 0\.\d+\.\d+ .*that has this pack: open {client.url}, ",
                     second.stderr.splitlines()[-1])
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert error.endswith("atelier.py: interrupted\n") and process.returncode == 130
    assert "[ERROR]" not in error and "atabase" not in error
