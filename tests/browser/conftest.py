"""ComfyUI's own front-end in headless chromium, on a plain server, in both of its renderers."""
import os
import shutil
import sys
from pathlib import Path

import pytest

from portrait_atelier.headless.server import LocalServer, free_port

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
              --disable-component-update --disable-sync""".split()
EMPTY = {"version": 0.4, "nodes": [], "links": [], "groups": [], "config": {}, "extra": {}}
SECONDS = 1000


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A plain ComfyUI: main.py with nothing but this folder in custom_nodes, and an empty input folder."""
    base = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "models/checkpoints", "input", "output", "user"):
        (base / name).mkdir(parents=True)
    (base / "custom_nodes" / "portrait-atelier").symlink_to(ROOT, target_is_directory=True)
    port = free_port()
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "main.py", "--cpu", "--port", str(port), "--base-directory", str(base),
               "--database-url", "sqlite:///:memory:", "--log-stdout"]
    with LocalServer(command, f"http://127.0.0.1:{port}", os.environ["COMFYUI_PATH"], base / "server.log",
                     {**os.environ, "OMP_NUM_THREADS": "1"}) as server:
        server.wait()
        server.base = base
        yield server


@pytest.fixture(scope="session")
def chromium():
    api = pytest.importorskip("playwright.sync_api")
    binary = shutil.which("chromium") or pytest.skip("chromium is absent")
    with api.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=binary, args=CHROMIUM)


@pytest.fixture(scope="session")
def open_tab(server, chromium):
    """open_tab(**settings) opens the editor with these settings of ComfyUI; `tab.errors` lists the page's errors."""
    def open_tab(**settings):
        server.client.call("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Locale": "en",
                                         "Comfy.Workflow.Persist": False, "Comfy.VueNodes.Enabled": False,
                                         **{name.replace("_", "."): value for name, value in settings.items()}})
        tab = chromium.new_context(viewport={"width": 1440, "height": 900}).new_page()
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
