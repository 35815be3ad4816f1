"""`atelier.py batch` against real ComfyUIs: everything there, once, whole, and as if made alone."""
import contextlib
import http.server
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from portrait_atelier.headless.batch.remote import Maker
from portrait_atelier.headless.batch.rows import Row
from portrait_atelier.headless.workflow import load

from .conftest import until

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "demo" / "pictures"
DONE, SOME_FAILED, ENDED = 0, 1, 2
EXTRACT = "AtelierConsistencyFeatureExtract"


def fill(folder):
    """Three contents and two styles, shipped pictures under awkward names, with their times."""
    (folder / "photos").mkdir()
    (folder / "styles").mkdir()
    for name, source in (("Ärger 1.png", "content"), ("b.c.png", "content-2"), ("z.PNG", "content-painted")):
        shutil.copy2(SHIPPED / f"{source}.png", folder / "photos" / name)
    (folder / "photos" / "notes.txt").write_text("no picture")
    for name in ("ink", "neon"):
        shutil.copy2(SHIPPED / f"style-{name}.png", folder / "styles" / f"{name}.png")
    return folder


@pytest.fixture
def folders(tmp_path):
    return fill(tmp_path)


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """What `batch` makes of these folders in one go."""
    folder = fill(tmp_path_factory.mktemp("whole"))
    words = ["--content", "photos", "--style", "styles", "--output", "whole", "--servers", server.client.url, "--steps", "2"]
    subprocess.run([sys.executable, str(ROOT / "atelier.py"), "batch", *words], cwd=folder, check=True)
    return folder / "whole"


@pytest.fixture
def batch(atelier, server, folders):
    """batch(*arguments) runs the demo workflow with two steps on the test server, into the folder out."""
    def call(*arguments, run=atelier, **options):
        given = {"--content": "photos", "--style": "styles", "--output": "out", "--servers": server.client.url, "--steps": 2}
        given |= {f"--{name}": value for name, value in options.items()}
        return run("batch", *[word for pair in given.items() if pair[1] is not None for word in pair], *arguments)

    call.start = lambda *arguments, **options: call(*arguments, run=atelier.start, **options)
    return call


def lines(folder):
    return [json.loads(line) for line in (folder / "report.jsonl").read_text(encoding="utf-8").splitlines()]


def results(folder):
    return {entry["output"]: entry for entry in lines(folder) if "output" in entry}


def pixels(path):
    return Image.open(path).convert("RGB")


def difference(first, second):
    """The largest difference of two pictures' values, of 255."""
    return max(high for _, high in ImageChops.difference(pixels(first), pixels(second)).getextrema())


def runs(client):
    """The workflows that the server ran, in order, each with the nodes that it took from its cache."""
    history = sorted(client.json("/history")[1].values(), key=lambda run: run["prompt"][0])
    return [(run["prompt"][2], {node for kind, data in run["status"]["messages"] if kind == "execution_cached" for node in data["nodes"]})
            for run in history]


def extractions(client):
    return sum(entry["class_type"] == EXTRACT and node not in cached for graph, cached in runs(client) for node, entry in graph.items())


