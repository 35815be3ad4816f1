"""Portrait Atelier: portrait stylization in four sampling steps, as ComfyUI nodes.

Of ComfyUI only the version is asked for here: the package must also import in tests and tools that run without it, and in
a ComfyUI that is too old for the rest.
"""

import re
import sys

OLDEST = "0.24.0"  # as in pyproject.toml and comfyui-oldest.txt


def complaint() -> str:
    """Why the running ComfyUI is too old for this pack; empty if it is not, or if this is no ComfyUI."""
    try:
        from comfyui_version import __version__ as version
    except ImportError:
        if not hasattr(sys.modules.get("nodes"), "load_custom_node"):
            return ""
        version = "one so old that it does not tell its version"
        found = (0, 0, 0)
    else:
        found = numbers(version)
    if found >= numbers(OLDEST):
        return ""
    return (f"Portrait Atelier needs ComfyUI {OLDEST} or newer, but this is {version}: update ComfyUI and its requirements "
            "(ComfyUI Manager: Update ComfyUI), then start it again; until then none of the pack's nodes are there.")


def numbers(version: str) -> tuple:
    """(major, minor, patch); a text without numbers counts as the newest, so that a build of one's own is let through."""
    found = [int(number) for number in re.findall(r"\d+", version)]
    return tuple([*found, 0, 0][:3]) if found else (sys.maxsize,)


TOO_OLD = complaint()
WEB_DIRECTORY = None if TOO_OLD else "./web"

if TOO_OLD and "comfy_api.latest" not in sys.modules:
    raise ImportError(TOO_OLD)  # before 0.3.48 nobody calls comfy_entrypoint


async def comfy_entrypoint():
    if TOO_OLD:
        raise RuntimeError(TOO_OLD)  # ComfyUI logs this as one line and lists IMPORT FAILED; an error above comes with a traceback
    from .nodes import extension

    return extension()
