"""The rules of pyproject.toml hold: `ruff check` finds nothing."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_ruff_finds_nothing():
    ruff = [sys.executable, "-m", "ruff"] if importlib.util.find_spec("ruff") else [shutil.which("ruff")]
    if not ruff[0] and not os.environ.get("CI"):
        pytest.skip("ruff is absent: pip install -r requirements-test.txt")
    result = subprocess.run([*ruff, "check", "--no-cache", "--output-format", "concise", ROOT], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
