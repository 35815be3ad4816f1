"""`atelier.py stylize --server` against a real ComfyUI: one picture out, and one line for everything that goes wrong."""
import http.server
import json
import signal
import socket
import threading
from pathlib import Path

import pytest
from PIL import Image, ImageChops

ERROR, INTERRUPTED = 2, 130
ROOT = Path(__file__).resolve().parents[2]
DEMO_PICTURES, WORKFLOWS = ROOT / "demo" / "pictures", ROOT / "workflows" / "api"


@pytest.fixture
def workflow(tmp_path, kit_workflow):
    """workflow(**nodes) writes the kit workflow with these nodes replaced or added, and returns its path."""
    def write(**nodes):
        for node, entry in nodes.items():
            kit_workflow[node.strip("n")] = entry
        path = tmp_path / "kit.json"
        path.write_text(json.dumps(kit_workflow))
        return path

    return write


@pytest.fixture
def stylize(atelier, server, pictures, workflow):
    """stylize(*arguments, **nodes) runs the kit workflow on the test server with the test pictures."""
    def run(*arguments, **nodes):
        return atelier("stylize", "--server", server.client.url, "--workflow", workflow(**nodes), "--content", pictures[0],
                       "--style", pictures[1], *arguments)

    return run


def told(result, *parts):
    """The one line that a bad call leaves."""
    lines = result.stderr.strip().splitlines()
    assert result.returncode == ERROR, (result.returncode, result.stderr)
    assert "Traceback" not in result.stderr and result.stdout == ""
    assert [line for line in lines if line.startswith("atelier.py: ")] == lines[-1:], result.stderr
    for part in parts:
        assert str(part) in lines[-1], lines[-1]
    return lines[-1]


def same(first, second):
    return ImageChops.difference(Image.open(first).convert("RGB"), Image.open(second).convert("RGB")).getbbox() is None


@pytest.mark.quick
def test_a_workflow_brings_the_pictures_that_it_names(atelier, server, tmp_path):
    """Both styles of this one, which no option names; the server has none of them."""
    result = atelier("stylize", "--server", server.client.url, "--workflow", "diffstyler_demo_regions", "--set", "Train style 1.steps=2",
                     "--set", "Train style 2.steps=2", "--set", "Source Trajectory.steps=2")
    assert result.stdout == "content-painted_style-watercolor_style-neon.png\n", result.stderr
    assert Image.open(tmp_path / "content-painted_style-watercolor_style-neon.png").size == (256, 256)


def test_a_face_is_put_back_into_its_photo(atelier, server, tmp_path):
    """By the demo model, found without a download; the rest of the photo stays to the bit."""
    result = atelier("stylize", "--server", server.client.url, "--workflow", "zepo_demo_face")
    assert result.returncode == 0, result.stderr
    scene = Image.open(DEMO_PICTURES / "scene.png").convert("RGB")
    made = Image.open(tmp_path / result.stdout.strip()).convert("RGB")
    left, top, right, bottom = ImageChops.difference(made, scene).getbbox()
    assert 240 < left < right < 600 and 110 < top < bottom < 470 and right - left > 120


@pytest.mark.quick
def test_a_face_detector_that_is_missing_is_told_with_file_folder_and_page(atelier, server, tmp_path):
    """ComfyUI's own message has none of them."""
    workflow = json.loads((ROOT / "workflows" / "api" / "zepo_demo_face.json").read_text(encoding="utf-8"))
    name = "mediapipe_face_fp32.safetensors"
    align, = (entry for entry in workflow.values() if entry["class_type"] == "AtelierAlignFace")
    finder = {"face_detection_model": ["9001", 0], "image": align["inputs"]["image"], "detector_variant": "full",
              "num_faces": 1, "min_confidence": 0.5, "missing_frame_fallback": "empty"}
    workflow["9001"] = {"class_type": "LoadMediaPipeFaceLandmarker", "inputs": {"model_name": name}, "_meta": {"title": "Load"}}
    workflow["9002"] = {"class_type": "MediaPipeFaceLandmarker", "inputs": finder, "_meta": {"title": "Find"}}
    align["inputs"]["faces"] = ["9002", 0]
    (tmp_path / "mine.json").write_text(json.dumps(workflow))
    told(atelier("stylize", "--server", server.client.url, "--workflow", "mine.json"), f"detection/{name} not found",
         server.base / "models" / "detection", "get it from https://huggingface.co/Comfy-Org/mediapipe")


