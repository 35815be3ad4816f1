"""SEAC inside ComfyUI: installing and chaining the patch, what one sampling run keeps, and the two attention hooks.

The model gets two wrappers only. The one around the sampling run keeps that run's state; the one around each
denoiser call adds the attention hooks to a copy of that call's options, where it can see which layers belong to others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP

from ..attention import seac as maths
from ..attention.blocks import LayerId, layer_name, select_layers
from ..attention.features import COND, UNCOND, ConsistencyFeatures
from ..attention.masks import mask_on_grid
from ..segmentation.masks import check_aspect, checked
from .log import log
from .patching import append_patch
from .unet import attention_layers, family

NODE = "SEAC Patch"
MASK = f"The mask of {NODE}"
KEY = "portrait_atelier.seac"
CALL = KEY + ".call"
PLAN = KEY + ".plan"
OFF = "off"


@dataclass(frozen=True, eq=False)
class Reference:
    """One reference of a SEAC patch; every field is a widget of the node or follows from one.

    gain scales the reference's weight against the source; mask is [images, height, width] in [0, 1], None for everywhere;
    mask_size is the connected mask's (height, width), which a run compares with its latent; start and end are fractions of
    the full schedule; with `cycle`, picture i of the bank serves target i only.
    """

    bank: ConsistencyFeatures
    layers: frozenset[LayerId]
    enhancement: float
    share: float
    gain: float
    start: float
    end: float
    mask: torch.Tensor | None
    mask_size: tuple[int, int] | None
    cycle: bool


@dataclass(frozen=True, eq=False)
class SEAC:
    """A source and its references. Shared by clones of the model and never written to."""

    source: ConsistencyFeatures
    references: tuple[Reference, ...]
    strength: float
    per_group: bool
    biased_keys: bool

    @property
    def needs_bias(self) -> bool:
        """Whether some call may need other logits than those of concatenated keys, hence our own attention."""
        banks = [self.source, *(reference.bank for reference in self.references)]
        return (self.biased_keys or self.per_group or self.strength != 1 or any(bank.weighted for bank in banks)
                or any((r.share, r.gain) != (0.5, 1) or r.mask is not None for r in self.references))


def patched(model, source: ConsistencyFeatures | None, reference: ConsistencyFeatures, *, style_enhancement: float,
            strength: float, style_share: float, start: float, end: float, layers: str, mask: torch.Tensor | None,
            per_group: bool, cycle: bool):
    """A clone of `model` whose self-attention looks at `source` and `reference` (ZePo equations 8 to 10).

    On a model that has a SEAC patch already, an empty source adds one more reference to it. Nothing is installed
    when the strength is 0 or the window or the layers are empty. Raises ValueError for what does not fit.
    """
    infos = attention_layers(model)
    if mask is not None:
        mask = checked(mask, None, MASK)
    earlier = model.get_attachment(KEY)
    if source is None and earlier is None:
        raise ValueError("SEAC Patch has no source. Connect the source features (only a second SEAC Patch on the same model "
                         "may leave them out).")
    if source is not None and earlier is not None:
        raise ValueError("This model already has a SEAC Patch with a source. Leave 'source' empty to add a reference to it, "
                         "or connect the model from before that patch.")
    if earlier == OFF:
        return model.clone()
    base = source if earlier is None else earlier.source
    for name, bank in (("source", base), ("reference", reference)):
        check_fit(model, infos, name, bank)
    shared = [layer for layer in base.layers if layer in set(reference.layers)]
    chosen = select_layers(layers, list(infos), auto=shared)
    missing = [layer for layer in chosen if layer not in set(shared)]
    if missing:
        raise ValueError(f"SEAC Patch: layers '{layers}' include {layer_name(missing[0], list(infos))}, which the features do not hold. "
                         "Name it in 'layers' of both Consistency Feature Extract nodes, or use 'auto'.")
    if start >= end:
        log.warning("SEAC Patch: start %.3g is not before end %.3g, so it has no effect.", start, end)

    clone = model.clone()
    if strength == 0 or start >= end or not chosen:
        if earlier is None:
            clone.set_attachments(KEY, OFF)
        return clone
    warn_about_differences(model, base, reference)
    mask_size = None if mask is None else tuple(mask.shape[-2:])
    if mask is not None and bool((mask == 1).all()):
        mask = None
    added = Reference(reference, frozenset(chosen), style_enhancement, style_share, 1.0, start, end, mask, mask_size, cycle)
    biased = any(infos[layer].biased_keys for layer in chosen)
    if earlier is None:
        install(clone, SEAC(base, (added,), strength, per_group, biased))
    else:
        if per_group != earlier.per_group:
            log.warning("SEAC Patch: 'balance' is taken from the first SEAC Patch of this model.")
        install(clone, replace(earlier, references=(*earlier.references, replace(added, gain=strength)),
                               biased_keys=earlier.biased_keys or biased))
    return clone


def check_fit(model, infos, name: str, bank: ConsistencyFeatures) -> None:
    for layer in bank.layers:
        if layer not in infos or infos[layer].channels != bank.channels(layer):
            raise ValueError(f"The {name} features were extracted from a model of family {bank.family}, but this model is "
                             f"{family(model)} with other layers. Extract them with the model that samples.")


def warn_about_differences(model, source: ConsistencyFeatures, reference: ConsistencyFeatures) -> None:
    if source.timestep != reference.timestep:
        log.warning("SEAC Patch: source features were extracted at timestep %d, reference features at %d.",
                    source.timestep, reference.timestep)
    now = (model.clone_base_uuid, model.patches_uuid)
    if source.weights_id != now or reference.weights_id != now:
        log.warning("SEAC Patch: the features were extracted with other weights or LoRAs than those of this model. "
                    "Extract from the model that samples, after its LoRAs.")


def install(model, seac: SEAC) -> None:
    """Puts the patch on `model`, a fresh clone, in place of an earlier one."""
    remove_seac(model)
    model.set_attachments(KEY, seac)

    def keep_run(executor, noise, *args, **kwargs):
        guider = executor.class_obj
        options = guider.model_options["transformer_options"]
        options[KEY] = Run(seac, guider.model_patcher.get_model_object("model_sampling"), noise.shape[-2:], guider)
        try:
            return executor(noise, *args, **kwargs)
        finally:
            del options[KEY]

    def hook_call(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
        run = transformer_options.get(KEY)
        if run is None:  # somebody calls the model outside of a sampling run
            run = Run(seac, executor.class_obj.model_sampling, x.shape[-2:], None)
        if run.owns(executor.class_obj):
            transformer_options = run.hooked(x, t, transformer_options)
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, keep_run)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, hook_call)


def remove_seac(model) -> None:
    """Takes SEAC off a clone, wrappers and attachment."""
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    model.remove_attachments(KEY)


class Run:
    """What one sampling run keeps: schedule windows in sigma, features on the device, warnings already given."""

    def __init__(self, seac: SEAC, model_sampling, size: tuple[int, int], guider):
        self.seac, self.size, self.guider = seac, tuple(size), guider
        for reference in seac.references:
            if reference.mask_size is not None:
                check_aspect(reference.mask_size, self.size, MASK)
        self.windows = [(model_sampling.percent_to_sigma(r.start), model_sampling.percent_to_sigma(r.end))
                        for r in seac.references]
        self.cache = {}
        self.warned = set()

    def warn(self, message: str) -> None:
        if message not in self.warned:
            self.warned.add(message)
            log.warning("SEAC Patch: %s", message)

    def owns(self, model) -> bool:
        """False for the second model of core's Dual Model guider, whose weights gave no features."""
        other = getattr(self.guider, "uncond_inner", None)
        return other is None or model is not other or model is self.guider.inner_model

    def slots(self, options: dict) -> list[int]:
        """Which bank each chunk of rows sees: that of the positive (0) or of the negative prompt (1).

        The place in the list of a call decides, unless our guidance nodes say otherwise or the prompt itself is
        known: Dual CFG lists negative first; Dual Model and Self-Attention Guidance call the negative prompt alone.
        """
        if "pa_text" in options:
            return [min(slot, UNCOND) for slot in options["pa_text"]]
        order = options["cond_or_uncond"]
        known = self.prompts()
        return [known.get(uuid, min(slot, UNCOND)) for slot, uuid in zip(order, options.get("uuids", order))]

    def prompts(self) -> dict:
        """The slot of every prompt of the guider by the id that calls carry; those in two lists are left out."""
        conds = self.guider.conds if self.guider is not None else {}
        if "positive" not in conds:
            return {}
        positive = {cond["uuid"] for cond in conds["positive"]}
        others = {cond["uuid"] for name, entries in conds.items() if name != "positive" for cond in entries or ()}
        return {uuid: COND if uuid in positive else UNCOND for uuid in positive ^ others}

    def hooked(self, x: torch.Tensor, t: torch.Tensor, options: dict) -> dict:
        """A copy of one call's options with our hooks, the last in their list, on layers that nobody else replaced."""
        sigma = float(t.flatten()[0])
        active = [r for r, (first, last) in zip(self.seac.references, self.windows) if last <= sigma <= first]
        slots = self.slots(options)
        self.check_slots(slots, active)
        replaced = options.get("patches_replace", {})
        taken = frozenset(replaced.get("attn1", {}))
        options = append_patch(options, "attn1_patch", extend)
        if self.seac.needs_bias:
            # (block, number) keys: a key with a layer index would shadow whatever a later node puts on the block.
            ours = {layer[:2]: attend for r in self.seac.references for layer in r.layers}
            options["patches_replace"] = {**replaced, "attn1": {**ours, **replaced.get("attn1", {})}}
        window = options.get("context_window")
        batch = None
        if window is not None and window.dim == 0:
            batch = tuple(window.get_tensor(torch.arange(window.total_frames)).tolist())
        options[CALL] = Call(self, active, slots, taken, batch, cropped=tuple(x.shape[-2:]) != self.size)
        return options

    def check_slots(self, slots: Sequence[int], active: Sequence[Reference]) -> None:
        for name, bank in [("source", self.seac.source), *(("reference", r.bank) for r in active)]:
            if active and UNCOND in slots and UNCOND not in bank.features:
                raise ValueError(f"SEAC Patch: sampling evaluates a negative prompt, but the {name} features have none. "
                                 "Connect 'negative' to Consistency Feature Extract or set CFG 1.")

    def stored(self, tensor: torch.Tensor, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A stored tensor on the device of `like`, moved once per run."""
        key = (id(tensor), like.device, dtype)
        if key not in self.cache:
            self.cache[key] = tensor.to(like.device, dtype)
        return self.cache[key]


@dataclass(frozen=True, eq=False)
class Call:
    """One denoiser call: the references whose window holds its sigma, the bank per chunk, the layers of others.

    batch: which pictures of the batch the call is about, None for all of them
    cropped: whether the call is about a part of the picture
    """

    run: Run
    active: list[Reference]
    slots: list[int]
    taken: frozenset
    batch: tuple[int, ...] | None
    cropped: bool

    def groups(self, layer: LayerId, n, context, value, extra) -> list[maths.Group] | None:
        """What the target's queries attend to in this layer, or None to leave it alone."""
        active = [reference for reference in self.active if layer in reference.layers]
        if not active or layer in self.taken or layer[:2] in self.taken:
            return None
        if n.shape[0] != context.shape[0]:
            self.run.warn("another patch (HyperTile?) cuts the queries into tiles; such layers are left alone.")
            return None
        per_slot = context.shape[0] // len(self.slots)
        masks = [self.mask(reference, per_slot, n, extra) for reference in active]
        placed = [(reference, mask) for reference, mask in zip(active, masks) if mask is not False]
        if not placed:
            return None
        seac = self.run.seac
        own, source, others = maths.group_shares(
            seac.strength, [maths.ReferenceShare(r.share, r.gain, mask) for r, mask in placed])
        groups = [maths.Group(context, share=own, values=value)]
        groups.append(self.group(seac.source, layer, per_slot, context, share=source, cycle=True))
        groups += [self.group(r.bank, layer, per_slot, context, share=share, cycle=r.cycle, scale=r.enhancement)
                   for (r, _), share in zip(placed, others)]
        return maths.present(groups)

    def group(self, bank: ConsistencyFeatures, layer: LayerId, per_slot: int, like, *, share, cycle: bool, scale=1.0):
        features = self.rows(bank.features, layer, per_slot, like, like.dtype, cycle)
        weights = self.rows(bank.counts, layer, per_slot, like, torch.float32, cycle) if bank.weighted else None
        return maths.Group(features, scale, share, weights)

    def rows(self, tensors, layer: LayerId, per_slot: int, like, dtype, cycle: bool) -> torch.Tensor:
        """Stored tensors [images, tokens, ...] for every row of the call: picture i mod images, or all of them joined."""
        parts = []
        for slot in self.slots:
            stored = self.run.stored(tensors[slot][layer], like, dtype)
            if not cycle:
                stored = stored.flatten(0, 1)[None]
            if stored.shape[0] == 1:
                parts.append(stored.expand(per_slot, *stored.shape[1:]))
            else:
                parts.append(stored[self.pictures(per_slot, stored)])
        return torch.cat(parts)

    def pictures(self, per_slot: int, stored: torch.Tensor) -> torch.Tensor:
        """Index into `stored`, [images, ...], for every row of one chunk: the target's place in the batch mod images."""
        targets = range(per_slot) if self.batch is None else self.batch
        return torch.tensor([target % stored.shape[0] for target in targets], device=stored.device)

    def mask(self, reference: Reference, per_slot: int, n, extra) -> torch.Tensor | None | bool:
        """The reference's mask at the queries, [rows, queries]; None without one, False where it cannot be placed."""
        if reference.mask is None:
            return None
        height, width = extra["activations_shape"][-2:]
        if self.cropped or n.shape[1] != height * width:
            self.run.warn("a mask cannot be placed on a part of the picture or on merged queries; its reference sits out.")
            return False
        key = (id(reference.mask), height, width, n.device)
        if key not in self.run.cache:
            self.run.cache[key] = mask_on_grid(reference.mask, (height, width)).to(n.device)
        placed = self.run.cache[key]
        return placed[self.pictures(per_slot, placed)].repeat(len(self.slots), 1)


@torch.compiler.disable
def extend(n, context, value, extra):
    """attn1_patch: equation (8). Replaces the target's keys and values by those of the groups."""
    call = extra[CALL]
    layer = (*extra["block"], extra["block_index"])
    groups = call.groups(layer, n, context, value, extra)
    if groups is None:
        return n, context, value
    bias = maths.logit_bias(groups, call.run.seac.per_group)
    if bias is None and not call.run.seac.biased_keys:
        return n, maths.joint_keys(groups), maths.joint_values(groups)
    extra[PLAN] = groups, bias
    return n, maths.joint_unscaled_keys(groups), maths.joint_values(groups)


@torch.compiler.disable
def attend(q, k, v, extra):
    """attn1_replace: equations (9) and (10) where logits need a bias or keys are scaled after a biased projection."""
    def attention(q, k, v, **options):
        return optimized_attention(q, k, v, extra["n_heads"], attn_precision=extra["attn_precision"],
                                   transformer_options=extra, **options)

    plan = extra.pop(PLAN, None)
    if plan is None:
        return attention(q, k, v)
    groups, bias = plan
    return maths.attend(q, maths.scale_keys(k, groups), v, extra["n_heads"], bias, attention)
