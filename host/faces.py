"""Face packs and FaceID files in ComfyUI's model folders, insightface on top of onnxruntime, and CLIP's view of a face.

insightface fetches a pack that it cannot find. So it only ever gets the absolute path of a folder that was looked at first.
"""

import os
import sys
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch

from ..identity import analysis as maths
from ..identity.faces import FaceIdentity, mean_identity
from .kit.managed import Managed
from .log import log
from .onnx_limits import check_declared, session_options

LOADER, ENCODE = "Face Analysis Loader", "Face Identity Encode"
PACKS, ADAPTERS = "insightface", "ipadapter"
DEEPEST = 4  # folders below models/insightface; zip files nest models/antelopev2/antelopev2
PROVIDERS = {"CUDA": "CUDAExecutionProvider", "ROCm": "MIGraphXExecutionProvider", "DirectML": "DmlExecutionProvider",
             "CoreML": "CoreMLExecutionProvider", "CPU": "CPUExecutionProvider"}
AUTOMATIC = ("CUDA", "ROCm", "DirectML")  # CoreML compiles for minutes and gains little on two small networks

for folder in (PACKS, ADAPTERS):
    folder_paths.add_model_folder_path(folder, os.path.join(folder_paths.models_dir, folder))


# --- files

def face_packs() -> dict[str, Path]:
    """{name below its insightface folder: absolute path} of every folder that holds .onnx files; buffalo_l, which FaceID knows, first."""
    found = {}
    for root in map(os.path.abspath, folder_paths.get_folder_paths(PACKS)):
        for path, folders, files in os.walk(root, followlinks=True):
            name = Path(path).relative_to(root)
            if len(name.parts) >= DEEPEST:
                folders.clear()
            if any(file.endswith(".onnx") for file in files):
                found.setdefault(name.as_posix(), Path(path))
    return dict(sorted(found.items(), key=lambda item: (item[1].name != "buffalo_l", item[0])))


def adapter_files() -> list[str]:
    return [name for name in folder_paths.get_filename_list(ADAPTERS) if name.lower().endswith((".safetensors", ".bin"))]


def where(folder: str) -> str:
    return " or ".join(map(os.path.abspath, folder_paths.get_folder_paths(folder)))


def choices(names: list[str], missing: str) -> list[str]:
    """What a combo shows. An empty one cannot be told from a broken one, so it says what to do."""
    return names or [missing]


def pack_path(name: str) -> Path:
    """The folder of a face pack by its name in the combo. Raises ValueError when there is none."""
    packs = face_packs()
    if name not in packs:
        problem = f"no face pack '{name}' in {where(PACKS)} (found: {', '.join(packs)})" if packs else f"no face pack in {where(PACKS)}"
        raise ValueError(f"{LOADER}: {problem}. Nothing is downloaded: unpack buffalo_l.zip from insightface's releases into "
                         f"{first(PACKS) / 'models' / 'buffalo_l'}.")
    return packs[name]


def adapter_path(name: str) -> str:
    """The path of an adapter file by its name in the combo. Raises ValueError when there is none."""
    path = folder_paths.get_full_path(ADAPTERS, name)
    if path is None:
        problem = f"no file '{name}' in {where(ADAPTERS)}" if adapter_files() else f"no adapter files in {where(ADAPTERS)}"
        raise ValueError(f"Face Adapter Loader: {problem}. Put an IP-Adapter FaceID file such as ip-adapter-faceid-plusv2_sdxl.bin into "
                         f"{first(ADAPTERS)}.")
    return path


def first(folder: str) -> Path:
    return Path(os.path.abspath(folder_paths.get_folder_paths(folder)[0]))


# --- packages

def install_command() -> str:
    """The one command that installs insightface and leaves a working onnxruntime.

    insightface brings the CPU's onnxruntime, whose files overwrite those of onnxruntime-gpu, and an uninstalled one leaves an
    empty module that pip believes in. So the runtime comes last, and is forced.
    """
    runtime = "onnxruntime-gpu" if torch.cuda.is_available() and not torch.version.hip else "onnxruntime"
    pip = f'"{sys.executable}" -m pip install'
    return f"{pip} insightface && {pip} --force-reinstall --no-deps {runtime}"