@pytest.mark.quick
def test_the_picture_is_saved_and_its_path_printed(stylize, tmp_path):
    fresh = ["--set", "Content features.seed=4711", "--seed", "4711"]  # nothing of it is in the server's cache
    result = stylize(*fresh)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "content_style.png\n"
    assert Image.open(tmp_path / "content_style.png").size == (128, 128)
    # Progress: nodes by their titles, the sampler with its steps.
    assert "] Content features" in result.stderr and "] KSampler  [####################] 4/4" in result.stderr
    again = stylize(*fresh)
    assert again.stdout == "content_style_2.png\n" and same(tmp_path / "content_style.png", tmp_path / "content_style_2.png")


def test_every_option_arrives(stylize, client, tmp_path):
    """The server's history holds the workflow as it was queued."""
    result = stylize(
        "--seed", 77, "--strength", 0.5, "--style-enhancement", 1.4, "--style-share", 0.25, "--merge", 0.3, "--steps", 2,
        "--cfg", 1.5, "--denoise", 0.75, "--set", "Content features.timestep=199", "--set", "2.zsnr=true",
        "--set", "KSampler.scheduler=sgm_uniform", "--set", "SaveImage.filename_prefix=kit/a=b.c", "--output", "out.png",
    )
    assert result.returncode == 0, result.stderr
    history = client.json("/history?max_items=1")[1]
    queued = next(iter(history.values()))["prompt"][2]
    assert {"seed": 77, "steps": 2, "cfg": 1.5, "denoise": 0.75, "scheduler": "sgm_uniform"}.items() <= queued["11"]["inputs"].items()
    assert {"strength": 0.5, "style_enhancement": 1.4, "style_share": 0.25}.items() <= queued["10"]["inputs"].items()
    assert queued["9"]["inputs"]["ratio"] == 0.3
    assert queued["7"]["inputs"]["timestep"] == 199 and queued["8"]["inputs"]["timestep"] == 99
    assert queued["2"]["inputs"]["zsnr"] is True
    assert queued["13"]["inputs"]["filename_prefix"] == "kit/a=b.c"
    assert queued["3"]["inputs"]["image"] != queued["4"]["inputs"]["image"]
    assert (tmp_path / "out.png").is_file()


def test_content_and_style_are_not_exchanged(stylize, client, pictures):
    assert stylize().returncode == 0
    queued = next(iter(client.json("/history?max_items=1")[1].values()))["prompt"][2]
    for node, path in (("3", pictures[0]), ("4", pictures[1])):
        folder, name = queued[node]["inputs"]["image"].split("/")
        status, data = client.call(f"/view?filename={name}&subfolder={folder}&type=input")
        assert status == 200 and data == path.read_bytes()


@pytest.mark.quick
def test_a_person_in_a_style(atelier, server, client, tmp_path):
    """The demo of FastFace, whose only picture is the face; another face with the same seed is another picture."""
    def draw(*face):
        result = atelier("stylize", "--server", server.client.url, "--workflow", "fastface_demo", "--prompt", "portrait, ink", "--seed", 4, *face)
        assert result.returncode == 0, result.stderr
        queued = next(iter(client.json("/history?max_items=1")[1].values()))["prompt"][2]
        titles = {entry["_meta"]["title"]: entry["inputs"] for entry in queued.values()}
        assert titles["Prompt"]["text"] == "portrait, ink" and titles["KSampler"]["seed"] == 4
        folder, name = titles["Face"]["image"].split("/")
        return tmp_path / result.stdout.strip(), client.call(f"/view?filename={name}&subfolder={folder}&type=input")[1]

    other = DEMO_PICTURES / "content-2.png"
    shipped, face = draw()
    assert shipped.name == "content_fastface_demo.png" and face == (DEMO_PICTURES / "content.png").read_bytes()
    drawn, face = draw("--face", other)
    assert drawn.name == "content-2_fastface_demo.png" and face == other.read_bytes()
    assert Image.open(shipped).size == Image.open(drawn).size == (256, 256) and not same(shipped, drawn)


