"""Face Adapter Apply: FaceID's decoupled cross-attention and its LoRA on a UNet.

The identity's keys and values are a few tokens per layer and depend on nothing that happens during sampling. They are
projected once, when the node runs, so that none of the adapter's weights are needed afterwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..attention.blocks import LayerId
from ..attention.features import UNCOND
from ..identity.adapter import FaceAdapter
from ..identity.faces import FaceIdentity
from ..identity.weights import not_finite
from .attention_processors import cross_attention_numbers, lora_patches
from .decoupled import ADAPTER_OFF, Slot, attend, change_slots
from .kit.calls import KEY
from .kit.masks import Region
from .kit.sites import attention_layers, family
from .log import log

NODE = "Face Adapter Apply"
BASES = {"sd15": "SD1.5", "sdxl": "SDXL"}


@dataclass(frozen=True, eq=False)
class KeyValue:
    """K' and V' of one layer, [1, tokens, channels] each: of the person, and of nobody."""

    key: torch.Tensor
    value: torch.Tensor
    null_key: torch.Tensor
    null_value: torch.Tensor


@dataclass(frozen=True, eq=False)
class FaceBranch:
    """weight * mask * Attention(Q, K', V') of equation (3). first_tokens: where each person's tokens begin."""

    layers: Mapping[LayerId, KeyValue]
    first_tokens: range
    weight: float
    start: float
    end: float
    region: Region

    def holds(self, layer):
        return layer in self.layers

    def output(self, text, q, k, v, extra, layer, transform):
        call = extra[KEY]
        self.region.check(call)
        if layer not in self.layers or not call.within(self.start, self.end):
            return None
        mask = None
        if self.region.mask is not None:
            mask = self.region.at(call, q, extra["activations_shape"][-2:])
            if mask is None:
                return None
        kv, rows = self.layers[layer], q.shape[0] // len(call.people)

        def chunks(person: torch.Tensor, nobody: torch.Tensor) -> torch.Tensor:
            return torch.cat([call.moved(nobody if who == UNCOND else person, q).expand(rows, -1, -1) for who in call.people])

        out = self.weight * attend(q, chunks(kv.key, kv.null_key), chunks(kv.value, kv.null_value), extra, transform, self.first_tokens)
        return out if mask is None else out * mask.to(q.dtype)[..., None]


def patched(model, adapter: FaceAdapter, identity: FaceIdentity, *, weight: float, lora_strength: float, shortcut: float, start: float,
            end: float, mask: torch.Tensor | None, skip_middle: bool):
    """A clone of `model` that draws this person. Nothing is installed without a face, or with both strengths 0.

    weight: lambda of equation (3); lora_strength: of the LoRA in the adapter's file, a weight patch on the clone (so start,
    end and mask do not apply to it); shortcut: weight of the CLIP path of FaceID-Plus-v2; mask: [images, height, width].
    Raises ValueError for an adapter of another model and an identity that lacks what the adapter needs.
    """
    layers = check_fit(model, adapter)
    region = Region.of(NODE, mask)
    clone = model.clone()
    if not identity.found or weight == lora_strength == 0:
        if not identity.found:
            log.warning("%s: no face was found in the photo, so the model stays as it is.", NODE)
        clone.set_attachments(ADAPTER_OFF, True)
        return clone
    check_identity(adapter, identity)
    if lora_strength != 0:
        add_lora(clone, adapter, lora_strength)
    if start >= end:
        log.warning("%s: start %.3g is not before end %.3g, so only its LoRA acts.", NODE, start, end)
    if skip_middle:
        layers = {layer: number for layer, number in layers.items() if layer[0] != "middle"}
    if weight == 0 or start >= end or not layers:
        clone.set_attachments(ADAPTER_OFF, True)
        return clone
    person, nobody, first_tokens = identity_tokens(adapter, identity, shortcut)
    projected = {layer: project(adapter, number, person, nobody) for layer, number in layers.items()}
    if not all(torch.isfinite(part).all() for kv in projected.values() for part in (kv.key, kv.value, kv.null_key, kv.null_value)):
        raise ValueError(f"{NODE}: '{adapter.name}' turns this identity into NaN or infinite values: the picture would be empty. Download the "
                         "file again, or lower 'shortcut'.")
    branch = FaceBranch(projected, first_tokens, weight, start, end, region)
    change_slots(clone, list(layers), list(attention_layers(model)),
                 lambda slot: Slot(slot.base, (*slot.branches, branch), slot.transforms))
    return clone


