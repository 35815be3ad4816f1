"""Pick Points by real mouse and keyboard, in both renderers: what stands in its text, and what reaches FastSAM Mask."""
import io
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from portrait_atelier.segmentation.prompts import parse_signed

network = runpy.run_path(str(Path(__file__).parents[1] / "host" / "fastsam" / "network.py"))
RED, BLUE, candidate = network["RED"], network["BLUE"], network["candidate"]
VIEW = '[data-testid="atelier-points"]'
# A picture of 160 x 128 and the node; `scale` puts Upscale Image in between.
BUILD = """async ({scale, pan, zoom}) => {
    const make = (type, pos, values = {}) => {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        node.pos = pos;
        for (const [name, value] of Object.entries(values)) {
            const widget = node.widgets.find(w => w.name === name);
            widget.value = value;
            widget.callback?.(value);
        }
        return node;
    };
    window.make = make;
    window.chain = (image, mask) => { // from the picture to FastSAM Mask, and from its mask to a file
        const model = make('AtelierFastSAMLoader', [0, 600], {file: 'colours.onnx', provider: 'cpu'});
        const segment = make('AtelierFastSAMSegment', [350, 600], {size: 160});
        const picture = make('MaskToImage', [1550, 600]), save = make('SaveImage', [1900, 600], {filename_prefix: 'chosen'});
        model.connect(0, segment, 'fastsam_model');
        image.connect(0, segment, 'image');
        segment.connect(0, mask, 'fastsam_result');
        mask.connect(0, picture, 'mask');
        picture.connect(0, save, 'images');
    };
    const load = make('LoadImage', [0, 100], {image: 'colours.png'}), pick = make('AtelierPickPoints', [700, 100]);
    if (scale) {
        const scaled = make('ImageScale', [350, 100], {width: 320, height: 256});
        load.connect(0, scaled, 'image');
        scaled.connect(0, pick, 'image');
    } else {
        load.connect(0, pick, 'image');
    }
    app.canvas.ds.scale = zoom ?? 1;
    app.canvas.ds.offset = pan ?? [-400, 40];
    app.canvas.setDirty(true, true);
}"""
TEXT = "app.canvas.graph.nodes.find(node => node.type === 'AtelierPickPoints').widgets.find(w => w.name === 'points').value"
RUN = """() => new Promise((done, fail) => {
    app.api.addEventListener('execution_success', () => done(), {once: true});
    app.api.addEventListener('execution_error', event => fail(Error(event.detail.exception_message)), {once: true});
    app.queuePrompt(0).then(accepted => accepted || fail(Error('the workflow was rejected')));
})"""
RED_BOX, BLUE_BOX = (slice(24, 112), slice(24, 88)), (slice(40, 104), slice(100, 150))


@pytest.fixture(scope="module", autouse=True)
def colours(server):
    folder = server.base / "models" / "fastsam"
    folder.mkdir(exist_ok=True)
    network["write_onnx"](folder / "colours.onnx", [candidate((0, 0, 100, 128), RED), candidate((90, 30, 160, 110), BLUE, score=.8)])
    pixels = np.zeros((128, 160, 3), np.uint8)
    pixels[RED_BOX][..., 0], pixels[BLUE_BOX][..., 2] = 255, 255
    Image.fromarray(pixels).save(server.base / "input" / "colours.png")


@pytest.fixture
def scene(page):
    def scene(**how):
        page.evaluate(BUILD, how)
        return page.locator(f"{VIEW} .picture")

    return scene


def at(picture, x, y, width=160, height=128):
    """Where the middle of a pixel lies on the screen."""
    picture.wait_for()
    picture.element_handle().wait_for_element_state("stable")
    box = picture.bounding_box()
    return box["x"] + (x + .5) / width * box["width"], box["y"] + (y + .5) / height * box["height"]


def says(page, text):
    page.wait_for_function(f"text => {TEXT} === text", arg=text)


@pytest.mark.parametrize("where", [{}, {"zoom": 1.7, "pan": [-600, 0]}, {"zoom": .6, "pan": [-500, 200]}], ids=["plain", "large", "small"])
def test_mouse(page, scene, where):
    picture = scene(**where)
    page.mouse.click(*at(picture, 40, 30))
    page.mouse.click(*at(picture, 120, 70), button="right")
    says(page, "+40,30 -120,70")
    assert page.locator(".p-contextmenu:visible, .litecontextmenu:visible").count() == 0  # the right click is the picture's
    page.mouse.move(*at(picture, 40, 30))
    page.mouse.down()
    page.mouse.move(*at(picture, 60, 50))
    page.mouse.move(*at(picture, 159, 127))
    page.mouse.up()
    says(page, "+159,127 -120,70")
    page.mouse.click(*at(picture, 120, 70))
    says(page, "+159,127")
    assert page.evaluate(f"document.querySelectorAll('{VIEW} button').length") == 1
    assert page.errors == []


