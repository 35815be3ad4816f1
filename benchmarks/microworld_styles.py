"""DiffStyler's claims, measured in the microworld: ``python3 atelier.py bench microworld_styles [--loras FOLDER] [--write FILE]``.

The tables of ``docs/microworld-styles.md``. Every number speaks of the demo's procedural portraits, none of photographs.
"""

import argparse
import json
from pathlib import Path

import comfy.sample
import comfy.samplers
import comfy.sd
import comfy_extras.nodes_model_advanced
import torch
from safetensors.torch import load_file

from ..demo import judges
from ..demo.measure import Studio, held_out_pairs
from ..demo.portraits import sample_identities
from ..demo.styles import NAMES, render
from ..host import cross_injection, trajectory
from ..host.training import train_style
from .microworld import table

STYLES = ("watercolor", "neon", "ink", "popart", "cartoon", "pixel")
STEPS, CFG = 20, 2.0
TRAINING, RATE = 200, 2e-4           # the paper's
COLUMNS = ("style", "as reference", "identity", "structure", "face")
NOTHING, FEATURES, BOTH, ALL = "", "f=4-11", "f=4-11;sa=3-11", "f=4-11;sa=3-11;ca=3-11"

INTRO = f"""# DiffStyler in the microworld

Written by `python3 atelier.py bench microworld_styles --write docs/microworld-styles.md`. **Every number here speaks of the demo's
procedural portraits** (see `demo/README.md`), drawn by a tiny model; none says anything about photographs. Means over held-out
contents, one per style; one LoRA per style, trained on a single picture of another person ({TRAINING} steps at {RATE:g}, the node's
defaults, with flip and crop). Caption and prompt name
the style, "portrait, neon", as the paper's do: the demo model knows the word, so a LoRA adds this picture's own look to it. DDIM, {STEPS} steps, guidance {CFG:g}
(the demo model was trained for little guidance; the paper's 10.5 is for Stable Diffusion), the nodes' defaults unless a row says otherwise.

- **style**: distance of colour moments and Gram matrices to the picture the LoRA was trained on, lower is closer; **other styles**: to the
  pictures of the other styles.
- **as reference**: probability that the style readout gives to that style.
- **identity**: error of the geometry readout against the true parameters of the content; 1 is guessing the mean.
- **structure**: correlation of edge maps with the content's; 1 is the same outlines.
- **face**: share of pictures in which the face readout finds one.
"""


def style_picture(style: str) -> torch.Tensor:
    """The one picture that a style's LoRA learns from: [1, 3, 256, 256], of nobody among the held-out contents."""
    number = STYLES.index(style)
    generator = torch.Generator().manual_seed(700 + number)
    return render(sample_identities(1, generator), torch.tensor([NAMES.index(style)]), torch.tensor([number % 4]), generator)


def caption(style: str) -> str:
    return f"portrait, {style}"


def trained_lora(studio: Studio, style: str, steps: int = TRAINING, rate: float = RATE, augment: str = "flip and crop") -> dict[str, torch.Tensor]:
    """Style LoRA Train on the style's one picture and a caption that names it."""
    return train_style(
        plain_sampling(studio), studio.vae, style_picture(style).movedim(1, -1), studio.prompt(caption(style)), rank=16, steps=steps,
        learning_rate=rate, targets="qkv", resolution=256, seed=0, augment=augment, checkpointing=False, prefix="microworld_styles")[0]


def plain_sampling(studio: Studio):
    """The demo model without LCM, as DDIM needs it."""
    return comfy_extras.nodes_model_advanced.ModelSamplingDiscrete().patch(studio.model, "eps", False)[0]


