"""Tiny random models with the module tree of SD1.5, SD2.1 and SDXL, on ComfyUI's own UNet class."""

import sys
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models
import comfy.utils
import comfy_extras.nodes_custom_sampler
import comfy_extras.nodes_model_advanced
import pytest
import torch

from portrait_atelier.nodes.consistency_feature_extract import ConsistencyFeatureExtract
from portrait_atelier.nodes.cross_injection import LoRACrossInjection
from portrait_atelier.nodes.mask_blend import FastSAMMaskBlend
from portrait_atelier.nodes.seac_patch import SEACPatch
from portrait_atelier.nodes.source_trajectory import SourceTrajectory
from portrait_atelier.nodes.token_merge import TokenMerge

sys.path.append(str(Path(__file__).parents[1]))  # of tiny_transformers


class TinySD15(comfy.supported_models.SD15):
    unet_config = {}
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}


class TinySD21(comfy.supported_models.SD20):
    unet_config = {}
    unet_extra_config = {"num_heads": -1, "num_head_channels": 16, "attn_precision": torch.float32}


class TinySDXL(comfy.supported_models.SDXL):
    unet_config = {}
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}


COMMON = dict(image_size=32, in_channels=4, out_channels=4, model_channels=32, use_spatial_transformer=True, context_dim=64,
              legacy=False, dtype=torch.float32, use_temporal_attention=False, use_temporal_resblock=False)
SD = dict(COMMON, channel_mult=[1, 2, 4, 4], num_res_blocks=[2] * 4, transformer_depth=[1] * 6 + [0] * 2,
          transformer_depth_middle=1, transformer_depth_output=[1] * 9 + [0] * 3, adm_in_channels=None)
SPECS = {
    "sd15": (TinySD15, dict(SD, use_linear_in_transformer=False)),
    "nano": (TinySD15, dict(COMMON, channel_mult=[1, 2], num_res_blocks=[1] * 2, transformer_depth=[1, 0], transformer_depth_middle=1,
                            transformer_depth_output=[1, 1, 0, 0], adm_in_channels=None, use_linear_in_transformer=False)),
    "sd21": (TinySD21, dict(SD, use_linear_in_transformer=True)),
    "sdxl": (TinySDXL, dict(COMMON, channel_mult=[1, 2, 4], num_res_blocks=[2] * 3, transformer_depth=[0, 0, 2, 2, 10, 10],
                            transformer_depth_middle=10, transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
                            use_linear_in_transformer=True, num_classes="sequential", adm_in_channels=2816)),
}


def build(family: str, seed: int = 0):
    config, spec = SPECS[family]
    model = config(dict(spec)).get_model({}, device=torch.device("cpu")).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.diffusion_model.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.data.fill_(float(name.endswith("weight")))
        parameter.requires_grad_(False)
    management = comfy.model_management
    return comfy.model_patcher.ModelPatcher(model, management.get_torch_device(), management.unet_offload_device())


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Studio:
    """A model with its prompts: what the ComfyUI graph around our nodes does."""

    def __init__(self, model):
        self.model = model
        pooled = {"pooled_output": random(1, 1280, seed=9)}
        self.positive = [[random(1, 77, 64, seed=1), dict(pooled)]]
        self.negative = [[random(1, 77, 64, seed=2), dict(pooled)]]

    def features(self, latent, model=None, negative=True, **options):
        options = {"positive": self.positive, "negative": self.negative if negative else None, **options}
        return ConsistencyFeatureExtract.execute(model or self.model, {"samples": latent}, **options)[0]

    def merge(self, features, **options):
        return TokenMerge.execute(features, **options)[0]

    def patch(self, source, reference, model=None, **options):
        return SEACPatch.execute(model or self.model, reference, source, **options)[0]

    def sample(self, model, latent, steps=2, cfg=2.0, denoise=0.5, sampler="lcm", seed=7, positive=None, negative=None, scheduler="simple"):
        noise = comfy.sample.prepare_noise(latent, seed)
        return comfy.sample.sample(model, noise, steps, cfg, sampler, scheduler, positive or self.positive,
                                   negative or self.negative, latent, denoise=denoise, seed=seed, disable_pbar=True)