def test_keyboard(page, scene):
    picture = scene()
    picture.wait_for()
    picture.focus()
    page.keyboard.press("Enter")
    says(page, "+80,64")
    for key in ("ArrowLeft", "ArrowUp", "Shift+ArrowRight", "-"):
        page.keyboard.press(key)
    says(page, "-89,63")
    undone = page.locator(f"{VIEW} button").element_handle()
    page.keyboard.press("Control+z")      # the editor's own undo takes one key back, and makes the node anew
    says(page, "+89,63")
    undone.wait_for_element_state("hidden")
    page.locator(f"{VIEW} button").focus()
    page.keyboard.press("Delete")
    says(page, "")
    page.keyboard.press("Delete")         # nothing left: and the node stays
    assert page.evaluate("app.graph.nodes.length") == 2
    assert page.evaluate(f"document.activeElement === document.querySelector('{VIEW} .picture')")
    page.keyboard.press("-")
    says(page, "-80,64")


def test_the_text_is_the_truth(page, scene):
    picture = scene()
    page.mouse.click(*at(picture, 40, 30))
    page.mouse.click(*at(picture, 41, 90))
    page.keyboard.press("Control+z")
    says(page, "+40,30")
    page.keyboard.press("Control+y")
    says(page, "+40,30 +41,90")
    page.wait_for_function(f"document.querySelectorAll('{VIEW} button').length === 2")

    write = f"text => {{ {TEXT} = text; }}"
    page.evaluate(write, "7,8; - 9.5 , 10\n+200,3")
    marks = page.locator(f"{VIEW} button")
    page.wait_for_function(f"document.querySelectorAll('{VIEW} button').length === 3")
    assert [mark.get_attribute("aria-label") for mark in marks.all()] == ["Include 7, 8", "Exclude 9, 10", "Include 200, 3"]
    page.get_by_text("1 of 3 points outside the picture of 160 x 128.").wait_for()
    page.evaluate(write, "here")
    page.get_by_text("The text is no list of points").wait_for()
    page.mouse.click(*at(picture, 40, 30))
    says(page, "here")                    # a click does not overwrite what it cannot read

    page.evaluate(write, "+1,2 -3,4")
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    number, entry = next((number, entry) for number, entry in prompt.items() if entry["class_type"] == "AtelierPickPoints")
    assert entry["inputs"] == {"points": "+1,2 -3,4", "image": [next(iter(prompt)), 0]}
    page.evaluate("prompt => app.loadApiJson(prompt, 'points')", prompt)
    says(page, "+1,2 -3,4")
    page.wait_for_function(f"document.querySelectorAll('{VIEW} button').length === 2")
    page.evaluate("async () => { const graph = app.graph.serialize(); app.graph.clear(); await app.loadGraphData(graph); }")
    says(page, "+1,2 -3,4")
    assert page.errors == []


def test_copy_and_paste(page, scene):
    picture = scene()
    page.mouse.click(*at(picture, 40, 30))
    page.evaluate("""() => {
        const node = app.graph.nodes.find(node => node.type === 'AtelierPickPoints');
        app.canvas.selectNode(node);
        app.canvas.copyToClipboard();
        app.canvas.pasteFromClipboard({connectInputs: true});
    }""")
    page.wait_for_function(f"document.querySelectorAll('{VIEW} button').length === 2")   # one on each
    picks = "app.graph.nodes.filter(node => node.type === 'AtelierPickPoints').map(node => node.widgets[0].value)"
    assert page.evaluate(picks) == ["+40,30", "+40,30"]
    page.evaluate("""() => {
        const copy = app.graph.nodes.filter(node => node.type === 'AtelierPickPoints')[1];
        copy.widgets[0].value = '+1,2';
    }""")
    assert page.evaluate(picks) == ["+40,30", "+1,2"]


