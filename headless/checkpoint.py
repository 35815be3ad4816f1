"""What a checkpoint file is, told from its safetensors header: names and shapes of tensors, and metadata. Weights stay unread."""
import json
import re
import statistics
import struct
from dataclasses import dataclass, field
from pathlib import Path

from .errors import AtelierError
from .pictures import SIGNATURES

LONGEST = 16_000_000  # bytes of a header; SDXL's takes 0.3 million
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
TAKES = "what fits here are SD1.5, SD2.1 and SDXL checkpoints, whole ones in one .safetensors file"
UNET = "model.diffusion_model."
# The width of the text states that cross-attention reads, which tells the families apart.
FAMILIES = {768: "SD1.5", 1024: "SD2.1", 2048: "SDXL"}
CHANNELS = {5: "a depth-to-image", 7: "an upscaling", 8: "an edit or image-to-video", 9: "an inpainting"}
# What a file is that has no UNet of Stable Diffusion: a part of a tensor's name, and the answer. The first that fits counts.
OTHERS = (
    (r"lora_(up|down|A|B)\b|^lora_|hada_w1|lokr_w1", "a LoRA: it goes into models/loras and needs a checkpoint beside it"),
    (r"control_model\.|controlnet_|zero_convs", "a ControlNet"),
    (r"ip_adapter\.|image_proj\.", "an IP-Adapter: for a face, it goes into models/ipadapter"),
    (r"double_blocks\.0\.", "a Flux model or a relative of it, a transformer and no UNet"),
    (r"joint_blocks\.0\.", "an SD3 model, a transformer and no UNet"),
    (r"^(down|up)_blocks\.\d+\.(resnets|attentions)\.", "a UNet alone in the layout of diffusers, without text encoder and VAE"),
    (r"^(model\.)?(diffusion_model\.)?input_blocks\.0\.", "a UNet alone, without text encoder and VAE"),
    (r"(transformer_blocks|blocks|layers)\.0\..*(attn|attention)", "a transformer and no UNet"),
    (r"vision_model\.", "a CLIP vision model: it goes into models/clip_vision"),
    (r"text_model\.|text_projection", "a text encoder alone"),
    (r"(encoder|decoder)\.(conv_in|mid)|^taesd_", "a VAE alone"),
    (r"emb_params|^clip_[lg]$|string_to_param", "an embedding of a word"),
)
# Words of distilled models. Shapes do not tell: a heuristic over the file's name and title, and the user is told which word it was.
# Names like HyperRealism are of ordinary models.
DISTILLED = (
    ("LCM", r"(?<![A-Za-z])(lcm|LCM)(?![a-z])|[a-z0-9]LCM(?![a-z])"), ("Turbo", r"(?i:turbo)"), ("Lightning", r"(?i:lightning)"),
    ("DMD2", r"(?<![A-Za-z])(?i:dmd)2?(?![a-z])"), ("Hyper", r"(?<![a-z])(?:hyper|Hyper|HYPER)(?![a-z]|[-_ ]?(?i:real))"),
)


@dataclass(frozen=True)
class Header:
    """shapes: {tensor: shape}; metadata: {word: text}; places: {tensor: (type, first byte, end)}."""

    shapes: dict
    metadata: dict = field(default_factory=dict)
    places: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """family: SD1.5, SD2.1 or SDXL; kind: a distilled model's, else None; steps: what it is distilled to.

    why: in which words the family and the kind were found. v: it predicts v and not the noise.
    """

    name: str
    family: str
    why: str
    kind: "str | None" = None
    steps: int = 0
    v: bool = False


