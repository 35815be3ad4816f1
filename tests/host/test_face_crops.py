"""Align Face and Paste Face: three sources of landmarks, batches, and what they refuse."""

import math
from types import SimpleNamespace

import comfy.utils
import comfy_extras.nodes_mediapipe
import numpy as np
import pytest
import torch

from portrait_atelier.demo import faces as demo
from portrait_atelier.demo.portraits import draw, sample_identities
from portrait_atelier.demo.styles import paint
from portrait_atelier.host import pictures
from portrait_atelier.nodes.align_face import AlignFace
from portrait_atelier.nodes.demo_face_loader import DemoFaceLoader
from portrait_atelier.nodes.paste_face import PasteFace

RINGS = {
    "right_eye": (33, 160, 159, 158, 133, 153, 144, 163),
    "left_eye": (263, 387, 386, 385, 362, 380, 373, 390),
    "lips": (61, 0, 291, 17),
    "face_oval": (10, 200, 152, 210),
    "irises": (468, 469, 470, 471),
}


def five(x, y, eyes=20.0, degrees=0.0):
    """Eyes, nose and corners of the mouth of a face whose eyes lie around (x, y), `eyes` apart."""
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    shape = np.array([[-0.5, 0], [0.5, 0], [0, 0.6], [-0.4, 1.1], [0.4, 1.1]])
    return (shape * eyes @ turn + (x, y)).astype(np.float32)


class Finder:
    """An analysis that finds the faces it is told of, picture by picture."""

    def __init__(self, *frames):
        self.frames = iter(frames)

    def get(self, bgr):
        return [SimpleNamespace(kps=points) for points in next(self.frames)]


def landmarks(frames, height, width):
    """FACE_LANDMARKS as the host's nodes make them, of faces given by five points."""
    ring, told = np.linspace(0, 2 * np.pi, 9)[:-1], []
    for frame in frames:
        told.append([])
        for points in frame:
            mesh = np.zeros((478, 2), np.float32)
            mesh[10], mesh[152] = points[:2].mean(0) - (0, 20), points[3:].mean(0) + (0, 10)
            for eye, name in zip(points, ("right_eye", "left_eye")):
                mesh[list(RINGS[name])] = eye + np.stack([3 * np.cos(ring), np.sin(ring)], 1)
            mesh[61], mesh[291] = points[3:]
            told[-1].append({"landmarks_xy": mesh, "score": 1.0})
    sets = {name: frozenset(zip(ids, ids[1:] + ids[:1])) for name, ids in RINGS.items()}
    return {"frames": told, "image_size": (height, width), "connection_sets": sets}


def photos(count=1, height=120, width=160, channels=3, seed=0):
    return torch.rand(count, height, width, channels, generator=torch.Generator().manual_seed(seed))


def align(image, faces, size=64, **options):
    return AlignFace.execute(image, faces, size, **options).result


def paste(image, crop, transform, mask=None, **options):
    return PasteFace.execute(image, crop, transform, mask, **options).result


# --- sources


def test_three_sources_give_the_same_crop():
    image, points = photos(), five(70, 50, 22, 20)
    crop, transform, inside = align(image, Finder([points]))
    told = landmarks([[points]], 120, 160)
    assert comfy_extras.nodes_mediapipe.MediaPipeFaceMask.execute(told, {"regions": "all"})[
        0
    ].any()  # the host reads it
    same, _, _ = align(image, told)
    assert crop.shape == (1, 64, 64, 3) and inside.shape == (1, 64, 64)
    assert float((crop - same).abs().max()) < 1e-4
    assert (transform.frames, transform.height, transform.width, len(transform.faces)) == (1, 120, 160, 1)


def test_insightface_is_asked_in_uint8_bgr():
    seen = []

    class Watching(Finder):
        def get(self, bgr):
            seen.append(bgr)
            return super().get(bgr)

    image = photos(2, channels=4)
    align(image, Watching([five(70, 50)], [five(80, 60)]))
    assert len(seen) == 2 and seen[1].dtype == np.uint8
    assert np.array_equal(seen[1][..., ::-1], (image[1, ..., :3] * 255).round().byte().numpy())