class Desk:
    """A model, a picture and prompts: what the ComfyUI graph around DiffStyler's nodes does."""

    def __init__(self, model, side=8):
        self.model = model
        pooled = {"pooled_output": random(1, 1280, seed=9)}
        self.empty, self.negative, *self.prompts = ([[random(1, 77, 64, seed=seed), dict(pooled)]] for seed in (11, 12, 13, 14))
        self.latent = {"samples": random(1, 4, side, side, seed=3)}

    def lora(self, seed=0, rank=4, targets=("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "attn2.to_k", "attn2.to_v"), size=0.5):
        """A LoRA file's tensors for every module whose name ends in one of `targets`."""
        tensors = {}
        for number, (name, module) in enumerate(self.model.model.named_modules()):
            if name.endswith(tuple(targets)):
                wide = module.weight.ndim == 4
                inputs, outputs = module.weight.shape[1], module.weight.shape[0]
                down, up = random(rank, inputs, seed=seed * 1000 + number) / inputs**0.5, random(outputs, rank, seed=seed * 1000 + 500 + number)
                tensors[f"{name}.lora_down.weight"] = down[..., None, None] if wide else down
                tensors[f"{name}.lora_up.weight"] = (up[..., None, None] if wide else up) * size / rank**0.5
                tensors[f"{name}.alpha"] = torch.tensor(rank * 0.8)
        return tensors

    def source(self, model=None, latent=None, prompt=None, mode="forward", steps=4, **options):
        return SourceTrajectory.execute(model or self.model, latent or self.latent, prompt or self.empty, mode=mode, steps=steps, **options)[0]

    def branch(self, prompt=None, branches=None, **options):
        return FastSAMMaskBlend.execute(prompt or self.prompts[0], branches, **options)[0]

    def inject(self, source, branches, model=None, negative=None, cfg=2.0, **options):
        """The outputs of LoRA Cross-Injection."""
        return LoRACrossInjection.execute(model or self.model, source, branches, negative or self.negative, cfg=cfg, **options).result

    def run(self, outputs, noise=None):
        """SamplerCustomAdvanced: the final LATENT's samples."""
        guider, sampler, sigmas, latent, _ = outputs
        noise = noise or comfy_extras.nodes_custom_sampler.DisableNoise.execute()[0]
        return comfy_extras.nodes_custom_sampler.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent)[0]["samples"]

    def sample(self, source, branches, **options):
        return self.run(self.inject(source, branches, **options))


@pytest.fixture(scope="session")
def make_desk():
    """Plain epsilon sampling, as for SD1.5 without LCM."""
    return lambda family="nano", seed=0, side=8: Desk(build(family, seed), side)


@pytest.fixture(scope="session")
def desk(make_desk):
    return make_desk()


def lcm(model):
    return comfy_extras.nodes_model_advanced.ModelSamplingDiscrete().patch(model, "lcm", False)[0]


class BlockLinear(torch.nn.Module):
    """A Linear in the manner of GGUF: its weight is blocks of 8-bit numbers, of a shape of their own, made whole in every call."""

    def __init__(self, linear, block=8):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        blocks = linear.weight.detach().reshape(-1, block)
        self.scales = blocks.abs().amax(1, keepdim=True) / 127
        self.weight = torch.nn.Parameter((blocks / self.scales).round().to(torch.int8), requires_grad=False)

    def whole(self):
        return (self.weight * self.scales).view(self.out_features, self.in_features)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.whole(), self.bias)


@pytest.fixture
def in_blocks():
    """in_blocks(model): attention's Linears become BlockLinear; before, their weights are rounded to what those will hold.

    Yields twice: with rounded weights, then with blocks.
    """
    def in_blocks(model):
        found = {name: module for name, module in model.model.named_modules() if isinstance(module, torch.nn.Linear) and ".attn" in name}
        blocks = {name: BlockLinear(module) for name, module in found.items()}
        for name, module in found.items():
            module.weight = torch.nn.Parameter(blocks[name].whole(), requires_grad=False)
        yield found
        for name, module in blocks.items():
            comfy.utils.set_attr(model.model, name, module)
        assert sum(isinstance(module, BlockLinear) for module in model.model.modules()) == len(blocks) > 0
        yield blocks
    return in_blocks


