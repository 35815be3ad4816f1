"""What the face nodes do in the microworld, where it is known who is who.

Every number speaks of procedural portraits only: it shows that a knob acts in the direction it should, not how good
photographs become.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import comfy.sample
import torch
import torch.nn.functional as F

from ..guidance.schedule import parse_values
from ..host.attention_maps import scale_power, scheduled_softmax
from ..host.decoupled_guidance import DecoupledCFG
from ..host.decoupled_guidance import patched as guided
from ..host.face_adapter import add_lora
from ..host.face_adapter import patched as with_face
from ..host.faces import encode
from ..identity.faces import FaceIdentity
from . import faces
from .measure import Studio
from .portraits import FURTHEST, ZOOM, sample_identities
from .styles import NAMES, TRAINED, render

HELD_OUT_SEED = 95_000          # no training seed comes near
REALISTIC, STYLISTIC = ("photo",) * 3, TRAINED[1:]
DISTANCES = (1.4, 1.6, 1.8, 2., 2.2, 2.4)          # where a face is looked for in pictures of people who stand 1.5 to 2.2 times as far
SMALL = 6.                      # the least logit of such a face: 80 renders have 7.1 and more, their shuffled tiles mostly -20 and less


@dataclass(frozen=True)
class People:
    """B people nobody trained on: photos [B, 3, 256, 256] from 0 to 1, and the truth."""
    photos: torch.Tensor
    who: dict[str, torch.Tensor]


def held_out_people(count: int, seed: int = HELD_OUT_SEED) -> People:
    generator = torch.Generator().manual_seed(seed)
    who = sample_identities(count, generator)
    variant = torch.randint(4, (count,), generator=generator)
    return People(render(who, torch.zeros_like(variant), variant, generator), who)


def dcg(alpha: str = "1, 1.5, 1.5, 1", beta: str = "1, 3, 3, 1") -> DecoupledCFG:
    """Decoupled CFG with the node's other defaults."""
    return DecoupledCFG("DCG_2", *(parse_values(text, "scale", "dcg") for text in (alpha, beta)), phi=.75, rescale_all=False, separate=False)


