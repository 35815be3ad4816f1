"""Imports run downwards only, and the pure layers know nothing of ComfyUI: read from the syntax trees."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMFY = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "server", "nodes", "execution"}

# folder -> the folders of the pack it may import, and the host modules it may import
RULES = {
    "attention": (set(), set()),
    "demo": ({"host", "attention", "evaluation", "guidance", "identity", "stylegan", "training"}, COMFY - {"comfy_api"}),
    "evaluation": ({"identity", "stylegan"}, set()),
    "guidance": (set(), set()),
    "headless": (set(), set()),
    "identity": (set(), set()),
    "segmentation": (set(), set()),
    "stylegan": ({"identity"}, set()),
    "host": ({"attention", "evaluation", "guidance", "identity", "segmentation", "stylegan", "training"}, COMFY - {"comfy_api"}),
    "nodes": ({"host", "attention", "guidance", "identity", "segmentation", "demo"}, {"comfy_api"}),
    "training": ({"stylegan", "evaluation"}, set()),
    "": ({"nodes"}, set()),
}


def imports_of(path: Path, root: Path):
    """(folder of the pack or None, top-level module or None, whether at module level) per import statement."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    depth = len(path.relative_to(root).parts) - 1
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield None, name.name.split(".")[0], id(node) in top
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield None, node.module.split(".")[0], id(node) in top
            elif node.level > depth:
                names = [node.module] if node.module else [name.name for name in node.names]
                for name in names:
                    yield name.split(".")[0], None, id(node) in top


def violations(root: Path, folder: str):
    ours, host = RULES[folder]
    files = sorted((root / folder).rglob("*.py")) if folder else [root / "__init__.py"]
    for path in files:
        for part, module, at_top in imports_of(path, root):
            bad = (part is not None and part not in ours | {folder}) or (module in COMFY and module not in host)
            bad = bad or (module in RULES and module != "" and module not in COMFY)
            if bad or (folder == "" and at_top and module not in sys.stdlib_module_names):
                yield f"{path.relative_to(root)} imports {part or module}"


@pytest.mark.parametrize("folder", [folder for folder in RULES if (ROOT / folder).is_dir()])
def test_imports_run_downwards(folder):
    assert not list(violations(ROOT, folder))


@pytest.mark.parametrize("folder, line", [
    ("attention", "import comfy.samplers"), ("attention", "from ..host import seac"), ("attention", "from ..nodes import x"),
    ("host", "from comfy_api.latest import io"), ("host", "from ..nodes import seac_patch"), ("host", "from .. import nodes"),
    ("nodes", "import comfy.samplers"), ("nodes", "from attention import seac"), ("headless", "from ..host import seac"),
    ("nodes", "def f():\n    import folder_paths"), ("", "import torch"),
    ("", "from .nodes import extension"),
])
def test_the_rules_catch(tmp_path, folder, line):
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / ("module.py" if folder else "__init__.py")).write_text(line)
    assert len(list(violations(tmp_path, folder))) == 1


def test_the_command_uses_the_standard_library_only():
    path = ROOT / "atelier.py"
    if path.exists():
        modules = {module for _, module, _ in imports_of(path, ROOT) if module}
        assert modules <= sys.stdlib_module_names | {"headless"}


def test_nothing_prints():
    for folder in ("attention", "guidance", "host", "identity", "nodes", "stylegan", "training", "segmentation"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
            assert not any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls), path


OPTIONAL = {"cv2", "insightface", "onnx", "onnxruntime", "skimage"}


@pytest.mark.parametrize("folder", [folder for folder in RULES if (ROOT / folder).is_dir()])
def test_optional_packages_are_imported_where_they_are_used(folder):
    """The pack loads without them."""
    files = (ROOT / folder).rglob("*.py") if folder else [ROOT / "__init__.py"]
    assert not [path for path in files for _, module, at_top in imports_of(path, ROOT) if at_top and module in OPTIONAL]
