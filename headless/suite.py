"""The command `test`: the tests' layers, each where it can run, and one line for all of them."""
import contextlib
import os
import shutil
import tempfile
import xml.etree.ElementTree
from pathlib import Path

from .child import Child
from .environment import ROOT, Environment, command
from .errors import AtelierError
from .progress import Display

TESTS = ROOT / "tests"
BROWSER = TESTS / "browser"


def run_suite(env: Environment, arguments: list) -> int:
    """Run pytest with `arguments`, --quick meaning the tests marked so, and return its worst code.

    tests/browser gets a process of its own: its driver leaves an event loop running that other tests trip over. It runs
    beside the others and is told after them: most tests keep one core busy.
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
    with tempfile.TemporaryDirectory() as folder:
        reports = {name: Path(folder) / f"{name}.xml" for name, chosen in layers.items() if chosen}
        calls = {name: ["-m", "pytest", f"--junit-xml={report}", *([f"--ignore={BROWSER}"] if name == "main" else []), *options,
                        *layers[name]] for name, report in reports.items()}
        with beside(env, calls.pop("browser"), Path(folder)) if len(calls) == 2 else contextlib.nullcontext() as other:
            codes = [env.run(*call) for call in calls.values()]
            if other:
                codes.append(other())
        suites = {name: list(xml.etree.ElementTree.parse(report).iter("testsuite")) if report.exists() else []
                  for name, report in reports.items()}
    if "browser" in suites and os.environ.get("CI") and all(s.get("skipped") == s.get("tests") for s in suites["browser"]):
        raise AtelierError("tests/browser skipped all its tests, which CI must not do: the reasons are above")
    print(summary(sum(suites.values(), [])), flush=True)
    # pytest's code 5 says that no test was selected: fine for one of the two.
    return max([code for code in codes if code != 5], default=5)


@contextlib.contextmanager
def beside(env: Environment, call: list, folder: Path):
    """Runs a program while the block runs; what it yields waits for its end, prints what it told and returns its code."""
    with (folder / "output").open("w+b") as told:
        process = Child([env.python, *call], cwd=ROOT, env=env.variables, stdout=told, stderr=told)

        def end() -> int:
            code = process.wait()
            told.seek(0)
            print(told.read().decode("utf-8", "replace"), flush=True)
            return code

        try:
            yield end
        finally:
            process.stop()


def below(path, folder: Path) -> bool:
    """Whether `path` (maybe with pytest's ::test) exists in `folder` or is it."""
    path = Path(str(path).split("::")[0])
    return path.exists() and path.resolve().is_relative_to(folder)


def summary(reports: list) -> str:
    """One line in pytest's form for all its processes together."""
    count = {key: sum(float(suite.get(key, 0)) for suite in reports)
             for key in ("tests", "failures", "errors", "skipped")}
    seconds = max((float(suite.get("time", 0)) for suite in reports), default=0)  # they run at the same time
    passed = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
    words = {"failed": count["failures"], "passed": passed, "skipped": count["skipped"], "errors": count["errors"]}
    told = ", ".join(f"{number:.0f} {word}" for word, number in words.items() if number) or "no tests ran"
    return f"===== all layers together: {told} in {seconds:.2f}s ====="


def have_chromium(display: Display) -> bool:
    """Whether there is a chromium for the browser tests, after installing it where that is missing and allowed."""
    if not shutil.which("chromium") and shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        try:
            for words in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
                command(display, f"chromium: apt-get {words[0]}", ["apt-get", *words], "install chromium yourself")
        except AtelierError as error:
            display.say(f"atelier.py: {error}")
    return bool(shutil.which("chromium"))
