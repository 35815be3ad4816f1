"""The shipped workflows in the editor: they open, mean what their API twins mean, and the demo draws its picture."""
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageStat

from portrait_atelier.demo.faces import load_recognisers

ROOT = Path(__file__).resolve().parents[2]
FILES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "workflows").glob("*.json"))}
TWINS = {name: graph["extra"]["portrait_atelier"]["api"] for name, graph in FILES.items()}
DEMOS = [name for name, api in TWINS.items() if "_demo" in api]
# Their files have no address that the editor could fetch them from: notes name the pages.
BY_HAND = [name for name, api in TWINS.items() if api.startswith(("mmfs_", "stylegan_"))]

# Every node's box on the screen. Nodes 2.0 draws elements, which grow with their content; LiteGraph draws on a canvas.
BOXES = """nodes2 => app.graph.nodes.map(node => {
    const {scale, offset} = app.canvas.ds, [x, y, width, height] = node.boundingRect;
    if (nodes2) {
        const box = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect();
        return {title: node.title, left: box.x, top: box.y, right: box.right, bottom: box.bottom};
    }
    const left = (x + offset[0]) * scale, top = (y + offset[1]) * scale;
    return {title: node.title, left, top, right: left + width * scale, bottom: top + height * scale};
})"""
# All nodes, those in subgraphs too.
ALL = "const all = graph => graph.nodes.flatMap(node => [node, ...(node.subgraph ? all(node.subgraph) : [])]);"
# Queue, and wait for the end of this very run.
RUN = """() => new Promise((done, fail) => {
    app.api.addEventListener('execution_success', () => done(), {once: true});
    app.api.addEventListener('execution_error', event => fail(Error(JSON.stringify(event.detail))), {once: true});
    app.queuePrompt(0).then(accepted => accepted || fail(Error('the workflow was rejected')));
})"""
# The address of the picture that a node shows, once it is loaded.
SHOWN = """([title, nodes2]) => {
    const node = app.graph.nodes.find(node => node.title === title);
    const pictures = nodes2 ? [...document.querySelectorAll(`[data-node-id="${node.id}"] img`)] : node.imgs ?? [];
    return pictures.find(picture => picture.src.includes('/view?') && picture.complete && picture.naturalWidth)?.src;
}"""

CONTENT = "app.graph.nodes.find(node => node.title === 'Content').widgets[0].value"
# Compare Images has both pictures, and shows them in Nodes 2.0.
COMPARED = """nodes2 => {
    const node = app.graph.nodes.find(node => node.type === 'ImageCompare'), {beforeImages, afterImages} = node.widgets[0].value;
    const shown = [...document.querySelectorAll(`[data-node-id="${node.id}"] img`)].filter(picture => picture.naturalWidth);
    return beforeImages?.length === 1 && afterImages?.length === 1 && (!nodes2 || shown.length === 2);
}"""


def test_every_workflow_has_an_api_twin():
    twins = {path.stem for path in (ROOT / "workflows" / "api").glob("*.json")}
    alone = {twin for twin in twins if twin.startswith(("train_style_", "fastface_realistic_", "fastface_stylistic_"))}  # for the command
    assert set(TWINS.values()) <= twins and twins - set(TWINS.values()) <= alone


@pytest.fixture
def open_workflow(page):
    def open_workflow(name):
        """As the template browser does, which fits the view to the nodes."""
        page.evaluate("""async name => {
            const reply = await fetch(`/api/workflow_templates/portrait-atelier/${name}.json`);
            await app.loadGraphData(await reply.json(), true, true, name, {openSource: 'template'});
        }""", name)
        wait_for_nodes(page, name)

    return open_workflow


def wait_for_nodes(page, name):
    page.wait_for_function("count => app.graph.nodes.length === count", arg=len(FILES[name]["nodes"]))
    if page.nodes2:
        page.wait_for_function("() => app.graph.nodes.every(node => document.querySelector(`[data-node-id=\"${node.id}\"]`))")


