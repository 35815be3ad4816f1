"""The demo's networks behave as ordinary MODEL, CLIP and VAE, and its training script runs through."""

import sys

import pytest
import torch

from portrait_atelier.demo import text, train
from portrait_atelier.demo.checkpoint import load
from portrait_atelier.demo.codec import Codec
from portrait_atelier.host import demo_model


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    codec = Codec()
    codec.start(torch.rand(4, 3, 64, 64) * 2 - 1)
    return codec.requires_grad_(False)


def test_epsilon_and_v_agree():
    """z0 from epsilon is z0 from v: (z_t - sigma eps) / alpha = alpha z_t - sigma v."""
    torch.manual_seed(0)
    net = demo_model.network()
    train.start_network(net)
    torch.nn.init.normal_(net.out[2].weight, std=.1)
    z_t, t, context = torch.randn(3, 16, 8, 8), torch.tensor([19., 499., 979.]), torch.randn(3, 16, 64)
    with torch.no_grad():
        epsilon = net(z_t, t, context).double()
        v = net.predict_v(z_t, t, context, transformer_options={}).double()
    a = net.alphas_cumprod[t.long()].view(-1, 1, 1, 1).double()
    assert v.abs().mean() > .01
    torch.testing.assert_close((z_t - (1 - a).sqrt() * epsilon) / a.sqrt(), a.sqrt() * z_t - (1 - a).sqrt() * v, rtol=0, atol=1e-5)


def test_the_schedule_is_the_hosts():
    model = demo_model.model(demo_model.network().state_dict(), [[0.] * 3] * 16, [0.] * 3)
    sampling = model.get_model_object("model_sampling")
    expected = 1 / (1 + sampling.sigmas ** 2)
    torch.testing.assert_close(model.model.diffusion_model.alphas_cumprod, expected, rtol=1e-4, atol=1e-7)


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


def test_training_runs_through_and_resumes(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "portrait_atelier")
    arguments = ["--minutes", "0.05", "--identities", "16", "--device", "cpu", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with torch.inference_mode(False):      # which the other host tests run in, as ComfyUI's nodes do
        train.main()
    world = load(tmp_path / "microworld.safetensors")
    assert demo_model.model(world.unet, [[0.] * 3] * 16, [0.] * 3).model.diffusion_model.out[2].weight.abs().sum() > 0
    (tmp_path / "judges.pt").unlink()
    again = train.train_unet(tmp_path, 1e-9, "cpu", tmp_path / "microworld.safetensors")
    assert torch.equal(again["net.out.2.weight"], world.unet["out.2.weight"])      # no time, no change
    caplog.clear()
    with torch.inference_mode(False):
        train.main()
    told = caplog.text
    assert "unet.pt is there" in told and "making judges.pt" in told and "making unet.pt" not in told
