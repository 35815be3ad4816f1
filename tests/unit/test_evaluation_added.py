"""The metrics beside the papers' own: each against another implementation or an exact property, with small random weights."""

import argparse
import importlib.util
import json
import statistics

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from portrait_atelier.evaluation import csd, faces, flicker, image_reward, run, sets, structure, tables, weights
from portrait_atelier.evaluation.errors import EvaluationError, Undefined
from portrait_atelier.stylegan.dino import Dino

needs_packages = pytest.mark.skipif(importlib.util.find_spec("torchmetrics") is None, reason="torchmetrics is absent: atelier.py evaluate --install")


def picture(path, seed=0, size=(64, 64)):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)
    return path


@pytest.fixture
def tools(tmp_path):
    (tmp_path / "evaluation").mkdir()
    return weights.Tools([tmp_path], "cpu")


def randomised(network, scale=.2):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(value.shape, generator=generator) * scale for name, value in network.state_dict().items()}


# CSD: as a training saves it, against transformers' CLIP

@needs_packages
def test_csd_is_the_cosine_of_the_projected_class_token(tmp_path, tools):
    from transformers import CLIPVisionConfig, CLIPVisionModel
    other = CLIPVisionModel(CLIPVisionConfig(hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2, image_size=32,
                                             patch_size=8)).eval()
    theirs, ours = randomised(other), {"proj": None}
    other.load_state_dict(theirs | {name: value for name, value in other.state_dict().items() if "position_ids" in name})
    names = {"embeddings.class_embedding": "class_embedding", "embeddings.patch_embedding.weight": "conv1.weight",
             "embeddings.position_embedding.weight": "positional_embedding", "pre_layrnorm.": "ln_pre.", "post_layernorm.": "ln_post.",
             "encoder.layers.": "transformer.resblocks.", ".layer_norm1.": ".ln_1.", ".layer_norm2.": ".ln_2.", ".mlp.fc1.": ".mlp.c_fc.",
             ".mlp.fc2.": ".mlp.c_proj.", ".self_attn.out_proj.": ".attn.out_proj."}
    for name, value in theirs.items():
        name = name.removeprefix("vision_model.")
        for old, new in names.items():
            name = name.replace(old, new)
        ours[name] = value
    for layer in range(2):
        for part in ("weight", "bias"):
            parts = [ours.pop(f"transformer.resblocks.{layer}.self_attn.{which}_proj.{part}") for which in "qkv"]
            ours[f"transformer.resblocks.{layer}.attn.in_proj_{part}"] = torch.cat(parts)
    head = torch.randn(128, 16, generator=torch.Generator().manual_seed(1))
    saved = {f"module.backbone.{name}": value for name, value in ours.items() if value is not None}
    saved |= {"module.last_layer_style": head, "module.last_layer_content": head}
    (tmp_path / "evaluation" / "csd-vit-l").mkdir()
    path = tmp_path / "evaluation" / "csd-vit-l" / "pytorch_model.bin"
    torch.save({"model_state_dict": saved, "args": argparse.Namespace(lr=1.), "epoch": np.float64(3)}, path)
    metric = csd.Csd(tools)
    items = [picture(tmp_path / f"{i}.png", i, (64, 64 + 32 * i)) for i in range(2)]
    with torch.inference_mode():
        found = metric({"generated": items[0], "style": items[1]})
        pixels = torch.stack([image_of(path, 32) for path in items])
        expected = F.normalize(other(pixel_values=pixels).pooler_output @ head, dim=1)
    assert found == pytest.approx(float(expected[0] @ expected[1]), abs=1e-5) and abs(found) < .999
    assert metric({"generated": items[0], "style": items[0]}) == pytest.approx(1, abs=1e-5)
    torch.save({"model_state_dict": {}, "more": print}, path)
    with pytest.raises(EvaluationError, match="cannot be read as weights"):
        csd.Csd(tools)
    torch.save({"model_state_dict": {"last_layer_style": head}}, path)
    with pytest.raises(EvaluationError, match="holds no style descriptors"):
        csd.Csd(tools)


def image_of(path, side):
    """As CLIP sees it: shorter side scaled, middle cut out, normalised."""
    image = Image.open(path)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    pixels = torch.from_numpy(np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255).permute(2, 0, 1)
    mean, std = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


