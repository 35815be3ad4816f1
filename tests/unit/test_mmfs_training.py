"""MMFS's training on tiny networks: what moves, that nothing else does, that an interruption changes nothing."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from portrait_atelier.stylegan import checkpoints, losses
from portrait_atelier.stylegan.dino import Dino
from portrait_atelier.stylegan.discriminator import Discriminator
from portrait_atelier.stylegan.generator import Generator
from portrait_atelier.stylegan.stylizer import Stylizer
from portrait_atelier.training.mmfs import augment, data, few_shot, gan, phases, train
from portrait_atelier.training.mmfs.few_shot import FewShot, Target

WIDTHS, STYLE = (8, 8, 8, 8, 8), 16
CPU = "cpu"


class Guides:
    """Differentiable functions of a picture in place of CLIP and DINO."""

    def __init__(self, dtype=torch.float32):
        generator = torch.Generator().manual_seed(3)
        self.look = torch.randn(3 * 64, STYLE, generator=generator, dtype=torch.float64).to(dtype)
        self.key = torch.randn(48, 12, generator=generator, dtype=torch.float64).to(dtype)

    def see(self, pictures):
        small = torch.nn.functional.avg_pool2d(pictures, pictures.shape[-1] // 8)
        patches = torch.nn.functional.unfold(small, 2, stride=2).mT  # [B, 16, 12]
        return torch.nn.functional.normalize(small.flatten(1) @ self.look, dim=1), patches

    def keys(self, pictures):
        small = torch.nn.functional.avg_pool2d(pictures, pictures.shape[-1] // 16)
        return torch.nn.functional.unfold(small, 4, stride=4).mT @ self.key


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures in a folder and in an array, and what each phase begins with, as the phases themselves write it."""
    folder = tmp_path_factory.mktemp("mmfs")
    rows = np.random.default_rng(0).integers(0, 256, (12, 3, 64, 64), np.uint8)
    np.save(folder / "art.npy", rows)
    (folder / "photos").mkdir()
    for number, row in enumerate(rows[::-1]):
        Image.fromarray(row.transpose(1, 2, 0)).save(folder / "photos" / f"{number:02}.png")
    torch.manual_seed(0)
    judge = Discriminator(WIDTHS).state_dict()
    torch.save({"g_ema": Generator(WIDTHS, STYLE, 2).state_dict(), "d": judge}, folder / "stylegan2.pt")
    for name, mapper in (("2", False), ("3", True)):
        network = Stylizer((8,) * 4, STYLE, mapper, 2)
        torch.save({"G_ema_model": network.state_dict(), "D_model": judge}, folder / f"{name}.pt")
    torch.save(
        {n: torch.randn_like(v) * 0.2 for n, v in Dino(64, 2, 8, 4, 64).state_dict().items()}, folder / "dino.pth"
    )
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config={**sizes, "eos_token_id": 49407}, vision_config=vision, projection_dim=STYLE)
    CLIPModel(config).save_pretrained(folder / "clip")
    return folder


CALLS = {
    "stylegan2": "--art art.npy --channels 8,8,8,8,8 --style 16 --batch 4 --sheet-every 2",
    "1": "--stylegan2 stylegan2.pt --batch 4",
    "2": "--init 2.pt --photos photos --art art.npy --dino dino.pth --batch 4 --augment 0.5",
    "3": "--init 2.pt --photos photos --clip clip --batch 4",
    "4": "--init 3.pt --photos photos --clip clip --dino dino.pth --image photos/00.png --batch 4",
}
MOVED = {
    "stylegan2": ("style.", "input.", "conv1.", "to_rgb1.", "convs.", "to_rgbs."),
    "1": ("encoder.", "decoder0.", "to_rgb0."),
    "2": ("encoder.", "mapping_z.", "decoder", "to_rgb"),
    "3": ("clip_mapper.",),
    "4": ("decoder", "to_rgb"),
}


def call(files, phase, out, *more):
    words = ["--phase", phase, "--out", str(out), "--folder", str(files), "--device", CPU, *CALLS[phase].split(), *more]
    return train.main(words)


