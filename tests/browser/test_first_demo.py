"""The address that `serve` prints opens the first demo, whatever the name of its file."""
import io
import json
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from PIL import Image

from portrait_atelier.headless.serve import WORKFLOWS, first_demo

SPACED = {"version": 0.4, "nodes": [], "links": [], "groups": [], "config": {}, "extra": {"mark": 9}}


@pytest.fixture
def tab(server, open_tab):
    """A visitor who has never been here: without an address, the editor would show its templates."""
    tab = open_tab()
    server.client.call("/settings", {"Comfy.TutorialCompleted": False})
    yield tab
    tab.context.close()


# Queue, and wait for the end of this very run.
RUN = """() => new Promise((done, fail) => {
    app.api.addEventListener('execution_success', () => done(), {once: true});
    app.api.addEventListener('execution_error', event => fail(Error(JSON.stringify(event.detail))), {once: true});
    app.queuePrompt(0).then(accepted => accepted || fail(Error('the workflow was rejected')));
})"""


@pytest.mark.quick
def test_the_address_opens_the_first_demo_and_it_runs(server, tab):
    name, = parse_qs(urlsplit(first_demo()).query)["template"]
    count = len(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))["nodes"])
    tab.goto(server.client.url + first_demo(), wait_until="domcontentloaded")
    tab.wait_for_function("count => window.app?.graph?.nodes.length === count", arg=count)
    tab.wait_for_function("() => !location.search")
    assert tab.get_by_role("dialog").count() == 0
    tab.evaluate(RUN)
    outputs, = (entry["outputs"] for entry in server.client.json("/history?max_items=1")[1].values())
    results = server.client.images(outputs)
    assert results and all(Image.open(io.BytesIO(server.client.download(result))).size == (256, 256) for result in results)
    assert tab.errors == []


def test_a_name_with_spaces(server, tab):
    """The editor alone takes none; this one is served under such a name for the test."""
    tab.route(f"**/workflow_templates/portrait-atelier/{quote('Demo 9.json')}", lambda route: route.fulfill(body=json.dumps(SPACED)))
    tab.goto(f"{server.client.url}/?template={quote('Demo 9')}&source=portrait-atelier", wait_until="domcontentloaded")
    tab.wait_for_function("() => window.app?.graph?.extra?.mark === 9")
    tab.wait_for_function("() => !location.search")
    assert tab.get_by_role("dialog").count() == 0 and tab.errors == []
