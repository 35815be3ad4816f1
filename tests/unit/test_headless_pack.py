"""headless/pack.py: the pack runs from a folder of any name, and that folder stays off sys.path."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LOADER = Path(__file__).resolve().parents[2] / "headless" / "pack.py"
PROGRAM = """
import importlib.util, json, sys
from ..attention import word
print(json.dumps({"name": __name__, "package": __package__, "word": word, "arguments": sys.argv[1:],
                  "path": sys.path[0], "cpu": "comfy.cli_args" in sys.modules and sys.modules["comfy.cli_args"].args.cpu,
                  "nodes": importlib.util.find_spec("nodes") is not None}))
raise SystemExit(7)
"""


@pytest.mark.parametrize("cpu", [True, False])
@pytest.mark.parametrize("with_comfyui", [True, False])
def test_a_module_runs_as_a_program_of_the_package(tmp_path, with_comfyui, cpu):
    comfyui = str(tmp_path / "ComfyUI") if with_comfyui else ""
    (tmp_path / "ComfyUI" / "comfy").mkdir(parents=True)
    (tmp_path / "ComfyUI" / "comfy" / "cli_args.py").write_text("class args: cpu = False")
    root = tmp_path / "a clone-of.it"
    for folder, text in (("", ""), ("attention", "word = 'found'"), ("nodes", ""), ("demo", "")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "__init__.py").write_text(text)
    (root / "demo" / "train.py").write_text(PROGRAM)
    (root / "headless").mkdir()
    shutil.copy(LOADER, root / "headless")
    result = subprocess.run([sys.executable, root / "headless" / "pack.py", *["--cpu"] * cpu, "demo.train", "--minutes", "1"], cwd=tmp_path,
                            env={**os.environ, "COMFYUI_PATH": comfyui}, capture_output=True, text=True)
    assert result.returncode == 7, result.stderr
    seen = json.loads(result.stdout)
    assert seen["name"] == "__main__" and seen["package"] == "portrait_atelier.demo" and seen["word"] == "found"
    assert seen["arguments"] == ["--minutes", "1"]
    assert seen["cpu"] == (cpu and with_comfyui)
    assert not seen["nodes"] and (seen["path"] == comfyui if comfyui else str(root) not in seen["path"])
