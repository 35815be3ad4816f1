"""DiffStyler's equations (2) and (4) to (12) written out in float64, one UNet call per row, and mutants that must differ.

Here every style has a UNet of its own with its LoRA added to the weights, attention is softmax(QK^T)V with the source's stored map
in place of the own one, features are stored ResBlock outputs before the skip connection, and sampling is DDIM in z, not in sigma.
"""

import copy
from dataclasses import replace
from types import MethodType

import pytest
import torch

from portrait_atelier.attention import injection
from portrait_atelier.guidance import regions
from portrait_atelier.host import cross_injection as host, routed

pytestmark = pytest.mark.quick
TOLERANCE = 1e-5
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ABAR = torch.cumprod(1 - BETAS, 0)


class Literal:
    """One picture, its path z_t at given timesteps, and styles (LoRA tensors, strength, prompt, mask [h, w])."""

    def __init__(self, desk, features, attention, preset="paper", feature_until=401, attention_until=501, cfg=2.0, base=False):
        self.desk, self.cfg, self.preset, self.base = desk, cfg, preset, base
        self.features, self.attention = features, attention
        self.feature_until, self.attention_until = feature_until, attention_until

    def unet(self, lora=None, strength=1.0):
        unet = copy.deepcopy(self.desk.model.model.diffusion_model).double()
        unet.dtype = torch.float64
        for name in [key.removesuffix(".lora_up.weight") for key in lora or {} if key.endswith("lora_up.weight")]:
            module = unet.get_submodule(name.removeprefix("diffusion_model."))
            if self.preset == "reference" and ".attn1." in name and any(f"output_blocks.{k}." in name for k in self.attention):
                continue
            up, down = lora[name + ".lora_up.weight"].double().flatten(1), lora[name + ".lora_down.weight"].double().flatten(1)
            weight = module.weight + (strength * lora[name + ".alpha"].double() / down.shape[0] * (up @ down)).view_as(module.weight)
            module.weight = torch.nn.Parameter(weight, requires_grad=False)
        return unet

    def epsilon(self, unet, z, t, prompt, kinds=(), memory=None, ratio=1.0):
        """epsilon(z, t, prompt). Without memory nothing is injected; an empty one is filled, a filled one injected by `kinds`."""
        unet = copy.copy(unet)  # hooks are added and removed below
        recording, undo = memory is not None and not memory, []
        for number, block in enumerate(unet.output_blocks):
            if number in self.features and memory is not None:
                def feature(module, inputs, out, key=("f", number)):
                    if recording:
                        memory[key] = out.clone()
                    elif "f" in kinds:
                        return memory[key]
                undo.append(block[0].out_layers[3].register_forward_hook(feature).remove)
            for module in block:
                for index, layer in enumerate(getattr(module, "transformer_blocks", [])):
                    for kind in ("sa", "ca"):
                        attn = layer.attn1 if kind == "sa" else layer.attn2
                        active = number in self.attention and memory is not None
                        attn.forward = MethodType(self.attend(kind, (kind, number, index) if active else None, recording, kinds, memory, ratio), attn)
                        undo.append(lambda attn=attn: delattr(attn, "forward"))
        try:
            return unet(z, torch.tensor([float(t)], dtype=torch.float64), context=prompt[0][0].double(), transformer_options={})
        finally:
            for take_back in undo:
                take_back()

    @staticmethod
    def attend(kind, key, recording, kinds, memory, ratio):
        """(2) softmax(QK^T / sqrt(d)) V, with the source's map, or with mixed queries and keys where ratio < 1."""
        def forward(self, x, context=None, value=None, mask=None, transformer_options={}):
            context = x if context is None else context
            cut = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            q, k, v = cut(self.to_q(x)), cut(self.to_k(context)), cut(self.to_v(context))
            inject = key is not None and not recording and kind in kinds
            if inject and kind == "sa" and ratio < 1:
                q, k = ratio * memory[key]["q"] + (1 - ratio) * q, ratio * memory[key]["k"] + (1 - ratio) * k
            attention = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1]**0.5, -1)
            if key is not None and recording:
                memory[key] = {"map": attention, "q": q, "k": k}
            if inject and not (kind == "sa" and ratio < 1):
                attention = memory[key]["map"]
            return self.to_out((attention @ v).transpose(1, 2).flatten(2))
        return forward

    def sample(self, path, timesteps, styles):
        """path: z at every timestep and at last z_0, [1, C, h, w] each -> z_0 of the result."""
        desk, z, steps = self.desk, path[0], len(timesteps)
        plain = self.unet()
        unets = [self.unet(lora, strength) for lora, strength, _, _ in styles]
        for step, t in enumerate(timesteps):
            kinds = (["f"] if t >= self.feature_until else []) + (["sa", "ca"] if t >= self.attention_until else [])
            a, after = ABAR[t], ABAR[timesteps[step + 1]] if step + 1 < steps else torch.tensor(1.0)
            bare = {}
            if kinds and self.preset == "paper":
                self.epsilon(plain, path[step], t, desk.empty, memory=bare)

            def guided(unet, prompt, kinds, memory, ratio=1.0):
                null, full = (self.epsilon(unet, z, t, p, kinds, memory if kinds else None, ratio) for p in (desk.negative, prompt))
                return null + self.cfg * (full - null)

            def style(number):
                memory = bare
                if self.preset == "reference" and kinds:
                    self.epsilon(unets[number], path[step], t, desk.empty, memory=(memory := {}))
                return guided(unets[number], styles[number][2], kinds if self.preset == "paper" else [k for k in kinds if k != "ca"], memory)

            def ddim(epsilon):
                return after.sqrt() * (z - (1 - a).sqrt() * epsilon) / a.sqrt() + (1 - after).sqrt() * epsilon

            results = [ddim(style(number)) for number in range(len(styles))]
            if not self.base:
                background = path[step + 1]
            elif self.preset == "paper":
                background = ddim(guided(plain, desk.empty, [], None))
            else:
                self.epsilon(plain, path[step], t, desk.empty, memory=(memory := {}))
                background = ddim(guided(plain, desk.empty, ["f", "sa"], memory, min(1, 2 * t / 1000)))
            z = background
            for (_, _, _, mask), result in zip(styles, results):  # painted one over the other, the last on top: (6)
                z = mask * result + (1 - mask) * z
        return z


