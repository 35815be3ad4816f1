"""ZePo's variants on an SD1.5 UNet with random weights inside ComfyUI, and what one run of each costs."""

import contextlib
import gc
import statistics
import time
from dataclasses import replace
from functools import partial
from operator import truediv as ratio
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from torch.utils.flop_counter import FlopCounterMode

from ..attention.features import ConsistencyFeatures
from ..host import seac as host
from ..host.extract import Recorder, extract_features
from ..host.kit.calls import note_call
from ..host.kit.latents import feature_sigma, shared_noise
from ..host.merge import merge_features

KEY = "portrait_atelier.benchmark"
TIMESTEP = 99
CLOCKS = ("seconds", "cpu_seconds")
# The paper's settings, and widget defaults for the rest.
SEAC = dict(style_enhancement=1.2, strength=1.0, start=0.0, end=1.0, layers="auto", mask=None, style_share=0.5,
            per_group=False, cycle=False)


class TinySD15(comfy.supported_models.SD15):
    unet_config = {}
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}


def random_model(tiny: bool):
    """SD1.5's UNet (859.5 million parameters), or one with the same modules and a tenth of the channels; LCM sampling.

    Weights are random: costs do not depend on them. float16 on a GPU, as ComfyUI loads it, float32 on a CPU.
    """
    device = comfy.model_management.get_torch_device()
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    spec = dict(image_size=32, in_channels=4, out_channels=4, model_channels=32 if tiny else 320, channel_mult=[1, 2, 4, 4],
                num_res_blocks=[2] * 4, transformer_depth=[1] * 6 + [0] * 2, transformer_depth_middle=1,
                transformer_depth_output=[1] * 9 + [0] * 3, use_spatial_transformer=True, context_dim=64 if tiny else 768,
                use_linear_in_transformer=False, adm_in_channels=None, legacy=False, dtype=dtype,
                use_temporal_attention=False, use_temporal_resblock=False)
    config = (TinySD15 if tiny else comfy.supported_models.SD15)(spec)
    base = config.get_model({}, device=torch.device("cpu")).eval()
    generator = torch.Generator().manual_seed(0)
    for name, weight in base.diffusion_model.named_parameters():
        weight.requires_grad_(False)
        if weight.ndim > 1:  # keeps the variance
            weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
        else:
            weight.fill_(float(name.endswith("weight")))
    patcher = comfy.model_patcher.ModelPatcher(base, device, comfy.model_management.unet_offload_device())
    return ModelSamplingDiscrete().patch(patcher, "lcm", False)[0]


