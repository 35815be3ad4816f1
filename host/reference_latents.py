"""Reference latents, the pictures that an edit model was given: their weight in attention, and prompts with and without."""

from dataclasses import replace
from functools import partial

import torch
from comfy.patcher_extension import WrappersMP

from ..attention import seac as maths
from ..attention.blocks import LayerId, select_layers
from .kit.calls import KEY, note_calls
from .kit.sites import family
from .kit.transformers import JointAttention, JointSite, class_name, joint_layers, overridden

NODE = "Reference Weight"
# Where reference latents stand right behind the picture, and ComfyUI tells how many tokens they are.
KNOWN = ("flux.model.Flux", "qwen_image.model.QwenImageTransformer2DModel", "krea2.model.SingleStreamDiT")


def with_references(prompt: list, lender: list) -> list:
    """A prompt of a run with reference latents: its own, or those of the first entry of `lender` that has some."""
    lent = next(references(cond) for cond in lender if references(cond))
    return [cond if references(cond) else changed(cond, {**cond["model_conds"], **lent}) for cond in prompt]


def without_references(prompt: list) -> list:
    """A prompt of a run without its reference latents. Text encoders that look at pictures have seen them all the same."""
    found = []
    for cond in prompt:
        taken = references(cond)
        kept = {name: value for name, value in cond["model_conds"].items() if name not in taken}
        found.append(changed(cond, kept) if taken else cond)
    return found


def references(cond: dict) -> dict:
    """What an entry of a prompt gives the model of its reference latents."""
    given = cond["model_conds"]
    return {name: value for name, value in given.items() if name.startswith("ref_")} if "ref_latents" in given else {}


def changed(cond: dict, model_conds: dict) -> dict:
    return {**cond, "model_conds": model_conds}


def weighted(model, weight: float, start: float, end: float, layers: str):
    """A clone of `model` in which tokens of reference latents weigh `weight`, others 1, for the picture's queries.

    That multiplies their attention before it is made to add up to 1: the logits get ln(weight). Nothing is installed for
    a weight of 1 or an empty window or list. Raises ValueError for models without such tokens.
    """
    network = getattr(model.model, "diffusion_model", None)
    if class_name(network) not in KNOWN:
        raise ValueError(f"{NODE} does not know where the reference latents of {family(model)} models stand. It works on Flux.1 "
                         "Kontext, FLUX.2, Qwen-Image-Edit and Krea 2: load one of these.")
    known = list(joint_layers(network))
    chosen = frozenset(select_layers(layers, known))
    clone = model.clone()
    if weight != 1 and start < end and chosen:
        note_calls(clone)
        act = partial(publish, dict.fromkeys(chosen, weight), start, end)
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, f"{KEY}.references", act)  # several multiply
    return clone


def publish(weights: dict[LayerId, float], start: float, end: float, executor, x, t, c_concat=None, c_crossattn=None,
            control=None, transformer_options={}, **kwargs):
    """APPLY_MODEL: tells the call's attention the weights, and sees to it that there is one of ours."""
    options, call = transformer_options, transformer_options[KEY]
    if call.run.owns(call.model) and call.within(start, end):
        both = {layer: call.references.get(layer, 1.0) * weights.get(layer, 1.0) for layer in {*call.references, *weights}}
        call = replace(call, references=both)
        options = {**options, KEY: call}
        if call.attention is None:
            options = overridden(call, options, JointAttention(call, options, weigh))
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


def weigh(site: JointSite, attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
          mask: torch.Tensor | None) -> torch.Tensor | None:
    """The picture's queries where nothing but the weight of references changes; see `JointAttention`."""
    if site.weight == 1:
        return None
    own = maths.Group(site.picture(k), site.picture(v), logits=None if mask is None else site.picture(mask, 2))
    rest = site.seen(k)
    logits = None if mask is None else site.seen(mask, 2)
    groups = [maths.Group(rest, site.seen(v), weights=site.weights(rest), logits=logits), own]
    bias = maths.logit_bias(groups, per_group=False)
    return maths.attend(q, maths.joint_keys(groups), maths.joint_values(groups), site.heads, bias, attention, mask is not None)
