"""What ZePo does beside the plain case: masks, chains, other patches, odd guiders, odd weights."""

import itertools
import logging
import types
from dataclasses import replace

import comfy.cldm.cldm
import comfy.context_windows
import comfy.controlnet
import comfy.hooks
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_tomesd import TomePatchModel
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

from portrait_atelier.host import seac as host
from portrait_atelier.host.kit.calls import Call, Routes, Run

TOLERANCE = 1e-5


@pytest.fixture
def content(tensor):
    return tensor(1, 4, 8, 8, seed=3)


@pytest.fixture
def banks(sd15, content, tensor):
    return sd15.features(content), sd15.features(tensor(1, 4, 8, 8, seed=4))


@pytest.fixture
def third(sd15, tensor):
    return sd15.features(tensor(1, 4, 8, 8, seed=5))


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "portrait_atelier")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "portrait_atelier"]


# Chains: a second SEAC Patch without source adds a reference.

def test_a_second_patch_adds_a_reference(sd15, content, banks, third, trace, literal):
    source, first = banks
    model = sd15.patch(None, third, style_enhancement=0.9, model=sd15.patch(source, first, style_enhancement=1.3))
    with trace(sd15.model) as seen:
        sd15.sample(model, content, steps=1)

    def controlled(number, sigma, layer, slot, row):
        if layer in source.layers:
            return [(bank.features[slot][layer][0].double(), lam) for bank, lam in ((source, 1.0), (first, 1.3), (third, 0.9))]

    assert literal(sd15).worst(seen, controlled) < TOLERANCE


def test_order_of_references_does_not_matter(sd15, content, banks, third, apart):
    source, first = banks
    options = {"mask": torch.linspace(0, 1, 64).expand(1, 64, 64), "style_share": 0.7}
    a = sd15.patch(None, third, model=sd15.patch(source, first, style_enhancement=1.3), **options)
    b = sd15.patch(None, first, style_enhancement=1.3, model=sd15.patch(source, third, **options))
    assert apart(sd15.sample(a, content), sd15.sample(b, content)) < TOLERANCE


def test_each_reference_has_its_own_window_and_layers(sd15, content, banks, third):
    source, first = banks
    early = sd15.patch(source, first, start=0.0, end=0.7)
    both = sd15.patch(None, third, start=0.7, end=1.0, layers="u4-8", model=early)
    second_only = sd15.patch(source, third, start=0.7, end=1.0, layers="u4-8")
    states = {}
    for name, model in {"early": early, "both": both}.items():
        states[name] = []
        noise = comfy.sample.prepare_noise(content, 7)
        comfy.sample.sample(model, noise, 4, 2.0, "lcm", "simple", sd15.positive, sd15.negative, content, denoise=0.5, seed=7,
                            disable_pbar=True, callback=lambda step, x0, x, total, name=name: states[name].append(x0))
    assert torch.equal(states["both"][0], states["early"][0]), "the first steps belong to the first reference alone"
    assert not torch.equal(states["both"][3], states["early"][3])
    assert not torch.equal(sd15.sample(both, content, steps=4), sd15.sample(second_only, content, steps=4))


def test_windows_that_touch_leave_no_gap(sd15, content, banks, third):
    class Sampling:
        percent_to_sigma = staticmethod(lambda percent: 1 - percent)

    model = sd15.patch(None, third, start=0.5, end=1.0, model=sd15.patch(*banks, start=0.0, end=0.5))
    seac, inner = model.get_attachment(host.SLOT), types.SimpleNamespace(model_sampling=Sampling, diffusion_model=model.model.diffusion_model)
    calls = [Call(Run((8, 8)), inner, sigma, texts=(0,)) for sigma in (0.75, 0.5, 0.25)]
    active = [[seac.references.index(r) for r in host.hooked(seac, call, {})[host.KEY].attention.active] for call in calls]
    assert active == [[0], [0, 1], [1]]


