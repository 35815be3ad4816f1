"""The papers' metrics: each against a literal float64 implementation or an exact property; manifests, skips, tables.

The networks have their true architecture and random weights: trained ones cannot be shipped.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from portrait_atelier.evaluation import (
    aesthetic,
    faces,
    gram,
    lpips,
    manifest,
    pictures,
    run,
    sets,
    tables,
    weights,
)
from portrait_atelier.evaluation.errors import EvaluationError, MissingWeights, Undefined

ROOT = Path(__file__).resolve().parents[2]
needs_packages = pytest.mark.skipif(importlib.util.find_spec("torchmetrics") is None, reason="torchmetrics is absent: atelier.py evaluate --install")
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
VGG19 = (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512, "M")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric looked for the network")
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def picture(path, seed=0, size=(64, 64)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def vgg_file(path, plan):
    """A state dict with torchvision's names, drawn so that activations keep their size through all layers."""
    generator, tensors, inputs, number = torch.Generator().manual_seed(len(plan)), {}, 3, 0
    for width in plan:
        if width == "M":
            number += 1
            continue
        scale = (2 / (inputs * 9)) ** .5
        tensors[f"features.{number}.weight"] = torch.randn(width, inputs, 3, 3, generator=generator) * scale
        tensors[f"features.{number}.bias"] = torch.randn(width, generator=generator) * .1
        inputs, number = width, number + 2
    tensors["classifier.0.weight"] = torch.zeros(2, 2)  # the files have the classifier too
    torch.save(tensors, path)
    return tensors


def vgg_literal(tensors, plan, x, wanted):
    """Activations in float64 after the `wanted` convolutions, counted (block, position) from 1 as in relu3_1."""
    found, block, position, number = [], 1, 0, 0
    for width in plan:
        if width == "M":
            x, block, position, number = F.max_pool2d(x, 2), block + 1, 0, number + 1
            continue
        x = F.conv2d(x, tensors[f"features.{number}.weight"].double(), tensors[f"features.{number}.bias"].double(), padding=1)
        x, position, number = x.clamp(min=0), position + 1, number + 2
        if (block, position) in wanted:
            found.append(x)
    return found


ALEX = {0: (3, 64, 11, 4, 2), 3: (64, 192, 5, 1, 2), 6: (192, 384, 3, 1, 1), 8: (384, 256, 3, 1, 1), 10: (256, 256, 3, 1, 1)}


def alex_file(path):
    generator, tensors = torch.Generator().manual_seed(1), {}
    for number, (inputs, width, side, *_) in ALEX.items():
        tensors[f"features.{number}.weight"] = torch.randn(width, inputs, side, side, generator=generator) * (2 / (inputs * side * side)) ** .5
        tensors[f"features.{number}.bias"] = torch.randn(width, generator=generator) * .1
    torch.save(tensors, path)
    return tensors