# DINO structure

def test_structure_is_the_distance_of_self_similarities(tmp_path, tools):
    network = Dino(width=64, blocks=2, patch=8, grid=4, hidden=128)
    tensors = randomised(network)
    torch.save(tensors, tmp_path / "evaluation" / "dino_vitbase8_pretrain.pth")
    network.load_state_dict(tensors)
    metric, one, other = structure.DinoStructure(tools), picture(tmp_path / "1.png", 1), picture(tmp_path / "2.png", 2, (96, 64))
    with torch.inference_mode():
        found = metric({"generated": one, "content": other})
        keys = [network(torch.from_numpy(np.asarray(Image.open(path), np.float32) / 255).permute(2, 0, 1)[None])[0] for path in (one, other)]
    cosines = [np.array([[float(F.cosine_similarity(a, b, dim=0)) for b in side] for a in side]) for side in keys]
    assert found == pytest.approx(((cosines[0] - cosines[1]) ** 2).mean(), rel=1e-3) and found > 1e-4
    assert metric({"generated": one, "content": one}) == 0
    (tmp_path / "evaluation" / "dino_vitbase8_pretrain.pth").write_bytes(b"junk")
    with pytest.raises(EvaluationError, match="cannot be read as DINO"):
        structure.DinoStructure(tools)


# Copy-paste score

class Photos:
    """Stands for the faces of pictures called by their angle in degrees; "none" has none."""

    def best(self, path):
        if path.stem == "none":
            return None
        angle = np.deg2rad(float(path.stem))
        return type("Face", (), {"normed_embedding": np.array([np.cos(angle), np.sin(angle)], np.float32)})


def test_the_copy_paste_score_tells_a_copy_from_the_person(tmp_path, tools):
    tools.__dict__["faces"] = Photos()
    metric = faces.CopyPaste(tools)

    def score(generated, identity="0", other="60"):
        return metric({side: tmp_path / f"{name}.png" for side, name in zip(metric.needs, (generated, identity, other))})

    assert score("0") == pytest.approx(1, abs=1e-3) and score("60") == pytest.approx(-1, abs=1e-3)
    assert score("30") == pytest.approx(0, abs=1e-3) and score("15") == pytest.approx(.5, abs=1e-3)
    assert score("200") == pytest.approx((140 - 160) / 60, abs=1e-3)
    with pytest.raises(Undefined, match="no face in the generated"):
        score("none")
    with pytest.raises(EvaluationError, match="none.png shows no face"):
        score("0", other="none")
    with pytest.raises(EvaluationError, match="another photo of the person"):
        score("10", other="0")


# Flicker

def frames(folder, name, *values):
    """Grey frames; the left half has the first value of each pair, the right half the second."""
    paths = []
    for number, pair in enumerate(values):
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[:, :32], pixels[:, 32:] = pair
        paths.append(folder / f"{name}{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_flicker_is_what_changes_where_the_content_stands_still(tmp_path, tools):
    generated = frames(tmp_path, "g", (10, 10), (30, 200), (30, 0))
    content = frames(tmp_path, "c", (50, 0), (53, 255), (50, 0))  # the left half stands still but for noise, the right one moves
    items = [{"generated": g, "content": c, "sequence": "a"} for g, c in zip(generated, content)]
    metric = flicker.Flicker(tools)
    assert metric(items) == pytest.approx((20 + 0) / 2)
    alone = [{key: value for key, value in item.items() if key != "content"} for item in items]
    assert metric(alone) == pytest.approx(((20 + 190) / 2 + (0 + 200) / 2) / 2)
    # Frames of another sequence between them change nothing, and alone they are no sequence.
    other = {"generated": generated[2], "sequence": "b"}
    assert metric([items[0], other, *items[1:]]) == metric(items)
    for single in ([other], [other, items[0]]):
        with pytest.raises(Undefined, match="no two frames"):
            metric(single)


# FID and what builds on it

class Means(torch.nn.Module):
    """Stands for Inception: mean and spread of each channel."""

    num_features = 6

    def forward(self, x):
        return torch.cat([x.float().mean((2, 3)), x.float().std((2, 3))], 1)


@needs_packages
def test_the_distance_is_frechets_over_different_pictures(tmp_path):
    from scipy import linalg
    from torchmetrics.image.fid import FrechetInceptionDistance
    generated = [picture(tmp_path / f"g{i}.png", i, (64, 64 + i)) for i in range(9)]
    style = [plain(tmp_path / f"s{i}.png", 20 * i) for i in range(8)]
    items = [{"generated": path, "style": style[i % 8]} for i, path in enumerate(generated)]
    found = sets.distance(FrechetInceptionDistance(feature=Means()), items, "cpu")
    features = [np.stack([Means()(torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None])[0].double().numpy() for path in paths])
                for paths in (generated, style)]
    (a, b), (s, t) = [rows.mean(0) for rows in features], [np.cov(rows, rowvar=False) for rows in features]
    expected = ((a - b) ** 2).sum() + np.trace(s + t - 2 * linalg.sqrtm(s @ t).real)
    assert found == pytest.approx(expected, rel=1e-3) and found > 1
    with pytest.raises(Undefined, match="fewer than two style"):
        sets.distance(FrechetInceptionDistance(feature=Means()), items[:1] * 2, "cpu")


