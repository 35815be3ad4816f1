"""The command `serve`: ComfyUI with this pack in the foreground, for the browser."""
import contextlib
import json
import subprocess
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, urlencode

from .child import Child
from .client import Client
from .environment import PACK, Environment, given
from .errors import AtelierError, ServerError

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
FIRST = "zepo_demo"  # the demo that opens first, by its name in workflows/api
# ComfyUI's own cache forgets what a run did not use, so going back to a style would read its features again. A style
# makes about 9 results, from its picture to the result's; the features among them take some 20 MB for SD1.5 at 512
# pixels and up to 200 MB for SDXL at 1024. 100 results are the last ten styles, in at most about 2 GB of memory.
RESULTS = 100
CACHES = ("--cache-ram", "--cache-classic", "--cache-lru", "--cache-none", "--high-ram")


def options(extra: list) -> list:
    """ComfyUI's options for the browser; those of the user, `extra`, stand last and win.

    Previews while it samples; and its database in memory: the file would lie in a folder that ComfyUI's source lacks,
    and only one server could have it.
    """
    cache = [] if given(extra, CACHES) else ["--cache-lru", str(RESULTS)]
    return ["--preview-method", "auto", "--database-url", "sqlite:///:memory:", *cache, *extra]


def serve(env: Environment, port: int, extra: list) -> NoReturn:
    """Run ComfyUI at `port` until Ctrl-C; AtelierError when it ends by itself."""
    words = env.comfyui_command(port, options(extra))
    env.display.clear()
    process = Child(words, cwd=env.comfyui, env=env.variables)
    client, ready = Client(f"http://127.0.0.1:{port}"), False
    try:
        while process.poll() is None:
            if not ready:
                with contextlib.suppress(ServerError):
                    client.version()
                    ready = True
                    print(welcome(client.url, extra), flush=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1 if ready else 0.3)
    finally:
        process.stop()
    raise AtelierError(f"ComfyUI ended with code {process.returncode}; its last lines are above")


def welcome(url: str, extra: list) -> str:
    kept = "" if given(extra, CACHES) else (f"The last {RESULTS} results of nodes are kept: the features of some ten styles "
                                            "need not be read again.\n")
    return (f"\nPortrait Atelier is ready: {url} (Ctrl-C stops it)\n"
            f"The first demo: {url}{first_demo()}\n{kept}")


def first_demo() -> str:
    """The path at which the editor opens the first demo: it takes a pack's template from the address."""
    files = {}
    for path in sorted(WORKFLOWS.glob("*.json")):
        extra = json.loads(path.read_text(encoding="utf-8")).get("extra") or {}
        files[(extra.get("portrait_atelier") or {}).get("api", path.stem)] = path.stem
    return "/?" + urlencode({"template": files[FIRST], "source": PACK}, quote_via=quote)
