"""Style of a picture and two sliders on transformers; two styles in two regions there and on the demo model."""

from .editor_json import Level
from .loaders import download
from .parts import by_name, cut_to_size, prompts
from .zepo import features

# What ComfyUI's own templates load, and from where: (folder, file, repository, path in it).
QWEN_3_4B = ("text_encoders", "qwen_3_4b.safetensors", "Comfy-Org/z_image_turbo", "split_files/text_encoders")
FLUX_VAE = ("vae", "ae.safetensors", "Comfy-Org/z_image_turbo", "split_files/vae")
FLUX2_VAE = ("vae", "flux2-vae.safetensors", "Comfy-Org/flux2-dev", "split_files/vae")
QWEN_VAE = ("vae", "qwen_image_vae.safetensors", "Comfy-Org/Qwen-Image_ComfyUI", "split_files/vae")
Z_IMAGE = ("diffusion_models", "z_image_turbo_bf16.safetensors", "Comfy-Org/z_image_turbo", "split_files/diffusion_models")
KLEIN = ("diffusion_models", "flux-2-klein-4b.safetensors", "Comfy-Org/flux2-klein", "split_files/diffusion_models")
KREA = ("diffusion_models", "krea2_turbo_fp8_scaled.safetensors", "Comfy-Org/Krea-2", "diffusion_models")
QWEN_3_VL = ("text_encoders", "qwen3vl_4b_fp8_scaled.safetensors", "Comfy-Org/Krea-2", "text_encoders")
EDIT = (
    "diffusion_models",
    "qwen_image_edit_2511_fp8mixed.safetensors",
    "Comfy-Org/Qwen-Image-Edit_ComfyUI",
    "split_files/diffusion_models",
)
QWEN_VL = (
    "text_encoders",
    "qwen_2.5_vl_7b_fp8_scaled.safetensors",
    "Comfy-Org/HunyuanVideo_1.5_repackaged",
    "split_files/text_encoders",
)
LIGHTNING = (
    "loras",
    "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors",
    "lightx2v/Qwen-Image-Edit-2511-Lightning",
    "",
)
HUB = "https://huggingface.co"
PORTRAIT = "portrait of a woman with short hair, in a garden"


def offered(file: tuple) -> list:
    folder, name, repository, path = file
    return download(name, folder, "/".join(part for part in (repository, "resolve/main", path, name) if part))


def loaders(info: dict, name: str, files: tuple, kind: str, shift: float = 0, lora: tuple | None = None) -> tuple:
    """(model, text encoder, VAE) of `files` in one node, with what ComfyUI's template puts behind the model."""
    s = Level(info, name, 911)
    unet, clip, vae = files
    model = loader = s.node("UNETLoader", [0, 0], [330, 90], models=offered(unet), unet_name=unet[1])
    text = s.node("CLIPLoader", [0, 140], [330, 110], models=offered(clip), clip_name=clip[1], type=kind)
    decoder = s.node("VAELoader", [0, 300], [330, 60], models=offered(vae), vae_name=vae[1])
    if shift:
        model = s.node("ModelSamplingAuraFlow", [380, 0], [300, 60], model=(model, 0), shift=shift)
    if lora:
        model = s.node("CFGNorm", [380, 110], [300, 60], model=(model, 0))
        added = {"model": (model, 0), "lora_name": lora[1]}
        model = s.node("LoraLoaderModelOnly", [380, 220], [300, 90], "Lightning LoRA", models=offered(lora), **added)
    s.input("model_file", (loader, "unet_name"), label="model")
    s.input("clip_file", (text, "clip_name"), label="text encoder")
    s.input("vae_file", (decoder, "vae_name"), label="VAE")
    if lora:
        s.input("lora", (model, "lora_name"), label="Lightning LoRA")
    for output, node in {"model": model, "clip": text, "vae": decoder}.items():
        s.output(output, (node, 0))
    return s, s.definition("A model, its text encoder and its VAE.", [-240, 0], [760, 0])


