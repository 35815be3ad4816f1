"""The models of a workflow, in one node each, and what the notes say of their files."""

from .editor_json import Level

HUB = "https://huggingface.co"
CHECKPOINT_SD15 = f"""**models/checkpoints**: \
[v1-5-pruned-emaonly-fp16.safetensors]({HUB}/Comfy-Org/stable-diffusion-v1-5-archive) (2.1 GB, CreativeML Open \
RAIL-M), or any SD1.5 checkpoint."""
CHECKPOINT_SDXL = f"""**models/checkpoints**: \
[sd_xl_base_1.0.safetensors]({HUB}/stabilityai/stable-diffusion-xl-base-1.0) (6.9 GB, CreativeML Open RAIL++-M), or \
any SDXL checkpoint."""
LCM_LORA = f"""**models/loras**: [lcm-lora-sdv1-5.safetensors]({HUB}/latent-consistency/lcm-lora-sdv1-5) (135 MB, \
CreativeML Open RAIL++-M), there called pytorch_lora_weights.safetensors: **rename it**."""
FACES = f"""**models/ipadapter**: [FILE]({HUB}/h94/IP-Adapter-FaceID). Its LoRA is inside.

**models/clip_vision**: \
[CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors]({HUB}/h94/IP-Adapter/tree/main/models/image_encoder), there called \
model.safetensors: **rename it**.

**models/insightface/models/buffalo_l**: buffalo_l.zip from insightface's releases, unpacked. **For non-commercial \
research only.**

The package **insightface** is needed too; where it is missing, the error names the one command that installs it."""


def download(name: str, folder: str, path: str) -> list:
    """What the editor offers to download."""
    return [{"name": name, "url": f"{HUB}/{path}", "directory": folder}]


SD15 = download(
    "v1-5-pruned-emaonly-fp16.safetensors",
    "checkpoints",
    "Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
)
SDXL = download(
    "sd_xl_base_1.0.safetensors",
    "checkpoints",
    "stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
)
LCM = download(
    "lcm-lora-sdv1-5.safetensors",
    "loras",
    "latent-consistency/lcm-lora-sdv1-5/resolve/main/pytorch_lora_weights.safetensors",
)
LIGHTNING = download(
    "sdxl_lightning_4step_lora.safetensors",
    "loras",
    "ByteDance/SDXL-Lightning/resolve/main/sdxl_lightning_4step_lora.safetensors",
)
HYPER = download(
    "Hyper-SDXL-4steps-lora.safetensors", "loras", "ByteDance/Hyper-SD/resolve/main/Hyper-SDXL-4steps-lora.safetensors"
)
CLIP_VISION = download(
    "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
    "clip_vision",
    "h94/IP-Adapter/resolve/main/models/image_encoder/model.safetensors",
)


def demo_model(info: dict, faces: bool = False) -> tuple:
    s = Level(info, "Demo model and faces" if faces else "Demo model", 411 if faces else 401)
    loader = s.node("AtelierDemoModelLoader", [0, 0], [270, 70])
    lcm = s.node("ModelSamplingDiscrete", [320, 0], [270, 90], sampling="lcm", model=(loader, 0))
    s.output("model", (lcm, 0))
    s.output("clip", (loader, 1))
    s.output("vae", (loader, 2))
    if faces:
        face = s.node("AtelierDemoFaceLoader", [0, 130], [270, 70])
        s.output("face_analysis", (face, 0))
        s.output("adapter", (face, 1))
    return s, s.definition(
        "The tiny model that ships with Portrait Atelier, ready for four steps.", [-200, 0], [650, 0]
    )


def few_steps(
    info: dict, name: str, first: int, checkpoint: list, lora: list, title: str, adapter: str = "", lcm: bool = False
) -> tuple:
    """A checkpoint with the LoRA that lets it draw in few steps; with `adapter`, a file, what faces need too."""
    s = Level(info, name, first)
    loader = s.node(
        "CheckpointLoaderSimple",
        [0, 0],
        [330, 100],
        "Load Checkpoint",
        models=checkpoint,
        ckpt_name=checkpoint[0]["name"],
    )
    added = s.node(
        "LoraLoaderModelOnly",
        [380, 0],
        [300, 90],
        title,
        models=lora,
        lora_name=lora[0]["name"],
        strength_model=1.0,
        model=(loader, 0),
    )
    model = added
    if adapter:  # the command sets `base` to what its checkpoint is made for
        base = "LCM" if lcm else "Hyper"
        model = s.node("AtelierFewStepPreset", [730, 0], [330, 190], model=(added, 0), base=base)
    elif lcm:
        model = s.node("ModelSamplingDiscrete", [730, 0], [270, 90], sampling="lcm", model=(added, 0))
    s.input("checkpoint", (loader, "ckpt_name"))
    s.input("lora", (added, "lora_name"), label=title)
    s.output("model", (model, 0))
    s.output("clip", (loader, 1))
    s.output("vae", (loader, 2))
    if adapter:
        faces = s.node("AtelierFaceAnalysisLoader", [0, 160], [330, 90], pack="models/buffalo_l")
        file = s.node("AtelierFaceAdapterLoader", [380, 160], [300, 90], file=adapter)
        clip = s.node("CLIPVisionLoader", [730, 250], [330, 60], models=CLIP_VISION, clip_name=CLIP_VISION[0]["name"])
        s.input("face_adapter", (file, "file"), label="face adapter")
        s.input("clip_vision", (clip, "clip_name"), label="clip vision")
        s.output("face_analysis", (faces, 0))
        s.output("adapter", (file, 0))
        s.output("clip_vision", (clip, 0))
    return s, s.definition("A checkpoint and what lets it draw in few steps.", [-200, 0], [1120, 0])


def sd15_lcm(info: dict) -> tuple:
    return few_steps(info, "SD1.5 with LCM-LoRA", 421, SD15, LCM, "LCM-LoRA", lcm=True)


def sdxl_lightning(info: dict) -> tuple:
    return few_steps(info, "SDXL with Lightning LoRA", 431, SDXL, LIGHTNING, "Lightning LoRA")


def sd15_faces(info: dict) -> tuple:
    return few_steps(
        info, "SD1.5 and face models", 441, SD15, LCM, "LCM-LoRA", "ip-adapter-faceid-plusv2_sd15.bin", lcm=True
    )


def sdxl_faces(info: dict) -> tuple:
    return few_steps(info, "SDXL and face models", 451, SDXL, HYPER, "Hyper LoRA", "ip-adapter-faceid-plusv2_sdxl.bin")
