"""Stylize Portrait: the look of one picture for another."""

from .editor_json import Level
from .loaders import CHECKPOINT_SD15, CHECKPOINT_SDXL, LCM_LORA, demo_model, sd15_lcm, sdxl_lightning
from .parts import by_name, cut_to_size, lcm_sampler, prompts


def stylize_portrait(info: dict, face: bool = False) -> tuple:
    """With `face`, the content is a face of the photo, which is put back when it is stylized."""
    s = Level(info, *(("Stylize a Face", 601) if face else ("Stylize Portrait", 101)))
    prompt, negative = words = prompts(s, 0, 0, [270, 100], "head")
    if face:
        cut = s.node("AtelierAlignFace", [0, 370], [270, 180], size=512)
    else:
        cut = cut_to_size(s, [0, 370], "Content, cut to size")
    latent, _, extract, merged = features(s, 370, "Content", words, [cut])
    style = cut_to_size(s, [0, 600], "Style, cut to size")
    style_latent, _, style_extract, style_merged = features(s, 600, "Style", words, [style])
    both = {"source": (merged, 0), "reference": (style_merged, 0)}
    seac = s.node("AtelierSEACPatch", [1150, 370], [290, 330], "SEAC Patch", **both)
    sampler = lcm_sampler(s, [1470, 370], seac, words, latent, cfg=2.0, denoise=0.5)
    decode = s.node("VAEDecode", [1470, 700], [260, 50], "VAE Decode", samples=(sampler, 0))
    if face:
        back = {"crop": (decode, 0), "transform": (cut, 1)}
        paste = s.node("AtelierPasteFace", [1760, 370], [260, 170], feather=0.3, **back)
    s.input("model", (extract, "model"), (style_extract, "model"), (seac, "model"))
    s.input("clip", (prompt, "clip"), (negative, "clip"))
    s.input("vae", (latent, "vae"), (style_latent, "vae"), (decode, "vae"))
    if face:
        s.input("photo", (cut, "image"), (paste, "image"))
        s.input("faces", (cut, "faces"))
    else:
        s.input("content", (cut, "image"))
    s.input("style", (style, "image"))
    s.input("prompt", (prompt, "text"))
    s.input("style_strength", (seac, "style_enhancement"), label="style strength")
    s.input("change", (sampler, "denoise"))
    if face:
        s.input("border", (paste, "feather"), label="soft border")
        s.input("which", (cut, "face"), label="which face")
        s.input("size", (cut, "size"), (style, "width"), (style, "height"))
    else:
        s.input("size", *[(picture, side) for picture in (cut, style) for side in ("width", "height")])
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


def features(s: Level, top: int, word: str, prompts: tuple, images: list, join: bool = False) -> tuple:
    """The nodes that encode an image (with `join` two in a batch), read its features and merge them.

    (VAE Encode, the latent, Consistency Feature Extract, Token Merge)
    """
    image = images[0]
    if join:
        both = {"image1": (images[0], 0), "image2": (images[1], 0)}
        image = s.node("ImageBatch", [300, top + 170], [200, 50], "Both contents", **both)
    encoded = latent = s.node("VAEEncode", [300, top], [200, 50], f"{word} latent", pixels=(image, 0))
    if join:
        same = {"samples": (encoded, 0), "seed_behavior": "fixed"}
        latent = s.node("LatentBatchSeedBehavior", [300, top + 270], [200, 60], "Same first noise", **same)
    links = {"latent": (latent, 0), "positive": (prompts[0], 0), "negative": (prompts[1], 0)}
    extract = s.node("AtelierConsistencyFeatureExtract", [530, top], [290, 170], f"{word} features", **links)
    merged = s.node("AtelierTokenMerge", [850, top], [250, 110], f"Merge {word.lower()}", features=(extract, 0))
    return encoded, latent, extract, merged