def plain(path, value):
    pixels = np.full((64, 64, 3), value, np.uint8)
    pixels[:8, :value + 1] = np.random.default_rng(value).integers(0, 256, 3)
    Image.fromarray(pixels).save(path)
    return path


@needs_packages
def test_fid_reads_nothing_but_tensors(tmp_path, tools):
    """The library alone would run what a file tells it to."""
    path = tmp_path / "evaluation" / "weights-inception-2015-12-05-6726825d.pth"

    class Ran:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"fc.bias": Ran()}, path)
    with pytest.raises(EvaluationError, match="cannot be read as weights"):
        sets.Fid(tools)
    assert not (tmp_path / "ran").exists()


def test_art_fid_and_diversity_are_their_definitions(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "distance", lambda *_: 3.)
    near = {("a1", "a"): .2, ("b1", "b"): .4, ("a2", "a"): .6, ("a2", "a1"): .5, ("a3", "a2"): .1}
    lpips = type("Lpips", (), {"__call__": lambda self, item: near[item["generated"], item["content"]],
                               "between": lambda self, one, other: near[one, other]})()
    items = [{"generated": name, "content": name[0], "style": "s"} for name in ("a1", "b1", "a2")]
    art, diversity = sets.ArtFid.__new__(sets.ArtFid), sets.Diversity.__new__(sets.Diversity)
    art.lpips = diversity.lpips = lpips
    art.distance = art.device = None
    assert art(items) == pytest.approx((1 + statistics.fmean((.2, .4, .6))) * (1 + 3))
    assert diversity([*items, {"generated": "a3", "content": "a"}]) == pytest.approx(.3)
    with pytest.raises(Undefined, match="no content has two"):
        diversity(items[:2])


# ImageReward, with the names of the published file