def alex_literal(tensors, x):
    found = []
    for number, (_, _, _, stride, padding) in ALEX.items():
        if number in (3, 6):
            x = F.max_pool2d(x, 3, 2)
        x = F.conv2d(x, tensors[f"features.{number}.weight"].double(), tensors[f"features.{number}.bias"].double(), stride, padding)
        x = x.clamp(min=0)
        found.append(x)
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A models folder with the convolutions of LPIPS (both networks) and of the style loss."""
    folder = tmp_path_factory.mktemp("models") / "evaluation"
    folder.mkdir()
    files = SimpleNamespace(folder=folder.parent, vgg16=vgg_file(folder / "vgg16-397923af.pth", VGG16),
                            vgg19=vgg_file(folder / "vgg19-dcbb9e9d.pth", VGG19), alex=alex_file(folder / "alexnet-owt-7be5be79.pth"))
    return files


@pytest.fixture
def tools(models):
    return weights.Tools([models.folder], "cpu")


def unit_range(path):
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB"), np.float64) / 255).permute(2, 0, 1)[None]


# LPIPS

def heads_of(network):
    """The published weights of LPIPS 0.1, which come with torchmetrics."""
    package = Path(importlib.util.find_spec("torchmetrics").origin).parent
    return torch.load(package / "functional" / "image" / "lpips_models" / f"{network}.pth", weights_only=True, map_location="cpu")


@needs_packages
@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_lpips_is_zhangs_definition(tmp_path, models, tools, network):
    heads = heads_of(network)
    item = {"generated": picture(tmp_path / "a.png", 1, (96, 80)), "content": picture(tmp_path / "b.png", 2, (96, 80))}
    ours = lpips.Lpips(tools, network)(item)
    layers = []
    for name in ("generated", "content"):
        x = unit_range(item[name]) * 2 - 1
        x = (x - torch.tensor([-.030, -.088, -.188]).double().view(3, 1, 1)) / torch.tensor([.458, .448, .450]).double().view(3, 1, 1)
        layers.append(alex_literal(models.alex, x) if network == "alex" else
                      vgg_literal(models.vgg16, VGG16, x, {(1, 2), (2, 2), (3, 3), (4, 3), (5, 3)}))
    expected = 0.
    for i, (a, b) in enumerate(zip(*layers)):
        a, b = (y / y.square().sum(1, keepdim=True).sqrt() for y in (a, b))
        w = heads[f"lin{i}.model.1.weight"].double()
        expected += float(((a - b).square() * w).sum(1).mean())
    assert len(layers[0]) == 5 and len(heads) == 5 and expected > .01
    assert ours == pytest.approx(expected, rel=1e-5)


@needs_packages
@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_lpips_of_equal_pictures_is_zero_and_it_is_symmetric(tmp_path, tools, network):
    a, b, metric = picture(tmp_path / "a.png", 1), picture(tmp_path / "b.png", 2), lpips.Lpips(tools, network)
    with torch.inference_mode():
        assert metric({"generated": a, "content": a}) == 0
        assert metric({"generated": a, "content": b}) == pytest.approx(metric({"generated": b, "content": a}), rel=1e-5)


@needs_packages
def test_lpips_brings_the_content_to_the_size_of_the_picture(tmp_path, tools):
    a, large = picture(tmp_path / "a.png", 1), tmp_path / "large.png"
    Image.open(a).resize((128, 128), Image.Resampling.NEAREST).save(large)
    metric = lpips.Lpips(tools)
    assert 0 < metric({"generated": a, "content": large}) < metric({"generated": a, "content": picture(tmp_path / "b.png", 2)})


# Style loss

def test_the_style_loss_is_gatyss_definition(tmp_path, models, tools):
    item = {"generated": picture(tmp_path / "a.png", 1, (80, 64)), "style": picture(tmp_path / "b.png", 2, (80, 64))}
    ours, layers = gram.GramStyle(tools)(item), []
    for name in ("generated", "style"):
        x = (unit_range(item[name]) - torch.tensor([.485, .456, .406]).double().view(3, 1, 1)) / torch.tensor([.229, .224, .225]).double().view(3, 1, 1)
        layers.append(vgg_literal(models.vgg19, VGG19, x, {(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)}))
    expected = 0.
    for a, b in zip(*layers):
        n, m = a.shape[1], a.shape[2] * a.shape[3]
        g, h = (torch.einsum("ik,jk->ij", y.reshape(n, m), y.reshape(n, m)) for y in (a, b))
        expected += float(((g - h) ** 2).sum()) / (4 * n ** 2 * m ** 2) / 5
    assert len(layers[0]) == 5 and expected > 0
    assert ours == pytest.approx(expected, rel=1e-4)


def test_gram_matrices_do_not_see_places():
    x = torch.randn(1, 8, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    moved = x.flatten(2)[..., order].view_as(x)
    assert torch.allclose(gram.gram(x), gram.gram(moved), atol=1e-12)
    assert float(gram.style_loss([x], [moved])) < 1e-20 < float(gram.style_loss([x], [x * 2]))
    assert torch.allclose(gram.style_loss([x], [x * 2]), (3 * gram.gram(x)).square().mean() / 4)


# Aesthetic

class FakeClip:
    """Stands for CLIP with weights nobody can ship: an embedding that the test chose."""

    def __init__(self, embedding):
        self.embedding, self.width = embedding, len(embedding)

    def image(self, picture):
        return self.embedding


def aesthetic_of(folder, tensors, name, embedding):
    (folder / "evaluation").mkdir(parents=True)
    torch.save(tensors, folder / "evaluation" / name)
    tools = weights.Tools([folder], "cpu")
    tools.clip = FakeClip(embedding)
    return aesthetic.Aesthetic(tools)({"generated": picture(folder / "a.png")})


def test_the_aesthetic_head_is_linear(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(768, generator=generator), dim=0)
    one = {"weight": torch.randn(1, 768, generator=generator), "bias": torch.tensor([5.])}
    assert aesthetic_of(tmp_path / "one", one, "sa_0_4_vit_l_14_linear.pth", x) == pytest.approx(
        float(one["weight"].double()[0] @ x.double()) + 5, abs=1e-5)
    widths, numbers, deep, y = (768, 1024, 128, 64, 16, 1), (0, 2, 4, 6, 7), {}, x.double()
    for number, inputs, outputs in zip(numbers, widths, widths[1:]):  # dropout has numbers too
        deep[f"layers.{number}.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs ** .5
        deep[f"layers.{number}.bias"] = torch.randn(outputs, generator=generator)
        y = deep[f"layers.{number}.weight"].double() @ y + deep[f"layers.{number}.bias"].double()
    assert aesthetic_of(tmp_path / "deep", deep, "ava+logos-l14-linearMSE.pth", x) == pytest.approx(float(y), rel=1e-4)


@pytest.mark.parametrize("tensors, part", [({"weight": torch.zeros(1, 512)}, "on 768 values"),
                                           ({"weight": torch.zeros(4, 768)}, "ends in 4 values")])
def test_another_head_is_refused(tmp_path, tensors, part):
    with pytest.raises(EvaluationError, match=part):
        aesthetic_of(tmp_path / "x", tensors, "sa_0_4_vit_l_14_linear.pth", torch.zeros(768))


# Faces

class Analysis:
    """Stands for insightface: a picture's top left pixel says who is on it."""

    def __init__(self):
        self.calls = 0

    def get(self, bgr):
        self.calls += 1
        assert bgr.dtype == np.uint8 and bgr.flags["C_CONTIGUOUS"]
        blue, green, red = (int(value) for value in bgr[0, 0])
        if blue == 255:
            return []
        angle = np.deg2rad(red)
        return [SimpleNamespace(bbox=np.array([-200., -200, 999, 999]), det_score=.3, normed_embedding=np.array([0, 0, 1.], np.float32)),
                SimpleNamespace(bbox=np.array([-5., 8, 40, 900]), det_score=.9,
                                normed_embedding=np.array([np.cos(angle), np.sin(angle), 0], np.float32))]


