"""FaceID's projection network against diffusers' on the same random weights."""

import functools

import diffusers
import pytest
import torch

from portrait_atelier.identity.projection import FaceProjection


def apart(a, b) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def random_tensors(width, plus, embedding=512, hidden=1024, tokens=4, clip=32, depth=4, dtype=torch.float64):
    """`image_proj` of a FaceID file. Biases and norms are random too, so that none can be forgotten."""
    generator = torch.Generator().manual_seed(width)

    def tensor(*shape):
        return torch.empty(*shape, dtype=dtype).uniform_(-1, 1, generator=generator) * (3 / shape[-1]) ** 0.5

    def linear(name, inputs, outputs, bias=True):
        found = {f"{name}.weight": tensor(outputs, inputs)}
        return {**found, f"{name}.bias": tensor(outputs)} if bias else found

    def norm(name):
        return {f"{name}.weight": 1 + tensor(width), f"{name}.bias": tensor(width)}

    found = {**linear("proj.0", embedding, hidden), **linear("proj.2", hidden, width * tokens), **norm("norm")}
    if plus:
        found |= {**linear("perceiver_resampler.proj_in", clip, width), **linear("perceiver_resampler.proj_out", width, width),
                  **norm("perceiver_resampler.norm_out")}
        for layer in range(depth):
            name = f"perceiver_resampler.layers.{layer}"
            found |= {**norm(f"{name}.0.norm1"), **norm(f"{name}.0.norm2"), **linear(f"{name}.0.to_q", width, width, False),
                      **linear(f"{name}.0.to_kv", width, 2 * width, False), **linear(f"{name}.0.to_out", width, width, False),
                      **norm(f"{name}.1.0"), **linear(f"{name}.1.1", width, 4 * width, False), **linear(f"{name}.1.3", 4 * width, width, False)}
    return found


def reference(tensors, dtype, monkeypatch, depth=4):
    """diffusers' network with these weights, by diffusers' own converter."""
    monkeypatch.setattr(diffusers.loaders.unet, "IPAdapterFaceIDPlusImageProjection",
                        functools.partial(diffusers.models.embeddings.IPAdapterFaceIDPlusImageProjection, depth=depth))
    unet = diffusers.UNet2DConditionModel(block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
                                          layers_per_block=1, cross_attention_dim=32)
    for initial in ("kaiming_uniform_", "uniform_"):  # random numbers that the weights replace at once
        monkeypatch.setattr(torch.nn.init, initial, lambda tensor, *args, **kwargs: tensor)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return unet._convert_ip_adapter_image_proj_to_diffusers(tensors)
    finally:
        torch.set_default_dtype(default)


def inputs(dtype, embedding=512, clip=32, people=3, tokens=9):
    generator = torch.Generator().manual_seed(1)
    face = torch.nn.functional.normalize(torch.randn(people, embedding, generator=generator, dtype=dtype), dim=-1)
    return face, torch.randn(people, tokens, clip, generator=generator, dtype=dtype)


# float64 where that is affordable. SDXL's Plus network has 200 million weights, of which one layer in four is tried.
SIZES = [(64, torch.float64, 1e-12), (768, torch.float64, 1e-12), (2048, torch.float32, 1e-5)]


@pytest.mark.parametrize("width, dtype, tolerance", SIZES)
def test_plain_faceid_is_diffusers(width, dtype, tolerance, monkeypatch):
    tensors = random_tensors(width, plus=False, dtype=dtype)
    face, _ = inputs(dtype)
    ours = FaceProjection(tensors)
    assert (ours.tokens, ours.width, ours.embedding_width, ours.plus, ours.clip_width) == (4, width, 512, False, None)
    assert apart(ours(face), reference(tensors, dtype, monkeypatch)(face)) < tolerance


@pytest.mark.parametrize("width, dtype, tolerance", SIZES)
def test_plus_v1_and_v2_are_diffusers(width, dtype, tolerance, monkeypatch):
    large = width == 2048
    tensors = random_tensors(width, plus=True, dtype=dtype, depth=1 if large else 4)
    face, clip = inputs(dtype, people=1, tokens=2) if large else inputs(dtype)
    theirs = reference(tensors, dtype, monkeypatch, depth=1 if large else 4)
    theirs.clip_embeds = clip[:, None]
    ours = {version: FaceProjection(tensors, version) for version in ("v1", "v2")}
    assert ours["v1"].clip_width == 32
    results = {}
    for version, shortcut in [("v1", 1.0), ("v2", 0.4)]:
        theirs.shortcut, theirs.shortcut_scale = version == "v2", shortcut
        results[version, shortcut] = ours[version](face, clip, shortcut)
        assert apart(results[version, shortcut], theirs(face)) < tolerance, (version, shortcut)
    assert apart(results["v1", 1.0], results["v2", 0.4]) > 0.1


def test_sizes_come_from_the_tensors():
    tensors = random_tensors(64, plus=True, embedding=24, hidden=48, tokens=3, clip=20, depth=2)
    ours = FaceProjection(tensors, "v2")
    face, clip = inputs(torch.float64, embedding=24, clip=20)
    assert ours(face, clip).shape == (3, 3, 64) and (ours.embedding_width, ours.clip_width) == (24, 20)


def test_the_shortcut_weighs_clips_part():
    """v2 is x + shortcut * out, with out what v1 returns and x what plain FaceID returns."""
    tensors = random_tensors(64, plus=True)
    face, clip = inputs(torch.float64)
    x = FaceProjection({name: tensor for name, tensor in tensors.items() if not name.startswith("perceiver")})(face)
    out, v2 = FaceProjection(tensors, "v1")(face, clip), FaceProjection(tensors, "v2")
    assert torch.equal(v2(face, clip, 0.0), x) and torch.equal(v2(face, clip), x + out) and apart(v2(face, clip, 2.0), x + 2 * out) < 1e-12


def test_each_person_stands_alone():
    ours = FaceProjection(random_tensors(64, plus=True), "v2")
    face, clip = inputs(torch.float64)
    assert apart(ours(face[1:2], clip[1:2]), ours(face, clip)[1:2]) < 1e-12


def test_half_precision_weights_stay_so_and_compute_in_the_inputs_precision():
    tensors = random_tensors(64, plus=True)
    face, clip = inputs(torch.float32)
    half = FaceProjection({name: tensor.half() for name, tensor in tensors.items()}, "v2")
    exact = FaceProjection({name: tensor.half().double() for name, tensor in tensors.items()}, "v2")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    assert apart(half(face, clip), exact(face.double(), clip.double())) < 1e-5


def test_a_network_of_another_kind_is_refused():
    tensors = random_tensors(64, plus=False)
    with pytest.raises(RuntimeError, match="proj.1.weight"):
        FaceProjection({**tensors, "proj.1.weight": torch.zeros(1)})