class Bench:
    """Contents, their trajectories and a LoRA per style, on the demo model with plain epsilon sampling."""

    def __init__(self, studio: Studio, loras: dict[str, dict]):
        self.studio, self.styles, self.loras, self.results = studio, list(loras), loras, {}
        self.model = plain_sampling(studio)
        self.pairs = held_out_pairs(len(self.styles))
        self.latents = self.studio.encode(self.pairs.contents)
        self.references = torch.cat([style_picture(style) for style in self.styles])
        self.sources = [self.record(number) for number in range(len(self.styles))]

    def record(self, number: int, steps: int = STEPS, fixed_point: int = 0):
        return trajectory.record(self.model, {"samples": self.latents[number:number + 1]}, self.studio.prompt(""), mode="ddim", steps=steps,
                                 fixed_point=fixed_point, seed=0, budget=2**28)

    def branch(self, style: str, mask=None, lora: bool = True) -> cross_injection.Branch:
        return cross_injection.Branch(self.studio.prompt(caption(style)), mask, self.loras[style] if lora else None, style, 1.0)

    def sample(self, number: int, branches, layers="auto", feature_until=401, attention_until=501, preset="paper", cfg=CFG) -> torch.Tensor:
        guider, sampler, sigmas, latent, _ = cross_injection.cross_injection(
            self.model, self.sources[number], branches, self.studio.prompt(""), None, preset=preset, cfg=cfg, feature_until=feature_until,
            attention_until=attention_until, background="auto", layers=layers, rows_per_forward=0)
        return guider.sample(torch.zeros_like(latent["samples"]), latent["samples"], sampler, sigmas, disable_pbar=True, seed=0)

    def injected(self, name: str, lora: bool = True, prompt: bool = True, **options) -> list[float]:
        """Every content through LoRA Cross-Injection in its style."""
        branches = [self.branch(style, None, lora) for style in self.styles]
        if not prompt:
            branches = [cross_injection.Branch(self.studio.prompt(""), None, b.lora, b.name, 1.0) for b in branches]
        return self.judge(name, torch.cat([self.sample(number, [branch], **options) for number, branch in enumerate(branches)]))

    def img2img(self, name: str, denoise: float, lora: bool = True) -> list[float]:
        """The stock way: Load LoRA, KSampler (euler, ddim_uniform) from the noised content."""
        found = []
        for number, style in enumerate(self.styles):
            model, latent = self.model, self.latents[number:number + 1]
            if lora:
                model = comfy.sd.load_lora_for_models(model, None, self.loras[style], 1.0, 0)[0]
            found.append(comfy.sample.sample(model, comfy.sample.prepare_noise(latent, 0), STEPS, CFG, "euler", "ddim_uniform", self.studio.prompt(caption(style)),
                                             self.studio.prompt(""), latent, denoise=denoise, seed=0, disable_pbar=True))
        return self.judge(name, torch.cat(found))

    def judge(self, name: str, latents: torch.Tensor) -> list[float]:
        return self.judge_pictures(name, self.studio.decode(latents))

    def judge_pictures(self, name: str, pictures: torch.Tensor) -> list[float]:
        world = self.studio.world
        told = world.judges(pictures)
        own = torch.tensor([NAMES.index(style) for style in self.styles])
        self.results[name] = dict(zip(COLUMNS, (
            float(judges.style_distance(pictures, self.references, world.spread).mean()),
            float(told["style"].softmax(1)[torch.arange(len(own)), own].mean()),
            float(judges.identity_error(world.judges, pictures, self.pairs.who).mean()),
            float(judges.structure(pictures, self.pairs.contents).mean()), float((told["face"] > 0).float().mean()))))
        print(name, {key: round(value, 3) for key, value in self.results[name].items()}, flush=True)
        return list(self.results[name].values())


def inversion_table(bench: Bench) -> str:
    """Error of inversion and plain DDIM back, by steps and refinements."""
    rows = []
    for steps in (5, 10, 20, 50):
        row = [f"{steps}"]
        for refinements in (0, 1):
            errors = []
            for number in range(2):
                source = bench.record(number, steps, refinements)
                guider = comfy.samplers.CFGGuider(bench.model)
                guider.set_conds(source.prompt, source.prompt)
                z0 = bench.model.model.process_latent_in(source.original)
                back = guider.sample((source.at(0, "cpu") - z0) / source.sigmas[0], source.original, comfy.samplers.sampler_object("euler"), source.sigmas,
                                     disable_pbar=True, seed=0)
                errors.append(float((back - source.original).norm() / source.original.norm()))
            row.append(sum(errors) / len(errors))
            bench.results[f"round trip, {steps} steps, fixed_point {refinements}"] = row[-1]
        rows.append(row)
    return table("Inversion and reconstruction: relative error of the latent", ["steps", *(f"fixed_point {k}" for k in (0, 1))], [[row[0], *(f"{v:.4f}" for v in row[1:])] for row in rows])


