"""ComfyUI's own front-end in headless chromium, on the server of tests/server, in both of its renderers."""
import runpy
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "demo" / "pictures"
CHROMIUM = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
              --disable-component-update --disable-sync""".split()
EMPTY = {"version": 0.4, "nodes": [], "links": [], "groups": [], "config": {}, "extra": {}}
SECONDS = 1000

server = runpy.run_path(str(ROOT / "tests" / "server" / "conftest.py"))["server"]


@pytest.fixture(scope="session")
def chromium():
    api = pytest.importorskip("playwright.sync_api")
    binary = shutil.which("chromium") or pytest.skip("chromium is absent")
    with api.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=binary, args=CHROMIUM)


@pytest.fixture(scope="session")
def open_tab(server, chromium):
    """open_tab(**settings) opens the editor with these settings of ComfyUI; `tab.errors` lists the page's errors."""
    for name in ("content.png", "style.png"):  # as the workflows' first note asks the user to
        file = {"name": name, "mimeType": "image/png", "buffer": (PICTURES / name).read_bytes()}
        context = chromium.new_context()
        reply = context.request.post(server.client.url + "/upload/image", multipart={"image": file})
        assert reply.ok and reply.json()["name"] == name
        context.close()

    def open_tab(**settings):
        server.client.call("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Locale": "en",
                                         "Comfy.Workflow.Persist": False, "Comfy.VueNodes.Enabled": False,
                                         **{name.replace("_", "."): value for name, value in settings.items()}})
        tab = chromium.new_context(viewport={"width": 1400, "height": 900}).new_page()
        tab.set_default_timeout(60 * SECONDS)
        tab.errors = []
        tab.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.goto(server.client.url, wait_until="domcontentloaded")
        tab.wait_for_function("""() => window.app?.extensionManager && LiteGraph.registered_node_types.AtelierSEACPatch
            && document.querySelector('[data-testid="queue-button"]')""")
        tab.evaluate("empty => app.loadGraphData(empty)", EMPTY)  # in place of the editor's first workflow
        return tab

    return open_tab


@pytest.fixture(scope="session", params=[False, True], ids=["litegraph", "nodes2"])
def editor(open_tab, request):
    """One tab for all tests of a renderer: opening one takes longer than a test."""
    tab = open_tab(Comfy_VueNodes_Enabled=request.param)
    tab.nodes2 = request.param
    yield tab
    tab.context.close()


@pytest.fixture
def page(editor):
    editor.errors.clear()
    editor.evaluate("empty => app.loadGraphData(empty)", EMPTY)
    return editor
