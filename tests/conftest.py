"""Every layer of tests: the pack is imported as `portrait_atelier`, ComfyUI comes from COMFYUI_PATH.

Without COMFYUI_PATH only tests/unit is collected.
"""
import os
import runpy
import sys
import tempfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
COMFY = os.environ.get("COMFYUI_PATH")
collect_ignore = [] if COMFY else ["host", "server", "browser"]

# Tiny models: more threads only wait for each other, and one thread makes runs repeat bit for bit.
torch.set_num_threads(1)

if COMFY:
    sys.path.insert(0, COMFY)
    import comfy.cli_args

    base = tempfile.TemporaryDirectory()
    comfy.cli_args.args.cpu = True  # before comfy.model_management is imported
    comfy.cli_args.args.base_directory = base.name
    import nodes  # noqa: F401  pins ComfyUI's own module; ours is portrait_atelier.nodes

runpy.run_path(str(ROOT / "headless" / "pack.py"))["load_pack"]()


def pytest_collection_modifyitems(items):
    """All of tests/unit is quick; elsewhere tests and files are marked so."""
    for item in items:
        if item.path.is_relative_to(ROOT / "tests" / "unit"):
            item.add_marker(pytest.mark.quick)


def pytest_report_header():
    if COMFY:
        return f"ComfyUI: {COMFY}"
    return "ComfyUI: COMFYUI_PATH is not set, so tests/host, tests/server and tests/browser are left out"
