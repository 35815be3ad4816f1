"""Paint a Face: a face of a photo in a style of MMFS, put back; training of one style; faces of StyleGAN2."""

from .editor_json import Level

PAGE = "https://github.com/dong-y21/MMFS"
MODEL, GENERATOR = "phase3_pretrain_10000.pth", "stylegan2-ffhq-512.pt"
CLIP, DINO, LANDMARKS = (
    "clip-vit-base-patch32/model.safetensors",
    "dino_vitbase8_pretrain.pth",
    "mediapipe_face_fp32.safetensors",
)


def loaders(info: dict, clip: bool = False, dino: bool = False) -> tuple:
    """The files, in one node: MMFS, what finds faces, and what reads styles."""
    name = "MMFS, CLIP and DINO" if dino else "MMFS and CLIP" if clip else "MMFS and faces"
    s = Level(info, name, 871 if dino else 861 if clip else 851)
    mmfs = s.node("AtelierMMFSLoader", [0, 0], [320, 90], file=MODEL)
    finder = s.node("LoadMediaPipeFaceLandmarker", [0, 150], [320, 60], model_name=LANDMARKS)
    s.input("mmfs", (mmfs, "file"), label="MMFS file")
    s.output("model", (mmfs, 0))
    s.output("finder", (finder, 0))
    if clip:
        guide = s.node("AtelierCLIPSimilarityLoader", [0, 270], [320, 100], model=CLIP, dino=DINO if dino else "none")
        s.output("guidance", (guide, 0))
    return s, s.definition("The files of MMFS, and what it needs beside them.", [-200, 0], [380, 0])


def paint_a_face(info: dict, style: str = "seed") -> tuple:
    """style: seed, picture or text."""
    name = {"seed": "Paint a Face", "picture": "Paint a Face like a Picture", "text": "Paint a Face by Words"}[style]
    s = Level(info, name, {"seed": 801, "picture": 811, "text": 821}[style])
    found = s.node("MediaPipeFaceLandmarker", [0, 0], [280, 180], num_faces=0)
    align = s.node("AtelierAlignFace", [320, 0], [270, 180], faces=(found, 0), size=512)
    if style == "seed":
        given = s.node("AtelierMMFSStyleSeed", [320, 240], [270, 150])
    else:
        given = s.node("AtelierMMFSStylePrompt", [320, 240], [270, 150])
    painted = s.node("AtelierMMFSStylize", [640, 0], [270, 200], image=(align, 0), style=(given, 0))
    paste = s.node("AtelierPasteFace", [960, 0], [270, 190], crop=(painted, 0), transform=(align, 1), feather=0.15)
    s.input("model", (given, "model"), (painted, "model"))
    s.input("finder", (found, "face_detection_model"))
    s.input("photo", (found, "image"), (align, "image"), (paste, "image"))
    if style == "seed":
        s.input("seed", (given, "seed"))
        s.input("mix_seed", (given, "mix_seed"), label="second style")
        s.input("mix_at", (given, "mix_at"), label="second style from layer")
    else:
        s.input("guidance", (given, "guidance"))
        s.input(*(("style", (given, "image")) if style == "picture" else ("text", (given, "text"))))
    s.input("noise", (painted, "noise"))
    s.input("which", (align, "face"), label="which face")
    s.input("smoothing", (align, "smoothing"))
    s.input("border", (paste, "feather"), label="soft border")
    s.input("opacity", (paste, "opacity"))
    s.output("image", (paste, 0))
    s.output("face", (painted, 0))
    told = {"seed": "a random style", "picture": "the style of a picture", "text": "the style that a text names"}[style]
    about = f"Cuts a face out of the photo, paints it in {told} (MMFS) and puts it back, in one pass of a network."
    return s, s.definition(about, [-200, 100], [1290, 0])