def stylize_with_file(info: dict, load: bool) -> tuple:
    """`load`: one content in a saved style. Otherwise two contents at once in a style that is saved."""
    s = Level(info, "Stylize in a Saved Style" if load else "Stylize Two and Save the Style", 101)
    prompt, negative = words = prompts(s, 0, 0, [270, 100], "head")
    pictures = [cut_to_size(s, [0, 370], "Content, cut to size")]
    if not load:
        pictures.append(cut_to_size(s, [0, 540], "Second content, cut to size"))
    encoded, latent, extract, merged = features(s, 370, "Content", words, pictures, join=not load)
    models = [(extract, "model")]
    sizes = [(cut, side) for cut in pictures for side in ("width", "height")]
    if load:
        kept = s.node("AtelierLoadFeatures", [530, 600], [290, 90], "Saved style", file="my style.safetensors")
        models += [(kept, "model")]
    else:
        style = cut_to_size(s, [0, 750], "Style, cut to size")
        style_latent, _, style_extract, style_merged = features(s, 750, "Style", words, [style])
        what = {"features": (style_merged, 0), "name": "my style", "replace": True}
        kept = s.node("AtelierSaveFeatures", [850, 900], [250, 130], "Save the style", **what)
        models += [(style_extract, "model"), (kept, "model")]
        sizes += [(style, "width"), (style, "height")]
    both = {"source": (merged, 0), "reference": (kept, 0)}
    model = seac = s.node("AtelierSEACPatch", [1150, 370], [290, 330], "SEAC Patch", **both)
    if not load:
        model = s.node("AtelierSameNoise", [1150, 750], [290, 60], "Same Noise", model=(seac, 0))
    sampler = lcm_sampler(s, [1470, 370], model, words, latent, cfg=2.0, denoise=0.5)
    decode = s.node("VAEDecode", [1470, 700], [260, 50], "VAE Decode", samples=(sampler, 0))
    s.input("model", *models, (seac, "model"))
    s.input("clip", (prompt, "clip"), (negative, "clip"))
    s.input("vae", (encoded, "vae"), *([] if load else [(style_latent, "vae")]), (decode, "vae"))
    s.input("content", (pictures[0], "image"))
    if not load:
        s.input("second_content", (pictures[1], "image"), label="second content")
        s.input("style", (style, "image"))
    s.input("prompt", (prompt, "text"))
    if load:
        s.input("file", (kept, "file"), label="saved style")
    else:
        s.input("name", (kept, "name"), label="name of the style")
    s.input("style_strength", (seac, "style_enhancement"), label="style strength")
    s.input("change", (sampler, "denoise"))
    s.input("size", *sizes)
    s.input("seed", (sampler, "seed"))
    s.output("image", (decode, 0))
    s.group("Prompt", [-20, -80, 310, 350])
    s.group("Features", [-20, 290, 1140, 790 if not load else 440])
    s.group("Sampling under attention control", [1130, 290, 620, 560])
    told = (
        "Gives the content portrait the look of a style that Save Features kept, without the style's picture."
        if load
        else "Gives two content portraits the look of the style picture in one run, and keeps the style's features in a file."
    )
    return s, s.definition(told, [-200, 300], [1800, 400])


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


FACE = """# Stylize a face in a photo

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


SAVE = """# Keep a style

Gives **Content** and **Second content** the look of **Style** in one run, and keeps the style in a file.

1. Press **Run**.
2. The style is now in output/features, under its name: *Load Features* takes it from there.

*Same Noise* lets each portrait come out as it would alone.

For whole folders there is the command: python3 atelier.py batch."""


LOAD = f"""# Stylize in a saved style, SD1.5

Gives **Content** the look of a style that *Save Features* kept, without its picture.

1. Put the files below into their folders, press **R**.
2. In *Stylize in a Saved Style* choose the **saved style**. It must come from this checkpoint with this LoRA.
3. **Content**: upload your picture (the button on the node). Press **Run**.

To save a style: open *Stylize Portrait* in the template *Stylize a portrait - SD1.5* and put *Save Features* after \
*Merge style*.

## Files

{CHECKPOINT_SD15}