@pytest.mark.quick
def test_all_pairs_with_each_picture_read_once(batch, atelier, server, client, folders):
    client.call("/history", {"clear": True})
    result = batch("--set", "Content features.seed=41", "--set", "Style features.seed=41")  # nothing of it is in the server's cache
    assert result.returncode == DONE and result.stdout == "", result.stderr
    assert "Plan: 6 results (3 x 2), 24 UNet rows (4 each), features of 3 contents once" in result.stderr
    assert "6 results made; features of pictures read 5 times" in result.stderr
    assert len(runs(client)) == 6 and extractions(client) == 3 + 2
    names = {f"{content}_{style}.png" for content in ("Ärger 1", "b.c", "z") for style in ("ink", "neon")}
    assert set(results(folders / "out")) == names == {path.name for path in (folders / "out").glob("*.png")}
    entry = results(folders / "out")["b.c_neon.png"]
    assert entry["inputs"] == {"content": "photos/b.c.png", "style": "styles/neon.png"} and entry["error"] is None
    assert entry["worker"] == client.url and entry["seconds"] > 0
    # Each as `stylize` makes it, and with the workflow that would make it alone.
    alone = atelier("stylize", "photos/b.c.png", "styles/neon.png", "--server", client.url, "--steps", 2, "--set", "Content features.seed=41", "--set",
                    "Style features.seed=41", "--output", "alone.png")
    assert alone.returncode == 0 and difference(folders / "alone.png", folders / "out" / "b.c_neon.png") == 0, alone.stderr
    graph = json.loads(Image.open(folders / "out" / "b.c_neon.png").text["prompt"])
    assert {"b.c.png", "neon.png"} == {node["inputs"]["image"] for node in graph.values() if node["class_type"] == "LoadImage"}
    assert not any(node["class_type"].endswith(("SaveFeatures", "LoadFeatures")) for node in graph.values())
    # The same call again makes nothing, and another call does not mix with it. What is there can be measured.
    client.call("/history", {"clear": True})
    again = batch("--set", "Content features.seed=41", "--set", "Style features.seed=41", "--evaluate")
    assert again.returncode == DONE and "0 results made, 6 were there" in again.stderr and runs(client) == []
    assert "seconds" in again.stdout and "(6)" in again.stdout and str(folders / "out" / "evaluation.html") in again.stdout
    assert "lpips is skipped: " in again.stderr and "Traceback" not in again.stderr
    measured = json.loads((folders / "out" / "evaluation.json").read_text(encoding="utf-8"))["methods"]["out"]
    one = next(item for item in measured["items"] if item["generated"].endswith("b.c_neon.png"))
    assert not one["errors"] and one["values"]["seconds"] == entry["seconds"]
    assert [one[side] for side in ("content", "identity", "style")] == [str(folders / name) for name in ("photos/b.c.png", "photos/b.c.png", "styles/neon.png")]
    other = batch("--seed", 5)
    assert other.returncode == ENDED and other.stderr.splitlines()[-1].startswith("atelier.py: --output out holds results of another call (settings")


def test_several_contents_together(batch, client, folders, whole):
    """A batch of three is three batches of one; the styles come from files from the second chunk on."""
    client.call("/history", {"clear": True})
    together = batch("--batch", 2, output="together")
    assert together.returncode == DONE and "2 contents together" in together.stderr, together.stderr
    assert len(runs(client)) == 4
    for path in whole.glob("*.png"):
        assert difference(path, folders / "together" / path.name) <= 1, path.name  # rounding
    assert {entry["together"] for entry in results(folders / "together").values()} == {1, 2}


