"""The layers of the suite run at the same time."""

import os
import sys
import types

import pytest

from portrait_atelier.headless.suite import beside


@pytest.fixture
def env():
    return types.SimpleNamespace(python=sys.executable, variables=dict(os.environ))


def test_what_runs_beside_is_told_afterwards_with_its_code(env, tmp_path, capsys):
    with beside(env, ["-c", "import sys; print('there'); print('error', file=sys.stderr); sys.exit(3)"], tmp_path) as end:
        print("here")
        assert end() == 3
    first, *others = capsys.readouterr().out.split()
    assert first == "here" and sorted(others) == ["error", "there"]


def test_it_ends_with_the_other(env, tmp_path):
    """Without an end of its own: a call that goes on would never come back."""
    with pytest.raises(KeyboardInterrupt), beside(env, ["-c", "import threading; threading.Event().wait()"], tmp_path):
        raise KeyboardInterrupt
