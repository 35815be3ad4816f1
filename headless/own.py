"""The ComfyUI that a command starts for itself alone, set up as far as it is not."""
import contextlib
import json

from .environment import HOME, environment, run_folder
from .progress import Display
from .server import LocalServer, free_port


def own_server(display: Display, extra: list, output=None, log: str = "comfyui.log"):
    """start(checkpoint_folder), a context with a ComfyUI of this run alone; it saves in `output`, else in a folder of this run.

    extra: more options of ComfyUI; log: the name of the file in .atelier/logs for what it prints.
    """
    @contextlib.contextmanager
    def start(checkpoint_folder):
        env = environment(display)
        port = free_port()
        with run_folder(display) as folder:
            more = ["--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
            for name in ("input", "output", "temp"):
                (folder / name).mkdir()
                more += [f"--{name}-directory", str(output if name == "output" and output else folder / name)]
            if checkpoint_folder:
                paths = folder / "checkpoint.yaml"
                # A few-step LoRA may lie beside it.
                kinds = dict.fromkeys(("checkpoints", "loras"), str(checkpoint_folder))
                paths.write_text(json.dumps({"given": {**kinds, "is_default": True}}))
                more += ["--extra-model-paths-config", str(paths)]
            words = env.comfyui_command(port, more + extra)
            place = HOME / "logs" / log
            with LocalServer(words, f"http://127.0.0.1:{port}", env.comfyui, place, env.variables) as server:
                server.folder = folder  # whoever makes thousands of results removes ComfyUI's own copies
                yield server

    return start
