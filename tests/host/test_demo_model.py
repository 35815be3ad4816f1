"""The demo's networks behave as ordinary MODEL, CLIP and VAE; their training runs through and goes on where it stopped."""

import json
import sys

import PIL.Image
import pytest
import torch

from portrait_atelier.demo import text
from portrait_atelier.demo.checkpoint import load
from portrait_atelier.demo.codec import CHANNELS, Codec
from portrait_atelier.demo.making import codec as codec_stage, denoiser, pictures, report, train
from portrait_atelier.host import demo_model
from portrait_atelier.training import stage


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return Codec().requires_grad_(False)


def test_epsilon_and_v_agree():
    """z0 from epsilon is z0 from v: (z_t - sigma eps) / alpha = alpha z_t - sigma v."""
    torch.manual_seed(0)
    net = demo_model.network(16, 48)
    denoiser.start_network(net)
    torch.nn.init.normal_(net.out[2].weight, std=.1)
    z_t, t, context = torch.randn(3, 16, 8, 8), torch.tensor([19., 499., 979.]), torch.randn(3, 16, 64)
    with torch.no_grad():
        epsilon = net(z_t, t, context).double()
        v = net.predict_v(z_t, t, context, transformer_options={}).double()
    a = net.alphas_cumprod[t.long()].view(-1, 1, 1, 1).double()
    assert v.abs().mean() > .01
    torch.testing.assert_close((z_t - (1 - a).sqrt() * epsilon) / a.sqrt(), a.sqrt() * z_t - (1 - a).sqrt() * v, rtol=0, atol=1e-5)


def test_the_schedule_is_the_hosts():
    model = demo_model.model(demo_model.network(16, 48).state_dict(), 1., [[0.] * 3] * 16, [0.] * 3)
    sampling = model.get_model_object("model_sampling")
    expected = 1 / (1 + sampling.sigmas ** 2)
    torch.testing.assert_close(model.model.diffusion_model.alphas_cumprod, expected, rtol=1e-4, atol=1e-7)


def test_the_weights_say_their_shape():
    """A network of another width and of more latent channels loads by the same call, with its own scale."""
    model = demo_model.model(demo_model.network(24, 32).state_dict(), 1.25, [[.5, 0., -.5]] * 24, [.1, .2, .3])
    form = model.model.latent_format
    assert (form.latent_channels, model.model.diffusion_model.model_channels) == (24, 32)
    one = torch.ones(1)
    assert form.process_in(one).item() == 1.25 and form.process_out(form.process_in(one)).item() == 1.
    assert form.latent_rgb_factors[0] == [.4, 0., -.4] and form.latent_rgb_factors_bias == [.1, .2, .3]


def test_vae_is_the_codec_and_cuts_to_whole_cells(codec):
    vae, picture = demo_model.vae(codec), torch.rand(2, 70, 101, 3)
    latents = vae.encode(picture)
    cut = picture[:, 3:67, 2:98].movedim(-1, 1)
    torch.testing.assert_close(latents, codec.encode(cut * 2 - 1))
    pictures = vae.decode(latents)
    assert pictures.shape == (2, 64, 96, 3)
    torch.testing.assert_close(pictures.movedim(-1, 1), (codec.decode(latents) / 2 + .5).clamp(0, 1))


def test_clip_is_the_text_encoder():
    encoder = text.TextEncoder()
    clip = demo_model.clip(encoder, text.tokenize, text.LENGTH)
    [[context, extra]] = clip.encode_from_tokens_scheduled(clip.tokenize("portrait, red hair"))
    torch.testing.assert_close(context, encoder.encode("portrait, red hair"))
    assert context.shape == (1, text.LENGTH, text.WIDTH) and extra["pooled_output"].shape == (1, text.WIDTH)


def test_a_codec_that_is_settled():
    """Over the pictures it was settled by: latents of mean 0 and spread 1, a preview nearer to the cells' colours than grey."""
    torch.manual_seed(0)
    x, codec = torch.nn.functional.interpolate(torch.rand(8, 3, 8, 8), (128, 128)) * 2 - 1, Codec()
    codec.settle(x)
    with torch.no_grad():
        z = codec.encode(x)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(CHANNELS), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(CHANNELS), rtol=0, atol=1e-4)
    factors, bias = codec.preview()
    shown = torch.einsum("bchw,cr->brhw", z, torch.tensor(factors)) + torch.tensor(bias).view(3, 1, 1)
    cells = torch.nn.functional.avg_pool2d(x, 16)
    assert (shown - cells).pow(2).mean() < .5 * (cells - cells.mean((0, 2, 3), keepdim=True)).pow(2).mean()


