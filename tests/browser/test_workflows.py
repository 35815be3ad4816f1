"""The shipped workflows in the editor: they open, mean what their API twins mean, and the demo draws its picture."""
import io
import json
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))

# Every node's box on the screen. Nodes 2.0 draws elements, which grow with their content; LiteGraph draws on a canvas.
BOXES = """nodes2 => app.graph.nodes.map(node => {
    const box = nodes2 ? document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect() : null;
    const [x, y, width, height] = nodes2 ? [box.x, box.y, box.width, box.height] : node.boundingRect;
    return {title: node.title, left: x, top: y, right: x + width, bottom: y + height};
})"""
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


def test_every_workflow_has_an_api_twin():
    twins = {path.stem for path in (ROOT / "workflows" / "api").glob("*.json")}
    assert set(WORKFLOWS) <= twins and twins - set(WORKFLOWS) <= {"train_style_demo", "train_style_sd15"}  # those of a command


@pytest.fixture
def open_workflow(page):
    def open_workflow(name):
        page.evaluate("""async name => {
            const reply = await fetch(`/api/workflow_templates/portrait-atelier/${name}.json`);
            await app.loadGraphData(await reply.json());
        }""", name)
        wait_for_nodes(page, name)

    return open_workflow


def wait_for_nodes(page, name):
    count = len(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))["nodes"])
    page.wait_for_function("count => app.graph.nodes.length === count", arg=count)
    if page.nodes2:
        page.wait_for_function("() => app.graph.nodes.every(node => document.querySelector(`[data-node-id=\"${node.id}\"]`))")


def test_the_template_browser_shows_and_opens_workflows(page):
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    for name in ("diffstyler_demo", "fastface_demo", "zepo_demo"):  # the server's tests ask for all others
        page.get_by_role("dialog").get_by_placeholder("Search").fill(name)
        with Image.open(ROOT / "workflows" / f"{name}.jpg") as thumbnail:
            width = thumbnail.width  # without a thumbnail the card shows a picture of the editor's own, of another size
        page.wait_for_function("""([name, width]) => document.querySelector(
            `[data-testid="template-workflow-${name}"] img`)?.naturalWidth === width""", arg=[name, width])
    page.get_by_test_id("template-workflow-zepo_demo").click()
    wait_for_nodes(page, "zepo_demo")
    assert page.errors == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_in_the_editor(page, open_workflow, name):
    """One test, as opening a workflow takes longer than all that is asked of it."""
    open_workflow(name)
    assert page.evaluate("app.graph.nodes.filter(node => !LiteGraph.registered_node_types[node.type]).map(node => node.type)") == []
    twin = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    assert page.evaluate("async () => (await app.graphToPrompt()).output") == twin
    assert_nothing_covered(page.evaluate(BOXES, page.nodes2))
    assert_models_offered(page, name)
    assert page.errors == []


def assert_nothing_covered(boxes):
    assert len(boxes) > 10 and all(box["right"] > box["left"] and box["bottom"] > box["top"] for box in boxes)
    covered = [(one["title"], other["title"]) for i, one in enumerate(boxes) for other in boxes[:i]
               if one["left"] < other["right"] and other["left"] < one["right"]
               and one["top"] < other["bottom"] and other["top"] < one["bottom"]]
    assert covered == []


def assert_models_offered(page, name):
    """A model's `name` must be the value of its widget, else the editor cannot offer the download."""
    loaders = page.evaluate("""app.graph.nodes.flatMap(node => (node.widgets ?? [])
        .filter(widget => ['ckpt_name', 'lora_name', 'clip_name'].includes(widget.name) && node.type !== 'AtelierFastSAMMaskBlend')  // its style is the user's
        .map(widget => [widget.value, node.properties.models]))""")
    assert loaders or "_demo" in name
    for value, models in loaders:
        assert [model["name"] for model in models] == [value]
        assert models[0]["url"].startswith("https://") and models[0]["url"].endswith(".safetensors")
        assert models[0]["directory"] in ("checkpoints", "loras", "clip_vision")
    # The notes say the same, for those who fetch the files themselves, and name what the editor does not fetch.
    notes = page.evaluate("app.graph.nodes.filter(node => node.type === 'MarkdownNote').map(node => node.widgets[0].value)")
    faces = page.evaluate("""app.graph.nodes.filter(node => ['AtelierFaceAnalysisLoader', 'AtelierFaceAdapterLoader'].includes(node.type))
        .map(node => node.widgets[0].value)""")
    assert len(faces) == (2 if "fastface" in name and "_demo" not in name else 0)
    for value in [*faces, *(value for value, _ in loaders)]:
        assert any(value in note for note in notes), value


@pytest.fixture
def drawn(page, open_workflow):
    def drawn(name):
        """Run a workflow and return the picture that the editor then shows."""
        open_workflow(name)
        # A seed of its own for each renderer: nothing comes from the server's cache.
        page.evaluate("seed => app.graph.nodes.find(node => node.title === 'KSampler').widgets.find(w => w.name === 'seed').value = seed",
                      1000 + page.nodes2)
        page.evaluate(RUN)
        address = page.wait_for_function(SHOWN, arg=["Result", page.nodes2]).json_value()
        assert name in address and "type=output" in address
        result = Image.open(io.BytesIO(page.request.get(address).body())).convert("RGB")
        assert result.size == (256, 256) and max(ImageStat.Stat(result).stddev) > 20  # not a flat colour
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
    assert likeness(result, face) > 0.25 and distance(result, face) > 10
    # What was found is shown too: another picture, of the size of a recogniser's input.
    found = page.wait_for_function(SHOWN, arg=["Found face", page.nodes2]).json_value()
    assert Image.open(io.BytesIO(page.request.get(found).body())).size == (224, 224)
    assert page.errors == []


def test_a_photo_without_a_face_is_told(page, open_workflow):
    """The editor says which node failed, and on demand in which words."""
    grey = io.BytesIO()
    Image.new("RGB", (256, 256), (128, 128, 128)).save(grey, "PNG")
    file = {"name": "grey.png", "mimeType": "image/png", "buffer": grey.getvalue()}
    assert page.request.post(page.evaluate("location.origin") + "/upload/image", multipart={"image": file}).ok
    open_workflow("fastface_demo")
    page.evaluate("app.graph.nodes.find(node => node.title === 'Face').widgets.find(w => w.name === 'image').value = 'grey.png'")
    page.evaluate("app.queuePrompt(0)")
    page.get_by_text("Face Identity Encode failed").wait_for()
    page.get_by_role("button", name="View details").click()
    page.get_by_text("no face found in the photo").first.wait_for()
    assert page.errors == []


def likeness(one, other):
    """Correlation of the brightness of 16 x 16 patches, -1 to 1."""
    a, b = ([value for value in picture.convert("L").resize((16, 16)).get_flattened_data()] for picture in (one, other))
    a, b = ([value - sum(values) / 256 for value in values] for values in (a, b))
    dot = lambda x, y: sum(p * q for p, q in zip(x, y))
    return dot(a, b) / (dot(a, a) * dot(b, b)) ** 0.5


def distance(one, other):
    """Mean difference of two pictures' values, 0 to 255."""
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3