{LCM_LORA}"""


def surface(info: dict, note: str, model: Level, api: str, **settings) -> Level:
    """Note, two pictures, model, Stylize Portrait, result and comparison."""
    stylize, _ = stylize_portrait(info)
    g = Level(info)
    g.note(note, [0, 0], [300, 740])
    content = g.node("AtelierDemoPicture", [320, 0], [225, 350], "Content", image="atelier/content.png")
    style = g.node("AtelierDemoPicture", [320, 390], [225, 350], "Style", image="atelier/style.png")
    loaded = g.subgraph(model, [565, 0], [240, 70 + 25 * len(model.inputs)])
    links = {"content": (content, 0), "style": (style, 0), **by_name(model, loaded)}
    result = g.subgraph(stylize, [565, 230], [240, 510], **links, **settings)
    g.node("SaveImage", [825, 0], [400, 380], "Result", images=(result, 0), filename_prefix=f"portrait-atelier/{api}")
    g.node("ImageCompare", [825, 420], [400, 320], "Before and after", image_a=(content, 0), image_b=(result, 0))
    return g


def demo(info: dict) -> tuple:
    model, definition = demo_model(info)
    graph = surface(info, DEMO, model, "zepo_demo", size=256)
    return "Demo 1 - Stylize a portrait", "zepo_demo", graph, [stylize_portrait(info)[1], definition]


def sd15(info: dict) -> tuple:
    model, definition = sd15_lcm(info)
    graph = surface(info, SD15, model, "zepo_sd15_lcm", size=512)
    return "Stylize a portrait - SD1.5", "zepo_sd15_lcm", graph, [stylize_portrait(info)[1], definition]


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


def with_file(info: dict, note: str, model: Level, api: str, load: bool, **settings) -> Level:
    """As `surface`, with a style from a file, or with two contents and a style that is saved."""
    stylize, _ = stylize_with_file(info, load)
    g = Level(info)
    # Three pictures take two columns: the others are narrower, so that all is in view.
    left, wide = (300, 400) if load else (240, 310)
    g.note(note, [0, 0], [left, 740])
    content = g.node("AtelierDemoPicture", [left + 20, 0], [225, 350], "Content", image="atelier/content.png")
    pictures, right = {"content": (content, 0)}, left + 265
    place = right
    if not load:
        second = g.node("AtelierDemoPicture", [left + 20, 390], [225, 350], "Second content", image="atelier/content-2.png")
        style = g.node("AtelierDemoPicture", [right, 390], [225, 350], "Style", image="atelier/style.png")
        pictures |= {"second_content": (second, 0), "style": (style, 0)}
        right += 245
    loaded = g.subgraph(model, [place, 0], [240 if load else 225, 70 + 25 * len(model.inputs)])
    links = {**pictures, **by_name(model, loaded)}
    result = g.subgraph(stylize, [right, 230 if load else 0], [240, 510 if load else 740], **links, **settings)
    right += 260
    g.node("SaveImage", [right, 0], [wide, 380], "Result", images=(result, 0), filename_prefix=f"portrait-atelier/{api}")
    g.node("ImageCompare", [right, 420], [wide, 320], "Before and after", image_a=(content, 0), image_b=(result, 0))
    return g


def demo_save(info: dict) -> tuple:
    model, definition = demo_model(info)
    graph = with_file(info, SAVE, model, "zepo_demo_save", False, size=256)
    return "Demo 7 - Keep a style", "zepo_demo_save", graph, [stylize_with_file(info, False)[1], definition]


def sd15_load(info: dict) -> tuple:
    model, definition = sd15_lcm(info)
    graph = with_file(info, LOAD, model, "zepo_saved_sd15_lcm", True)
    return "Stylize in a saved style - SD1.5", "zepo_saved_sd15_lcm", graph, [stylize_with_file(info, True)[1], definition]


WORKFLOWS = [demo, demo_face, demo_save, sd15, sd15_load, sdxl]
BLUEPRINTS = [stylize_portrait, stylize_a_face]
