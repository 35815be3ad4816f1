"""Portrait of a Person: a given face in the style that the prompt names."""

from .editor_json import Level
from .loaders import CHECKPOINT_SD15, CHECKPOINT_SDXL, FACES, HUB, LCM_LORA, demo_model, sd15_faces, sdxl_faces
from .parts import by_name, cut_to_size, lcm_sampler, prompts


def identity(s: Level, end: float = 1.0, align: int | None = None) -> tuple:
    """Who is in the picture, or the crop of `align`, drawn by the model: (Face Identity Encode, Face Adapter Apply)."""
    crop, finds = ({}, []) if align is None else ({"image": (align, 0)}, [(align, "faces")])
    encode = s.node("AtelierFaceIdentityEncode", [0, 0], [290, 200], **crop)
    apply = s.node("AtelierFaceAdapterApply", [320, 0], [270, 200], identity=(encode, 0), weight=0.8, end=end)
    s.input("face_analysis", (encode, "face_analysis"), *finds, label="face analysis")
    s.input("adapter", (apply, "adapter"))
    s.input("clip_vision", (encode, "clip_vision"), label="clip vision")
    return encode, apply


def portrait_of_a_person(info: dict) -> tuple:
    s = Level(info, "Portrait of a Person", 201)
    encode, apply = identity(s)
    prompt, negative = prompts(s, 0, 330, [290, 110], "portrait of a person")
    power = s.node("AtelierScalePowerAttention", [620, 0], [290, 210], model=(apply, 0))
    softmax = s.node("AtelierScheduledSoftmaxAttention", [620, 330], [290, 230], model=(apply, 0))
    either = {"switch": False, "on_false": (power, 0), "on_true": (softmax, 0)}
    switch = s.node("ComfySwitchNode", [940, 0], [230, 80], "Which attention", **either)
    guidance = s.node("AtelierDecoupledCFG", [940, 160], [270, 180], model=(switch, 0))
    empty = s.node("EmptyLatentImage", [940, 420], [270, 110], "Empty latent", width=512, height=512)
    zeros = s.node("ConditioningZeroOut", [320, 330], [260, 50], "No prompt as zeros", conditioning=(negative, 0))
    either = {"switch": False, "on_false": (negative, 0), "on_true": (zeros, 0)}
    null = s.node("ComfySwitchNode", [320, 450], [260, 80], "Which null prompt", **either)
    sampler = lcm_sampler(s, [1240, 0], guidance, (prompt, null), empty, cfg=1.0, denoise=1.0)
    decode = s.node("VAEDecode", [1240, 330], [260, 50], "VAE Decode", samples=(sampler, 0))
    s.input("model", (apply, "model"))
    s.input("clip", (prompt, "clip"), (negative, "clip"))
    s.input("vae", (decode, "vae"))
    s.input("face", (encode, "image"))
    s.input("prompt", (prompt, "text"))
    s.input("person", (apply, "weight"))
    s.input("larger_face", (switch, "switch"), label="larger face")
    s.input("size", (empty, "width"), (empty, "height"))
    s.input("zeros", (null, "switch"), label="zeros for no prompt")
    s.input("seed", (sampler, "seed"))
    s.input("steps", (sampler, "steps"))
    s.input("sampler", (sampler, "sampler_name"))
    s.output("image", (decode, 0))
    s.output("found face", (encode, 1))
    s.group("The person", [-20, -80, 630, 320])
    s.group("Prompt", [-20, 260, 630, 360])
    s.group("Attention: one of two", [610, -80, 310, 660])
    s.group("Sampling under decoupled guidance", [930, -80, 590, 660])
    return s, s.definition(
        "Draws the person in the picture in the style that the prompt names, in few steps (FastFace). For a distilled model and a FaceID "
        "adapter.",
        [-220, 200],
        [1580, 100],
    )


