"""Which workflow and which settings a checkpoint gets when the call names only the checkpoint."""
import copy
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from . import models, workflow as workflows
from .checkpoint import Checkpoint
from .errors import AtelierError

DENOISE = 0.5
SIDES = {"SD1.5": 512, "SD2.1": 512, "SDXL": 1024}
GRAPHS = {"SD1.5": "zepo_sd15_lcm", "SD2.1": "zepo_sd15_lcm", "SDXL": "zepo_sdxl_lightning"}
FACES = {"SD1.5": "fastface_both_sd15_lcm", "SDXL": "fastface_both_sdxl_hyper"}
FACE_SAMPLERS = {"Hyper": "euler", "Lightning": "euler", "LCM": "lcm", "Turbo": "euler_ancestral"}  # as Few-Step Preset has them
ORDINARY = "ordinary"


@dataclass(frozen=True)
class Sampling:
    """What KSampler gets with denoise 0.5: the help page of SEAC Patch lists these. lcm: through ModelSamplingDiscrete lcm."""

    steps: int
    cfg: float
    sampler: str
    scheduler: str
    lcm: bool = False


def sampling(kind: str, steps: int = 4) -> Sampling:
    """For a distilled model of this kind, made for so many steps: half of them with half of the noise."""
    half = max(1, steps // 2)
    return {
        "LCM": Sampling(4, 2, "lcm", "simple", lcm=True), "Turbo": Sampling(2, 1, "euler_ancestral", "sgm_uniform"),
        "Lightning": Sampling(half, 1, "euler", "sgm_uniform"), "Hyper": Sampling(half, 1, "euler", "sgm_uniform"),
        "DMD2": Sampling(half, 1, "lcm", "sgm_uniform"), ORDINARY: Sampling(10, 5, "dpmpp_2m", "karras"),
    }[kind]


def few_step_lora(family: str, names: list, for_faces: bool = False) -> "tuple[str, dict] | None":
    """(name in the server's list, its entry in models.json) of the first few-step LoRA for `family` that the server has."""
    plain = {re.sub(r"[^a-z0-9]", "", PurePosixPath(str(name).replace("\\", "/")).stem.lower()): name for name in reversed(names)}
    for entry in wanted_loras(family, for_faces):
        key = re.sub(r"[^a-z0-9]", "", PurePosixPath(entry["name"]).stem.lower())
        if key in plain:
            return plain[key], entry
    return None


def wanted_loras(family: str, for_faces: bool = False) -> "list[dict]":
    """The few-step LoRAs of models.json for a family, the one to take first in front; for_faces: what FastFace's four steps can use."""
    found = [entry for entry in models.entries() if entry["folder"] == "loras" and entry.get("kind") and entry["family"] == family]
    if for_faces:
        first = {name for _, _, name, _ in models.needs(workflows.load(FACES[family]))}
        found = sorted((entry for entry in found if entry["steps"] == 4), key=lambda entry: entry["name"] not in first)
    return found


def choose(checkpoint: Checkpoint, loras: list, folders: str, face: bool) -> "tuple[str, dict, str]":
    """(name of the workflow, the workflow set up for `checkpoint`, the line that says what was chosen and why).

    `loras`: the server's list, looked for in `folders`. `face`: a person is to be drawn, and no picture stylized.
    Raises AtelierError where there is nothing to choose.
    """
    if face and checkpoint.family not in FACES:
        raise AtelierError(f"--checkpoint {checkpoint.name} is {checkpoint.family}, and face adapters are made for SD1.5 and SDXL only")
    if face and checkpoint.kind and checkpoint.kind not in FACE_SAMPLERS:
        raise AtelierError(f"--checkpoint {checkpoint.name} is of the kind {checkpoint.kind}, and the fastface workflows sample {', '.join(FACE_SAMPLERS)}")
    found = None if checkpoint.kind else few_step_lora(checkpoint.family, loras, face)
    lora, entry = found or (None, {})
    kind, steps = checkpoint.kind or entry.get("kind") or ORDINARY, checkpoint.steps or entry.get("steps", 4)
    wanted = next(iter(wanted_loras(checkpoint.family, face)), None)
    get = f"{wanted['name']}, which is not in {folders}: {models.source(wanted['name'], 'loras')}" if wanted else ""
    if face and kind == ORDINARY:
        raise AtelierError(f"--checkpoint {checkpoint.name} is an ordinary {checkpoint.family} model, and the fastface workflows sample in four "
                           f"steps: that takes the LoRA {get}")
    told = f"{checkpoint.name} is {checkpoint.family} ({checkpoint.why})"
    if checkpoint.kind:
        with_what, why = " without its LoRA", ", as it is distilled itself"
    elif lora:
        with_what, why = f" with {lora}", "; it predicts v, for which few-step LoRAs are not made: look at the result" if checkpoint.v else ""
    else:
        with_what = " without its LoRA"
        why = f"; slower than with {get}" if wanted else "; for this family there is no few-step LoRA"
    if face:
        name = FACES[checkpoint.family]
        return name, for_face(workflows.load(name), lora, kind), f"{told}: workflow {name}{with_what}{why}"
    values = sampling(kind, steps)
    side = 512 if kind == "Turbo" else 768 if (checkpoint.family, checkpoint.v) == ("SD2.1", True) else SIDES[checkpoint.family]
    name = GRAPHS[checkpoint.family]
    told += f": workflow {name}{with_what}, {side} x {side} pixels, {values.steps} steps, CFG {values.cfg}, {values.sampler}, {values.scheduler}"
    return name, for_picture(workflows.load(name), lora, values, side), told + why


def require_fit(checkpoint: Checkpoint, workflow: "str | None") -> None:
    """AtelierError when a LoRA of the shipped `workflow` is made for another family than the checkpoint's."""
    for _, _, name, folder in models.needs(workflows.load(workflow)) if workflow else []:
        family = (models.entry(name, folder) or {}).get("family")
        if folder == "loras" and family not in (None, checkpoint.family):
            raise AtelierError(f"--checkpoint {checkpoint.name} is {checkpoint.family} ({checkpoint.why}), and the LoRA of workflow {workflow} is made "
                               f"for {family}: leave out --workflow, and the one that fits is taken")


def for_picture(workflow: dict, lora: "str | None", values: Sampling, side: int) -> dict:
    """A ZePo graph with this LoRA or none, these values, and pictures of `side` x `side` pixels."""
    workflow = with_model(workflow, lora, values.lcm)
    for entry in workflow.values():
        if entry["class_type"] == "KSampler":
            entry["inputs"].update(steps=values.steps, cfg=values.cfg, sampler_name=values.sampler, scheduler=values.scheduler, denoise=DENOISE)
        elif entry["class_type"] == "ImageScale":
            entry["inputs"].update(width=side, height=side)
    return workflow


def for_face(workflow: dict, lora: "str | None", kind: str) -> dict:
    """A FastFace graph with this LoRA or none, sampled as this kind of distilled model wants it."""
    workflow = with_model(workflow, lora, kind == "LCM")
    for entry in workflow.values():
        if entry["class_type"] == "KSampler":
            entry["inputs"]["sampler_name"] = FACE_SAMPLERS[kind]
        elif entry["class_type"] == "EmptyLatentImage" and kind == "Turbo":
            entry["inputs"].update(width=512, height=512)
    return workflow


def with_model(workflow: dict, lora: "str | None", lcm: bool) -> dict:
    """A copy whose LoRA loader loads `lora` or is left out, with ModelSamplingDiscrete lcm behind it or not."""
    workflow = copy.deepcopy(workflow)
    loader, = workflows.titled(workflow, ("LoraLoaderModelOnly",), None)
    timesteps = workflows.titled(workflow, ("ModelSamplingDiscrete",), None)
    if lcm and not timesteps:
        redirect(workflow, loader, ["lcm", 0])
        workflow["lcm"] = {"class_type": "ModelSamplingDiscrete", "inputs": {"model": [loader, 0], "sampling": "lcm", "zsnr": False},
                           "_meta": {"title": "ModelSamplingDiscrete"}}
    for node in ([] if lcm else timesteps) + ([] if lora else [loader]):
        redirect(workflow, node, workflow.pop(node)["inputs"]["model"])
    if lora and lora != workflow[loader]["inputs"]["lora_name"]:
        workflow[loader]["inputs"]["lora_name"], workflow[loader]["_meta"] = lora, {"title": "Few-step LoRA"}
    return workflow


def redirect(workflow: dict, node: str, model: list) -> None:
    """Let all that takes the model of `node` take `model`, [node, output]."""
    for entry in workflow.values():
        entry["inputs"] = {name: model if value == [node, 0] else value for name, value in entry["inputs"].items()}
