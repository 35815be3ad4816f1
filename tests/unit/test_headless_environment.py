"""The set-up's parts: stages, the lock, unpacking, the link, failing steps. The whole set-up is run by every CI job."""
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from portrait_atelier.headless import AtelierError, environment
from portrait_atelier.headless.progress import Display


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "HOME", tmp_path / ".atelier")
    (tmp_path / ".atelier").mkdir()
    return tmp_path / ".atelier"


def display():
    return Display(io.StringIO())


def test_a_stage_runs_once_per_pins(home):
    done = []
    for pins in ("a", "a", "b", "b", "a"):
        environment.stage("s", pins, lambda: done.append(pins))
    assert done == ["a", "b", "a"]


def test_a_failed_or_interrupted_stage_runs_again(home):
    environment.stage("s", "old", lambda: None)
    for error in (AtelierError, KeyboardInterrupt):
        with pytest.raises(error):
            environment.stage("s", "new", lambda: (_ for _ in ()).throw(error()))
    done = []
    # Also with the pins that once succeeded: what the failed work left is not what they describe.
    environment.stage("s", "old", lambda: done.append("again"))
    assert done == ["again"]


def test_a_failing_step_names_command_reason_log_and_cure(home):
    words = [sys.executable, "-c", "print('first'); print('ERROR: no such wheel'); print('last'); raise SystemExit(3)"]
    with pytest.raises(AtelierError) as error:
        environment.command(display(), "Install things", words, "plug it in")
    text = str(error.value)
    log = home / "logs" / "install-things.log"
    assert " ".join(words) in text and "code 3" in text and "ERROR: no such wheel" in text and str(log) in text
    assert text.endswith("what to do: plug it in")
    assert log.read_text().splitlines() == ["first", "ERROR: no such wheel", "last"]


def test_a_step_that_cannot_start_is_one_line(home):
    with pytest.raises(OSError, match="no-such-program"):
        environment.command(display(), "Step", [str(home / "no-such-program")], "")


def test_output_of_a_step_is_shown(home):
    shown = display()
    environment.command(shown, "Step", [sys.executable, "-c", "print('Collecting torch')"], "")
    assert re.search(r"Step \(\d+:\d\d\) Collecting torch", shown.stream.getvalue())


def test_no_disk_space_is_told_before_the_download(home, monkeypatch):
    monkeypatch.setattr(environment, "SPACE", 1e18)  # no disk has so much
    with pytest.raises(AtelierError, match=f"not enough disk space: {home} needs 1000000000.0 GB more, and .* GB are free"):
        environment.require_space()


def test_what_is_there_counts_for_the_space(home, monkeypatch):
    """An interrupted set-up has taken part of the space already."""
    monkeypatch.setattr(environment, "SPACE", shutil.disk_usage(home).free + 0.5e12)
    with pytest.raises(AtelierError):
        environment.require_space()
    with open(home / "sparse", "wb") as file:
        file.truncate(10**12)
    environment.require_space()


def archive(path: Path, members) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, bytes):
                info.size = len(content)
            else:
                info.type, info.linkname = content
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def test_only_plain_files_of_the_inner_folder_are_unpacked(tmp_path):
    path = archive(tmp_path / "a.tar.gz", [
        ("top/setup.py", b"no"), ("top/vendor/ComfyUI/main.py", b"main"), ("top/vendor/ComfyUI/models", None),
        ("top/vendor/ComfyUI/comfy/a.py", b"a"), ("top/vendor/ComfyUI/../evil", b"x"), ("/top/vendor/ComfyUI/abs", b"x"),
        ("top/vendor/ComfyUI/link", (tarfile.SYMTYPE, "/etc/passwd")), ("top/vendor/ComfyUI/hard", (tarfile.LNKTYPE, "top/setup.py")),
        ("top/vendor/ComfyUIx/other", b"x"),
    ])
    environment.unpack(path, "vendor/ComfyUI", tmp_path / "out" / "ComfyUI")
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file() or p.is_symlink()}
    assert found == {"a.tar.gz", "out/ComfyUI/main.py", "out/ComfyUI/comfy/a.py"}
    assert (tmp_path / "out/ComfyUI/models").is_dir()


def test_an_archive_without_the_folder_is_an_error(tmp_path):
    with pytest.raises(AtelierError, match="no folder vendor/ComfyUI"):
        environment.unpack(archive(tmp_path / "a.tar.gz", [("top/x", b"x")]), "vendor/ComfyUI", tmp_path / "out")


def test_the_pack_is_linked_and_a_moved_clone_is_linked_anew(home, tmp_path, monkeypatch):
    link = home / "base" / "custom_nodes" / environment.PACK
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(environment, "ROOT", tmp_path / name)
        for _ in range(2):
            environment.link_pack()
            assert link.is_symlink() and link.resolve() == tmp_path / name


