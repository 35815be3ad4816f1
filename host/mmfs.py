"""MMFS and StyleGAN2: files in ComfyUI's model folders, networks under its memory management, pictures from them."""

import os
from dataclasses import dataclass, field

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from safetensors import SafetensorError

from ..stylegan import checkpoints
from ..stylegan.generator import truncated
from .log import log

FOLDER, GENERATORS = "mmfs", "stylegan"
ENDINGS = (".safetensors", ".sft", ".pt", ".pth", ".ckpt", ".bin")
PAGES = {
    FOLDER: ("Load MMFS", "phase3_pretrain_10000.pth from the links on https://github.com/dong-y21/MMFS"),
    GENERATORS: ("Load StyleGAN", "a StyleGAN2 file in the layout of JoJoGAN and StyleGAN-NADA (`g_ema`)"),
}
SIDE = 512  # of the published networks' pictures
AT_ONCE = 4  # pictures in one call
NOISES = ["fixed", "per image", "off"]
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

for folder in (FOLDER, GENERATORS):
    folder_paths.add_model_folder_path(folder, os.path.join(folder_paths.models_dir, folder))
# What Save MMFS writes, as ComfyUI does with LoRAs of its own.
folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.get_output_directory(), FOLDER))


@dataclass(frozen=True, eq=False)
class Network:
    """MMFS_MODEL and STYLEGAN_MODEL: a network and what its file says. phase: of MMFS, 2 to 4."""

    name: str
    patcher: comfy.model_patcher.ModelPatcher
    phase: int | None
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def module(self) -> torch.nn.Module:
        return self.patcher.model

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def loaded(self) -> tuple[torch.nn.Module, torch.device]:
        """The network on the device that ComfyUI gives it."""
        comfy.model_management.load_models_gpu([self.patcher])
        return self.module, self.patcher.load_device


@dataclass(frozen=True, eq=False)
class Style:
    """MMFS_STYLE: vectors w [styles, 1 or pictures, width], float32 on the CPU, and what gave them."""

    vectors: torch.Tensor
    told: str


def files(folder: str) -> list[str]:
    return [name for name in folder_paths.get_filename_list(folder) if name.lower().endswith(ENDINGS)]


def load(name: str, folder: str, precision: str = "float32") -> Network:
    """A file of models/mmfs or models/stylegan. Raises ValueError where it is not, or is another network."""
    node, example = PAGES[folder]
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        places = " or ".join(folder_paths.get_folder_paths(folder))
        raise ValueError(
            f"{node}: there is no file '{name}' in {places}. Put a file there, such as {example}, and press R "
            "in ComfyUI."
        )
    found = checkpoints.read(path)
    if found.kind != ("stylizer" if folder == FOLDER else "generator"):
        what, instead = (
            ("an MMFS", "Load MMFS, folder models/mmfs")
            if folder == GENERATORS
            else ("a StyleGAN2 generator", "Load StyleGAN, folder models/stylegan")
        )
        raise ValueError(
            f"{node}: '{name}' is {what}. It belongs into {instead}. Its first keys: "
            f"{', '.join(list(found.state)[:5])}."
        )
    with torch.inference_mode(False):  # few-shot training goes on with these weights
        module = checkpoints.network(found, PRECISIONS[precision])
    metadata = {"parent": checkpoints.fingerprint(path), **found.metadata}
    return wrap(module, name, found.phase, metadata)


def wrap(module: torch.nn.Module, name: str, phase: int | None, metadata: dict[str, str]) -> Network:
    management = comfy.model_management
    patcher = comfy.model_patcher.ModelPatcher(module, management.get_torch_device(), management.unet_offload_device())
    return Network(name, patcher, phase, metadata)


# --- styles


def normal(width: int, seed: int) -> torch.Tensor:
    return torch.randn(1, width, generator=torch.Generator().manual_seed(seed))


def seed_style(model: Network, seed: int, mix_seed: int, mix_at: int) -> Style:
    """The style of a random z; layers from `mix_at` on have that of `mix_seed`; past the last none has."""
    network, device = model.loaded()

    def style(number):
        return network.style_from_seed(normal(network.style, number).to(device, model.dtype))

    vectors = style(seed)
    mixes = mix_at < network.styles
    if mixes:
        vectors = network.mixed(vectors, style(mix_seed), mix_at)
    return Style(
        vectors.float().cpu().clone(), f"seed {seed}" + (f", mixed with {mix_seed}" if mixes else "")
    )