def test_the_template_browser_shows_and_opens_workflows(page):
    """Under the pack's name, the demos first, with our thumbnails; the first card opens."""
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    try:
        page.get_by_role("dialog").get_by_text("portrait-atelier", exact=True).first.click()
        page.wait_for_function("""count => {
            const cards = [...document.querySelectorAll('[data-testid^=template-workflow-]')];
            cards.at(-1)?.scrollIntoView();  // the rest is listed when the end is seen
            return cards.length === count;
        }""", arg=len(FILES))
        cards = page.evaluate("[...document.querySelectorAll('[data-testid^=template-workflow-]')].map(card => card.dataset.testid)")
        assert cards == [f"template-workflow-{name}" for name in sorted(FILES)] and sorted(FILES)[:len(DEMOS)] == DEMOS
        for name in DEMOS:  # the server's tests ask for all others
            with Image.open(ROOT / "workflows" / f"{name}.jpg") as thumbnail:
                width = thumbnail.width  # without a thumbnail the card shows a picture of the editor's own, of another size
            page.wait_for_function("""([name, width]) => {
                const card = document.querySelector(`[data-testid="template-workflow-${name}"]`);
                card.scrollIntoView();
                return card.querySelector('img')?.naturalWidth === width;
            }""", arg=[name, width])
        page.get_by_test_id(cards[0]).click()
        wait_for_nodes(page, DEMOS[0])
    finally:
        page.keyboard.press("Escape")  # an open dialog would cover what the next tests press
    assert page.errors == []


@pytest.mark.parametrize("name", FILES)
def test_workflow_in_the_editor(page, open_workflow, name):
    """One test, as opening a workflow takes longer than all that is asked of it."""
    open_workflow(name)
    assert page.evaluate(f"() => {{ {ALL} return all(app.graph).map(node => node.type).filter(type => !LiteGraph.registered_node_types[type]); }}") == []
    twin = json.loads((ROOT / "workflows" / "api" / f"{TWINS[name]}.json").read_text(encoding="utf-8"))
    assert page.evaluate("async () => (await app.graphToPrompt()).output") == twin
    boxes = page.evaluate(BOXES, page.nodes2)
    assert_nothing_covered(boxes)
    assert page.evaluate("app.canvas.ds.scale") >= 0.8 and len(boxes) <= 8
    assert_in_view(boxes)
    assert_models_offered(page, name)
    if name not in DEMOS:
        page.get_by_test_id("error-overlay").wait_for()
    assert errors(page) == ([] if name in DEMOS else ["error-group-missing-model"])
    assert page.errors == []


def assert_nothing_covered(boxes):
    assert len(boxes) > 4 and all(box["right"] > box["left"] and box["bottom"] > box["top"] for box in boxes)
    covered = [(one["title"], other["title"]) for i, one in enumerate(boxes) for other in boxes[:i]
               if one["left"] < other["right"] and other["left"] < one["right"]
               and one["top"] < other["bottom"] and other["top"] < one["bottom"]]
    assert covered == []


def errors(page):
    """The kinds of errors that the editor finds in the graph."""
    if not page.get_by_test_id("error-overlay").count():
        return []
    page.get_by_test_id("error-overlay-see-errors").click()
    page.locator("[data-testid^=error-group-]").first.wait_for()
    found = page.evaluate("[...document.querySelectorAll('[data-testid^=error-group-]')].map(group => group.dataset.testid)")
    page.get_by_role("button", name="Toggle properties panel").first.click()  # the panel narrows the canvas
    page.locator("[data-testid^=error-group-]").first.wait_for(state="detached")
    return [kind for kind in found if kind != "error-group-display-message"]


def assert_in_view(boxes):
    outside = [box for box in boxes if box["left"] < 60 or box["top"] < 40 or box["right"] > 1440 or box["bottom"] > 900]  # sidebar and tabs
    assert outside == []


