"""Consistency Features in files: safetensors with the features, and with what tells whether a model is the one they came from.

A file holds tensors `features.SLOT.BLOCK.NUMBER.INDEX`, `counts....` for merged ones, and `fingerprint`; its metadata hold
the rest of ConsistencyFeatures as JSON under the key FORMAT.
"""

import json
import os

import comfy.model_management
import folder_paths
import torch
from safetensors import SafetensorError, safe_open

from ..attention.features import COND, ConsistencyFeatures
from .extract import extract_features
from .kit.prompts import pooled_width, text_width
from .kit.sites import attention_layers, family, kept_layers
from .seac import check_fit
from .unfinished import save_whole

FOLDER = "features"  # below models/, and below the output folder, where Save Features writes
FORMAT = "portrait_atelier.features"
VERSION = 1
SAVE, LOAD = "Save Features", "Load Features"
# Bytes that no file system takes in a name, and the separators, which would lead elsewhere.
ILLEGAL = set('<>:"|?*\\') | {chr(number) for number in range(32)}
# |a - b| / |b| of two fingerprints of one model: the demo model in bf16 is 0.012 from itself in fp32, in fp16 0.0013.
SAME = 0.04
KNOWN = 4  # fingerprints kept of models that were asked for lately
_fingerprints: dict[tuple, torch.Tensor] = {}

folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.get_output_directory(), FOLDER))


def fingerprint(model) -> torch.Tensor:
    """What the model makes of one fixed picture of noise: the mean of every channel of its self-attention inputs, [values].

    It is a call of the model and no hash of its weights: it holds for quantized and offloaded weights, sees LoRAs, and is
    nearly the same in another precision or on another device. Attention patches and guidance play no part.
    """
    key = (model.clone_base_uuid, model.patches_uuid)
    if key not in _fingerprints:
        plain = model.clone()
        plain.model_options = {"transformer_options": {}}
        channels = model.model.latent_format.latent_channels
        picture = torch.randn(1, channels, 16, 16, generator=torch.Generator().manual_seed(0))
        text = torch.zeros(1, 77, text_width(model) or 1)
        pooled = pooled_width(model)
        prompt = [[text, {} if pooled is None else {"pooled_output": torch.zeros(1, pooled)}]]
        bank = extract_features(plain, picture, prompt, None, 0, 99, "all")
        while len(_fingerprints) >= KNOWN:
            del _fingerprints[next(iter(_fingerprints))]
        _fingerprints[key] = torch.cat([values[0].float().mean(0).cpu() for values in bank.features[COND].values()])
    return _fingerprints[key]


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far two fingerprints lie from each other, as a share of the second; infinite for ones of other networks."""
    if found.shape != expected.shape:
        return float("inf")
    return ((found - expected).norm() / expected.norm()).item()


def place(name: str, replace: bool) -> str:
    """The path for a new file `name` in output/features, its folder made. Raises ValueError for one that leads elsewhere.

    `name` may hold folders; without `replace` a name that is taken gets a number.
    """
    folder = os.path.join(folder_paths.get_output_directory(), FOLDER)
    stem = name.strip().removesuffix(".safetensors")
    parts = stem.split("/")
    if any(not part.strip(". ") or ILLEGAL & set(part) for part in parts):
        raise ValueError(f"'name' of {SAVE} is '{name}', which is no name of a file below {folder}. Write a word, or folders and a "
                         "word, as in watercolors/lake.")
    path = os.path.join(folder, *parts) + ".safetensors"
    number = 2
    while not replace and os.path.exists(path):
        path = os.path.join(folder, *parts) + f"_{number}.safetensors"
        number += 1
    return path


def names() -> list[str]:
    return [name for name in folder_paths.get_filename_list(FOLDER) if name.lower().endswith(".safetensors")]


def path_of(name: str) -> str:
    """Where a file of the list is. Raises ValueError where it is not."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise ValueError(f"There are no features '{name}' in {' or '.join(folder_paths.get_folder_paths(FOLDER))}. Save some with {SAVE}, "
                         "or put the file there and press R in ComfyUI.")
    return path


def save(model, bank: ConsistencyFeatures, name: str, replace: bool) -> str:
    """Writes features and the model's fingerprint, whole or not at all, and returns the path.

    Raises ValueError for transformers, for features of another model than `model`, and for a name that leads out of
    output/features.
    """
    attention_layers(model)  # of transformers there is no fingerprint yet
    if bank.weights_id != (model.clone_base_uuid, model.patches_uuid):
        raise ValueError(f"{SAVE}: these features came from another model, or from before its LoRAs. Connect the model of the "
                         "Consistency Feature Extract that made them.")
    path = place(name, replace)
    tensors = {"fingerprint": fingerprint(model)}
    for kind, slots in (("features", bank.features), ("counts", bank.counts or {})):
        for slot, layers in slots.items():
            for layer, values in layers.items():
                # Pictures of one file may share memory (an expanded batch), which safetensors refuses.
                tensors[".".join(map(str, (kind, slot, *layer)))] = values.cpu().clone(memory_format=torch.contiguous_format)
    about = {"version": VERSION, "family": bank.family, "timestep": bank.timestep, "seed": bank.seed, "weighted": bank.weighted,
             "grids": [[*layer, *grid] for layer, grid in bank.grids.items()]}
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_whole(tensors, path, {FORMAT: json.dumps(about)})
    return path


def load(model, name: str) -> ConsistencyFeatures:
    """The features in the file `name` of the list, for `model`. Raises ValueError for damaged files and for other models."""
    attention_layers(model)
    path = path_of(name)
    wrong = f"'{name}' in {os.path.dirname(path)} holds no Consistency Features"
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(FORMAT, "null"))
            if about is None:
                raise ValueError(f"{wrong}: it is a file of another kind. Choose one that {SAVE} wrote.")
            if about["version"] != VERSION:
                raise ValueError(f"'{name}' was written by another version of this pack (format {about['version']}, here {VERSION}). "
                                 "Save the features again with this one.")
            features, counts = {}, {}
            for key in file.keys():
                kind, _, rest = key.partition(".")
                if kind in ("features", "counts"):
                    slot, block, number, index = rest.split(".")
                    layers = (features if kind == "features" else counts).setdefault(int(slot), {})
                    layers[block, int(number), int(index)] = file.get_tensor(key)
            found = file.get_tensor("fingerprint")
            grids = {(block, number, index): (height, width) for block, number, index, height, width in about["grids"]}
            bank = ConsistencyFeatures(ordered(features, grids), grids, about["timestep"], about["seed"], about["family"],
                                       (model.clone_base_uuid, model.patches_uuid), ordered(counts, grids) or None, about["weighted"])
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{wrong}, or is damaged: {error}. Choose one that {SAVE} wrote, or save it again.") from error
    check_fit(model, kept_layers(model), f"'{name}':", bank)
    comfy.model_management.throw_exception_if_processing_interrupted()
    distance = apart(fingerprint(model), found)
    if not distance < SAME:
        raise ValueError(f"The features '{name}' came from another model of family {bank.family} than this {family(model)} model, or from "
                         f"one with other LoRAs (fingerprints {distance:.0%} apart). Connect that model, or extract the features again.")
    return bank


def ordered(slots: dict, grids: dict) -> dict:
    """The tensors per slot in the layers' order. Raises KeyError where one is missing."""
    return {slot: {layer: slots[slot][layer] for layer in grids} for slot in sorted(slots)}