def test_a_poisoned_picture_is_reported_and_the_rest_goes_on(batch, folders):
    (folders / "photos" / "bad.png").write_bytes(b"no picture at all")
    whole = (folders / "photos" / "b.c.png").read_bytes()
    (folders / "photos" / "cut.png").write_bytes(whole[:len(whole) // 3])
    result = batch("--batch", 2)
    assert result.returncode == SOME_FAILED and "Traceback" not in result.stderr
    assert "6 results made, 4 failed" in result.stderr
    told = results(folders / "out")
    assert {name for name, entry in told.items() if entry["error"]} == {f"{name}_{style}.png" for name in ("bad", "cut") for style in ("ink", "neon")}
    assert "is no picture" in told["bad_ink.png"]["error"] and "cut.png is cut off" in told["cut_ink.png"]["error"]
    assert len(list((folders / "out").glob("*.png"))) == 6
    # Mended, the same call makes what is missing, and nothing else.
    for name in ("bad", "cut"):
        shutil.copy(SHIPPED / "content.png", folders / "photos" / f"{name}.png")
    again = batch("--batch", 2)
    assert again.returncode == DONE and "4 results made, 6 were there" in again.stderr


def test_rows_of_a_csv_with_settings(batch, client, folders):
    (folders / "rows.csv").write_text("\ufeffcontent,style,seed,Prompt.text,output\n"
                                      'photos/b.c.png,styles/ink.png,3,"head, old",one\n'
                                      "photos/z.PNG,styles/ink.png,,,sub/two\n"
                                      "photos/b.c.png,styles/neon.png,wrong,,three\n", encoding="utf-8")
    client.call("/history", {"clear": True})
    result = batch(content="rows.csv", style=None, format="webp", metadata="keep")
    assert result.returncode == SOME_FAILED and "2 results made, 1 failed" in result.stderr, result.stderr
    assert "seed: 'wrong' is no whole number" in results(folders / "out")["three.webp"]["error"]
    queued = [graph for graph, _ in runs(client)]
    values = [{name: value for node in graph.values() for name, value in node["inputs"].items() if name in ("seed", "text") and value not in (0, "")}
              for graph in queued]
    assert values == [{"seed": 3, "text": "head, old"}, {"text": "head"}]
    picture = Image.open(folders / "out" / "sub" / "two.webp")
    assert picture.format == "WEBP" and picture.size == (256, 256)
    assert json.loads(picture.getexif()[0x0110].removeprefix("prompt:")).keys() <= json.loads((ROOT / "workflows/api/zepo_demo.json").read_text()).keys()
    stripped = batch(content="rows.csv", style=None, format="jpeg", metadata="strip", output="plain")
    assert stripped.returncode == SOME_FAILED
    picture = Image.open(folders / "plain" / "one.jpg")
    assert picture.format == "JPEG" and not picture.getexif()


def killed_in_the_middle(process, folder, count):
    """kill -9 as soon as `count` results are there; returns their bytes."""
    until(process, lambda: len(list(folder.glob("*.png"))) >= count)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.png")}


def test_killed_and_continued(batch, folders, whole):
    kept = killed_in_the_middle(batch.start(), folders / "out", 2)
    assert 2 <= len(kept) < 6
    # What kill -9 may leave: half a result, half a line of the report, and a result without its line.
    (folders / "out" / "z_neon.png.part").write_bytes(b"half")
    report = folders / "out" / "report.jsonl"
    text = report.read_bytes()
    whole_lines = text[:text.rindex(b"\n") + 1].splitlines(keepends=True)
    report.write_bytes(b"".join(whole_lines[:2]) + b'{"output": "half')
    result = batch()
    assert result.returncode == DONE and f"{6 - len(kept)} results made, {len(kept)} were there" in result.stderr, result.stderr
    for name, (data, time) in kept.items():
        assert (folders / "out" / name).read_bytes() == data and (folders / "out" / name).stat().st_mtime_ns == time
    for path in whole.glob("*.png"):
        assert (folders / "out" / path.name).read_bytes() == path.read_bytes(), "bit for bit as in one go"
    assert sorted(path.name for path in (folders / "out").iterdir()) == sorted(path.name for path in whole.iterdir())
    outputs = [entry["output"] for entry in lines(folders / "out") if "output" in entry]
    assert len(outputs) == len(set(outputs)) == 6, "one line for each"


def test_a_changed_photo_is_made_again(batch, folders, whole):
    shutil.copytree(whole, folders / "out")
    shutil.copy(SHIPPED / "content.png", folders / "photos" / "z.PNG")
    result = batch()
    assert "2 results made, 4 were there" in result.stderr
    assert difference(folders / "out" / "z_ink.png", folders / "out" / "Ärger 1_ink.png") == 0


def test_a_full_disk(batch, folders):
    """A small file system of its own: the batch stops with one line, and after room is made the same call goes on."""
    out = folders / "out"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", out], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.strip()}")
    try:
        result = batch()
        assert result.returncode == ENDED and "Traceback" not in result.stderr
        assert result.stderr.splitlines()[-1].startswith(f"atelier.py: no space left on the disk of {Path('out')}")
        some = {path.name: path.read_bytes() for path in out.glob("*.png")}
        assert 0 < len(some) < 6 and not list(out.glob("*.part"))
        for data in some.values():
            Image.open(io.BytesIO(data)).load()
        subprocess.run(["mount", "-o", "remount,size=4m", out], check=True)
        again = batch()
        assert again.returncode == DONE and f"{6 - len(some)} results made, {len(some)} were there" in again.stderr
        assert len(results(out)) == 6 and all((out / name).read_bytes() == data for name, data in some.items())
    finally:
        subprocess.run(["umount", out], check=True)


def test_two_calls_at_once(batch, folders):
    first = batch.start()
    until(first, (folders / "out" / "report.jsonl").exists)
    second = batch()
    assert second.returncode == ENDED and "another batch is writing there" in second.stderr.splitlines()[-1]
    assert first.wait(120) == DONE
    first.communicate()


def test_ctrl_c(batch, folders):
    process = batch.start()
    until(process, lambda: list((folders / "out").glob("*.png")))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and err.endswith("atelier.py: interrupted\n")


class Second:
    """The server at another address, until stop(): from there on nobody answers."""

    def __init__(self, client):
        self.there = "127.0.0.1", int(client.url.rpartition(":")[2])
        self.door, self.ends = socket.create_server(("127.0.0.1", 0)), []
        self.url = f"http://127.0.0.1:{self.door.getsockname()[1]}"
        self.spawn(self.listen)

    def spawn(self, function, *arguments):
        threading.Thread(target=function, args=arguments, daemon=True).start()

    def listen(self):
        with contextlib.suppress(OSError):
            while True:
                near, far = self.door.accept()[0], socket.create_connection(self.there)
                self.ends += [near, far]
                self.spawn(self.carry, near, far)
                self.spawn(self.carry, far, near)

    def carry(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def stop(self):
        for end in (self.door, *self.ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def second(client):
    second = Second(client)
    yield second
    second.stop()


def test_a_server_dies_and_the_others_do_its_work(batch, server, second, folders, whole):
    """Of four workers: two on one server, one whose server ends in the middle, and one that is no ComfyUI."""
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    urls = [server.client.url, second.url, f"http://127.0.0.1:{web.server_port}", server.client.url]
    process = batch.start(servers=",".join(urls))
    until(process, lambda: any(entry["worker"] == second.url for entry in reported(folders / "out")))
    second.stop()
    _, err = process.communicate(timeout=200)
    web.shutdown()
    assert process.returncode == DONE and "Traceback" not in err, err
    assert f"Note: {urls[2]} is left out: {urls[2]} answers (HTTP 501), but it is not ComfyUI" in err or "is left out" in err
    entries = [entry for entry in lines(folders / "out") if "output" in entry]
    assert len(entries) == 6 and {entry["worker"] for entry in entries} == {server.client.url, second.url}
    for path in whole.glob("*.png"):
        assert (folders / "out" / path.name).read_bytes() == path.read_bytes()


class Rubbish(http.server.BaseHTTPRequestHandler):
    """Says that it is ComfyUI, and answers everything else with a word."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"system": {"comfyui_version": "1"}}' if self.path == "/system_stats" else b'"rubbish"')


def test_a_server_that_answers_rubbish(batch):
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Rubbish)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    result = batch(servers=f"http://127.0.0.1:{web.server_port}")
    web.shutdown()
    assert result.returncode == ENDED and "Traceback" not in result.stderr
    assert f"atelier.py: http://127.0.0.1:{web.server_port} gave an answer that ComfyUI would not give" in result.stderr.splitlines()[-1]


def test_a_worker_that_gets_bytes_and_gives_bytes(client, folders, whole):
    """What a worker on another machine does, without what carries its pictures. It forgets a content when the next one comes."""
    about = {"workflow": load("zepo_demo"), "name": "zepo_demo", "settings": [("steps", "2")], "sides": ["Content", "Style"], "uploads": {},
             "returning": None}
    maker = Maker(about, [], None)
    maker.worker.open = lambda: contextlib.nullcontext(client)
    assert "name" in maker.start() and maker.about()["stats"]["devices"]
    styles = {name: (folders / "styles" / f"{name}.png").read_bytes() for name in ("ink", "neon")}
    for content, at in (("b.c.png", 1), ("z.PNG", 3)):
        for number, style in enumerate(styles):
            key = f"first/{content}".lower()
            row = Row({"Content": key, "Style": f"{style}.png"}, {}, f"{Path(content).stem}_{style}", at + number)
            events, extracted = maker.make([row], {key: (folders / "photos" / content).read_bytes(), f"{style}.png": styles[style]})
            assert [event[0] for event in events] == ["save", "write"] and events[1][1]["error"] is None
            made = Image.open(io.BytesIO(events[0][2])).convert("RGB")
            assert made.tobytes() == pixels(whole / events[0][1]).tobytes()
    assert [path.name for path in Path(maker.folder.name).rglob("*") if path.is_file() and path.parent.name == "first"] == ["z.png"]
    maker.stop()
    assert not Path(maker.folder.name).exists()


def test_a_name_that_the_disk_does_not_take(batch, folders):
    """One result fails, the others are there."""
    (folders / "photos" / f"{'x' * 79}.png").write_bytes((folders / "photos" / "z.PNG").read_bytes())
    result = batch(names="{content}{content}{content}{content}_{style}")
    assert result.returncode == SOME_FAILED and "6 results made, 2 failed" in result.stderr
    assert "File name too long" in next(entry["error"] for entry in lines(folders / "out") if entry.get("error"))


def reported(folder):
    """The results that the report tells so far; its last line may be half written."""
    path = folder / "report.jsonl"
    found = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in found if line.endswith("\n") and '"output"' in line]


@pytest.mark.parametrize("options, parts", [
    ({"content": "nowhere/*.png"}, ["--content nowhere/*.png: there is no such file or folder"]),
    ({"content": None, "style": None}, ["a batch needs pictures"]),
    ({"content": "no.csv"}, ["--content no.csv has no column 'content'", "style, seed"]),
    ({"content": "typo.csv", "style": None}, ["column 'promt' is nothing that can be set"]),
    ({"content": "short.csv", "style": None}, ["short.csv, line 2: it has fewer cells"]),
    ({"content": "both.csv"}, ["the style picture is given twice"]),
    ({"names": "{style}"}, ["rows 1 and 3 would both be called ink"]),
    ({"names": "../{content}_{style}"}, ["no file below the output folder"]),
    ({"names": "{who}"}, ["there is no 'who' here; known are content, style, row"]),
    ({"output": "photos/b.c.png"}, ["--output photos/b.c.png is a file"]),
    ({"face": "photos"}, ['workflow zepo_demo has no Load Image node titled "Face"']),
    ({"batch": "many"}, ["--batch many: give auto"]),
    ({"seed": "1,2"}, ["--seed gives several values"]),
    ({"seed": "x"}, ["--seed: 'x' is no whole number"]),
    ({"servers": "http://127.0.0.1:9"}, ["no answer from http://127.0.0.1:9"]),
])
def test_bad_calls(batch, folders, options, parts):
    (folders / "no.csv").write_text("style,seed\na.png,1\n")
    (folders / "typo.csv").write_text("content,promt\na.png,1\n")
    (folders / "short.csv").write_text("content,seed\na.png\n")
    (folders / "both.csv").write_text("content,style\na.png,b.png\n")
    result = batch(**options)
    assert result.returncode == ENDED and "Traceback" not in result.stderr, result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("atelier.py: ")] == result.stderr.splitlines()[-1:]
    for part in parts:
        assert part in result.stderr.splitlines()[-1]
