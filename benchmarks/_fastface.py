"""FastFace on SDXL's UNet with random weights: rows of whole runs, and what one step costs with and without transformed maps."""

import gc
import time
import weakref
from dataclasses import dataclass
from operator import truediv

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..host import attention_maps, decoupled, decoupled_guidance, face_adapter
from ..host.attention_processors import cross_attention_numbers
from ..host.kit.calls import KEY, Call, Run
from ..host.kit.sites import blocks
from ..identity.adapter import FaceAdapter
from ..identity.faces import FaceIdentity
from ..identity.projection import FaceProjection
from ._zepo import Meter, median, normal

TOKENS = 4  # of one person, as FaceID has them
CLOCKS = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
PER_ELEMENT = 10  # FLOPs taken for one element of one element-wise operation, a softmax or a sigmoid too: meant to be too many
BRANCH, AM1, AM2 = "adapter", "Scale-Power", "Scheduled-Softmax"
ALPHA, BETA = (1.0, 1.5, 1.5, 1.0), (1.0, 3.0, 3.0, 1.0)


class TinySDXL(comfy.supported_models.SDXL):
    unet_config = {}
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}


def random_model(tiny: bool, meta: bool = False):
    """SDXL's UNet (2567 million parameters), or one with the same modules, a tenth of the channels and fewer layers.

    Weights are random and those of equal shape are the same tensor, so that the full size takes 0.7 GB: costs do not depend
    on what weights say. meta: float16 without any content, for counting what a GPU would be asked to do.
    """
    device = comfy.model_management.get_torch_device()
    dtype = torch.float32 if device.type == "cpu" and not meta else torch.float16
    blocks, depths = (1, (0, 1, 1)) if tiny else (2, (0, 2, 10))  # per level of the UNet
    spec = dict(image_size=32, in_channels=4, out_channels=4, model_channels=32 if tiny else 320, channel_mult=[1, 2, 4],
                num_res_blocks=[blocks] * 3, transformer_depth=[depth for depth in depths for _ in range(blocks)],
                transformer_depth_middle=depths[-1], transformer_depth_output=[depth for depth in depths for _ in range(blocks + 1)],
                use_spatial_transformer=True,
                context_dim=64 if tiny else 2048, use_linear_in_transformer=True, num_classes="sequential", adm_in_channels=2816,
                legacy=False, dtype=dtype, use_temporal_attention=False, use_temporal_resblock=False)
    base = (TinySDXL if tiny else comfy.supported_models.SDXL)(spec).get_model({}, device=torch.device("meta")).eval().requires_grad_(False)
    if not meta:
        fill(base.diffusion_model, device, dtype)
    return comfy.model_patcher.ModelPatcher(base, device, comfy.model_management.unet_offload_device())


def fill(unet, device, dtype) -> None:
    made = {}
    for module in unet.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            key = (tuple(weight.shape), name)
            if key not in made:  # matrices keep the variance
                value = normal(*weight.shape, seed=len(made)) * weight[0].numel() ** -0.5 if weight.ndim > 1 else torch.full(
                    weight.shape, float(name == "weight"))
                made[key] = torch.nn.Parameter(value.to(device, dtype), requires_grad=False)
            setattr(module, name, made[key])


def random_adapter(model) -> FaceAdapter:
    """A FaceID adapter that fits, without LoRA; keys and values of equal shape are the same tensors."""
    width = model.model.model_config.unet_config["context_dim"]
    layers = {layer: block.attn2.to_k.out_features for layer, block in blocks(model.model.diffusion_model).items()}
    made = {size: (normal(size, width, seed=1) * width**-0.5, normal(size, width, seed=2) * width**-0.5) for size in set(layers.values())}
    projection = FaceProjection({"proj.0.weight": normal(64, 512, seed=3), "proj.0.bias": torch.zeros(64), "norm.weight": torch.ones(width),
                                 "proj.2.weight": normal(TOKENS * width, 64, seed=4), "proj.2.bias": torch.zeros(TOKENS * width),
                                 "norm.bias": torch.zeros(width)})
    return FaceAdapter("random", "sdxl", width, False, "v1", None, projection,
                       {number: made[layers[layer]] for number, layer in cross_attention_numbers(model).items()}, {})