@pytest.fixture
def face_tools(monkeypatch):
    analysis = Analysis()
    monkeypatch.setattr(faces, "load_analysis", lambda tools: analysis)
    tools = weights.Tools([], "cpu")
    tools.analysis = analysis
    return tools


def plain(path, colour):
    Image.new("RGB", (64, 64), colour).save(path)
    return path


def test_identity_is_the_cosine_of_the_most_certain_faces(tmp_path, face_tools):
    one, other, none = plain(tmp_path / "1.png", (10, 0, 0)), plain(tmp_path / "2.png", (70, 0, 0)), plain(tmp_path / "3.png", (0, 0, 255))
    identity, fails = faces.Identity(face_tools), faces.FaceFails(face_tools)
    assert identity({"generated": one, "identity": one}) == pytest.approx(1, abs=1e-6)
    assert identity({"generated": other, "identity": one}) == pytest.approx(np.cos(np.deg2rad(60)), abs=1e-6)
    assert fails({"generated": other}) == 0 and fails({"generated": none}) == 1
    with pytest.raises(Undefined, match="no face in the generated"):
        identity({"generated": none, "identity": one})
    with pytest.raises(EvaluationError, match="3.png shows no face"):
        identity({"generated": one, "identity": none})
    assert face_tools.analysis.calls == 3  # each picture once


def test_without_insightface_the_command_to_install_it_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "insightface" / "models" / "buffalo_l"
    folder.mkdir(parents=True)
    for name in ("det.onnx", "rec.onnx"):
        (folder / name).touch()
    monkeypatch.setitem(sys.modules, "insightface", None)
    monkeypatch.setitem(sys.modules, "insightface.app", None)
    with pytest.raises(MissingWeights, match="cannot be imported.* -m pip install insightface"):
        faces.Identity(weights.Tools([tmp_path], "cpu"))