def test_the_demo_finds_small_faces():
    """Eyes and mouth of demo people in pictures three to four times as wide as a portrait, without a download."""
    analysis, _ = DemoFaceLoader.execute().result
    generator = torch.Generator().manual_seed(3)
    errors = []
    for zoom in (2.6, 3.1, 3.6):
        who = sample_identities(1, generator)
        who = {**who, "hat": who["hat"] * 0, "cut": who["cut"] * 0 + 1}  # a bare head with short hair
        layers, photo = draw(who, 448, zoom), torch.zeros(1, dtype=torch.long)
        picture = paint(layers, photo, photo, generator)[..., 20:, 60:]
        # As portraits.draw places them: the head's own axes, turned, in halves of the picture's width.
        cos, sin = math.cos(float(who["tilt"])), math.sin(float(who["tilt"]))
        spot = lambda u, v: (
            ((float(who["x"]) + cos * u - sin * v) / zoom + 1) * 224 - 60,
            ((float(who["y"]) + 0.03 + sin * u + cos * v) / zoom + 1) * 224 - 20,
        )
        gap, eye, mouth = (float(who[name]) for name in ("eye_gap", "eye_y", "mouth_y"))
        truth = np.array([spot(-gap, eye), spot(gap, eye), spot(0, mouth)])
        bgr = np.ascontiguousarray((picture.movedim(1, -1)[0] * 255).byte().numpy()[..., ::-1])
        seen = [np.array([*face.kps[:2], face.kps[3:].mean(0)]) for face in analysis.get(bgr)]
        head = 2 * float(who["height"]) / zoom * 224
        errors.append(min((np.abs(points - truth).max() / head for points in seen), default=9))
    assert max(errors) < 0.2 and sorted(errors)[1] < 0.12, errors


def test_the_shipped_scene():
    """What the two demos cut out: one upright face that fills its crop as the demo's portraits do."""
    image, _ = pictures.load("atelier/scene.png")
    analysis, _ = DemoFaceLoader.execute().result
    crop, transform, inside = align(image, analysis, 256)
    side = float(transform.faces[0].matrix[:, 0].norm()) * 256
    assert 130 < side < 260 and inside.all() and crop.shape == (1, 256, 256, 3)
    [face] = analysis.get(np.ascontiguousarray((crop[0] * 255).round().byte().numpy()[..., ::-1]))
    assert face.det_score > 0.95 and face.aligned.shape == (224, 224, 3)
    right, left, *_ = face.kps
    assert abs(right[1] - left[1]) < 16 and 40 < left[0] - right[0] < 110


def test_a_portrait_that_fills_its_picture_is_told_as_before():
    """FastFace's demo depends on it to the bit: no search where the whole picture is surely a face."""
    analysis = demo.Analysis(demo.load_recognisers().own)
    analysis.search = None
    for name in ("content", "content-2", "style-watercolor"):
        image, _ = pictures.load(f"atelier/{name}.png")
        assert len(analysis.get(np.ascontiguousarray((image[0] * 255).round().byte().numpy()[..., ::-1]))) == 1


# --- several faces, batches


def test_there_and_back():
    image = photos(2)
    crops, transform, inside = align(image, Finder([five(70, 50, 24, 30)], [five(60, 60, 24)]), 128)
    out, replaced = paste(image, 1 - crops, transform)
    assert out.shape == image.shape and replaced.shape == (2, 120, 160)
    assert torch.equal(out[replaced == 0], image[replaced == 0])
    whole = replaced == 1
    assert 1000 < int(whole.sum()) and float((out[whole] - image[whole]).abs().mean()) > 0.2
    assert torch.equal(paste(image, crops, transform, opacity=0.0)[0], image)


def test_which_face():
    """The largest first; -1 all, photo by photo; a photo without that face passes through, and is told of."""
    small, large = five(40, 40, 10), five(110, 60, 20)
    frames = [small, large], [], [large]
    sides = lambda transform: [(t.frame, t.face, round(float(t.matrix[:, 0].norm()) * t.size)) for t in transform.faces]
    _, transform, _ = align(photos(3), Finder(*frames), face=-1)
    assert sides(transform) == [(0, 0, 80), (0, 1, 40), (2, 0, 80)]
    crops, transform, _ = align(photos(3), Finder(*frames))
    assert sides(transform) == [(0, 0, 80), (2, 0, 80)]
    out, replaced = paste(photos(3), crops * 0, transform)
    assert torch.equal(out[1], photos(3)[1]) and not replaced[1].any() and replaced[0].any() and replaced[2].any()
    _, transform, _ = align(photos(3), Finder(*frames), face=1)
    assert sides(transform) == [(0, 1, 40)]


def test_photos_without_the_face_are_told_of(caplog):
    align(photos(3), Finder([five(70, 50)], [], [five(70, 50, 3), five(60, 50, 20)]))
    assert "no face 0 in photo 2 of 3; Paste Face leaves them as they are" in caplog.text
    assert "skipped 1 of 2 faces in photo 3: less than 4 pixels between the eyes" in caplog.text


def test_smoothing_is_of_frames():
    frames = [[five(70 + shift, 50)] for shift in (0, 4, 0, 4)]
    _, calm, _ = align(photos(4), Finder(*frames), smoothing=0.5)
    middles = [float((t.matrix @ torch.tensor([32.0, 32, 1], dtype=torch.float64))[0]) for t in calm.faces]
    assert [round(x - middles[0], 3) for x in middles] == [0, 2, 1, 2.5]


