"""The page of `atelier.py evaluate` in the real browser: from a file, without a network, with names that would be scripts."""
import json

import numpy as np
import pytest
from PIL import Image

from portrait_atelier.evaluation import run

NAMES = ("<img src=x onerror=window.ran=1>.png", "\"'><script>window.ran=1<!--.png", "c &amp; d.png", "\u202egnp.10.png", "no picture.png")
SECONDS = (10, 9, None, 100, 2)


@pytest.fixture
def tab(chromium, tmp_path):
    for number, name in enumerate(NAMES[:-1]):
        Image.fromarray(np.full((64, 80, 3), 60 * number, np.uint8)).save(tmp_path / name)
    (tmp_path / NAMES[-1]).write_text("junk")
    items = [{"generated": name, "content": NAMES[0], **({"seconds": seconds} if seconds else {})} for name, seconds in zip(NAMES, SECONDS)]
    (tmp_path / "m.json").write_text(json.dumps({"</style><script>window.ran=1</script>": items}))
    assert run.main([str(tmp_path / "m.json"), "--output", str(tmp_path / "o.json"), "--models", str(tmp_path), "--device", "cpu"]) == 0
    context = chromium.new_context(offline=True)
    tab = context.new_page()
    tab.asked, tab.errors = [], []
    tab.on("request", lambda request: tab.asked.append(request.url))
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.goto((tmp_path / "o.html").as_uri())
    yield tab
    context.close()


def column(tab, head):
    """The texts of the lower table's column, top to bottom."""
    return tab.evaluate("""head => { const table = [...document.querySelectorAll("table")].at(-1);
        const at = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === head);
        return [...table.tBodies[0].rows].map(row => row.cells[at].textContent); }""", head)


def click(tab, head):
    tab.locator("table").last.get_by_role("button", name=head, exact=True).click()


def test_names_are_text_and_columns_sort(tab):
    assert column(tab, "name") == list(NAMES)
    assert column(tab, "method") == ["</style><script>window.ran=1</script>"] * 5
    # Nothing of the names became a part of the page, and no script but its own runs, not even one that got in.
    assert tab.evaluate("document.querySelectorAll('img, script').length") == 1 and tab.evaluate("window.ran") is None
    tab.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))")
    tab.evaluate("""new Promise(done => {
        document.body.insertAdjacentHTML("beforeend", "<img src=x onerror=window.ran=1>");
        document.querySelector("img").addEventListener("error", done);
    })""")
    assert tab.evaluate("window.ran") is None
    shown = tab.evaluate("[...document.querySelectorAll('i')].map(mark => getComputedStyle(mark).backgroundImage.slice(0, 27))")
    assert shown == ['url("data:image/jpeg;base64,'[:27]] * 9  # of five results, and their content; one is no picture
    assert "window.ran" not in tab.evaluate("document.querySelector('style').textContent")

    click(tab, "seconds")
    assert column(tab, "seconds") == ["2", "9", "10", "100", ""] and column(tab, "name")[0] == NAMES[4]
    click(tab, "seconds")
    assert column(tab, "seconds") == ["100", "10", "9", "2", ""]
    assert tab.evaluate("[...document.querySelectorAll('th[aria-sort]')].map(head => [head.textContent, head.ariaSort])") == [["seconds", "descending"]]
    click(tab, "name")
    assert sorted(column(tab, "name")) == sorted(NAMES) and column(tab, "name")[-1] == "no picture.png"
    assert [url for url in tab.asked if not url.startswith(("file:", "data:"))] == [] and not tab.errors