def keep_the_person(info: dict) -> tuple:
    s = Level(info, "Stylize and keep the person", 501)
    # Off at timestep 99, where features are read: else Content's face gets into those of Style.
    encode, apply = identity(s, end=0.89)
    prompt, negative = prompts(s, 0, 300, [290, 100], "head")
    parts = {}
    for at, word in enumerate(("Content", "Style")):
        top = 300 + 230 * at
        cut = cut_to_size(s, [320, top], f"{word}, cut to size", 250)
        latent = s.node("VAEEncode", [600, top], [190, 50], f"{word} latent", pixels=(cut, 0))
        links = {"model": (apply, 0), "latent": (latent, 0), "positive": (prompt, 0), "negative": (negative, 0)}
        features = s.node("AtelierConsistencyFeatureExtract", [820, top], [280, 170], f"{word} features", **links)
        merged = s.node("AtelierTokenMerge", [1130, top], [230, 110], f"Merge {word.lower()}", features=(features, 0))
        parts[word] = cut, latent, features, merged
    content, style = parts["Content"], parts["Style"]
    links = {"model": (apply, 0), "source": (content[3], 0), "reference": (style[3], 0)}
    seac = s.node("AtelierSEACPatch", [820, -90], [280, 330], "SEAC Patch", **links)
    guidance = s.node("AtelierDecoupledCFG", [1130, -90], [270, 180], model=(seac, 0))
    sampler = lcm_sampler(s, [1430, -90], guidance, (prompt, negative), content[1], cfg=1.0, denoise=0.5)
    decode = s.node("VAEDecode", [1430, 240], [260, 50], "VAE Decode", samples=(sampler, 0))
    s.input("model", (apply, "model"))
    s.input("clip", (prompt, "clip"), (negative, "clip"))
    s.input("vae", (content[1], "vae"), (style[1], "vae"), (decode, "vae"))
    s.input("content", (encode, "image"), (content[0], "image"))
    s.input("style", (style[0], "image"))
    s.input("prompt", (prompt, "text"))
    s.input("style_strength", (seac, "style_enhancement"), label="style strength")
    s.input("person", (apply, "weight"))
    s.input("change", (sampler, "denoise"))
    s.input("seed", (sampler, "seed"))
    s.output("image", (decode, 0))
    s.output("found face", (encode, 1))
    return s, s.definition(
        "Gives the content portrait the look of the style picture and keeps the person (ZePo and FastFace).",
        [-220, 100],
        [1760, 0],
    )


def redraw_a_face(info: dict) -> tuple:
    s = Level(info, "Redraw a Face", 701)
    align = s.node("AtelierAlignFace", [-320, 0], [290, 180], size=512)
    encode, apply = identity(s, align=align)
    prompt, negative = prompts(s, 0, 330, [290, 110], "portrait of a person")
    latent = s.node("VAEEncode", [320, 330], [260, 50], "Face latent", pixels=(align, 0))
    power = s.node("AtelierScalePowerAttention", [620, 0], [290, 210], model=(apply, 0))
    guidance = s.node("AtelierDecoupledCFG", [620, 300], [290, 180], model=(power, 0))
    sampler = lcm_sampler(s, [940, 0], guidance, (prompt, negative), latent, cfg=1.0, denoise=0.7)
    decode = s.node("VAEDecode", [940, 330], [260, 50], "VAE Decode", samples=(sampler, 0))
    paste = s.node("AtelierPasteFace", [1230, 0], [260, 170], feather=0.3, crop=(decode, 0), transform=(align, 1))
    s.input("model", (apply, "model"))
    s.input("clip", (prompt, "clip"), (negative, "clip"))
    s.input("vae", (latent, "vae"), (decode, "vae"))
    s.input("photo", (align, "image"), (paste, "image"))
    s.input("prompt", (prompt, "text"))
    s.input("person", (apply, "weight"))
    s.input("change", (sampler, "denoise"))
    s.input("border", (paste, "feather"), label="soft border")
    s.input("which", (align, "face"), label="which face")
    s.input("size", (align, "size"))
    s.input("seed", (sampler, "seed"))
    s.input("steps", (sampler, "steps"))
    s.input("sampler", (sampler, "sampler_name"))
    s.output("image", (paste, 0))
    s.output("face", (decode, 0))
    s.group("The face and whose it is", [-340, -80, 950, 320])
    s.group("Prompt", [-20, 260, 630, 360])
    s.group("Sampling under decoupled guidance", [610, -80, 610, 660])
    return s, s.definition(
        "Cuts a face out of the photo, draws the same person anew in the style that the prompt names, in few steps (FastFace), and "
        "puts the face back. For a distilled model and a FaceID adapter.",
        [-540, 200],
        [1560, 100],
    )