def prompt_feature(guidance, image: torch.Tensor | None, text: str, node: str) -> torch.Tensor:
    """CLIP's feature [pictures, D] of the pictures, or [1, D] of the text. Raises ValueError for both and for neither."""
    text = text.strip()
    if (image is not None) == bool(text):
        raise ValueError(
            f"{node} got {'a picture and a text' if text else 'neither a picture nor a text'}. Give one of both: "
            "connect a picture and leave the text empty, or write a text and connect no picture."
        )
    if image is None:
        return guidance.text_features([text])
    pictures = colours(image, node)
    if not torch.isfinite(pictures).all():
        raise ValueError(f"{node}: the style picture holds NaN or infinite values. Check the node it comes from.")
    return guidance.image_features(list(pictures))


def prompt_style(model: Network, guidance, image: torch.Tensor | None, text: str, node: str) -> Style:
    """What the CLIP mapper makes of a picture or a text; equation (6)."""
    check_mapper(model, node)
    feature = prompt_feature(guidance, image, text, node)
    check_width(model, feature, node)
    network, device = model.loaded()
    vectors = network.style_from_clip(feature.to(device, model.dtype))
    return Style(vectors.float().cpu().clone(), text.strip() or "a picture")


def check_mapper(model: Network, node: str) -> None:
    if model.module.clip_mapper is None:
        raise ValueError(
            f"{node}: '{model.name}' has no CLIP mapper (phase 2 file); use MMFS Style (Seed) or a " "phase 3/4 file."
        )


def check_width(model: Network, feature: torch.Tensor, node: str) -> None:
    if feature.shape[-1] != model.module.style:
        raise ValueError(
            f"{node}: this CLIP's features are {feature.shape[-1]} wide, but '{model.name}' was trained with "
            f"{model.module.style}: load the CLIP that it was trained with (clip-vit-base-patch32 for the "
            "published files)."
        )


# --- pictures


def colours(pictures: torch.Tensor, node: str) -> torch.Tensor:
    """IMAGE [B, h, w, 1 to 4 channels] as RGB: grey is repeated, opacity left out. Raises ValueError."""
    if pictures.ndim != 4 or not len(pictures) or pictures.shape[-1] not in (1, 2, 3, 4):
        raise ValueError(
            f"{node} got a picture of dimensions {list(pictures.shape)}, but pictures are [pictures, height, "
            "width, channels] with 1 to 4 channels. Connect a Load Image."
        )
    rgb = pictures[..., :3] if pictures.shape[-1] > 2 else pictures[..., :1].expand(-1, -1, -1, 3)
    return rgb.float()


def sound(pictures: torch.Tensor, node: str) -> list[int]:
    """Which of RGB pictures [B, h, w, 3] hold numbers only. Raises ValueError where none does."""
    good = torch.isfinite(pictures).flatten(1).all(1).tolist()
    if not any(good):
        raise ValueError(f"{node}: the picture holds NaN or infinite values. Check the node it comes from.")
    bad = [number for number, whole in enumerate(good) if not whole]
    if bad:
        log.warning(
            "%s: picture%s %s of %d hold NaN or infinite values and come out black.",
            node,
            "s" * (len(bad) > 1),
            ", ".join(str(number + 1) for number in bad),
            len(good),
        )
    return [number for number, whole in enumerate(good) if whole]


def fitted(model: Network, pictures: torch.Tensor, node: str) -> torch.Tensor:
    """RGB pictures [B, h, w, 3] in [0, 1] -> [B, 3, H, W] in [-1, 1], of a size that the network takes."""
    side, (height, width) = int(model.metadata.get("size", SIDE)), pictures.shape[1:3]
    stride = model.module.stride
    x = pictures.clamp(0, 1).movedim(-1, 1)
    if height % stride or width % stride:
        log.warning(
            "%s: pictures of %d x %d become %d x %d, as both sides must be multiples of %d. Align Face cuts a face "
            "out at that size.",
            node,
            width,
            height,
            side,
            side,
            stride,
        )
        method = "area" if min(height, width) > side else "bicubic"
        x = comfy.utils.common_upscale(x, side, side, method, "disabled").clamp(0, 1)
    elif (height, width) != (side, side):
        log.warning(
            "%s: '%s' was trained with pictures of %d x %d; those of %d x %d may lose quality.",
            node,
            model.name,
            side,
            side,
            width,
            height,
        )
    return x * 2 - 1