def assert_models_offered(page, name):
    """A model's `name` must be the value of its widget, else the editor cannot offer the download."""
    loaders = page.evaluate("() => {" + ALL + """return all(app.graph).filter(node => !node.subgraph).flatMap(node => (node.widgets ?? [])
        .filter(widget => ['ckpt_name', 'lora_name', 'clip_name', 'unet_name', 'vae_name'].includes(widget.name) && node.type !== 'AtelierFastSAMMaskBlend')  // its style is the user's
        .map(widget => [widget.value, node.properties.models]))}""")
    assert loaders or name in DEMOS or name in BY_HAND
    for value, models in loaders:
        assert [model["name"] for model in models] == [value]
        assert models[0]["url"].startswith("https://") and models[0]["url"].endswith(".safetensors")
        assert models[0]["directory"] in ("checkpoints", "loras", "clip_vision", "diffusion_models", "text_encoders", "vae")
    # The notes say the same, for those who fetch the files themselves, and name what the editor does not fetch.
    notes = page.evaluate("app.graph.nodes.filter(node => node.type === 'MarkdownNote').map(node => node.widgets[0].value)")
    faces = page.evaluate("() => {" + ALL + """return all(app.graph).filter(
        node => ['AtelierFaceAnalysisLoader', 'AtelierFaceAdapterLoader'].includes(node.type)).map(node => node.widgets[0].value)}""")
    assert len(faces) == (2 if "fastface" in TWINS[name] and name not in DEMOS else 0)
    faces += page.evaluate("() => {" + ALL + """return all(app.graph).filter(
        node => ['AtelierMMFSLoader', 'LoadMediaPipeFaceLandmarker'].includes(node.type)).map(node => node.widgets[0].value)}""")
    for value in [*faces, *(value for value, _ in loaders)]:
        assert any(value in note for note in notes), value


@pytest.fixture
def drawn(page, open_workflow):
    def drawn(api, before=lambda: None, size=(256, 256), **values):
        """Run a workflow and return the picture that the editor then shows. `values`: for all widgets of these names on the surface."""
        name = next(name for name in FILES if TWINS[name] == api)
        open_workflow(name)
        for title in page.evaluate("app.graph.nodes.filter(node => node.type === 'AtelierDemoPicture').map(node => node.title)"):
            assert "subfolder=atelier" in page.wait_for_function(SHOWN, arg=[title, page.nodes2]).json_value()  # before any run
        # A value of its own for each renderer: nothing comes from the server's cache.
        for widget, value in (values or {"seed": 1000 + page.nodes2}).items():
            assert page.evaluate("""([name, value]) => {
                const found = app.graph.nodes.flatMap(node => node.widgets ?? []).filter(w => w.name === name);
                found.forEach(widget => { widget.value = value; });
                return found.length;
            }""", [widget, value])
        before()
        page.evaluate(RUN)
        address = page.wait_for_function(SHOWN, arg=["Result", page.nodes2]).json_value()
        assert api in address and "type=output" in address
        page.wait_for_function(COMPARED, arg=page.nodes2)
        assert errors(page) == []
        boxes = page.evaluate(BOXES, page.nodes2)
        assert_nothing_covered(boxes)
        assert_in_view(boxes)
        result = Image.open(io.BytesIO(page.request.get(address).body())).convert("RGB")
        assert result.size == size and max(ImageStat.Stat(result).stddev) > 20  # not a flat colour
        return result

    return drawn


def test_the_demo_draws_its_picture(page, drawn):
    result = drawn("zepo_demo")
    content, style = (Image.open(ROOT / "demo" / "pictures" / name).convert("RGB") for name in ("content.png", "style.png"))
    # A portrait like the content, not noise, and not the content itself.
    assert likeness(result, content) > 0.5 > likeness(style, content)
    assert distance(result, content) > 10 < distance(result, style)
    assert page.errors == []


def test_the_demo_draws_a_person(page, drawn):
    result = drawn("fastface_demo")
    face = Image.open(ROOT / "demo" / "pictures" / "content.png").convert("RGB")
    assert same_person(result, face) > 0.2 and distance(result, face) > 10
    # What was found is shown too: another picture, of the size of a recogniser's input.
    found = page.wait_for_function(SHOWN, arg=["Found face", page.nodes2]).json_value()
    assert Image.open(io.BytesIO(page.request.get(found).body())).size == (224, 224)
    assert page.errors == []