def lora_table(bench: Bench) -> str:
    """What a LoRA learns from one picture, by steps of training: held-out people through stock Load LoRA and KSampler, four LCM steps."""
    studio, spread, rows = bench.studio, bench.studio.world.spread, []

    def judged(style: str, lora, denoise: float, word: bool) -> torch.Tensor:
        model = comfy.sd.load_lora_for_models(studio.model, None, lora, 1.0, 0)[0] if lora else studio.model
        pictures = studio.decode(studio.sample(model, bench.latents, caption(style) if word else "portrait", denoise=denoise))
        told, place = studio.world.judges(pictures), bench.styles.index(style)
        near = lambda number: float(judges.style_distance(pictures, bench.references[number:number + 1].expand_as(pictures), spread).mean())
        others = [near(number) for number in range(len(bench.styles)) if number != place]
        return torch.tensor([near(place), sum(others) / len(others), float(told["style"].softmax(1)[:, NAMES.index(style)].mean()),
                             float(judges.identity_error(studio.world.judges, pictures, bench.pairs.who).mean()),
                             float(judges.structure(pictures, bench.pairs.contents).mean()), float((told["face"] > 0).float().mean())])

    def row(name: str, loras: dict, denoise: float, word: bool = True) -> None:
        found = torch.stack([judged(style, loras[style], denoise, word) for style in loras]).mean(0)
        bench.results[f"trained: {name}"] = dict(zip(("style", "other", *COLUMNS[1:]), found.tolist()))
        rows.append([name, *found.tolist()])

    nothing, final = "the word alone", f"LoRA of {TRAINING} steps"
    trained = {nothing: dict.fromkeys(bench.styles), final: bench.loras}
    for name, settings in {"LoRA of 100 steps": dict(steps=100), "LoRA of 400 steps": dict(steps=400), f"{final}, augment none": dict(augment="none"),
                           f"{final} at 1e-3": dict(rate=1e-3)}.items():
        trained[name] = {style: trained_lora(studio, style, **settings) for style in bench.styles}
    for denoise in (0.5, 0.75):
        row(f"denoise {denoise}, no style asked for", trained[nothing], denoise, word=False)
        for name, loras in trained.items():
            row(f"denoise {denoise}, {name}", loras, denoise)
        for style in bench.styles:
            for name in (nothing, final):
                row(f"denoise {denoise}, {style}, {name}", {style: trained[name][style]}, denoise)
    return table("What Style LoRA Train learns from one picture", ["", "style", "other styles", *COLUMNS[1:]], rows)


def baseline_table(bench: Bench) -> str:
    """Cross-injection beside plain image to image with the same LoRAs."""
    rows = [["the content itself", *bench.judge_pictures("content", bench.pairs.contents)]]
    for d in (0.3, 0.5, 0.7, 0.8):
        rows += [[f"image to image, denoise {d}, {'LoRA' if lora else 'the word alone'}", *bench.img2img(f"img2img {d}{'' if lora else ' without LoRA'}", d, lora)]
                 for lora in (False, True)]
    rows += [["LoRA Cross-Injection", *bench.injected("default")]]
    rows += [["LoRA Cross-Injection, layers of the published code", *bench.injected("f=4;sa=4-11", layers="f=4;sa=4-11")]]
    return table("Against plain LoRA image to image", ["", *COLUMNS], rows)


def injection_table(bench: Bench) -> str:
    """The paper's figure 6: what is injected, and what makes the style."""
    rows = []
    for label, options in (("SD", dict(lora=False, prompt=False)), ("SD + LoRA", dict(prompt=False)), ("SD + prompt", dict(lora=False)),
                           ("SD + LoRA + prompt", {})):
        for layers, words in ((NOTHING, "nothing"), (FEATURES, "features"), (BOTH, "features, self-attention"), (ALL, "features, self-, cross-attention")):
            name = f"{label}: {words}"
            rows.append([name, *bench.injected(name, layers=layers, **options)])
    return table("What is injected (the paper's figure 6)", ["", *COLUMNS], rows)


