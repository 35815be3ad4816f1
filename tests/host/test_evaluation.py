"""The metrics that read texts, with tiny CLIP models of the true architecture and ComfyUI's own vocabulary."""

import importlib.util
import json
import os
import socket

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from portrait_atelier.evaluation import clip_iqa, clip_model, clip_score, run, weights
from portrait_atelier.evaluation.errors import EvaluationError, MissingWeights

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).double().view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).double().view(3, 1, 1)
needs_packages = pytest.mark.skipif(importlib.util.find_spec("piq") is None, reason="piq is absent: atelier.py evaluate --install")
START, END, WIDTH, TEXT, OUT = 49406, 49407, 8, 128, 32


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


def resnet_tensors():
    """OpenAI's names: a ResNet of stages 1, 2, 1, 1 blocks and a text half of two layers with two heads."""
    generator, tensors = torch.Generator().manual_seed(0), {}

    def normal(name, *shape, scale=None):
        fan = torch.Size(shape[1:]).numel()
        tensors[name] = torch.randn(*shape, generator=generator) * (scale or fan ** -.5)

    def norm(name, width, running=False):
        tensors[name + ".weight"] = torch.rand(width, generator=generator) + .5
        tensors[name + ".bias"] = torch.randn(width, generator=generator) * .1
        if running:
            tensors[name + ".running_mean"] = torch.randn(width, generator=generator) * .1
            tensors[name + ".running_var"] = torch.rand(width, generator=generator) + .5

    for number, (inputs, outputs) in enumerate(((3, WIDTH // 2), (WIDTH // 2, WIDTH // 2), (WIDTH // 2, WIDTH)), 1):
        normal(f"visual.conv{number}.weight", outputs, inputs, 3, 3)
        norm(f"visual.bn{number}", outputs, running=True)
    inputs = WIDTH
    for stage, blocks in enumerate((1, 2, 1, 1)):
        width = WIDTH * 2 ** stage
        for block in range(blocks):
            name = f"visual.layer{stage + 1}.{block}"
            for number, (a, b, side) in enumerate(((inputs, width, 1), (width, width, 3), (width, 4 * width, 1)), 1):
                normal(f"{name}.conv{number}.weight", b, a, side, side)
                norm(f"{name}.bn{number}", b, running=True)
            if block == 0:
                normal(f"{name}.downsample.0.weight", 4 * width, inputs, 1, 1)
                norm(f"{name}.downsample.1", 4 * width, running=True)
            inputs = 4 * width
    for name, outputs in (("q", inputs), ("k", inputs), ("v", inputs), ("c", OUT)):
        normal(f"visual.attnpool.{name}_proj.weight", outputs, inputs)
        normal(f"visual.attnpool.{name}_proj.bias", outputs, scale=.1)
    normal("visual.attnpool.positional_embedding", 50, inputs, scale=3)
    normal("token_embedding.weight", END + 1, TEXT, scale=.5)
    normal("positional_embedding", 77, TEXT, scale=.5)
    for layer in range(2):
        name = f"transformer.resblocks.{layer}"
        normal(f"{name}.attn.in_proj_weight", 3 * TEXT, TEXT)
        normal(f"{name}.attn.in_proj_bias", 3 * TEXT, scale=.1)
        normal(f"{name}.attn.out_proj.weight", TEXT, TEXT)
        normal(f"{name}.attn.out_proj.bias", TEXT, scale=.1)
        normal(f"{name}.mlp.c_fc.weight", 4 * TEXT, TEXT)
        normal(f"{name}.mlp.c_fc.bias", 4 * TEXT, scale=.1)
        normal(f"{name}.mlp.c_proj.weight", TEXT, 4 * TEXT)
        normal(f"{name}.mlp.c_proj.bias", TEXT, scale=.1)
        norm(f"{name}.ln_1", TEXT)
        norm(f"{name}.ln_2", TEXT)
    norm("ln_final", TEXT)
    normal("text_projection", TEXT, OUT, scale=TEXT ** -.5)
    tensors["logit_scale"] = torch.tensor(1.5)
    return {key: value.half().float() for key, value in tensors.items()}  # as the published ones are


def attention(q, k, v, heads, masked=False):
    """Literal: [N, C] each."""
    size, rows = q.shape[1] // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        logits = q[:, part] @ k[:, part].T / size ** .5
        if masked:
            logits = logits + torch.full(logits.shape, -torch.inf).triu(1)
        rows.append(logits.softmax(1) @ v[:, part])
    return torch.cat(rows, 1)


def literal_image(tensors, x):
    """The published network in float64, without the position embedding: [1, 3, H, W] -> [D] of length 1."""
    w = {key: value.double() for key, value in tensors.items()}

    def conv_norm(x, conv, norm, stride=1, padding=0):
        x = F.conv2d(x, w[conv + ".weight"], None, stride, padding)
        mean, var, scale, shift = (w[f"{norm}.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    for number in (1, 2, 3):
        x = conv_norm(x, f"visual.conv{number}", f"visual.bn{number}", 2 if number == 1 else 1, 1).clamp(min=0)
    x = F.avg_pool2d(x, 2)
    for stage, blocks in enumerate((1, 2, 1, 1)):
        for block in range(blocks):
            name, stride = f"visual.layer{stage + 1}.{block}", 2 if stage and not block else 1
            y = conv_norm(x, f"{name}.conv1", f"{name}.bn1").clamp(min=0)
            y = conv_norm(y, f"{name}.conv2", f"{name}.bn2", padding=1).clamp(min=0)
            if stride == 2:
                x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
            y = conv_norm(y, f"{name}.conv3", f"{name}.bn3")
            x = (y + (conv_norm(x, f"{name}.downsample.0", f"{name}.downsample.1") if block == 0 else x)).clamp(min=0)
    tokens = x[0].flatten(1).T
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens])
    q, k, v = (tokens @ w[f"visual.attnpool.{name}_proj.weight"].T + w[f"visual.attnpool.{name}_proj.bias"] for name in "qkv")
    y = attention(q, k, v, tokens.shape[1] // 64)[0]
    y = w["visual.attnpool.c_proj.weight"] @ y + w["visual.attnpool.c_proj.bias"]
    return y / y.norm()


def literal_text(tensors, ids):
    w = {key: value.double() for key, value in tensors.items() if not key.startswith("visual")}

    def norm(x, name):
        return F.layer_norm(x, (TEXT,), w[name + ".weight"], w[name + ".bias"])

    ids = ids + [0] * (77 - len(ids))  # as OpenAI pads; no token sees a later one
    x = w["token_embedding.weight"][ids] + w["positional_embedding"]
    for layer in range(2):
        name = f"transformer.resblocks.{layer}"
        y = norm(x, f"{name}.ln_1") @ w[f"{name}.attn.in_proj_weight"].T + w[f"{name}.attn.in_proj_bias"]
        y = attention(*y.chunk(3, 1), 2, masked=True)
        x = x + y @ w[f"{name}.attn.out_proj.weight"].T + w[f"{name}.attn.out_proj.bias"]
        y = norm(x, f"{name}.ln_2") @ w[f"{name}.mlp.c_fc.weight"].T + w[f"{name}.mlp.c_fc.bias"]
        x = x + (y * torch.sigmoid(1.702 * y)) @ w[f"{name}.mlp.c_proj.weight"].T + w[f"{name}.mlp.c_proj.bias"]
    y = norm(x, "ln_final")[ids.index(END)] @ w["text_projection"]
    return y / y.norm()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A models folder with a tiny CLIP ResNet, a tiny CLIPModel and an aesthetic head for it."""
    from safetensors.torch import save_file
    from transformers import CLIPConfig, CLIPModel
    folder = tmp_path_factory.mktemp("models")
    (folder / "evaluation" / "resnet50_clip.openai").mkdir(parents=True)
    save_file(resnet_tensors(), folder / "evaluation" / "resnet50_clip.openai" / "open_clip_model.safetensors")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config={**sizes, "eos_token_id": END}, vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=48))
    model.save_pretrained(folder / "clip_vision" / "clip-vit-large-patch14")
    torch.save({"weight": torch.randn(1, 48), "bias": torch.tensor([5.])}, folder / "evaluation" / "sa_0_4_vit_l_14_linear.pth")
    return folder


@pytest.fixture
def tools(models, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", os.environ["COMFYUI_PATH"])
    return weights.Tools([models], "cpu")


GOOD = [START, 886, 1125, 269, END]   # "good photo ." in the vocabulary, and "bad photo ."
BAD = [START, 2103, 1125, 269, END]


def test_the_tokens_are_openais():
    tokenize = clip_model.tokenizer()
    assert clip_model.token_ids(tokenize, "a photo of a cat") == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert [clip_model.token_ids(tokenize, words) for words in clip_iqa.PROMPTS] == [GOOD, BAD]
    long = clip_model.token_ids(tokenize, "a " * 100)
    assert len(long) == 77 and long[-1] == END


@needs_packages
def test_clip_iqa_is_its_definition(tmp_path, tools):
    tensors, path = resnet_tensors(), picture(tmp_path / "a.png", 1, (96, 64))
    ours = clip_iqa.ClipIqa(tools)({"generated": path})
    pixels = torch.from_numpy(np.asarray(Image.open(path), np.float64) / 255).permute(2, 0, 1)
    image = literal_image(tensors, ((pixels - MEAN) / STD)[None])
    good, bad = (np.exp(1.5) * float(image @ literal_text(tensors, ids)) for ids in (GOOD, BAD))
    expected = np.exp(good) / (np.exp(good) + np.exp(bad))
    assert abs(expected - .5) > 1e-3 and ours == pytest.approx(expected, abs=1e-5)


def test_the_clip_score_is_a_cosine(tmp_path, tools):
    clip, metric = tools.clip, clip_score.ClipScore(tools)
    path = picture(tmp_path / "a.png", 1, (96, 64))
    ours = metric({"generated": path, "prompt": "a man on the moon"})
    image = Image.open(path).resize((48, 32), Image.Resampling.BICUBIC).crop((8, 0, 40, 32))
    pixels = (torch.from_numpy(np.asarray(image, np.float64) / 255).permute(2, 0, 1) - MEAN) / STD
    tokens = clip.tokenize("a man on the moon", return_tensors="pt")
    model = clip.model.double()
    with torch.inference_mode():
        out = model(pixel_values=pixels[None], **tokens)
    expected = float(out.logits_per_image) / float(model.logit_scale.exp())
    assert -1 <= expected <= 1 and ours == pytest.approx(expected, abs=1e-5)


def test_embeddings_have_length_one_and_texts_are_kept(tmp_path, tools):
    clip = tools.clip
    assert float(clip.image(Image.open(picture(tmp_path / "a.png"))).norm()) == pytest.approx(1, abs=1e-6)
    assert float(clip.text("x").norm()) == pytest.approx(1, abs=1e-6) and clip.text("x") is clip.text("x")


def test_a_clip_with_missing_parts_is_refused(models, tmp_path):
    """The library would fill them with random numbers and go on."""
    from safetensors.torch import load_file, save_file
    source, folder = models / "clip_vision" / "clip-vit-large-patch14", tmp_path / "clip"
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = load_file(source / "model.safetensors")
    save_file({key: value for key, value in tensors.items() if not key.startswith("text_projection")}, folder / "model.safetensors",
              {"format": "pt"})
    with pytest.raises(EvaluationError, match="text_projection.weight is missing"):
        clip_model.Clip(folder, "cpu")
    (folder / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(EvaluationError, match="cannot be read as a CLIP model"):
        clip_model.Clip(folder, "cpu")
    with pytest.raises(EvaluationError, match="cannot be read as a CLIP model"):
        clip_model.Clip(tmp_path / "none", "cpu")


@needs_packages
def test_a_file_without_a_resnet_is_refused(tmp_path, monkeypatch):
    from safetensors.torch import save_file
    (tmp_path / "evaluation" / "resnet50_clip.openai").mkdir(parents=True)
    path, whole = tmp_path / "evaluation" / "resnet50_clip.openai" / "open_clip_model.safetensors", resnet_tensors()
    part = {key: value for key, value in whole.items() if key != "visual.bn2.running_mean"}
    for tensors, told in (({"visual.class_embedding": torch.zeros(3)}, "conv1.weight is missing"), (part, "state_dict for CLIP"),
                          ({key: value for key, value in whole.items() if key != "ln_final.weight"}, "ln_final.weight")):
        save_file(tensors, path)
        with pytest.raises(EvaluationError, match=f"{path} is no CLIP with a ResNet: .*{told}"):
            clip_iqa.ClipIqa(weights.Tools([tmp_path], "cpu"))


def test_without_comfyui_the_vocabulary_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(MissingWeights, match="vocabulary is not in"):
        clip_model.tokenizer()


@needs_packages
def test_a_whole_run_reads_texts(models, tmp_path, capsys):
    picture(tmp_path / "a.png")
    (tmp_path / "m.json").write_text(json.dumps({"A": [{"generated": "a.png", "prompt": "a man"}, {"generated": "a.png"}]}))
    code = run.main([str(tmp_path / "m.json"), "--models", str(models), "--output", str(tmp_path / "o.json"), "--device", "cpu"])
    report = json.loads((tmp_path / "o.json").read_text())
    assert code == 0 and set(report["skipped"]) == {"image_reward"} and capsys.readouterr().err.count("skipped") == 1
    one, two = (item["values"] for item in report["methods"]["A"]["items"])
    assert set(one) == {"clip", "aesthetic", "clip_iqa"} and set(two) == {"aesthetic", "clip_iqa"}
    assert one["aesthetic"] == two["aesthetic"] and -1 < one["clip"] < 1 and 0 < one["clip_iqa"] < 1
    assert report["weights"]["aesthetic"][0].endswith("sa_0_4_vit_l_14_linear.pth")