def import_runtime():
    """onnxruntime. Raises ValueError when it is missing or an empty shell."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"{LOADER}: the package onnxruntime is missing ({error}). Run: {install_command()}") from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise ValueError(f"{LOADER}: the package onnxruntime is an empty shell, as is left when one of onnxruntime and onnxruntime-gpu is "
                         f"uninstalled. Run: {install_command()}")
    return onnxruntime


def import_insightface():
    """insightface's FaceAnalysis. Raises ValueError when it is missing."""
    try:
        from insightface.app import FaceAnalysis
    except ImportError as error:
        raise missing_insightface(LOADER, error) from error
    return FaceAnalysis


def missing_insightface(node: str, error: ImportError) -> ValueError:
    command = install_command()
    if "libGL" in str(error):  # opencv-python on a server without a screen
        command = f'"{sys.executable}" -m pip install --force-reinstall --no-deps opencv-python-headless'
    return ValueError(f"{node}: the package insightface cannot be imported ({error}). Run: {command}")


def execution_providers(choice: str, available: list[str]) -> list[str]:
    """onnxruntime's providers for `auto` or a name of `PROVIDERS`, the CPU always last. Raises ValueError for one that is absent."""
    if choice == "auto":
        wanted = [PROVIDERS[name] for name in AUTOMATIC if PROVIDERS[name] in available]
    elif PROVIDERS[choice] in available:
        wanted = [PROVIDERS[choice]]
    else:
        names = [name for name, provider in PROVIDERS.items() if provider in available]
        raise ValueError(f"{LOADER}: this onnxruntime has no provider '{choice}'; it has {', '.join(names)}. Choose one of them or auto. "
                         f"To reinstall the packages: {install_command()}")
    return list(dict.fromkeys([*wanted, PROVIDERS["CPU"]]))


# --- analysis

class Analysis:
    """FACE_ANALYSIS: insightface's FaceAnalysis, open as long as ComfyUI has memory for it."""

    def __init__(self, managed: Managed):
        self._managed = managed

    def get(self, bgr: np.ndarray) -> list:
        return self._managed.use(lambda loaded: loaded.get(bgr))

    def __getattr__(self, name: str):
        if name.startswith("_"):  # of nobody else; a copy that is being made has not even its own
            raise AttributeError(name)
        return getattr(self._managed.opened(), name)


def load_analysis(pack: str, provider: str = "auto") -> Analysis:
    """insightface's FaceAnalysis with the detector and the recogniser of a pack. Raises ValueError that says what is missing."""
    path = pack_path(pack)
    files = {file.name: file.stat().st_size for file in sorted(path.glob("*.onnx"))}
    listing = ", ".join(f"{name} ({size} bytes)" for name, size in files.items())
    incomplete = (f"{LOADER}: the face pack in {path} is not complete: it needs a detector and a recogniser, as buffalo_l has with det_10g.onnx "
                  f"and w600k_r50.onnx. Found: {listing}. Unpack the whole zip file again.")
    if len(files) < 2 or not all(files.values()):
        raise ValueError(incomplete)
    runtime = import_runtime()
    face_analysis = import_insightface()
    providers = execution_providers(provider, runtime.get_available_providers())
    on_cpu = providers == [PROVIDERS["CPU"]]

    def make():
        try:
            loaded = face_analysis(name=str(path), allowed_modules=["detection", "recognition"], providers=providers,
                                   sess_options=session_options())
        except AssertionError as error:
            raise ValueError(incomplete) from error
        except Exception as error:  # onnxruntime's own errors share no base class
            raise ValueError(f"{LOADER}: the face pack in {path} could not be loaded: {str(error).splitlines()[0]} Found: {listing}. "
                             "Unpack the zip file again.") from error
        if "recognition" not in loaded.models:
            raise ValueError(incomplete)
        for model in loaded.models.values():
            check_declared(model.session, f"{LOADER}: '{Path(model.model_file).name}' in {path}")
        # Without det_size insightface 2 looks at two sizes and finds other boxes than the adapters' authors did.
        loaded.prepare(ctx_id=-1 if on_cpu else 0, det_size=(maths.SIZES[0], maths.SIZES[0]))
        return loaded

    device = torch.device("cpu") if on_cpu else comfy.model_management.get_torch_device()
    managed = Managed("face analysis", make, sum(files.values()), device)
    managed.use(lambda loaded: loaded)
    return Analysis(managed)


# --- CLIP