def result(phase, out):
    return checkpoints.read(out / f"{train.NAMES[phase]}.safetensors")


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    """Every phase for four steps: {phase: folder}, and the same in two halves."""
    outs = {}
    for phase in CALLS:
        whole, halves = tmp_path_factory.mktemp(f"phase{phase}"), tmp_path_factory.mktemp(f"halves{phase}")
        assert call(files, phase, whole, "--steps", "4") == 0
        assert call(files, phase, halves, "--steps", "2") == 0 and call(files, phase, halves, "--steps", "4") == 0
        outs[phase] = whole, halves
    return outs


@pytest.mark.parametrize("phase", CALLS)
def test_only_what_the_phase_names_moves(files, trained, phase):
    after = result(phase, trained[phase][0])
    if phase == "stylegan2":
        torch.manual_seed(0)
        before = Generator(WIDTHS, STYLE, 4).state_dict()
    elif phase == "1":
        torch.manual_seed(0)
        before = checkpoints.warm_start(checkpoints.read(files / "stylegan2.pt")).state_dict()
    else:
        before = checkpoints.read(files / CALLS[phase].split()[1]).state
    parameters = {n for n in before if not n.endswith("kernel") and not n.startswith("noises.")}
    moved = {n for n in parameters if not torch.equal(after.state[n], before[n])}
    moved |= {n for n in after.state if n not in before}  # phase 3 adds the mapper
    assert moved and all(n.startswith(MOVED[phase]) for n in moved)
    for start in MOVED[phase]:
        assert any(n.startswith(start) for n in moved), start
    assert {n for n in after.state if n not in before} == {
        n for n in after.state if n.startswith("clip_mapper.") and phase == "3"
    }
    assert after.metadata["size"] == "64" and after.phase == (None if phase == "stylegan2" else int(phase))


@pytest.mark.parametrize("phase", CALLS)
def test_four_steps_are_two_and_two_more(trained, phase):
    """Networks, average, discriminator and the state to go on from, bit for bit."""
    whole, halves = trained[phase]
    name = train.NAMES[phase]
    first, second = (torch.load(out / f"{name}.progress", weights_only=True) for out in (whole, halves))
    assert first["step"] == second["step"] == 4 and torch.equal(first["random"], second["random"])
    flat = [dict(flattened(state["parts"])) for state in (first, second)]
    assert flat[0].keys() == flat[1].keys() and len(flat[0]) > 20
    assert all(torch.equal(value, flat[1][key]) for key, value in flat[0].items())
    one, two = (checkpoints.read(out / f"{name}.safetensors").state for out in (whole, halves))
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def flattened(tree, name=""):
    if torch.is_tensor(tree):
        yield name, tree
    elif isinstance(tree, (dict, list, tuple)):
        for key, branch in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from flattened(branch, f"{name}.{key}")


@pytest.mark.parametrize("phase", CALLS)
def test_metrics_and_sheets(trained, phase):
    for out in trained[phase]:
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] == 4 and all(np.isfinite(list(line.values())).all() for line in lines)
        sheets = sorted(path.name for path in out.glob("*.png"))
        assert "sheet-000004.png" in sheets
        with Image.open(out / "sheet-000004.png") as sheet:
            assert sheet.size[0] == 64 * 8 or phase == "4"
    names = {
        "stylegan2": {"loss", "d", "real", "fake", "r1"},
        "2": {"gan", "structure", "d", "r1"},
        "4": {"clip", "structure", "projection"},
    }
    assert names.get(phase, {"loss"}) <= set().union(*lines)