def test_the_demo_learns_a_style(page, drawn):
    """Few steps: that 200 come nearer to the style, docs/microworld-styles.md measures."""
    result = drawn("diffstyler_demo", steps=3 + page.nodes2)
    content = Image.open(ROOT / "demo" / "pictures" / "content.png").convert("RGB")
    assert likeness(result, content) > 0.25 and distance(result, content) > 10
    assert page.errors == []


@pytest.mark.parametrize("api, shows", [("zepo_demo_face", "Stylized face"), ("fastface_demo_face", "Redrawn face")])
def test_the_demo_puts_a_face_back(page, drawn, api, shows):
    """Around the face the photo changes, and nowhere else; the face itself was drawn at the model's own size."""
    result = drawn(api, size=(768, 576))
    difference = ImageChops.difference(result, Image.open(ROOT / "demo" / "pictures" / "scene.png").convert("RGB"))
    left, top, right, bottom = difference.getbbox()
    assert 240 < left < right < 600 and 110 < top < bottom < 470 and 120 < right - left < 320
    assert max(ImageStat.Stat(difference.crop((left + 40, top + 40, right - 40, bottom - 40))).mean) > 10
    face = page.wait_for_function(SHOWN, arg=[shows, page.nodes2]).json_value()
    assert Image.open(io.BytesIO(page.request.get(face).body())).size == (256, 256)
    assert page.errors == []


def test_the_demo_reports_what_two_styles_did(page, drawn):
    """The report shows its plot first, then the picture in colours."""
    assert drawn("zepo_demo_regions")
    shown = page.wait_for_function(SHOWN, arg=["SEAC Report", page.nodes2]).json_value()
    assert Image.open(io.BytesIO(page.request.get(shown).body())).width == 640
    assert page.errors == []


def test_the_demo_takes_the_region_that_is_painted_in_the_mask_editor(page, drawn):
    """ComfyUI's own mask editor opens on Demo Picture and starts from the shipped region; a stroke in the corner is added to it."""
    def paint():
        page.evaluate("""() => {
            app.canvas.selectNode(app.graph.nodes.find(node => node.title === 'Content'));
            app.extensionManager.command.execute('Comfy.MaskEditor.OpenMaskEditor');
        }""")
        page.wait_for_function("document.querySelectorAll('[role=dialog] canvas')[2]?.width === 256")
        canvas = page.get_by_role("dialog").locator("canvas").nth(2)
        canvas.element_handle().wait_for_element_state("stable")
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + 20, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + 120, box["y"] + 20, steps=4)
        page.mouse.up()
        page.get_by_role("dialog").get_by_role("button", name="Save").click()
        page.wait_for_function(f"{CONTENT}.startsWith('clipspace')")

    result = drawn("diffstyler_demo_regions", paint, steps=2 + page.nodes2)
    assert result and page.errors == []
    painted = page.evaluate(CONTENT).removesuffix(" [input]")
    address = page.evaluate("location.origin") + f"/view?type=input&filename={painted}"
    with Image.open(io.BytesIO(page.request.get(address).body())) as picture:
        alpha = picture.getchannel("A")
    assert [alpha.getpixel(place) for place in ((24, 7), (128, 128), (250, 250))] == [0, 0, 255]


def test_a_photo_without_a_face_is_told(page, open_workflow):
    """The editor says which node failed, and on demand in which words."""
    grey = io.BytesIO()
    Image.new("RGB", (256, 256), (128, 128, 128)).save(grey, "PNG")
    file = {"name": "grey.png", "mimeType": "image/png", "buffer": grey.getvalue()}
    assert page.request.post(page.evaluate("location.origin") + "/upload/image", multipart={"image": file}).ok
    open_workflow(next(name for name in FILES if TWINS[name] == "fastface_demo"))
    page.evaluate("app.graph.nodes.find(node => node.title === 'Face').widgets.find(w => w.name === 'image').value = 'grey.png'")
    page.evaluate("app.queuePrompt(0)")
    page.get_by_text("Face Identity Encode failed").wait_for()
    page.get_by_role("button", name="View details").click()
    page.get_by_text("no face found in the photo").first.wait_for()
    assert page.errors == []


