"""What ComfyUI's own loader makes of the pack in a ComfyUI that is too old: nothing is registered, one sentence says why."""
import asyncio
import logging
import re
import sys
from pathlib import Path

import comfyui_version
import nodes
import pytest

import portrait_atelier

ROOT = Path(portrait_atelier.__file__).parent
WORDS = r"Portrait Atelier needs ComfyUI 0\.24\.0 or newer, but this is {}: update ComfyUI and its requirements"


@pytest.fixture
def load(monkeypatch, caplog, tmp_path):
    """load() lets ComfyUI load the pack: whether it did, what it registered, what it logged."""
    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", {})
    monkeypatch.setattr(nodes, "EXTENSION_WEB_DIRS", {})
    pack = tmp_path / "portrait-atelier"
    pack.symlink_to(ROOT, target_is_directory=True)

    def load():
        with caplog.at_level(logging.WARNING):
            done = asyncio.run(nodes.load_custom_node(str(pack)))
        return done, {**nodes.NODE_CLASS_MAPPINGS, **nodes.EXTENSION_WEB_DIRS}, [record.getMessage() for record in caplog.records]

    known = set(sys.modules)
    yield load
    for name in set(sys.modules) - known:
        del sys.modules[name]


@pytest.mark.parametrize("version", ["0.3.64", "0.8.0", "0.12.3", "0.22.9", "0.23.99"])
def test_an_old_one_registers_nothing_and_gets_one_line(load, monkeypatch, version):
    monkeypatch.setattr(comfyui_version, "__version__", version)
    done, registered, lines = load()
    assert not done and registered == {}
    assert len(lines) == 1 and re.search(WORDS.format(re.escape(version)), lines[0])


@pytest.mark.parametrize("version", ["0.3.40", None])
def test_one_that_knows_no_entry_point_is_told_as_well(load, monkeypatch, version):
    """Before comfy_api.latest there was no comfy_entrypoint; the oldest have no module comfyui_version."""
    monkeypatch.delitem(sys.modules, "comfy_api.latest")
    if version:
        monkeypatch.setattr(comfyui_version, "__version__", version)
    else:
        monkeypatch.setitem(sys.modules, "comfyui_version", None)
    done, registered, lines = load()
    assert not done and registered == {}
    assert re.search("Cannot import .*" + WORDS.format(re.escape(version) if version else "one so old that it does not tell its version"), lines[-1])


@pytest.mark.parametrize("version", ["0.24.0", "0.24", "v0.30.0-12-gabc", "1.0", "main"])
def test_others_are_let_through(monkeypatch, version):
    monkeypatch.setattr(comfyui_version, "__version__", version)
    assert portrait_atelier.complaint() == ""


def test_one_version_everywhere():
    """The registry reads pyproject.toml; what the tests run on is in comfyui-oldest.txt."""
    assert f'requires-comfyui = ">={portrait_atelier.OLDEST}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"ComfyUI {portrait_atelier.OLDEST}," in (ROOT / "comfyui-oldest.txt").read_text(encoding="utf-8")