@pytest.fixture(scope="session")
def build_model():
    return build


@pytest.fixture(scope="session")
def make_studio():
    return lambda family, seed=0: Studio(lcm(build(family, seed)))


@pytest.fixture(scope="session")
def sd15(make_studio):
    return make_studio("sd15")


@pytest.fixture(scope="session")
def sd21(make_studio):
    return make_studio("sd21")


@pytest.fixture(scope="session")
def sdxl(make_studio):
    return make_studio("sdxl")


@pytest.fixture(params=["sd15", "sd21", "sdxl"])
def studio(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def inference():
    """As ComfyUI executes nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def tensor():
    """Seeded random tensors."""
    return random


def difference(a, b) -> float:
    """max|a - b| / max|b|, the measure of every tolerance here."""
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.fixture(scope="session")
def apart():
    return difference


@pytest.fixture(scope="session")
def literal_shares():
    return attention_shares


def attention_shares(model, run, sizes, layer_of) -> dict:
    """Where the attention of a run's pictures went, by a softmax in float64: {(prompt, layer): {name: share}}.

    From what the host's attention was given, as another pack's override sees it: keys with whatever is in them, and
    masks. run(): samples with `model`; sizes(layer): {name: tokens} in the order of the keys, other tokens behind them are
    words; layer_of(extra, queries, tokens): of a call of ours, else None. Means over heads, queries, pictures and steps.
    """
    found = {}

    def watch(func, q, k, v, heads, mask=None, **options):
        extra, axis = options["transformer_options"], 2 if options.get("skip_reshape") else 1
        layer = layer_of(extra, q.shape[axis], k.shape[axis])
        if layer is not None:
            a, b = (x.double() if axis == 2 else x.double().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
            logits = a @ b.transpose(-1, -2) * options.get("scale", a.shape[-1] ** -0.5)
            if mask is not None:
                logits = logits + (mask if mask.ndim == 4 else mask[:, None]).double()
            mass, names = logits.softmax(-1), sizes(layer)
            names = {**names, "words": k.shape[axis] - sum(names.values())}
            slots = extra["cond_or_uncond"]
            for slot, rows in zip(slots, mass.chunk(len(slots))):
                parts = rows.split(list(names.values()), -1)
                found.setdefault((slot, layer), []).append([part.sum(-1).mean().item() for part in parts])
        return func(q, k, v, heads, mask=mask, **options)

    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = watch
    run(model)
    assert found
    return {key: dict(zip([*sizes(key[1]), "words"], torch.tensor(calls).mean(0).tolist())) for key, calls in found.items()}


class Trace:
    """Listens to the modules themselves: what every self-attention layer got and gave, call by call.

    calls: [{"slots", "sigma", "layers": {layer: {"queries": input of to_q, "norm": output of norm1, "out": input of to_out}}}]
    """

    def __init__(self, model):
        self.unet, self.calls, self.handles = model.model.diffusion_model, [], []
        self.modules = {}
        parts = [("input", self.unet.input_blocks), ("middle", [self.unet.middle_block]), ("output", self.unet.output_blocks)]
        for part, blocks in parts:
            for number, block in enumerate(blocks):
                for module in block:
                    for index, layer in enumerate(getattr(module, "transformer_blocks", [])):
                        self.modules[part, number, index] = layer

    def __enter__(self):
        def begin(module, args, kwargs):
            options = kwargs.get("transformer_options", {})
            self.calls.append({"slots": options.get("cond_or_uncond"), "sigma": options.get("sigmas"), "layers": {}})

        self.handles.append(self.unet.register_forward_pre_hook(begin, with_kwargs=True))
        for name, layer in self.modules.items():
            self.handles += [
                layer.norm1.register_forward_hook(lambda m, a, out, name=name: self.put(name, "norm", out)),
                layer.attn1.to_q.register_forward_pre_hook(lambda m, a, name=name: self.put(name, "queries", a[0])),
                layer.attn1.to_out.register_forward_pre_hook(lambda m, a, name=name: self.put(name, "out", a[0])),
            ]
        return self

    def put(self, name, key, value):
        self.calls[-1]["layers"].setdefault(name, {})[key] = value.double()

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


class Literal:
    """Equations (6) to (10) of the paper in float64, written out, on the UNet alone: no ComfyUI sampling, none of our code."""

    def __init__(self, studio, negative=True):
        self.model = studio.model
        self.prompts = [studio.positive, *([studio.negative] if negative else [])]

    def features(self, latent, seed=0, timestep=99):
        """(6) z_t = sqrt(abar) z0 + sqrt(1 - abar) eps;  (7) f = eps_theta(z_t, t, c): {slot: {layer: [images, tokens, C]}}."""
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        abar = torch.cumprod(1 - betas, 0)[timestep]
        z0 = self.model.model.latent_format.process_in(latent.double())
        eps = random(1, *latent.shape[1:], seed=seed).double()
        zt = (abar.sqrt() * z0 + (1 - abar).sqrt() * eps).float()
        bank = {}
        for slot, prompt in enumerate(self.prompts):
            context = prompt[0][0].expand(len(zt), -1, -1)
            extra = {}
            if self.model.model.diffusion_model.num_classes is not None:
                height, width = latent.shape[-2] * 8, latent.shape[-1] * 8
                extra["y"] = self.model.model.encode_adm(pooled_output=prompt[0][1]["pooled_output"], height=height, width=width,
                                                         device="cpu").expand(len(zt), -1)
            with Trace(self.model) as trace:
                self.model.model.diffusion_model(zt, torch.full((len(zt),), float(timestep)), context=context,
                                                 transformer_options={}, **extra)
            bank[slot] = {layer: seen["norm"] for layer, seen in trace.calls[0]["layers"].items()}
        return bank

    def attention(self, layer, queries, groups):
        """(8) K = [lambda_g K_g], V = [V_g];  (9) A = softmax(Q K^T / sqrt(d));  (10) phi = A V, for one row.

        queries: [tokens, C]; groups: [(features [tokens, C], lambda)].
        """
        attn = layer.attn1
        q = torch.nn.functional.linear(queries, attn.to_q.weight.double())
        bias = None if attn.to_k.bias is None else attn.to_k.bias.double()
        k = torch.cat([lam * torch.nn.functional.linear(f, attn.to_k.weight.double(), bias) for f, lam in groups])
        v = torch.cat([torch.nn.functional.linear(f, attn.to_v.weight.double()) for f, _ in groups])
        heads, d = attn.heads, q.shape[-1] // attn.heads
        out = []
        for h in range(heads):
            cut = slice(h * d, (h + 1) * d)
            a = torch.softmax(q[:, cut] @ k[:, cut].T / d**0.5, dim=-1)
            out.append(a @ v[:, cut])
        return torch.cat(out, -1)

    def worst(self, trace, controlled):
        """Largest relative error over all calls, layers and rows.

        controlled(call index, sigma, layer, slot, target) -> groups of `attention`, or None for plain self-attention.
        """
        worst = 0.0
        for number, call in enumerate(trace.calls):
            for name, seen in call["layers"].items():
                rows = len(seen["queries"]) // len(call["slots"])
                for row, queries in enumerate(seen["queries"]):
                    slot, target = call["slots"][row // rows], row % rows
                    groups = controlled(number, float(call["sigma"][0]), name, slot, target) or [(queries, 1.0)]
                    expected = self.attention(trace.modules[name], queries, groups)
                    worst = max(worst, difference(seen["out"][row], expected))
        return worst


@pytest.fixture(scope="session")
def trace():
    return Trace


@pytest.fixture(scope="session")
def literal():
    return Literal
