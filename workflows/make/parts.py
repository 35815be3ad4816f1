"""What several families' subgraphs are made of."""

from .editor_json import Level


def prompts(s: Level, x: int, y: int, size: list, text: str) -> tuple:
    """(prompt, negative prompt), one above the other."""
    prompt = s.node("CLIPTextEncode", [x, y], size, "Prompt", text=text)
    return prompt, s.node("CLIPTextEncode", [x, y + size[1] + 50], size, "Negative prompt", text="")


def cut_to_size(s: Level, pos: list, title: str, width: int = 270, **links) -> int:
    sides = {"width": 512, "height": 512}
    return s.node("ImageScale", pos, [width, 130], title, upscale_method="lanczos", **sides, crop="center", **links)


def lcm_sampler(s: Level, pos: list, model: int, prompts: tuple, latent: int, cfg: float, denoise: float) -> int:
    """KSampler with four steps of LCM."""
    links = {"positive": (prompts[0], 0), "negative": (prompts[1], 0), "latent_image": (latent, 0)}
    settings = {"seed": 0, "steps": 4, "cfg": cfg, "sampler_name": "lcm", "scheduler": "simple", "denoise": denoise}
    return s.node("KSampler", pos, [260, 270], "KSampler", model=(model, 0), **links, **settings)


def by_name(models: Level, node: int) -> dict:
    """The outputs of `node`, an instance of the subgraph `models`, as links to inputs of the same names."""
    return {slot["name"]: (node, at) for at, slot in enumerate(models.outputs)}