def area(mask, size):
    return torch.nn.functional.avg_pool2d(mask.double()[None, None], mask.shape[-1] // size)[0, 0]


def touched(mask, size):
    return (torch.nn.functional.interpolate(mask[None, None], (size, size), mode="bilinear")[0, 0] > 0).double()


def painted_masks(side):
    """Two overlapping pictures' masks with soft edges that no latent cell is aligned with."""
    across = torch.linspace(-3, 4, side * 8)
    first, second = across.clamp(0, 1).expand(side * 8, -1), (1 - across.flip(0)).clamp(0, 1).expand(side * 8, -1).T
    return first.contiguous(), second.contiguous()


EXPECTED = {}  # what is asked for again, by all mutants


def error_of_laws(desk, apart, *, steps=4, preset="paper", masks=True, mode="forward", background="auto", layers="auto", features=(3,), attention=(2, 3),
                  two=True, targets=("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "attn2.to_k", "attn2.to_v"), **options):
    """How far the nodes' result is from the literal one."""
    side = desk.latent["samples"].shape[-1]
    loras = [desk.lora(1, targets=targets), desk.lora(2, targets=targets)]
    pictures = painted_masks(side) if masks else (torch.ones(side * 8, side * 8),) * 2
    source = desk.source(mode=mode, steps=steps)
    branches, styles = None, []
    for number in range(2 if two else 1):
        strength = (0.9, -0.6)[number]
        branches = desk.branch(desk.prompts[number], branches, mask=pictures[number][None], lora=loras[number], strength=strength)
        styles.append((loras[number], strength, desk.prompts[number], (touched if preset == "reference" else area)(pictures[number], side)))
    got = desk.sample(source, branches, preset=preset, background=background, layers=layers, **options)
    base = background == "base" or (background == "auto" and preset == "reference")
    asked = (id(desk), steps, preset, masks, mode, base, two, targets, tuple(options.items()))
    if asked not in EXPECTED:
        paper = Literal(desk, features, attention, preset, base=base, **options)
        path = [x.double()[None] * (ABAR[t].sqrt() if step < steps else 1) for step, (x, t) in enumerate(zip(source.latents, [*source.timesteps, 0]))]
        EXPECTED[asked] = paper.sample(path, source.timesteps, styles) / desk.model.model.latent_format.scale_factor
    return apart(got.double(), EXPECTED[asked])


@pytest.mark.parametrize("options", [
    {}, {"masks": False, "two": False}, {"background": "base"}, {"feature_until": 0, "attention_until": 0}, {"mode": "ddim"},
    {"feature_until": 700, "attention_until": 1000}, {"cfg": 5.5, "steps": 3},
    {"targets": ("attn1.to_k", "proj_in", "proj_out", "ff.net.2", "to_out.0", "attn2.to_v")},
], ids=str)
def test_paper(desk, apart, options):
    assert error_of_laws(desk, apart, **options) < TOLERANCE


@pytest.mark.parametrize("options", [{}, {"background": "source"}, {"feature_until": 0, "attention_until": 600}], ids=str)
def test_published_code(desk, apart, options):
    assert error_of_laws(desk, apart, preset="reference", attention=(3,), **options) < 1e-4


def test_stable_diffusion(make_desk, apart):
    """The paper's layers: features 4-11, both attentions 3-11; and the published code's: features 4, self-attention 4-11."""
    desk = make_desk("sd15")
    assert error_of_laws(desk, apart, steps=2, two=False, features=range(4, 12), attention=range(3, 12)) < TOLERANCE
    assert error_of_laws(desk, apart, steps=2, two=False, preset="reference", features=(4,), attention=range(4, 12)) < 1e-4


MUTANTS = {}


def mutant(function):
    MUTANTS[function.__name__] = function
    return function


@mutant
def source_and_edit_exchanged(monkeypatch):
    def plan(rows, routed, original=injection.plan):
        made = original(rows, routed)
        return replace(made, injections=tuple(
            replace(i, source=i.rows.start, rows=slice(i.source, i.source + 1)) for i in made.injections))
    monkeypatch.setattr(injection, "plan", plan)


@mutant
def features_after_the_skip(monkeypatch):
    def modules(model, sites, original=routed.injected_modules):
        return {name.removesuffix(".out_layers.3"): kind for name, kind in original(model, sites).items()}
    monkeypatch.setattr(host, "injected_modules", modules)


@mutant
def loras_on_the_wrong_rows(monkeypatch):
    def plan(rows, routed, original=injection.plan):
        made = original(rows, routed)
        return replace(made, routes={branch: slice(r.start - 1, r.stop - 1) for branch, r in made.routes.items()})
    monkeypatch.setattr(injection, "plan", plan)


@mutant
def lora_on_the_source_too(monkeypatch):
    def plan(rows, routed, original=injection.plan):
        made = original(rows, routed)
        return replace(made, routes={branch: slice(0, r.stop) if branch == 1 else r for branch, r in made.routes.items()})
    monkeypatch.setattr(injection, "plan", plan)


@mutant
def weights_do_not_sum_to_one(monkeypatch):
    monkeypatch.setattr(regions, "region_weights", lambda masks, original=regions.region_weights: (masks, original(masks)[1]))


@mutant
def the_first_style_on_top(monkeypatch):
    def weights(masks, original=regions.region_weights):
        weights, outside = original(masks.flip(0))
        return weights.flip(0), outside
    monkeypatch.setattr(regions, "region_weights", weights)


@mutant
def masks_inverted(monkeypatch):
    monkeypatch.setattr(host, "latent_mask", lambda *a, original=host.latent_mask: 1 - original(*a))


@mutant
def hard_masks(monkeypatch):
    monkeypatch.setattr(host, "latent_mask", lambda *a, original=host.latent_mask: original(*a).round())


@mutant
def windows_exchanged(monkeypatch):
    def rows(*a, feature_until, attention_until, original=injection.step_rows, **options):
        return original(*a, feature_until=attention_until, attention_until=feature_until, **options)
    monkeypatch.setattr(injection, "step_rows", rows)


@mutant
def only_prompts_injected(monkeypatch):
    def rows(*a, original=injection.step_rows, **options):
        return tuple(replace(row, kinds=frozenset()) if row.prompt == "negative" else row for row in original(*a, **options))
    monkeypatch.setattr(injection, "step_rows", rows)


@mutant
def keys_only(monkeypatch):
    monkeypatch.setattr(host, "injected_modules", lambda *a, original=routed.injected_modules: {
        name: kind for name, kind in original(*a).items() if not name.endswith("to_q")})


@mutant
def alpha_forgotten(monkeypatch):
    monkeypatch.setattr(host, "low_rank_pairs", lambda *a, original=host.low_rank_pairs: {
        name: replace(pair, scale=1.0) for name, pair in original(*a).items()})


@mutant
def source_of_the_next_step(monkeypatch):
    def at(self, step, device, original=host.Trajectory.at):
        return original(self, min(step + 1, len(self.sigmas) - 1), device)
    monkeypatch.setattr(host.Trajectory, "at", at)


SETTINGS = dict(feature_until=400, attention_until=600)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_fail(desk, apart, monkeypatch, name):
    MUTANTS[name](monkeypatch)
    assert error_of_laws(desk, apart, **SETTINGS) > 100 * TOLERANCE


def test_mutants_are_put_back(desk, apart):
    assert error_of_laws(desk, apart, **SETTINGS) < TOLERANCE