def reward_file(folder, width=128, wide=64, layers=1, words=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "moon")):
    from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel
    vision = BlipVisionModel(BlipVisionConfig(hidden_size=width, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=2, image_size=32,
                                              patch_size=16))
    text = BlipTextModel(BlipTextConfig(hidden_size=wide, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=1,
                                        encoder_hidden_size=width, vocab_size=len(words), max_position_embeddings=48, bos_token_id=2, sep_token_id=3),
                         add_pooling_layer=False)
    names = (("embeddings.class_embedding", "cls_token"), ("embeddings.position_embedding", "pos_embed"),
             ("embeddings.patch_embedding.", "patch_embed.proj."), ("encoder.layers.", "blocks."), ("self_attn.projection", "attn.proj"),
             ("self_attn.", "attn."), ("layer_norm", "norm"), ("post_layernorm", "norm"))
    tensors = {"blip.text_encoder.embeddings.position_ids": torch.arange(48)[None], "blip.vision_proj.weight": torch.zeros(2, 2)}
    for name, value in randomised(vision).items():
        for new, old in names:
            name = name.replace(new, old)
        tensors["blip.visual_encoder." + name] = value
    tensors |= {"blip.text_encoder." + name: value for name, value in randomised(text).items()}
    generator = torch.Generator().manual_seed(2)
    for number, (inputs, outputs) in {0: (wide, 8), 2: (8, 1)}.items():
        tensors[f"mlp.layers.{number}.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs ** .5
        tensors[f"mlp.layers.{number}.bias"] = torch.randn(outputs, generator=generator)
    (folder / "imagereward").mkdir(parents=True)
    torch.save(tensors, folder / "imagereward" / "ImageReward.pt")
    (folder / "imagereward" / "vocab.txt").write_text("\n".join(words) + "\n")
    return tensors


def test_image_reward_reads_picture_and_prompt(tmp_path, tools):
    tensors = reward_file(tmp_path / "evaluation")
    metric, one, other = image_reward.ImageReward(tools), picture(tmp_path / "1.png", 1), picture(tmp_path / "2.png", 2)
    with torch.inference_mode():
        scores = [metric({"generated": path, "prompt": prompt}) for path, prompt in
                  ((one, "a man"), (other, "a man"), (one, "a moon"), (one, "A  Man"), (one, "man " * 33), (one, "man " * 60))]
    assert len({round(score, 5) for score in scores[:3]}) == 3
    assert scores[3] == pytest.approx(scores[0], abs=1e-6)  # lower case, as BERT's vocabulary
    assert scores[5] == pytest.approx(scores[4], abs=1e-6)  # 35 tokens with both ends
    del tensors["blip.text_encoder.encoder.layer.0.crossattention.self.key.bias"]
    torch.save(tensors, tmp_path / "evaluation" / "imagereward" / "ImageReward.pt")
    with pytest.raises(EvaluationError, match="other weights .*crossattention.self.key.bias"):
        image_reward.ImageReward(tools)


# In a whole run

def test_a_run_with_frames_leaves_out_what_cannot_be_read(tmp_path, capsys):
    paths = frames(tmp_path, "g", (10, 10), (30, 30), (40, 40))
    (tmp_path / "junk.png").write_text("no picture")
    items = [{"generated": str(path), "sequence": "a"} for path in (paths[0], tmp_path / "junk.png", *paths[1:])]
    (tmp_path / "m.json").write_text(json.dumps({"A": items, "B": [{"generated": str(paths[0]), "sequence": "x"}]}))
    assert run.main([str(tmp_path / "m.json"), "--output", str(tmp_path / "o.json"), "--models", str(tmp_path), "--device", "cpu"]) == 1
    report = json.loads((tmp_path / "o.json").read_text())["methods"]
    assert report["A"]["metrics"]["flicker"] == {"mean": pytest.approx(15), "std": None, "sum": pytest.approx(15), "count": 3, "undefined": 0}
    assert [bool(item["errors"]) for item in report["A"]["items"]] == [False, True, False, False]
    assert report["B"]["metrics"]["flicker"]["mean"] is None and "B: flicker: no two frames" in capsys.readouterr().err
    assert "flicker ↓" in (tmp_path / "o.html").read_text(encoding="utf-8")


# The tables beside the papers' own

def test_the_added_tables_have_the_papers_rows():
    def entry(value):
        return {"mean": value, "sum": value * 4, "std": None, "count": 4, "undefined": 0}

    def cells(text, method):
        return [line.removeprefix(method).split() for line in text.splitlines() if line.startswith(method)]

    metrics = {"fid": entry(12.), "identity": entry(.4), "diversity": entry(.6), "image_reward": entry(-1.), "clip": entry(.25)}
    ours = {"pictures": 4, "metrics": metrics}
    assert cells(tables.mmfs_1({"MMFS": ours}), "MMFS ") == [["ours", "12.00", "0.600", "0.600", "4"], ["paper", "10.39", "0.507", "0.583"]]
    assert cells(tables.mmfs_1({"Mine": {"pictures": 4, "metrics": {}}}), "Mine") == [["ours", "-", "-", "-", "4"]]
    found = cells(tables.fastface_2({"Hyper + DCG": ours}), "Hyper + DCG")
    assert found == [["ours", "0.400", "0.250", "-1.000", "-", "4"], ["paper", "0.442", "0.264", "1.094", "0.184"]]
    found = cells(tables.fastface_3({"Turbo + AM2 @0.5": ours}), "Turbo + AM2")
    assert found[0] == ["ours", "-", "-", "-", "-", "0.400", "0.250", "-", "-", "4"]
    assert found[1] == ["paper", "0.443", "0.230", "5.647", "62", "0.283", "0.240", "5.784", "51"]
