"""SEAC inside ComfyUI: installing and chaining the patch, and its attention hooks, for UNets and for transformers.

The model gets one wrapper. Around each denoiser call it adds the attention hook to a copy of that call's options, where it can
see which layers belong to others. Keys and values of source and references are made once per run.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP

from ..attention import seac as maths
from ..attention.blocks import LayerId, layer_name, select_layers
from ..attention.features import UNCOND, ConsistencyFeatures
from .kit.calls import KEY, Call, layer_of, note_calls
from .kit.latents import fingerprint
from .kit.masks import Region
from .kit.sites import blocks, family, kept_layers
from .kit.transformers import JointAttention, JointSite, architecture, overridden
from .log import log
from .reference_latents import weigh

NODE = "SEAC Patch"
SLOT = f"{KEY}.seac"  # of the wrapper and the attachment
# What stays on the device of a transformer's bank, for all its prompts (a UNet's is a tenth of that); later layers are
# fetched in every call.
KEPT_BYTES = 2**30
# What tokens are of, in a report; references have a number.
PICTURE, SOURCE, WORDS = "picture", "source", "words"
TRACE = f"{KEY}.trace"  # of the record that SEAC Trace puts among a run's options


@dataclass(frozen=True, eq=False)
class Reference:
    """One reference of a SEAC patch; every field is a widget of the node or follows from one.

    number counts the SEAC Patches of a model from 1; gain scales the reference's weight against the source; start and end
    are fractions of the full schedule; with `cycle`, picture i of the bank serves target i only.
    """

    number: int
    bank: ConsistencyFeatures
    layers: frozenset[LayerId]
    enhancement: float
    share: float
    gain: float
    start: float
    end: float
    region: Region
    cycle: bool


@dataclass(frozen=True, eq=False)
class SEAC:
    """A source, None for the sampled picture itself, and its references. Shared by clones, never written to.

    idle: the numbers of references that cannot act, and why
    """

    source: ConsistencyFeatures | None
    references: tuple[Reference, ...]
    strength: float
    per_group: bool
    idle: tuple[tuple[int, str], ...] = ()


def patched(model, source: ConsistencyFeatures | None, reference: ConsistencyFeatures, *, style_enhancement: float,
            strength: float, style_share: float, start: float, end: float, layers: str, mask: torch.Tensor | None,
            per_group: bool, cycle: bool):
    """A clone of `model` whose self-attention looks at `source` and `reference` (ZePo equations 8 to 10).

    Without a source the picture's own tokens take its place. On a model that has a SEAC patch already, an empty source
    adds one more reference to it. Nothing is installed when the strength is 0 or the window or the layers are empty.
    Raises ValueError for what does not fit.
    """
    infos = kept_layers(model)
    region = Region.of(NODE, mask)
    earlier = model.get_attachment(SLOT)
    if source is not None and earlier is not None:
        raise ValueError("This model already has a SEAC Patch with a source. Leave 'source' empty to add a reference to it, "
                         "or connect the model from before that patch.")
    if isinstance(earlier, str):  # switched off, and why
        return model.clone()
    base = source if earlier is None else earlier.source
    banks = {name: bank for name, bank in (("source", base), ("reference", reference)) if bank is not None}
    for name, bank in banks.items():
        check_fit(model, infos, name, bank)
    shared = [layer for layer in reference.layers if base is None or layer in set(base.layers)]
    chosen = select_layers(layers, list(infos), auto=shared)
    missing = [layer for layer in chosen if layer not in set(shared)]
    if missing:
        raise ValueError(f"SEAC Patch: layers '{layers}' include {layer_name(missing[0], list(infos))}, which the features do not hold. "
                         "Name it in 'layers' of both Consistency Feature Extract nodes, or use 'auto'.")
    if start >= end:
        log.warning("SEAC Patch: start %.3g is not before end %.3g, so it has no effect.", start, end)

    clone = model.clone()
    number = 1 if earlier is None else 1 + len(earlier.references) + len(earlier.idle)
    why = "its strength is 0" if strength == 0 else "its 'layers' name none" if not chosen else ""
    why = f"its start, {start:g}, is not before its end, {end:g}" if start >= end else why
    if why:
        clone.set_attachments(SLOT, why if earlier is None else replace(earlier, idle=(*earlier.idle, (number, why))))
        return clone
    warn_about_differences(model, banks)
    added = Reference(number, reference, frozenset(chosen), style_enhancement, style_share, 1.0, start, end, region, cycle)
    if earlier is None:
        install(clone, SEAC(base, (added,), strength, per_group))
    else:
        if per_group != earlier.per_group:
            log.warning("SEAC Patch: 'balance' is taken from the first SEAC Patch of this model.")
        install(clone, replace(earlier, references=(*earlier.references, replace(added, gain=strength))))
    return clone


def check_fit(model, infos, name: str, bank: ConsistencyFeatures) -> None:
    for layer in bank.layers:
        if layer not in infos or infos[layer] != bank.channels(layer):
            raise ValueError(f"The {name} features were extracted from a model of family {bank.family}, but this model is "
                             f"{family(model)} with other layers. Extract them with the model that samples.")


def warn_about_differences(model, banks: dict[str, ConsistencyFeatures]) -> None:
    if len({bank.timestep for bank in banks.values()}) > 1:
        log.warning("SEAC Patch: source features were extracted at timestep %d, reference features at %d.",
                    *(bank.timestep for bank in banks.values()))
    now = fingerprint(model)[1]
    if any(bank.weights_id != now for bank in banks.values()):
        log.warning("SEAC Patch: the features were extracted with other weights or LoRAs than those of this model. "
                    "Extract from the model that samples, after its LoRAs.")


def install(model, seac: SEAC) -> None:
    """Puts the patch on `model`, a fresh clone, in place of an earlier one."""
    remove_seac(model)
    note_calls(model)
    model.set_attachments(SLOT, seac)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, SLOT, partial(hook_call, seac))


def name_of(reference: Reference) -> str:
    return f"reference {reference.number}"


def remove_seac(model) -> None:
    """Takes SEAC off a clone, wrapper and attachment."""
    model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, SLOT)
    model.remove_attachments(SLOT)


def hook_call(seac: SEAC, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
    """APPLY_MODEL: adds our hook to a copy of one call's options, on layers that nobody else replaced."""
    call = transformer_options[KEY]
    if call.run.owns(call.model):
        transformer_options = hooked(seac, call, transformer_options)
    return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


