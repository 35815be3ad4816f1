"""What SEAC Report shows of a recorded run: sentences, a plot of the layers, and the shares over the picture."""

import textwrap

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from ..attention.blocks import LayerId, layer_name
from ..attention.features import COND, UNCOND
from .seac import NODE, PICTURE, SOURCE, WORDS, Reference, name_of
from .seac_trace import Record

NO_RUN = (
    "Nothing was sampled with the model of this SEAC Trace. Connect its 'model' to the sampler whose pictures these are. "
    "If it is connected, they come from ComfyUI's cache: change the seed and run again."
)
NO_PATCH = "SEAC did nothing: the model that sampled has no SEAC Patch. Put one before or behind SEAC Trace."
# The references' colours, told apart by everybody (Okabe and Ito), over and over; then those of the rest.
COLOURS = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0)]
OTHERS = {SOURCE: (150, 150, 158), PICTURE: (105, 105, 112), WORDS: (66, 66, 72)}
OPAQUE = 0.8  # how much of the colour a pixel with the greatest share gets
WIDTH, BARS, MARGIN, LINE, LETTERS = 640, 180, 14, 19, 92


def references(record: Record | None) -> list[Reference]:
    return list(getattr(getattr(record, "seac", None), "references", ()))


def text(record: Record | None) -> str:
    """What happened, in sentences; None for a trace without a run."""
    if record is None:
        return NO_RUN
    if record.seac is None:
        return NO_PATCH
    if isinstance(record.seac, str):
        return f"SEAC did nothing: {record.seac}. That of the first SEAC Patch switches all of them off."
    told = {reference.number: about(record, reference) for reference in references(record)}
    told |= {number: f"Reference {number} could do nothing: {why}." for number, why in record.seac.idle}
    lines = [headline(record), *(told[number] for number in sorted(told)), *rest(record), *sorted(unreached(record))]
    return "\n".join([*lines, *sorted(line for line in record.warnings if line.startswith(NODE))])


def chosen(record: Record) -> list[LayerId]:
    wanted = {layer for reference in references(record) for layer in reference.layers}
    return [layer for layer in record.layers if layer in wanted]


def measured(record: Record) -> list[LayerId]:
    return [layer for layer in record.layers if any(layer in shares for shares in record.shares.values())]


def headline(record: Record) -> str:
    layers, steps = measured(record), set().union(*record.acted.values())
    if not layers:
        return "SEAC did nothing."
    return f"SEAC acted in {len(layers)} of {len(chosen(record))} layers and {len(steps)} of {record.steps} steps."


def per_layer(record: Record, name: str, prompt: int = COND) -> dict[LayerId, float]:
    """The share of attention that a group got in each layer where SEAC acted, the mean of its steps."""
    shares = record.shares.get(prompt, {})
    return {layer: sum(part.get(name, 0.0) for part in shares[layer]) / len(shares[layer])
            for layer in record.layers if layer in shares}


def mean(record: Record, name: str, prompt: int = COND) -> float:
    found = per_layer(record, name, prompt)
    return sum(found.values()) / len(found) if found else 0.0


def shown_prompt(record: Record) -> int:
    return COND if COND in record.shares else UNCOND


def about(record: Record, reference: Reference) -> str:
    """What a reference got, or why it got nothing."""
    name, prompt = name_of(reference), shown_prompt(record)
    mask, why = reference.region.mask, ""
    found = per_layer(record, name, prompt)
    if mask is not None and not mask.any():
        why = "its mask is empty"
    elif reference.share == 0:
        why = "its style_share is 0"
    elif not record.acted[reference.number]:
        window = f"start {reference.start:g} to end {reference.end:g}"
        ran = f"went from {min(record.sampled):.2f} to {max(record.sampled):.2f} of the schedule" if record.sampled else "had no step"
        why = f"no step lies in its window, {window}: sampling {ran}"
    elif not found:
        why = "none of its layers was reached"
    if why:
        return f"Reference {reference.number} could do nothing: {why}."
    low, high = min(found, key=found.get), max(found, key=found.get)
    line = f"Reference {reference.number} got {percent(mean(record, name, prompt))} of the picture's attention"
    line += f", from {percent(found[low])} in {layer_name(low, record.layers)} to {percent(found[high])} in " \
            f"{layer_name(high, record.layers)}"
    if prompt == COND and UNCOND in record.shares:
        line += f"; with the negative prompt {percent(mean(record, name, UNCOND))}"
    if mask is not None:
        line += f". Its mask covers {percent(float(mask.mean()))} of the picture"
    return line + "."