def z_image(info: dict) -> tuple:
    return loaders(info, "Z-Image-Turbo", (Z_IMAGE, QWEN_3_4B, FLUX_VAE), "lumina2", shift=3)


def klein(info: dict) -> tuple:
    return loaders(info, "FLUX.2 Klein 4B", (KLEIN, QWEN_3_4B, FLUX2_VAE), "flux2")


def krea(info: dict) -> tuple:
    return loaders(info, "Krea 2 Turbo", (KREA, QWEN_3_VL, QWEN_VAE), "krea2")


def qwen_edit(info: dict) -> tuple:
    files = (EDIT, QWEN_VL, QWEN_VAE)
    return loaders(info, "Qwen-Image-Edit 2511", files, "qwen_image", shift=3.1, lora=LIGHTNING)


def style_of_a_picture(info: dict, kind: str = "") -> tuple:
    """A prompt drawn in the style of a picture. kind: "flux2" with that model's schedule, "edit": a photo is redrawn."""
    name = {"": "Style of a Picture", "flux2": "Style of a Picture, FLUX.2", "edit": "Edit in the Style of a Picture"}
    s = Level(info, name[kind], 701)
    parts = photo_and_prompt(s) if kind == "edit" else prompt_alone(s, flux2=kind == "flux2")
    style = cut_to_size(s, [0, 600], "Style, cut to size")
    encoded = s.node("VAEEncode", [300, 600], [200, 50], "Style latent", pixels=(style, 0))
    read = {"latent": (encoded, 0), "positive": parts["positive"]}
    extract = s.node("AtelierConsistencyFeatureExtract", [530, 600], [290, 170], "Style features", **read)
    merged = s.node("AtelierTokenMerge", [850, 600], [250, 110], "Merge style", features=(extract, 0))
    seac = s.node("AtelierSEACPatch", [1150, 370], [290, 330], "SEAC Patch", reference=(merged, 0))
    sampled = flux2_sampler(s, seac, parts) if kind == "flux2" else sampler(s, seac, parts, steps=4 if kind else 8)
    decode = s.node("VAEDecode", [1470, 700], [260, 50], "VAE Decode", samples=(sampled["latent"], 0))
    s.input("model", (extract, "model"), (seac, "model"))
    s.input("clip", *parts["clip"])
    s.input("vae", *parts["vae"], (encoded, "vae"), (decode, "vae"))
    if kind == "edit":
        s.input("content", parts["content"])
    s.input("style", (style, "image"))
    s.input("prompt", parts["text"])
    s.input("style_strength", (seac, "style_enhancement"), label="style strength")
    s.input("style_share", (seac, "style_share"), label="style share")
    sides = [(style, "width"), (style, "height")]
    s.input("size", *parts["sizes"], *sampled["sizes"], *sides, label="style size" if kind == "edit" else "")
    s.input("seed", sampled["seed"])
    s.input("steps", sampled["steps"])
    if kind != "flux2":
        s.input("sampler", (sampled["latent"], "sampler_name"))
    s.output("image", (decode, 0))
    s.group("Prompt", [-20, -80, 860 if kind == "edit" else 310, 580])
    s.group("Features of the style, read once and kept", [-20, 520, 1140, 280])
    s.group("Sampling under attention control", [1130, 290, 910 if kind == "flux2" else 620, 510])
    told = (
        "Redraws a photo as the prompt says, in the style of a picture. For Qwen-Image-Edit."
        if kind == "edit"
        else "Draws a prompt in the style of a picture. For a model made for few steps, at CFG 1."
    )
    return s, s.definition(told, [-240, 300], [2080 if kind == "flux2" else 1800, 400])


