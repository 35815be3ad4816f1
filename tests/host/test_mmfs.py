"""MMFS in ComfyUI: tiny networks with random weights, through the nodes, real files and the real memory management."""

import errno
import os
import pickle
import shutil

import comfy.model_management
import folder_paths
import pytest
import safetensors.torch
import torch

from portrait_atelier.host import mmfs, mmfs_few_shot
from portrait_atelier.nodes.clip_similarity_loader import CLIPSimilarityLoader
from portrait_atelier.nodes.mmfs_few_shot import MMFSFewShot
from portrait_atelier.nodes.mmfs_loader import MMFSLoader
from portrait_atelier.nodes.mmfs_save import MMFSSave
from portrait_atelier.nodes.mmfs_style_prompt import MMFSStylePrompt
from portrait_atelier.nodes.mmfs_style_seed import MMFSStyleSeed
from portrait_atelier.nodes.mmfs_stylize import MMFSStylize
from portrait_atelier.nodes.stylegan_generate import StyleGANGenerate
from portrait_atelier.nodes.stylegan_loader import StyleGANLoader
from portrait_atelier.stylegan import checkpoints
from portrait_atelier.stylegan.dino import Dino
from portrait_atelier.stylegan.generator import Generator
from portrait_atelier.stylegan.stylizer import Stylizer

CLIP = os.path.join("mmfs_clip", "model.safetensors")