def test_face_style_reads_the_cut_out_face(tmp_path, face_tools):
    seen = []
    face_tools.clip = SimpleNamespace(image=lambda cut: seen.append(cut.size) or torch.tensor([.6, .8]),
                                      text=lambda words: torch.tensor([1., 0]) if words == "ink" else None)
    metric = faces.FaceStyle(face_tools)
    assert metric({"generated": plain(tmp_path / "1.png", (10, 0, 0)), "style_prompt": "ink"}) == pytest.approx(.6)
    assert seen == [(40, 56)]  # the box, as far as it lies in the picture
    with pytest.raises(Undefined):
        metric({"generated": plain(tmp_path / "3.png", (0, 0, 255)), "style_prompt": "ink"})


# The manifest

def test_paths_are_relative_to_the_manifest(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps({"A": [{"generated": "x/1.png", "identity": "/p.png", "prompt": "a man", "seconds": 2}]}))
    assert manifest.read([tmp_path / "m.json"]) == {"A": [{"generated": tmp_path / "x/1.png", "identity": Path("/p.png"), "prompt": "a man",
                                                         "seconds": 2}]}


@pytest.mark.parametrize("content, part", [
    (None, "cannot be read: No such file"), ("{", "is no JSON"), ("[]", "must be an object of method name"), ("{}", "at least one method"),
    ('{"A": []}', "'A' must be a list with at least one item"), ('{"A": {}}', "'A' must be a list"), ('{"A": [3]}', "item 0: an item must be an object"),
    ('{"A": [{"generated": "a.png"}, {"generated": "a.png", "promt": "x"}]}', "'A', item 1: unknown key 'promt'"),
    ('{"A": [{"prompt": "x"}]}', "the key 'generated' is missing"), ('{"A": [{"generated": ""}]}', "generated must be a text that is not empty"),
    ('{"A": [{"generated": 3}]}', "generated must be a text"), ('{"A": [{"generated": "a", "seconds": true}]}', "seconds must be a number"),
    ('{"A": [{"generated": "a", "seconds": -1}]}', "seconds must be a number"), ('{"A": [{"generated": "a", "seconds": NaN}]}', "NaN is no JSON number"),
    ('{"A": [{"generated": "a", "seconds": 1e999}]}', "seconds must be a number"),
    ('{"A": [{"generated": "a"}], "A": [{"generated": "b"}]}', "'A' appears twice"), (b"\xff\xfe", "cannot be read"),
    ("[" * 100000, "is no JSON"),
], ids=range(18))
def test_a_bad_manifest_is_one_line_and_code_2(tmp_path, capsys, content, part):
    path = tmp_path / "m.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run.main([str(path), "--output", str(tmp_path / "out.json")]) == 2
    out, err = capsys.readouterr()
    assert part in err and err.startswith("atelier.py evaluate: the manifest ") and err.count("\n") == 1 and not out
    assert not (tmp_path / "out.json").exists()


def report_of(folder, *lines):
    folder.mkdir(exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines)
    (folder / "report.jsonl").write_text(text[:-1] if lines[-1] == "cut" else text, encoding="utf-8")
    return folder


def made(name, content="a.png", **more):
    return {"output": name, "inputs": {"content": content, "style": "s.png"}, "settings": {}, "seconds": 2.5, "error": None, **more}


def test_the_folder_of_a_batch_is_a_manifest(tmp_path):
    call = {"settings": [["steps", 4], ["prompt", "a head"], [None, "Prompt.text=x"]]}
    folder = report_of(tmp_path / "my batch", {"call": call, "folder": "/there"}, made("1.png", "a\u2028b.png"), made("2.png", error="bad"),
                       made("3.png", error="bad"), {"call": call, "folder": "/here"},
                       made("3.png", inputs={"content": "c.png", "face": "f.png"}, settings={"prompt": "old"}, seconds=None),
                       made("1.png", "/d.png", error="bad"), "cut")
    assert manifest.read([folder]) == {"my batch": [
        {"generated": folder / "1.png", "content": Path("/there/a\u2028b.png"), "style": Path("/there/s.png"),
         "identity": Path("/there/a\u2028b.png"), "prompt": "a head", "seconds": 2.5},
        {"generated": folder / "3.png", "content": Path("/here/c.png"), "identity": Path("/here/f.png"), "prompt": "old"}]}


