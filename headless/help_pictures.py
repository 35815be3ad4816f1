"""The pictures of the README and of the help pages: ``python3 atelier.py pictures [NAME ...]`` draws them all again.

Each shows a shipped workflow, run on a real ComfyUI with the demo model, one setting changed from tile to tile.
"""
import argparse
import copy
import io
import shutil
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from . import workflow as workflows
from .client import Client, title

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "demo" / "pictures"
TILE, GAP, LABEL, QUALITY = 192, 8, 26, 86
BASE = {"_meta": {"title": "Added"}}


class Studio:
    """Runs workflows in API format; the same one twice is run once."""

    def __init__(self, client: Client):
        self.client, self.drawn = client, {}

    def load(self, name: str, prompt: str = "", **pictures) -> dict:
        """A shipped workflow. `pictures`: by lower title, a name in demo/pictures, or a picture itself."""
        graph = workflows.load(name)
        for node, entry in graph.items():
            called = title(graph, node)
            if entry["class_type"] in ("LoadImage", "AtelierDemoPicture"):
                picture = self.upload(pictures.get(called.lower()) or next(iter(entry["inputs"].values())))
                graph[node] = {**entry, "class_type": "LoadImage", "inputs": {"image": picture}}
            elif prompt and called in ("Prompt", "Caption"):
                entry["inputs"]["text"] = prompt
        return graph

    def upload(self, picture) -> str:
        if isinstance(picture, str):
            return self.client.upload(SHIPPED / f"{Path(picture).stem}.png")
        data = io.BytesIO()
        picture.save(data, "PNG")
        return self.client.upload(data.getvalue(), "picture.png")

    def draw(self, graph: dict, **settings) -> Image.Image:
        """What Save Image "Result" saves. settings: CLASS__INPUT=value for every node of that class, less "Atelier"."""
        graph = copy.deepcopy(graph)
        for name, value in settings.items():
            kind, _, name = name.partition("__")
            for node in of(graph, kind):
                graph[node]["inputs"][name] = value
        key = repr(sorted(graph.items()))
        if key not in self.drawn:
            outputs = self.client.run(graph)
            found = self.client.images({node: outputs[node] for node in outputs if title(graph, node) == "Result"})
            self.drawn[key] = Image.open(io.BytesIO(self.client.download(found[0]))).convert("RGB")
        return self.drawn[key]


def of(graph: dict, kind: str) -> list:
    """The ids of the nodes of a class; there is at least one."""
    found = [node for node, entry in graph.items() if entry["class_type"] in (kind, f"Atelier{kind}")]
    assert found, f"no node {kind}"
    return found


def bypass(graph: dict, kind: str, name: str = "model") -> dict:
    """The graph without the node of this class: who took its first output takes what came in at `name`."""
    graph, (node,) = copy.deepcopy(graph), of(graph, kind)
    source = graph.pop(node)["inputs"][name]
    for entry in graph.values():
        entry["inputs"] = {key: source if value == [node, 0] else value for key, value in entry["inputs"].items()}
    return graph


def replaced(graph: dict, kind: str, by: str, **inputs) -> dict:
    """The graph with another class in the place of this one; of its inputs only `model` stays."""
    graph, (node,) = copy.deepcopy(graph), of(graph, kind)
    graph[node] = {**BASE, "class_type": by, "inputs": {"model": graph[node]["inputs"]["model"], **inputs}}
    return graph


def shown(graph: dict, link: list) -> dict:
    """The graph that ends in Save Image "Result" of `link` alone: unneeded nodes are not run."""
    graph = {node: entry for node, entry in graph.items() if entry["class_type"] not in ("SaveImage", "PreviewImage")}
    result = {"images": link, "filename_prefix": "atelier-shown"}
    return {**graph, "shown": {"class_type": "SaveImage", "inputs": result, "_meta": {"title": "Result"}}}


def shipped(name: str) -> Image.Image:
    return Image.open(SHIPPED / f"{name}.png").convert("RGB")