KNOBS = """## What to change first

In *Portrait of a Person*:

- **prompt**: the style, where the person is and what they do.
- **person**: how strongly the person is drawn; useful from 0.5 to 1.
- **larger face**: Scheduled-Softmax instead of Scale-Power Attention; try it when the face gets lost.
- **seed**: another picture."""
INSIDE = """The method is FastFace (Karpukhin, Titov, Kuznetsov and Alanov, 2025). The icon at the corner of \
*Portrait of a Person* opens it: **Decoupled CFG** has *alpha* for the person and *beta* for the prompt."""

DEMO = f"""# Portrait of a person

Draws the person in **Face** in the style that the **prompt** names, in four steps. Nothing to download, no GPU.

1. Press **Run**.
2. Write another style: photo, cartoon, ink, watercolor, popart, neon or pixel. Run again.

{KNOBS}

**Before and after** compares with a slider in Nodes 2.0 (settings).

## Your own pictures

Model and face adapter are tiny and know drawn portraits of 256 x 256 pixels, not photographs. For those take the \
template *Portrait of a person - SD1.5* or *SDXL*.

{INSIDE}"""

FACE = f"""# Redraw a face in a photo

Finds the face in **Content**, draws the same person in the style that the **prompt** names at the size the model knows, \
and puts the face back. Nothing to download, no GPU.

1. Press **Run**. **Redrawn face** shows what was put back.
2. Write another style: photo, cartoon, ink, watercolor, popart, neon or pixel. Run again.

## What to change first

In *Redraw a Face*:

- **change**: less keeps more of the face; 1 draws it from nothing.
- **person**: how strongly the person is drawn.
- **which face**: 0 is the largest, 1 the next.
- **soft border**: how far into the crop the photo shows through.

## Your own pictures

The demo knows drawn people, not photographs. For those, put the blueprint *Redraw a Face* behind the loaders of \
*Portrait of a person - SD1.5*.

{INSIDE.replace("Portrait of a Person", "Redraw a Face")}"""


REAL = """# Portrait of a person, BASE

Draws the person in **Face** in the style that the **prompt** names, in four steps.

1. Put the files below into their folders, press **R**.
2. **Face**: upload a photo that shows one whole face with space around it. **Found face** shows what was found.
3. Press **Run**.

KNOBS

## Files

FILES

INSIDE"""

PERSON = f"""# Stylize a portrait, keep the person

Gives **Content** the look of **Style**; a face adapter keeps who is in **Content**. SD1.5, four steps.

1. Put the files below into their folders, press **R**.
2. **Content**: upload a photo that shows one whole face with space around it. **Style**: any picture.
3. Press **Run**.

## What to change first

- **style strength**: more gives more style; useful from 0.8 to 1.5.
- **person**: how strongly the person is drawn.
- **change**: less keeps more of the content; with the person kept, more than 0.5 is worth a try.

## Files

{CHECKPOINT_SD15}

{LCM_LORA}

{FACES.replace("FILE", "ip-adapter-faceid-plusv2_sd15.bin")}

The methods are ZePo (Liu, Huang, Cao and He, 2024) and FastFace (Karpukhin, Titov, Kuznetsov and Alanov, 2025); to \
use them together is our idea."""


def note(base: str, *files: str) -> str:
    return (
        REAL.replace("BASE", base)
        .replace("KNOBS", KNOBS)
        .replace("FILES", "\n\n".join(files))
        .replace("INSIDE", INSIDE)
    )


def surface(info: dict, text: str, models: Level, api: str, **settings) -> Level:
    person, _ = portrait_of_a_person(info)
    g = Level(info)
    g.note(text, [0, 0], [300, 770])
    face = g.node("AtelierDemoPicture", [320, 0], [225, 365], "Face", image="atelier/content.png")
    loaded = g.subgraph(models, [565, 0], [240, 30 + 20 * len(models.outputs) + 24 * len(models.inputs)])
    result = g.subgraph(person, [565, 325], [240, 445], face=(face, 0), **by_name(models, loaded), **settings)
    g.node("PreviewImage", [320, 405], [225, 365], "Found face", images=(result, 1))
    g.node("SaveImage", [825, 0], [400, 395], "Result", images=(result, 0), filename_prefix=f"portrait-atelier/{api}")
    g.node("ImageCompare", [825, 435], [400, 335], "Before and after", image_a=(face, 0), image_b=(result, 0))
    return g


