"""The command `test`: the tests' layers, each where it can run, and one line for all of them."""
import os
import shutil
import tempfile
import xml.etree.ElementTree
from pathlib import Path

from .environment import ROOT, Environment, command
from .errors import AtelierError
from .progress import Display

TESTS = ROOT / "tests"
BROWSER = TESTS / "browser"


def run_suite(env: Environment, arguments: list) -> int:
    """Run pytest with `arguments`, --quick meaning the tests marked so, and return its worst code.

    tests/browser gets a process of its own: its driver leaves an event loop running that other tests trip over.
    """
    if env.run("-c", "import pytest"):
        raise AtelierError(f"{env.python} has no pytest: run {env.python} -m pip install -r {ROOT / 'requirements-test.txt'}")
    arguments = [part for word in arguments for part in (("-m", "quick") if word == "--quick" else (word,))]
    paths, options = [], []
    for word in arguments:
        found = next((path for path in (Path(word).absolute(), ROOT / word) if below(path, TESTS)), None)
        paths, options = (paths + [str(found)], options) if found else (paths, options + [word])
    layers = {
        "main": [path for path in paths or [str(TESTS)] if not below(path, BROWSER)],
        "browser": [path for path in paths if below(path, BROWSER)],
    }
    if BROWSER.is_dir() and str(TESTS) in layers["main"]:
        layers["browser"] = [str(BROWSER)]
    if layers["browser"] and not have_chromium(env.display):
        if os.environ.get("CI"):
            raise AtelierError("chromium is missing, and CI must not skip tests/browser: apt-get install chromium")
        env.display.say("tests/browser will be skipped: chromium is missing, and only root can install it with apt-get")
    codes, reports = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, chosen in layers.items():
            if chosen:
                report = Path(folder) / f"{name}.xml"
                skip = [f"--ignore={BROWSER}"] if name == "main" else []
                codes.append(env.run("-m", "pytest", f"--junit-xml={report}", *skip, *options, *chosen))
                suites = list(xml.etree.ElementTree.parse(report).iter("testsuite")) if report.exists() else []
                if name == "browser" and os.environ.get("CI") and all(s.get("skipped") == s.get("tests") for s in suites):
                    raise AtelierError("tests/browser skipped all its tests, which CI must not do: the reasons are above")
                reports += suites
    print(summary(reports), flush=True)
    # pytest's code 5 says that no test was selected: fine for one of the two.
    return max([code for code in codes if code != 5], default=5)


def below(path, folder: Path) -> bool:
    """Whether `path` (maybe with pytest's ::test) exists in `folder` or is it."""
    path = Path(str(path).split("::")[0])
    return path.exists() and path.resolve().is_relative_to(folder)


def summary(reports: list) -> str:
    """One line in pytest's form for all its processes together."""
    count = {key: sum(float(suite.get(key, 0)) for suite in reports)
             for key in ("tests", "failures", "errors", "skipped", "time")}
    passed = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
    words = {"failed": count["failures"], "passed": passed, "skipped": count["skipped"], "errors": count["errors"]}
    told = ", ".join(f"{number:.0f} {word}" for word, number in words.items() if number) or "no tests ran"
    return f"===== all layers together: {told} in {count['time']:.2f}s ====="


def have_chromium(display: Display) -> bool:
    """Whether there is a chromium for the browser tests, after installing it where that is missing and allowed."""
    if not shutil.which("chromium") and shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        try:
            for words in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
                command(display, f"chromium: apt-get {words[0]}", ["apt-get", *words], "install chromium yourself")
        except AtelierError as error:
            display.say(f"atelier.py: {error}")
    return bool(shutil.which("chromium"))