def prompt_alone(s: Level, flux2: bool) -> dict:
    """What the sampler and the outside of a subgraph need of the prompt."""
    prompt = s.node("CLIPTextEncode", [0, 0], [270, 100], "Prompt", text=PORTRAIT)
    negative = s.node("ConditioningZeroOut", [0, 150], [270, 30], "No negative prompt", conditioning=(prompt, 0))
    sides = {"width": 1024, "height": 1024}
    latent = s.node("EmptyFlux2LatentImage" if flux2 else "EmptyLatentImage", [0, 340], [270, 110], "Empty latent", **sides)
    links = {"positive": (prompt, 0), "negative": (negative, 0), "latent": (latent, 0)}
    sizes = [(latent, side) for side in sides]
    return {**links, "clip": [(prompt, "clip")], "vae": [], "text": (prompt, "text"), "sizes": sizes}


def photo_and_prompt(s: Level) -> dict:
    """As `prompt_alone`, as ComfyUI's template edits a photo."""
    scale = s.node("FluxKontextImageScale", [0, 0], [200, 30], "Content, cut to size")
    latent = s.node("VAEEncode", [0, 150], [200, 50], "Content latent", pixels=(scale, 0))
    words = []
    for at, (title, text) in enumerate((("Prompt", "paint this portrait"), ("Negative prompt", ""))):
        links = {"image1": (scale, 0), "prompt": text}
        words.append(s.node("TextEncodeQwenImageEditPlus", [230, 220 * at], [290, 160], title, **links))
    positive, negative = (
        s.node(
            "FluxKontextMultiReferenceLatentMethod",
            [550, 220 * at],
            [260, 60],
            conditioning=(node, 0),
            reference_latents_method="index_timestep_zero",
        )
        for at, node in enumerate(words)
    )
    links = {"positive": (positive, 0), "negative": (negative, 0), "latent": (latent, 0)}
    vae = [(node, "vae") for node in (*words, latent)]
    outside = {"content": (scale, "image"), "text": (words[0], "prompt"), "sizes": []}
    return {**links, **outside, "clip": [(node, "clip") for node in words], "vae": vae}


def sampler(s: Level, model: int, parts: dict, steps: int) -> dict:
    links = {"positive": parts["positive"], "negative": parts["negative"], "latent_image": parts["latent"]}
    how = {"steps": steps, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "seed": 0}
    node = s.node("KSampler", [1470, 370], [260, 270], "KSampler", model=(model, 0), **links, **how)
    return {"latent": node, "seed": (node, "seed"), "steps": (node, "steps"), "sizes": []}


def flux2_sampler(s: Level, model: int, parts: dict, sides: dict | None = None) -> dict:
    """As ComfyUI's template samples: the schedule knows the picture's size. sides: links for it."""
    noise = s.node("RandomNoise", [1470, 370], [260, 90], noise_seed=0)
    links = {"positive": parts["positive"], "negative": parts["negative"]}
    guider = s.node("CFGGuider", [1470, 510], [260, 100], model=(model, 0), cfg=1.0, **links)
    euler = s.node("KSamplerSelect", [1760, 370], [260, 60], sampler_name="euler")
    sides = sides or {"width": 1024, "height": 1024}
    steps = s.node("Flux2Scheduler", [1760, 480], [260, 110], steps=4, **sides)
    links = {"noise": (noise, 0), "guider": (guider, 0), "sampler": (euler, 0), "sigmas": (steps, 0)}
    node = s.node("SamplerCustomAdvanced", [1760, 640], [260, 110], latent_image=parts["latent"], **links)
    sizes = [(steps, "width"), (steps, "height")]
    return {"latent": node, "seed": (noise, "noise_seed"), "steps": (steps, "steps"), "sizes": sizes}