class Study:
    """One source, one reference and two prompts of random numbers at one size, and the ways to stylize with them."""

    def __init__(self, model, size: int, steps: int, merge: float):
        self.model, self.steps, self.ratio = model, steps, merge
        side = size // 8
        self.source, self.reference = normal(1, 4, side, side, seed=1), normal(1, 4, side, side, seed=2)
        width = model.model.model_config.unet_config["context_dim"]
        self.positive, self.negative = [[normal(1, 77, width, seed=3), {}]], [[normal(1, 77, width, seed=4), {}]]
        self.unmerged = self.extract(self.source)
        self.banks = [merge_features(bank, merge, 0, False) for bank in (self.unmerged, self.extract(self.reference))]
        self.variants = {"plain": self.plain, "cold": self.cold, "warm": self.warm, "recomputed": self.recomputed}

    def extract(self, latent) -> ConsistencyFeatures:
        return extract_features(self.model, latent, self.positive, self.negative, 0, TIMESTEP, "auto")

    def plain(self, meter):
        """Few-step image to image without any of our nodes."""
        return self.sample(self.model, meter)

    def cold(self, meter):
        """The graph with nothing cached: two extractions, two merges, the patch, the sampler."""
        with meter.part("extraction"):
            banks = [merge_features(self.extract(latent), self.ratio, 0, False) for latent in (self.source, self.reference)]
        return self.sample(host.patched(self.model, *banks, **SEAC), meter)

    def warm(self, meter):
        """The graph after a change of lambda: ComfyUI has the features and runs the patch and the sampler."""
        return self.sample(host.patched(self.model, *self.banks, **SEAC), meter)

    def recomputed(self, meter):
        """The same attention with features made anew in every step, by one more model call of 2 pictures x 2 prompts."""
        model = host.patched(self.model, *self.banks, **SEAC)
        mold = model.get_attachment(host.SLOT)

        def renew(executor, x, timestep, model_options={}, seed=None):
            guider = executor.class_obj
            banks = self.fresh_banks(guider, x.device)
            seac = replace(mold, source=banks[0], references=(replace(mold.references[0], bank=banks[1]),))
            options = model_options["transformer_options"]
            renewed = {**options["wrappers"][WrappersMP.APPLY_MODEL], host.SLOT: [partial(host.hook_call, seac)]}
            options = {**options, "wrappers": {**options["wrappers"], WrappersMP.APPLY_MODEL: renewed}}
            return executor(x, timestep, {**model_options, "transformer_options": options}, seed)

        return self.sample(model, meter, renew)

    def fresh_banks(self, guider, device) -> list[ConsistencyFeatures]:
        """What `extract_features` and `merge_features` give for source and reference, in the middle of a sampling run."""
        model = guider.inner_model
        recorder = Recorder(frozenset(self.unmerged.layers), device)
        options = {"transformer_options": {"wrappers": {WrappersMP.APPLY_MODEL: {KEY: [note_call, recorder.listen]}},
                                           "sample_sigmas": torch.zeros(1, device=device)}}
        sigma = feature_sigma(model.model_sampling, TIMESTEP).to(device)
        latents = torch.cat([self.source, self.reference]).to(device)
        noised = model.process_latent_in(latents) + sigma * shared_noise(latents.shape, 0).to(device)
        conds = [guider.conds["positive"], guider.conds["negative"]]
        comfy.samplers.calc_cond_batch(model, conds, noised, sigma.expand(2), options)
        features = [{slot: {layer: rows[i:i + 1] for layer, rows in layers.items()}
                     for slot, layers in recorder.features.items()} for i in range(2)]
        return [merge_features(replace(self.unmerged, features=bank), self.ratio, 0, False) for bank in features]

    def sample(self, model, meter, renew=None):
        """KSampler lcm, simple, guidance 2, denoise 0.5 from the source's latent: [1, 4, height, width]."""
        model = model.clone()

        def step(executor, *args, **kwargs):  # the lcm sampler asks the guider once per step
            with meter.part("step"):
                return executor(*args, **kwargs)

        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, step)
        if renew:  # inside, so that a step's cost contains it
            model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY + ".renew", renew)
        noise = comfy.sample.prepare_noise(self.source, 5)
        return comfy.sample.sample(model, noise, self.steps, 2.0, "lcm", "simple", self.positive, self.negative, self.source,
                                   denoise=0.5, seed=5, disable_pbar=True)

    def bank_bytes(self, merged: bool = True) -> int:
        """Both pictures' features, both prompts."""
        banks = self.banks if merged else [self.unmerged] * 2
        return sum(rows.nbytes for bank in banks for layers in bank.features.values() for rows in layers.values())


class Meter:
    """Counts what runs inside `with`: rows of every UNet call (by a hook on the UNet), seconds by the clock and of this
    process on CPUs, and FLOPs if asked to.

    FLOPs are torch's count of products and convolutions, a multiplication and an addition being two. Counting slows
    a run down, so time and FLOPs come from different runs.
    """

    def __init__(self, model, count_flops: bool = False):
        self.unet, self.device = model.model.diffusion_model, comfy.model_management.get_torch_device()
        self.counter = FlopCounterMode(display=False) if count_flops else None
        self.rows, self.parts = [], []

    def __enter__(self):
        gc.collect()
        self.hook = self.unet.register_forward_pre_hook(lambda module, args: self.rows.append(len(args[0])))
        self.stack = contextlib.ExitStack()
        self.stack.callback(self.hook.remove)
        if self.counter:
            self.stack.enter_context(self.counter)
        self.memory = Memory(self.device)
        self.begin = self.now()
        return self

    def __exit__(self, *error):
        self.total = self.since(self.begin)
        self.peak = self.memory.peak()
        self.stack.close()

    def now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return (len(self.rows), self.counter.get_total_flops() if self.counter else None, time.perf_counter(),
                time.process_time())

    def since(self, before) -> dict:
        calls, flops, seconds, cpu = self.now()
        rows = self.rows[before[0]:]
        return {"rows": sum(rows), "calls": len(rows), "flops": flops and flops - before[1], "seconds": seconds - before[2],
                "cpu_seconds": cpu - before[3]}

    @contextlib.contextmanager
    def part(self, name: str):
        before = self.now()
        yield
        self.parts.append({"part": name, **self.since(before)})