def hooked(seac: SEAC, call: Call, options: dict) -> dict:
    for reference in seac.references:
        reference.region.check(call)
    active = [reference for reference in seac.references if call.within(reference.start, reference.end)]
    check_texts(seac, call.texts, active)
    record = options.get(TRACE)
    if record is not None:
        record.note(call, active)
    control = Control(seac, call, active, record)
    if architecture(call.model.diffusion_model) is not None:
        return overridden(call, options, JointAttention(call, options, control.joint))
    # Also outside of all windows: a compiled model does not look again. (block, number) keys: a key with a layer index would
    # shadow whatever a later node puts on the block.
    ours = {layer[:2]: attend for reference in seac.references for layer in reference.layers}
    replaced = options.get("patches_replace", {})
    return {**options, "patches_replace": {**replaced, "attn1": {**ours, **replaced.get("attn1", {})}},
            KEY: replace(call, attention=control)}


def check_texts(seac: SEAC, texts: Sequence[int], active: Sequence[Reference]) -> None:
    banks = [] if seac.source is None else [("source", seac.source)]
    for name, bank in [*banks, *(("reference", r.bank) for r in active)]:
        if active and UNCOND in texts and UNCOND not in bank.features:
            raise ValueError(f"SEAC Patch: sampling evaluates a negative prompt, but the {name} features have none. "
                             "Connect 'negative' to Consistency Feature Extract or set CFG 1.")