def test_without_links_the_pack_is_copied_and_kept_up_to_date(home, tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise OSError("links need a privilege here")

    root = tmp_path / "clone"
    (root / ".atelier").mkdir(parents=True)
    monkeypatch.setattr(environment, "ROOT", root)
    monkeypatch.setattr(Path, "symlink_to", forbidden)
    for text in ("1", "2"):
        (root / "__init__.py").write_text(text)
        environment.link_pack()
        copy = home / "base" / "custom_nodes" / environment.PACK
        assert (copy / "__init__.py").read_text() == text and not (copy / ".atelier").exists()


def test_a_second_process_waits_for_the_lock(home):
    """The child says that it waits while we hold the lock, and gets it when we let go."""
    program = (
        "import runpy, sys, pathlib; runpy.run_path(sys.argv[1])['load_pack']()\n"
        "from portrait_atelier.headless import environment\n"
        "from portrait_atelier.headless.progress import Display\n"
        "environment.HOME = pathlib.Path(sys.argv[2])\n"
        "with environment.locked(Display(sys.stdout)): print('mine')"
    )
    loader = Path(environment.__file__).with_name("pack.py")
    with environment.locked(display()):
        child = subprocess.Popen([sys.executable, "-c", program, loader, home], stdout=subprocess.PIPE, text=True)
        assert "waiting for it" in child.stdout.readline()
    assert child.stdout.read() == "mine\n"
    assert child.wait() == 0


def test_a_step_holds_the_lock_until_it_has_ended(home):
    """Its caller is killed, and it ends only when told."""
    program = (
        "import runpy, sys, pathlib; runpy.run_path(sys.argv[1])['load_pack']()\n"
        "from portrait_atelier.headless import child, environment\n"
        "from portrait_atelier.headless.progress import Display\n"
        "environment.HOME, child.PATIENCE = pathlib.Path(sys.argv[2]), 600\n"
        "stubborn = 'import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(\"runs\", flush=True); open(sys.argv[1]).read()'\n"
        "with environment.locked(Display()): environment.command(Display(sys.stdout), 'Step', [sys.executable, '-c', stubborn, sys.argv[3]], '')"
    )
    os.mkfifo(home / "fifo")
    caller = subprocess.Popen([sys.executable, "-c", program, Path(environment.__file__).with_name("pack.py"), home, home / "fifo"],
                              stdout=subprocess.PIPE, text=True)
    while "runs" not in caller.stdout.readline():
        assert caller.poll() is None
    caller.kill()
    caller.wait()
    with open(home / "lock") as file:
        assert not environment.take(file)
        open(home / "fifo", "w").close()  # the step's end
        while not environment.take(file):
            pass


def test_folders_of_dead_runs_go_and_those_of_live_ones_stay(home):
    """A dead run's process id may be a live program's, as is ours here; a live run's folder stays for its process."""
    dead, older = home / f"run-{os.getpid()}-dead", home / "run-1-older"
    (dead / "input").mkdir(parents=True)
    (dead / "input" / "me.png").touch()
    (dead / "lock").touch()
    older.mkdir()  # of a version without locks
    with environment.run_folder(display()) as first:
        assert not dead.exists() and not older.exists() and first.parent == home
        with environment.run_folder(display()) as second:
            assert first.is_dir() and second.is_dir() and first != second
        assert first.is_dir() and not second.exists()
    assert not first.exists()


@pytest.mark.parametrize("extra, forced", [
    ([], True), (["--lowvram"], False), (["--directml", "1"], False), (["--directml=1"], False), (["--gpu-only"], False),
    (["--cuda-device", "0"], False), (["--cpu"], False), (["--cpu-vae"], True), (["--output-directory", "--cpuless"], True),
])
def test_cpu_is_for_those_without_a_gpu_who_name_no_other_device(home, monkeypatch, extra, forced):
    monkeypatch.setattr(environment.Environment, "has_accelerator", lambda self: False)
    words = environment.Environment("python", home, display(), own=True).comfyui_command(8188, extra)
    assert words[-len(extra):] == extra or not extra
    assert words[:len(words) - len(extra)].count("--cpu") == forced


def test_the_users_models_are_lent_without_those_that_turn_in_circles(home, tmp_path):
    models = tmp_path / "ComfyUI" / "models"
    for name in ("checkpoints/sd15", "loras", "vae", "unet"):
        (models / name).mkdir(parents=True)
    (models / "checkpoints" / "loop").symlink_to(models)
    (models / "self").symlink_to(models)
    (models / "vae" / "home").symlink_to(tmp_path)
    (models / "unet" / "again").symlink_to(models / "checkpoints" / "sd15")  # shared, no circle
    (models / "clip").symlink_to(models / "loras")
    (models / "knot").symlink_to(models / "knot")
    (models / "readme.txt").touch()
    shown = display()
    lent = environment.Environment("python", tmp_path / "ComfyUI", shown, own=False).lent()
    assert [path.name for path in lent] == ["clip", "loras", "unet"]
    lines = shown.stream.getvalue().splitlines()
    assert len(lines) == 3 and f"{models / 'checkpoints' / 'loop'} is a link to {models}" in lines[0] and "remove the link" in lines[0]


@pytest.mark.parametrize("made, told", [(False, "no main.py"), (True, "COMFYUI_PYTHON=nowhere is no program")])
def test_a_wrong_comfyui_of_the_user_is_told(home, tmp_path, monkeypatch, made, told):
    if made:
        (tmp_path / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.setenv("COMFYUI_PYTHON", "nowhere")
    with pytest.raises(AtelierError, match=told):
        environment.environment(display())


def test_packages_are_installed_once_when_asked_for_and_never_into_a_users_python(home, monkeypatch):
    calls = []
    monkeypatch.setattr(environment, "pip", lambda display, python, what, *words: calls.append((python, *words)))
    packages = str(environment.ROOT / "requirements-evaluate.txt")
    for _ in range(2):
        environment.install(environment.Environment("python-x", home, display(), own=True), display(), "evaluate", "evaluate --install")
    assert calls == [(Path("python-x"), "install", "-r", packages)]
    with pytest.raises(AtelierError, match="^evaluate --install needs packages.*python-y -m pip install -r") as error:
        environment.install(environment.Environment("python-y", home, display(), own=False), display(), "evaluate", "evaluate --install")
    assert packages in str(error.value) and len(calls) == 1
