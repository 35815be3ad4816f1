"""Portrait Atelier: portrait stylization in four sampling steps, as ComfyUI nodes.

Nothing of ComfyUI is imported here: the package must also import in tests and tools that run without it.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import extension

    return extension()