@pytest.mark.parametrize("lines, part", [(["{}", "["], "line 2, is no line of one"), (["3"], "line 1, is no line"), (["{}"], "tells of no result"),
                                         (['{"output": "a.png"}'], "line 1, is no line"), (None, "cannot be read: No such file")])
def test_a_folder_that_is_no_batch_is_one_line_and_code_2(tmp_path, capsys, lines, part):
    folder = report_of(tmp_path / "x", *lines) if lines else tmp_path
    assert run.main([str(folder), "--output", str(tmp_path / "out.json")]) == 2
    err = capsys.readouterr().err
    assert part in err and str(folder / "report.jsonl") in err and err.count("\n") == 1


def test_two_methods_of_one_name_are_not_mixed(tmp_path, capsys):
    (tmp_path / "m.json").write_text('{"x": [{"generated": "a.png", "seconds": 1}]}')
    folder = report_of(tmp_path / "x", made("1.png"))
    assert run.main([str(tmp_path / "m.json"), str(folder), "--output", str(tmp_path / "out.json")]) == 2
    assert "the method 'x' of" in capsys.readouterr().err


def test_twenty_thousand_results_and_names_that_are_no_text(tmp_path, capsys):
    """Pages stay small enough to open: not every picture has a thumbnail. Bytes that are no UTF-8 become question marks."""
    items = [{"generated": f"{number}.png", "seconds": number} for number in range(20_000)]
    items[7]["generated"] = "\udcff.png"  # as Python reads such a name from the disk
    (tmp_path / "m.json").write_text(json.dumps({"A": items}))
    assert run.main([str(tmp_path / "m.json"), "--output", str(tmp_path / "o.json"), "--models", str(tmp_path)]) == 0
    text = (tmp_path / "o.html").read_text(encoding="utf-8")
    assert text.count("<tr>") == 20_000 + 3 and len(text) < 20e6 and "/?.png" in text
    assert len(json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))["methods"]["A"]["items"]) == 20_000


@pytest.mark.parametrize("words", [[], ["m.json", "--print", "zepo4"], ["m.json", "--lpips", "x"], ["m.json", "--output", "m.html"]])
def test_a_bad_call_is_one_line_and_code_2(words, capsys):
    assert run.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_it_runs_as_the_command_runs_it(tmp_path):
    result = subprocess.run([sys.executable, ROOT / "headless" / "pack.py", "evaluation.run", "--folder", tmp_path, "none.json"],
                            capture_output=True, text=True, env={**os.environ, "COMFYUI_PATH": ""})
    assert result.returncode == 2
    assert result.stderr == f"atelier.py evaluate: the manifest {tmp_path / 'none.json'} cannot be read: No such file or directory\n"


# A whole run

def evaluate(tmp_path, methods, *words):
    (tmp_path / "m.json").write_text(json.dumps(methods))
    code = run.main([str(tmp_path / "m.json"), "--output", str(tmp_path / "out" / "results.json"), "--device", "cpu", *map(str, words)])
    return code, json.loads((tmp_path / "out" / "results.json").read_text())