def test_strength_of_a_second_patch_weighs_its_reference(sd15, content, banks, third, apart):
    first = sd15.patch(*banks)
    assert torch.equal(sd15.sample(sd15.patch(None, third, strength=0.0, model=first), content), sd15.sample(first, content))
    faint = sd15.sample(sd15.patch(None, third, strength=1e-7, model=first), content)
    assert apart(faint, sd15.sample(first, content)) < 1e-4
    assert apart(sd15.sample(sd15.patch(None, third, strength=0.5, model=first), content), faint) > 1e-2


def test_a_second_patch_that_is_off_does_not_stop_the_third(sd15, content, banks, third):
    first = sd15.patch(*banks)
    off = sd15.patch(None, third, strength=0.0, model=first)
    assert torch.equal(sd15.sample(sd15.patch(None, third, model=off), content), sd15.sample(sd15.patch(None, third, model=first), content))
    assert not torch.equal(sd15.sample(sd15.patch(None, third, model=off), content), sd15.sample(first, content))


def test_the_first_patch_is_untouched_by_the_second(sd15, content, banks, third):
    first = sd15.patch(*banks)
    before = sd15.sample(first, content)
    sd15.sample(sd15.patch(None, third, model=first, strength=0.5), content)
    assert torch.equal(sd15.sample(first, content), before)


# Masks on the real token grid.