def alive(network, seed, noise=0.2):
    """Random weights with which noise and biases do something, and pictures are not all black and white."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        if name.endswith("noise.weight") or name.endswith("activate.bias"):
            value.data.normal_(0, noise, generator=generator)
        elif "to_rgb" in name and name.endswith("conv.weight"):
            value.data.mul_(0.3)
    return network


def stylizer(mapper, seed=0):
    torch.manual_seed(seed)
    return alive(Stylizer((8, 8, 8, 8), 16, mapper, 2, 1), seed)


@pytest.fixture(scope="module", autouse=True)
def models():
    """Files of all kinds in the model folders."""
    folders = {name: folder_paths.get_folder_paths(name)[0] for name in ("mmfs", "stylegan", "dino", "clip_vision")}
    for folder in folders.values():
        os.makedirs(folder, exist_ok=True)
    torch.save({"G_ema_model": stylizer(False).state_dict(), "iteration": 90000}, f"{folders['mmfs']}/phase2.pth")
    checkpoints.save(f"{folders['mmfs']}/phase3.safetensors", stylizer(True).state_dict(), {"phase": "3", "size": "32"})
    torch.manual_seed(1)
    torch.save({"g_ema": alive(Generator((8, 8, 8, 8), 16, 2), 1, 0.02).state_dict()}, f"{folders['stylegan']}/face.pt")
    torch.manual_seed(2)
    dino = {name: torch.randn_like(value) * 0.2 for name, value in Dino(64, 2, 8, 4, 64).state_dict().items()}
    torch.save(dino, f"{folders['dino']}/tiny.pth")
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config={**sizes, "eos_token_id": 49407}, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(os.path.join(folders["clip_vision"], "mmfs_clip"))
    yield folders
    for folder in (folders["mmfs"], folders["stylegan"], folders["dino"], f"{folders['clip_vision']}/mmfs_clip"):
        shutil.rmtree(folder)


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def faces(count=1, side=32, seed=0):
    return torch.rand(count, side, side, 3, generator=torch.Generator().manual_seed(seed))


def load(name="phase3.safetensors", **options):
    return MMFSLoader.execute(name, **options)[0]


def seeded(model, seed=3, **options):
    return MMFSStyleSeed.execute(model, seed, **options)[0]


def stylize(model, image, style, **options):
    return MMFSStylize.execute(model, image, style, **options)[0]


def guidance(dino="tiny.pth"):
    return CLIPSimilarityLoader.execute(CLIP, dino)[0]


# --- styles and pictures


def test_a_photo_in_a_random_style_is_the_network_s_answer():
    """From the file to the picture, against the network called directly."""
    model, photo = load("phase2.pth"), faces()
    out = stylize(model, photo, seeded(model, 3), noise="off")
    network = stylizer(False).eval()
    z = torch.randn(1, 16, generator=torch.Generator().manual_seed(3))
    direct = network(photo.movedim(-1, 1) * 2 - 1, network.style_from_seed(z))
    assert out.shape == photo.shape and out.std() > 0.05
    assert (out - (direct.movedim(1, -1) + 1) / 2).abs().max() < 1e-6
    assert any(loaded.model is model.patcher for loaded in comfy.model_management.current_loaded_models)


def test_seeds_and_mixing():
    model = load("phase2.pth")
    plain, other = seeded(model, 3), seeded(model, 4)
    assert torch.equal(plain.vectors, seeded(model, 3).vectors) and not torch.allclose(plain.vectors, other.vectors)
    mixed = seeded(model, 3, mix_seed=4, mix_at=7)
    assert torch.equal(mixed.vectors, torch.cat([plain.vectors[:7], other.vectors[7:]]))
    assert torch.equal(seeded(model, 3, mix_seed=4, mix_at=10).vectors, plain.vectors)


def test_batches_are_their_pictures_and_noise_is_what_it_says():
    model, photos = load("phase2.pth"), faces(5)
    style = seeded(model)
    batch = {kind: stylize(model, photos, style, noise=kind, seed=6) for kind in mmfs.NOISES}
    for number in range(5):
        photo = photos[number : number + 1]
        alone = stylize(model, photo, style, noise="fixed", seed=6)
        assert torch.allclose(batch["fixed"][number], alone[0], atol=1e-6)
        alone = stylize(model, photo, style, noise="per image", seed=6 + number)
        assert torch.allclose(batch["per image"][number], alone[0], atol=1e-6)
    still = photos[:1].expand(3, -1, -1, -1)
    moving = {kind: stylize(model, still, style, noise=kind).std(0).max() for kind in mmfs.NOISES}
    assert moving["fixed"] < 1e-6 and moving["off"] < 1e-6 and moving["per image"] > 1e-3
    assert not torch.allclose(batch["fixed"], batch["off"])


def test_blending_goes_from_one_style_to_the_other():
    model, photo = load("phase2.pth"), faces()
    a, b = seeded(model, 1), seeded(model, 2)
    ends = [stylize(model, photo, style) for style in (a, b)]
    assert torch.equal(stylize(model, photo, a, style_b=b, blend=0.0), ends[0])
    assert torch.allclose(stylize(model, photo, a, style_b=b, blend=1.0), ends[1], atol=1e-6)
    half = mmfs.Style((a.vectors + b.vectors) / 2, "half")
    assert torch.allclose(stylize(model, photo, a, style_b=b, blend=0.5), stylize(model, photo, half), atol=1e-6)


def test_pictures_and_words_give_styles():
    model, clip = load(), guidance("none")
    for options in ({"image": faces(seed=5)}, {"text": "watercolor painting"}):
        style = MMFSStylePrompt.execute(model, clip, **options)[0]
        feature = (
            clip.image_features(list(options["image"])) if "image" in options else clip.text_features([options["text"]])
        )
        assert torch.allclose(style.vectors, stylizer(True).eval().style_from_clip(feature), atol=1e-5)
    two = MMFSStylePrompt.execute(model, clip, image=faces(2))[0]
    both = stylize(model, faces(2, seed=8), two)
    alone = stylize(model, faces(2, seed=8)[1:], mmfs.Style(two.vectors[:, 1:], ""))
    assert torch.allclose(both[1], alone[0], atol=1e-6)
    with pytest.raises(ValueError, match="styles of 2 pictures for 3 pictures"):
        stylize(model, faces(3), two)


@pytest.mark.parametrize("precision, decibels", [("bfloat16", 30), ("float16", 45)])
def test_half_precision_is_close(precision, decibels):
    model, half, photo = load(), load(precision=precision), faces()
    assert half.dtype == mmfs.PRECISIONS[precision]
    style = seeded(model)
    error = (stylize(model, photo, style, noise="off") - stylize(half, photo, style, noise="off")).square().mean()
    assert 0 < error and -10 * torch.log10(error) > decibels


def test_grey_and_transparent_pictures():
    model, grey = load(), faces()[..., :1]
    style = seeded(model)
    expected = stylize(model, grey.expand(-1, -1, -1, 3), style)
    assert torch.equal(stylize(model, grey, style), expected)
    assert torch.equal(stylize(model, torch.cat([grey.expand(-1, -1, -1, 3), 1 - grey], -1), style), expected)


def test_other_sizes(caplog):
    model = load()
    style = seeded(model)
    assert stylize(model, faces(side=32), style).shape == (1, 32, 32, 3) and not caplog.text
    assert stylize(model, faces(side=48), style).shape == (1, 48, 48, 3)
    assert "was trained with pictures of 32 x 32; those of 48 x 48 may lose quality" in caplog.text
    assert stylize(model, faces(side=50), style).shape == (1, 32, 32, 3)
    assert "pictures of 50 x 50 become 32 x 32, as both sides must be multiples of 16" in caplog.text


def test_one_bad_frame_costs_no_other(caplog):
    model, frames = load(), faces(3)
    style = seeded(model)
    expected = stylize(model, frames, style)
    frames[1, 4, 5] = float("nan")
    found = stylize(model, frames, style)
    assert torch.equal(found[[0, 2]], expected[[0, 2]]) and (found[1] == 0).all()
    assert "picture 2 of 3 hold NaN or infinite values and come out black" in caplog.text
    with pytest.raises(ValueError, match="MMFS Stylize: the picture holds NaN"):
        stylize(model, frames[1:2], style)


def test_styles_of_another_model():
    model = load()
    with pytest.raises(ValueError, match="made with another model than 'phase3.safetensors', whose styles are 16 wide"):
        stylize(model, faces(), mmfs.Style(torch.zeros(10, 1, 8), "seed 3"))


# --- StyleGAN2


def test_stylegan():
    model = StyleGANLoader.execute("face.pt")[0]
    options = {"truncation": 0.7, "mix_seed": 9}
    plain = StyleGANGenerate.execute(model, seed=4, count=2, **options)[0]
    assert plain.shape == (2, 32, 32, 3) and plain.std() > 0.05
    assert torch.equal(StyleGANGenerate.execute(model, seed=5, **options)[0][0], plain[1])
    other = StyleGANGenerate.execute(model, seed=9, **options)[0]
    whole = StyleGANGenerate.execute(model, seed=4, mix_at=0, **options)[0]
    noise = (whole - other).abs().mean()  # only the grain stays that of the first face
    assert noise < 0.5 * (plain[:1] - other).abs().mean()
    steps = [StyleGANGenerate.execute(model, seed=4, mix_at=0, blend=blend, **options)[0] for blend in (0.0, 0.5, 1.0)]
    assert torch.equal(steps[0], plain[:1]) and torch.equal(steps[2], whole)
    assert (steps[1] - plain[:1]).abs().mean() < (whole - plain[:1]).abs().mean()
    average = [StyleGANGenerate.execute(model, seed=seed, truncation=0.0)[0] for seed in (1, 2)]
    assert (average[0] - average[1]).abs().mean() < 0.5 * (plain[0] - plain[1]).abs().mean()


def test_files_in_the_wrong_folder(models):
    shutil.copy(f"{models['stylegan']}/face.pt", f"{models['mmfs']}/face.pt")
    shutil.copy(f"{models['mmfs']}/phase2.pth", f"{models['stylegan']}/phase2.pth")
    with pytest.raises(ValueError, match="Load MMFS: 'face.pt' is a StyleGAN2 generator.*models/stylegan"):
        load("face.pt")
    with pytest.raises(ValueError, match="Load StyleGAN: 'phase2.pth' is an MMFS.*models/mmfs"):
        StyleGANLoader.execute("phase2.pth")


# --- files that are none


class Evil:
    def __reduce__(self):
        return os.system, ("touch MMFS_PICKLE_RAN",)


def test_files_that_are_refused(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = models["mmfs"]
    with open(f"{folder}/evil.pth", "wb") as file:
        pickle.dump({"G_ema_model": Evil()}, file)
    torch.save({"G_ema_model": {"decoder0.conv.weight": Evil()}}, f"{folder}/evil.pt")
    whole = open(f"{folder}/phase2.pth", "rb").read()
    with open(f"{folder}/short.pth", "wb") as file:
        file.write(whole[: len(whole) // 2])
    for name in ("evil.pth", "evil.pt", "short.pth"):
        with pytest.raises(ValueError, match=f"{name}' could not be read as plain weights.*Download the file again"):
            load(name)
    assert not os.listdir(tmp_path)
    torch.save({"synthesis.L0_36_512.weight": torch.zeros(2)}, f"{folder}/three.pth")
    with pytest.raises(ValueError, match="StyleGAN3 generator; its first keys.*synthesis.L0_36_512.weight"):
        load("three.pth")
    with pytest.raises(ValueError, match="no file 'absent.pth' in .*mmfs.*phase3_pretrain_10000.pth.*press R"):
        load("absent.pth")


def test_a_phase_2_file_knows_no_prompts():
    model, clip = load("phase2.pth"), guidance()
    told = r"no CLIP mapper \(phase 2 file\); use MMFS Style \(Seed\) or a phase 3/4 file"
    with pytest.raises(ValueError, match=told):
        MMFSStylePrompt.execute(model, clip, text="pop art")
    with pytest.raises(ValueError, match=told):
        MMFSFewShot.execute(model, clip, faces(16), text="pop art")


def test_a_text_and_a_picture_or_neither():
    model, clip = load(), guidance()
    for options, told in (
        ({"text": " "}, "neither a picture nor a text"),
        ({"text": "x", "image": faces()}, "a picture and a text"),
    ):
        with pytest.raises(ValueError, match=f"got {told}. Give one of both"):
            MMFSStylePrompt.execute(model, clip, **options)
    for options in ({}, {"text": "x", "style_image": faces()}):
        with pytest.raises(ValueError, match="MMFS Few-shot got .*Give one of both"):
            MMFSFewShot.execute(model, clip, faces(16), **options)


def test_clip_and_dino_that_are_not_there():
    with pytest.raises(
        ValueError, match="no CLIP model 'absent/model.safetensors' in .*clip_vision.*openai/clip-vit-base-patch32"
    ):
        CLIPSimilarityLoader.execute("absent/model.safetensors")
    with pytest.raises(
        ValueError, match="no DINO 'absent.pth' in .*dino.*dino_vitbase8_pretrain.pth from https.*press R"
    ):
        CLIPSimilarityLoader.execute(CLIP, "absent.pth")
    with pytest.raises(
        ValueError,
        match="MMFS Few-shot needs DINO.*CLIP Similarity Loader.*dino_vitbase8_pretrain.pth from https.*into .*dino",
    ):
        MMFSFewShot.execute(load(), guidance("none"), faces(16), text="pop art")


def test_long_texts_are_cut_with_a_warning(caplog):
    MMFSStylePrompt.execute(load(), guidance("none"), text="red " * 100)
    assert "CLIP reads 77 tokens" in caplog.text


def test_a_clip_of_another_width(models):
    checkpoints.save(
        f"{models['mmfs']}/wide.safetensors", Stylizer((8,) * 4, 24, True, 2, 1).state_dict(), {"phase": "3"}
    )
    with pytest.raises(ValueError, match="CLIP's features are 16 wide, but 'wide.safetensors' was trained with 24"):
        MMFSStylePrompt.execute(load("wide.safetensors"), guidance("none"), text="x")


# --- few-shot

QUICK = {"steps": 3, "batch": 4, "lr": 1e-3, "micro_batch": 2}


@pytest.mark.parametrize("target", [{"text": "pop art"}, {"style_image": faces(seed=9)}], ids=["text", "picture"])
def test_few_shot(target, caplog):
    model, clip, photos = load(), guidance(), faces(16, seed=1)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    trained, losses = MMFSFewShot.execute(model, clip, photos, seed=5, **QUICK, **target).result
    names = {"loss", "clip", "structure"} | ({"projection"} if "style_image" in target else set())
    assert set(losses) == names and all(len(values) == 3 for values in losses.values())
    after = trained.module.state_dict()
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert moved and all(name.startswith(("decoder", "to_rgb")) for name in moved)
    assert {name.split(".")[0] for name in moved} == {
        name.split(".")[0] for name in before if name.startswith(("decoder", "to_rgb"))
    }
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name])
    assert trained.phase == 4 and trained.metadata["prompt"] == target.get("text", "a picture") and not caplog.text
    again = MMFSFewShot.execute(model, clip, photos, seed=5, **QUICK, **target)[0]
    assert all(torch.equal(value, after[name]) for name, value in again.module.state_dict().items())
    stylize(trained, photos[:1], seeded(trained))


def test_few_photos_are_told_of(caplog):
    MMFSFewShot.execute(load(), guidance(), faces(2), text="x", **{**QUICK, "steps": 1})
    assert "2 photos of faces; fewer than 16 may be learnt by heart" in caplog.text


def test_cancel_keeps_what_is_trained(output, monkeypatch, caplog):
    """At any moment: before the first step there is nothing to keep."""
    interrupt, kept = comfy.model_management.InterruptProcessingException, []
    plain = mmfs_few_shot.few_shot.FewShot.gradients
    for at in (0, 2):
        calls = []

        def gradients(self):
            calls.append(self)
            if len(calls) > at:
                raise interrupt()
            return plain(self)

        monkeypatch.setattr(mmfs_few_shot.few_shot.FewShot, "gradients", gradients)
        with pytest.raises(interrupt):
            MMFSFewShot.execute(load(), guidance(), faces(16), text="x", **QUICK)
        kept.append(sorted(path.name for path in output.rglob("*.safetensors")))
    assert kept == [[], ["few_shot_unfinished_00001_2_steps.safetensors"]]
    path = next(output.rglob("*.safetensors"))
    saved = checkpoints.read(path)
    average = calls[0].average.state_dict()
    assert all(torch.equal(value, average[name]) for name, value in saved.state.items())
    assert saved.phase == 4 and saved.metadata["prompt"] == "x" and "output/mmfs" in caplog.text


def test_the_cancel_button_is_asked_after_every_step(output, monkeypatch):
    seen = []

    def asked():
        seen.append(1)
        if len(seen) == 2:
            raise comfy.model_management.InterruptProcessingException()

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", asked)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        MMFSFewShot.execute(load(), guidance(), faces(16), text="x", **QUICK)
    assert [path.name for path in output.rglob("*.safetensors")] == ["few_shot_unfinished_00001_2_steps.safetensors"]


def test_a_loss_that_is_not_finite_gives_what_was_trained_before(monkeypatch, caplog):
    plain, at = mmfs_few_shot.few_shot.FewShot.gradients, 2

    def gradients(self):
        told = plain(self)
        return {**told, "loss": float("nan")} if self.done == at else told

    monkeypatch.setattr(mmfs_few_shot.few_shot.FewShot, "gradients", gradients)
    arguments = {"model": load(), "guidance": guidance(), "photos": faces(16), "text": "x"}
    trained, losses = MMFSFewShot.execute(**arguments, **QUICK).result
    assert len(losses["loss"]) == 2 and "not finite at step 3 of 3" in caplog.text
    monkeypatch.setattr(mmfs_few_shot.few_shot.FewShot, "gradients", plain)
    expected = MMFSFewShot.execute(**arguments, **{**QUICK, "steps": 2})[0].module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in trained.module.state_dict().items())
    at = 0
    monkeypatch.setattr(mmfs_few_shot.few_shot.FewShot, "gradients", gradients)
    with pytest.raises(ValueError, match="MMFS Few-shot: the loss or its gradient is not finite at step 1"):
        MMFSFewShot.execute(**arguments, **QUICK)


def test_preview_and_progress(monkeypatch):
    import comfy.utils

    seen = []
    monkeypatch.setattr(
        comfy.utils,
        "PROGRESS_BAR_HOOK",
        lambda value, total, preview, node_id=None: seen.append((value, total, preview)),
    )
    MMFSFewShot.execute(load(), guidance(), faces(16), text="x", **{**QUICK, "steps": 11})
    seen = [entry for entry in seen if entry[1] == 11]
    values = [value for value, _, _ in seen]  # some are left out: ComfyUI tells them no faster than they can be shown
    assert values == sorted(values) and values[0] == 1 and values[-1] == 11
    (shown,) = [entry for entry in seen if entry[2]]
    assert shown[0] == 10 and shown[2][0] == "JPEG" and shown[2][1].size == (4 * 32, 32)


# --- saving


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_saved_files_load(output, models, dtype):
    model = load("phase2.pth")
    for _ in range(2):
        MMFSSave.execute(model, "mmfs/mine", dtype)
    assert sorted(path.name for path in output.rglob("*.*")) == ["mine_00001_.safetensors", "mine_00002_.safetensors"]
    path = output / "mmfs" / "mine_00001_.safetensors"
    saved, state = safetensors.torch.load_file(path), model.module.state_dict()
    assert all(value.dtype == mmfs.PRECISIONS[dtype] for value in saved.values())
    assert all(torch.equal(saved[name], value.to(mmfs.PRECISIONS[dtype])) for name, value in state.items())
    read = checkpoints.read(path)
    assert read.phase == 2 and read.metadata["parent"] == checkpoints.fingerprint(f"{models['mmfs']}/phase2.pth")


def test_what_is_saved_is_listed(models):
    """Where ComfyUI's output folder has an mmfs folder, Load MMFS looks there too."""
    assert os.path.join(folder_paths.get_output_directory(), "mmfs") in folder_paths.get_folder_paths("mmfs")


def test_a_full_disk_leaves_nothing_half(output, monkeypatch):
    def full(tensors, path, metadata=None):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(
        ValueError,
        match="Save MMFS: .*mine_00001_.safetensors could not be written: .*No space left.*still in the graph",
    ):
        MMFSSave.execute(load(), "mmfs/mine")
    assert not [path for path in output.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["../mine", "", "mmfs/"])
def test_names_that_lead_nowhere(output, name):
    told = MMFSSave.validate_inputs(name=name)
    assert isinstance(told, str) and told.startswith("'name' of Save MMFS is") and "a model cannot be kept" in told
    with pytest.raises(ValueError, match="cannot be kept"):
        MMFSSave.execute(load(), name)
