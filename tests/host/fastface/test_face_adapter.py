"""Face Adapter Apply: equation (3) of FastFace in every layer, and everything that must not change."""

from dataclasses import replace

import comfy.samplers
import pytest
import safetensors.torch
import torch

from portrait_atelier.host import decoupled, face_adapter as host
from portrait_atelier.identity.adapter import load_adapter

TOLERANCE = 1e-5
WEIGHT = 0.8


@pytest.fixture
def latent(tensor):
    return tensor(1, 4, 8, 8, seed=3)


def error_of_law(faces, law, cross_trace, latent, *, people=1, mask=None, areas=1.0, start=0.0, end=1.0, shortcut=1.0, transform=None,
                 model=None, steps=2, **sampling):
    identity = faces.identity(people)
    model = faces.apply(identity, model, mask, weight=WEIGHT, start=start, end=end, shortcut=shortcut)
    with cross_trace(faces.studio.model) as seen:
        faces.studio.sample(model, latent, steps=steps, **{"denoise": 1.0, **sampling})
    assert len(seen.calls) >= steps
    sampler = model.get_model_object("model_sampling")
    high, low = sampler.percent_to_sigma(start), sampler.percent_to_sigma(end)
    return law.error(faces, seen, [(identity, WEIGHT, areas, lambda sigma: low <= sigma <= high, shortcut)], transform)


# Equation (3).

@pytest.mark.parametrize("people, batch, cfg", [(1, 1, 2.0), (1, 1, 1.0), (2, 3, 2.0)])
def test_every_layer_and_step(faces, law, cross_trace, tensor, people, batch, cfg):
    assert error_of_law(faces, law, cross_trace, tensor(batch, 4, 8, 8, seed=3), people=people, cfg=cfg) < TOLERANCE


def test_sixteen_layers(sixteen, law, cross_trace, latent):
    assert error_of_law(sixteen, law, cross_trace, latent) < TOLERANCE


def test_seventy_layers(sdxl, make_faces, law, cross_trace, latent):
    assert error_of_law(make_faces(sdxl, "sdxl"), law, cross_trace, latent, steps=1, cfg=1.0) < TOLERANCE


def test_plus(nano, make_faces, law, cross_trace, latent):
    assert error_of_law(make_faces(nano, plus=True), law, cross_trace, latent, people=2, shortcut=0.7) < TOLERANCE


def test_a_file(nano, make_faces, law, cross_trace, latent, tmp_path):
    """From a FaceID-Plus v2 file in half precision to every layer."""
    faces = make_faces(nano, plus=True)
    sizes = {"proj.0.weight": (32, 512), "proj.0.bias": (32,), "proj.2.weight": (256, 32), "proj.2.bias": (256,), "norm.weight": (64,), "norm.bias": (64,)}
    resampler = {"proj_in.weight": (64, 6), "proj_in.bias": (64,), "proj_out.weight": (64, 64), "proj_out.bias": (64,), "norm_out.weight": (64,),
                 "norm_out.bias": (64,), "layers.0.0.norm1.weight": (64,), "layers.0.0.norm1.bias": (64,), "layers.0.0.norm2.weight": (64,),
                 "layers.0.0.norm2.bias": (64,), "layers.0.0.to_q.weight": (64, 64), "layers.0.0.to_kv.weight": (128, 64),
                 "layers.0.0.to_out.weight": (64, 64), "layers.0.1.0.weight": (64,), "layers.0.1.0.bias": (64,),
                 "layers.0.1.1.weight": (256, 64), "layers.0.1.3.weight": (64, 256)}
    sizes.update({f"perceiver_resampler.{name}": size for name, size in resampler.items()})
    generator = torch.Generator().manual_seed(4)
    file = {f"image_proj.{name}": torch.randn(size, generator=generator) * 0.3 for name, size in sizes.items()}
    for n, (k, v) in faces.adapter.keys_values.items():
        file.update({f"ip_adapter.{n}.to_k_ip.weight": k, f"ip_adapter.{n}.to_v_ip.weight": v})
    file.update({f"ip_adapter.{name}": value for name, value in faces.adapter.lora.items()})
    path = tmp_path / "ip-adapter-faceid-plusv2_tiny.safetensors"
    safetensors.torch.save_file({name: value.half() for name, value in file.items()}, path)
    faces.adapter = load_adapter(path)
    assert faces.adapter.plus and faces.adapter.version == "v2"
    assert len(faces.apply(lora_strength=1.0).patches) == 32
    assert error_of_law(faces, law, cross_trace, latent, people=2, shortcut=0.7) < TOLERANCE