# Where the sockets of a blueprint get their inputs from: (class, output). A test fills the widgets that the demo needs.
MODEL = {"model": ("AtelierDemoModelLoader", 0), "clip": ("AtelierDemoModelLoader", 1), "vae": ("AtelierDemoModelLoader", 2)}
FACES = {"face_analysis": ("AtelierDemoFaceLoader", 0), "adapter": ("AtelierDemoFaceLoader", 1)}
BLUEPRINTS = {
    "Stylize Portrait": {**MODEL, "content": ("AtelierDemoPicture", 0), "style": ("AtelierDemoPicture", 0)},
    "Portrait of a Person": {**MODEL, **FACES, "face": ("AtelierDemoPicture", 0)},
    "Stylize a Face": {**MODEL, "faces": ("AtelierDemoFaceLoader", 0), "photo": ("AtelierDemoPicture", 0), "style": ("AtelierDemoPicture", 0)},
    "Redraw a Face": {**MODEL, **FACES, "photo": ("AtelierDemoPicture", 0)},
    "Restyle with a LoRA": {**MODEL, "content": ("AtelierDemoPicture", 0)},
}
# Connect the one subgraph on the surface, its first output to a Save Image titled "Result".
CONNECT = """sources => {
    const [blueprint] = app.graph.nodes, nodes = {}, slot = name => blueprint.inputs.findIndex(input => input.name === name);
    const add = type => { const node = LiteGraph.createNode(type); app.graph.add(node); return node; };
    for (const [name, [type, output]] of Object.entries(sources))
        (nodes[type] ??= add(type)).connect(output, blueprint, slot(name));
    for (const [name, value] of [['size', 256], ['steps', 4]])
        blueprint.widgets.find(widget => widget.name === name).value = value;
    const result = add('SaveImage');
    result.title = 'Result';
    blueprint.connect(0, result, 0);
    return blueprint.inputs.filter(input => input.link === null && !input.widget).map(input => input.name);
}"""


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_found_and_works(page, name):
    """The first hit of the node search; dropped on an empty canvas, connected, run."""
    page.evaluate("app.canvas.ds.reset()")
    page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    search = page.get_by_role("dialog").get_by_role("combobox")
    search.fill(name)
    hit = page.get_by_test_id("result-item").first
    hit.get_by_text(name, exact=True).wait_for()
    hit.click()
    page.mouse.click(500, 400)  # the new node follows the pointer until a click
    page.wait_for_function("name => app.graph.nodes.length === 1 && app.graph.nodes[0].title === name", arg=name)
    assert set(page.evaluate(CONNECT, BLUEPRINTS[name])) <= {"clip_vision", "lora", "mask", "other_styles"}
    page.evaluate(RUN)
    address = page.wait_for_function(SHOWN, arg=["Result", page.nodes2]).json_value()
    result = Image.open(io.BytesIO(page.request.get(address).body())).convert("RGB")
    assert result.size == (256, 256) and max(ImageStat.Stat(result).stddev) > 20
    assert page.errors == []


def likeness(one, other):
    """Correlation of the brightness of 16 x 16 patches, -1 to 1."""
    a, b = ([value for value in picture.convert("L").resize((16, 16)).get_flattened_data()] for picture in (one, other))
    a, b = ([value - sum(values) / 256 for value in values] for values in (a, b))
    dot = lambda x, y: sum(p * q for p, q in zip(x, y))
    return dot(a, b) / (dot(a, a) * dot(b, b)) ** 0.5


def same_person(one, other):
    """Cosine of the traits that the demo's judge reads in two portraits; 0 for strangers on average."""
    embeddings = load_recognisers().judge.embed(torch.stack([to_tensor(picture) for picture in (one, other)]))
    return float(embeddings[0] @ embeddings[1])


def to_tensor(picture):
    return torch.from_numpy(np.array(picture)).movedim(-1, 0).float() / 255


def distance(one, other):
    """Mean difference of two pictures' values, 0 to 255."""
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3
