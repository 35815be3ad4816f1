"""Decoupled cross-attention: one object per attn2 slot of the UNet, to which adapters and map transforms are added.

z = Attention(Q, K, V) + the sum of the adapters' branches (FastFace equation (3)). Whatever sat in the slot before is the
first term. Other packs add branches to an occupied slot with `.add`, writing to the very object they find, so every
clone of a model gets its own copies of ours.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ..attention.blocks import LayerId
from ..attention.maps import attention_maps, join_heads
from . import ipadapter_plus
from .kit.calls import KEY, layer_of, name_of, note_calls

# Attachments: a Face Adapter Apply without effect is on the model; the branches that were put into each layer.
ADAPTER_OFF, BRANCHES = f"{KEY}.off", f"{KEY}.branches"


def attend(q, k, v, extra: dict, transform: Callable | None, first_tokens) -> torch.Tensor:
    """Attention(Q, K', V'), or f(A) V' of equation (7) where a transform acts: [rows, queries, channels].

    Only a transform needs the map itself; otherwise the user's attention backend runs.
    """
    heads, precision = extra["n_heads"], extra["attn_precision"]
    if transform is None:
        return optimized_attention(q, k, v, heads, attn_precision=precision, transformer_options=extra)
    dtype = q.dtype
    if precision == torch.float32:
        q, k = q.float(), k.float()
    return join_heads(transform(attention_maps(q, k, heads), v, first_tokens)).to(dtype)


class Branch(Protocol):
    """One adapter. Clones share it; it is never written to."""

    def holds(self, layer: LayerId) -> bool:
        """Whether the adapter acts in this layer."""

    def output(self, text, q, k, v, extra: dict, layer: LayerId, transform: Callable | None) -> torch.Tensor | None:
        """What the adapter adds to `text`, the sum so far, [rows, queries, channels]; None for nothing."""


@dataclass(frozen=True, eq=False)
class AddedBranch:
    """A branch that another pack put into the slot by `.add(callback, **kwargs)`.

    `owner` is our copy of the object it came in, which keeps arguments per device, at place `index`.
    """

    callback: Callable
    kwargs: dict
    owner: object = None
    index: int = 0

    def holds(self, layer):
        return True

    def output(self, text, q, k, v, extra, layer, transform):
        call = extra[KEY]
        if not self.kwargs.get("sigma_end", 0.0) <= call.sigma <= self.kwargs.get("sigma_start", float("inf")):
            return None
        kwargs = self.kwargs
        if hasattr(self.owner, "get_multigpu_kwargs"):
            kwargs = self.owner.get_multigpu_kwargs(q.device)[self.index]
        if transform is not None:
            if ipadapter_plus.recomputable(self.callback, kwargs, extra):
                return ipadapter_plus.branch(q, kwargs, extra, lambda *qkv: attend(*qkv, extra, transform, ipadapter_plus.first_tokens(kwargs)))
            call.run.warn("An adapter of another pack keeps its attention maps to itself (weight type, embeds scaling or batch "
                          "unfolding): it acts unchanged. Use weight type 'linear' and embeds scaling 'V only'.")
        return self.callback(text, q, k, v, extra, **kwargs)


class Slot:
    """attn2_replace. base: the previous occupant, None for the UNet's own attention; transforms: the last for a layer counts."""

    def __init__(self, base: Callable | None = None, branches: tuple[Branch, ...] = (), transforms: tuple = ()):
        self.base, self.branches, self.transforms = base, branches, transforms

    @torch.compiler.disable
    def __call__(self, q, k, v, extra):
        layer = layer_of(extra)
        if self.base is None:
            out = attend(q, k, v, extra, None, ())
        else:
            out = self.base(q, k, v, extra)
        transform = self.transform(layer)
        function = None if transform is None else transform.now(extra[KEY], layer)
        for branch in self.branches:
            extra[KEY].run.reached.add((layer, id(branch)))
            added = branch.output(out, q, k, v, extra, layer, function)
            if added is not None:
                out = out + added
        return out.to(q.dtype)

    def transform(self, layer: LayerId):
        return next((transform for transform in reversed(self.transforms) if layer in transform.layers), None)

    def holds(self, layer: LayerId) -> bool:
        return any(branch.holds(layer) for branch in self.branches)

    def add(self, callback, **kwargs) -> None:
        """What IPAdapter_plus and its relatives call on an occupied slot."""
        self.branches += (AddedBranch(callback, kwargs),)

    def copy(self) -> "Slot":
        return Slot(self.base, self.branches, self.transforms)

    def opened(self) -> "Slot":
        """A slot in which the adapters of the previous occupant are branches, if it is of the kind that lists them."""
        if not adapters_of_another_pack(self.base):
            return self
        base = copy.copy(self.base)  # ours: the original stays as it is
        base.callback, base.kwargs = list(base.callback), [dict(kwargs) for kwargs in base.kwargs]
        if hasattr(base, "multigpu_kwargs"):
            base.multigpu_kwargs = dict(base.multigpu_kwargs)
        branches = [AddedBranch(callback, kwargs, base, index)
                    for index, (callback, kwargs) in enumerate(zip(base.callback, base.kwargs))]
        return Slot(None, (*branches, *self.branches), self.transforms)

    def to(self, *args, **kwargs) -> "Slot":
        """ComfyUI moves patches when it loads the model. Ours move lazily; those of others get the word."""
        for owner in {id(b.owner): b.owner for b in self.branches if isinstance(b, AddedBranch)}.values():
            if hasattr(owner, "to"):
                owner.to(*args, **kwargs)
        if not hasattr(self.base, "to"):
            return self
        base = self.base.to(*args, **kwargs)
        return self if base is self.base else Slot(base, self.branches, self.transforms)


