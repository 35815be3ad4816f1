"""DiffStyler on an SD1.5 UNet with random weights: whole runs that count UNet rows, and one step made in two ways."""

import copy
import gc
import time
from operator import truediv

import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

from ..attention import injection
from ..host import cross_injection, trajectory
from ..host.routed import Routed
from ._zepo import Meter, difference, median, normal, random_model

RANK = 16
TARGETS = tuple(f"attn{number}.to_{letter}" for number in (1, 2) for letter in "qkv")


class Study:
    """A picture and R styles of random numbers at one size; guidance 2 unless said otherwise."""

    def __init__(self, tiny: bool, size: int):
        self.model = ModelSamplingDiscrete().patch(random_model(tiny), "eps", False)[0]
        self.latent = {"samples": normal(1, 4, size // 8, size // 8, seed=1)}
        width = self.model.model.model_config.unet_config["context_dim"]
        self.empty, self.negative, self.prompt = ([[normal(1, 77, width, seed=seed), {}]] for seed in (2, 3, 4))

    def lora(self, seed: int) -> dict[str, torch.Tensor]:
        """Rank 16 on the queries, keys and values of all attention, as the paper trains."""
        tensors = {}
        for number, (name, module) in enumerate(self.model.model.named_modules()):
            if name.endswith(TARGETS):
                outputs, inputs = module.weight.shape
                tensors[name + ".lora_down.weight"] = normal(RANK, inputs, seed=seed + number) / inputs**0.5
                tensors[name + ".lora_up.weight"] = normal(outputs, RANK, seed=seed + number + 500) / RANK
        return tensors

    def branches(self, styles: int):
        """Styles side by side, each with its strip of the picture."""
        side, found = self.latent["samples"].shape[-1] * 8, []
        for number in range(styles):
            mask = torch.zeros(1, side, side)
            mask[..., side * number // styles:side * (number + 1) // styles] = 1
            found.append(cross_injection.Branch(self.prompt, mask if styles > 1 else None, self.lora(1000 * (number + 1)), f"style {number + 1}", 1.0))
        return found

    def record(self, mode: str, steps: int):
        return trajectory.record(self.model, self.latent, self.empty, mode=mode, steps=steps, fixed_point=0, seed=0, budget=2**30)

    def guider(self, source, styles: int, cfg: float = 2.0, preset: str = "paper"):
        return cross_injection.cross_injection(
            self.model, source, self.branches(styles), self.negative, None, preset=preset, cfg=cfg, feature_until=401, attention_until=501,
            background="auto", layers="auto", rows_per_forward=1024)

    def whole_run(self, styles: int, steps: int, mode: str, cfg: float = 2.0, preset: str = "paper") -> dict:
        """Rows and calls of inversion and sampling, counted at the UNet."""
        with Meter(self.model) as meter:
            with meter.part("inversion"):
                source = self.record(mode, steps)
            with meter.part("sampling"):
                guider, sampler, sigmas, latent, _ = self.guider(source, styles, cfg, preset)
                guider.sample(torch.zeros_like(latent["samples"]), latent["samples"], sampler, sigmas, disable_pbar=True, seed=0)
        inversion, sampling = (part["rows"] for part in meter.parts)
        return {"styles": styles, "steps": steps, "mode": mode, "cfg": cfg, "preset": preset, "inversion": inversion, "sampling": sampling,
                "rows": inversion + sampling, "calls": meter.total["calls"]}

    def step(self, styles: int, timestep: int, rounds: int, say) -> dict:
        """One step's UNet work as one packed call, and as calls of separately patched UNets fed with what the first one stored.

        The separate way keeps a UNet per style in memory, its LoRA in the weights: it pays for no patching, only for its calls.
        """
        job = self.guider(self.record("forward", 1), styles)[0].job
        rows = injection.step_rows(timestep, styles, job.sites, preset="paper", feature_until=401, attention_until=501, guided=True, base=False,
                                   keep_source=False)
        context = {injection.SOURCE: self.empty, injection.NEGATIVE: self.negative, **{str(n): self.prompt for n in range(1, styles + 1)}}
        side = self.latent["samples"].shape[-1]
        x = {row: normal(1, 4, side, side, seed=9 if row.prompt == injection.SOURCE else 8) for row in rows}
        inputs = lambda rows: (torch.cat([x[row] for row in rows]), torch.full((len(rows),), float(timestep)),
                               torch.cat([context[row.prompt][0][0] for row in rows]))
        separate = Separate(self.model.model, job)

        def packed_call():
            x, t, c = inputs(rows)
            with routed.call(injection.plan(rows, frozenset(job.loras))):
                return self.model.model.diffusion_model(x, t, context=c, transformer_options={})

        times, results = {"packed": [], "separate": []}, {}
        for number in range(rounds + 1):
            say(f"{styles} styles, t = {timestep}: round {number} of {rounds}")
            for name in ("packed", "separate") if number % 2 else ("separate", "packed"):
                gc.collect()
                begin = time.perf_counter(), time.process_time()
                if name == "packed":
                    with Routed(self.model.model, job.loras, job.kinds) as routed:
                        results[name] = packed_call()
                else:
                    results[name] = separate(rows, inputs)
                if number:  # the first warms up
                    times[name].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
        found = {"styles": styles, "timestep": timestep, "rows": len(rows), "calls_separate": separate.calls // (rounds + 1),
                 "differ_by": difference(results["packed"], results["separate"])}
        for clock, name in enumerate(("seconds", "cpu_seconds")):
            ours, others = ([pair[clock] for pair in times[way]] for way in ("packed", "separate"))
            found[name] = {"packed": median(ours), "separate": median(others), "ratio": median(map(truediv, ours, others))}
        return found


class Separate:
    """A UNet per style with its LoRA in the weights; the source's features, queries and keys are stored and put in by hooks."""

    def __init__(self, model, job):
        self.calls, self.stored, self.recording, self.open = 0, {}, False, frozenset()
        self.unets = {0: copy.deepcopy(model.diffusion_model)}
        for branch, lora in job.loras.items():
            self.unets[branch] = copy.deepcopy(model.diffusion_model)
            for name, pair in lora.pairs.items():
                weight = self.unets[branch].get_submodule(name.removeprefix("diffusion_model.")).weight
                weight += lora.strength * pair.scale * (pair.up @ pair.down)
        for unet in self.unets.values():
            for name, kind in job.kinds.items():
                unet.get_submodule(name.removeprefix("diffusion_model.")).register_forward_hook(self.hook(name, kind))

    def hook(self, name, kind):
        def store_or_inject(module, inputs, out):
            if self.recording:
                self.stored[name] = out
            elif kind in self.open:
                return self.stored[name].expand_as(out)
        return store_or_inject

    def __call__(self, rows, inputs):
        results = []
        for branch in sorted({row.branch for row in rows}):
            own = [row for row in rows if row.branch == branch]
            self.recording, self.open = branch == 0, own[0].kinds
            x, t, c = inputs(own)
            results.append(self.unets[branch](x, t, context=c, transformer_options={}))
            self.calls += 1
        return torch.cat(results)