@pytest.mark.parametrize("start, end", [(0.0, 0.5), (0.5, 1.0), (0.4, 0.6)])
def test_window(faces, law, cross_trace, latent, start, end):
    assert error_of_law(faces, law, cross_trace, latent, steps=4, start=start, end=end, sampler="dpm_2") < TOLERANCE


def test_prompts_in_separate_calls(make_studio, make_faces, law, cross_trace, tensor, latent):
    studio = make_studio("nano")
    studio.positive = [[tensor(1, 100, 64, seed=1), {}]]
    assert error_of_law(make_faces(studio), law, cross_trace, latent) < TOLERANCE


def test_three_prompts_in_one_call(faces, law, cross_trace, latent, tensor):
    """The third prompt, as in PerpNeg or Dual CFG, sees the person; only the second place is without identity."""
    class Three(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options={}, seed=None):
            conds = [self.conds[name] for name in self.original_conds]
            return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)[2]

    identity = faces.identity()
    guider = Three(faces.apply(identity, weight=WEIGHT))
    guider.inner_set_conds({"positive": faces.studio.positive, "negative": faces.studio.negative, "third": faces.studio.negative})
    with cross_trace(faces.studio.model) as seen:
        guider.sample(tensor(1, 4, 8, 8, seed=5), latent, comfy.samplers.sampler_object("euler"), torch.tensor([5.0, 0.0]), disable_pbar=True)
    assert [sorted(call["slots"]) for call in seen.calls] == [[0, 1, 2]]
    assert law.error(faces, seen, [(identity, WEIGHT, 1, law.always, 1.0)]) < TOLERANCE


