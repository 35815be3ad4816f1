"""CLIP Similarity Loader on a tiny CLIP model, against transformers' own forward pass."""

import os
import shutil

import comfy.sd1_clip
import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image

from portrait_atelier.host import clip_similarity
from portrait_atelier.nodes.clip_similarity_loader import NOTHING, CLIPSimilarityLoader

from .conftest import select

MEAN, STD = torch.tensor([.48145466, .4578275, .40821073]), torch.tensor([.26862954, .26130258, .27577711])


@pytest.fixture(scope="module")
def name():
    from transformers import CLIPConfig, CLIPModel
    folder = os.path.join(folder_paths.get_folder_paths("clip_vision")[0], "tiny")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(text_config={**sizes, "eos_token_id": 49407}, vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=48)
    CLIPModel(config).save_pretrained(folder)
    yield os.path.join("tiny", "model.safetensors")
    shutil.rmtree(folder)


def test_pictures_and_texts_share_a_space(name):
    from transformers import CLIPModel, CLIPTokenizer
    assert clip_similarity.model_names() == [name]
    guidance = CLIPSimilarityLoader.execute(name)[0]
    pictures = [torch.rand(40, 40, 3, generator=torch.Generator().manual_seed(0)), torch.rand(64, 90, 3, generator=torch.Generator().manual_seed(1))]
    texts = ["a red jacket", "a face"]
    ours = guidance.image_features(pictures) @ guidance.text_features(texts).T

    model = CLIPModel.from_pretrained(os.path.join(folder_paths.get_folder_paths("clip_vision")[0], "tiny")).eval().double()
    tokens = CLIPTokenizer.from_pretrained(os.path.join(os.path.dirname(comfy.sd1_clip.__file__), "sd1_tokenizer"))(texts, padding=True, return_tensors="pt")
    pixels = []
    for picture in pictures:
        image = Image.fromarray((picture * 255).round().byte().numpy())
        width, height = image.size
        image = image.resize((round(width * 32 / min(image.size)), round(height * 32 / min(image.size))), Image.Resampling.BICUBIC)
        left, top = (image.size[0] - 32) / 2, (image.size[1] - 32) / 2
        image = image.crop((round(left), round(top), round(left) + 32, round(top) + 32))
        pixels.append((torch.from_numpy(np.asarray(image, np.float64)) / 255 - MEAN) / STD)
    out = model(pixel_values=torch.stack(pixels).movedim(-1, 1), input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    expected = out.logits_per_image / model.logit_scale.exp()
    assert ours.shape == (2, 2) and torch.allclose(ours.double(), expected, atol=1e-4) and expected.std() > 1e-3


def test_thirty_two_at_a_time(name, monkeypatch):
    guidance, sizes = CLIPSimilarityLoader.execute(name)[0], []
    images = guidance.clip.images
    monkeypatch.setattr(guidance.clip, "images", lambda pictures: sizes.append(len(pictures)) or images(pictures))
    pictures = torch.rand(35, 10, 12, 3, generator=torch.Generator().manual_seed(0))
    features = guidance.image_features(list(pictures))
    assert sizes == [32, 3] and torch.allclose(features[34], guidance.image_features([pictures[34]])[0], atol=1e-5)
    assert torch.allclose(features.norm(dim=1), torch.ones(35), atol=1e-5)


def test_long_texts_are_cut_with_a_warning(name, caplog):
    guidance = CLIPSimilarityLoader.execute(name)[0]
    long = "red " * 100
    assert torch.allclose(guidance.text_features([long]), guidance.text_features(["red " * 75]), atol=1e-6)
    assert "77 tokens" in caplog.text


def test_it_is_managed_by_comfyui(name):
    import comfy.model_management
    guidance = CLIPSimilarityLoader.execute(name)[0]
    guidance.text_features(["x"])
    assert any(loaded.model is guidance.patcher for loaded in comfy.model_management.current_loaded_models)


def test_words_choose_a_mask(scene, name):
    """An untrained CLIP knows no words, but the same picture and text choose the same mask."""
    guidance = CLIPSimilarityLoader.execute(name)[0]
    first, second = (select(scene, mode="text", guidance=guidance, text="red") for _ in range(2))
    assert first[0].any() and torch.equal(first[0], second[0]) and len(first[1][0]) == 1


def test_files_that_are_no_clip_model(name):
    folder = folder_paths.get_folder_paths("clip_vision")[0]
    for wrong in (NOTHING, "tiny/config.json", "../../secret/model.safetensors"):
        with pytest.raises(ValueError, match="no CLIP model.*clip_vision.*model.safetensors and config.json"):
            CLIPSimilarityLoader.execute(wrong)
    broken = os.path.join(folder, "broken")
    shutil.copytree(os.path.join(folder, "tiny"), broken)
    try:
        os.remove(os.path.join(broken, "config.json"))
        assert clip_similarity.model_names() == [name]          # half a model is not offered
        shutil.copy(os.path.join(folder, "tiny", "config.json"), broken)
        with open(os.path.join(broken, "model.safetensors"), "wb") as file:
            file.write(b"junk")
        with pytest.raises(ValueError, match="broken cannot be read as a CLIP model"):
            CLIPSimilarityLoader.execute(os.path.join("broken", "model.safetensors"))
    finally:
        shutil.rmtree(broken)