class FaceStudio(Studio):
    """The demo FastFace graph on the nodes' own functions."""

    def __init__(self):
        super().__init__()
        self.recognisers, self.adapter, self.with_lora = faces.load_recognisers(), faces.load_face_adapter(), {}

    def identities(self, people: People) -> list[FaceIdentity]:
        """Face Identity Encode for each photo; not found where the recogniser sees no face."""
        analysis = faces.Analysis(self.recognisers.own)
        return [encode(analysis, photo[None].movedim(1, -1), if_no_face="skip")[0] for photo in people.photos]

    def model_of(self, identity: FaceIdentity | None, *, weight: float = .8, lora: float = 1., maps: str = "", guidance: DecoupledCFG | None = None):
        """maps: "AM1" or "AM2" at the nodes' defaults."""
        model = self.model
        if identity is not None and identity.found:
            if lora not in self.with_lora:       # the same for everybody: weights are patched once, not for every person
                self.with_lora[lora] = model.clone()
                add_lora(self.with_lora[lora], self.adapter, lora)
            model = with_face(self.with_lora[lora], self.adapter, identity, weight=weight, lora_strength=0., shortcut=1., start=0., end=1., mask=None,
                              skip_middle=False)
            if maps == "AM1":
                model = scale_power(model, "d,u", 0., 1., 1.3, (1.55,), (1.45,))
            elif maps == "AM2":
                model = scheduled_softmax(model, "d,u", 0., 1., (7.5, 5., 5., 5.), (1., 1.55, 1.55, 1.55), .65, .3, False)
        return model if guidance is None else guided(model, guidance)

    def draw_styles(self, model, styles: tuple[str, ...], seed: int, cfg: float = 1., words: str = "portrait") -> torch.Tensor:
        """One picture per style, "WORDS, STYLE", four LCM steps. Decoupled guidance ignores cfg."""
        prompt = torch.cat([self.world.text.encode(f"{words}, {style}") for style in styles])
        latents = torch.zeros(len(styles), self.world.codec.channels, 16, 16)
        noise = comfy.sample.prepare_noise(latents, seed)
        return self.decode(comfy.sample.sample(model, noise, 4, cfg, "lcm", "simple", [[prompt, {}]], self.prompt(""), latents, seed=seed, disable_pbar=True))

    def measure(self, pictures: torch.Tensor, who: dict[str, torch.Tensor], styles: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Per picture: cosine with the true person, probability of the asked style and its log-odds, whether a face is found. [pictures] each."""
        told = self.world.judges(pictures)
        style = torch.tensor([NAMES.index(name) for name in styles])
        chance = told["style"].softmax(1)[torch.arange(len(style)), style]
        return {"identity": faces.likeness(self.recognisers.judge, pictures, faces.identity_of(who)),
                "style": chance, "odds": chance.double().logit(1e-9).float(), "face": (told["face"] > 0).float()}

    def measure_far(self, pictures: torch.Tensor, who: dict[str, torch.Tensor], styles: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """The same of people who stand further back, in the square where the recogniser is surest of a face."""
        measures = self.measure(pictures, who, styles)
        for number, truth in enumerate(faces.identity_of(who)):
            side, middle = pictures.shape[-1], pictures.shape[-1] / 2
            squares = torch.cat([F.interpolate(faces.cutout(pictures[number:number + 1], middle + right * side / times, middle + down * side / times, side / times),
                                               (64, 64), mode="area")
                                 for times, right, down in itertools.product(DISTANCES, (-.1, 0, .1), (-.1, 0, .1))])
            told = self.recognisers.judge(squares)
            surest = int(told["face"].argmax())
            measures["identity"][number] = F.normalize(told["traits"][surest], dim=0) @ truth
            measures["face"][number] = told["face"][surest] > SMALL
        return measures

    def portraits(self, people: People, identities: list[FaceIdentity | None], styles: tuple[str, ...], cfg: float = 1.,
                  far: bool = False, **settings) -> dict[str, torch.Tensor]:
        """Every person in every style: measures [people, styles]. The noise of a person is the same in every call.

        far: they are asked to stand further back, where this model does not always draw a face.
        """
        rows, measure, words = [], self.measure_far if far else self.measure, "portrait, far" if far else "portrait"
        for number, identity in enumerate(identities):
            who = {name: value[number:number + 1].expand(len(styles), *value.shape[1:]) for name, value in people.who.items()}
            rows.append(measure(self.draw_styles(self.model_of(identity, **settings), styles, 1000 + number, cfg, words), who, styles))
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def rendered(self, people: People, styles: tuple[str, ...], far: bool = False) -> dict[str, torch.Tensor]:
        """The same measures of the truth: the renderer's own pictures of these people in these styles, through the codec."""
        generator, rows = torch.Generator().manual_seed(5), []
        for number in range(len(people.photos)):
            who = {name: value[number:number + 1].expand(len(styles), *value.shape[1:]) for name, value in people.who.items()}
            style = torch.tensor([NAMES.index(name) for name in styles])
            variant, times = torch.randint(4, (len(styles),), generator=generator), 1.
            if far:      # as in training
                times = 1.5 + (FURTHEST - 1.5) * torch.rand(len(styles), generator=generator)
            pictures = render(who, style, variant, generator, zoom=ZOOM * times)
            rows.append((self.measure_far if far else self.measure)(self.decode(self.encode(pictures)), who, styles))
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def summary(measures: dict[str, torch.Tensor]) -> dict[str, float]:
    """Identity's mean and standard deviation, mean probability and log-odds of the asked style, pictures without a face per hundred."""
    return {"identity": float(measures["identity"].mean()), "spread": float(measures["identity"].std()),
            "style": float(measures["style"].mean()), "odds": float(measures["odds"].mean()), "fails": float(100 * (1 - measures["face"]).mean())}


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks along the last dimension; ties share their mean rank."""
    less, equal = values[..., None, :] < values[..., :, None], values[..., None, :] == values[..., :, None]
    return less.double().sum(-1) + (equal.double().sum(-1) - 1) / 2


def spearman(values: torch.Tensor) -> torch.Tensor:
    """Rank correlation of values [..., n] with their place 0 .. n - 1; 1 for a rise at every step. 0 where all are equal."""
    place = torch.arange(values.shape[-1], dtype=torch.float64)
    a, b = ranks(values) - (values.shape[-1] - 1) / 2, place - place.mean()
    return torch.nan_to_num((a * b).sum(-1) / (a.pow(2).sum(-1) * b.pow(2).sum()).sqrt())


def sliders(identity: torch.Tensor, style: torch.Tensor) -> dict[str, float]:
    """Two measures on a grid [identity slider, style slider].

    Own: mean rank correlation of each measure with its own slider, over the other's settings, and the least of them.
    Cross-talk: how far the other slider moves a measure, as a share of how far its own slider moves it (means of the ranges).
    """
    span = lambda grid, dim: float((grid.amax(dim) - grid.amin(dim)).mean())
    by_identity, by_style = spearman(identity.T), spearman(style)
    return {"identity by its slider": float(by_identity.mean()), "least": float(by_identity.min()), "style by its slider": float(by_style.mean()),
            "least of style": float(by_style.min()), "identity by the style slider": float(spearman(identity).mean()),
            "style by the identity slider": float(spearman(style.T).mean()), "cross-talk on identity": span(identity, 1) / span(identity, 0),
            "cross-talk on style": span(style, 0) / span(style, 1)}