@pytest.mark.parametrize("workflow", ["fastface_realistic_sd15_lcm", "fastface_both_sd15_lcm", "fastface_seac_sd15_lcm"])
def test_graphs_for_weights_that_are_not_here_run_on_the_demo_model(atelier, server, tmp_path, workflow):
    """Nothing but the loaders and the size is exchanged."""
    nodes = json.loads((WORKFLOWS / f"{workflow}.json").read_text(encoding="utf-8"))
    place = {entry["class_type"]: node for node, entry in nodes.items()}  # of the loaders; each is there once
    checkpoint, lora, analysis, adapter, clip = (place[kind] for kind in (
        "CheckpointLoaderSimple", "LoraLoaderModelOnly", "AtelierFaceAnalysisLoader", "AtelierFaceAdapterLoader", "CLIPVisionLoader"))
    moved = {(lora, 0): nodes[lora]["inputs"]["model"], (adapter, 0): [analysis, 1], (clip, 0): None}  # the demo's adapter needs no CLIP
    nodes[checkpoint], nodes[analysis] = ({"class_type": kind, "inputs": {}} for kind in ("AtelierDemoModelLoader", "AtelierDemoFaceLoader"))
    for node in (lora, adapter, clip):
        del nodes[node]
    for entry in nodes.values():
        inputs = {name: moved.get(tuple(value), value) if isinstance(value, list) else value for name, value in entry["inputs"].items()}
        entry["inputs"] = {name: 256 if name in ("width", "height") else value for name, value in inputs.items() if value is not None}
    (tmp_path / "w.json").write_text(json.dumps(nodes))
    result = atelier("stylize", "--server", server.client.url, "--workflow", "w.json", "--output", "x.png", "--steps", 2)
    assert result.returncode == 0, result.stderr
    assert Image.open(tmp_path / "x.png").size == (256, 256)


def test_pictures_of_ones_own_with_the_demo_model_are_answered_before_and_after(atelier, server, pictures, tmp_path):
    """Pictures without options; one is a copy of a shipped one under another name, which is none of one's own."""
    quick = ["--server", server.client.url, "--steps", 1]
    (tmp_path / "copy.png").write_bytes((DEMO_PICTURES / "style.png").read_bytes())
    own = atelier("stylize", pictures[0], "copy.png", *quick)
    assert own.returncode == 0 and own.stdout == "content_copy.png\n", own.stderr
    lines = own.stderr.strip().splitlines()
    assert lines[0] == lines[-1] and lines.count(lines[0]) == 2
    assert lines[0].startswith("Note: the demo model knows") and "content.png" in lines[0] and "--checkpoint FILE" in lines[0]
    shipped = atelier("stylize", DEMO_PICTURES / "content-2.png", "--style", "copy.png", *quick)
    assert shipped.returncode == 0 and shipped.stdout == "content-2_copy.png\n" and "Note: " not in shipped.stderr, shipped.stderr


def test_a_face_without_a_workflow_gets_fastface(atelier, server, tmp_path):
    result = atelier("stylize", "--server", server.client.url, "--face", DEMO_PICTURES / "content-2.png", "--steps", 1)
    assert result.stdout == "content-2_fastface_demo.png\n" and "Note: " not in result.stderr, result.stderr