class Study:
    """A model with a person on it, and that with either transform, at the nodes' defaults."""

    def __init__(self, tiny: bool, meta: bool = False):
        self.model = random_model(tiny, meta)
        width = self.model.model.model_config.unet_config["context_dim"]
        adapter = random_adapter(self.model)
        person = FaceIdentity(torch.nn.functional.normalize(normal(1, 512, seed=5)))
        model = face_adapter.patched(self.model, adapter, person, weight=0.8, lora_strength=0.0, shortcut=1.0, start=0.0, end=1.0, mask=None,
                                     skip_middle=False)
        soft = (model, "d,u", 0.0, 1.0, (7.5, 5.0, 5.0, 5.0), (1.0, 1.55, 1.55, 1.55), 0.65, 0.3)
        self.models = {BRANCH: model, AM1: attention_maps.scale_power(model, "d,u", 0.0, 1.0, 1.3, (1.55,), (1.45,)),
                       AM2: attention_maps.scheduled_softmax(*soft, False)}
        self.published = attention_maps.scheduled_softmax(*soft, True)
        pooled = {"pooled_output": normal(1, 1280, seed=6)}
        self.positive, self.negative = ([[normal(1, 77, width, seed=seed), pooled]] for seed in (7, 8))

    def guided(self, model, rescale_all: bool = False):
        return decoupled_guidance.patched(model, decoupled_guidance.DecoupledCFG("DCG_2", ALPHA, BETA, 0.75, rescale_all, False))

    def rows(self) -> dict[str, list[int]]:
        """UNet rows of every call of whole 4-step runs, {run: [rows, ...]}."""
        runs = {"person, CFG 1": (self.models[BRANCH], 1.0), f"{AM1}, CFG 1": (self.models[AM1], 1.0), f"{AM2}, CFG 1": (self.models[AM2], 1.0),
                "CFG 2": (self.models[BRANCH], 2.0), "Decoupled CFG": (self.guided(self.models[BRANCH]), 1.0),
                f"Decoupled CFG, {AM1}": (self.guided(self.models[AM1]), 1.0),
                "Decoupled CFG, rescale all": (self.guided(self.models[BRANCH], True), 1.0),
                "Decoupled CFG, all rows": (self.guided(self.published, True), 1.0)}
        found, latent = {}, normal(1, 4, 8, 8, seed=9)
        for name, (model, cfg) in runs.items():
            with Meter(model) as meter:
                comfy.sample.sample(model, latent, 4, cfg, "euler", "simple", self.positive, self.negative, torch.zeros_like(latent), denoise=1.0,
                                    seed=5, disable_pbar=True)
            found[name] = meter.rows
        return found

    def step(self, model, size: int, **options) -> None:
        """The UNet once for one row of `size` pixels, in the second of four steps."""
        base, unet = model.model, model.model.diffusion_model
        weight = next(unet.parameters())
        side, to = size // 8, dict(device=weight.device, dtype=weight.dtype)
        sigma = float(base.model_sampling.percent_to_sigma(0.25))
        call = Call(Run((side, side)), base, sigma, 1, 4, (0,), (0,))
        unet(torch.empty(1, 4, side, side, **to).normal_(), torch.full((1,), 749.0, device=weight.device), context=self.positive[0][0].to(**to),
             y=torch.empty(1, 2816, **to).normal_(),
             transformer_options={**model.model_options["transformer_options"], "cond_or_uncond": [0], "sigmas": torch.tensor([sigma]),
                                  KEY: call, **options})

    def count(self, size: int) -> dict:
        """What a step asks of the device, counted on tensors without content."""
        found = {}
        for name, model in self.models.items():
            with Tally() as tally:
                self.step(around(model, lambda branch: Watched(branch, tally)), size, optimized_attention_override=tally.attention)
            found[name] = {key: getattr(tally, key) for key in ("products", "elements", "operations", "peak_bytes", "branch_bytes", "map_bytes")}
        plain = found[BRANCH]
        work = {name: variant["products"] + PER_ELEMENT * variant["elements"] for name, variant in found.items()}
        return {"size": size, "variants": found,
                "flops_added": {name: (work[name] - work[BRANCH]) / plain["products"] for name in (AM1, AM2)},
                "peak_added": {name: found[name]["peak_bytes"] - plain["peak_bytes"] for name in (AM1, AM2)},
                "maps_added": {name: (found[name]["branch_bytes"] - plain["branch_bytes"]) / found[name]["map_bytes"] for name in (AM1, AM2)}}

    def time(self, size: int, rounds: int, say) -> dict:
        """Steps of the three kinds in turn, and in other steps each layer's adapter in three ways directly after one another."""
        whole = {name: [] for name in self.models}
        duels = []
        self.step(self.models[AM2], min(size, 256))  # warms up
        for number in range(rounds):
            names = list(self.models)
            for name in names[number % 3:] + names[:number % 3]:
                say(f"{size} px: round {number + 1} of {rounds}, {name}")
                gc.collect()
                whole[name].append(clocked(lambda name=name: self.step(self.models[name], size)))
            say(f"{size} px: round {number + 1} of {rounds}, layer by layer")
            duels.append(self.duel(size))
        return {"size": size, "rounds": rounds, "steps": whole, "layers": duels,
                "step_ratio": {name: {clock: median(map(truediv, pick(whole[name], clock), pick(whole[BRANCH], clock))) for clock in CLOCKS}
                               for name in (AM1, AM2)},
                "layer_ratio": {name: {clock: median(layer_ratio(duel, name, clock) for duel in duels) for clock in CLOCKS}
                                for name in (AM1, AM2)}}

    def duel(self, size: int) -> dict:
        """One step in which every layer's adapter is computed in all ways: what the step took, and each way in all its layers."""
        transforms = {name: next(slot.transforms[-1] for slot in decoupled.occupants(self.models[name]).values() if slot.transforms)
                      for name in (AM1, AM2)}
        spent = {name: dict.fromkeys(CLOCKS, 0.0) for name in self.models}
        model = around(self.models[BRANCH], lambda branch: Dueling(branch, transforms, spent))
        return {"step": clocked(lambda: self.step(model, size)), **spent}


