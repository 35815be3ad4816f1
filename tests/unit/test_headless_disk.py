"""Disks that cannot be written, with the command in a copy of its own and a ComfyUI that it never gets to start."""
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from portrait_atelier.headless.errors import told

ROOT = Path(__file__).resolve().parents[2]
NOT_ALLOWED = 77


@pytest.fixture
def stylize(tmp_path):
    """stylize(mounting) runs `stylize` where the shell command `mounting` is done for it alone; returns its last line."""
    clone = tmp_path / "clone"
    (tmp_path / "ComfyUI" / "models").mkdir(parents=True)
    (tmp_path / "ComfyUI" / "main.py").touch()
    for name in ("headless", "workflows/api", "demo/pictures"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "atelier.py", clone)
    (clone / ".atelier").mkdir()

    def stylize(mounting):
        if not shutil.which("unshare"):
            pytest.skip("no unshare here")
        mine = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
        result = subprocess.run(
            [*mine, "sh", "-c", f'{{ {mounting}; }} || exit {NOT_ALLOWED}; exec "$@"', "sh",
             sys.executable, "clone/atelier.py", "stylize"], capture_output=True, text=True, cwd=tmp_path,
            env={**os.environ, "COMFYUI_PATH": str(tmp_path / "ComfyUI"), "COMFYUI_PYTHON": shutil.which("false")})
        if result.returncode == NOT_ALLOWED or result.stderr.startswith("unshare: "):
            pytest.skip(f"cannot mount here: {result.stderr.strip()}")
        assert result.returncode == 2 and "Traceback" not in result.stderr and result.stdout == ""
        return result.stderr.splitlines()[-1]

    stylize.home = clone / ".atelier"
    return stylize


@pytest.mark.parametrize("mounting", [
    "mount -t tmpfs -o nr_inodes=4 tmpfs clone/.atelier",  # no room for a folder
    "mount -t tmpfs -o size=4k tmpfs clone/.atelier && head -c 4096 /dev/zero > clone/.atelier/fill",  # nor for a line
])
def test_a_full_disk(stylize, mounting):
    line = stylize(mounting)
    assert line.startswith("atelier.py: no space left on the disk of ") and str(stylize.home) in line and "make room" in line


def test_a_clone_that_cannot_be_written(stylize):
    line = stylize("rmdir clone/.atelier && mount --bind clone clone && mount -o remount,ro,bind clone")
    assert f"cannot write {stylize.home}: Read-only" in line and line.endswith("clone the pack to a place where you may write")


def test_other_errors_keep_their_words():
    assert told(FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), ROOT) == "[Errno 2] No such file or directory: 'x'"
    assert told(PermissionError(errno.EACCES, "Permission denied", "/elsewhere/x"), ROOT) == "[Errno 13] Permission denied: '/elsewhere/x'"