def stylize(
    model: Network,
    image: torch.Tensor,
    style: Style,
    other: Style | None,
    blend: float,
    noise: str,
    seed: int,
    node: str,
) -> torch.Tensor:
    """IMAGE of faces in a style -> IMAGE. noise: of `NOISES`; fixed is one for all pictures, as a video wants it."""
    pictures = colours(image, node)
    good = sound(pictures, node)
    vectors = blended(model, style, other, blend, node)
    if vectors.shape[1] not in (1, len(pictures)):
        raise ValueError(
            f"{node} got styles of {vectors.shape[1]} pictures for {len(pictures)} pictures. Connect one style, or "
            "as many as there are pictures."
        )
    x = fitted(model, pictures, node)
    network, device = model.loaded()
    out = torch.zeros(len(x), *x.shape[2:], 3)
    bar = comfy.utils.ProgressBar(len(good))
    for start in range(0, len(good), AT_ONCE):
        comfy.model_management.throw_exception_if_processing_interrupted()
        rows = good[start : start + AT_ONCE]
        maps = None
        if noise == "fixed":
            maps = network.noise_maps(1, x.shape[2:], seed, device)
        elif noise == "per image":
            drawn = [network.noise_maps(1, x.shape[2:], (seed + row) % 2**64, device) for row in rows]
            maps = [torch.cat(layer) for layer in zip(*drawn)]
        chosen = vectors if vectors.shape[1] == 1 else vectors[:, rows]
        painted = network(
            x[rows].to(device, model.dtype),
            chosen.to(device, model.dtype),
            maps and [layer.to(model.dtype) for layer in maps],
        )
        out[rows] = (painted.float().cpu().movedim(1, -1) + 1) / 2
        bar.update(len(rows))
    if not torch.isfinite(out).all():
        raise ValueError(
            f"{node}: '{model.name}' gave NaN in {str(model.dtype).removeprefix('torch.')}. Load it with "
            "precision float32."
        )
    return out


def blended(model: Network, style: Style, other: Style | None, blend: float, node: str) -> torch.Tensor:
    """w of the first style, moved by `blend` towards the second, [styles, B, width]."""
    for each in (style, other):
        if each is not None and each.vectors.shape[::2] != (model.module.styles, model.module.style):
            raise ValueError(
                f"{node}: a style of {list(each.vectors.shape)} ({each.told}) was made with another model than "
                f"'{model.name}', whose styles are {model.module.style} wide. Make it with this model."
            )
    if other is None or blend == 0:
        return style.vectors
    count = {each.vectors.shape[1] for each in (style, other)} - {1}
    if len(count) > 1:
        raise ValueError(
            f"{node}: the two styles are for {style.vectors.shape[1]} and {other.vectors.shape[1]} pictures. Give "
            "one of them for a single picture."
        )
    return torch.lerp(*torch.broadcast_tensors(style.vectors, other.vectors), blend)


def generate(
    model: Network, seed: int, count: int, truncation: float, mix_seed: int, mix_at: int, blend: float, node: str
) -> torch.Tensor:
    """IMAGE [count, S, S, 3] of StyleGAN2, seeds from `seed` on.

    The layers from `mix_at` on take the style of `mix_seed`, moved towards it by `blend`: 1 mixes, less interpolates.
    """
    network, device = model.loaded()
    mean = network.mean_w() if truncation < 1 else None
    pictures, bar = [], comfy.utils.ProgressBar(count)

    def styles(number):
        w = network.map(normal(network.width, number).to(device, model.dtype))
        return network.styles(w if mean is None else truncated(w, mean, truncation))

    for number in range(count):
        comfy.model_management.throw_exception_if_processing_interrupted()
        vectors = styles((seed + number) % 2**64)
        if mix_at < network.layers and blend:
            mixed = styles(mix_seed)
            vectors = torch.cat([vectors[:mix_at], torch.lerp(vectors[mix_at:], mixed[mix_at:], blend)])
        noise = [layer.to(model.dtype) for layer in network.noise_maps(1, (seed + number) % 2**64, device)]
        picture = network(vectors, noise).float().cpu().clamp(-1, 1)
        if not torch.isfinite(picture).all():
            raise ValueError(f"{node}: '{model.name}' gave NaN. Load it with precision float32.")
        pictures.append((picture.movedim(1, -1) + 1) / 2)
        bar.update(1)
    return torch.cat(pictures)


# --- saving


def save(model: Network, prefix: str, precision: str, node: str) -> str:
    """A new safetensors file below the output folder, with phase, prompt and the parent's hash; its path.

    Raises ValueError where it cannot be written whole; nothing half is left then, and no file is overwritten.
    """
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    path = os.path.join(folder, f"{name}_{counter:05}_.safetensors")
    try:
        write(model, path, PRECISIONS[precision])
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{node}: {path} could not be written: {error}. The model is still in the graph: make room, or "
            "change 'name', and run again."
        ) from None
    return path


def write(model: Network, path: str, dtype: torch.dtype = torch.float32) -> None:
    metadata = {**model.metadata, **({} if model.phase is None else {"phase": str(model.phase)})}
    checkpoints.save(path, model.module.state_dict(), metadata, dtype)