@dataclass(frozen=True, eq=False)
class UNetSite:
    """One self-attention layer of a UNet in one call, on a grid of tokens."""

    call: Call
    layer: LayerId
    grid: tuple[int, int]
    heads: int
    place = ()  # its keys are not turned by where they stand

    def projected(self, features: torch.Tensor, places, grid, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of stored features in `like`'s precision, [images, tokens, channels] each."""
        model = self.call.model
        attention = self.call.run.kept.once(model, SLOT, lambda: blocks(model.diffusion_model))[self.layer].attn1
        near = features.to(like.device, like.dtype)
        # Not through forward hooks: those of LoRA Cross-Injection route the rows of a call; these are not among them.
        return attention.to_k.forward(near), attention.to_v.forward(near)


@dataclass(frozen=True, eq=False)
class Control:
    """SEAC in one model call: the references whose window holds its sigma, and the record of a SEAC Trace."""

    seac: SEAC
    call: Call
    active: list[Reference]
    record: object = None

    def groups(self, site: UNetSite | JointSite, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
               logits: torch.Tensor | None = None) -> list[maths.Group] | None:
        """What the picture's queries attend to of pictures, or None to leave the layer; k, v and logits are its own."""
        active = [reference for reference in self.active if site.layer in reference.layers]
        if not active:
            return None
        placed = [(reference, None if reference.region.mask is None else reference.region.at(self.call, q, site.grid))
                  for reference in active]
        placed = [(reference, mask) for reference, mask in placed if mask is not None or reference.region.mask is None]
        if not placed:
            return None
        own, source, others = maths.group_shares(
            self.seac.strength, [maths.ReferenceShare(r.share, r.gain, mask) for r, mask in placed])
        if self.seac.source is None:
            groups = [maths.Group(k, v, share=own + source, logits=logits, name=PICTURE)]
        else:
            groups = [maths.Group(k, v, share=own, logits=logits, name=PICTURE),
                      self.group(SOURCE, self.seac.source, site, k, share=source, cycle=True)]
        groups += [self.group(name_of(r), r.bank, site, k, share=share, cycle=r.cycle, scale=r.enhancement)
                   for (r, _), share in zip(placed, others)]
        return maths.present(groups)

    def group(self, name: str, bank: ConsistencyFeatures, site: UNetSite | JointSite, like, *, share, cycle: bool,
              scale=1.0) -> maths.Group:
        stored = [self.projected(bank, text, site, like) for text in self.call.texts]
        keys, values = (self.rows(parts, like, cycle) for parts in zip(*stored))
        weights = None
        if bank.weighted:
            counts = [self.call.run.kept.moved(bank.counts[text][site.layer], like.device, torch.float32)
                      for text in self.call.texts]
            weights = self.rows(counts, like, cycle)
        return maths.Group(keys, values, scale, share, weights, name=name)

    def projected(self, bank: ConsistencyFeatures, text: int, site: UNetSite | JointSite,
                  like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of stored features, [images, tokens, channels] each: once per run, in the precision of the call."""
        features, grid = bank.features[text][site.layer], bank.grids[site.layer]
        places = None if bank.places is None else bank.places[text][site.layer]

        def project():
            return site.projected(features, places, grid, like)

        if getattr(self.call.model.current_patcher, "current_hooks", None) is not None:  # weights of this prompt and step alone
            return project()
        room = KEPT_BYTES * bank.channels(site.layer) // (2 * like.shape[-1])  # once heads are repeated it is more
        if isinstance(site, JointSite) and layers_within(bank, room) <= bank.layers.index(site.layer):
            return project()
        return self.call.run.kept.once(features, (SLOT, site.layer, site.place, like.device, like.dtype), project)

    def rows(self, stored: Sequence[torch.Tensor], like: torch.Tensor, cycle: bool) -> torch.Tensor:
        """Stored tensors [images, tokens, ...] per chunk for every row of the call: picture i mod images, or all of them joined."""
        per_chunk, parts = like.shape[0] // len(stored), []
        for part in stored:
            part = part if cycle else part.flatten(0, 1)[None]
            parts.append(part.expand(per_chunk, *part.shape[1:]) if part.shape[0] == 1 else self.call.of_pictures(part, per_chunk))
        return torch.cat(parts)

    def attended(self, site: UNetSite | JointSite, groups: list[maths.Group], q: torch.Tensor, attention) -> torch.Tensor:
        """Equations (8), (9) and (10)."""
        bias = maths.logit_bias(groups, self.seac.per_group)
        if self.record is not None:
            self.record.measure(self.call, site, groups, q, bias)
        masked = any(group.logits is not None for group in groups)
        return maths.attend(q, maths.joint_keys(groups), maths.joint_values(groups), site.heads, bias, attention, masked)

    def joint(self, site: JointSite, attention, q, k, v, mask) -> torch.Tensor | None:
        """A transformer's layer: text and whatever else is no picture keep the weight that they have without SEAC."""
        groups = self.groups(site, q, site.picture(k), site.picture(v), None if mask is None else site.picture(mask, 2))
        if groups is None:
            return weigh(site, attention, q, k, v, mask)
        rest = site.seen(k)
        if rest.shape[1]:
            weights = site.weights(rest)
            # so that a token weighs as much as one of the picture's own
            mass = rest.shape[1] + (0 if weights is None else (site.weight - 1) * site.references)
            share = mass / q.shape[1] if self.seac.per_group else 1.0
            logits = None if mask is None else site.seen(mask, 2)
            groups.append(maths.Group(rest, site.seen(v), share=share, weights=weights, logits=logits, name=WORDS))
        return self.attended(site, groups, q, attention)


def layers_within(bank: ConsistencyFeatures, room: int) -> int:
    """How many of a bank's layers, from the first, fit into so many bytes with all their prompts."""
    sizes = [sum(slot[layer].nbytes for slot in bank.features.values()) for layer in bank.layers]
    return sum(total <= room for total in itertools.accumulate(sizes))


@torch.compiler.disable
def attend(q, k, v, extra):
    """attn1_replace, in UNets."""
    def attention(q, k, v, **options):
        return optimized_attention(q, k, v, extra["n_heads"], attn_precision=extra["attn_precision"],
                                   transformer_options=extra, **options)

    control = extra[KEY].attention
    layer = layer_of(extra)
    if q.shape[0] != k.shape[0]:
        if any(layer in reference.layers for reference in control.active):
            control.call.run.warn(f"{NODE}: another patch (HyperTile?) cuts the queries into tiles; such layers are "
                                  "left alone.")
        return attention(q, k, v)
    site = UNetSite(control.call, layer, tuple(extra["activations_shape"][-2:]), extra["n_heads"])
    groups = control.groups(site, q, k, v)
    return attention(q, k, v) if groups is None else control.attended(site, groups, q, attention)