def steps_table(bench: Bench) -> str:
    """The paper's figure 7: for how many of 50 steps features and attention are injected, as timesteps."""
    rows = []
    for attention in (0, 25):
        for features in (0, 15, 30, 50):
            until = lambda steps: 1001 - 20 * steps if steps else 1000
            name = f"features {features}, attention {attention} of 50"
            rows.append([name, *bench.injected(name, feature_until=until(features), attention_until=until(attention))])
    return table("For how long (the paper's figure 7)", ["", *COLUMNS], rows)


def presets_table(bench: Bench) -> str:
    """The published code's ways, on the same trajectories; and four steps with shared noise on the model's LCM sampling, (12)."""
    rows = [["preset reference", *bench.injected("reference", preset="reference")]]
    slow = bench.model, bench.sources
    bench.model = bench.studio.model
    bench.sources = [trajectory.record(bench.model, {"samples": bench.latents[number:number + 1]}, bench.studio.prompt(""), mode="shared noise", steps=4,
                                       fixed_point=0, seed=0, budget=2**28) for number in range(len(bench.styles))]
    for cfg in (1.0, CFG):
        rows += [[f"4 steps, shared noise, cfg {cfg:g}, layers {layers or 'none'}", *bench.injected(f"4 steps, cfg {cfg:g}, layers {layers or 'none'}", layers=layers, cfg=cfg)]
                 for layers in ("auto", "f=4;sa=4-11", "")]
    bench.model, bench.sources = slow
    return table("The published code's preset, and four LCM steps with shared noise", ["", *COLUMNS], rows)


def regions_table(bench: Bench) -> str:
    """Two styles in two strips, a third strip between them left alone: every strip judged by itself."""
    left, right = torch.zeros(1, 256, 256), torch.zeros(1, 256, 256)
    left[..., :96], right[..., 160:] = 1, 1
    kept, spread, rows = 1 - left - right, bench.studio.world.spread, []
    for layers in ("auto", "f=4;sa=4-11", ""):
        found = []
        for number, first in enumerate(bench.styles):
            second = bench.styles[(number + 1) % len(bench.styles)]
            out = bench.sample(number, [bench.branch(first, left), bench.branch(second, right)], layers=layers)
            original, picture, content = bench.latents[number:number + 1], bench.studio.decode(out), bench.pairs.contents[number:number + 1]
            own = [bench.references[bench.styles.index(style)][None] for style in (first, second)]
            strips = (picture[..., :96], picture[..., 160:])
            distances = [float(judges.style_distance(strip, reference, spread)) for strip, pair in zip(strips, (own, own[::-1])) for reference in pair]
            pasted = picture * (1 - kept) + content * kept
            changes = [((a - b)[..., cut].abs().max()) for a, b, cut in (
                (out, original, slice(6, 10)), (picture, bench.studio.decode(original), slice(96, 160)), (pasted, content, slice(96, 160)))]
            found.append([*distances, *map(float, changes)])
        numbers = torch.tensor(found)
        bench.results[f"regions, layers {layers or 'none'}"] = [*numbers[:, :4].mean(0).tolist(), *numbers[:, 4:].amax(0).tolist()]
        rows.append([f"layers {layers or 'none'}", *(f"{value:.3f}" for value in numbers[:, :4].mean(0).tolist()), *(f"{value:.3g}" for value in numbers[:, 4:].amax(0).tolist())])
    return table("Two styles in two regions: style distance by strip, and the largest change between them", [
        "", "left: own", "left: the right one's", "right: own", "right: the left one's", "between: latent", "between: decoded", "between: pasted by mask"], rows)


TABLES = (lora_table, baseline_table, injection_table, steps_table, presets_table, regions_table, inversion_table)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="atelier.py bench microworld_styles", description=__doc__.split("\n\n")[0])
    parser.add_argument("--loras", type=Path, help="folder with a LoRA per style, such as neon.safetensors, trained on its `style_picture`; else they are trained first")
    parser.add_argument("--write", type=Path, help="also write the tables, as Markdown, and beside them the means as JSON")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    with torch.inference_mode():
        studio = Studio()
        bench = Bench(studio, {style: load_file(args.loras / f"{style}.safetensors") if args.loras else trained_lora(studio, style) for style in STYLES})
        text = "\n".join(make(bench) for make in TABLES)
    print(text)
    if args.write:
        args.write.write_text(f"{INTRO}\n{text}", encoding="utf-8")
        args.write.with_suffix(".json").write_text(json.dumps(bench.results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
