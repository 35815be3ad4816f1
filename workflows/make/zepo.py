"""Stylize Portrait: the look of one picture for another."""

from .editor_json import Level
from .loaders import CHECKPOINT_SD15, CHECKPOINT_SDXL, LCM_LORA, demo_model, sd15_lcm, sdxl_lightning


def stylize_portrait(info: dict, face: bool = False) -> tuple:
    """With `face`, the content is a face of the photo, which is put back when it is stylized."""
    s = Level(info, *(("Stylize a Face", 601) if face else ("Stylize Portrait", 101)))
    prompt = s.node("CLIPTextEncode", [0, 0], [270, 100], "Prompt", text="head")
    negative = s.node("CLIPTextEncode", [0, 150], [270, 100], "Negative prompt", text="")
    steps = {}
    for at, word in enumerate(("Content", "Style")):
        top = 370 + 230 * at
        if face and word == "Content":
            cut = s.node("AtelierAlignFace", [0, top], [270, 180], size=512)
        else:
            cut = s.node(
                "ImageScale",
                [0, top],
                [270, 130],
                f"{word}, cut to size",
                upscale_method="lanczos",
                width=512,
                height=512,
                crop="center",
            )
        latent = s.node("VAEEncode", [300, top], [200, 50], f"{word} latent", pixels=(cut, 0))
        features = s.node(
            "AtelierConsistencyFeatureExtract",
            [530, top],
            [290, 170],
            f"{word} features",
            latent=(latent, 0),
            positive=(prompt, 0),
            negative=(negative, 0),
            seed=0,
            timestep=99,
        )
        merged = s.node(
            "AtelierTokenMerge", [850, top], [250, 110], f"Merge {word.lower()}", features=(features, 0), ratio=0.5
        )
        steps[word] = cut, latent, features, merged
    content, style = steps["Content"], steps["Style"]
    seac = s.node(
        "AtelierSEACPatch", [1150, 370], [290, 330], "SEAC Patch", source=(content[3], 0), reference=(style[3], 0)
    )
    sampler = s.node(
        "KSampler",
        [1470, 370],
        [260, 270],
        "KSampler",
        model=(seac, 0),
        positive=(prompt, 0),
        negative=(negative, 0),
        latent_image=(content[1], 0),
        seed=0,
        steps=4,
        cfg=2.0,
        sampler_name="lcm",
        scheduler="simple",
        denoise=0.5,
    )
    decode = s.node("VAEDecode", [1470, 700], [260, 50], "VAE Decode", samples=(sampler, 0))
    if face:
        back = {"crop": (decode, 0), "transform": (content[0], 1)}
        paste = s.node("AtelierPasteFace", [1760, 370], [260, 170], feather=0.3, **back)
    s.input("model", (content[2], "model"), (style[2], "model"), (seac, "model"))
    s.input("clip", (prompt, "clip"), (negative, "clip"))
    s.input("vae", (content[1], "vae"), (style[1], "vae"), (decode, "vae"))
    if face:
        s.input("photo", (content[0], "image"), (paste, "image"))
        s.input("faces", (content[0], "faces"))
    else:
        s.input("content", (content[0], "image"))
    s.input("style", (style[0], "image"))
    s.input("prompt", (prompt, "text"))
    s.input("style_strength", (seac, "style_enhancement"), label="style strength")
    s.input("change", (sampler, "denoise"))
    if face:
        s.input("border", (paste, "feather"), label="soft border")
        s.input("which", (content[0], "face"), label="which face")
        s.input("size", (content[0], "size"), (style[0], "width"), (style[0], "height"))
    else:
        s.input("size", *[(cut, side) for cut in (content[0], style[0]) for side in ("width", "height")])
    s.input("seed", (sampler, "seed"))
    s.input("steps", (sampler, "steps"))
    s.input("cfg", (sampler, "cfg"))
    s.input("sampler", (sampler, "sampler_name"))
    s.input("scheduler", (sampler, "scheduler"))
    s.output("image", (paste if face else decode, 0))
    if face:
        s.output("face", (decode, 0))
    s.group("Prompt", [-20, -80, 310, 350])
    s.group("Features of both pictures, read once and kept", [-20, 290, 1140, 510])
    s.group("Sampling under attention control", [1130, 290, 620, 510])
    if face:
        return s, s.definition(
            "Cuts a face out of the photo, gives it the look of the style picture in a few sampling steps (ZePo) and puts it back. For "
            "a model made for few steps, such as an LCM.",
            [-200, 300],
            [2080, 400],
        )
    return s, s.definition(
        "Gives the content portrait the look of the style picture in a few sampling steps (ZePo). For a model made for few steps, "
        "such as an LCM.",
        [-200, 300],
        [1800, 400],
    )


KNOBS = """## What to change first

In *Stylize Portrait*:

- **style strength**: more gives more style; useful from 0.8 to 1.5.
- **change**: less keeps more of the content.

**Before and after** compares with a slider in Nodes 2.0 (settings)."""
INSIDE = """The method (ZePo: Liu, Huang, Cao and He, 2024) is inside *Stylize Portrait*: open it with the icon at \
its corner. Select a node and press **i** for help."""


DEMO = f"""# Stylize a portrait

Gives **Content** the look of **Style** in four steps. Nothing to download, no GPU.

1. Press **Run**.
2. Choose another **Style**, run again.

{KNOBS}

## Your own pictures

The demo model knows drawn portraits of 256 x 256 pixels, not photographs. For those take the template *Stylize a \
portrait - SD1.5* or *SDXL*.

{INSIDE}"""


