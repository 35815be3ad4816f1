"""Files of MMFS and StyleGAN2: read without running what is in them, told apart by their tensors, checked, written."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from ..identity.weights import SAFE, not_finite, read_tensors
from .discriminator import Discriminator
from .generator import Generator
from .layers import Fir, Upsample, blur_kernel
from .stylizer import Stylizer

# In the order of preference: what a training file calls the network whose weights are averaged, and the trained one.
NETWORKS = ("G_ema_model", "G_model", "g_ema", "g", "state_dict")
DISCRIMINATORS = ("D_model", "d")
# Of networks that are often taken for these: the name, and what a key of theirs begins with.
OTHERS = (
    ("StyleGAN3 generator", "synthesis.L"),
    ("StyleGAN3 generator", "synthesis.input."),
    ("StyleGAN2-ADA generator in NVIDIA's own layout (convert it to the `g_ema` layout)", "synthesis.b"),
    ("StyleGAN encoder (pSp, e4e)", "encoder.input_layer."),
    ("DualStyleGAN generator", "generator."),
    ("Stable Diffusion checkpoint", "model.diffusion_model."),
    ("LoRA", "lora_"),
    ("FaceID adapter", "image_proj."),
)


@dataclass(frozen=True)
class Checkpoint:
    kind: str  # "stylizer" or "generator"
    state: dict[str, torch.Tensor]  # fits `network` exactly; the types of the file
    phase: int | None  # of a stylizer: 2 without a CLIP mapper, else 3; what the file says goes before
    metadata: dict[str, str] = field(default_factory=dict)  # of our own files: phase, prompt, parent
    discriminator: dict[str, torch.Tensor] | None = None  # of training files


def read(path: str | Path) -> Checkpoint:
    """The network of a file, checked key by key. Raises ValueError, with what was found, for everything else.

    Whole training files (`G_ema_model`, `g_ema` ...), plain dictionaries of weights, keys that begin with `module.`,
    and safetensors are read alike.
    """
    tensors = read_tensors(path)
    own = next((name for name in NETWORKS if any(key.startswith(f"{name}.") for key in tensors)), None)
    judge = next((name for name in DISCRIMINATORS if any(key.startswith(f"{name}.") for key in tensors)), None)
    state = without_prefix(tensors, own)
    kind = kind_of(state)
    if kind not in ("stylizer", "generator"):
        raise ValueError(
            f"'{path}' is no MMFS or StyleGAN2 file: it looks like {kind}; {five(state)}. Choose a file of MMFS, or a "
            "StyleGAN2 generator in the `g_ema` layout."
        )
    network = shaped(path, kind, state)
    bad = not_finite(state)
    if bad:
        raise ValueError(f"'{path}' has NaN or infinite values in '{bad}': the file is damaged. Download it again.")
    metadata = read_metadata(path)
    phase = None
    if kind == "stylizer":
        phase = (
            int(metadata["phase"]) if metadata.get("phase", "").isdigit() else 2 if network.clip_mapper is None else 3
        )
    found = without_prefix(tensors, judge) if judge else None
    if found is not None:
        shaped(path, "discriminator", found)
    return Checkpoint(kind, state, phase, metadata, found)


def without_prefix(tensors: dict[str, torch.Tensor], name: str | None) -> dict[str, torch.Tensor]:
    """The tensors under `name` (all without a name), less the `module.` of parallel training."""
    state = (
        {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        if name
        else tensors
    )
    return {key.removeprefix("module."): value for key, value in state.items()}


def kind_of(state: dict[str, torch.Tensor]) -> str:
    """ "stylizer", "generator", "a discriminator alone", or in words what else a dictionary of weights looks like."""
    if "decoder0.conv.weight" in state:
        return "stylizer"
    if "input.input" in state and "conv1.conv.weight" in state:
        return "generator"
    if "final_linear.0.weight" in state:
        return "a discriminator alone"
    found = next((name for name, start in OTHERS if any(key.startswith(start) for key in state)), None)
    return f"a {found}" if found else "another network"


def five(keys) -> str:
    keys = list(keys)
    shown = ", ".join(keys[:5])
    return f"its first keys of {len(keys)}: {shown}" if keys else "it holds no weights"


def shaped(path, kind: str, state: dict[str, torch.Tensor]) -> nn.Module:
    """The network, on the meta device, that `state` fits. Low passes, which are constants, are compared and filled in.

    Raises ValueError where keys or shapes are not those of any such network.
    """
    try:
        network = skeleton(kind, state)
    except (KeyError, IndexError, ValueError, RuntimeError, StopIteration) as error:
        raise ValueError(f"'{path}' is not a whole {kind}: {error}; {five(state)}.") from error
    expected = network.state_dict()
    for name, module in network.named_modules():
        if isinstance(module, (Fir, Upsample)):
            key, kernel = f"{name}.kernel", blur_kernel(module.gain)
            given = state.get(key, kernel)
            if given.shape != kernel.shape or (given.float() - kernel).abs().max() > 1e-6:
                raise ValueError(
                    f"'{path}' was trained with another low pass than (1, 3, 3, 1): '{key}'. It cannot be used."
                )
            state[key] = kernel
    lacking, odd = [key for key in expected if key not in state], [key for key in state if key not in expected]
    unlike = [
        f"{key} {list(state[key].shape)} instead of {list(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    for what, keys in (("lacks", lacking), ("has unknown", odd), ("has other shapes:", unlike)):
        if keys:
            raise ValueError(
                f"'{path}' is not a whole {kind}: it {what} {', '.join(keys[:5])}"
                + (f" and {len(keys) - 5} more." if len(keys) > 5 else ".")
            )
    return network


def skeleton(kind: str, state: dict[str, torch.Tensor]) -> nn.Module:
    """A network without weights, as wide and deep as the shapes tell. Raises KeyError, IndexError or ValueError."""

    def rows(key):
        return state[key].shape[0]

    def inputs(key):
        return state[key].shape[1]

    def count(start, place):
        return 1 + max((int(key.split(".")[place]) for key in state if key.startswith(start)), default=-1)

    with torch.device("meta"):
        if kind == "stylizer":
            levels = max(int(key[len("to_rgb")]) for key in state if key.startswith("to_rgb"))
            channels = tuple(state[f"decoder{level}b.conv.weight"].shape[1] for level in range(levels, 0, -1))
            mapper = any(key.startswith("clip_mapper.") for key in state)
            return Stylizer(
                channels,
                inputs("decoder0.conv.modulation.weight"),
                mapper,
                count("mapping_z.", 1) - 1,
                count("clip_mapper.transformer.layers.", 3) if mapper else 4,
            )
        if kind == "generator":
            channels = [
                inputs("input.input"),
                *(inputs(f"convs.{number}.conv.weight") for number in range(1, count("convs.", 1), 2)),
            ]
            return Generator(tuple(channels), inputs("conv1.conv.modulation.weight"), count("style.", 1) - 1)
        return Discriminator(
            (
                rows("convs.0.0.weight"),
                *(rows(f"convs.{number}.skip.1.weight") for number in range(1, count("convs.", 1))),
            )
        )


def read_metadata(path: str | Path) -> dict[str, str]:
    if Path(path).suffix.lower() not in SAFE:
        return {}
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata() or {}


def network(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Stylizer | Generator:
    """The checkpoint's network with its weights, in evaluation mode and without gradients."""
    return filled(checkpoint.kind, checkpoint.state, dtype)


