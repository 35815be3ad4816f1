"""Ctrl-C before the command has begun: one line and 130, not the traceback of an import."""
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A module of the standard library that the command imports, in whose place this one stops the import.
SLOW = "import sys\nprint('importing', flush=True)\nsys.stdin.read()\n"


def interrupted(tmp_path, words, module):
    (tmp_path / f"{module}.py").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], env={**os.environ, "PYTHONPATH": str(tmp_path)}, text=True, cwd=tmp_path,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A shell that runs the tests in the background ignores Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    return process.returncode, error


def test_during_the_imports_of_the_command(tmp_path):
    assert interrupted(tmp_path, [ROOT / "atelier.py", "--help"], "argparse") == (130, "atelier.py: interrupted\n")


def test_during_the_imports_of_a_module_of_the_pack(tmp_path):
    """The command that calls it says the line."""
    assert interrupted(tmp_path, [ROOT / "headless" / "pack.py", "demo.making.train"], "torch") == (130, "")