FACE = f"""# Stylize a face in a photo

Finds the face in **Content**, gives it the look of **Style** at the size the model knows, and puts it back. Nothing to \
download, no GPU.

1. Press **Run**. **Stylized face** shows what was put back.
2. Choose another **Style**, run again.

## What to change first

In *Stylize a Face*:

- **which face**: 0 is the largest, -1 takes all.
- **style strength**: more gives more style; useful from 0.8 to 1.5.
- **change**: less keeps more of the face.
- **soft border**: how far into the crop the photo shows through.

## Your own pictures

The demo knows drawn people, not photographs. For those, put the blueprint *Stylize a Face* behind the loaders of \
*Stylize a portrait - SD1.5* and connect **faces** with Detect Face Landmarks (MediaPipe).

Align Face and Paste Face are inside *Stylize a Face*: open it with the icon at its corner. They work with any \
sampler."""


SD15 = f"""# Stylize a portrait, SD1.5

Gives **Content** the look of **Style** in four steps, with the paper's settings.

1. Put the files below into their folders, press **R**.
2. **Content**, **Style**: upload your pictures (the button on the node).
3. Press **Run**.

{KNOBS}

## Files

{CHECKPOINT_SD15}

{LCM_LORA}

Other files: choose them in *SD1.5 with LCM-LoRA*. With a checkpoint that is an LCM already, open it and bypass the \
LoRA (Ctrl-B).

{INSIDE}"""


SDXL = f"""# Stylize a portrait, SDXL

Gives **Content** the look of **Style** at 1024 x 1024 in two steps.

1. Put the files below into their folders, press **R**.
2. **Content**, **Style**: upload your pictures (the button on the node).
3. Press **Run**.

{KNOBS}

## Files

{CHECKPOINT_SDXL}

**models/loras**: [sdxl_lightning_4step_lora.safetensors](https://huggingface.co/ByteDance/SDXL-Lightning) (394 MB, \
CreativeML Open RAIL++-M).

Two steps with *change* 0.5 are the second half of the 4-step model's own schedule; for **four steps** take \
sdxl_lightning_8step_lora.safetensors. Lightning wants *cfg* 1.

The paper uses LCM; Lightning is our transfer of it. {INSIDE}"""


def surface(info: dict, note: str, model: Level, api: str, **settings) -> Level:
    """Note, two pictures, model, Stylize Portrait, result and comparison."""
    stylize, _ = stylize_portrait(info)
    g = Level(info)
    g.note(note, [0, 0], [300, 740])
    content = g.node("AtelierDemoPicture", [320, 0], [225, 350], "Content", image="atelier/content.png")
    style = g.node("AtelierDemoPicture", [320, 390], [225, 350], "Style", image="atelier/style.png")
    loaded = g.subgraph(model, [565, 0], [240, 70 + 25 * len([slot for slot in model.inputs])])
    result = g.subgraph(
        stylize,
        [565, 230],
        [240, 510],
        model=(loaded, 0),
        clip=(loaded, 1),
        vae=(loaded, 2),
        content=(content, 0),
        style=(style, 0),
        **settings,
    )
    g.node("SaveImage", [825, 0], [400, 380], "Result", images=(result, 0), filename_prefix=f"portrait-atelier/{api}")
    g.node("ImageCompare", [825, 420], [400, 320], "Before and after", image_a=(content, 0), image_b=(result, 0))
    return g


def demo(info: dict) -> tuple:
    model, definition = demo_model(info)
    return (
        "Demo 1 - Stylize a portrait",
        "zepo_demo",
        surface(info, DEMO, model, "zepo_demo", size=256),
        [stylize_portrait(info)[1], definition],
    )


def sd15(info: dict) -> tuple:
    model, definition = sd15_lcm(info)
    return (
        "Stylize a portrait - SD1.5",
        "zepo_sd15_lcm",
        surface(info, SD15, model, "zepo_sd15_lcm", size=512),
        [stylize_portrait(info)[1], definition],
    )


def sdxl(info: dict) -> tuple:
    model, definition = sdxl_lightning(info)
    graph = surface(
        info, SDXL, model, "zepo_sdxl_lightning", size=1024, steps=2, cfg=1, sampler="euler", scheduler="sgm_uniform"
    )
    return "Stylize a portrait - SDXL", "zepo_sdxl_lightning", graph, [stylize_portrait(info)[1], definition]


def stylize_a_face(info: dict) -> tuple:
    return stylize_portrait(info, face=True)


def demo_face(info: dict) -> tuple:
    face, face_definition = stylize_a_face(info)
    models, definition = demo_model(info, faces=True)
    g = Level(info)
    g.note(FACE, [0, 0], [300, 740])
    photo = g.node("AtelierDemoPicture", [320, 0], [225, 350], "Content", image="atelier/scene.png")
    style = g.node("AtelierDemoPicture", [320, 390], [225, 350], "Style", image="atelier/style-watercolor.png")
    loaded = g.subgraph(models, [565, 0], [240, 140])
    links = {"model": (loaded, 0), "clip": (loaded, 1), "vae": (loaded, 2), "faces": (loaded, 3)}
    result = g.subgraph(face, [565, 190], [240, 550], photo=(photo, 0), style=(style, 0), size=256, **links)
    name = "portrait-atelier/zepo_demo_face"
    g.node("SaveImage", [825, 0], [470, 400], "Result", images=(result, 0), filename_prefix=name)
    g.node("ImageCompare", [825, 440], [225, 300], "Before and after", image_a=(photo, 0), image_b=(result, 0))
    g.node("PreviewImage", [1070, 440], [225, 300], "Stylized face", images=(result, 1))
    return "Demo 5 - Stylize a face in a photo", "zepo_demo_face", g, [face_definition, definition]


WORKFLOWS = [demo, demo_face, sd15, sdxl]
BLUEPRINTS = [stylize_portrait, stylize_a_face]