def clip_states(clip_vision, pixels: torch.Tensor) -> torch.Tensor:
    """Penultimate hidden states [1, tokens, hidden] of an aligned face [224, 224, 3] in 0..1."""
    return clip_vision.encode_image(pixels[None])["penultimate_hidden_states"].float().cpu()


def grey_states(clip_vision) -> torch.Tensor:
    """The same of nothing: zeros after normalisation. As a picture that is CLIP's mean colour, which 8 bits cannot hold."""
    comfy.model_management.load_model_gpu(clip_vision.patcher)
    side = clip_vision.image_size
    zeros = torch.zeros(1, 3, side, side, device=clip_vision.load_device)
    return clip_vision.model(pixel_values=zeros, intermediate_output=-2)[1].float().cpu()


def check_clip(clip_vision) -> None:
    kind = getattr(clip_vision, "model_type", type(clip_vision).__name__)
    if kind != "clip_vision_model":
        raise ValueError(f"{ENCODE}: clip_vision is a model of kind '{kind}', but FaceID-Plus needs CLIP. Load CLIP-ViT-H-14 with Load CLIP Vision.")


# --- encoding

def encode(analysis, images: torch.Tensor, clip_vision=None, *, pick: str = "largest", face_index: int = 0, if_no_face: str = "error",
           combine: str = "mean", bgr_clip: bool = True) -> tuple[FaceIdentity, torch.Tensor, int]:
    """The person or people in a batch of photos [photos, height, width, channels].

    Photos without a face are left out, or repeat the face before them with if_no_face "previous". Without any face, "skip" gives an
    identity that is not found and the others raise ValueError. combine: "mean" makes one person of all photos, "tokens" one of each.
    Returns the identity, the aligned faces [photos with a face, 224, 224, 3] in RGB, and in how many photos there was a face.
    """
    if clip_vision is not None:
        check_clip(clip_vision)
    progress = comfy.utils.ProgressBar(len(images))
    found = []
    for number, image in enumerate(images):
        found.append(photo(analysis, image, number, pick, face_index))
        progress.update(1)  # also where Cancel is noticed
    count = sum(face is not None for face in found)
    faceless = [str(number + 1) for number, face in enumerate(found) if face is None]
    if not count:
        return nobody(found, if_no_face)
    if if_no_face == "previous":
        found = maths.repeat_previous(found)
    if faceless:
        log.warning("%s: no face in photo %s of %d; %s.", ENCODE, ", ".join(faceless), len(images),
                    "the face before stands in where there is one" if if_no_face == "previous" else "left out")
    faces = [face for face in found if face is not None]
    crops = torch.stack([torch.from_numpy(np.ascontiguousarray(crop)) for _, crop in faces]).float() / 255
    embedding = torch.stack([torch.from_numpy(np.array(values, np.float32)) for values, _ in faces])
    clip = grey = None
    if clip_vision is not None:
        clip = torch.cat([clip_states(clip_vision, crop if bgr_clip else crop.flip(-1)) for crop in crops])
        grey = grey_states(clip_vision)
    identity = FaceIdentity(embedding, clip, grey)
    return mean_identity(identity) if combine == "mean" else identity, crops.flip(-1), count


def photo(analysis, image: torch.Tensor, number: int, pick: str, face_index: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Embedding and aligned BGR crop of one photo's face, or None."""
    try:
        bgr = maths.to_bgr(image)
        face = maths.pick_face(maths.find_faces(analysis, bgr), pick, face_index)
        return None if face is None else (face.normed_embedding, maths.align(bgr, face))
    except ValueError as error:
        raise ValueError(f"{ENCODE}: photo {number + 1} of the batch: {error}.") from error
    except ImportError as error:
        raise missing_insightface(ENCODE, error) from error


def nobody(found: list, if_no_face: str) -> tuple[FaceIdentity, torch.Tensor, int]:
    if if_no_face != "skip":
        sizes = ", ".join(map(str, maths.SIZES))
        raise ValueError(f"{ENCODE}: no face found in {'the photo' if len(found) == 1 else f'any of the {len(found)} photos'} (searched at sizes "
                         f"{sizes}). Use a photo that shows the whole face with space around it, or set if_no_face to skip.")
    log.warning("%s: no face found; Face Adapter Apply will leave the model as it is.", ENCODE)
    return FaceIdentity(found=False), torch.zeros(1, maths.CROP, maths.CROP, 3), 0
