"""Load the pack outside ComfyUI under the name `portrait_atelier`, and run one of its modules.

The folder of a clone may have any name, also one that is no Python name, and it must never be on `sys.path`:
its `nodes/` would hide ComfyUI's own module `nodes`. So the package is built from its path.
"""
import importlib.util
import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def load_pack(name: str = "portrait_atelier"):
    """Import the pack's root package as `name` (once) and return it; its submodules import as `name.x`."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def main() -> None:
    """`python headless/pack.py demo.train ARGUMENTS` runs the pack's module demo/train.py as a program."""
    module = sys.argv[1]
    sys.path[0:1] = [os.environ["COMFYUI_PATH"]] if os.environ.get("COMFYUI_PATH") else []
    sys.argv = sys.argv[1:]
    load_pack()
    runpy.run_module(f"portrait_atelier.{module}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
