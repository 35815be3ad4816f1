"""Row-aware modules: LoRAs that act on some rows of a call only, and outputs that rows take over from a source row.

    y = f(x);  y[rows_i] += strength_i * scale_i * up_i(down_i(x[rows_i]));  y[rows] = r * y[source] + (1 - r) * y[rows]

Forward hooks do it, so weights of any storage (fp8, GGUF, offloaded) stay as they are and modules are only called. Overwriting
projected queries and keys gives the source's attention map without storing it and leaves the attention-replace slots to others.
Hooks exist during one sampling run and act during one call: the plan is set for that thread and taken away in `finally`.
"""

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import comfy.utils
import torch
import torch.nn.functional as F
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, Upsample

from ..attention.injection import Plan, Sites
from .adapters import LowRank
from .kit.calls import Kept
from .kit.sites import blocks


@dataclass(frozen=True, eq=False)
class Lora:
    """A branch's LoRA: pairs by module name, and the strength they are multiplied with."""

    pairs: Mapping[str, LowRank]
    strength: float


def decoder(model) -> tuple[int, int]:
    """How many decoder blocks a ModelPatcher's UNet has, and the first one above the lowest resolution."""
    blocks = model.model.diffusion_model.output_blocks
    raised = [number for number, block in enumerate(blocks) if any(isinstance(module, Upsample) for module in block)]
    return len(blocks), raised[0] + 1 if raised else 0


def injected_modules(model, sites: Sites) -> dict[str, str]:
    """Module name -> kind ("f", "sa", "ca") of everything that `sites` names; `model` is the ModelPatcher's inner model."""
    names = {module: name for name, module in model.named_modules()}
    unet, found = model.diffusion_model, {}
    for number in sites.features:
        # The last convolution of the ResBlock, before the skip connection is added.
        found[names[next(module for module in unet.output_blocks[number] if isinstance(module, ResBlock)).out_layers[3]]] = "f"
    for name, layer in blocks(unet).items():
        for kind, layers, attention in (("sa", sites.self_attention, layer.attn1), ("ca", sites.cross_attention, layer.attn2)):
            if name in layers:
                found |= {names[attention.to_q]: kind, names[attention.to_k]: kind}
    return found


@dataclass(eq=False)
class Routed:
    """Hooks on a model for one sampling run: ``with Routed(model, loras, kinds) as routed: with routed.call(plan): ...``

    model: the inner model of a ModelPatcher; loras: by branch; kinds: see `injected_modules`. Idle hooks change nothing.
    """

    model: torch.nn.Module
    loras: Mapping[int, Lora]
    kinds: Mapping[str, str]
    handles: list = field(default_factory=list)
    kept: Kept = field(default_factory=Kept)
    local: threading.local = field(default_factory=threading.local)

    def __enter__(self):
        try:
            for name in dict.fromkeys([*self.kinds, *(name for lora in self.loras.values() for name in lora.pairs)]):
                module = comfy.utils.get_attr(self.model, name)
                self.handles.append(module.register_forward_hook(self._hook(name)))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        while self.handles:
            self.handles.pop().remove()
        self.kept.clear()

    @contextlib.contextmanager
    def call(self, plan: Plan):
        """Around one model call with `len(plan.rows)` rows. Raises ValueError when some hook was not reached."""
        self.local.plan, self.local.reached = plan, set()
        try:
            yield
            missed = len(self.handles) - len(self.local.reached)
            if missed:
                raise ValueError(f"LoRA Cross-Injection did not reach {missed} of {len(self.handles)} modules: another patch skips them or the "
                                 "model was compiled before. Take Torch Compile and block-skipping nodes off this model.")
        finally:
            self.local.plan = None

    def _hook(self, name: str):
        kind = self.kinds.get(name)
        routes = {branch: (lora.pairs[name], lora.strength) for branch, lora in self.loras.items() if name in lora.pairs}

        @torch.compiler.disable
        def route(module, inputs, out):
            plan = getattr(self.local, "plan", None)
            if plan is None:
                return
            self.local.reached.add(name)
            if out.shape[0] != len(plan.rows):
                raise ValueError(f"LoRA Cross-Injection expected {len(plan.rows)} rows in {name}, but found {out.shape[0]}: another "
                                 "patch (HyperTile?) regroups them. Take it off this model.")
            for branch, rows in plan.routes.items():
                if branch in routes:
                    pair, strength = routes[branch]
                    out[rows] += self._low_rank(pair, inputs[0][rows], out.dtype) * (strength * pair.scale)
            for injection in plan.injections:
                if kind in injection.kinds:
                    ratio = injection.ratio if kind == "sa" else 1.0
                    taken = out[injection.source:injection.source + 1].clone()
                    out[injection.rows] = taken if ratio == 1 else ratio * taken + (1 - ratio) * out[injection.rows]

        return route

    def _low_rank(self, pair: LowRank, x: torch.Tensor, dtype) -> torch.Tensor:
        up, down = (self.kept.moved(half, x.device, dtype) for half in (pair.up, pair.down))
        x = x.to(dtype)
        if x.ndim == 4:
            return F.conv2d(F.conv2d(x, down[:, :, None, None]), up[:, :, None, None])
        return F.linear(F.linear(x, down), up)
