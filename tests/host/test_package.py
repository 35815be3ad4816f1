"""A package without what .comfyignore names is whole: its nodes load, and so does what they read from the folder."""
import asyncio
import importlib.util
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

import portrait_atelier

ROOT = Path(portrait_atelier.__file__).parent
IGNORED = [line for line in (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]


@pytest.fixture
def package(tmp_path):
    def left_out(folder, names):
        inside = {name: (Path(folder) / name).relative_to(ROOT).as_posix() for name in names}
        hidden = {".atelier", ".git", "__pycache__", ".pytest_cache"}
        return [name for name, path in inside.items()
                if name in hidden or any(fnmatch(path, pattern.rstrip("/")) for pattern in IGNORED)]

    folder = tmp_path / "package"
    shutil.copytree(ROOT, folder, ignore=left_out)
    name = "packaged_atelier"
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    yield sys.modules[name], folder
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def test_the_package_is_whole(package):
    pack, folder = package
    nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(load(pack))}
    assert set(nodes) == {node.GET_SCHEMA().node_id for node in asyncio.run(load(portrait_atelier))}
    nodes["AtelierDemoModelLoader"].execute()
    nodes["AtelierDemoFaceLoader"].execute()
    for node in nodes:
        for language in ("en", "zh"):
            assert (folder / pack.WEB_DIRECTORY / "docs" / node / f"{language}.md").is_file()
    subprocess.run([sys.executable, str(folder / "atelier.py"), "--help"], check=True, stdout=subprocess.DEVNULL)
    files = lambda root: sorted(path.name for pattern in ("workflows/*.*", "workflows/api/*", "locales/*/*", "subgraphs/*", "web/js/*")
                                for path in root.glob(pattern))
    assert files(folder) == files(ROOT)


def test_every_line_names_something():
    for pattern in IGNORED:
        assert list(ROOT.glob(pattern.rstrip("/"))), pattern


async def load(pack):
    return await (await pack.comfy_entrypoint()).get_node_list()