def rest(record: Record) -> list[str]:
    found = {name: mean(record, name, shown_prompt(record)) for name in OTHERS}
    parts = [f"{name} {percent(share)}" for name, share in found.items() if share]
    return [f"The rest: {', '.join(parts)}."] if parts else []


def unreached(record: Record) -> list[str]:
    found = set(measured(record))
    missing = [layer_name(layer, record.layers) for layer in chosen(record) if found and layer not in found]
    return [f"Not reached: {', '.join(missing)}. Another node replaces, skips or tiles their attention."] if missing else []


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def colours(record: Record | None) -> dict[str, tuple[int, int, int]]:
    found = {name_of(reference): COLOURS[(reference.number - 1) % len(COLOURS)] for reference in references(record)}
    return found | OTHERS


def plot(record: Record | None) -> torch.Tensor:
    """The text, and a bar for every layer in forward order, from 0 to 100 %: an image [1, height, width, RGB]."""
    lines = [part for line in text(record).splitlines() for part in textwrap.wrap(line, LETTERS) or [""]]
    layers = chosen(record) if references(record) and measured(record) else []
    top = 2 * MARGIN + LINE * len(lines)
    height = top + (BARS + 2 * LINE + 2 * MARGIN if layers else 0)
    picture = Image.new("RGB", (WIDTH, height), (24, 24, 27))
    pen, font, white = ImageDraw.Draw(picture), letters(), (235, 235, 235)
    for number, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + number * LINE), line, white, font)
    if layers:
        draw_bars(pen, record, layers, top)
        names = [layer_name(layer, record.layers) for layer in layers]
        pen.text((MARGIN, top + BARS + 4), names[0], white, font)
        pen.text((WIDTH - MARGIN, top + BARS + 4), names[-1], white, font, anchor="ra")
        left = MARGIN
        for name, colour in colours(record).items():
            if any(per_layer(record, name, shown_prompt(record)).values()):
                pen.rectangle([left, top + BARS + LINE + 12, left + 10, top + BARS + LINE + 22], colour)
                pen.text((left + 16, top + BARS + LINE + 8), name, white, font)
                left += 34 + int(pen.textlength(name, font))
    return torch.from_numpy(np.array(picture)).float()[None] / 255


def draw_bars(pen, record: Record, layers: list[LayerId], top: int) -> None:
    step, found = (WIDTH - 2 * MARGIN) / len(layers), colours(record)
    shares = {name: per_layer(record, name, shown_prompt(record)) for name in found}
    for number, layer in enumerate(layers):
        left, right = MARGIN + step * number, MARGIN + step * (number + 1) - (1 if step > 3 else 0)
        done = 0.0
        for name, colour in found.items():
            share = shares[name].get(layer, 0.0)
            box = [left, top + BARS * (1 - done - share), right, top + BARS * (1 - done)]
            if share:
                pen.rectangle(box, colour)
            done += share


def letters():
    try:
        return ImageFont.load_default(13)
    except (TypeError, OSError):  # an older Pillow, or one without FreeType
        return ImageFont.load_default()


def overlay(record: Record | None, images: torch.Tensor) -> torch.Tensor:
    """The pictures [images, height, width, RGB] in grey, coloured where references got attention.

    Raises ValueError where these are not as many as were sampled.
    """
    grey = images[..., :3].float().mean(-1, keepdim=True).expand(-1, -1, -1, 3).cpu() * 0.8
    if record is None or not record.counts:
        return grey
    if len(images) != record.pictures:
        raise ValueError(f"'images' of SEAC Report holds {len(images)} pictures, but the run of its SEAC Trace made "
                         f"{record.pictures}. Connect the pictures of the sampler that has the model of that node.")
    maps = {name: over_picture(record, name, images.shape[1:3]) for name in map(name_of, references(record))}
    most = float(sum(maps.values()).max())
    if most == 0:
        return grey
    found, covered = torch.zeros_like(grey), torch.zeros_like(grey[..., :1])
    for name, shares in maps.items():
        opacity = OPAQUE * shares[..., None] / most
        found += opacity * torch.tensor(colours(record)[name]) / 255
        covered += opacity
    return (grey * (1 - covered) + found).clamp(0, 1)


def over_picture(record: Record, name: str, size: tuple[int, int]) -> torch.Tensor:
    """The share that a reference got at each pixel, the mean of the layers: [pictures, height, width]."""
    total = torch.zeros(record.pictures, *size)
    for layer, maps in record.maps.items():
        if name in maps:
            shares = maps[name] / record.counts[layer].clamp_min(1)[:, None, None]
            total += F.interpolate(shares[:, None], tuple(size), mode="bilinear")[:, 0]
    return total / max(len(record.maps), 1)