def edit_with_two_sliders(info: dict) -> tuple:
    """A photo edited by FLUX.2 Klein, with a scale each for the person and the words, and a weight for the photo."""
    s = Level(info, "Edit with Two Sliders", 701)
    words = prompts(s, 0, 0, [270, 100], "a watercolor painting of this person")
    scale = s.node("FluxKontextImageScale", [0, 370], [270, 30], "Content, cut to size")
    size = s.node("GetImageSize", [0, 450], [270, 110], image=(scale, 0))
    encoded = s.node("VAEEncode", [300, 370], [200, 50], "Content latent", pixels=(scale, 0))
    sides = {"width": (size, 0), "height": (size, 1)}
    empty = s.node("EmptyFlux2LatentImage", [300, 470], [200, 110], "Empty latent", **sides)
    positive, negative = (
        s.node("ReferenceLatent", [530, 150 * at], [200, 50], conditioning=(node, 0), latent=(encoded, 0))
        for at, node in enumerate(words)
    )
    weight = s.node("AtelierReferenceWeight", [850, 370], [270, 160])
    guided = s.node("AtelierDecoupledCFG", [1150, 370], [290, 190], model=(weight, 0))
    parts = {"positive": (positive, 0), "negative": (negative, 0), "latent": (empty, 0)}
    sampled = flux2_sampler(s, guided, parts, sides)
    decode = s.node("VAEDecode", [1470, 700], [260, 50], "VAE Decode", samples=(sampled["latent"], 0))
    s.input("model", (weight, "model"))
    s.input("clip", *[(node, "clip") for node in words])
    s.input("vae", (encoded, "vae"), (decode, "vae"))
    s.input("content", (scale, "image"))
    s.input("prompt", (words[0], "text"))
    s.input("alpha", (guided, "alpha"), label="person (alpha)")
    s.input("beta", (guided, "beta"), label="words (beta)")
    s.input("weight", (weight, "weight"), label="weight of the photo")
    s.input("seed", sampled["seed"])
    s.input("steps", sampled["steps"])
    s.output("image", (decode, 0))
    s.group("Prompts, each with the photo", [-20, -80, 770, 350])
    s.group("Photo", [-20, 290, 540, 310])
    s.group("Two sliders, and sampling", [830, 290, 1210, 510])
    told = "Edits a photo with a scale each for the person and the words (FastFace), without an adapter. For FLUX.2 Klein."
    return s, s.definition(told, [-240, 300], [2080, 400])