STEPS = """1. Put the files below into their folders, press **R**.
2. **Content**: upload a photo with a face.
3. Press **Run**. **Painted face** shows what was put back."""
FILES = f"""**models/mmfs**: phase3_pretrain_10000.pth, from the links on [its authors' page]({PAGE}). Its training \
data, AAHQ and FFHQ, are for non-commercial use.

**models/detection**: \
[mediapipe_face_fp32.safetensors](https://huggingface.co/Comfy-Org/mediapipe)."""
CLIP_FILE = """**models/clip_vision/clip-vit-base-patch32**: model.safetensors and config.json from \
[its page](https://huggingface.co/openai/clip-vit-base-patch32)."""
DINO_FILE = """**models/dino**: dino_vitbase8_pretrain.pth from [its page](https://github.com/facebookresearch/dino)."""
KNOBS = """- **which face**: 0 is the largest, -1 takes all.
- **opacity**: less shows more of the photo.
- **soft border**: how far into the crop the photo shows through."""
PAPER = "The method is MMFS (Li, Dong, Lin, Huang, Wan and Ma, 2023)."

RANDOM = f"""# Paint a face in a random style

Finds the face in **Content**, paints it in a style that MMFS has learnt, and puts it back.

{STEPS}

## What to change first

In *Paint a Face*:

- **seed**: another style.
- **second style from layer**: below 10, fine layers take the style of **second style**.
{KNOBS}

## Files

{FILES}

{PAPER}"""

PICTURE = f"""# Paint a face like a picture

Finds the face in **Content**, paints it in the style of the face in **Style**, and puts it back.

{STEPS}

## What to change first

- **Style**: a stylized face that fills the picture.
{KNOBS}

If the style is not close enough, train it: template *Learn a style - MMFS*.

## Files

{FILES}

{CLIP_FILE}

{PAPER}"""

WORDS = f"""# Paint a face by words

Finds the face in **Content**, paints it in the style that **text** names, and puts it back.

{STEPS}

## What to change first

- **text**: watercolor painting, pop art, a cubism style painting.
{KNOBS}

If the style is not close enough, train it: template *Learn a style - MMFS*.

## Files

{FILES}

{CLIP_FILE}

{PAPER}"""

LEARN = f"""# Learn a style

Trains MMFS on the style of the face in **Style** with the faces in **Photos**, and saves it. A GPU is advised.

1. Put the files below into their folders, press **R**.
2. **Photos**: upload a photo with many faces, 16 or more of different people; or connect a batch of photos.
3. **Style**: a stylized face that fills the picture.
4. Press **Run**. The preview shows four faces every ten steps; Cancel keeps what is trained so far.

The result lies in output/mmfs; Load MMFS lists it. In *Learn a Style* write a **text** and disconnect **Style** to \
learn from words.

## Files

{FILES}

{CLIP_FILE}

{DINO_FILE}

{PAPER}"""

FACES = """# Random faces

Draws faces that nobody has with a StyleGAN2, and mixes two of them.

1. **models/stylegan**: put a StyleGAN2 file in the layout of JoJoGAN and StyleGAN-NADA (g_ema) there, press **R** and \
choose it in **Load StyleGAN**.
2. Press **Run**.

## What to change first

- **seed**: another face.
- **mix_at**: how many layers, coarse ones first, keep the first face.
- **truncation**: less is closer to the average face.

Faces are mostly trained on FFHQ, which is for non-commercial use."""


def surface(info: dict, text: str, api: str, style: str) -> tuple:
    face, definition = paint_a_face(info, style)
    models, loaded_definition = loaders(info, clip=style != "seed")
    g = Level(info)
    g.note(text, [0, 0], [300, 740])
    photo = g.node("AtelierDemoPicture", [320, 0], [225, 350], "Content", image="atelier/scene.png")
    loaded = g.subgraph(models, [565, 0], [240, 140])
    links = {"model": (loaded, 0), "finder": (loaded, 1), "photo": (photo, 0)}
    if style != "seed":
        links["guidance"] = loaded, 2
    if style == "picture":
        reference = g.node("AtelierDemoPicture", [320, 390], [225, 350], "Style", image="atelier/style-watercolor.png")
        links["style"] = reference, 0
    if style == "text":
        links["text"] = "watercolor painting"
    result = g.subgraph(face, [565, 190], [240, 550], **links)
    g.node("SaveImage", [825, 0], [470, 400], "Result", images=(result, 0), filename_prefix=f"portrait-atelier/{api}")
    g.node("ImageCompare", [825, 440], [265, 300], "Before and after", image_a=(photo, 0), image_b=(result, 0))
    g.node("PreviewImage", [1110, 440], [185, 300], "Painted face", images=(result, 1))
    return g, [definition, loaded_definition]


