#!/usr/bin/env python3
"""Portrait Atelier's one command. It needs Python 3.10 to 3.13 and nothing else.

    python3 atelier.py stylize [CONTENT [STYLE]] [--checkpoint F] ...      stylize a portrait (--help lists all)
    python3 atelier.py batch --content FOLDER --style FOLDER --output FOLDER   many portraits in many styles (--help lists all)
    python3 atelier.py models                                              files of weights: needed, there, and where to get them
    python3 atelier.py serve [--port N] [-- COMFYUI OPTIONS]               ComfyUI with this pack, for the browser
    python3 atelier.py test [--quick] [PYTEST ARGUMENTS]                   all tests; the main ones in minutes
    python3 atelier.py bench [NAME] [ARGUMENTS]                            the benchmarks
    python3 atelier.py train-style --picture F [--output F] ...           a style LoRA from one picture (--help lists all)
    python3 atelier.py train-demo [ARGUMENTS]                              train the demo model anew
    python3 atelier.py train-mmfs --phase P --out DIR [ARGUMENTS]          train a face stylizer (MMFS)
    python3 atelier.py evaluate FOLDER|MANIFEST ... [ARGUMENTS]            how good results are: the papers' metrics, a page to sort

The first call sets everything up in .atelier/ beside this file: a virtual environment with torch, and ComfyUI.
COMFYUI_PATH=FOLDER uses your own ComfyUI instead (with the Python in COMFYUI_PYTHON; without that, the one in the
folder's venv or .venv, else this one). With --server, stylize uses a running ComfyUI and sets nothing up.
"""
# The set-up and the dispatch are here; headless/ holds what talks to ComfyUI. Both use the standard library only and
# run in the Python that was called: what needs torch runs in a child process with the environment's Python. So
# `stylize --server` works without the environment, and this file works before there is one.
import os
import signal
import sys


def interrupt(*_):
    raise KeyboardInterrupt


def leave(*_):
    print("atelier.py: interrupted", file=sys.stderr, flush=True)
    os._exit(130)


def on_ctrl_c(action) -> None:
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # a shell lets its background programs ignore it
        signal.signal(signal.SIGINT, action)


if __name__ == "__main__":
    on_ctrl_c(leave)  # while the imports below run; then main takes over

import argparse  # noqa: E402
import importlib.util  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import NoReturn  # noqa: E402

ROOT = Path(__file__).resolve().parent

if not (3, 10) <= sys.version_info[:2] <= (3, 13):  # torch 2.11 is made for these: go on in one of them
    for minor in (13, 12, 11, 10):
        found = shutil.which("python3.%d" % minor)
        # A name on the PATH may be a version manager's, for a version that is not there.
        if found and not subprocess.call([found, "-c", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            os.execv(found, [found, os.path.abspath(__file__)] + sys.argv[1:])
    print("atelier.py: this is Python %d.%d, and no python3.10 ... python3.13 is on the PATH: install one of these"
          % sys.version_info[:2], file=sys.stderr)
    sys.exit(2)

from headless.batch.command import add_arguments as add_batch_arguments, batch  # noqa: E402
from headless.environment import HOME, environment, install  # noqa: E402
from headless.errors import AtelierError, told  # noqa: E402
from headless.models import report  # noqa: E402
from headless.own import own_server  # noqa: E402
from headless.progress import Display  # noqa: E402
from headless.serve import serve  # noqa: E402
from headless.server import require_free  # noqa: E402
from headless.stylize import add_arguments, stylize  # noqa: E402
from headless.suite import run_suite  # noqa: E402
from headless.train_style import add_train_arguments, train_style  # noqa: E402


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise AtelierError(f"{message} (see {self.prog} --help)")


def run_stylize(arguments: list, display: Display) -> int:
    arguments, extra = split(arguments)
    parser = Parser("atelier.py stylize", description="Stylize a portrait. What follows -- goes to ComfyUI.",
                    allow_abbrev=False)
    add_arguments(parser)
    options = parser.parse_intermixed_args(arguments)
    paths = stylize(options, own_server(display, extra), display)
    display.clear()
    print("\n".join(map(str, paths)))
    return 0


def run_batch(arguments: list, display: Display) -> int:
    given, extra = split(arguments)
    parser = Parser("atelier.py batch", description="Many portraits in many styles. What follows -- goes to ComfyUI. It ends with code 0 when "
                    "all results are there, 1 when pictures failed (report.jsonl tells which), 2 when it could not start or go on.",
                    allow_abbrev=False)
    add_batch_arguments(parser)
    options = parser.parse_args(given)
    if options.ray is not None and not importlib.util.find_spec("ray"):  # go on in a Python that has it
        env = environment(display)
        install(env, display, "ray", "--ray")
        return env.run(ROOT / "atelier.py", "batch", *arguments)
    code = batch(options, own_server(display, extra), display, extra)
    if options.evaluate:
        output = Path(options.output).expanduser().absolute()
        code = environment(display).run_module("evaluation.run", output, "--output", output / "evaluation.json") or code
    return code


def run_models(arguments: list, display: Display) -> int:
    parser = Parser("atelier.py models", description="Which files of weights the workflows need, which are there, and where to get "
                    "the others.", allow_abbrev=False)
    parser.add_argument("--server", metavar="URL", help="ask the ComfyUI that runs there instead of looking into folders")
    text = report(parser.parse_args(arguments).server, display)
    display.clear()
    print(text)
    return 0


def run_train_style(arguments: list, display: Display) -> int:
    arguments, extra = split(arguments)
    parser = Parser("atelier.py train-style", description="Train a style LoRA on one picture. What follows -- goes to ComfyUI.",
                    allow_abbrev=False)
    add_train_arguments(parser)
    # Not a folder of this run: what cannot be put in its place, as on a full disk, is not lost, and `serve` lists it.
    output = HOME / "base" / "output"
    path = train_style(parser.parse_args(arguments), own_server(display, extra, output), display, output)
    display.clear()
    print(path)
    return 0


def run_serve(arguments: list, display: Display) -> NoReturn:
    arguments, extra = split(arguments)
    parser = Parser("atelier.py serve", description="ComfyUI with this pack. What follows -- goes to ComfyUI.",
                    allow_abbrev=False)
    parser.add_argument("--port", type=int, default=8188, help="port at 127.0.0.1 (default: %(default)s)")
    port = parser.parse_args(arguments).port
    require_free(port)
    env = environment(display)
    serve(env, port, extra)


def run_test(arguments: list, display: Display) -> int:
    return run_suite(environment(display, tests=True), arguments)


def run_bench(arguments: list, display: Display) -> int:
    known = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))
    named = bool(arguments) and not arguments[0].startswith("-")
    if named and arguments[0] not in known:
        raise AtelierError(f"no benchmark {arguments[0]!r}: there are {', '.join(known) or 'none'} in {ROOT / 'benchmarks'}")
    env = environment(display)
    names, arguments = (arguments[:1], arguments[1:]) if named else (known, arguments)
    return max([env.run_module(f"benchmarks.{name}", *arguments) for name in names], default=0)


