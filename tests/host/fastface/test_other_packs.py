"""PLADIS and Normalized Attention Guidance of sd-perturbed-attention: doubles that patch the same slots in the same way."""

import pytest
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, optimized_attention

from portrait_atelier.nodes.decoupled_cfg import DecoupledCFG
from portrait_atelier.nodes.scale_power_attention import ScalePowerAttention


@pytest.fixture
def latent(tensor):
    return tensor(1, 4, 8, 8, seed=3)


def replaced(model, make, middle=True):
    """A clone with make(what sat there) at (part, number, index) of every cross-attention."""
    clone = model.clone()
    for name, module in clone.model.diffusion_model.named_modules():
        if isinstance(module, BasicTransformerBlock):
            part, number, rest = name.split("_")[0], name.split(".")[1], name.split("transformer_blocks.")[1]
            key = (part, int(number) - (part == "middle"), int(rest.split(".")[0]))
            taken = clone.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
            if middle or part != "middle":
                clone.set_model_attn2_replace(make(taken.get(key[:2], taken.get(key)), module.attn2), *key)
    return clone


def pladis(model, middle=False):
    def pladis_attention(q, k, v, extra):
        return 1.1 * optimized_attention(q, k, v, extra["n_heads"])

    return replaced(model, lambda before, module: pladis_attention, middle)


def nag(model, tensor):
    def nag_attn2_replace_wrapper(before, module):
        negative = tensor(1, 77, 64, seed=90)
        key, value = module.to_k(negative), module.to_v(negative)

        def nag_attn2_replace(q, k, v, extra):
            slots = extra["cond_or_uncond"]
            z = before(q, k, v, extra) if before else optimized_attention(q, k, v, extra["n_heads"])
            if 0 not in slots:
                return z
            rows, first = q.shape[0] // len(slots), slots.index(0)
            count = rows * slots.count(0)
            positive = z[first * rows:]
            keys, values = key.repeat(count, 1, 1), value.repeat(count, 1, 1)
            other = optimized_attention(q[first * rows:], keys, values, extra["n_heads"])
            return torch.cat([z[:first * rows], positive + 0.5 * (positive - other)])

        return nag_attn2_replace

    return replaced(model, nag_attn2_replace_wrapper)


def test_a_patch_that_drops_the_person_is_refused_by_name(faces, sixteen, latent):
    for toy in (faces, sixteen):
        told = r"'pladis' of .*sits where a face adapter was before, in (3|15) of (4|16) cross.*Put its node before"
        with pytest.raises(ValueError, match=told):
            toy.studio.sample(pladis(toy.apply()), latent)
        again = toy.apply(toy.identity(seed=31), model=pladis(toy.apply()))
        with pytest.raises(ValueError, match="'pladis' of .*the person would be lost"):
            toy.studio.sample(again, latent)
        before = toy.apply(model=pladis(toy.studio.model))
        assert not torch.equal(toy.studio.sample(before, latent), toy.studio.sample(pladis(toy.studio.model), latent))


def test_a_patch_that_calls_the_person_is_welcome(faces, latent, tensor):
    model = nag(faces.apply(), tensor)
    out = faces.studio.sample(model, latent)
    assert not torch.equal(out, faces.studio.sample(nag(faces.studio.model, tensor), latent))
    assert torch.equal(faces.studio.sample(model.clone(), latent), out)


def test_an_adapter_in_layers_that_do_not_run_is_no_fault(faces, latent):
    """Blocks may be skipped: their slots are ours still."""
    model = faces.apply()
    model.set_model_patch_replace(lambda args, extra: args, "blocks_replace", "unused", 0)
    unet = model.model.diffusion_model
    block, unet.middle_block = unet.middle_block, None
    try:
        faces.studio.sample(model, latent, steps=1)
    finally:
        unet.middle_block = block


@pytest.mark.parametrize("between", ["pladis", "nag"])
def test_an_attention_node_behind_such_a_patch_says_what_hides_the_adapter(faces, tensor, between):
    for toy, what in ((faces.apply(), "cannot reach the face adapter"), (faces.studio.model, "found no face adapter")):
        model = pladis(toy) if between == "pladis" else nag(toy, tensor)
        told = f"Scale-Power Attention {what}: '{between}.*straight behind the node that adds"
        with pytest.raises(ValueError, match=told):
            ScalePowerAttention.execute(model)


@pytest.mark.parametrize("order", ["behind", "between", "before"])
def test_nag_under_decoupled_guidance(faces, latent, tensor, order):
    model = {"behind": lambda: nag(faces.apply(), tensor),
             "before": lambda: faces.apply(model=nag(faces.studio.model, tensor)),
             "between": lambda: faces.apply(faces.identity(seed=31), model=nag(faces.apply(), tensor))}[order]()
    for name in ("DCG_1", "DCG_2", "DCG_3"):
        options = {"formulation": name, "alpha": "2", "beta": "3"}
        told = "Normalized Attention Guidance.*Set 'routing' of Decoupled CFG to separate"
        with pytest.raises(ValueError, match=told):
            faces.studio.sample(DecoupledCFG.execute(model, **options)[0], latent)
        separate = DecoupledCFG.execute(model, **options, routing="separate")[0]
        assert torch.isfinite(faces.studio.sample(separate, latent)).all()