def test_in_a_subgraph(page, scene):
    """The picture comes in through the subgraph's border; the points go out with the prompt."""
    scene()
    page.evaluate("""() => {
        const node = app.graph.nodes.find(node => node.type === 'AtelierPickPoints');
        const {subgraph} = app.graph.convertToSubgraph(new Set([node]));
        app.canvas.setGraph(subgraph);
        app.canvas.ds.scale = 1;
        app.canvas.ds.offset = [-400, 40];
    }""")
    picture = page.locator(f"{VIEW} .picture")
    page.mouse.click(*at(picture, 120, 70))
    says(page, "+120,70")
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert [entry["inputs"]["points"] for entry in prompt.values() if entry["class_type"] == "AtelierPickPoints"] == ["+120,70"]
    page.evaluate("app.canvas.setGraph(app.rootGraph)")
    assert page.errors == []


def test_points_of_a_picture_made_on_the_way_choose_segments(page, scene, server):
    """The picture appears with the first run, in its own size, and the mask is what was clicked."""
    picture = scene(scale=True)
    page.get_by_text("One that is made on the way shows after a run.").wait_for()
    page.evaluate(RUN)
    picture.wait_for()
    page.mouse.click(*at(picture, 240, 140, 320, 256))
    says(page, "+240,140")
    page.evaluate("""() => {
        const [pick, scaled] = ['AtelierPickPoints', 'ImageScale'].map(type => app.graph.nodes.find(node => node.type === type));
        const mask = make('AtelierFastSAMMask', [1200, 600], {mode: 'points'});
        pick.connect(0, mask, 'positive');
        pick.connect(1, mask, 'negative');
        chain(scaled, mask);
    }""")
    page.evaluate(RUN)
    assert_blue(saved(page, server), 2)
    assert page.errors == []


def assert_blue(mask, scale):
    expected = np.zeros((128, 160))
    expected[BLUE_BOX] = 255
    expected = expected.repeat(scale, 0).repeat(scale, 1)
    assert mask.shape == expected.shape and (mask != expected).sum() < .1 * (expected > 0).sum()   # edges are soft


def saved(page, server):
    address = page.wait_for_function("""() => {
        const save = app.graph.nodes.find(node => node.type === 'SaveImage');
        return app.nodeOutputs[save.id]?.images?.[0];
    }""").json_value()
    reply = page.request.get(server.client.url + "/view", params=address)
    return np.asarray(Image.open(io.BytesIO(reply.body())).convert("L"))


def test_boxes_are_drawn_on_the_host_s_own_node(page, server):
    if not page.nodes2:
        pytest.skip("the host draws boxes in Nodes 2.0 only")
    page.evaluate(BUILD, {})
    page.evaluate("""() => {
        const load = app.graph.nodes.find(node => node.type === 'LoadImage');
        app.graph.remove(app.graph.nodes.find(node => node.type === 'AtelierPickPoints'));
        const draw = make('CreateBoundingBoxes', [700, 100]), mask = make('AtelierFastSAMMask', [1200, 600], {mode: 'box'});
        load.connect(0, draw, 'background');
        draw.connect(1, mask, 'bboxes');
        chain(load, mask);
    }""")
    canvas = page.locator('[data-node-id] canvas[tabindex]').first
    page.wait_for_function("""() => app.graph.nodes.find(node => node.type === 'CreateBoundingBoxes')
        .widgets.find(w => w.name === 'width').value === 160""")
    page.mouse.move(*at(canvas, 96, 32))
    page.mouse.down()
    page.mouse.move(*at(canvas, 130, 70))
    page.mouse.move(*at(canvas, 150, 110))
    page.mouse.up()
    page.evaluate(RUN)
    assert_blue(saved(page, server), 1)
    assert page.errors == []


def test_the_page_and_the_server_read_the_same_points(page):
    texts = ["", " \n ", "120,80", "+120,80 -40,30", "+ 120 , 80;-40.9,30.2\n7,8;", "here", "1,2 3", "1,2,3", "1,2 --3,4", "1,2+3,4", ",", "1e3,1",
             "1" * 10 + ",1", "٣,٤"]
    read = """async texts => {
        const {parse} = await import('/extensions/portrait-atelier/js/points.mjs');
        return texts.map(text => parse(text)?.map(({x, y, exclude}) => [exclude, x, y]) ?? null);
    }"""
    assert page.evaluate(read, texts) == [signed(text) for text in texts]


def signed(text):
    try:
        return [list(point) for point in parse_signed(text)]
    except ValueError:
        return None
