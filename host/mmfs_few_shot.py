"""MMFS Few-shot inside ComfyUI: a private copy of the stylizer, its guides, progress, preview, Cancel."""

import copy
import json
import os
from dataclasses import fields
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch
from PIL import Image

from ..training.mmfs import few_shot
from . import clip_similarity, mmfs
from .clip_similarity import Similarity
from .log import log
from .mmfs import Network
from .unfinished import keep_somewhere

NODE = "MMFS Few-shot"
PREVIEW_EVERY, SHOWN = 10, 4  # steps; photos
UNFINISHED = "mmfs/few_shot_unfinished"
DEFAULTS = json.loads((Path(few_shot.__file__).parent / "config" / "4-few-shot.json").read_text(encoding="utf-8"))


def train(
    model: Network,
    guidance,
    photos: torch.Tensor,
    style_image: torch.Tensor | None,
    text: str,
    seed: int,
    settings: few_shot.Settings,
) -> tuple[Network, dict[str, list[float]]]:
    """A stylizer for one style, and the losses of every step. `model` stays as it is.

    What is trained when the run is cancelled or fails is saved in the output folder; a loss that is not finite ends the
    training with what was trained before it. Raises ValueError for what cannot be trained.
    """
    mmfs.check_mapper(model, NODE)
    check_guidance(guidance)
    feature = mmfs.prompt_feature(guidance, style_image, text, NODE)
    if len(feature) > 1:
        raise ValueError(
            f"{NODE} got {len(feature)} style pictures and learns one. Take one of them with Image From Batch."
        )
    mmfs.check_width(model, feature, NODE)
    rgb = mmfs.colours(photos, NODE)
    rgb = rgb[mmfs.sound(rgb, NODE)]
    if len(rgb) < few_shot.ENOUGH:
        log.warning(
            "%s: %d photo%s of faces; fewer than %d may be learnt by heart.",
            NODE,
            len(rgb),
            "s" * (len(rgb) != 1),
            few_shot.ENOUGH,
        )
    pictures = mmfs.fitted(model, rgb, NODE)
    with torch.inference_mode(False):
        network = copy.deepcopy(model.module).float()
        trained = mmfs.wrap(network, model.name, 4, {**model.metadata, "prompt": text.strip() or "a picture"})
        device = guidance.loaded(trained.patcher)
        for module in (network, guidance.clip.model, guidance.dino):
            ordinary(module)
        patches = None if style_image is None else guidance.patches(mmfs.colours(style_image, NODE)[0]).clone()
        anchor = None if style_image is not None else guidance.text_features([few_shot.ANCHOR])[0].clone().to(device)
        target = few_shot.Target(feature[0].clone().to(device), patches, anchor)
        training = few_shot.FewShot(network, guidance, pictures.clone(), target, settings, seed % 2**63)
        losses = run(training, trained)
    result = mmfs.wrap(
        training.average.to("cpu").eval(), f"{model.name}, {text.strip() or 'a picture'}", 4, trained.metadata
    )
    return result, losses


def check_guidance(guidance) -> None:
    if not isinstance(guidance, Similarity) or guidance.dino is None:
        places = " or ".join(clip_similarity.folder_paths.get_folder_paths(clip_similarity.DINO))
        raise ValueError(
            f"{NODE} needs DINO beside CLIP, to keep the faces: choose it as 'dino' in CLIP Similarity Loader. "
            f"Put {clip_similarity.DINO_FILE} from {clip_similarity.dino.PAGE} into {places}."
        )


def ordinary(module: torch.nn.Module) -> None:
    """Weights that a node moved to the device in ComfyUI's inference mode cannot enter a backward pass: copies can."""
    for part in module.modules():
        for name, value in list(part._parameters.items()):
            if value is not None and value.is_inference():
                part._parameters[name] = torch.nn.Parameter(value.clone(), requires_grad=value.requires_grad)
        for name, value in list(part._buffers.items()):
            if value is not None and value.is_inference():
                part._buffers[name] = value.clone()


def run(training: few_shot.FewShot, trained: Network) -> dict[str, list[float]]:
    """Every step, with progress and preview."""
    steps, losses = training.settings.steps, {}
    bar = comfy.utils.ProgressBar(steps)
    try:
        for told in training:
            for name, value in told.items():
                losses.setdefault(name, []).append(value)
            shown = preview(training) if training.done % PREVIEW_EVERY == 0 else None
            bar.update_absolute(training.done, steps, shown)
            comfy.model_management.throw_exception_if_processing_interrupted()
    except few_shot.NotFinite as error:
        if not training.done:
            raise ValueError(f"{NODE}: {error}. Check photos and style picture, and lower lr.") from None
        log.error(
            "%s ended early: %s. The result is that of the %d steps before; lower lr.", NODE, error, training.done
        )
    except BaseException:
        if training.done:
            kept = mmfs.wrap(training.average, trained.name, 4, trained.metadata)
            keep_somewhere(
                lambda path: mmfs.write(kept, path),
                (UNFINISHED, os.path.basename(UNFINISHED)),
                training.done,
                NODE,
                "model",
                "Load MMFS lists it after a refresh when it lies in output/mmfs.",
            )
        raise
    return losses


@torch.no_grad()
def preview(training: few_shot.FewShot) -> tuple[str, Image.Image, int | None]:
    """The first photos by the running average, side by side."""
    rows = range(min(SHOWN, len(training.photos)))
    features = torch.cat([training.photo(row)[0] for row in rows])
    x = (training.average.decode(features, training.style).float().cpu() + 1) / 2
    pixels = (torch.cat(list(x), 2).movedim(0, -1).clamp(0, 1).nan_to_num() * 255).round().byte()
    return "JPEG", Image.fromarray(pixels.numpy()), None


def settings(**given) -> few_shot.Settings:
    """The paper's, and what is given."""
    return few_shot.Settings(
        **{field.name: given.get(field.name, DEFAULTS[field.name]) for field in fields(few_shot.Settings)}
    )