def two_styles(info: dict, demo: bool) -> tuple:
    """A portrait with one style where a mask is and another elsewhere. demo: with the demo model inside, traced."""
    s = Level(info, "Two Styles and a Trace" if demo else "Two Styles", 701)
    prompt, negative = words = prompts(s, 0, 0, [270, 100], "head" if demo else "portrait")
    content = cut_to_size(s, [0, 370], "Content, cut to size")
    latent, _, extract, merged = features(s, 370, "Content", words, [content])
    styles, models, decoders, cuts = [], [(extract, "model")], [(latent, "vae")], [content]
    for word, top in (("1", 600), ("2", 830)):
        cuts.append(cut_to_size(s, [0, top], f"Style {word}, cut to size"))
        encoded, _, read, small = features(s, top, f"Style {word}", words, cuts[-1:])
        models.append((read, "model"))
        decoders.append((encoded, "vae"))
        styles.append(small)
    drawn = s.node("MaskToImage", [0, 1060], [200, 30], "Region as a picture")
    cuts.append(cut_to_size(s, [230, 1060], "Region, cut to size", image=(drawn, 0)))
    region = s.node("ImageToMask", [530, 1060], [200, 60], "Region", image=(cuts[-1], 0), channel="red")
    rest = s.node("InvertMask", [760, 1060], [200, 30], "Everywhere else", mask=(region, 0))
    one = {"source": (merged, 0), "reference": (styles[0], 0), "mask": (region, 0)}
    first = s.node("AtelierSEACPatch", [1150, 370], [290, 330], "SEAC Patch, style 1", **one)
    two = {"model": (first, 0), "reference": (styles[1], 0), "mask": (rest, 0)}
    model = second = s.node("AtelierSEACPatch", [1150, 790], [290, 330], "SEAC Patch, style 2", **two)
    if demo:
        model = trace = s.node("AtelierSEACTrace", [1470, 370], [260, 60], model=(second, 0))
    links = {"positive": (prompt, 0), "negative": (negative, 0), "latent_image": (latent, 0), "model": (model, 0)}
    how = {"steps": 4, "cfg": 2.0, "sampler_name": "lcm", "denoise": 0.5}
    if not demo:
        how = {"steps": 8, "cfg": 1.0, "sampler_name": "res_multistep", "denoise": 0.6}
    node = s.node("KSampler", [1470, 480], [260, 270], "KSampler", **links, **how, scheduler="simple", seed=0)
    decode = s.node("VAEDecode", [1470, 810], [260, 50], "VAE Decode", samples=(node, 0))
    wanted = {"model": [*models, (first, "model")], "clip": [(prompt, "clip"), (negative, "clip")]}
    wanted["vae"] = [*decoders, (decode, "vae")]
    if demo:
        loader = s.node("AtelierDemoModelLoader", [320, 0], [270, 70])
        lcm = s.node("ModelSamplingDiscrete", [640, 0], [270, 90], sampling="lcm", model=(loader, 0))
        s.group("Demo model", [300, -80, 630, 200])
        for origin, targets in zip(((lcm, 0), (loader, 1), (loader, 2)), wanted.values()):
            for target in targets:
                s.link(origin, *target)
    else:
        for name, targets in wanted.items():
            s.input(name, *targets)
    s.input("content", (content, "image"))
    s.input("region", (drawn, "mask"))
    s.input("style_1", (cuts[1], "image"), label="style 1")
    s.input("style_2", (cuts[2], "image"), label="style 2")
    s.input("prompt", (prompt, "text"))
    s.input("strength_1", (first, "style_enhancement"), label="strength of style 1")
    s.input("strength_2", (second, "style_enhancement"), label="strength of style 2")
    s.input("change", (node, "denoise"))
    s.input("size", *[(cut, side) for cut in cuts for side in ("width", "height")])
    s.input("seed", (node, "seed"))
    s.input("steps", (node, "steps"))
    s.output("image", (decode, 0))
    if demo:
        s.output("trace", (trace, 1))
    s.group("Prompt", [-20, -80, 310, 350])
    s.group("Features of the three pictures, read once and kept", [-20, 290, 1140, 930])
    s.group("Sampling under attention control", [1130, 290, 620, 850])
    told = "Gives a portrait one style where the region is and another everywhere else, in one run (ZePo, two references)."
    return s, s.definition(told, [-240, 300], [1800, 400])


UNMEASURED = """How well style carries over on this model was not measured here: the transformer that was measured is a small one."""
OWN = """Select a node and press **i** for help. *SEAC Trace* behind *SEAC Patch*, with *SEAC Report*, shows what each layer did."""


def files(*given: tuple) -> str:
    """The part of a note that names files."""
    lines = [f"**models/{folder}**: [{name}]({HUB}/{repository})." for folder, name, repository, _ in given]
    return "\n\n".join(["## Files", *lines, "The licence stands on the file's page."])


def prompt_note(name: str, *given: tuple) -> str:
    return f"""# Style of a picture, {name}

Draws a **prompt** in the look of **Style**, whose features are read once, in one more model call.

1. Put the files below into their folders, press **R**.
2. **Style**: upload your picture (the button on the node).
3. Write the **prompt**. Press **Run**.

{UNMEASURED} Try **style strength** and **style share** first.

{files(*given)}

{OWN}"""