def demo(info: dict) -> tuple:
    models, definition = demo_model(info, faces=True)
    graph = surface(info, DEMO, models, "fastface_demo", prompt="portrait, cartoon", size=256, seed=1)
    return "Demo 2 - Portrait of a person", "fastface_demo", graph, [portrait_of_a_person(info)[1], definition]


PROMPT = "van gogh style painting of a person reading in an ancient library"


def sd15(info: dict) -> tuple:
    models, definition = sd15_faces(info)
    text = note("SD1.5", CHECKPOINT_SD15, LCM_LORA, FACES.replace("FILE", "ip-adapter-faceid-plusv2_sd15.bin"))
    # LCM models lose the face more often than others: in the paper in 37 pictures with Scale-Power, 20 with Softmax.
    graph = surface(info, text, models, "fastface_both_sd15_lcm", prompt=PROMPT, larger_face=True)
    return "Portrait of a person - SD1.5", "fastface_both_sd15_lcm", graph, [portrait_of_a_person(info)[1], definition]


def sdxl(info: dict) -> tuple:
    models, definition = sdxl_faces(info)
    lora = f"**models/loras**: [Hyper-SDXL-4steps-lora.safetensors]({HUB}/ByteDance/Hyper-SD)."
    text = note("SDXL", CHECKPOINT_SDXL, lora, FACES.replace("FILE", "ip-adapter-faceid-plusv2_sdxl.bin"))
    graph = surface(info, text, models, "fastface_both_sdxl_hyper", prompt=PROMPT, size=1024, sampler="euler", zeros=True)
    return "Portrait of a person - SDXL", "fastface_both_sdxl_hyper", graph, [portrait_of_a_person(info)[1], definition]


def person_sd15(info: dict) -> tuple:
    models, model_definition = sd15_faces(info)
    keep, keep_definition = keep_the_person(info)
    g = Level(info)
    g.note(PERSON, [0, 0], [300, 770])
    content = g.node("AtelierDemoPicture", [320, 0], [225, 365], "Content", image="atelier/content.png")
    style = g.node("AtelierDemoPicture", [320, 405], [225, 365], "Style", image="atelier/style.png")
    loaded = g.subgraph(models, [565, 0], [240, 30 + 20 * len(models.outputs) + 24 * len(models.inputs)])
    result = g.subgraph(keep, [565, 350], [240, 420], content=(content, 0), style=(style, 0), **by_name(models, loaded))
    name = "portrait-atelier/fastface_seac_sd15_lcm"
    g.node("SaveImage", [825, 0], [470, 395], "Result", images=(result, 0), filename_prefix=name)
    g.node("ImageCompare", [825, 435], [225, 335], "Before and after", image_a=(content, 0), image_b=(result, 0))
    g.node("PreviewImage", [1070, 435], [225, 335], "Found face", images=(result, 1))
    definitions = [keep_definition, model_definition]
    return "Stylize a portrait, keep the person - SD1.5", "fastface_seac_sd15_lcm", g, definitions


def demo_face(info: dict) -> tuple:
    face, face_definition = redraw_a_face(info)
    models, definition = demo_model(info, faces=True)
    g = Level(info)
    g.note(FACE, [0, 0], [300, 740])
    photo = g.node("AtelierDemoPicture", [320, 0], [225, 350], "Content", image="atelier/scene.png")
    loaded = g.subgraph(models, [565, 0], [240, 140])
    result = g.subgraph(face, [565, 190], [240, 550], photo=(photo, 0), prompt="portrait, cartoon", size=256, **by_name(models, loaded))
    name = "portrait-atelier/fastface_demo_face"
    g.node("SaveImage", [825, 0], [400, 400], "Result", images=(result, 0), filename_prefix=name)
    g.node("ImageCompare", [825, 440], [400, 300], "Before and after", image_a=(photo, 0), image_b=(result, 0))
    g.node("PreviewImage", [320, 390], [225, 350], "Redrawn face", images=(result, 1))
    return "Demo 6 - Redraw a face in a photo", "fastface_demo_face", g, [face_definition, definition]


WORKFLOWS = [demo, demo_face, sd15, sdxl, person_sd15]
BLUEPRINTS = [portrait_of_a_person, redraw_a_face]