def circle(center: tuple, radius: int) -> Image.Image:
    """A white disc on black, 256 x 256."""
    picture, (x, y) = Image.new("RGB", (256, 256)), center
    ImageDraw.Draw(picture).ellipse([x - radius, y - radius, x + radius, y + radius], fill="white")
    return picture


def sheet(tiles: list, columns: int) -> Image.Image:
    """Tiles (label, picture) in rows, each with its label underneath."""
    rows = -(-len(tiles) // columns)
    step = TILE + GAP, TILE + LABEL + GAP
    picture = Image.new("RGB", (columns * step[0] - GAP, rows * step[1] - GAP), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(19)
    for number, (label, tile) in enumerate(tiles):
        left, top = number % columns * step[0], number // columns * step[1]
        picture.paste(tile.resize((TILE, TILE), Image.Resampling.LANCZOS), (left, top))
        pen.text((left + TILE / 2, top + TILE + LABEL / 2), label, "black", font, "mm")
    return picture


# --- ZePo

NEON = dict(content="content", style="style-neon")


def row(studio, graph, setting: str, values, label="{}") -> list:
    return [(label.format(value), studio.draw(graph, **{setting: value})) for value in values]


def pair(content: str, style: str) -> list:
    return [("content", shipped(content)), ("style", shipped(style))]


def features(studio):
    graph = studio.load("zepo_demo", **NEON)
    return pair("content", "style-neon") + row(studio, graph, "ConsistencyFeatureExtract__timestep", (0, 99, 299, 499))


def merge(studio):
    return row(studio, studio.load("zepo_demo", **NEON), "TokenMerge__ratio", (0.0, 0.25, 0.5, 0.75))


def style_enhancement(studio):
    graph = studio.load("zepo_demo", **NEON)
    return pair("content", "style-neon") + row(studio, graph, "SEACPatch__style_enhancement", (0.8, 1.0, 1.2, 1.5))


def strength(studio):
    return row(studio, studio.load("zepo_demo", **NEON), "SEACPatch__strength", (0.0, 0.3, 0.6, 1.0))


# --- FastFace

def person(studio, **pictures) -> dict:
    """The demo graph without its attention node and guidance."""
    graph = studio.load("fastface_demo", **{"face": "content-2", "prompt": "portrait, cartoon", **pictures})
    return bypass(bypass(graph, "DecoupledCFG"), "ScalePowerAttention")


def weight(studio):
    graph = person(studio)
    off = studio.draw(graph, FaceAdapterApply__weight=0.0, FaceAdapterApply__lora_strength=0.0)
    tiles = row(studio, graph, "FaceAdapterApply__weight", (0.2, 0.4, 0.8, 1.2))
    return [("face", shipped("content-2")), ("no adapter", off), *tiles]


def weak(studio) -> dict:
    """The demo graph without guidance, with an adapter of half the weight, so that a node that strengthens it shows."""
    graph = bypass(studio.load("fastface_demo", "portrait, cartoon", face="content-2"), "DecoupledCFG")
    for node in of(graph, "FaceAdapterApply"):
        graph[node]["inputs"]["weight"] = 0.4
    return graph


def strengthened(studio, graph: dict, label: str, **settings) -> list:
    without = studio.draw(bypass(weak(studio), "ScalePowerAttention"))
    return [("face", shipped("content-2")), ("without", without), ("defaults", studio.draw(graph)),
            (label, studio.draw(graph, **settings))]


def scale_power(studio):
    both = {"ScalePowerAttention__scale_down": "3", "ScalePowerAttention__scale_up": "3"}
    return strengthened(studio, weak(studio), "both scales 3", **both)


def softmax(studio):
    graph = replaced(weak(studio), "AtelierScalePowerAttention", "AtelierScheduledSoftmaxAttention", layers="d,u",
                     start=0.0, end=1.0, sharpness="7.5, 5, 5, 5", quantile=0.65, scale="1, 1.55, 1.55, 1.55",
                     adain_weight=0.3, coupling="rows")
    return strengthened(studio, graph, "scale 3", ScheduledSoftmaxAttention__scale="3")


def guidance(studio):
    graph = bypass(studio.load("fastface_demo", "portrait, cartoon", face="content-2"), "ScalePowerAttention")
    return [("no guidance", studio.draw(bypass(graph, "DecoupledCFG")))] + [
        (f"beta {value}", studio.draw(graph, DecoupledCFG__beta=f"1, {value}, {value}, 1")) for value in (1.5, 3, 5)]


def few_steps(studio, steps: int = 4, formulation: str = "") -> Image.Image:
    """The demo's person through Few-Step Preset and SamplerCustomAdvanced."""
    graph = person(studio)
    (sampler,), (lcm,) = of(graph, "KSampler"), of(graph, "ModelSamplingDiscrete")
    given = graph[sampler]["inputs"]
    graph["preset"] = {**BASE, "class_type": "AtelierFewStepPreset",
                       "inputs": {"model": given["model"], "base": "LCM", "steps": steps, "denoise": 1.0}}
    graph["noise"] = {**BASE, "class_type": "RandomNoise", "inputs": {"noise_seed": given["seed"]}}
    prompts = {name: given[name] for name in ("positive", "negative")}
    if formulation:
        guider = {"class_type": "AtelierDecoupledCFGGuider",
                  "inputs": {"alpha": ["preset", 4], "beta": ["preset", 5], "formulation": formulation, "rescale": 0.75,
                             "rescale_steps": "guided", "routing": "shared"}}
    else:
        guider = {"class_type": "CFGGuider", "inputs": {"cfg": 1.0}}
    guider["inputs"] |= {"model": ["preset", 0], **prompts}
    graph["guider"] = {**BASE, **guider}
    graph[sampler] = {**BASE, "class_type": "SamplerCustomAdvanced",
                      "inputs": {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["preset", 1],
                                 "sigmas": ["preset", 2], "latent_image": given["latent_image"]}}
    return studio.draw(bypass(graph, "ModelSamplingDiscrete") if lcm else graph)


def preset(studio):
    return [(f"{count} step{'s' * (count > 1)}", few_steps(studio, count)) for count in (1, 2, 4, 8)]


def formulations(studio):
    guided = [(name, few_steps(studio, 4, name)) for name in ("DCG_1", "DCG_2", "DCG_3")]
    return [("no guidance", few_steps(studio)), *guided]


def crop(studio):
    graph = studio.load("fastface_demo", face="content-2")
    (encode,) = of(graph, "FaceIdentityEncode")
    return [("image", shipped("content-2")), ("crop", studio.draw(shown(graph, [encode, 1])))]


def people(studio):
    tiles = []
    for face in ("content", "content-2", "style-watercolor"):
        tiles += [("face", shipped(face)), ("drawn", studio.draw(person(studio, face=face)))]
    return tiles


def words(studio):
    tiles = []
    for style in ("photo", "cartoon", "watercolor", "ink", "neon", "pixel"):
        graph = person(studio, prompt=f"portrait, {style}, red hair, glasses")
        tiles.append((style, studio.draw(bypass(graph, "FaceAdapterApply"), KSampler__cfg=2.0)))
    return tiles


def closer(picture: Image.Image) -> Image.Image:
    """The surroundings of the face in the shipped scene."""
    return picture.crop((240, 110, 600, 470))


def letterbox(picture: Image.Image) -> Image.Image:
    square = Image.new("RGB", (max(picture.size),) * 2, "white")
    square.paste(picture, ((square.width - picture.width) // 2, (square.height - picture.height) // 2))
    return square


def aligned(studio):
    graph, scene = studio.load("zepo_demo_face"), shipped("scene")
    (align,) = of(graph, "AlignFace")
    return [("photo", letterbox(scene)), ("closer", closer(scene)), ("crop", studio.draw(shown(graph, [align, 0])))]


def pasted(studio):
    graph = studio.load("zepo_demo_face")
    tiles = row(studio, graph, "PasteFace__feather", (0.0, 0.08, 0.3), "feather {}")
    return [("photo", closer(shipped("scene"))), *((label, closer(picture)) for label, picture in tiles)]


def gallery(studio):
    return [(path.stem, letterbox(shipped(path.stem))) for path in sorted(SHIPPED.glob("*.png"))]


# --- DiffStyler

def trained(studio):
    graph = studio.load("diffstyler_demo")
    return [("style", shipped("style-neon"))] + [
        (f"{steps} steps", studio.draw(graph, StyleLoRATrain__steps=steps)) for steps in (2, 50, 200)]


def styled(studio):
    graph, region = studio.load("diffstyler_demo"), Image.new("RGB", (256, 256))
    region.paste("white", (0, 0, 128, 256))
    graph["mask"] = {**BASE, "class_type": "LoadImageMask",
                     "inputs": {"image": studio.upload(region), "channel": "red"}}
    masked = studio.draw(graph, FastSAMMaskBlend__mask=["mask", 0])
    return pair("content", "style-neon") + row(studio, graph, "FastSAMMaskBlend__strength", (0.0, 1.0)) + [
        ("mask", region), ("1.0 with mask", masked)]


def injection(studio):
    graph = studio.load("diffstyler_demo")
    never = {"LoRACrossInjection__feature_until": 1000, "LoRACrossInjection__attention_until": 1000}
    return [("content", shipped("content")), ("none", studio.draw(graph, **never)),
            ("f=4;sa=4-11", studio.draw(graph, LoRACrossInjection__layers="f=4;sa=4-11")),
            ("auto", studio.draw(graph, LoRACrossInjection__layers="auto"))]


def trajectory(studio):
    graph = studio.load("diffstyler_demo")
    return pair("content", "style-neon") + row(studio, graph, "SourceTrajectory__mode", ("ddim", "forward"))


def grid(studio):
    graph = studio.load("zepo_demo")
    region, latent = circle((118, 110), 52), graph[of(graph, "KSampler")[0]]["inputs"]["latent_image"]
    added = {"mask": ("LoadImageMask", {"image": studio.upload(region), "channel": "red"}),
             "grid": ("AtelierMaskToLatentGrid",
                      {"mask": ["mask", 0], "latent": latent, "grow": 0, "feather": 0, "row": -1}),
             "seen": ("MaskToImage", {"mask": ["grid", 0]}),
             "large": ("ImageScale", {"image": ["seen", 0], "upscale_method": "nearest-exact", "crop": "disabled",
                                      "width": 256, "height": 256})}
    graph |= {node: {**BASE, "class_type": kind, "inputs": inputs} for node, (kind, inputs) in added.items()}
    graph = shown(graph, ["large", 0])
    return [("mask", region), ("grid", studio.draw(graph)), ("grow 32", studio.draw(graph, MaskToLatentGrid__grow=32)),
            ("feather 40", studio.draw(graph, MaskToLatentGrid__feather=40))]


# --- README

def demo(studio):
    styles = ("style-neon", "style-popart", "style-sepia", "style-ink")
    graphs = [studio.load("zepo_demo", content="content", style=style) for style in styles]
    given = [("content", shipped("content"))] + [("style", shipped(style)) for style in styles]
    plain = ("no style", studio.draw(graphs[0], SEACPatch__strength=0.0))
    return [*given, plain] + [("result", studio.draw(graph, SEACPatch__style_enhancement=1.5)) for graph in graphs]


def faces(studio):
    tiles = [("face", shipped("content-2"))]
    for style in ("photo", "cartoon", "watercolor", "neon"):
        tiles.append((style, studio.draw(studio.load("fastface_demo", f"portrait, {style}", face="content-2"))))
    return tiles


def restyle(studio):
    strength = row(studio, studio.load("diffstyler_demo"), "FastSAMMaskBlend__strength", (0.0, 1.0))
    return [("content", shipped("content")), ("learnt from", shipped("style-neon")), ("word alone", strength[0][1]),
            ("word and LoRA", strength[1][1]), ("left half", styled(studio)[-1][1])]


DOCS = "web/docs/Atelier"
PICTURES = {  # file: (tiles, columns); neighbours share what ComfyUI keeps
    "docs/images/demo.jpg": (demo, 5), "docs/images/faces.jpg": (faces, 5),
    DOCS + "ConsistencyFeatureExtract/timestep.jpg": (features, 2), DOCS + "TokenMerge/ratio.jpg": (merge, 2),
    DOCS + "SEACPatch/style_enhancement.jpg": (style_enhancement, 2), DOCS + "SEACPatch/strength.jpg": (strength, 2),
    DOCS + "FaceAdapterApply/weight.jpg": (weight, 2), DOCS + "ScalePowerAttention/scale.jpg": (scale_power, 2),
    DOCS + "ScheduledSoftmaxAttention/scale.jpg": (softmax, 2), DOCS + "DecoupledCFG/beta.jpg": (guidance, 2),
    DOCS + "FewStepPreset/steps.jpg": (preset, 2), DOCS + "DecoupledCFGGuider/formulation.jpg": (formulations, 2),
    DOCS + "FaceIdentityEncode/crop.jpg": (crop, 2), DOCS + "DemoFaceLoader/people.jpg": (people, 2),
    DOCS + "AlignFace/crop.jpg": (aligned, 3), DOCS + "PasteFace/feather.jpg": (pasted, 2),
    DOCS + "DemoPicture/shipped.jpg": (gallery, 2), DOCS + "DemoModelLoader/words.jpg": (words, 2),
    DOCS + "MaskToLatentGrid/grid.jpg": (grid, 2),
    DOCS + "SourceTrajectory/mode.jpg": (trajectory, 2), DOCS + "FastSAMMaskBlend/strength.jpg": (styled, 2),
    DOCS + "LoRACrossInjection/layers.jpg": (injection, 2), "docs/images/restyle.jpg": (restyle, 5),
    DOCS + "StyleLoRATrain/steps.jpg": (trained, 2),
}


# --- The editor

EDITOR, FIRST = "docs/images/editor.jpg", "Demo 1 - Stylize a portrait"
READY = "() => window.app?.extensionManager && LiteGraph.registered_node_types.AtelierSEACPatch"
OPEN = """async name => {
    const graph = await (await fetch(`/api/workflow_templates/portrait-atelier/${encodeURIComponent(name)}.json`)).json();
    await app.loadGraphData(graph, true, true, name, {openSource: 'template'});
}"""
RUN = """() => new Promise((done, fail) => {
    app.api.addEventListener('execution_success', done, {once: true});
    app.api.addEventListener('execution_error', event => fail(Error(JSON.stringify(event.detail))), {once: true});
    app.queuePrompt(0);
})"""
SHOWN = "() => [...document.querySelectorAll('[data-node-id] img')].filter(picture => picture.naturalWidth).length >= 5"


def screenshot(client: Client, path: Path) -> None:
    """The first demo in the editor after a run, with the test packages' playwright and the system's chromium."""
    from playwright.sync_api import sync_playwright
    client.call("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Locale": "en", "Comfy.Workflow.Persist": False,
                              "Comfy.VueNodes.Enabled": True, "Comfy.Minimap.Visible": False,
                              "Comfy.RightSidePanel.IsOpen": False})
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(client.url, wait_until="domcontentloaded")
        page.wait_for_function(READY)
        page.evaluate(OPEN, FIRST)
        page.evaluate(RUN)
        page.wait_for_function(SHOWN)
        page.screenshot(path=path, type="jpeg", quality=80)


def main() -> None:
    parser = argparse.ArgumentParser(prog="atelier.py pictures", description=__doc__.split("\n\n")[0])
    parser.add_argument("--server", required=True, help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help="only those with this in their path, as SEACPatch; all by default")
    args = parser.parse_args()
    studio = Studio(Client(args.server))
    for path, (tiles, columns) in PICTURES.items():
        if not args.names or any(name in path for name in args.names):
            sheet(tiles(studio), columns).save(ROOT / path, quality=QUALITY, optimize=True)
            print(f"{path}: {(ROOT / path).stat().st_size // 1000} kB", flush=True)
    if not args.names or any(name in EDITOR for name in args.names):
        screenshot(studio.client, ROOT / EDITOR)


if __name__ == "__main__":
    main()
