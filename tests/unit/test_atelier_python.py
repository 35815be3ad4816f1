"""atelier.py called with a Python that torch does not run on."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).resolve().parents[2] / "atelier.py"


@pytest.mark.parametrize("version", [(3, 9), (3, 14)])
@pytest.mark.parametrize("there", [True, False])
def test_another_python_on_the_path_is_used(tmp_path, version, there):
    """The first Python on the PATH is broken, as a version manager's name for a missing version is."""
    (tmp_path / "python3.13").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "python3.13").chmod(0o755)
    if there:
        # A program, not a link: a link would lose the environment that this Python belongs to.
        (tmp_path / "python3.12").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (tmp_path / "python3.12").chmod(0o755)
    program = f"import runpy, sys; sys.version_info = {version + (0, 'final', 0)}; sys.argv = ['a', '--help']; " \
              f"sys.path.insert(0, {str(COMMAND.parent)!r}); runpy.run_path({str(COMMAND)!r}, run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PATH": str(tmp_path)},
                            capture_output=True, text=True)
    if there:
        assert result.returncode == 0 and "stylize" in result.stdout, result.stderr
    else:
        assert result.returncode == 2 and result.stderr.count("\n") == 1
        assert f"this is Python 3.{version[1]}, and no python3.10 ... python3.13" in result.stderr