def random_style(info: dict) -> tuple:
    return "Paint a face - MMFS, random style", "mmfs_random", *surface(info, RANDOM, "mmfs_random", "seed")


def like_a_picture(info: dict) -> tuple:
    return "Paint a face - MMFS, like a picture", "mmfs_picture", *surface(info, PICTURE, "mmfs_picture", "picture")


def by_words(info: dict) -> tuple:
    return "Paint a face - MMFS, by words", "mmfs_words", *surface(info, WORDS, "mmfs_words", "text")


def learn_a_style(info: dict) -> tuple:
    s = Level(info, "Learn a Style", 831)
    found = s.node("MediaPipeFaceLandmarker", [0, 0], [280, 180], num_faces=0)
    align = s.node("AtelierAlignFace", [320, 0], [270, 180], faces=(found, 0), size=512, face=-1)
    tuned = s.node("AtelierMMFSFewShot", [640, 0], [290, 320], photos=(align, 0))
    s.node("LossGraphNode", [970, 240], [270, 80], loss=(tuned, 1), filename_prefix="portrait-atelier/mmfs_loss")
    given = s.node("AtelierMMFSStylePrompt", [970, 0], [270, 150], model=(tuned, 0))
    painted = s.node("AtelierMMFSStylize", [1280, 0], [270, 200], model=(tuned, 0), image=(align, 0), style=(given, 0))
    s.node("AtelierMMFSSave", [1280, 260], [270, 110], model=(tuned, 0))
    s.input("model", (tuned, "model"))
    s.input("finder", (found, "face_detection_model"))
    s.input("guidance", (tuned, "guidance"), (given, "guidance"))
    s.input("photos", (found, "image"), (align, "image"))
    s.input("style", (tuned, "style_image"), (given, "image"))
    s.input("text", (tuned, "text"), (given, "text"))
    s.input("steps", (tuned, "steps"))
    s.input("lr", (tuned, "lr"), label="learning rate")
    s.input("seed", (tuned, "seed"))
    s.output("image", (painted, 0))
    s.output("faces", (align, 0))
    about = "Cuts out all faces of the photos and trains MMFS's decoder for one style; saves it and plots its loss."
    definition = s.definition(about, [-200, 100], [1610, 0])
    models, loaded_definition = loaders(info, clip=True, dino=True)
    g = Level(info)
    g.note(LEARN, [0, 0], [300, 740])
    photos = g.node("AtelierDemoPicture", [320, 0], [225, 350], "Photos", image="atelier/scene.png")
    style = g.node("AtelierDemoPicture", [320, 390], [225, 350], "Style", image="atelier/style-watercolor.png")
    loaded = g.subgraph(models, [565, 0], [240, 140])
    links = {
        "model": (loaded, 0),
        "finder": (loaded, 1),
        "guidance": (loaded, 2),
        "photos": (photos, 0),
        "style": (style, 0),
    }
    result = g.subgraph(s, [565, 190], [240, 550], **links)
    g.node(
        "SaveImage", [825, 0], [470, 400], "Result", images=(result, 0), filename_prefix="portrait-atelier/mmfs_learn"
    )
    g.node("ImageCompare", [825, 440], [470, 300], "Before and after", image_a=(result, 1), image_b=(result, 0))
    return "Learn a style - MMFS", "mmfs_learn", g, [definition, loaded_definition]


def faces(info: dict) -> tuple:
    g = Level(info)
    g.note(FACES, [0, 0], [300, 740])
    loaded = g.node("AtelierStyleGANLoader", [320, 0], [270, 90], file=GENERATOR)
    first = g.node("AtelierStyleGANGenerate", [320, 150], [270, 270], "First face", model=(loaded, 0))
    mixed = g.node("AtelierStyleGANGenerate", [320, 470], [270, 270], "Mixed with another", model=(loaded, 0), mix_at=6)
    name = "portrait-atelier/stylegan_faces"
    g.node("SaveImage", [620, 0], [400, 300], "Result", images=(mixed, 0), filename_prefix=name)
    g.node("ImageCompare", [620, 340], [400, 260], "Before and after", image_a=(first, 0), image_b=(mixed, 0))
    return "Random faces - StyleGAN2", "stylegan_faces", g, []


WORKFLOWS = [random_style, like_a_picture, by_words, learn_a_style, faces]
BLUEPRINTS = [paint_a_face]