@needs_packages
def test_values_summary_and_skips(tmp_path, models, capsys):
    a, b, c = (picture(tmp_path / f"{i}.png", i) for i in range(3))
    items = [{"generated": "0.png", "content": "1.png", "style": "2.png", "seconds": 1}, {"generated": "0.png", "content": "0.png", "seconds": 2},
             {"generated": "0.png", "content": "2.png", "prompt": "a head"}]
    code, report = evaluate(tmp_path, {"Ours": items}, "--models", models.folder)
    err = capsys.readouterr().err
    assert code == 0 and report["complete"]
    missing = {"clip": "clip-vit-large-patch14", "aesthetic": "ava+logos-l14-linearMSE.pth", "clip_iqa": "open_clip_model.safetensors",
               "structure": "dino_vitbase8_pretrain.pth", "csd": "csd-vit-l", "fid": "weights-inception-2015-12-05-6726825d.pth",
               "art_fid": "art_inception.pth", "image_reward": "ImageReward.pt"}
    assert set(report["skipped"]) == set(missing)
    for name, file in missing.items():
        lines = [line for line in err.splitlines() if line.startswith(f"atelier.py evaluate: {name} is skipped")]
        assert len(lines) == 1 and file in lines[0] and str(models.folder / "evaluation") in lines[0] and "https://" in lines[0]
    assert "identity" not in err and "face_fails" not in err  # no item asks for them
    result = report["methods"]["Ours"]
    values = [item["values"] for item in result["items"]]
    assert values[1]["lpips"] == 0 and set(values[0]) == {"seconds", "lpips", "style_loss"} and set(values[2]) == {"lpips"}
    told = result["metrics"]["lpips"]
    assert told["mean"] == pytest.approx(np.mean([v["lpips"] for v in values]))
    assert told["std"] == pytest.approx(np.std([v["lpips"] for v in values], ddof=1)) and told["count"] == 3
    assert result["metrics"]["seconds"] == {"mean": 1.5, "std": pytest.approx(.5 ** .5), "sum": 3, "count": 2, "undefined": 0}
    assert result["metrics"]["style_loss"]["std"] is None
    assert report["weights"]["lpips"] == [str(models.folder / "evaluation" / name) for name in ("alexnet-owt-7be5be79.pth",)]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.html", "results.json"}


@needs_packages
def test_a_bad_item_does_not_lose_the_others(tmp_path, models, capsys):
    picture(tmp_path / "good.png")
    (tmp_path / "junk.png").write_text("no picture")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:len(whole) // 2])
    picture(tmp_path / "small.png", size=(40, 64))
    items = [{"generated": name, "content": "good.png"} for name in ("good.png", "junk.png", "none.png", "cut.png", "small.png", "good.png")]
    code, report = evaluate(tmp_path, {"A": items, "B": items[:1]}, "--models", models.folder)
    err = capsys.readouterr().err.splitlines()
    assert code == 1
    measured = report["methods"]["A"]["items"]
    assert [bool(item["errors"]) for item in measured] == [False, True, True, True, True, False]
    assert [item["values"] for item in measured] == [{"lpips": 0}, {}, {}, {}, {}, {"lpips": 0}]
    assert report["methods"]["A"]["metrics"]["lpips"]["count"] == 2 and report["methods"]["B"]["metrics"]["lpips"]["count"] == 1
    for number, part in ((1, "junk.png cannot be read as a picture"), (2, "none.png does not exist"), (3, "cut.png cannot be read"), (4, "40 x 64 pixels")):
        assert sum(f"A, item {number}: " in line and part in line for line in err) == 1
    assert "4 of 7 items could not be measured wholly" in err[-1]


def test_values_that_are_no_numbers_are_told_and_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lpips.Lpips, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(sets.Diversity, "needs", ("nothing",))
    numbers = iter([.5, float("nan"), float("inf"), .7])
    monkeypatch.setattr(lpips.Lpips, "__call__", lambda self, item: next(numbers))
    code, report = evaluate(tmp_path, {"A": [{"generated": "a.png", "content": "b.png"}] * 4}, "--models", tmp_path)
    told = report["methods"]["A"]["metrics"]["lpips"]
    assert code == 0 and told["mean"] == pytest.approx(.6) and told["count"] == 2 and told["undefined"] == 2
    assert report["methods"]["A"]["items"][1]["notes"] == ["lpips: the value is not a number"]
    assert "(2 of 4)" in capsys.readouterr().out


def test_an_output_that_cannot_be_written_is_told_first(tmp_path, capsys):
    (tmp_path / "m.json").write_text('{"A": [{"generated": "a.png", "seconds": 1}]}')
    for output in (tmp_path, tmp_path / "m.json" / "x.json"):
        assert run.main([str(tmp_path / "m.json"), "--output", str(output), "--models", str(tmp_path)]) == 2
        out, err = capsys.readouterr()
        assert err.count("\n") == 1 and not out and str(tmp_path) in err


def test_nothing_measured_is_code_1_and_says_so(tmp_path, capsys):
    picture(tmp_path / "a.png")
    code, report = evaluate(tmp_path, {"A": [{"generated": "a.png"}]}, "--models", tmp_path)
    assert code == 1 and "nothing was measured" in capsys.readouterr().err and report["methods"]["A"]["metrics"] == {}


