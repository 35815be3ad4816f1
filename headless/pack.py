"""Load the pack outside ComfyUI under the name `portrait_atelier`, and run one of its modules.

The folder of a clone may have any name, also one that is no Python name, and it must never be on `sys.path`:
its `nodes/` would hide ComfyUI's own module `nodes`. So the package is built from its path.
"""
import importlib
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
    """`python headless/pack.py [--cpu] demo.making.train ARGUMENTS` runs the pack's module demo/making/train.py as a program.

    With COMFYUI_PATH its modules can be imported; --cpu tells ComfyUI that there is no GPU, which it would die of.
    """
    comfyui = os.environ.get("COMFYUI_PATH")
    sys.path[0:1] = [comfyui] if comfyui else []
    cpu = sys.argv[1] == "--cpu"
    del sys.argv[:2 if cpu else 1]
    if cpu and comfyui:  # before anything imports comfy.model_management, which looks for a device
        importlib.import_module("comfy.cli_args").args.cpu = True
    load_pack()
    runpy.run_module(f"portrait_atelier.{sys.argv[0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # the command that called us says so
        sys.exit(130)