def read_header(path: Path) -> Header:
    """The header of a safetensors file. AtelierError for anything else, pickles among it: those are never opened."""
    def wrong(text: str) -> AtelierError:
        return AtelierError(f"--checkpoint {path} {text}")

    if path.is_dir():
        raise wrong("is a folder: name the .safetensors file in it")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
            start = head.lstrip().lower()
            if path.suffix.lower() in PICKLES or head[:4] == b"PK\x03\x04" or re.match(rb"\x80[\x02-\x05]", head):
                raise wrong("is a pickle, which can run code when it is opened, so it was not: take the .safetensors file that most "
                            "pages offer beside it, or convert it with a tool you trust")
            if head.startswith(SIGNATURES):
                raise wrong("is a picture: pictures are given without an option, or with --content and --style")
            if head.startswith(b"GGUF"):
                raise wrong(f"is a GGUF file: {TAKES}")
            if start.startswith(b"version https://git-lfs"):
                raise wrong("is a git LFS pointer and not the weights: run git lfs pull, or download the file from its page")
            if start.startswith((b"<!doctype", b"<html", b"<?xml", b'{"error')):
                raise wrong("is a web page and not the weights: the download wants a login or an accepted licence; repeat it in the browser")
            length = int.from_bytes(head[:8], "little")
            if size < 10 or head[8:9] != b"{" or not 2 <= length <= LONGEST:
                raise wrong("is no safetensors file, or a damaged one" + (": it is empty" if not size else ""))
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise wrong(f"cannot be read: {error}") from error
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", None) or {}
        places = {name: (entry["dtype"], *map(int, entry["data_offsets"])) for name, entry in entries.items()}
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in entries.items()}
        end = 8 + length + max((place[2] for place in places.values()), default=0)
        metadata = {str(key): str(value) for key, value in metadata.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if len(text) < length:
            raise wrong("is cut off in its header: the download did not finish; repeat it") from error
        raise wrong("is a damaged safetensors file: its header cannot be read; download it again") from error
    if end > size:
        raise wrong(f"is cut off: it has {size / 1e9:.2f} of {end / 1e9:.2f} GB; the download did not finish, repeat it")
    return Header(shapes, metadata, {name: (kind, 8 + length + a, 8 + length + b) for name, (kind, a, b) in places.items()})


def inspect(path: Path) -> Checkpoint:
    """What the checkpoint at `path` is. AtelierError, with what it is instead, for one that the portrait workflows cannot use."""
    header = read_header(path)
    shapes = header.shapes

    def wrong(text: str) -> AtelierError:
        return AtelierError(f"--checkpoint {path} is {text}; {TAKES}")

    first = shapes.get(UNET + "input_blocks.0.0.weight")
    contexts = {shape[1] for name, shape in shapes.items()
                if name.startswith(UNET) and name.endswith(".attn2.to_k.weight") and len(shape) == 2}
    if not first or not contexts:
        what = next((what for pattern, what in OTHERS if any(re.search(pattern, name) for name in shapes)), None)
        raise wrong(what or f"no checkpoint of Stable Diffusion: its tensors are called {', '.join(list(shapes)[:2]) or 'nothing'}")
    context, channels = max(contexts), first[1] if len(first) > 1 else 0
    if context == 1280:
        raise wrong("the SDXL refiner, which only finishes pictures: take an SDXL base model")
    if channels != 4:
        raise wrong(f"{CHANNELS.get(channels, 'another')} checkpoint with {channels} input channels where 4 are needed")
    if context not in FAMILIES:
        raise wrong(f"of an unknown family: its cross-attention reads {context} values")
    family = FAMILIES[context]
    if family == "SD2.1" and UNET + "label_emb.0.0.weight" in shapes:
        raise wrong("an unCLIP checkpoint, which wants a picture's embedding")
    for part, prefixes in (("VAE", ("first_stage_model.", "vae.")), ("text encoder", ("cond_stage_model.", "conditioner."))):
        if not any(name.startswith(prefixes) for name in shapes):
            raise wrong(f"a checkpoint without {part}: take a whole one")
    kind, steps, word = distilled(path.name, header.metadata)
    return Checkpoint(path.name, family, f"its cross-attention reads {context} values{word}", kind, steps, predicts_v(path, header, family))


def distilled(name: str, metadata: dict) -> "tuple[str | None, int, str]":
    """(kind or None, steps, how it was found) of a checkpoint called `name`: a guess from words."""
    places = (("name", Path(name).stem), ("title in its metadata", metadata.get("modelspec.title", "")),
              ("metadata", metadata.get("modelspec.architecture", "")))
    for place, text in places:
        for kind, pattern in DISTILLED:
            if re.search(pattern, text):
                count = re.search(r"(?<!\d)([1248])[-_ ]?steps?", text, re.IGNORECASE)
                return kind, int(count[1]) if count else 4, f", the word {kind} in its {place}"
    return None, 0, ""


def predicts_v(path: Path, header: Header, family: str) -> bool:
    """Whether the model predicts v. SD2.1 shows it in one small tensor only, as ComfyUI looks at it."""
    if "v_pred" in header.shapes or header.metadata.get("modelspec.prediction_type", "").lower().startswith("v"):
        return True
    if family != "SD2.1":
        return bool(re.search(r"(?i)v[-_ ]?pred", path.name))
    kind, start, end = header.places.get(UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias", ("", 0, 0))
    if kind not in ("F32", "F16", "BF16") or not 4 <= end - start <= 65536:
        return False
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(end - start)
    if kind == "BF16":  # the upper half of a float32
        data, kind = b"".join(b"\0\0" + data[at:at + 2] for at in range(0, len(data), 2)), "F32"
    values = struct.unpack(f"<{len(data) // (4 if kind == 'F32' else 2)}{'f' if kind == 'F32' else 'e'}", data)
    return statistics.stdev(values) > 0.09


def named(name: str, metadata: dict) -> "Checkpoint | None":
    """What a checkpoint on another machine seems to be, of which only name and metadata are known; None where they do not tell."""
    architecture, stem = metadata.get("modelspec.architecture", "").lower(), Path(name).stem.lower()
    found = None
    for text, why in ((architecture, "its metadata"), (stem, "its name, a guess")):
        if "refiner" in text or "inpaint" in text or "/" in text:  # "/lora" and the like
            raise AtelierError(f"--checkpoint {name} is no checkpoint for this, says {why}: {text}; {TAKES}")
        for family, pattern in (("SDXL", r"xl|pony|illustrious|noobai"), ("SD2.1", r"diffusion-v2|v2-1|sd_?-?v?2[-._]?1|sd_turbo"),
                                ("SD1.5", r"diffusion-v1|v1-5|sd_?-?v?1[-._]?5")):
            if not found and re.search(pattern, text):
                found = family, why
    if not found:
        return None
    kind, steps, word = distilled(name, metadata)
    v = metadata.get("modelspec.prediction_type", "").lower().startswith("v") or bool(re.search(r"(?i)v[-_ ]?pred", name))
    return Checkpoint(name, found[0], "by " + found[1] + word, kind, steps, v)