class Memory:
    """Bytes above the start: torch's allocator on CUDA, resident memory on Linux, else None."""

    def __init__(self, device):
        self.cuda = device.type == "cuda"
        try:
            if self.cuda:
                torch.cuda.reset_peak_memory_stats()
                self.start = torch.cuda.memory_allocated()
            else:
                Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
                self.start = self.resident("VmRSS")
        except OSError:
            self.start = None

    def peak(self) -> int | None:
        if self.start is None:
            return None
        return (torch.cuda.max_memory_allocated() if self.cuda else self.resident("VmHWM")) - self.start

    def resident(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def check_counter() -> None:
    """Raises RuntimeError where attention escapes the count: some kernels are unknown to torch's counter."""
    device = comfy.model_management.get_torch_device()
    q = torch.zeros(2, 64, 320, device=device, dtype=torch.float32 if device.type == "cpu" else torch.float16)
    k = torch.zeros_like(q).repeat(1, 2, 1)
    with FlopCounterMode(display=False) as counter:
        optimized_attention(q, k, k, 8)
    expected = 2 * 2 * q.numel() * k.shape[1]
    if counter.get_total_flops() != expected:
        raise RuntimeError(f"the attention {optimized_attention.__name__} is not in torch's FLOP count "
                           f"({counter.get_total_flops()} instead of {expected}): start without it")


def compare(model, size: int, steps: int, merge: float, rounds: int, say) -> dict:
    """Every variant: one run that counts (and warms up), then `rounds` timed ones, variants taking turns.

    All times are None without rounds.
    """
    study = Study(model, size, steps, merge)
    variants, pictures = {}, {}
    for name, run in study.variants.items():
        say(f"{size} px, {steps} steps, merge {merge:g}: counting {name}")
        with Meter(model, count_flops=True) as meter:
            pictures[name] = run(meter)
        variants[name] = {**meter.total, "parts": meter.parts}
    timed = {name: [] for name in study.variants}
    for number in range(rounds):
        names = list(study.variants)
        for name in names[number % 4:] + names[:number % 4]:
            say(f"{size} px, {steps} steps, merge {merge:g}: round {number + 1} of {rounds}, {name}")
            with Meter(model) as meter:
                study.variants[name](meter)
            timed[name].append(meter)
    for name, meters in timed.items():
        variant = variants[name]
        for clock in CLOCKS:
            variant["all_" + clock] = [meter.total[clock] for meter in meters]
            variant[clock] = median(variant["all_" + clock])
            for i, part in enumerate(variant["parts"]):
                part[clock] = median(meter.parts[i][clock] for meter in meters)
        peaks = [meter.peak for meter in meters if meter.peak is not None]
        variant["peak_bytes"] = max(peaks, default=None)
    return {
        "size": size, "steps": steps, "merge": merge, "rounds": rounds, "variants": variants,
        "bank_bytes": study.bank_bytes(), "bank_bytes_unmerged": study.bank_bytes(merged=False),
        "step_flops": step_flops(variants["warm"]) / step_flops(variants["plain"]),
        # Medians over the rounds of the ratio to plain within a round, by either clock.
        "step_time": {clock: median(map(ratio, map(step_time(clock), timed["warm"]), map(step_time(clock), timed["plain"])))
                      for clock in CLOCKS},
        "time": {name: {clock: median(map(ratio, variants[name]["all_" + clock], variants["plain"]["all_" + clock]))
                        for clock in CLOCKS} for name in timed},
        "plain_differs_by": difference(pictures["plain"], pictures["warm"]),
        "recomputed_differs_by": difference(pictures["recomputed"], pictures["warm"]),
    }


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def median(values) -> float | None:
    values = list(values)
    return statistics.median(values) if values else None


def step_flops(variant: dict) -> float:
    return statistics.mean(part["flops"] for part in variant["parts"] if part["part"] == "step")


def step_time(clock: str):
    return lambda meter: statistics.median(part[clock] for part in meter.parts if part["part"] == "step")


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