def test_attention_in_training_is_attention():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 64, 24)
    split = [x.view(2, 64, 3, 8).transpose(1, 2) for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).reshape(2, 64, 24)
    torch.testing.assert_close(denoiser.attention(None, q, k, v, 3), expected)


def test_cells_show_in_the_ratio():
    flat = torch.arange(64.).expand(1, 3, 64, 64)
    assert codec_stage.cell_ratio(flat) == pytest.approx(1)
    assert codec_stage.cell_ratio(flat + 2 * (torch.arange(64) // 16)) == pytest.approx(3)


@torch.inference_mode(False)
def test_an_interrupted_stage_ends_as_one_that_was_not(tmp_path, monkeypatch):
    """Weights, optimizer and random numbers are found again; a whole stage's file is not left as a part."""
    monkeypatch.setattr(stage, "SAVE_EVERY", 0)

    def learn(path, stop=None):
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 1)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        for step, progress in stage.Stage(path, 12, net=net, optimizer=optimizer):
            assert progress == step / 12
            if step == stop:
                return
            x = torch.randn(8, 3)
            stage.descend(optimizer, (net(x) - x.sum(1, keepdim=True)).pow(2).mean(), 1e-2 * (1 - progress))
        return net.weight.detach()

    whole = learn(tmp_path / "whole.progress")
    assert learn(tmp_path / "broken.progress", stop=7) is None
    torch.manual_seed(99)
    assert torch.equal(learn(tmp_path / "broken.progress"), whole)
    assert not list(tmp_path.glob("*.part"))


def test_interrupted_rendering_goes_on(tmp_path, monkeypatch):
    """Pictures that are there are not drawn again, and the others come out as they would have."""
    drawn, batch = [], pictures.batch

    def counted(number, device):
        if len(drawn) == 1:
            drawn.append(None)
            raise KeyboardInterrupt
        drawn.append(number)
        return batch(number, device)

    monkeypatch.setattr(pictures, "batch", counted)
    monkeypatch.setattr(pictures, "STYLES_EACH", 1)
    with pytest.raises(KeyboardInterrupt):
        pictures.render(tmp_path, 16, "cpu")
    pictures.render(tmp_path, 16, "cpu")
    assert drawn == [0, None, 8] and not list(tmp_path.glob("*.part"))
    table, words = (__import__("numpy").load(tmp_path / f"{name}.npy") for name in ("pictures", "words"))
    for first in (0, 8):
        [(picture, word)] = batch(first, "cpu")
        assert (table[first:first + 8] == picture).all() and (words[first:first + 8] == word).all()


def test_training_runs_through_and_resumes(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "portrait_atelier")
    monkeypatch.setattr(denoiser, "WIDTH", 32)
    monkeypatch.setattr(report, "EACH", 2)
    monkeypatch.setattr(report, "TRAINED", ("photo", "ink"))
    arguments = ["--share", "1e-9", "--identities", "8", "--pairs", "2", "--device", "cpu", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with torch.inference_mode(False):      # which the other host tests run in, as ComfyUI's nodes do
        train.main()
    world = load(tmp_path / "microworld.safetensors")
    model = demo_model.model(world.unet, world.scale, *world.codec.preview()).model
    assert model.diffusion_model.out[2].weight.abs().sum() > 0
    assert model.latent_format.latent_channels == CHANNELS == world.codec.channels
    assert world.scale == denoiser.SCALE and not list(tmp_path.glob("*.progress"))
    figures = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert set(figures["text to picture"]) == {"photo", "ink"} and set(figures["SEAC"]) == {*report.SEAC, "truth"}
    assert figures["SEAC"]["truth"]["structure"] > figures["SEAC"]["lambda 1.2"]["structure"]
    assert figures["codec"]["lost to noise"] != 0
    assert all(PIL.Image.open(tmp_path / f"{name}.png").size[0] >= 320 for name in ("steps", "people", "seac"))
    (tmp_path / "judges.pt").unlink()
    monkeypatch.setattr(report, "write", lambda *arguments: None)
    caplog.clear()
    with torch.inference_mode(False):
        train.main()
    told = caplog.text
    assert "unet.pt is there" in told and "making judges.pt" in told and "making unet.pt" not in told
    again = load(tmp_path / "microworld.safetensors").judges.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in world.judges.state_dict().items())      # the same seed
