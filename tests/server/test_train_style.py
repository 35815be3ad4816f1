"""`atelier.py train-style` on a real ComfyUI: the demo model learns for a few steps, and the file is a LoRA."""
import re
import signal

import pytest
from PIL import Image
from safetensors.torch import load_file

from portrait_atelier.headless.environment import HOME

PAIRS = 96


@pytest.fixture
def train(atelier, server, pictures):
    """train(*arguments) runs on the test server."""
    return lambda *arguments: atelier("train-style", "--server", server.client.url, "--picture", pictures[1], *arguments)


def told(result, *parts):
    assert result.returncode == 2 and "Traceback" not in result.stderr and result.stdout == "", result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("atelier.py: ") and all(str(part) in last for part in parts), last


@pytest.mark.quick
def test_a_lora_is_trained_saved_and_its_path_printed(train, client, tmp_path):
    result = train("--steps", 2, "--rank", 3, "--learning-rate", 0.002, "--resolution", 128, "--seed", 5, "--augment", "flip", "--targets", "qkv",
                   "--caption", "portrait, neon", "--output", "mine")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "mine.safetensors\n" and "Style LoRA Train  [####################] 2/2" in result.stderr
    lora = load_file(tmp_path / "mine.safetensors")
    assert len(lora) == 3 * PAIRS and all(key.startswith("lora_unet_") for key in lora)
    assert any(value.any() for key, value in lora.items() if key.endswith("lora_up.weight"))
    queued = next(iter(client.json("/history?max_items=1")[1].values()))["prompt"][2]
    wanted = {"steps": 2, "rank": 3, "learning_rate": 0.002, "resolution": 128, "seed": 5, "augment": "flip", "targets": "qkv"}
    assert wanted.items() <= queued["5"]["inputs"].items() and queued["4"]["inputs"]["text"] == "portrait, neon"
    # The server's stock loader lists it.
    names = client.node_info("LoraLoaderModelOnly")["input"]["required"]["lora_name"]
    assert any(re.fullmatch(r"mine-[0-9a-f]{8}_00001_\.safetensors", name) for name in (names[1]["options"] if names[0] == "COMBO" else names[0]))


@pytest.mark.parametrize("arguments, parts", [
    (["--steps", 1], ["--steps", "out of range"]), (["--rank", "much"], ["--rank", "whole number"]), (["--augment", "spin"], ["--augment", "flip and crop"]),
    (["--learning-rate", "nan"], ["--learning-rate"]), (["--output", "x.png"], ["safetensors file", "x.safetensors"]), (["--output", "gone/x"], ["no folder"]),
    (["--picture", "gone.png"], ["--picture gone.png", "no such file"]), (["--checkpoint", "gone.safetensors"], ["checkpoint 'gone.safetensors' not found"]),
    (["--workflow", "zepo_demo"], ["no node SaveLoRA"]),
])
def test_a_bad_call_is_told_in_one_line_and_nothing_is_queued(train, client, arguments, parts):
    client.call("/history", {"clear": True})
    told(train(*arguments), *parts)
    assert client.json("/history")[1] == {}


@pytest.mark.parametrize("picture, parts", [
    (Image.new("RGB", (63, 200)), ["Style LoRA Train", "63 x 200 pixels", "at least 64"]),
    (Image.new("RGBA", (80, 80), (9, 9, 9, 100)), ["transparent", "background"]),
])
def test_pictures_that_cannot_be_trained_on(train, tmp_path, picture, parts):
    picture.save(tmp_path / "bad.png")
    told(train("--picture", "bad.png", "--steps", 2), *parts)


def test_an_opaque_png_with_alpha_and_a_palette_can(train, tmp_path):
    Image.new("RGBA", (80, 80), (200, 90, 30, 255)).save(tmp_path / "opaque.png")
    assert train("--picture", "opaque.png", "--steps", 2, "--resolution", 128).returncode == 0


def test_ctrl_c_keeps_what_is_trained(atelier, pictures, tmp_path):
    """With the ComfyUI that the command starts and ends."""
    before = set(HOME.glob("base/output/loras/*"))
    process = atelier.start("train-style", "--picture", pictures[1], "--steps", 100000, "--resolution", 128, "--output", "mine.safetensors")
    line = ""
    while not re.search(r"Style LoRA Train  \[.*\] \d+/100000", line):
        line = process.stderr.readline()
        assert line, process.communicate()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and out == "" and err.endswith("atelier.py: interrupted\n") and "Traceback" not in err
    kept = tmp_path / "mine_unfinished.safetensors"
    assert re.search(rf"{kept.name} \(\d+ steps\)", err) and len(load_file(kept)) == 3 * PAIRS
    assert not (tmp_path / "mine.safetensors").exists() and set(HOME.glob("base/output/loras/*")) == before