def check_fit(model, adapter: FaceAdapter) -> dict[LayerId, int]:
    """The number of the adapter's keys and values for every cross-attention of the model.

    Raises ValueError when the adapter was made for another model.
    """
    layers = {layer: number for number, layer in cross_attention_numbers(model).items()}
    sizes = {layer: (block.attn2.to_k.out_features, block.attn2.to_k.in_features) for layer, block in attention_layers(model).items()}
    wanted = {layers[layer]: size for layer, size in sizes.items()}
    held = {number: tuple(key.shape) for number, (key, _) in adapter.keys_values.items()}
    values = {number: tuple(value.shape) for number, (_, value) in adapter.keys_values.items()}
    if held == wanted != values:
        number = next(number for number, shape in values.items() if shape != wanted[number])
        raise ValueError(f"{NODE}: '{adapter.name}' is damaged: {number}.to_v_ip.weight has shape {list(values[number])} instead of "
                         f"{list(wanted[number])}. Download the file again.")
    if wanted != held:
        raise ValueError(f"{NODE}: '{adapter.name}' is an adapter for {BASES.get(adapter.base, 'another model')}, but this model is "
                         f"{family(model)} ({len(wanted)} layers, text width {next(iter(sizes.values()))[1]}; the adapter has {len(held)} layers, "
                         f"width {adapter.width}). Load the adapter made for this model's family.")
    return layers


def check_identity(adapter: FaceAdapter, identity: FaceIdentity) -> None:
    """Raises ValueError when the identity lacks what the adapter's projection takes."""
    broken = not_finite({name: value for name, value in (("embedding", identity.embedding), ("CLIP features", identity.clip),
                                                         ("CLIP features of grey", identity.grey)) if value is not None})
    if broken is not None:
        raise ValueError(f"{NODE}: the {broken} of 'identity' hold NaN or infinite values: the picture would be empty. Check the face analysis "
                         "and the CLIP Vision model before Face Identity Encode.")
    wanted, held = adapter.projection.embedding_width, identity.embedding.shape[-1]
    if wanted != held:
        raise ValueError(f"{NODE}: '{adapter.name}' was trained on face embeddings of {wanted} values, but the identity has {held}. Use the "
                         "face analysis it was trained with (the demo's with the demo's adapter, insightface's with all others).")
    if not adapter.plus:
        return
    if identity.clip is None:
        raise ValueError(f"{NODE}: '{adapter.name}' is a FaceID-Plus adapter and needs the CLIP features of the face. Connect clip_vision "
                         "(CLIP-ViT-H-14) to Face Identity Encode.")
    if identity.clip.shape[-1] != adapter.clip_width:
        raise ValueError(f"{NODE}: '{adapter.name}' needs CLIP features of width {adapter.clip_width}, but the identity has width "
                         f"{identity.clip.shape[-1]}. Load CLIP-ViT-H-14 (width 1280) for clip_vision of Face Identity Encode.")


def identity_tokens(adapter: FaceAdapter, identity: FaceIdentity, shortcut: float) -> tuple[torch.Tensor, torch.Tensor, range]:
    """The tokens of all people in a row and those of nobody, [1, people * tokens, width] each, and where each person begins.

    Nobody is a zero embedding through the same projection, with the CLIP features of a grey picture (FastFace's null identity).
    """
    faces = len(identity.embedding)
    embedding, clip, grey = identity.embedding.float(), None, None
    if adapter.plus:
        clip, grey = identity.clip.float(), identity.grey.float().expand(faces, -1, -1)
    with torch.no_grad():
        person = adapter.projection(embedding, clip, shortcut)
        nobody = adapter.projection(torch.zeros_like(embedding), grey, shortcut)
    return person.flatten(0, 1)[None], nobody.flatten(0, 1)[None], range(0, faces * person.shape[1], person.shape[1])


def project(adapter: FaceAdapter, number: int, person: torch.Tensor, nobody: torch.Tensor) -> KeyValue:
    """K' = tokens to_k_ip^T and V' = tokens to_v_ip^T of one layer, in the precision of the tokens."""
    to_k, to_v = (weight.to(person) for weight in adapter.keys_values[number])
    return KeyValue(*(tokens @ weight.T for tokens in (person, nobody) for weight in (to_k, to_v)))


def add_lora(model, adapter: FaceAdapter, strength: float) -> None:
    """The LoRA of the adapter's file as an ordinary weight patch on `model`, a fresh clone."""
    if not adapter.lora:
        log.warning("%s: '%s' holds no LoRA, so lora_strength does nothing.", NODE, adapter.name)
        return
    try:
        patches = lora_patches(model, adapter.lora)
    except ValueError as error:
        raise ValueError(f"{NODE}: the LoRA in '{adapter.name}' does not fit this model ({family(model)}): {error}. Load the adapter made "
                         "for this model's family, or set lora_strength 0.") from error
    model.add_patches(patches, strength)