def adapters_of_another_pack(occupant) -> bool:
    """Whether an attn2 replacement is text attention plus a list of callbacks, as IPAdapter_plus and its relatives build it."""
    callbacks, kwargs = getattr(occupant, "callback", None), getattr(occupant, "kwargs", None)
    return isinstance(callbacks, list) and isinstance(kwargs, list) and len(callbacks) == len(kwargs) > 0


def found_in(occupants: dict, layer: LayerId):
    """What acts in a layer: ComfyUI looks up (block, number, index) first and then ignores (block, number)."""
    return occupants.get(layer, occupants.get(layer[:2]))


def slot_key(occupants: dict, layer: LayerId, layers: list[LayerId]) -> tuple:
    """Where to install in a layer: at the key that is taken, else in the arity that IPAdapter_plus looks for.

    ComfyUI looks up (block, number, index) first and then ignores (block, number): taking the other arity would shadow the
    occupant, or hide ours from the next node.
    """
    for key in (layer, layer[:2]):
        if key in occupants:
            return key
    return layer if any(index > 0 for *_, index in layers) else layer[:2]


def occupants(model) -> dict:
    return model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})


def coupled(options: dict) -> bool:
    """Whether rows of a call depend on each other, so that whoever leaves out rows that cannot matter must not."""
    found = options.get("patches_replace", {}).get("attn2", {}).values()
    return any(transform.coupled for slot in found if isinstance(slot, Slot) for transform in slot.transforms)


def change_slots(model, layers: list[LayerId], every_layer: list[LayerId], change: Callable[[Slot], Slot]) -> None:
    """Puts `change(slot)` in place of what sits in the attn2 slots of `layers`; `model` is a fresh clone.

    An occupant that is not ours goes in as the base of a slot. A key that stands for several layers changes once.
    """
    for key in dict.fromkeys(slot_key(occupants(model), layer, every_layer) for layer in layers):
        found = occupants(model).get(key)
        slot = found if isinstance(found, Slot) else Slot(found)
        model.set_model_attn2_replace(change(slot), *key)
    put = {layer: found_in(occupants(model), layer).branches for layer in layers}
    earlier = model.get_attachment(BRANCHES) or {}
    model.set_attachments(BRANCHES, {**earlier, **{layer: tuple({*earlier.get(layer, ()), *found}) for layer, found in put.items()}})
    note_calls(model)
    model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, BRANCHES)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, BRANCHES, check_reached)
    model.remove_callbacks_with_key(CallbacksMP.ON_CLONE, KEY)
    model.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, copy_slots)


def check_reached(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
    """APPLY_MODEL: after the first call of a run, raises ValueError when a later node's patch took a layer and left out our branches.

    Only a call can tell: such a patch may hold what it replaced, and call it.
    """
    out = executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
    call = transformer_options[KEY]
    if call.run.guider is not None and call.run.owns(call.model):
        call.run.kept.once(call.model, BRANCHES, lambda: refuse_lost(call.run, transformer_options))
    return out


def refuse_lost(run, options: dict) -> None:
    put = run.guider.model_patcher.get_attachment(BRANCHES) or {}
    taken = options.get("patches_replace", {}).get("attn2", {})
    lost = {}
    for layer, branches in put.items():
        found = found_in(taken, layer)
        here = found.branches if isinstance(found, Slot) else ()  # a slot that is not called belongs to a block that is skipped
        if any((layer, id(branch)) not in run.reached and branch not in here for branch in branches if branch.holds(layer)):
            lost[layer] = found.base if isinstance(found, Slot) else found
    if lost:
        raise ValueError(f"{name_of(next(iter(lost.values())))} sits where a face adapter was before, in {len(lost)} of {len(put)} "
                         "cross-attention layers, and leaves it out: the person would be lost. Put its node before Face Adapter Apply, or take "
                         "it off this model.")


def copy_slots(old, new) -> None:
    """ON_CLONE: what is added to the clone's slots must not act on the model it was cloned from."""
    slots = occupants(new)
    slots.update({key: slot.copy() for key, slot in slots.items() if isinstance(slot, Slot)})