def test_a_kill_loses_the_last_interval_only(files, tmp_path, trained, monkeypatch):
    """Saved after two steps, killed in the fourth: the same end as without."""
    step, count = phases.Encoder.step, []

    def dying(self, number):
        count.append(number)
        if len(count) == 4:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(phases.Encoder, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        call(files, "1", tmp_path, "--steps", "4", "--save-every", "0")
    monkeypatch.setattr(phases.Encoder, "step", step)
    assert call(files, "1", tmp_path, "--steps", "4") == 0
    expected, found = (result("1", out).state for out in (trained["1"][0], tmp_path))
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_a_phase_goes_on_from_the_one_before(files, trained, tmp_path):
    """What StyleGAN2 and phases 1 and 2 write is what the next takes."""
    previous = trained["stylegan2"][0] / "stylegan2.pt"
    for phase, option, file in (
        ("1", "--stylegan2", "1-encoder.pt"),
        ("2", "--init", "2-base.pt"),
        ("3", "--init", "3-mapper.pt"),
    ):
        out = tmp_path / phase
        assert call(files, phase, out, option, str(previous), "--steps", "1") == 0
        assert result(phase, out).metadata["parent"] == checkpoints.fingerprint(previous)
        previous = out / file
    assert checkpoints.read(previous).phase == 3 and checkpoints.read(previous).discriminator


@pytest.mark.parametrize("phase", ["1", "3"])
@pytest.mark.parametrize("part", [1, 2])
def test_micro_batches_of_the_reconstructions(files, phase, part, monkeypatch):
    """The same step; the mapper without dropout, whose draws are those of its parts."""
    monkeypatch.setattr(
        torch.nn.TransformerEncoder, "train", lambda self, mode=True: torch.nn.Module.train(self, False)
    )
    gradients = []
    for micro in (4, part):
        torch.manual_seed(0)
        settings = {
            **json.loads((train.CONFIG / f"{train.NAMES[phase]}.json").read_text()),
            "batch": 4,
            "micro_batch": micro,
        }
        judge = Discriminator(WIDTHS)
        if phase == "1":
            found = checkpoints.read(files / "stylegan2.pt")
            made = phases.Encoder(settings, checkpoints.network(found), checkpoints.warm_start(found), judge, CPU)
        else:
            photos = data.Pictures(files / "photos", 64)
            made = phases.Mapper(settings, Stylizer((8,) * 4, STYLE, False, 2), judge, photos, Guides(), CPU)
        monkeypatch.setattr(phases, "half", lambda device: torch.autocast(device, torch.bfloat16, enabled=False))
        torch.manual_seed(1)
        made.step(0)
        gradients.append({n: p.grad.clone() for n, p in made.network.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 4
    for name, value in gradients[0].items():
        assert (value - gradients[1][name]).abs().max() <= 1e-4 * value.abs().max() + 1e-7, name


# --- few-shot


def settings(**given):
    defaults = json.loads((train.CONFIG / "4-few-shot.json").read_text())
    return few_shot.Settings(**{**defaults, "steps": 2, "batch": 8, **given})


def tuning(target="picture", count=8, **given):
    torch.manual_seed(0)
    network = Stylizer((8,) * 4, STYLE, True, 2, 1).double()
    for name, value in network.named_parameters():
        if name.endswith("noise.weight"):
            value.data.fill_(0.3)
    guides = Guides(torch.float64)
    generator = torch.Generator().manual_seed(2)
    photos = torch.rand(count, 3, 32, 32, generator=generator, dtype=torch.float64) * 2 - 1
    style = torch.rand(1, 3, 32, 32, generator=generator, dtype=torch.float64)
    feature, patches = guides.see(style)
    anchor = torch.nn.functional.normalize(torch.randn(STYLE, generator=generator, dtype=torch.float64), dim=0)
    found = Target(feature[0], patches[0]) if target == "picture" else Target(feature[0], anchor=anchor)
    return FewShot(network, guides, photos, found, settings(**given), 5)


@pytest.mark.parametrize("jitter", [False, True])
def test_micro_batches_change_no_gradient(jitter):
    found = []
    for part in (8, 4, 2, 1, 3):
        training = tuning(micro_batch=part, style_jitter=jitter)
        told = training.gradients()
        found.append((told, [p.grad for p in training.parameters]))
    for told, gradients in found[1:]:
        assert all(abs(told[name] - value) < 1e-10 for name, value in found[0][0].items())
        for mine, whole in zip(gradients, found[0][1]):
            assert (mine - whole).abs().max() < 1e-10 * max(1, whole.abs().max())
    assert max(float(gradient.abs().max()) for gradient in found[0][1]) > 1e-3


@pytest.mark.parametrize("target", ["picture", "text"])
def test_the_loss_of_a_batch_written_out(target):
    training = tuning(target)
    told = copy.deepcopy(training).gradients()
    order = training.rows()
    network, guide = training.network, training.guide
    style = network.style_from_clip(training.target.feature[None])
    noise = network.noise_maps(8, [32, 32], training.generator)
    views = [guide.see((training.photos[k][None] + 1) / 2)[0][0] for k in order]
    anchor = sum(views) / 8 if target == "picture" else training.target.anchor
    clip = structure = projection = 0.0
    for at, number in enumerate(order):
        photo = training.photos[number][None]
        fake = (network.decode(network.encode(photo), style, [layer[at : at + 1].double() for layer in noise]) + 1) / 2
        seen, patches = guide.see(fake)
        a, b = seen[0] - views[at], training.target.feature - anchor
        clip += float((1 - a @ b / a.norm() / b.norm()).detach()) / 8
        mine, theirs = (losses.self_similarity(guide.keys(x)) for x in (fake, (photo + 1) / 2))
        structure += float((mine - theirs).square().mean()) / 8
        if target == "picture":
            unit = patches[0] / patches[0].norm(dim=1, keepdim=True)
            basis = torch.linalg.svd(training.target.patches.T, full_matrices=False).U
            projection += float((unit @ basis @ basis.T - unit).abs().mean()) / 8
    expected = {"clip": clip, "structure": structure, "loss": clip + 4 * structure}
    if target == "picture":
        expected |= {"projection": projection, "loss": expected["loss"] + 100 * projection}
    assert told.keys() == expected.keys()
    for name, value in expected.items():
        assert abs(told[name] - value) < 1e-9, name


def test_the_average_begins_with_the_weights_and_follows():
    training = tuning(ema=0.9)
    averages = {name: value.clone() for name, value in training.network.named_parameters()}
    for _ in training:
        for name, value in training.network.named_parameters():
            averages[name] = 0.9 * averages[name] + 0.1 * value.detach()
    for name, value in training.average.named_parameters():
        assert torch.allclose(value, averages[name], atol=1e-12), name


def test_photos_are_drawn_without_replacement_and_over_again():
    assert sorted(tuning(count=8).rows()) == list(range(8))
    rows = tuning(count=3).rows()
    assert sorted(rows) == [0, 0, 0, 1, 1, 1, 2, 2] or sorted(rows.count(k) for k in range(3)) == [2, 3, 3]
    assert len(set(tuning(count=30).rows())) == 8


def test_photos_are_encoded_once():
    training = tuning(steps=3)
    count = []
    training.network.encoder.register_forward_hook(lambda *_: count.append(1))
    list(training)
    assert len(count) == 8


def test_targets_are_one_or_the_other():
    for options in ({}, {"patches": torch.zeros(2, 3), "anchor": torch.zeros(3)}):
        with pytest.raises(ValueError, match="a picture, with patches, or a text"):
            Target(torch.zeros(3), **options)


# --- parts


def test_rates_and_betas_of_a_network_with_lazy_regularisation():
    """16 of 17 steps: as in StyleGAN2."""
    weight = [torch.nn.Parameter(torch.zeros(1))]
    chosen = {"rate": 0.001, "betas": [0.1, 0.999]}
    (plain,), (lazy,) = gan.adam(weight, chosen).param_groups, gan.adam(weight, chosen, 16).param_groups
    assert plain["lr"] == 0.001 and plain["betas"] == (0.1, 0.999)
    assert lazy["lr"] == pytest.approx(0.001 * 16 / 17, abs=1e-12)
    assert lazy["betas"] == pytest.approx((0.1 ** (16 / 17), 0.999 ** (16 / 17)), abs=1e-12)


def test_the_papers_numbers():
    numbers = {phase: json.loads((train.CONFIG / f"{name}.json").read_text()) for phase, name in train.NAMES.items()}
    for phase, rate, first, ema in (
        ("1", 1e-3, 0.1, 0.999),
        ("2", 1e-3, 0.1, 0.999),
        ("3", 2e-4, 0.9, 0.999),
        ("4", 2e-4, 0.9, 0.99),
    ):
        found = numbers[phase]
        assert (found["rate"], found["betas"], found["ema"], found["batch"]) == (rate, [first, 0.999], ema, 8), phase
    assert (numbers["2"]["structure"], numbers["2"]["r1"], numbers["2"]["r1_every"], numbers["2"]["mixing"]) == (
        4,
        10,
        16,
        0.5,
    )
    assert [numbers["4"][name] for name in ("steps", "structure", "clip", "projection")] == [200, 4, 1, 100]


def test_r1_comes_every_so_many_steps_and_is_made_up_for(monkeypatch):
    torch.manual_seed(0)
    steps, chosen = [], {"rate": 0.001, "betas": [0.0, 0.99], "r1": 10.0, "r1_every": 4, "augment": 0.0}
    adversary = gan.Adversary(Discriminator((8,) * 5), chosen, CPU)
    plain = gan.descend
    monkeypatch.setattr(
        gan, "descend", lambda optimizer, loss: steps.append(float(loss.detach())) or plain(optimizer, loss)
    )
    real, fake = torch.rand(2, 4, 3, 64, 64) * 2 - 1
    told = [adversary.learn(real, fake, step) for step in range(5)]
    assert ["r1" in each for each in told] == [True, False, False, False, True] and len(steps) == 7
    assert steps[1] == pytest.approx(10 / 2 * 4 * float(told[0]["r1"]), rel=1e-5)


def test_augmentation():
    torch.manual_seed(0)
    pictures = (torch.rand(64, 3, 16, 16, dtype=torch.float64) * 2 - 1).requires_grad_()
    assert augment.augment(pictures, 0) is pictures
    changed = augment.augment(pictures, 0.3)
    same = (changed - pictures).abs().flatten(1).max(1).values < 1e-9
    assert 4 <= int(same.sum()) <= 30  # 0.7 ** 4 of 64 are 15
    (slope,) = torch.autograd.grad(changed.sum(), pictures)
    assert torch.isfinite(slope).all() and (slope.flatten(1).abs().sum(1) > 0).all()


# --- calls that cannot be followed


@pytest.mark.parametrize(
    "phase, words, told",
    [
        ("2", ["--init", "2.pt"], "phase 2 needs --photos, --art, --dino"),
        ("4", CALLS["4"].split() + ["--text", "x"], "one of --image and --text"),
        ("1", ["--stylegan2", "absent.pt"], "--stylegan2 .*absent.pt is not there"),
        ("1", ["--stylegan2", "2.pt"], "begins with a StyleGAN2 generator, not with a stylizer"),
        (
            "2",
            CALLS["2"].replace("--init 2.pt", "--init stylegan2.pt").split(),
            "is a StyleGAN2 generator: phase 1 makes",
        ),
        ("4", CALLS["4"].replace("3.pt", "2.pt").split(), r"no CLIP mapper \(phase 2 file\): phase 3 trains it"),
        ("3", CALLS["3"].split() + ["--r1", "1"], "phase 3 has no --r1"),
        ("2", CALLS["2"].split() + ["--size", "32"], "sees 64 x 64"),
        ("2", CALLS["2"].replace(" photos ", " clip ").split(), "no pictures in .*clip"),
        ("2", CALLS["2"].replace("dino.pth", "2.pt").split(), "2.pt' is no DINO"),
    ],
)
def test_calls_that_are_refused(files, tmp_path, caplog, phase, words, told):
    import re

    assert (
        train.main(["--phase", phase, "--out", str(tmp_path / "out"), "--folder", str(files), "--device", CPU, *words])
        == 2
    )
    assert re.search(told, caplog.text), caplog.text


def test_progress_of_another_training(files, trained, tmp_path, caplog):
    import shutil

    shutil.copy(trained["1"][0] / "1-encoder.progress", tmp_path / "2-base.progress")
    assert call(files, "2", tmp_path, "--steps", "1") == 2
    assert "2-base.progress belongs to a training with other networks, or is damaged" in caplog.text


def test_pictures(files, tmp_path):
    folder, table = data.Pictures(files / "photos", 64), data.Pictures(files / "art.npy", 64)
    assert len(folder) == len(table) == 12 and torch.equal(folder[0], table[11])
    assert data.Pictures(files / "art.npy", 32)[0].shape == data.Pictures(files / "photos", 32)[0].shape == (3, 32, 32)
    np.save(tmp_path / "wrong.npy", np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"wrong.npy holds uint8 \[2, 8, 8, 3\]; pictures are uint8 \[n, 3, h, w\]"):
        data.Pictures(tmp_path / "wrong.npy", 8)
    (tmp_path / "broken.png").write_bytes(b"junk")
    with pytest.raises(ValueError, match="broken.png cannot be read as a picture"):
        data.Pictures(tmp_path, 8)[0]