def test_a_grid_of_two_lists_extracts_the_features_once(stylize, client, tmp_path):
    """What ran is counted from the websocket's events, which the progress lines are, and from what the server says it had already."""
    client.call("/history", {"clear": True})
    result = stylize("--set", "SEAC Patch.style_enhancement=0.81,1.21", "--seed", "5, 6,7", "--set", "Content features.seed=99", "--set", "Style features.seed=98")
    assert result.returncode == 0, result.stderr
    names = [f"content_style_style_enhancement-{value}_seed-{seed}.png" for value in (0.81, 1.21) for seed in (5, 6, 7)]
    assert result.stdout.split() == [*names, "content_style.png"]
    ran = [line.split("] ", 1)[1] for line in result.stderr.splitlines() if "] " in line and "  [" not in line]
    count = {name: ran.count(name) for name in ("Content features", "Style features", "AtelierSEACPatch", "KSampler")}
    assert count == {"Content features": 1, "Style features": 1, "AtelierSEACPatch": 2, "KSampler": 6}
    history = sorted(client.json("/history")[1].values(), key=lambda run: run["prompt"][0])
    cached = [set(next(data["nodes"] for kind, data in run["status"]["messages"] if kind == "execution_cached")) for run in history]
    assert len(cached) == 6 and all({"7", "8", "9"} <= nodes for nodes in cached[1:]) and "7" not in cached[0]
    seeds = [(run["prompt"][2]["10"]["inputs"]["style_enhancement"], run["prompt"][2]["11"]["inputs"]["seed"]) for run in history]
    assert seeds == [(value, seed) for value in (0.81, 1.21) for seed in (5, 6, 7)]
    sheet = Image.open(tmp_path / "content_style.png")
    assert sheet.width > 3 * 128 and 2 * 128 < sheet.height < 3 * 128
    # Each picture stands in its cell, as it is.
    cell = (sheet.width - 8) // 3
    for number, name in enumerate(names):
        left, top = 8 + number % 3 * cell, 8 + number // 3 * (128 + 22 + 8) + 22
        assert ImageChops.difference(sheet.crop((left, top, left + 128, top + 128)), Image.open(tmp_path / name).convert("RGB")).getbbox() is None
    alone = stylize("--seed", 6, "--set", "Content features.seed=99", "--set", "Style features.seed=98", "--style-enhancement", 1.21, "--output", "alone.png")
    assert alone.returncode == 0 and same(tmp_path / "alone.png", tmp_path / names[4])


def test_ctrl_c_keeps_the_pictures_of_a_list_and_their_sheet(atelier, server, workflow, pictures, tmp_path):
    wait = {"class_type": "KitWait", "inputs": {"image": ["12", 0], "seconds": 1.0}, "_meta": {"title": "Wait"}}
    save = {"class_type": "SaveImage", "inputs": {"images": ["90", 0], "filename_prefix": "x"}}
    process = atelier.start("stylize", "--server", server.client.url, "--workflow", workflow(n90=wait, n13=save), *pictures, "--set", "Wait.seconds=0.1,600,500")
    line = ""
    while "/12000" not in line:
        line = process.stderr.readline()
        assert line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED and out == "" and "Traceback" not in err
    assert err.splitlines()[-2:] == ["Note: 1 of 3 pictures are finished and kept: content_style_seconds-0.1.png", "atelier.py: interrupted"]
    assert Image.open(tmp_path / "content_style_seconds-0.1.png").size == (128, 128)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["content_style.png", "content_style_seconds-0.1.png"]


def test_a_checkpoint_of_the_server_chooses_the_workflow(atelier, server, checkpoint, pictures, tmp_path):
    """By the file where the server is on this machine, and under a name without words."""
    link = server.base / "models" / "checkpoints" / "mine.safetensors"
    link.symlink_to(checkpoint)
    small = [word for name in ("Content", "Style") for side in ("width", "height") for word in ("--set", f"{name}, cut to size.{side}=64")]
    call = ["stylize", "--server", server.client.url, *pictures, "--steps", 1, *small]
    try:
        result = atelier(*call, "--checkpoint", "mine.safetensors")
        assert result.returncode == 0 and Image.open(tmp_path / "content_style.png").size == (64, 64), result.stderr
        loras = server.base / "models" / "loras"
        assert (f"mine.safetensors is SD1.5 (its cross-attention reads 768 values): workflow zepo_sd15_lcm without its LoRA, 512 x 512 pixels, 10 steps, "
                f"CFG 5, dpmpp_2m, karras; slower than with lcm-lora-sdv1-5.safetensors, which is not in {loras}: get it from https://") in result.stderr
        told(atelier(*call, "--checkpoint", checkpoint), f"--checkpoint {checkpoint} is a file of this machine", "mine.safetensors")
        listed = atelier("models", "--server", server.client.url)
        assert "other    checkpoints/" not in listed.stdout and str(loras) in listed.stdout and "missing  loras/lcm-lora-sdv1-5" in listed.stdout
    finally:
        link.unlink()


