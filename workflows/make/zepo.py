"""Stylize Portrait: the look of one picture for another."""
from .editor_json import Level


def stylize_portrait(info: dict) -> tuple:
    s = Level(info, "Stylize Portrait", 101)
    prompt = s.node("CLIPTextEncode", [0, 0], [270, 100], "Prompt", text="head")
    negative = s.node("CLIPTextEncode", [0, 150], [270, 100], "Negative prompt", text="")
    steps = {}
    for at, word in enumerate(("Content", "Style")):
        top = 330 + 230 * at
        cut = s.node("ImageScale", [0, top], [270, 130], f"{word}, cut to size", upscale_method="lanczos", width=512, height=512, crop="center")
        latent = s.node("VAEEncode", [300, top], [200, 50], f"{word} latent", pixels=(cut, 0))
        features = s.node("AtelierConsistencyFeatureExtract", [530, top], [290, 170], f"{word} features", latent=(latent, 0), positive=(prompt, 0),
                          negative=(negative, 0), seed=0, timestep=99)
        merged = s.node("AtelierTokenMerge", [850, top], [250, 110], f"Merge {word.lower()}", features=(features, 0), ratio=0.5)
        steps[word] = cut, latent, features, merged
    content, style = steps["Content"], steps["Style"]
    seac = s.node("AtelierSEACPatch", [1150, 330], [290, 330], "SEAC Patch", source=(content[3], 0), reference=(style[3], 0))
    sampler = s.node("KSampler", [1470, 330], [260, 270], "KSampler", model=(seac, 0), positive=(prompt, 0), negative=(negative, 0),
                     latent_image=(content[1], 0), seed=0, steps=4, cfg=2.0, sampler_name="lcm", scheduler="simple", denoise=0.5)
    decode = s.node("VAEDecode", [1470, 660], [260, 50], "VAE Decode", samples=(sampler, 0))
    s.input("model", (content[2], "model"), (style[2], "model"), (seac, "model"))
    s.input("clip", (prompt, "clip"), (negative, "clip"))
    s.input("vae", (content[1], "vae"), (style[1], "vae"), (decode, "vae"))
    s.input("content", (content[0], "image"))
    s.input("style", (style[0], "image"))
    s.input("prompt", (prompt, "text"))
    s.input("style_strength", (seac, "style_enhancement"), label="style strength")
    s.input("change", (sampler, "denoise"))
    s.input("size", *[(cut, side) for cut in (content[0], style[0]) for side in ("width", "height")])
    s.input("seed", (sampler, "seed"))
    s.input("steps", (sampler, "steps"))
    s.input("cfg", (sampler, "cfg"))
    s.input("sampler", (sampler, "sampler_name"))
    s.input("scheduler", (sampler, "scheduler"))
    s.output("image", (decode, 0))
    s.group("Prompt", [-20, -80, 310, 350])
    s.group("Features of both pictures, read once and kept", [-20, 280, 1140, 480])
    s.group("Sampling under attention control", [1130, 280, 620, 480])
    return s, s.definition("Gives the content portrait the look of the style picture in a few sampling steps (ZePo). For a model made for few steps, "
                           "such as an LCM.", [-200, 300], [1800, 400])


def demo_model(info: dict) -> tuple:
    s = Level(info, "Demo model", 401)
    loader = s.node("AtelierDemoModelLoader", [0, 0], [270, 70])
    lcm = s.node("ModelSamplingDiscrete", [320, 0], [270, 90], sampling="lcm", model=(loader, 0))
    s.output("model", (lcm, 0))
    s.output("clip", (loader, 1))
    s.output("vae", (loader, 2))
    return s, s.definition("The tiny model that ships with Portrait Atelier, ready for four steps.", [-200, 0], [650, 0])


DEMO = """# Stylize a portrait

Gives **Content** the look of **Style** in four steps. Nothing to download, no GPU.

1. Press **Run**.
2. Choose another **Style**, run again.

## What to change first

In *Stylize Portrait*:

- **style strength**: more gives more style; useful from 0.8 to 1.5.
- **change**: less keeps more of the content.

**Before and after** compares with a slider in Nodes 2.0 (settings).

## Your own pictures

The demo model knows drawn portraits of 256 x 256 pixels, not photographs. For those take the template *Stylize a portrait - SD1.5* or *SDXL*.

The method (ZePo: Liu, Huang, Cao and He, 2024) is inside *Stylize Portrait*: open it with the icon at its corner. Select a node and press **i** for help."""


def demo(info: dict) -> tuple:
    stylize, stylize_definition = stylize_portrait(info)
    model, model_definition = demo_model(info)
    g = Level(info)
    g.note(DEMO, [0, 0], [260, 740])
    content = g.node("AtelierDemoPicture", [280, 0], [225, 350], "Content", image="atelier/content.png")
    style = g.node("AtelierDemoPicture", [280, 390], [225, 350], "Style", image="atelier/style.png")
    loaded = g.subgraph(model, [525, 0], [240, 70], "")
    result = g.subgraph(stylize, [525, 160], [240, 490], model=(loaded, 0), clip=(loaded, 1), vae=(loaded, 2), content=(content, 0), style=(style, 0),
                        size=256)
    g.node("SaveImage", [785, 0], [400, 380], "Result", images=(result, 0), filename_prefix="portrait-atelier/zepo_demo")
    g.node("ImageCompare", [785, 420], [400, 320], "Before and after", image_a=(content, 0), image_b=(result, 0))
    return "Demo 1 - Stylize a portrait", "zepo_demo", g, [stylize_definition, model_definition]


WORKFLOWS = [demo]
BLUEPRINTS = [stylize_portrait]
