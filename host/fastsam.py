"""FastSAM through ONNX Runtime, which is optional: it is imported when a model is loaded."""

import os
import sys
import weakref
from dataclasses import dataclass

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch

from ..segmentation import contract, masks, preprocess
from .kit.managed import Managed
from .log import log
from .onnx_limits import session_options

FOLDER = "fastsam"
PROVIDERS = ["auto", "cpu"]
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
PRECISION = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

MISSING = ('FastSAM needs onnxruntime, which this Python does not have. Install exactly one: "{python} -m pip install onnxruntime" (CPU) or '
           '"{python} -m pip install onnxruntime-gpu" (NVIDIA). Then restart ComfyUI. Without it, connect any other MASK, for example from '
           "SAM3 Detect.")
BROKEN = ("onnxruntime is installed but unusable (no InferenceSession). Usually one of two variants was removed. Run "
          '"{python} -m pip uninstall -y onnxruntime onnxruntime-gpu", install exactly one again, then restart ComfyUI.')

folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


@dataclass(frozen=True, eq=False)
class FastSAM:
    """A network, of which `session` holds the InferenceSession. size: (height, width) of a model exported for one input size, else None."""

    name: str
    session: Managed
    input: str
    precision: type
    size: tuple[int, int] | None


def model_names() -> list[str]:
    """ONNX files in the fastsam folders, then .pt files: those are listed so that choosing one tells what to do with it."""
    names = folder_paths.get_filename_list(FOLDER)
    return [name for end in (".onnx", ".pt") for name in names if name.lower().endswith(end)]


def model_path(name: str) -> str:
    """Where the file is. Raises ValueError where it is not, and for files that are not ONNX; those are never opened."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        folders = " or ".join(folder_paths.get_folder_paths(FOLDER))
        raise ValueError(f"There is no FastSAM model '{name}' in {folders}. Put a FastSAM .onnx file there and press R in ComfyUI.")
    if not name.lower().endswith(".onnx"):
        raise ValueError(f"'{name}' is no ONNX file: export to ONNX first, and put the .onnx file beside it in {os.path.dirname(path)}. Other files are "
                         "not opened, because they can run code.")
    return path


def load(name: str, provider: str) -> FastSAM:
    """Opens a file of the fastsam folders; one that is in use and unchanged is the same again. provider: auto (CUDA, else CPU) or cpu.

    Raises ValueError for a missing onnxruntime and for files that are not FastSAM.
    """
    path = model_path(name)
    key = path, os.stat(path).st_mtime_ns, provider
    if key not in _in_use:
        _in_use[key] = model = _open(name, path, provider)
        return model
    return _in_use[key]


def runtime():
    """The module onnxruntime. Raises ValueError with the command that installs it."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ValueError(MISSING.format(python=sys.executable)) from None
    if not hasattr(onnxruntime, "InferenceSession"):
        raise ValueError(BROKEN.format(python=sys.executable))
    return onnxruntime


_in_use = weakref.WeakValueDictionary()


def _open(name: str, path: str, provider: str) -> FastSAM:
    onnxruntime = runtime()
    device = torch.device("cpu")
    if provider == "auto" and CUDA in onnxruntime.get_available_providers():
        device = comfy.model_management.get_torch_device()
    managed = Managed("FastSAM", lambda: _session(onnxruntime, path, provider), os.path.getsize(path), device)
    session = managed.use(lambda session: session)
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in PRECISION:
        shown = ", ".join(f"'{entry.name}' {entry.type} {entry.shape}" for entry in inputs)
        raise ValueError(f"'{name}' is no FastSAM: it must take one picture of float32 or float16, but takes {shown}.")
    try:
        size = contract.fixed_size(inputs[0].shape, inputs[0].name)
        contract.check_outputs(((entry.name, entry.shape) for entry in session.get_outputs()), size or (contract.LARGEST, contract.LARGEST))
    except ValueError as error:
        raise ValueError(f"'{name}': {error}") from None
    return FastSAM(name, managed, inputs[0].name, PRECISION[inputs[0].type], size)


def _session(onnxruntime, path: str, provider: str):
    if provider == "auto":
        reason = "this onnxruntime has no CUDA"
        if CUDA in onnxruntime.get_available_providers():
            try:
                session = onnxruntime.InferenceSession(path, session_options(), providers=[CUDA, CPU])
                if CUDA in session.get_providers():
                    return session
                reason = "CUDA did not open"
            except Exception as error:       # the runtime raises classes of its own, which share no other base
                reason = f"CUDA did not open: {_first_line(error)}"
        log.warning("FastSAM runs on the CPU: %s.", reason)
    try:
        return onnxruntime.InferenceSession(path, session_options(), providers=[CPU])
    except Exception as error:
        raise ValueError(f"{path} cannot be opened as an ONNX model: {_first_line(error)}. Copy or export the file again.") from None


def segment(model: FastSAM, images: torch.Tensor, size: int, conf: float, iou: float, max_det: int, mode: str) -> tuple[masks.Segments, ...]:
    """Runs the network on every picture of [images, height, width, RGB]; parameters as `masks.segments`, size as `preprocess.plan`.

    Raises ValueError where the network's outputs are not FastSAM's.
    """
    if model.size and max(model.size) != size:
        log.warning("FastSAM model '%s' was exported for %d x %d pixels; size %d is not used.", model.name, model.size[1], model.size[0], size)
    progress, found = comfy.utils.ProgressBar(len(images)), []
    for image in images:
        comfy.model_management.throw_exception_if_processing_interrupted()
        image = image[..., :3].float().cpu()
        geometry = preprocess.plan(*image.shape[:2], size, model.size)
        pixels = preprocess.fit(image, geometry)
        table, prototypes = contract.split_outputs(*_run(model, pixels), tuple(pixels.shape[2:]))
        found.append(masks.segments(table, prototypes, geometry, image, conf, iou, max_det, mode))
        if not len(found[-1].masks):
            log.warning("FastSAM found nothing above conf %g in picture %d; the best score is %.3f.", conf, len(found), found[-1].best)
        progress.update(1)
    return tuple(found)


def _run(model: FastSAM, pixels: torch.Tensor) -> tuple[list[str], list[np.ndarray]]:
    def outputs(session) -> tuple[list[str], list[np.ndarray]]:
        names = [entry.name for entry in session.get_outputs()]
        return names, session.run(names, {model.input: pixels.numpy().astype(model.precision)})

    try:
        return model.session.use(outputs)
    except Exception as error:
        raise ValueError(f"FastSAM model '{model.name}' failed on an input of {pixels.shape[3]} x {pixels.shape[2]}: {_first_line(error)}. Choose "
                         "another size, or provider cpu.") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
