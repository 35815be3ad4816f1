"""What Face Identity Encode takes from CLIP, against transformers' CLIP on the same random weights."""

import comfy.clip_vision
import pytest
import torch
import transformers

from portrait_atelier.nodes.face_identity_encode import FaceIdentityEncode

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CONFIG = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=224, patch_size=56,
              projection_dim=16, num_channels=3, hidden_act="gelu")


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    model = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**CONFIG)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
        parameter.data = parameter.half().float()  # ComfyUI keeps CLIP in half precision
    return model


@pytest.fixture(scope="module")
def clip_vision(reference):
    model = comfy.clip_vision.ClipVisionModel({**CONFIG, "model_type": "clip_vision_model"})
    missing, unexpected = model.load_sd(reference.state_dict())
    assert not missing
    return model


def literal(reference, pictures):
    """Penultimate hidden states of pictures [n, height, width, 3] in 0..1."""
    pixels = (pictures - torch.tensor(MEAN)) / torch.tensor(STD)
    return reference(pixel_values=pixels.movedim(-1, 1), output_hidden_states=True).hidden_states[-2]


@pytest.fixture
def photos(photo):
    return torch.cat([photo([(160, 160, 50, 0)]), photo([(160, 160, 50, 2)])])


@pytest.mark.parametrize("channels", ["bgr", "rgb"])
def test_penultimate_states_of_the_aligned_faces(encode, clip_vision, reference, photos, channels, apart):
    identity, crop, _ = encode(photos, clip_vision=clip_vision, clip_channels=channels, combine="tokens")
    seen = {"rgb": crop, "bgr": crop.flip(-1)}
    assert identity.clip.shape == (2, 17, 32)
    assert apart(identity.clip, literal(reference, seen[channels])) < 1e-5
    assert apart(identity.clip, literal(reference, seen["rgb" if channels == "bgr" else "bgr"])) > 0.05


def test_bgr_is_the_default(encode, clip_vision, photos):
    default, chosen = (encode(photos, clip_vision=clip_vision, **options)[0] for options in ({}, {"clip_channels": "bgr"}))
    assert torch.equal(default.clip, chosen.clip)


def test_nobody_is_zeros_after_normalisation(encode, clip_vision, reference, photos, apart):
    """Neither a black picture nor one that 8 bits rounded."""
    identity = encode(photos, clip_vision=clip_vision)[0]
    grey = reference(pixel_values=torch.zeros(1, 3, 224, 224), output_hidden_states=True).hidden_states[-2]
    assert identity.grey.shape == (1, 17, 32) and apart(identity.grey, grey) < 1e-5
    assert apart(identity.grey, literal(reference, torch.zeros(1, 224, 224, 3))) > 0.05


def test_the_mean_of_several_photos(encode, clip_vision, photos, apart):
    mean, each = (encode(photos, clip_vision=clip_vision, combine=combine)[0].clip for combine in ("mean", "tokens"))
    assert mean.shape == (1, 17, 32) and apart(mean.double(), each.double().mean(0, keepdim=True)) < 1e-6


def test_another_kind_of_vision_model(analysis, photos, clip_vision):
    other = comfy.clip_vision.ClipVisionModel({**CONFIG, "model_type": "siglip_vision_model"})
    with pytest.raises(ValueError, match="clip_vision is a model of kind 'siglip_vision_model', but FaceID-Plus needs CLIP. Load CLIP-ViT-H-14"):
        FaceIdentityEncode.execute(analysis, photos, other)