def run_train_demo(arguments: list, display: Display) -> int:
    return environment(display).run_module("demo.making.train", *arguments)


def run_train_mmfs(arguments: list, display: Display) -> int:
    return environment(display).run_module("training.mmfs.train", "--folder", os.getcwd(), *arguments)


def run_evaluate(arguments: list, display: Display) -> int:
    env = environment(display)
    if arguments[:1] == ["--install"]:
        install(env, display, "evaluate", "evaluate --install")
        arguments = arguments[1:]
        if not arguments:
            return 0
    return env.run_module("evaluation.run", "--folder", os.getcwd(), *arguments)


def run_pictures(arguments: list, display: Display) -> int:
    """The pictures of the README and of the help pages, drawn anew: for whoever changes the demo model or a workflow."""
    with own_server(display, [])(None) as server:
        server.wait(lambda seconds: display.show(f"Starting ComfyUI ... {seconds:.0f} s", key="start"))
        return environment(display).run_module("headless.help_pictures", "--server", server.client.url, *arguments)


def split(arguments: list) -> tuple:
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1:]


COMMANDS = {"stylize": run_stylize, "batch": run_batch, "models": run_models, "serve": run_serve, "test": run_test, "bench": run_bench,
            "train-style": run_train_style, "train-demo": run_train_demo, "train-mmfs": run_train_mmfs,
            "evaluate": run_evaluate,
            "pictures": run_pictures}


def main(arguments: list) -> int:
    """Run one command. Exit codes: 0 done, 2 a bad call or a failed step (one line on stderr), 130 interrupted."""
    display = Display()
    try:
        on_ctrl_c(interrupt)
        for name in ("SIGTERM", "SIGHUP"):  # ending by these cleans up as Ctrl-C does
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), interrupt)
        if not arguments or arguments[0] in ("-h", "--help"):
            print(__doc__)
            return 0 if arguments else 2
        if arguments[0] not in COMMANDS:
            meant = f"; for a picture: stylize {' '.join(arguments)}" if Path(arguments[0]).is_file() else ""
            raise AtelierError(f"no command {arguments[0]!r}: there are {', '.join(COMMANDS)}{meant}")
        return COMMANDS[arguments[0]](arguments[1:], display)
    except AtelierError as error:
        display.say(f"atelier.py: {error}")
        return 2
    except OSError as error:
        display.say(f"atelier.py: {told(error, HOME)}")
        return 2
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is stopped: nothing may come between this line and the code
        display.say("atelier.py: interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