def test_crops_of_another_size_a_mask_and_grey_photos():
    image = photos(1, channels=1)
    crops, transform, inside = align(image, Finder([five(70, 20, 24)]), 64)
    assert crops.shape == (1, 64, 64, 3) and torch.equal(crops[..., 0], crops[..., 2]) and 0 < inside.mean() < 1
    large = comfy.utils.common_upscale(crops.movedim(-1, 1), 128, 128, "bilinear", "disabled").movedim(1, -1)
    out, replaced = paste(image, large, transform, inside)
    assert out.shape == (1, 120, 160, 3) and replaced.any()
    half = torch.zeros(1, 16, 16)
    half[:, :, 8:] = 1
    _, right = paste(image, crops, transform, half, feather=0.0)
    columns = torch.nonzero(right[0] == 1)[:, 1]
    assert columns.min() >= 68 and columns.max() > 100
    rgba = photos(1, channels=4)
    out, _ = paste(rgba, crops, transform)
    assert out.shape == rgba.shape and torch.equal(out[..., 3], rgba[..., 3]) and not torch.equal(out, rgba)


def test_cancel_is_noticed_between_photos(monkeypatch):
    class Cancelled(Exception):
        pass

    def hook(value, total, *rest, **more):
        if value >= 2:
            raise Cancelled

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    with pytest.raises(Cancelled):
        align(photos(4), Finder(*[[five(70, 50)]] * 4))


# --- refusals


class Pointless(Finder):
    def get(self, bgr):
        return [SimpleNamespace(kps=None)]


EYES = landmarks([[five(70, 50)]], 120, 160)
SWAPPED = {**EYES["connection_sets"], "right_eye": EYES["connection_sets"]["left_eye"]}
ALIGN = {
    "no face": (
        dict(faces=Finder([])),
        r"no face 0 in the photo \(at most 0 found\). Use a photo that shows the whole face",
    ),
    "none at all": (dict(image=photos(2), faces=Finder([], []), face=-1), "no face in any of the 2 photos"),
    "too few faces": (
        dict(face=2),
        r"no face 2 in the photo \(at most 1 found\). Choose a smaller 'face'; 0 is the largest",
    ),
    "too small": (dict(faces=Finder([five(70, 50, 3)])), "at most 0 found"),
    "nonsense": (dict(faces=Finder([five(70, 50, 3e6)])), "at most 0 found"),
    "NaN landmarks": (dict(faces=Finder([five(math.nan, 50)])), "at most 0 found"),
    "another size": (
        dict(faces={**EYES, "image_size": (64, 64)}),
        "of 1 photos of 64 x 64, but 'image' holds 1 of 160 x 120",
    ),
    "another count": (dict(image=photos(2), faces=EYES), "of 1 photos of 160 x 120, but 'image' holds 2 of 160 x 120"),
    "no landmarks": (dict(faces={"frames": []}), "no FACE_LANDMARKS of Detect Face Landmarks"),
    "other mesh": (dict(faces={**EYES, "connection_sets": SWAPPED}), "'right_eye' is not MediaPipe's"),
    "no points": (dict(faces=Pointless()), "gives no points of the face"),
    "something else": (dict(faces=object()), "is a object, which finds no faces"),
    "NaN": (dict(image=photos() * math.nan), "picture 1 of the batch holds NaN"),
    "empty": (dict(image=photos(0)), "batch of pictures is empty"),
    "range": (dict(size=8), "'size' of Align Face is 8"),
    "NaN smoothing": (dict(smoothing=math.nan), "'smoothing' of Align Face is nan"),
}


@pytest.mark.parametrize("given, message", ALIGN.values(), ids=ALIGN)
def test_align_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        align(**{"image": photos(), "faces": Finder([five(70, 50)]), **given})


PASTE = {
    "fewer crops": (dict(crop=photos(1, 64, 64)), "1 crops, but the transform of Align Face has 2"),
    "not square": (dict(crop=photos(2, 64, 72)), "72 x 64 pixels. They may be larger or smaller"),
    "other photo": (dict(image=photos(2, 60, 80)), "cut from 2 photos of 160 x 120, but 'image' holds 2 of 80 x 60"),
    "fewer photos": (dict(image=photos(1)), "cut from 2 photos of 160 x 120, but 'image' holds 1 of 160 x 120"),
    "masks": (dict(mask=torch.ones(3, 8, 8)), "3 masks for 2 crops"),
    "wide mask": (dict(mask=torch.ones(1, 8, 16)), "mask is 16 x 8 pixels"),
    "NaN mask": (dict(mask=torch.full((1, 8, 8), math.nan)), "'mask' holds NaN"),
    "NaN crop": (dict(crop=photos(2, 64, 64) * math.nan), "picture 1 of the batch holds NaN"),
    "feather": (dict(feather=0.7), "'feather' of Paste Face is 0.7"),
}


@pytest.mark.parametrize("given, message", PASTE.values(), ids=PASTE)
def test_paste_refuses(given, message):
    image = photos(2)
    crop, transform, _ = align(image, Finder([five(70, 50)], [five(60, 60)]))
    with pytest.raises(ValueError, match=message):
        paste(**{"image": image, "crop": crop, "transform": transform, **given})