def clocked(run) -> dict[str, float]:
    wait = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    wait()
    begin = {clock: now() for clock, now in CLOCKS.items()}
    run()
    wait()
    return {clock: now() - begin[clock] for clock, now in CLOCKS.items()}


def pick(runs: list[dict], clock: str) -> list[float]:
    return [run[clock] for run in runs]


def layer_ratio(duel: dict, name: str, clock: str) -> float:
    """A step with this transform to one without: what the layers took more, on top of the step without the extra ways."""
    step = duel["step"][clock] - duel[AM1][clock] - duel[AM2][clock]
    return 1 + (duel[name][clock] - duel[BRANCH][clock]) / step


def around(model, wrap):
    """A clone in which `wrap(branch)` stands in place of every branch."""
    clone = model.clone()
    for slot in decoupled.occupants(clone).values():
        slot.branches = tuple(map(wrap, slot.branches))
    return clone


@dataclass(frozen=True, eq=False)
class Dueling:
    """A branch that is computed without a transform and with each, the order rotating; the step gets what has none."""

    branch: decoupled.Branch
    transforms: dict
    spent: dict

    def output(self, text, q, k, v, extra, layer, transform):
        out, names = {}, list(self.spent)
        functions = {name: chosen.now(extra[KEY], layer) for name, chosen in self.transforms.items() if layer in chosen.layers}
        if not functions:
            return self.branch.output(text, q, k, v, extra, layer, None)
        turn = sum(layer[1:]) % len(names)
        for name in names[turn:] + names[:turn]:
            def run(name=name):
                out[name] = self.branch.output(text, q, k, v, extra, layer, functions.get(name))

            for clock, seconds in clocked(run).items():
                self.spent[name][clock] += seconds
        return out[BRANCH]


@dataclass(frozen=True, eq=False)
class Watched:
    """A branch whose memory is noted: the most that it has in use at once, its result included, and one map, over all layers."""

    branch: decoupled.Branch
    tally: "Tally"

    def output(self, text, q, k, v, extra, layer, transform):
        tally, begin = self.tally, self.tally.live
        tally.highest = begin
        out = self.branch.output(text, q, k, v, extra, layer, transform)
        tally.branch_bytes = max(tally.branch_bytes, tally.highest - begin)
        tally.map_bytes = max(tally.map_bytes, q.shape[0] * extra["n_heads"] * q.shape[1] * TOKENS * 4)
        return out


class Tally(TorchDispatchMode):
    """Counts what runs inside `with`, also on the device "meta", which computes nothing.

    products: FLOPs of products and convolutions, a multiply-add being two, attention among them.
    elements: of the largest tensor of every other operation that computes. operations: all that compute.
    peak_bytes: the most memory in use at once by tensors made inside. Attention counts as one fused operation.
    """

    def __init__(self):
        super().__init__()
        self.products = self.elements = self.operations = self.live = self.highest = self.peak_bytes = self.branch_bytes = self.map_bytes = 0
        self.known = set()

    def attention(self, function, q, k, v, heads, *args, **kwargs):
        """optimized_attention_override."""
        self.products += 4 * q.numel() * k.shape[1]
        self.operations += 1
        return torch.empty_like(q)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, packet = kwargs or {}, function.overloadpacket
        if packet not in flop_registry:
            with self:
                out = function.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = function(*args, **kwargs)
        made, given = ([x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)] for tree in (out, (args, kwargs)))
        old = {x.untyped_storage()._cdata for x in given}
        for tensor in made:
            if tensor.untyped_storage()._cdata not in old:
                self.hold(tensor.untyped_storage())
        if not function.is_view and "empty" not in function.name() and "_unsafe_view" not in function.name():
            self.operations += 1
            if packet in flop_registry:
                self.products += flop_registry[packet](*args, **kwargs, out_val=out)
            else:
                self.elements += max((x.numel() for x in made + given), default=0)
        return out

    def hold(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.live += size
            self.highest, self.peak_bytes = max(self.highest, self.live), max(self.peak_bytes, self.live)
            weakref.finalize(storage, self.release, key, size)

    def release(self, key, size) -> None:
        self.known.discard(key)
        self.live -= size