def test_a_mask_acts_on_its_half_of_each_grid(sd15, banks, tensor, trace, literal):
    """Non-square on purpose: rows and columns exchanged, or a square root, would show."""
    target, source, reference = tensor(2, 4, 8, 16, seed=6), *banks
    mask = torch.zeros(2, 64, 128)
    mask[0, :, 64:] = 1  # right half for the first picture
    mask[1, :32] = 1     # upper half for the second
    model = sd15.patch(source, reference, mask=mask, layers="u6-8")
    with trace(sd15.model) as seen:
        sd15.sample(model, target, steps=1)
    paper, worst = literal(sd15), 0.0
    for call, layer in itertools.product(seen.calls, [("output", 9, 0), ("output", 10, 0), ("output", 11, 0)]):
        data = call["layers"][layer]
        for row, queries in enumerate(data["queries"]):
            slot, target_index = call["slots"][row // 2], row % 2
            groups = [(bank.features[slot][layer][0].double(), lam) for bank, lam in ((source, 1.0), (reference, 1.2))]
            inside = torch.zeros(8, 16, dtype=torch.bool)
            if target_index == 0:
                inside[:, 8:] = True
            else:
                inside[:4] = True
            inside = inside.flatten()[:, None]
            wanted = torch.where(inside, paper.attention(seen.modules[layer], queries, groups),
                                 paper.attention(seen.modules[layer], queries, groups[:1]))
            worst = max(worst, ((data["out"][row] - wanted).abs().max() / wanted.abs().max()).item())
    assert worst < TOLERANCE


def test_masks_sit_out_where_the_picture_is_cropped(sd15, banks, tensor, warnings):
    target = tensor(1, 4, 8, 16, seed=6)
    mask = torch.zeros(1, 64, 128)
    mask[..., 64:] = 1
    halves = {name: [[prompt[0][0], {"area": (8, 8, 0, x)}] for x in (0, 8)]
              for name, prompt in (("positive", sd15.positive), ("negative", sd15.negative))}
    plain = sd15.sample(sd15.model, target, **halves)
    assert torch.equal(sd15.sample(sd15.patch(*banks, mask=mask), target, **halves), plain)
    assert sum("mask" in message for message in warnings()) == 1


def test_areas_see_whole_banks(sd15, banks, tensor, apart):
    target = tensor(1, 4, 8, 16, seed=6)
    area = sd15.positive + [[sd15.positive[0][0], {"area": (8, 8, 0, 8)}]]
    assert apart(sd15.sample(sd15.patch(*banks), target, positive=area), sd15.sample(sd15.model, target, positive=area)) > 1e-2


# Slots: which prompt's features a row sees.

def slots_seen(monkeypatch):
    seen = []
    hooked = host.hooked

    def listen(seac, call, options):
        seen.append((list(options["cond_or_uncond"]), list(call.texts)))
        return hooked(seac, call, options)

    monkeypatch.setattr(host, "hooked", listen)
    return seen


def run_guider(guider, latent, sigmas=(0.5, 0.2, 0.0)):
    return guider.sample(comfy.sample.prepare_noise(latent, 1), latent, comfy.samplers.sampler_object("euler"), torch.tensor(sigmas),
                         disable_pbar=True, seed=1)


def test_dual_cfg_lists_the_negative_prompt_first(sd15, content, banks, monkeypatch):
    seen = slots_seen(monkeypatch)
    guider = custom.DualCFGGuider.execute(sd15.patch(*banks), sd15.positive, sd15.negative, sd15.negative, 2.0, 1.5, "regular")[0]
    run_guider(guider, content)
    assert seen and all(banks_seen == [0 if slot == 2 else 1 for slot in slots] for slots, banks_seen in seen)
    assert {slot for slots, _ in seen for slot in slots} == {0, 1, 2}


def test_dual_model_calls_the_negative_prompt_alone(sd15, content, banks, monkeypatch, build_model):
    seen = slots_seen(monkeypatch)
    run_guider(custom.DualModelGuider.execute(sd15.patch(*banks), sd15.positive, 2.0, sd15.model, sd15.negative)[0], content)
    assert [banks_seen for _, banks_seen in seen] == [[0], [1]] * 2
    seen.clear()
    run_guider(custom.DualModelGuider.execute(sd15.patch(*banks), sd15.positive, 2.0, build_model("sd15", 3), sd15.negative)[0], content)
    assert [banks_seen for _, banks_seen in seen] == [[0]] * 2, "another model's rows are not ours"


def test_guidance_nodes_may_name_the_slots(sd15, content, banks, monkeypatch):
    seen = slots_seen(monkeypatch)
    model = sd15.model.clone()

    def publish(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kw):
        options = {**transformer_options, host.KEY: replace(transformer_options[host.KEY], routes=Routes((0, 1), (1, 0)))}
        return executor(x, t, c_concat, c_crossattn, control, options, **kw)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", publish)
    swapped = sd15.sample(sd15.patch(*banks, model=model), content)
    assert seen and all(banks_seen == [1 - slot for slot in slots] for slots, banks_seen in seen)
    assert not torch.equal(swapped, sd15.sample(sd15.patch(*banks), content))


def test_self_attention_guidance_calls_the_negative_prompt_alone(sd15, banks, tensor, monkeypatch):
    seen = slots_seen(monkeypatch)
    sd15.sample(SelfAttentionGuidance.execute(sd15.patch(*banks), 0.5, 2.0)[0], tensor(1, 4, 16, 16, seed=6), steps=1)
    assert seen == [([1, 0], [1, 0]), ([0], [1])]


def test_prompts_shared_by_both_lists_go_by_their_place(sd15, banks, tensor, monkeypatch):
    """An area of the positive prompt is copied to the negative list, id and all."""
    seen = slots_seen(monkeypatch)
    area = sd15.positive + [[sd15.positive[0][0], {"area": (8, 8, 0, 8)}]]
    sd15.sample(sd15.patch(*banks), tensor(1, 4, 8, 16, seed=6), positive=area, steps=1)
    assert seen and all(slots == banks_seen for slots, banks_seen in seen)
    assert sum(len(slots) for slots, _ in seen) == 4


def test_context_windows_over_a_batch(sd15, tensor, apart):
    """Pictures of a batch in windows of two see the source and the mask of their place in the whole batch."""
    targets = tensor(4, 4, 8, 8, seed=6)
    sources, reference = sd15.features(tensor(4, 4, 8, 8, seed=3)), sd15.features(tensor(1, 4, 8, 8, seed=4))
    masks = torch.rand(4, 64, 64, generator=torch.Generator().manual_seed(2))
    model = sd15.patch(sources, reference, mask=masks)
    windowed = model.clone()
    windowed.model_options["context_handler"] = comfy.context_windows.IndexListContextHandler(
        context_schedule=comfy.context_windows.get_matching_context_schedule(comfy.context_windows.ContextSchedules.STATIC_STANDARD),
        fuse_method=comfy.context_windows.get_matching_fuse_method(comfy.context_windows.ContextFuseMethods.FLAT),
        context_length=2, context_overlap=0, dim=0)
    outs = [sd15.sample(m, targets, sampler="euler") for m in (windowed, model)]
    assert apart(*outs) < TOLERANCE


def test_conditioning_hooks_act_in_extraction_and_sampling(sd15, content, banks, tensor, apart):
    name = "diffusion_model.output_blocks.3.1.transformer_blocks.0.attn1.to_q.weight"
    weight = sd15.model.model.state_dict()[name]
    lora = {name.replace("diffusion_model.", "lora_unet_").replace(".weight", "").replace(".", "_", 50) + "." + part: value
            for part, value in {"lora_down.weight": tensor(4, weight.shape[1], seed=20),
                                "lora_up.weight": tensor(weight.shape[0], 4, seed=21)}.items()}
    lora = {key.replace("lora_unet_output_blocks_3_1_transformer_blocks_0_attn1_to_q", name.removesuffix(".weight")): value
            for key, value in lora.items()}
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
    hooked = [[sd15.positive[0][0], {**sd15.positive[0][1], "hooks": hooks}]]
    bank = sd15.features(content, positive=hooked)
    assert max(apart(bank.features[0][layer], banks[0].features[0][layer]) for layer in bank.layers) > 1e-3
    assert max(apart(bank.features[1][layer], banks[0].features[1][layer]) for layer in bank.layers) < TOLERANCE
    out = sd15.sample(sd15.patch(bank, banks[1]), content, positive=hooked)  # two calls per step: their hooks differ
    assert apart(out, sd15.sample(sd15.patch(*banks), content)) > 1e-3


def test_extraction_takes_the_first_whole_prompt(sd15, content, banks, warnings):
    other = sd15.negative[0][0]
    parts = [[other, {"area": (4, 4, 0, 0)}], [other, {"mask": torch.ones(1, 8, 8)}], [other, {"start_percent": 0.5}],
             [other, {"control": object()}], [other, {"gligen": object()}]]
    bank = sd15.features(content, positive=[*parts, *sd15.positive, [other, {}]])
    assert all(torch.equal(bank.features[0][layer], banks[0].features[0][layer]) for layer in bank.layers)
    assert not warnings()
    bank = sd15.features(content, positive=[[sd15.positive[0][0], {"area": (4, 4, 0, 0)}]])
    assert all(torch.equal(bank.features[0][layer], banks[0].features[0][layer]) for layer in bank.layers)
    assert "area" in warnings()[0]


def test_extraction_ignores_a_seac_patch(sd15, content, banks):
    bank = sd15.features(content, model=sd15.patch(*banks, strength=0.7))
    assert all(torch.equal(bank.features[s][layer], banks[0].features[s][layer]) for s in (0, 1) for layer in bank.layers)


# Other patches on self-attention.

def test_tome_in_any_order(sd15, banks, tensor):
    target = tensor(1, 4, 16, 16, seed=6)
    for options in ({}, {"strength": 0.7}):
        tome_first = sd15.patch(*banks, model=TomePatchModel.execute(sd15.model, 0.5)[0], **options)
        tome_last = TomePatchModel.execute(sd15.patch(*banks, **options), 0.5)[0]
        outs = []
        for model in (tome_first, tome_last):
            torch.manual_seed(0)  # ToMe draws from the global generator
            outs.append(sd15.sample(model, target))
        assert torch.equal(*outs)
        assert not torch.equal(outs[0], sd15.sample(sd15.patch(*banks, **options), target))


def test_hypertile_layers_are_left_alone(sd15, banks, tensor, warnings, trace):
    target = tensor(1, 4, 16, 16, seed=6)
    outs = []
    for build in (lambda: HyperTile.execute(sd15.patch(*banks), 32, 2, 0, False)[0],
                  lambda: sd15.patch(*banks, model=HyperTile.execute(sd15.model, 32, 2, 0, False)[0])):
        torch.manual_seed(0)
        outs.append(sd15.sample(build(), target))
    assert torch.equal(*outs)
    assert torch.isfinite(outs[0]).all()
    assert sum("HyperTile" in message for message in warnings()) == 2, "one warning per run"


@pytest.mark.parametrize("patch", [lambda model: TomePatchModel.execute(model, 0.5)[0], lambda model: HyperTile.execute(model, 32, 2, 0, False)[0]],
                         ids=["tome", "hypertile"])
def test_extraction_keeps_every_token_under_other_patches(sd15, tensor, patch):
    bank = sd15.features(tensor(1, 4, 16, 16, seed=3), model=patch(sd15.model))
    for layer, (height, width) in bank.grids.items():
        assert bank.features[0][layer].shape[:2] == (1, height * width)
    assert bank.grids["output", 11, 0] == (16, 16)


def test_sampling_may_be_changed_after_the_patch(build_model, make_studio, content, tensor):
    studio, plain = make_studio("sd15"), build_model("sd15")
    banks = studio.features(content), studio.features(tensor(1, 4, 8, 8, seed=4))
    lcm = studio.model.get_model_object("model_sampling")
    late = studio.patch(*banks, model=plain, end=0.7)
    late.add_object_patch("model_sampling", lcm)
    assert torch.equal(studio.sample(late, content), studio.sample(studio.patch(*banks, end=0.7), content))


@pytest.mark.parametrize("options", [{}, {"strength": 0.7}], ids=["concatenated", "biased"])
@pytest.mark.parametrize("guidance", ["pag", "sag"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_layers_that_others_replaced_are_left_to_them(sd15, tensor, guidance, options, order):
    target = tensor(1, 4, 16, 16, seed=6)  # SAG needs a square of more than one token in the middle
    banks = [sd15.features(tensor(1, 4, 8, 8, seed=seed), layers="all") for seed in (3, 4)]

    def guide(model):
        if guidance == "pag":
            return PerturbedAttentionGuidance.execute(model, 3.0)[0]
        return SelfAttentionGuidance.execute(model, 0.5, 2.0)[0]

    model = guide(sd15.patch(*banks, **options)) if order == "before" else sd15.patch(*banks, model=guide(sd15.model), **options)
    out = sd15.sample(model, target)
    assert torch.isfinite(out).all()
    without = sd15.sample(sd15.patch(*banks, **options), target)
    assert not torch.equal(out, without), "the guidance acts"
    assert not torch.equal(out, sd15.sample(guide(sd15.model), target)), "SEAC acts"


@pytest.mark.parametrize("index", [None, 0])
def test_a_foreign_replacement_keeps_its_layer(sd15, content, banks, index):
    calls = []

    def foreign(q, k, v, extra):
        calls.append(k.shape[1])
        return host.optimized_attention(q, k, v, extra["n_heads"], transformer_options=extra)

    model = sd15.patch(*banks, strength=0.7)
    model.set_model_attn1_replace(foreign, "output", 5, index)
    out = sd15.sample(model, content)
    wanted = sd15.sample(sd15.patch(*banks, strength=0.7, layers="u1,u3-8"), content)
    assert set(calls) == {16} or set(calls) == {4}, "the layer's own tokens, none of ours"
    assert torch.equal(out, wanted)


def test_attention_override_of_the_user_is_called(sd15, content, banks):
    used = []

    def override(function, *args, **kwargs):
        used.append(kwargs.get("scale") is not None)
        return function(*args, **kwargs)

    model = sd15.patch(*banks, strength=0.7)
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    sd15.sample(model, content)
    assert any(used) and not all(used)


def test_controlnet_never_sees_the_patch(sd15, content, banks, tensor, monkeypatch):
    spec = dict(image_size=32, in_channels=4, model_channels=32, hint_channels=3, num_res_blocks=[2] * 4, channel_mult=[1, 2, 4, 4],
                transformer_depth=[1] * 6 + [0] * 2, transformer_depth_middle=1, num_heads=4, use_spatial_transformer=True,
                context_dim=64, legacy=False, dtype=torch.float32, operations=comfy.ops.disable_weight_init, device=torch.device("cpu"))
    network = comfy.cldm.cldm.ControlNet(**spec).eval()
    for i, parameter in enumerate(network.parameters()):
        parameter.data.copy_(tensor(*parameter.shape, seed=i) * 0.05)
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
    control.set_cond_hint(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)), 1.0, (0.0, 1.0))
    positive = [[sd15.positive[0][0], {**sd15.positive[0][1], "control": control, "control_apply_to_uncond": True}]]
    keys = []
    for module in network.modules():
        if module.__class__.__name__ == "CrossAttention" and module.to_k.in_features != 64:
            module.to_k.register_forward_pre_hook(lambda m, args: keys.append(args[0].shape[1]))
    plain = sd15.sample(sd15.model, content, positive=positive)
    own, keys[:] = set(keys), []
    out = sd15.sample(sd15.patch(*banks), content, positive=positive)
    assert keys and set(keys) == own, "the ControlNet's keys have the tokens they always had"
    assert not torch.equal(out, plain) and not torch.equal(plain, sd15.sample(sd15.model, content))


def test_torch_compile(make_studio, content, tensor, monkeypatch):
    studio = make_studio("nano")  # tracing the whole SD1.5 tree takes most of a minute
    banks = studio.features(content), studio.features(tensor(1, 4, 8, 8, seed=4))
    model = studio.patch(*banks, strength=0.7, start=0.0, end=0.7)  # its window ends between the two steps

    def simple_attention(function, q, k, v, heads, **options):  # ComfyUI's own for the CPU takes long to trace
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=options.get("scale")).transpose(1, 2).flatten(-2)

    model.model_options["transformer_options"]["optimized_attention_override"] = simple_attention
    compiled, traced, groups = model.clone(), [], host.Control.groups

    def listen(self, *args):
        traced.append(torch.compiler.is_dynamo_compiling())
        return groups(self, *args)

    monkeypatch.setattr(host.Control, "groups", listen)
    set_torch_compile_wrapper(compiled, backend="eager", options={"guard_filter_fn": skip_torch_compile_dict})
    with torch.inference_mode(False), torch.no_grad():
        outs = [studio.sample(m, content) for m in (compiled, model, studio.model)]
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
    assert traced and not any(traced), "what a call may do differently each time must not be compiled in"