def discriminator(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Discriminator:
    """As `network`. Raises ValueError where the file has none."""
    if checkpoint.discriminator is None:
        raise ValueError("the file holds no discriminator (`D_model` or `d`): training needs a whole training file")
    return filled("discriminator", checkpoint.discriminator, dtype)


def filled(kind: str, state: dict[str, torch.Tensor], dtype: torch.dtype) -> nn.Module:
    made = skeleton(kind, state)
    # Copies: what trains the network must not write into the checkpoint.
    made.load_state_dict({key: value.to(dtype, copy=True) for key, value in state.items()}, assign=True)
    return made.requires_grad_(False).eval()


def warm_start(generator: Checkpoint, cold: bool = False, levels: int = 4) -> Stylizer:
    """A stylizer for training's phase 1: StyleGAN2's mapping and the layers of its last `levels` sizes, with an encoder
    to features of half the least of them, which is random.

    decoder0 and to_rgb0 begin with StyleGAN2's layers of that size; `cold`: at random, as in the published code. Raises
    ValueError for a generator without these layers.
    """
    if generator.kind != "generator":
        raise ValueError(f"training's first phase begins with a StyleGAN2 generator, not with a {generator.kind}")
    state, plan = generator.state, skeleton("generator", generator.state)
    start = len(plan.channels) - levels  # of the layers of twice the features' size
    if start < 1 or plan.channels[start - 1] != plan.channels[start]:
        raise ValueError(
            f"a StyleGAN2 generator of {plan.size} pixels with channels {list(plan.channels)} does not fit {levels} "
            f"levels: it needs {4 * 2**levels} pixels at least, and as many channels at 1/{2**levels} of its size as "
            f"at 1/{2**levels // 2}"
        )
    made = Stylizer(plan.channels[start:][::-1], plan.width, mapping_layers=len(plan.style) - 1)
    parts = {"style": "mapping_z"}
    for level in range(1 if cold else 0, levels + 1):
        at = start + level - 1  # place of this size in the channels; the first size has names of its own
        parts[f"convs.{2 * at - 1}" if at else "conv1"] = f"decoder{level}b" if level else "decoder0"
        parts[f"to_rgbs.{at - 1}" if at else "to_rgb1"] = f"to_rgb{level}"
        if level:
            parts[f"convs.{2 * at - 2}"] = f"decoder{level}a"
    moved = {
        target + key.removeprefix(source): value
        for source, target in parts.items()
        for key, value in state.items()
        if key.startswith(f"{source}.")
    }
    moved.pop("to_rgb0.upsample.kernel", None)  # it is the first here: there is no smaller picture below it
    made.load_state_dict(made.state_dict() | {key: value.float() for key, value in moved.items()})
    return made


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file, by which `parent` in the metadata names what a network was trained from."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save(
    path: str | Path,
    state: dict[str, torch.Tensor],
    metadata: dict[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write weights as safetensors of one type, with the keys of the published files; metadata: phase, prompt, parent.

    The file appears when it is whole: one of that name stays until then. Raises ValueError for values that the type
    cannot hold.
    """
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
    bad = not_finite(tensors)
    if bad:
        raise ValueError(
            f"'{bad}' does not fit into {str(dtype).removeprefix('torch.')}, or is not finite: nothing was saved. "
            "Save as float32."
        )
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        safetensors.torch.save_file(
            tensors, part, metadata={key: str(value) for key, value in (metadata or {}).items()}
        )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def convert(source: str | Path, target: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """A file of any layout that `read` knows as safetensors, its discriminator left out."""
    found = read(source)
    phase = {} if found.phase is None else {"phase": str(found.phase)}
    save(target, found.state, {**phase, "parent": fingerprint(source), **found.metadata}, dtype)