def test_output_may_replace_a_file_or_name_a_folder(stylize, tmp_path):
    (tmp_path / "old.png").write_bytes(b"old")
    assert stylize("--output", "old.png").stdout == "old.png\n"
    assert Image.open(tmp_path / "old.png").size == (128, 128)
    (tmp_path / "there").mkdir()
    assert stylize("--output", "there").stdout == "there/content_style.png\n"


def test_a_batch_is_saved_as_numbered_files(stylize, tmp_path):
    result = stylize("--output", "x.png", n50={"class_type": "RepeatLatentBatch", "inputs": {"samples": ["11", 0], "amount": 2}},
                     n12={"class_type": "KitDecode", "inputs": {"samples": ["50", 0]}})
    assert result.returncode == 0, result.stderr
    assert same(tmp_path / "x.png", tmp_path / "x_2.png") and not (tmp_path / "x_3.png").exists()


@pytest.mark.parametrize("arguments, parts", [
    (["--steps", "0"], ["--steps: 0 is out of range; it goes from 1 to"]),
    (["--cfg", "high"], ["--cfg: 'high' is no number"]),
    (["--strength", "1.01"], ["--strength: 1.01 is out of range; it goes from 0"]),
    (["--style-enhancement", "-1"], ["--style-enhancement: -1 is out of range"]),
    (["--merge", "0.8"], ["--merge: 0.8 is out of range"]),
    (["--set", "KSampler.sampler_name=fast"], ["'fast' is no choice here", "euler"]),
    (["--set", "KSampler.speed=1"], ['node "KSampler" (KSampler) has no input \'speed\'', "denoise"]),
    (["--set", "KSampler.model=1"], ["MODEL socket"]),
    (["--set", "Sampler.steps=1"], ["has no such node", '11 "KSampler"']),
    (["--set", "LoadImage.image=x.png"], ["several nodes", '3 "Content", 4 "Style"']),
    (["--set", "steps=3"], ["NODE.INPUT=VALUE"]),
    (["--set", "KSampler.steps"], ["NODE.INPUT=VALUE"]),
    (["--checkpoint", "some.safetensors"], ["--checkpoint fits nothing", "CheckpointLoaderSimple"]),
    (["--seed", "1", "me.png"], ["content picture is given twice", "me.png and --content"]),
    (["--seed", "1,2", "--steps", "1,2", "--cfg", "1,2"], ["3 lists of values are given (--seed; --steps; --cfg)", "two at most"]),
    (["--denoise", "0,5"], ["--denoise: 5 is out of range", "decimals take a point"]),
    (["--sead", "1"], ["unrecognized arguments: --sead", "--help"]),
    (["--output", "a.jpg"], ["PNG"]),
    (["--output", "no/such/a.png"], ["no folder"]),
])
def test_bad_values_are_told_before_anything_is_queued(stylize, client, arguments, parts):
    client.call("/history", {"clear": True})
    told(stylize(*arguments), *parts)
    assert client.json("/history")[1] == {}