def test_ctrl_c_keeps_what_is_measured(tmp_path, monkeypatch):
    def stop(self, item):
        if item["generated"].name == "b.png":
            raise KeyboardInterrupt
        return .5
    monkeypatch.setattr(lpips.Lpips, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(sets.Diversity, "needs", ("nothing",))
    monkeypatch.setattr(lpips.Lpips, "__call__", stop)
    code, report = evaluate(tmp_path, {"A": [{"generated": name, "content": "a.png"} for name in ("a.png", "b.png", "c.png")]}, "--models", tmp_path)
    assert code == 130 and not report["complete"] and len(report["methods"]["A"]["items"]) == 1


# Weights that are there and are not what they should be

@pytest.mark.parametrize("content, part", [(b"junk", "cannot be read as weights"), ({"features.0.weight": torch.zeros(64, 3, 3, 3)}, "other weights"),
                                           ({"a": [1]}, "no plain list of tensors"), ({"features.0.weight": print}, "cannot be read as weights")])
def test_broken_weights_are_named(tmp_path, capsys, content, part):
    (tmp_path / "evaluation").mkdir()
    path = tmp_path / "evaluation" / "vgg19-dcbb9e9d.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    picture(tmp_path / "a.png")
    code, report = evaluate(tmp_path, {"A": [{"generated": "a.png", "style": "a.png", "seconds": 1}]}, "--models", tmp_path)
    assert code == 1 and str(path) in report["skipped"]["style_loss"] and part in report["skipped"]["style_loss"]
    assert sum(str(path) in line for line in capsys.readouterr().err.splitlines()) == 1


def test_without_the_packages_the_command_that_installs_them_is_named(tmp_path, monkeypatch, capsys):
    for name in ("torchmetrics", "torchmetrics.functional.image.lpips", "piq", "piq.feature_extractors.clip"):
        monkeypatch.setitem(sys.modules, name, None)
    picture(tmp_path / "a.png")
    code, report = evaluate(tmp_path, {"A": [{"generated": "a.png", "content": "a.png", "seconds": 1}]}, "--models", tmp_path)
    assert code == 0 and set(report["skipped"]) == {"lpips", "clip_iqa", "aesthetic", "diversity", "structure"}
    for name, package in (("lpips", "torchmetrics"), ("clip_iqa", "piq")):
        assert f"the package {package} cannot be imported" in report["skipped"][name]
        assert "atelier.py evaluate --install" in report["skipped"][name] and str(ROOT / "requirements-evaluate.txt") in report["skipped"][name]


def test_the_folders_are_comfyuis_unless_given(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert weights.model_folders([]) == [tmp_path / "models", ROOT / ".atelier" / "base" / "models"]
    assert weights.model_folders([tmp_path]) == [tmp_path]


# Pictures

def test_pictures_are_read_as_viewers_show_them(tmp_path):
    turned = Image.new("RGBA", (64, 80), (1, 2, 3, 0))
    exif = Image.Exif()
    exif[0x112] = 6  # a quarter turn
    turned.save(tmp_path / "a.png", exif=exif)
    assert pictures.load(tmp_path / "a.png").size == (80, 64) and pictures.load(tmp_path / "a.png").getpixel((5, 5)) == (1, 2, 3)
    Image.new("L", (64, 64), 7).save(tmp_path / "b.png")
    assert pictures.load(tmp_path / "b.png").getpixel((0, 0)) == (7, 7, 7)
    with pytest.raises(EvaluationError, match="cannot be read as a picture"):
        pictures.load(tmp_path)


# Tables

def entry(value):
    return {"mean": value, "sum": value * 4, "std": None, "count": 4, "undefined": 0}


def test_fastface_table_1_in_the_papers_columns():
    metrics = {"identity": entry(.5), "clip": entry(.25), "aesthetic": entry(6.), "face_fails": entry(.5)}
    summaries = {"Hyper + FF_AM1": {"pictures": 4, "metrics": metrics},
                 "Hyper + FF_AM1 @0.5": {"pictures": 5, "metrics": {"identity": entry(.25)}}, "Mine": {"pictures": 4, "metrics": {}}}
    lines = tables.fastface_1(summaries).splitlines()
    assert lines[4:18] == [
        "                            lora_scale=1.0                  lora_scale=0.5",
        "Model                       ID ↑  CLIP ↑   AE ↑  FFC ↓  n   ID ↑  CLIP ↑   AE ↑  FFC ↓  n",
        "Hyper (base)        paper  0.567   0.244  6.092      2     0.381   0.258  6.273     88",
        "Hyper + FF_AM1      ours   0.500   0.250  6.000      2  4  0.250       -      -      -  5",
        "Hyper + FF_AM1      paper  0.602   0.247  6.134      2     0.445   0.259  6.309     72",
        "Hyper + FF_AM2      paper  0.585   0.236  6.161      0     0.450   0.251  6.348     34",
        "Lightning (base)    paper  0.504   0.242  6.014      4     0.359   0.251  6.150     89",
        "Lightning + FF_AM1  paper  0.543   0.247  6.112      2     0.427   0.256  6.254     66",
        "Lightning + FF_AM2  paper  0.542   0.232  6.120      0     0.448   0.244  6.271     33",
        "LCM (base)          paper  0.515   0.243  5.770     53     0.344   0.258  5.911    288",
        "LCM + FF_AM1        paper  0.525   0.244  5.796     37     0.383   0.258  5.968    202",
        "LCM + FF_AM2        paper  0.533   0.229  5.807     20     0.406   0.246  5.979    136",
        "Turbo (base)        paper  0.336   0.246  5.689    161     0.177   0.257  5.791    242",
        "Turbo + FF_AM1      paper  0.416   0.249  5.698    139     0.239   0.262  5.757    431",
    ]
    assert lines[-1].startswith("Mine") and "the paper's numbers" in lines[1]


def test_zepo_tables_in_the_papers_columns():
    metrics = {name: entry(value) for name, value in (("lpips", .1), ("clip_iqa", .9), ("style_loss", 2.), ("seconds", .5))}
    two = tables.zepo_2({"Our": {"pictures": 100, "metrics": metrics}}).splitlines()
    assert two[5:] == [
        "Method          LPIPS ↓  CLIP-IQA ↑  Style ↓  Fine-tuning(s) ↓  Inference(s) ↓    n",
        "JoJoGAN  paper    0.550       0.538    3.742            48.524           0.052",
        "DynaGAN  paper    0.588       0.555    2.810          1156.822           0.041",
        "NADA     paper    0.561       0.566    4.813           155.321           0.091",
        "InST     paper    0.564       0.727    5.775          2007.966           6.932",
        "VCT      paper    0.348       0.467    5.887           374.117          37.850",
        "Our      ours     0.100       0.900    2.000                 -           0.500  100",
        "Our      paper    0.261       0.858    5.213                 0           0.684",
    ]
    three = tables.zepo_3({"W/ FM T=4": {"pictures": 3, "metrics": metrics}}).splitlines()
    assert three[5:] == [
        "Method              CLIP-IQA ↑  LPIPS ↓  Style ↓  Inference(s) ↓  n",
        "W/ FM T=25   paper       0.797    0.470    1.628           2.862",
        "W/ FM T=8    paper       0.835    0.409    1.848           1.049",
        "W/ FM T=4    ours        0.900    0.100    2.000           0.500  3",
        "W/ FM T=4    paper       0.823    0.376    1.993           0.634",
        "W/ FM T=2    paper       0.781    0.326    2.181           0.416",
        "W/ FM T=1    paper       0.753    0.242    2.357           0.304",
        "W/o FM T=25  paper       0.778    0.440    1.747           3.434",
        "W/o FM T=8   paper       0.844    0.413    1.994           1.232",
        "W/o FM T=4   paper       0.817    0.368    2.094           0.724",
        "W/o FM T=2   paper       0.779    0.313    2.228           0.467",
        "W/o FM T=1   paper       0.766    0.226    2.411           0.355",
    ]


def test_tables_are_printed_by_the_command(tmp_path, capsys):
    code, _ = evaluate(tmp_path, {"W/ FM T=4": [{"generated": "a.png", "seconds": .25}]}, "--models", tmp_path, "--print", "zepo2", "zepo3", "fastface1")
    out = capsys.readouterr().out
    assert out.count("the paper's numbers") == 3 and "0.250  1" in out


def test_missing_weights_is_an_evaluation_error():
    assert issubclass(MissingWeights, EvaluationError) and issubclass(Undefined, EvaluationError)
