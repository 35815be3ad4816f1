"""Numbers of the attentions and the LoRA inside the file, against diffusers and ComfyUI's own table of names."""

import comfy.utils
import diffusers
import pytest
import torch

from portrait_atelier.host import demo_model
from portrait_atelier.host.attention_processors import attention_paths, cross_attention_numbers, lora_patches

KINDS = ("q", "k", "v", "out")
SMALL = dict(cross_attention_dim=64, norm_num_groups=8, sample_size=8)
UNETS = {  # the published configurations with few channels
    "sd15": lambda: diffusers.UNet2DConditionModel(block_out_channels=(32, 64, 128, 128), attention_head_dim=4, **SMALL),
    "sdxl": lambda: diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64, 128), layers_per_block=2, transformer_layers_per_block=(1, 2, 10), use_linear_projection=True,
        attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), **SMALL),
}


@pytest.fixture(scope="module")
def demo():
    weights = demo_model.network(16, 48).state_dict()
    return demo_model.model(weights, 1.0, [[0.0] * 3] * 16, [0.0] * 3)


@pytest.fixture(params=["sd15", "sdxl", "demo"])
def pair(request, build_model):
    """(ModelPatcher, names of diffusers' attentions in the order of its processors, diffusers name -> ComfyUI name)."""
    if request.param == "demo":
        model, config, unet = request.getfixturevalue("demo"), demo_model.unet_config(16, 48), UNETS["sd15"]()
    else:
        model, unet = build_model(request.param), UNETS[request.param]()
        config = model.model.model_config.unet_config
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    return model, names, comfy.utils.unet_to_diffusers(config)


def test_numbers_are_diffusers_order(pair):
    model, names, ours = pair
    paths = attention_paths(model)
    assert sorted(paths) == list(range(len(names))) and len(names) in (32, 140)
    for n, name in enumerate(names):
        assert f"{paths[n]}.to_q.weight" == "diffusion_model." + ours[f"{name}.to_q.weight"], n
        assert model.get_model_object(paths[n]).to_k.in_features == (64 if n % 2 else model.get_model_object(paths[n]).to_q.in_features)


def test_layers_have_the_designs_numbers(pair):
    """Both ends of every part, written down."""
    model, names, _ = pair
    numbers = cross_attention_numbers(model)
    expected = {1: ("input", 1, 0), 11: ("input", 8, 0), 13: ("output", 3, 0), 29: ("output", 11, 0), 31: ("middle", 0, 0)}
    if len(names) == 140:
        expected = {1: ("input", 4, 0), 3: ("input", 4, 1), 5: ("input", 5, 0), 9: ("input", 7, 0), 47: ("input", 8, 9), 49: ("output", 0, 0),
                    107: ("output", 2, 9), 109: ("output", 3, 0), 119: ("output", 5, 1), 121: ("middle", 0, 0), 139: ("middle", 0, 9)}
    assert {n: numbers[n] for n in expected} == expected and len(numbers) == len(names) // 2


def lora_of(model, rank=2):
    """A LoRA in the file's names for every attention of the model; every tensor holds its own number."""
    tensors, count = {}, 0
    for n, path in attention_paths(model).items():
        attention = model.get_model_object(path)
        for kind, linear in zip(KINDS, (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])):
            for side, shape in (("down", (rank, linear.in_features)), ("up", (linear.out_features, rank))):
                tensors[f"{n}.to_{kind}_lora.{side}.weight"] = torch.full(shape, float(count))
                count += 1
    return tensors


def test_every_lora_pair_reaches_its_weight(pair):
    model, names, ours = pair
    lora = lora_of(model)
    patches = lora_patches(model, lora)
    assert len(patches) == len(lora) // 2 == {32: 128, 140: 560}[len(names)]
    for n, name in enumerate(names):
        for kind in KINDS:
            target = "diffusion_model." + ours[f"{name}.to_{kind}{'.0' if kind == 'out' else ''}.weight"]
            up, down = patches[target].weights[:2]
            assert torch.equal(up, lora[f"{n}.to_{kind}_lora.up.weight"]) and torch.equal(down, lora[f"{n}.to_{kind}_lora.down.weight"])
    assert len(model.clone().add_patches(patches)) == len(patches)


def test_the_patched_weight_is_the_weight_plus_up_times_down(build_model, apart):
    """Scale 1: the file holds no alpha."""
    model = build_model("nano")
    generator = torch.Generator().manual_seed(0)
    lora = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in lora_of(model).items()}
    clone = model.clone()
    clone.add_patches(lora_patches(model, lora), 0.5)
    path = attention_paths(model)[3] + ".to_out.0.weight"
    expected = model.get_model_object(path).double() + 0.5 * lora["3.to_out_lora.up.weight"].double() @ lora["3.to_out_lora.down.weight"].double()
    assert apart(clone.patch_weight_to_device(path, return_weight=True).double(), expected) < 1e-6


@pytest.mark.parametrize("change, words", [
    (lambda name: name.replace("7.to", "99.to"), "attention 99 does not exist in this model, which has 8"),
    (lambda name: name.replace("to_q_lora", "to_z_lora"), "32 LoRA pairs, of which 24 fit"),
])
def test_a_lora_that_does_not_fit(build_model, change, words):
    model = build_model("nano")
    with pytest.raises(ValueError, match=words):
        lora_patches(model, {change(name): tensor for name, tensor in lora_of(model).items()})