def test_pictures_that_are_none(atelier, server, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    told(atelier("stylize", "--server", server.client.url, "--content", "gone.png"), "--content gone.png", "no such file", tmp_path)
    told(atelier("stylize", "--server", server.client.url, "--style", "text.png"), "--style text.png is no picture")
    told(atelier("stylize", "--server", server.client.url, "--face", "gone.png"), "--face gone.png", "no such file")


def test_a_picture_that_a_workflow_has_no_place_for(stylize, pictures):
    told(stylize("--face", pictures[0]), 'no Load Image node titled "Face"')


def test_a_damaged_picture_is_told_by_the_node_that_reads_it(stylize, pictures, tmp_path):
    (tmp_path / "cut.png").write_bytes(pictures[0].read_bytes()[:20])
    told(stylize("--content", "cut.png"), 'node "Content" (LoadImage')


def test_unknown_workflows_and_nodes(atelier, stylize, server):
    told(atelier("stylize", "--server", server.client.url, "--workflow", "zippo"), "no workflow 'zippo'", "zepo_demo")
    told(stylize(n60={"class_type": "NoSuchNode", "inputs": {}}), "has no node NoSuchNode", server.client.url)


def test_a_missing_checkpoint_lists_folders_and_names(stylize, server):
    folder = server.base / "models" / "checkpoints"
    (folder / "here.safetensors").touch()
    loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "gone.safetensors"}}
    line = told(stylize(n70=loader), "checkpoint 'gone.safetensors' not found", folder, "here.safetensors")
    assert told(stylize("--checkpoint", "other.safetensors", n70=loader), "'other.safetensors' not found") != line


def test_a_server_that_is_down(atelier):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    told(atelier("stylize", "--server", f"http://127.0.0.1:{port}"), "no answer", f"127.0.0.1:{port}", "refused")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://", "http://host:port", "http://127.0.0.1:99999"])
def test_what_is_no_address(atelier, url):
    told(atelier("stylize", "--server", url), url, "http://HOST:PORT")


def test_a_server_that_is_not_comfyui(atelier):
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    told(atelier("stylize", "--server", f"127.0.0.1:{web.server_port}"), f"127.0.0.1:{web.server_port}", "not ComfyUI")
    web.shutdown()


def fail(**inputs):
    node = {"class_type": "KitFail", "_meta": {"title": "Trouble"},
            "inputs": {"image": ["12", 0], "text": "the lamp is out", "early": False, "how": "raise", **inputs}}
    save = {"class_type": "SaveImage", "inputs": {"images": ["80", 0], "filename_prefix": "x"}, "_meta": {"title": "Result"}}
    return {"n80": node, "n13": save}


def test_a_rejected_workflow_shows_the_nodes_message(stylize):
    told(stylize(**fail(early=True)), 'node "Trouble" (KitFail): the lamp is out')


def test_a_failing_node_shows_its_message(stylize):
    told(stylize(**fail()), 'node "Trouble" (KitFail, id 80) failed: the lamp is out [ValueError]')


def test_a_workflow_that_saves_nothing(stylize):
    result = stylize(n13={"class_type": "PreviewImage", "inputs": {"images": ["12", 0]}})
    told(result, "saved no picture", "Save Image")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_cancels_the_run_on_the_server(atelier, server, workflow, pictures, kit_workflow, sign):
    wait = {"class_type": "KitWait", "inputs": {"image": ["12", 0], "seconds": 60.0}, "_meta": {"title": "Wait"}}
    save = {"class_type": "SaveImage", "inputs": {"images": ["90", 0], "filename_prefix": "x"}}
    process = atelier.start("stylize", "--server", server.client.url, "--workflow", workflow(n90=wait, n13=save),
                            "--content", pictures[0], "--style", pictures[1])
    lines = []
    while not lines or "] Wait  [" not in lines[-1]:
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    running, = server.client.json("/queue")[1]["queue_running"]
    process.send_signal(sign)
    assert process.communicate(timeout=60)[1].endswith("atelier.py: interrupted\n")
    assert process.returncode == INTERRUPTED
    history = {}
    while not history:  # the server is on its way out of the node
        history = server.client.json("/history/" + running[1])[1]
    assert "execution_interrupted" in [kind for kind, _ in history[running[1]]["status"]["messages"]]


@pytest.mark.parametrize("arguments, parts", [
    (["paint"], ["no command 'paint'", "stylize"]),
    (["bench", "nothing"], ["no benchmark 'nothing'"]),
    (["serve", "--port", "http"], ["--port", "invalid int value"]),
])
def test_bad_commands(atelier, arguments, parts):
    told(atelier(*arguments), *parts)


def test_serve_tells_a_taken_port(atelier, server):
    port = server.client.url.rsplit(":", 1)[1]
    told(atelier("serve", "--port", port), f"port {port}", "--port")
