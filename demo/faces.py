"""Who is in a picture of the microworld, and where the face is: what insightface is to photographs.

``Analysis`` stands where insightface's FaceAnalysis does, so the demo's FastFace graph is the real one with another loader.
The renderer knows the truth, so an embedding here has a meaning: it is the vector of the person's own traits
(``identity_of``) as far as a picture shows them.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ..identity.adapter import FaceAdapter, load_adapter
from .checkpoint import packed, unpacked
from .judges import GEOMETRY
from .portraits import CHOICES, FLAGS, RANGES, ZOOM

PATH, ADAPTER_PATH = Path(__file__).with_name("recognisers.safetensors"), Path(__file__).with_name("face_adapter.safetensors")
CROP = 224                   # pixels of an aligned face, as FaceID's
SURE = 2.                    # a picture with a larger face logit is a portrait (48: at least 3.3); a wide one with a small face in it has less
CLEAR = 1.8                  # of a small face, on average over small moves: 19 of 20 have 2.1 and more, 23 of 24 shuffled portraits 1.7 and less
LARGER = 3.                  # how much surer of a face a square of half the side must be: eyes alone look much like one
SEARCHED = 640               # longest side of a picture in which small faces are looked for, in squares of 64 pixels

# What makes a person, with its share of an embedding's length. Ground, shirt, hat, light, gaze, pose and smile are not the person's.
SHAPES = {name: .25 for name in ("width", "height", "jaw", "eye_size", "eye_gap", "eye_y", "brow_tilt", "brow_y", "nose", "mouth_width", "mouth_y")}
LOOKS = {"skin": 1., "hair": 1., "cut": 1., "eyes": .3}
MARKS = {"glasses": .6, "beard": .6, "moustache": .4, "earrings": .3}
WIDTH = len(SHAPES) + sum(len(CHOICES[name]) for name in LOOKS) + len(MARKS)


def traits_vector(who: dict[str, torch.Tensor]) -> torch.Tensor:
    """Identities of B people -> [B, WIDTH]: every trait with mean 0 over the world and the spread that its share gives it."""
    columns = []
    for name, share in SHAPES.items():
        low, high = RANGES[name]
        columns.append((who[name] - (low + high) / 2)[:, None] * (share * 12) ** .5 / (high - low))
    for name, share in LOOKS.items():
        count = len(CHOICES[name])
        columns.append((F.one_hot(who[name], count) - 1 / count) * (share / (1 - 1 / count)) ** .5)
    for name, share in MARKS.items():
        chance = FLAGS[name]
        columns.append((who[name] - chance)[:, None] * (share / (chance * (1 - chance))) ** .5)
    return torch.cat(columns, 1)


def identity_of(who: dict[str, torch.Tensor]) -> torch.Tensor:
    """The true embedding: [B, WIDTH] of length 1. The cosine of two people is 0 on average."""
    return F.normalize(traits_vector(who), dim=1)


class Recogniser(nn.Module):
    """Pictures [B, 3, S, S] from 0 to 1 -> dict of traits [B, WIDTH], geometry [B, 12] as in ``judges``, face logit [B]."""

    def __init__(self):
        super().__init__()
        widths, layers = (3, 16, 32, 48, 64), []
        for inputs, outputs in zip(widths, widths[1:]):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
                       nn.Conv2d(outputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.where = nn.Conv2d(64, 24, 1)                            # keeps places
        self.traits = nn.Linear(24 * 16 + 64, WIDTH)
        self.geometry = nn.Linear(24 * 16 + 64, len(GEOMETRY))
        self.face = nn.Linear(24 * 16 + 64, 1)

    def features(self, pictures):
        """What the three answers are read from: [B, 448]."""
        x = self.trunk(F.interpolate(pictures, (64, 64), mode="area") * 2 - 1)
        return torch.cat([self.where(x).flatten(1), x.mean((2, 3))], 1)

    def forward(self, pictures):
        flat = self.features(pictures)
        return {"traits": self.traits(flat), "geometry": self.geometry(flat), "face": self.face(flat)[:, 0]}

    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        """[B, WIDTH] of length 1."""
        return F.normalize(self(pictures)["traits"], dim=1)


@dataclass(frozen=True, eq=False)
class Face:
    """A face as insightface tells of it, in pixels; ``aligned`` is the face turned upright, [224, 224, 3], BGR."""
    bbox: np.ndarray               # left, top, right, bottom
    kps: np.ndarray                # [5, 2]: eyes, nose, corners of the mouth, from the left of the picture
    normed_embedding: np.ndarray   # [WIDTH]
    det_score: float
    aligned: np.ndarray


class Analysis:
    """A portrait that fills its picture is one face; in others every upright face is looked for that is not too small."""

    def __init__(self, recogniser: Recogniser):
        self.recogniser = recogniser

    @torch.no_grad()
    def get(self, bgr: np.ndarray) -> list[Face]:
        """Faces in a picture, uint8 [height, width, 3] in BGR."""
        picture = torch.from_numpy(np.ascontiguousarray(bgr[..., ::-1])).movedim(-1, 0)[None].float() / 255
        told = self.recogniser(picture)
        score = float(told["face"])
        if score > SURE:
            return [face_of(told, picture)]
        return self.search(picture) or [face_of(told, picture)] * (score > 0)

    def search(self, picture: torch.Tensor) -> list[Face]:
        """Faces in a picture [1, 3, h, w] that they do not fill, the surest first."""
        found = []

        def known(x, y, side):
            return any(math.hypot(x - was[0], y - was[1]) < max(side, was[2]) / 2 for was in found)

        for x, y, side in self.windows(picture):
            if known(x, y, side):
                continue
            for step in (.15, .07):                  # each time the window moves to where the recogniser is surest of a face
                moves = around(x, y, side, step)
                seen = torch.cat([F.interpolate(cutout(picture, *move), (64, 64), mode="area") for move in moves])
                sides = torch.tensor([side for *_, side in moves])
                x, y, side = moves[int((self.recogniser(seen)["face"] + LARGER * sides.log2()).argmax())]
            # parts of a face that lie by chance as in one lose that when the window moves
            seen = torch.cat([F.interpolate(cutout(picture, *move), (64, 64), mode="area") for move in around(x, y, side, .12)])
            if float(self.recogniser(seen)["face"].mean()) > CLEAR and not known(x, y, side):
                seen = cutout(picture, x, y, side)
                found.append((x, y, side, face_of(self.recogniser(seen), seen, round(x - side / 2), round(y - side / 2))))
        return [face for *_, face in found]

    def windows(self, picture: torch.Tensor) -> list[tuple[float, float, float]]:
        """Centre and side of squares that may show a face, the likeliest first: the network over ever smaller pictures."""
        likely, net, height, width = [], self.recogniser, *picture.shape[-2:]
        longest = min(SEARCHED, max(height, width))
        while longest >= 64:
            scale = longest / max(height, width)
            small = F.interpolate(picture, (max(round(height * scale), 1), max(round(width * scale), 1)), mode="area")
            small = F.pad(small, (0, max(0, 64 - small.shape[-1]), 0, max(0, 64 - small.shape[-2])), mode="replicate")
            x = net.trunk(small * 2 - 1)
            where = F.unfold(net.where(x), 4)[0].T                       # as Recogniser.forward, for every square of 64
            told = net.face(torch.cat([where, F.avg_pool2d(x, 4, 1)[0].flatten(1).T], 1))[:, 0]
            columns = x.shape[-1] - 3
            for at in torch.nonzero(told > 0)[:, 0].tolist():
                square = (at % columns * 16 + 32) / scale, (at // columns * 16 + 32) / scale, 64 / scale
                likely.append((float(told[at]) - LARGER * math.log2(scale), *square))
            longest /= 2 ** .5
        return [window for _, *window in sorted(likely, reverse=True)]


def around(x: float, y: float, side: float, step: float) -> list[tuple[float, float, float]]:
    """The square and its 26 neighbours, this share of its side away in place and size."""
    return [(x + right * step * side, y + down * step * side, side * (1 + out * step)) for out, down, right in itertools.product((-1, 0, 1), repeat=3)]


def cutout(picture: torch.Tensor, x: float, y: float, side: float) -> torch.Tensor:
    """The square with this centre of a picture [1, 3, h, w], whose border is repeated beyond it."""
    ranges = ((y, picture.shape[-2]), (x, picture.shape[-1]))
    rows, columns = (torch.arange(round(side)).add(round(at - side / 2)).clamp(0, length - 1) for at, length in ranges)
    return picture[:, :, rows][..., columns]


def parts_of(told: dict[str, torch.Tensor]) -> dict[str, float]:
    """What the recogniser says of one picture's GEOMETRY, in the renderer's units."""
    parts = dict(zip(GEOMETRY, (told["geometry"][0].clamp(-1.8, 1.8) / 12 ** .5).tolist()))
    return {name: sum(RANGES[name]) / 2 + value * (RANGES[name][1] - RANGES[name][0]) for name, value in parts.items()}


def face_of(told: dict[str, torch.Tensor], picture: torch.Tensor, left: int = 0, top: int = 0) -> Face:
    """The face that the recogniser saw in a picture [1, 3, h, w], or in the square of it that begins at `left`, `top`."""
    parts, side = parts_of(told), np.array(picture.shape[:1:-1])
    tip = parts["eye_y"] + .04 + parts["nose"]
    points = [(-parts["eye_gap"], parts["eye_y"]), (parts["eye_gap"], parts["eye_y"]), (0, tip),
              (-parts["mouth_width"], parts["mouth_y"]), (parts["mouth_width"], parts["mouth_y"])]
    corners = place([(u * parts["width"], v * parts["height"]) for u in (-1, 1) for v in (-1, 1)], parts)
    box = np.concatenate([corners.min(0), corners.max(0)]).clip(0, 1) * np.tile(side, 2) + (left, top, left, top)
    return Face(box.astype(np.float32), (place(points, parts) * side + (left, top)).astype(np.float32),
                F.normalize(told["traits"], dim=1)[0].numpy(), float(told["face"].sigmoid()), upright(picture, parts))


def place(points, parts: dict[str, float]) -> np.ndarray:
    """Points (u, v) in the head's own axes, as ``portraits.draw`` has them -> [n, 2] in shares of the picture's sides."""
    u, v = np.array(points, np.float64).T
    cos, sin = math.cos(parts["tilt"]), math.sin(parts["tilt"])
    x, y = parts["x"] + cos * u - sin * v, parts["y"] + sin * u + cos * v
    return np.stack([x / ZOOM, (y + .03) / ZOOM], 1) / 2 + .5


def upright(picture: torch.Tensor, parts: dict[str, float]) -> np.ndarray:
    """The head of one picture [1, 3, h, w] from 0 to 1 -> uint8 [224, 224, 3], BGR, black beyond the picture."""
    size = 1.15 * parts["height"] / ZOOM
    cos, sin = math.cos(parts["tilt"]) * size, math.sin(parts["tilt"]) * size
    turn = torch.tensor([[[cos, -sin, parts["x"] / ZOOM], [sin, cos, (parts["y"] + .03) / ZOOM]]])
    crop = F.grid_sample(picture, F.affine_grid(turn, (1, 3, CROP, CROP), align_corners=False), align_corners=False)
    return np.ascontiguousarray((crop[0] * 255).round().byte().movedim(0, -1).numpy()[..., ::-1])


@dataclass(frozen=True)
class Recognisers:
    """Two networks of different seeds, trained on renders of different people: who measures must not be who was asked."""
    own: Recogniser      # feeds the adapter
    judge: Recogniser    # says how alike two pictures are


def save_recognisers(path: Path, own: dict, judge: dict, metadata: dict[str, str]) -> None:
    """Write both state dicts, the larger kernels and matrices as bytes."""
    tensors = {f"{prefix}.{name}": value for prefix, weights in (("own", own), ("judge", judge)) for name, value in weights.items()
               if value.is_floating_point()}
    save_file(packed(tensors), path, metadata=metadata)


def load_recognisers(path: Path = PATH) -> Recognisers:
    """Raises FileNotFoundError when the file is not there and ValueError when it does not fit this code, with the remedy."""
    if not path.is_file():
        raise FileNotFoundError(f"The demo's recognisers {path.name} are missing from {path.parent}. They are part of the pack: install the pack "
                                "again, or train them with 'python3 atelier.py train-demo --faces'.")
    tensors, networks = unpacked(load_file(path)), []
    for prefix in ("own.", "judge."):
        network = Recogniser()
        weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        counters = {name: value for name, value in network.state_dict().items() if not value.is_floating_point()}
        try:
            network.load_state_dict(counters | weights)
        except RuntimeError as error:
            raise ValueError(f"The demo's recognisers {path} belong to another version of the pack. Install the pack again, or train them "
                             "with 'python3 atelier.py train-demo --faces'.") from error
        networks.append(network.eval().requires_grad_(False))
    return Recognisers(*networks)


def load_face_adapter(path: Path = ADAPTER_PATH) -> FaceAdapter:
    """The demo's FaceID adapter. Raises FileNotFoundError when the file is not there."""
    if not path.is_file():
        raise FileNotFoundError(f"The demo's face adapter {path.name} is missing from {path.parent}. It is part of the pack: install the pack again, "
                                "or train it with 'python3 atelier.py train-demo --faces'.")
    return load_adapter(path)


@torch.no_grad()
def likeness(recogniser: Recogniser, pictures: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """Cosine [B] between who is seen in pictures [B, 3, S, S] and embeddings [B, WIDTH]."""
    return (recogniser.embed(pictures) * embeddings).sum(1)