EDIT_NOTE = f"""# A photo in the style of a picture, Qwen-Image-Edit

Redraws **Content** as the **prompt** says, in the look of **Style**, in four steps.

1. Put the files below into their folders, press **R**.
2. **Content**, **Style**: upload your pictures (the button on the node).
3. Press **Run**.

{UNMEASURED} Try **style strength** and **style share** first.

{files(EDIT, QWEN_VL, QWEN_VAE, LIGHTNING)}

{OWN}"""
SLIDERS_NOTE = f"""# Person and words, two sliders, FLUX.2 Klein

Edits **Content** as the **prompt** says. No face adapter: the photo itself is the identity.

1. Put the files below into their folders, press **R**.
2. **Content**: upload your photo (the button on the node).
3. Write the **prompt**. Press **Run**.

## What to change first

- **person (alpha)** and **words (beta)**: one number, or one per step. With 1 and 1 this is the model's plain edit.
- **weight of the photo**: above 1 more of the photo, below 1 less.

What the sliders do on trained weights was not measured here.

{files(KLEIN, QWEN_3_4B, FLUX2_VAE)}"""
REGIONS_NOTE = f"""# Two styles in two regions, Z-Image-Turbo

Gives **Content** the look of **Style 1** where the region is, and of **Style 2** everywhere else, in one run.

1. Put the files below into their folders, press **R**.
2. **Content**, **Style 1**, **Style 2**: upload your pictures (the button on the node).
3. Paint the region: right-click **Content**, *Open in Mask Editor*.
4. Press **Run**.

Less **change** keeps more of the content.

{UNMEASURED}

{files(Z_IMAGE, QWEN_3_4B, FLUX_VAE)}"""
DEMO_NOTE = """# Two styles, and what they did

Gives **Content** the look of **Style 1** where the region is, and of **Style 2** everywhere else. Nothing to download, \
no GPU.

1. Press **Run**.
2. **SEAC Report** shows how much attention each style got, in which layers and where: orange is style 1, blue is style 2.
3. Set **strength of style 1** to 0.5 and run again.
4. Paint another region: right-click **Content**, *Open in Mask Editor*.

The report comes from *SEAC Trace* inside *Two Styles and a Trace*: open it with the icon at its corner. It changes \
nothing of the picture."""


def prompt_workflow(info: dict, name: str, api: str, model: tuple, note: str, kind: str = "", **settings) -> tuple:
    inner, (loaded, definition) = style_of_a_picture(info, kind), model
    g = Level(info)
    g.note(note, [0, 0], [300, 740])
    style = g.node("AtelierDemoPicture", [320, 0], [225, 350], "Style", image="atelier/style.png")
    models = g.subgraph(loaded, [320, 390], [225, 350])
    links = {"style": (style, 0), **by_name(loaded, models)}
    result = g.subgraph(inner[0], [565, 0], [240, 740], **links, **settings)
    g.node("SaveImage", [825, 0], [400, 380], "Result", images=(result, 0), filename_prefix=f"portrait-atelier/{api}")
    g.node("ImageCompare", [825, 420], [400, 320], "Style and result", image_a=(style, 0), image_b=(result, 0))
    return name, api, g, [inner[1], definition]


def style_z_image(info: dict) -> tuple:
    note = prompt_note("Z-Image-Turbo", Z_IMAGE, QWEN_3_4B, FLUX_VAE)
    name, api = "Style of a picture - Z-Image-Turbo", "style_z_image_turbo"
    return prompt_workflow(info, name, api, z_image(info), note, sampler="res_multistep")


def style_klein(info: dict) -> tuple:
    note = prompt_note("FLUX.2 Klein", KLEIN, QWEN_3_4B, FLUX2_VAE)
    return prompt_workflow(info, "Style of a picture - FLUX.2 Klein", "style_flux2_klein", klein(info), note, "flux2")


def style_krea(info: dict) -> tuple:
    note = prompt_note("Krea 2 Turbo", KREA, QWEN_3_VL, QWEN_VAE)
    return prompt_workflow(info, "Style of a picture - Krea 2 Turbo", "style_krea2_turbo", krea(info), note)