def test_mask(sixteen, law, cross_trace, tensor):
    """Masks of a batch go with its pictures, averaged over the cells of every layer's own grid."""
    masks = torch.rand(2, 96, 64, generator=torch.Generator().manual_seed(6))
    grids = {0: (12, 8), 1: (6, 4), 2: (3, 2), 3: (2, 1)}

    def area(layer, picture):
        part, number, _ = layer
        level = {"input": number // 3, "output": 3 - number // 3, "middle": 3}[part]
        return torch.nn.functional.adaptive_avg_pool2d(masks[picture][None].double(), grids[level]).flatten()[:, None]

    latent = tensor(2, 4, 12, 8, seed=3)
    assert error_of_law(sixteen, law, cross_trace, latent, mask=masks, areas=area, steps=1) < TOLERANCE
    assert error_of_law(sixteen, law, cross_trace, latent, mask=masks.flip(0), areas=area, steps=1) > 1e-2


# Mutants.

def keys_and_values_exchanged(patch):
    patch.setattr(host, "KeyValue", lambda k, v, nk, nv, make=host.KeyValue: make(v, k, nv, nk))


def nobody_is_the_person(patch):
    patch.setattr(host, "UNCOND", None)


def rows_exchanged(patch):
    patch.setattr(host, "UNCOND", 0)


def nobody_has_zero_tokens(patch):
    tokens = host.identity_tokens
    patch.setattr(host, "identity_tokens", lambda *a: (lambda person, nobody, first: (person, 0 * nobody, first))(*tokens(*a)))


def middle_left_out(patch):
    holds = host.check_fit
    patch.setattr(host, "check_fit", lambda *a: {layer: n for layer, n in holds(*a).items() if layer[0] != "middle"})


def numbered_in_forward_order(patch):
    holds = host.check_fit
    patch.setattr(host, "check_fit", lambda *a: (lambda found: dict(zip(
        sorted(found, key=lambda layer: ("input", "middle", "output").index(layer[0])), sorted(found.values()))))(holds(*a)))


def weight_on_everything(patch):
    attend = decoupled.attend
    patch.setattr(decoupled, "attend", lambda *a: WEIGHT * attend(*a))


@pytest.mark.parametrize("mutant", [keys_and_values_exchanged, nobody_is_the_person, rows_exchanged, nobody_has_zero_tokens, middle_left_out,
                                    weight_on_everything])
def test_mutants_fail(faces, law, cross_trace, latent, monkeypatch, mutant):
    mutant(monkeypatch)
    assert error_of_law(faces, law, cross_trace, latent, steps=1) > 1e-2


def test_numbering_mutant_fails(sdxl, make_faces, law, cross_trace, latent, monkeypatch):
    numbered_in_forward_order(monkeypatch)
    assert error_of_law(make_faces(sdxl, "sdxl"), law, cross_trace, latent, steps=1, cfg=1.0) > 1e-2


# Nothing to do, nothing installed.

@pytest.mark.parametrize("off", [{"weight": 0.0}, {"start": 0.5, "end": 0.5}, {"start": 0.7, "end": 0.2}])
def test_off_is_the_plain_model(faces, latent, off):
    model = faces.apply(**off)
    assert model.model_options == faces.studio.model.model_options and model is not faces.studio.model
    assert model.patches == faces.studio.model.patches
    assert torch.equal(faces.studio.sample(model, latent), faces.studio.sample(faces.studio.model, latent))


def test_no_face_is_the_plain_model(faces, latent, caplog):
    model = faces.apply(faces.identity(found=False), lora_strength=1.0)
    assert "no face was found" in caplog.text
    assert model.model_options == faces.studio.model.model_options and not model.patches
    assert torch.equal(faces.studio.sample(model, latent), faces.studio.sample(faces.studio.model, latent))


def test_outside_the_window_is_the_plain_model(faces, latent):
    model = faces.apply(start=0.0, end=0.3)  # denoise 0.5 begins near 0.5
    assert torch.equal(faces.studio.sample(model, latent), faces.studio.sample(faces.studio.model, latent))


def test_masks_of_ones_and_zeros(faces, latent):
    plain = faces.studio.sample(faces.apply(), latent)
    assert torch.equal(faces.studio.sample(faces.apply(mask=torch.ones(1, 64, 64)), latent), plain)
    nothing = faces.studio.sample(faces.apply(mask=torch.zeros(1, 64, 64)), latent)
    assert torch.equal(nothing, faces.studio.sample(faces.studio.model, latent))
    assert not torch.equal(plain, nothing)


# The order of rows does not matter.

def test_batches(faces, tensor, apart):
    latent, model = tensor(3, 4, 8, 8, seed=3), faces.apply()

    def run(rows):
        return comfy.sample.sample(model, tensor(3, 4, 8, 8, seed=4)[rows], 2, 2.0, "euler", "simple", faces.studio.positive,
                                   faces.studio.negative, latent[rows], disable_pbar=True, seed=1)

    together = run([0, 1, 2])
    assert apart(run([2, 0, 1]), together[[2, 0, 1]]) < TOLERANCE
    assert apart(run([1])[0], together[1]) < TOLERANCE


# The LoRA in the file.

@pytest.mark.parametrize("family, strength, pairs", [("nano", 1.0, 32), ("nano", 0.5, 32), ("sd15", 1.0, 128)])
def test_lora_is_added_to_the_weights(make_studio, make_faces, law, latent, apart, family, strength, pairs):
    faces, other = (make_faces(make_studio(family), family) for _ in range(2))
    model = faces.apply(weight=0.0, lora_strength=strength)
    assert len(model.patches) == pairs and len(faces.apply(lora_strength=0.0).patches) == 0
    for layer, block in other.layers.items():
        number = law.numbers[family][layer]
        for attention, n in ((block.attn1, number - 1), (block.attn2, number)):
            for kind, linear in (("q", attention.to_q), ("k", attention.to_k), ("v", attention.to_v), ("out", attention.to_out[0])):
                down, up = (faces.adapter.lora[f"{n}.to_{kind}_lora.{side}.weight"] for side in ("down", "up"))
                linear.weight.data += strength * up @ down
    plain = faces.studio.sample(faces.studio.model, latent, steps=1)
    expected = other.studio.sample(other.studio.model, latent, steps=1)
    assert apart(faces.studio.sample(model, latent, steps=1), expected) < 1e-4
    assert apart(plain, expected) > 1e-2
    assert torch.equal(faces.studio.sample(faces.studio.model, latent, steps=1), plain), "the model before the node must stay"


def test_an_adapter_without_lora(faces, latent, caplog):
    model = faces.apply(adapter=replace(faces.adapter, lora={}), lora_strength=1.0)
    assert "holds no LoRA" in caplog.text
    assert torch.equal(faces.studio.sample(model, latent), faces.studio.sample(faces.apply(), latent))


# Runs repeat, and nothing is left behind.

def test_runs_repeat_and_leave_nothing(faces, latent):
    before, plain = dict(faces.studio.model.model_options), faces.studio.sample(faces.studio.model, latent)
    model = faces.apply(faces.identity(2), mask=torch.rand(1, 64, 64))
    options = {key: dict(value) if isinstance(value, dict) else value for key, value in model.model_options.items()}
    first = faces.studio.sample(model, latent)
    faces.studio.sample(faces.apply(faces.identity(seed=70)), latent)
    assert torch.equal(faces.studio.sample(model, latent), first)
    assert faces.studio.model.model_options == before and model.model_options == options
    assert torch.equal(faces.studio.sample(faces.studio.model, latent), plain)


# Several adapters, other patches.

def test_two_adapters_add_up(faces, law, cross_trace, latent):
    one, two = faces.identity(), faces.identity(seed=50)
    first = faces.apply(one, weight=0.5)
    alone = faces.studio.sample(first, latent)
    model = faces.apply(two, first, weight=0.9)
    with cross_trace(faces.studio.model) as seen:
        faces.studio.sample(model, latent)
    assert law.error(faces, seen, [(one, 0.5, 1, law.always, 1.0), (two, 0.9, 1, law.always, 1.0)]) < TOLERANCE
    assert torch.equal(faces.studio.sample(first, latent), alone), "the model upstream must stay"


def test_a_previous_occupant_is_called(faces, latent, apart):
    called = []

    def doubles(q, k, v, extra):
        called.append(extra["block"])
        return 2 * decoupled.attend(q, k, v, extra, None, ())

    for key in (("input", 1), ("input", 1, 0)):
        model = faces.studio.model.clone()
        model.set_model_attn2_replace(doubles, *key)
        plain = faces.studio.sample(model, latent)
        called.clear()
        both = faces.apply(model=model)
        assert set(decoupled.occupants(both)) >= {key} and len(decoupled.occupants(both)) == 4, "the same key, no second one"
        assert apart(faces.studio.sample(both, latent), plain) > 1e-3 and called
        zero = faces.apply(model=model, mask=torch.zeros(1, 64, 64))
        assert torch.equal(faces.studio.sample(zero, latent), plain)


@pytest.mark.parametrize("family, size", [("sd15", 2), ("sdxl", 3)])
def test_keys_have_the_length_that_other_packs_look_for(request, make_faces, family, size):
    keys = decoupled.occupants(make_faces(request.getfixturevalue(family), family).apply())
    assert {len(key) for key in keys} == {size} and any(key[:2] == ("middle", 0) for key in keys)


def test_with_seac(faces, latent, tensor, apart):
    studio = faces.studio
    banks = studio.features(latent), studio.features(tensor(1, 4, 8, 8, seed=4))
    one = studio.sample(faces.apply(model=studio.patch(*banks)), latent)
    other = studio.sample(studio.patch(*banks, model=faces.apply()), latent)
    assert torch.equal(one, other)
    assert apart(one, studio.sample(faces.apply(), latent)) > 1e-3 and apart(one, studio.sample(studio.patch(*banks), latent)) > 1e-3


def test_a_masked_person_sits_out_where_the_mask_cannot_be_placed(faces, tensor, caplog):
    studio = faces.studio
    area = [[studio.positive[0][0], {"area": (4, 8, 0, 0)}], studio.positive[0]]
    model = faces.apply(mask=torch.rand(1, 128, 128))
    assert torch.isfinite(studio.sample(model, tensor(1, 4, 16, 16, seed=3), steps=1, positive=area)).all()
    assert "cannot be placed" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(faces, latent, tensor, dtype):
    """The slot of a layer gives what it got: finite values in the model's own type."""
    model = faces.apply(mask=torch.rand(1, 64, 64))
    slot, channels = decoupled.occupants(model)["input", 1], 32
    call = host_call(model, latent)
    q, k, v = (tensor(2, n, channels, seed=n).to(dtype) for n in (64, 77, 77))
    extra = {"block": ("input", 1), "block_index": 0, "n_heads": 4, "attn_precision": None, "cond_or_uncond": [1, 0],
             "activations_shape": [2, 32, 8, 8], decoupled.KEY: call}
    out = slot(q, k, v, extra)
    assert out.dtype == dtype and torch.isfinite(out).all()
    swapped = slot(q[[1, 0]], k[[1, 0]], v[[1, 0]], {**extra, "cond_or_uncond": [0, 1], decoupled.KEY: replace(call, texts=(0, 1), people=(0, 1))})
    assert torch.equal(swapped, out[[1, 0]]), "the order of prompts in a call does not matter"


def host_call(model, latent, sigma=5.0):
    from portrait_atelier.host.kit.calls import Call, Run
    return Call(Run(latent.shape[-2:]), model.model, sigma, texts=(1, 0), people=(1, 0))


# What is refused.

def test_an_adapter_of_another_base(faces, sdxl):
    adapter = replace(faces.adapter, base="sd15", name="ip-adapter-faceid_sd15.bin")
    with pytest.raises(ValueError, match=r"'ip-adapter-faceid_sd15.bin' is an adapter for SD1.5, but this model is TinySDXL.*Load the adapter"):
        faces.apply(model=sdxl.model, adapter=adapter)


def test_missing_and_wrong_clip(nano, make_faces):
    faces = make_faces(nano, plus=True)
    with pytest.raises(ValueError, match="needs the CLIP features.*Connect clip_vision"):
        faces.apply(replace(faces.identity(), clip=None))
    with pytest.raises(ValueError, match=r"width 6, but the identity has width 9.*CLIP-ViT-H-14"):
        faces.apply(replace(faces.identity(), clip=torch.zeros(1, 5, 9)))


def test_embeddings_of_another_recogniser(faces):
    with pytest.raises(ValueError, match="face embeddings of 512 values, but the identity has 128"):
        faces.apply(replace(faces.identity(), embedding=torch.zeros(1, 128)))


def test_a_lora_of_another_model(faces):
    lora = {key.replace("7.", "77."): value for key, value in faces.adapter.lora.items()}
    with pytest.raises(ValueError, match="LoRA in 'toy' does not fit"):
        faces.apply(adapter=replace(faces.adapter, lora=lora), lora_strength=1.0)


@pytest.mark.parametrize("part, value, message", [
    ("3.to_q_lora.up.weight", torch.zeros(48, 2), "attn2.to_q takes 32 channels to 32, the LoRA 32 to 48"),
    ("2.to_v_lora.down.weight", torch.zeros(2, 16), "attn1.to_v takes 32 channels to 32, the LoRA 16 to 32"),
    ("2.to_v_lora.down.weight", torch.zeros(3, 32), "attn1.to_v takes 32 channels to 32, the LoRA 32 to 32, by halves of rank 3 and 2"),
    ("2.to_v_lora.down.weight", torch.zeros(2), r"attn1.to_v it has shapes \[32, 2\] and \[2\], not two matrices"),
    ("2.to_v_lora.down.weight", None, "attn1.to_v_lora.down.weight is missing"),
])
def test_a_lora_of_other_shapes(faces, part, value, message):
    """ComfyUI would leave the module out and go on."""
    lora = {**faces.adapter.lora, part: value}
    if value is None:
        del lora[part]
    with pytest.raises(ValueError, match=f"Face Adapter Apply: the LoRA in 'toy' does not fit this model .*{message}"):
        faces.apply(adapter=replace(faces.adapter, lora=lora), lora_strength=1.0)


def test_values_of_another_shape(faces):
    keys_values = {**faces.adapter.keys_values, 3: (faces.adapter.keys_values[3][0], torch.zeros(48, 64))}
    with pytest.raises(ValueError, match=r"'toy' is damaged: 3.to_v_ip.weight has shape \[48, 64\] instead of \[32, 64\]"):
        faces.apply(adapter=replace(faces.adapter, keys_values=keys_values))


def test_identities_that_are_not_finite(nano, make_faces):
    faces = make_faces(nano, plus=True)
    good = faces.identity()
    for part, name in (("embedding", "embedding"), ("clip", "CLIP features"), ("grey", "CLIP features of grey")):
        broken = replace(good, **{part: getattr(good, part) * float("nan")})
        with pytest.raises(ValueError, match=f"Face Adapter Apply: the {name} of 'identity' hold NaN"):
            faces.apply(broken)
    huge = {number: (key * 1e38, value) for number, (key, value) in faces.adapter.keys_values.items()}
    with pytest.raises(ValueError, match="'toy' turns this identity into NaN or infinite values"):
        faces.apply(adapter=replace(faces.adapter, keys_values=huge))


@pytest.mark.parametrize("widget, value", [("weight", float("nan")), ("weight", -1.0), ("lora_strength", float("inf")), ("start", 2.0)])
def test_numbers_out_of_range(faces, widget, value):
    with pytest.raises(ValueError, match=f"'{widget}' of Face Adapter Apply"):
        faces.apply(**{widget: value})


@pytest.mark.parametrize("mask, message", [
    (torch.full((1, 8, 8), float("nan")), "holds NaN"), (torch.ones(0, 64, 64), "holds no mask: nothing was found"),
    (torch.ones(1, 64, 64, 3), r"has dimensions \[1, 64, 64, 3\]"),
])
def test_masks(faces, mask, message):
    for options in ({}, {"weight": 0.0}):
        with pytest.raises(ValueError, match="The mask of Face Adapter Apply " + message):
            faces.apply(mask=mask, **options)


@pytest.mark.parametrize("value", [0.5, 1.0])
def test_masks_of_another_shape(faces, tensor, value):
    """Also where the person only comes in later."""
    model = faces.apply(mask=torch.full((1, 64, 256), value), start=0.9)
    with pytest.raises(ValueError, match="The mask of Face Adapter Apply is 256 x 64, another shape than the latent's 8 x 8"):
        faces.studio.sample(model, tensor(1, 4, 8, 8, seed=5), steps=1)
    channel = faces.apply(mask=torch.full((1, 1, 64, 64), value))
    assert torch.isfinite(faces.studio.sample(channel, tensor(1, 4, 8, 8, seed=5), steps=1)).all()
