"""The key extractor: every layout of the same weights gives the keys of transformers' own network, in float64."""

import pytest
import torch
from safetensors.torch import save_file

from portrait_atelier.stylegan import dino


@pytest.fixture(scope="module")
def network():
    """transformers' vision transformer of two heads and three blocks, for 32 x 32 pixels in patches of 8."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=160,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
        attn_implementation="sdpa",
    )
    model = ViTModel(config, add_pooling_layer=False).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.double()


OLD = [
    ("layers.", "encoder.layer."),
    (".attention.q_proj.", ".attention.attention.query."),
    (".attention.k_proj.", ".attention.attention.key."),
    (".attention.v_proj.", ".attention.attention.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
]


def old(weights):
    named = {}
    for name, value in weights.items():
        for new, before in OLD:
            name = name.replace(new, before)
        named[name] = value
    return named


def fused(weights):
    """The publishers' layout, written out name by name."""
    named = {"cls_token": weights["embeddings.cls_token"], "pos_embed": weights["embeddings.position_embeddings"]}
    for kind in ("weight", "bias"):
        named[f"patch_embed.proj.{kind}"] = weights[f"embeddings.patch_embeddings.projection.{kind}"]
        named[f"norm.{kind}"] = weights[f"layernorm.{kind}"]
        for k in range(3):
            at, to = f"layers.{k}", f"blocks.{k}"
            named[f"{to}.attn.qkv.{kind}"] = torch.cat(
                [weights[f"{at}.attention.{part}_proj.{kind}"] for part in "qkv"]
            )
            named[f"{to}.attn.proj.{kind}"] = weights[f"{at}.attention.o_proj.{kind}"]
            for ours, theirs in (
                ("norm1", "layernorm_before"),
                ("norm2", "layernorm_after"),
                ("mlp.fc1", "mlp.fc1"),
                ("mlp.fc2", "mlp.fc2"),
            ):
                named[f"{to}.{ours}.{kind}"] = weights[f"{at}.{theirs}.{kind}"]
    return named


def keys_of(network, pictures):
    """The keys of the last block, from transformers' forward pass; 48 pixels to 32 by bilinear weights written out."""
    found = []
    handle = network.layers[-1].attention.k_proj.register_forward_hook(lambda module, args, out: found.append(out))
    at = (torch.arange(32, dtype=torch.float64) + 0.5) * 48 / 32 - 0.5
    low = at.floor()
    weights = torch.zeros(32, 48, dtype=torch.float64)
    for row, (position, first) in enumerate(zip(at.tolist(), low.long().tolist())):
        weights[row, first] += 1 - (position - first)
        weights[row, min(first + 1, 47)] += position - first
    small = torch.einsum("ih,bchw,jw->bcij", weights, pictures, weights)
    normal = (small - torch.tensor(dino.MEAN).view(3, 1, 1)) / torch.tensor(dino.STD).view(3, 1, 1)
    with torch.no_grad():
        network(pixel_values=normal)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("layout", ["fused", "transformers", "old transformers", "prefixed", "teacher"])
def test_every_layout_gives_the_same_keys(network, layout):
    pictures = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = network.state_dict()
    weights = {
        "fused": fused(weights),
        "transformers": weights,
        "old transformers": old(weights),
        "prefixed": {f"vit.{name}": value for name, value in old(weights).items()},
        "teacher": {
            f"{who}.module.backbone.{name}": value * scale
            for who, scale in (("student", 2), ("teacher", 1))
            for name, value in fused(weights).items()
        },
    }[layout]
    model = dino.build(weights).double()
    assert model.side == 32 and not any(parameter.requires_grad for parameter in model.parameters())
    assert all(len(block.attn.qkv.bias) == 384 and block.attn.heads == 2 for block in model.blocks)
    ours, theirs = model(pictures), keys_of(network, pictures)
    assert ours.shape == (2, 17, 128)
    assert (ours - theirs).abs().max() < 1e-12


def test_the_published_size():
    with torch.device("meta"):
        model = dino.Dino()
    assert sum(parameter.numel() for parameter in model.parameters()) == 85_807_872 - 2 * 768  # without the last norm
    assert model.side == 224 and model.pos_embed.shape[1] == 785


def test_files(network, tmp_path):
    weights = {name: value.float().contiguous() for name, value in fused(network.state_dict()).items()}
    torch.save(weights, tmp_path / "dino.pth")
    save_file(old(network.state_dict()), tmp_path / "dino.safetensors")
    pictures = torch.rand(1, 3, 32, 32)
    assert torch.equal(dino.load(tmp_path / "dino.pth")(pictures), dino.load(tmp_path / "dino.safetensors")(pictures))


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle ran')",)


def test_what_is_no_dino(network, tmp_path):
    torch.save({"cls_token": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    for name in ("evil.pth", "junk.pth"):
        with pytest.raises(ValueError, match=f"{name}' could not be read as plain weights.*never loaded"):
            dino.load(tmp_path / name)
    with pytest.raises(ValueError, match="absent.pth' could not be opened"):
        dino.load(tmp_path / "absent.pth")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match="other.pth' is no DINO vision transformer: cls_token is missing .it has conv.weight"
    ):
        dino.load(tmp_path / "other.pth")
    part = fused(network.state_dict())
    del part["blocks.1.attn.proj.bias"]
    with pytest.raises(ValueError, match="blocks.1.attn.proj.bias is missing"):
        dino.build(part)
