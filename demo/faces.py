"""Who is in a picture of the microworld, and where the face is: what insightface is to photographs.

``Analysis`` stands where insightface's FaceAnalysis does, so the demo's FastFace graph is the real one with another loader.
The renderer knows the truth, so an embedding here has a meaning: it is the vector of the person's own traits
(``identity_of``) as far as a picture shows them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ..identity.adapter import FaceAdapter, load_adapter
from .judges import GEOMETRY
from .portraits import CHOICES, FLAGS, RANGES, ZOOM

PATH, ADAPTER_PATH = Path(__file__).with_name("recognisers.safetensors"), Path(__file__).with_name("face_adapter.safetensors")
CROP = 224                   # pixels of an aligned face, as FaceID's

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

    def forward(self, pictures):
        x = self.trunk(F.interpolate(pictures, (64, 64), mode="area") * 2 - 1)
        flat = torch.cat([self.where(x).flatten(1), x.mean((2, 3))], 1)
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
    """At most one face per picture: portraits fill it."""

    def __init__(self, recogniser: Recogniser):
        self.recogniser = recogniser

    @torch.no_grad()
    def get(self, bgr: np.ndarray) -> list[Face]:
        """Faces in a picture, uint8 [height, width, 3] in BGR."""
        picture = torch.from_numpy(np.ascontiguousarray(bgr[..., ::-1])).movedim(-1, 0)[None].float() / 255
        told = self.recogniser(picture)
        score = float(told["face"].sigmoid())
        if score <= .5:
            return []
        parts = dict(zip(GEOMETRY, (told["geometry"][0].clamp(-1.8, 1.8) / 12 ** .5).tolist()))
        parts = {name: sum(RANGES[name]) / 2 + value * (RANGES[name][1] - RANGES[name][0]) for name, value in parts.items()}
        side = np.array(bgr.shape[1::-1])
        tip = parts["eye_y"] + .04 + parts["nose"]
        points = [(-parts["eye_gap"], parts["eye_y"]), (parts["eye_gap"], parts["eye_y"]), (0, tip),
                  (-parts["mouth_width"], parts["mouth_y"]), (parts["mouth_width"], parts["mouth_y"])]
        corners = place([(u * parts["width"], v * parts["height"]) for u in (-1, 1) for v in (-1, 1)], parts)
        box = np.concatenate([corners.min(0), corners.max(0)]).clip(0, 1) * np.tile(side, 2)
        return [Face(box.astype(np.float32), (place(points, parts) * side).astype(np.float32),
                     F.normalize(told["traits"], dim=1)[0].numpy(), score, upright(picture, parts))]


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
    """Write both state dicts as float16."""
    tensors = {f"{prefix}.{name}": value for prefix, weights in (("own", own), ("judge", judge)) for name, value in weights.items()
               if value.is_floating_point()}
    save_file({name: value.half().contiguous().cpu() for name, value in tensors.items()}, path, metadata=metadata)


def load_recognisers(path: Path = PATH) -> Recognisers:
    """Raises FileNotFoundError when the file is not there and ValueError when it does not fit this code, with the remedy."""
    if not path.is_file():
        raise FileNotFoundError(f"The demo's recognisers {path.name} are missing from {path.parent}. They are part of the pack: install the pack "
                                "again, or train them with 'python3 atelier.py train-demo --faces'.")
    tensors, networks = load_file(path), []
    for prefix in ("own.", "judge."):
        network = Recogniser()
        weights = {name.removeprefix(prefix): value.float() for name, value in tensors.items() if name.startswith(prefix)}
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