def style_edit(info: dict) -> tuple:
    inner, (loaded, definition) = style_of_a_picture(info, "edit"), qwen_edit(info)
    api = "style_qwen_edit_lightning"
    g = Level(info)
    g.note(EDIT_NOTE, [0, 0], [300, 740])
    content = g.node("AtelierDemoPicture", [320, 0], [225, 350], "Content", image="atelier/content.png")
    style = g.node("AtelierDemoPicture", [320, 390], [225, 350], "Style", image="atelier/style.png")
    models = g.subgraph(loaded, [565, 0], [240, 260])
    links = {"content": (content, 0), "style": (style, 0), **by_name(loaded, models)}
    result = g.subgraph(inner[0], [565, 300], [240, 440], **links, size=1024)
    g.node("SaveImage", [825, 0], [400, 380], "Result", images=(result, 0), filename_prefix=f"portrait-atelier/{api}")
    g.node("ImageCompare", [825, 420], [400, 320], "Before and after", image_a=(content, 0), image_b=(result, 0))
    return "Style of a picture - Qwen-Image-Edit", api, g, [inner[1], definition]


def sliders(info: dict) -> tuple:
    inner, (loaded, definition) = edit_with_two_sliders(info), klein(info)
    api = "edit_flux2_klein_sliders"
    g = Level(info)
    g.note(SLIDERS_NOTE, [0, 0], [300, 740])
    content = g.node("AtelierDemoPicture", [320, 0], [225, 350], "Content", image="atelier/content.png")
    models = g.subgraph(loaded, [320, 390], [225, 350])
    links = {"content": (content, 0), **by_name(loaded, models)}
    result = g.subgraph(inner[0], [565, 0], [240, 740], **links)
    g.node("SaveImage", [825, 0], [400, 380], "Result", images=(result, 0), filename_prefix=f"portrait-atelier/{api}")
    g.node("ImageCompare", [825, 420], [400, 320], "Before and after", image_a=(content, 0), image_b=(result, 0))
    return "Person and words, two sliders - FLUX.2 Klein", api, g, [inner[1], definition]


def regions(info: dict, demo: bool) -> tuple:
    inner = two_styles(info, demo)
    api = "zepo_demo_regions" if demo else "zepo_z_image_regions"
    g, definitions = Level(info), [inner[1]]
    g.note(DEMO_NOTE if demo else REGIONS_NOTE, [0, 0], [240, 740])
    content = g.node("AtelierDemoPicture", [258, 0], [225, 350], "Content", image="atelier/content-painted.png")
    one = g.node("AtelierDemoPicture", [258, 390], [225, 350], "Style 1", image="atelier/style-watercolor.png")
    two = g.node("AtelierDemoPicture", [501, 390], [225, 350], "Style 2", image="atelier/style-neon.png")
    links = {"content": (content, 0), "region": (content, 1), "style_1": (one, 0), "style_2": (two, 0)}
    if demo:
        result = g.subgraph(inner[0], [501, 0], [225, 350], **links, size=256)
        told = {"trace": (result, 1), "images": (result, 0)}
        g.node("AtelierSEACReport", [744, 0], [250, 740], "SEAC Report", **told)
    else:
        loaded, definition = z_image(info)
        definitions.append(definition)
        models = g.subgraph(loaded, [501, 0], [225, 350])
        result = g.subgraph(inner[0], [744, 0], [250, 740], **links, **by_name(loaded, models), size=1024)
    prefix = f"portrait-atelier/{api}"
    g.node("SaveImage", [1012, 0], [314, 380], "Result", images=(result, 0), filename_prefix=prefix)
    g.node("ImageCompare", [1012, 420], [314, 320], "Before and after", image_a=(content, 0), image_b=(result, 0))
    name = "Demo 8 - Two styles, and what they did" if demo else "Two styles in two regions - Z-Image-Turbo"
    return name, api, g, definitions


def demo_regions(info: dict) -> tuple:
    return regions(info, demo=True)


def z_image_regions(info: dict) -> tuple:
    return regions(info, demo=False)


WORKFLOWS = [demo_regions, style_z_image, style_klein, style_krea, style_edit, sliders, z_image_regions]
BLUEPRINTS = []