# Weights in other forms.

def test_fp8_storage(build_model, make_studio, content, tensor, apart, monkeypatch):
    plain = make_studio("sd15")
    stored = make_studio("sd15")
    for module in stored.model.model.diffusion_model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(module.weight.to(torch.float8_e4m3fn), requires_grad=False)
            module.comfy_cast_weights = True
    outs = []
    for studio in (plain, stored):
        banks = studio.features(content), studio.features(tensor(1, 4, 8, 8, seed=4))
        assert next(iter(banks[0].features[0].values())).dtype == torch.float32
        outs.append([studio.sample(studio.patch(*banks, **options), content, steps=1) for options in ({}, {"strength": 0.7})])
    assert all(0 < apart(a, b) < 1 for a, b in zip(*outs)), "near, as far as eight bits go"


def test_loras_act_on_features_and_on_sampling(sd15, content, banks, tensor, warnings, apart):
    name = "diffusion_model.output_blocks.6.1.transformer_blocks.0.attn1.to_k.weight"
    weight = sd15.model.model.state_dict()[name]
    model = sd15.model.clone()
    model.add_patches({name: ("diff", (tensor(*weight.shape, seed=30),))}, 1.0)
    own = [sd15.features(latent, model=model) for latent in (content, tensor(1, 4, 8, 8, seed=4))]
    matched = sd15.sample(sd15.patch(*own, model=model), content)
    assert not warnings()
    assert apart(matched, sd15.sample(sd15.patch(*banks), content)) > 1e-3
    sd15.patch(*banks, model=model)
    assert "other weights" in warnings()[0]
    assert torch.equal(sd15.sample(sd15.patch(*banks), content), sd15.sample(sd15.patch(*banks), content))


def test_a_call_outside_of_a_sampling_run(sd15, content, banks):
    """Some nodes call the denoiser themselves, without the wrapper that keeps the run's state."""
    model = sd15.patch(*banks)
    options = {"wrappers": model.wrappers, "cond_or_uncond": [0]}
    sd15.sample(model, content, steps=1)  # loads the model
    out = [model.model.apply_model(content, torch.tensor([0.5]), c_crossattn=sd15.positive[0][0], transformer_options=dict(o))
           for o in (options, {"cond_or_uncond": [0]})]
    assert not torch.equal(*out)
