"""What the nodes refuse or warn about, and that the message says what, where and the cure."""

import logging
from dataclasses import replace

import comfy.supported_models
import pytest
import torch

from portrait_atelier.nodes.consistency_feature_extract import ConsistencyFeatureExtract


@pytest.fixture
def content(tensor):
    return tensor(1, 4, 8, 8, seed=3)


@pytest.fixture
def bank(sd15, content):
    return sd15.features(content)


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "portrait_atelier")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "portrait_atelier"]


def test_not_a_unet_of_these_families(sd15, bank, content):
    class Flux(comfy.supported_models.SD15):
        pass

    class Other:
        latent_format = sd15.model.model.latent_format
        model_config = Flux({})
        diffusion_model = torch.nn.Linear(1, 1)

    class Patcher:
        model = Other()

    for call in (lambda: sd15.features(content, model=Patcher()), lambda: sd15.patch(bank, bank, model=Patcher())):
        with pytest.raises(ValueError, match=r"does not know the network of Flux models.*UNets.*Z-Image.*load one of these"):
            call()


def test_features_of_another_family(sd15, sdxl, bank, content):
    with pytest.raises(ValueError, match=r"source features were extracted from .* TinySD15, .* TinySDXL .*Extract them with"):
        sdxl.patch(bank, bank)
    with pytest.raises(ValueError, match="reference features"):
        sd15.patch(bank, sdxl.features(content))


def test_features_with_other_channels(sd15, bank):
    wide = replace(bank, features={s: {layer: torch.cat([f, f], -1) for layer, f in layers.items()} for s, layers in bank.features.items()})
    with pytest.raises(ValueError, match="other layers"):
        sd15.patch(bank, wide)


@pytest.mark.parametrize("which", ["source", "reference"])
def test_guidance_without_negative_features(sd15, content, bank, which):
    lacking = sd15.features(content, negative=False)
    banks = (lacking, bank) if which == "source" else (bank, lacking)
    model = sd15.patch(*banks)
    with pytest.raises(ValueError, match=f"{which} features have none.*Connect 'negative' to Consistency Feature Extract or set CFG 1"):
        sd15.sample(model, content)
    assert torch.isfinite(sd15.sample(model, content, cfg=1.0)).all()


def test_merging_twice(sd15, bank):
    with pytest.raises(ValueError, match="merged already"):
        sd15.merge(sd15.merge(bank))


@pytest.mark.parametrize("latent, message", [
    (torch.zeros(1, 4, 8, 8), "empty"), (torch.zeros(0, 4, 8, 8), "empty"),
    (torch.ones(1, 16, 8, 8), r"\(1, 16, 8, 8\).*VAE of this checkpoint"), (torch.ones(1, 4, 2, 8, 8), "VAE of this checkpoint"),
    (torch.full((1, 4, 8, 8), float("nan")), "NaN"), (torch.full((1, 4, 8, 8), float("inf")), "NaN or infinite"),
])
def test_latents(sd15, latent, message):
    with pytest.raises(ValueError, match=message):
        sd15.features(latent)


def test_features_that_overflow_name_the_layer(sd15, content):
    positive = [[sd15.positive[0][0] * 1e37, {}]]
    with pytest.raises(ValueError, match=r"features of layer u1.0 hold NaN"):
        sd15.features(content, positive=positive)


@pytest.mark.parametrize("layers, message", [
    ("u1,x3", r"'x3'.*d0-5, m0, u0-8"), ("u9", r"'u9' .*outside.*u0-8"), ("u2-1", "outside"), ("u1.1", r"outside.*\.0-\.0"), ("7", "'7'"),
])
def test_layer_names(sd15, bank, content, layers, message):
    for call in (lambda: sd15.patch(bank, bank, layers=layers), lambda: sd15.features(content, layers=layers)):
        with pytest.raises(ValueError, match=message):
            call()


def test_layers_without_features(sd15, bank):
    with pytest.raises(ValueError, match=r"'d3' include d3.0, which the features do not hold"):
        sd15.patch(bank, bank, layers="d3")


def test_extraction_of_no_layers(sd15, content):
    with pytest.raises(ValueError, match="names no layer"):
        sd15.features(content, layers=" ")


def test_second_source(sd15, bank):
    with pytest.raises(ValueError, match="already has a SEAC Patch"):
        sd15.patch(bank, bank, model=sd15.patch(bank, bank))


def test_empty_prompt_list(sd15, content):
    with pytest.raises(ValueError, match="holds no prompt"):
        ConsistencyFeatureExtract.execute(sd15.model, {"samples": content}, [])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 3.5])
@pytest.mark.parametrize("widget", ["style_enhancement", "strength", "style_share", "start", "end"])
def test_numbers_of_seac(sd15, bank, widget, value):
    with pytest.raises(ValueError, match=f"'{widget}' of SEAC Patch is {value}.*between 0 and"):
        sd15.patch(bank, bank, **{widget: value})


@pytest.mark.parametrize("options", [{"ratio": float("nan")}, {"ratio": 0.8}, {"ratio": -0.1}, {"seed": -1}])
def test_numbers_of_token_merge(sd15, bank, options):
    with pytest.raises(ValueError, match="of Token Merge is"):
        sd15.merge(bank, **options)


@pytest.mark.parametrize("options", [{"timestep": 1000}, {"timestep": -1}, {"seed": -1}])
def test_numbers_of_extraction(sd15, content, options):
    with pytest.raises(ValueError, match="of Consistency Feature Extract is"):
        sd15.features(content, **options)


@pytest.mark.parametrize("mask, message", [
    (torch.full((1, 8, 8), float("nan")), "holds NaN or infinite"), (torch.full((1, 8, 8), float("-inf")), "holds NaN or infinite"),
    (torch.ones(0, 64, 64), "holds no mask: nothing was found"), (torch.ones(1, 0, 64), "holds no mask"),
    (torch.ones(1, 64, 64, 3), r"has dimensions \[1, 64, 64, 3\]"),
])
@pytest.mark.parametrize("strength", [1.0, 0.0])
def test_masks(sd15, bank, mask, message, strength):
    with pytest.raises(ValueError, match="The mask of SEAC Patch " + message):
        sd15.patch(bank, bank, mask=mask, strength=strength)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_masks_of_another_shape(sd15, bank, content, value):
    """Whatever they hold: a white one too was made from another picture. Before the first model call, also behind a clone."""
    model = sd15.patch(None, bank, model=sd15.patch(bank, bank, mask=torch.ones(1, 64, 64)), mask=torch.full((1, 64, 256), value)).clone()
    with pytest.raises(ValueError, match="The mask of SEAC Patch is 256 x 64, another shape than the latent's 8 x 8"):
        sd15.sample(model, content)


def test_a_mask_with_a_channel_is_that_mask(sd15, bank, content):
    mask = torch.zeros(1, 64, 64)
    mask[:, :, 32:] = 1
    plain, channel = (sd15.sample(sd15.patch(bank, bank, mask=each), content, steps=1) for each in (mask, mask[:, None]))
    assert torch.equal(plain, channel)


def test_warnings(sd15, bank, content, warnings):
    sd15.patch(bank, bank, start=0.6, end=0.5)
    sd15.patch(bank, sd15.features(content, timestep=259))
    sd15.patch(None, bank, balance="images", model=sd15.patch(bank, bank))
    assert [any(word in message for message in warnings()) for word in ("not before end", "at 259", "balance")] == [True] * 3
    assert len(warnings()) == 3
