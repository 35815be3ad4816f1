"""Faces cut out of photos and put back, against the formulas written out and against laws that hold whatever the
picture.
"""

import math

import numpy as np
import pytest
import torch

from portrait_atelier.identity import alignment

DOUBLE = torch.float64


def points(x=32.0, y=32.0, half=20.0, degrees=0.0, eyes=0.5, mouth=0.5):
    """A face whose square has this middle and half of a side: eyes `eyes` apart and the mouth `mouth` below them, then
    scaled.
    """
    face = torch.tensor([[-eyes / 2, 0], [eyes / 2, 0], [0, mouth]], dtype=DOUBLE)
    centre, along = alignment.square(face)
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=DOUBLE)
    return (face - centre) / along.norm() * half @ turn.T + torch.tensor([x, y], dtype=DOUBLE)


def noise(height, width, limit, seed=0):
    """Noise [height, width, 3] from 0 to 1 without frequencies above `limit` cycles per pixel."""
    waves = torch.fft.fft2(torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE))
    y, x = torch.meshgrid(torch.fft.fftfreq(height), torch.fft.fftfreq(width), indexing="ij")
    picture = torch.fft.ifft2(waves * (x**2 + y**2 <= limit**2)).real
    return ((picture - picture.min()) / (picture.max() - picture.min())).movedim(0, -1)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def psnr(one, other):
    return -10 * math.log10(float(((one - other).double() ** 2).mean()))


# --- the formulas, written out


def cubic(t):
    t = abs(t)
    if t <= 1:
        return 1.25 * t**3 - 2.25 * t**2 + 1
    return -0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def bicubic(pixel, x, y):
    """sum of pixel(column, row) over the 4 x 4 neighbours of the place (x, y), whose pixel i has its centre at i + 1/2."""
    column, row = math.floor(x - 0.5), math.floor(y - 0.5)
    return sum(
        cubic(x - 0.5 - i) * cubic(y - 0.5 - j) * pixel(i, j)
        for i in range(column - 1, column + 3)
        for j in range(row - 1, row + 3)
    )


def softened(pixel, step):
    """A pixel function under a Gaussian of 1/2 sqrt(step^2 - 1) pixels, where sampling takes a step of more than one
    pixel.
    """
    if step <= 1:
        return pixel
    sigma = math.sqrt(step**2 - 1) / 2
    reach = math.ceil(4 * sigma)
    weights = {i: math.exp(-0.5 * (i / sigma) ** 2) for i in range(-reach, reach + 1)}
    total = sum(weights.values())
    known = {}

    def soft(i, j):
        if (i, j) not in known:
            parts = (a * b * pixel(i + u, j + v) for u, a in weights.items() for v, b in weights.items())
            known[i, j] = sum(parts) / total**2
        return known[i, j]

    return soft


def mirror(i, length):
    while not 0 <= i < length:
        i = -1 - i if i < 0 else 2 * length - 1 - i
    return i


def square(face):
    """c, x and y of the design: R(a, b) = (-b, a), x = h - R(v) of length max(2 |h|, 1.8 |v|), y = R(x), c = o + v /
    10.
    """
    (rx, ry), (lx, ly), (mx, my) = face.tolist()
    h = lx - rx, ly - ry
    o = (rx + lx) / 2, (ry + ly) / 2
    v = mx - o[0], my - o[1]
    x = h[0] + v[1], h[1] - v[0]
    scale = max(2 * math.hypot(*h), 1.8 * math.hypot(*v)) / math.hypot(*x)
    x = x[0] * scale, x[1] * scale
    return (o[0] + 0.1 * v[0], o[1] + 0.1 * v[1]), x, (-x[1], x[0])


def literal_cut(photo, face, size):
    height, width, _ = photo.shape
    values = photo.numpy()
    (cx, cy), x, y = square(face)
    pixel = softened(lambda i, j: values[mirror(j, height), mirror(i, width)], 2 * math.hypot(*x) / size)
    crop, inside = np.zeros((size, size, 3)), np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            u, v = 2 * (column + 0.5) / size, 2 * (row + 0.5) / size
            px, py = cx - x[0] - y[0] + u * x[0] + v * y[0], cy - x[1] - y[1] + u * x[1] + v * y[1]
            crop[row, column] = bicubic(pixel, px, py)
            inside[row, column] = 0 <= px <= width and 0 <= py <= height
    return torch.from_numpy(crop).clamp(0, 1), torch.from_numpy(inside)


def literal_paste(photo, crop, face, feather, mask=None, opacity=1.0):
    height, width, _ = photo.shape
    size, values = crop.shape[0], crop.numpy()
    (cx, cy), x, y = square(face)
    length = math.hypot(*x)
    clamp = lambda i: min(max(i, 0), size - 1)
    pixel = softened(lambda i, j: values[clamp(j), clamp(i)], size / (2 * length))
    out, share = photo.clone(), torch.zeros(height, width, dtype=DOUBLE)
    for row in range(height):
        for column in range(width):
            dx, dy = column + 0.5 - cx, row + 0.5 - cy
            u, v = ((dx * x[0] + dy * x[1]) / length**2 + 1) / 2, ((dx * y[0] + dy * y[1]) / length**2 + 1) / 2
            across, down = min(u, 1 - u), min(v, 1 - v)
            if across <= 0 or down <= 0:
                continue
            t = 1.0
            if feather:
                t = max(0.0, 1 - math.hypot(max(feather - across, 0), max(feather - down, 0)) / feather)
            a = opacity * t * t * (3 - 2 * t)
            if mask is not None:
                n = mask.shape[0]
                i, j = u * n - 0.5, v * n - 0.5
                near = lambda k: min(max(k, 0), n - 1)
                weigh = lambda k, at: max(0.0, 1 - abs(at - k))
                a *= sum(
                    weigh(p, i) * weigh(q, j) * float(mask[near(q), near(p)])
                    for p in (math.floor(i), math.floor(i) + 1)
                    for q in (math.floor(j), math.floor(j) + 1)
                )
            share[row, column] = a
            colour = torch.from_numpy(bicubic(lambda i, j: pixel(clamp(i), clamp(j)), u * size, v * size)).clamp(0, 1)
            out[row, column] += a * (colour - out[row, column])
    return out, share


CASES = {
    "inside, enlarged": dict(x=16, y=14, half=5, degrees=20),
    "across the border, reduced": dict(x=6, y=20, half=17, degrees=-35),
    "upside down": dict(x=15, y=12, half=8, degrees=170),
    "long face": dict(x=17, y=15, half=9, degrees=5, eyes=0.2),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cut_is_the_formula(case):
    photo, face = random(27, 33, 3), points(**case)
    expected, inside = literal_cut(photo, face, 12)
    crop, seen = alignment.cut(photo, alignment.crop_matrix(face, 12), 12)
    assert float((crop - expected).abs().max()) < 1e-10
    assert torch.equal(seen, inside) and (bool(seen.all()) == ("border" not in str(case) and case["x"] > 6))


@pytest.mark.parametrize("feather", [0.0, 0.08, 0.3])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_paste_is_the_formula(case, feather):
    photo, crop, face = random(27, 33, 3), random(11, 11, 3, seed=1), points(**case)
    mask = random(5, 5, seed=2) if feather == 0.3 else None
    expected, share = literal_paste(photo, crop, face, feather, mask, 0.75)
    matrix = alignment.crop_matrix(face, 11)
    out, seen = alignment.paste(photo, [crop], [matrix], feather, None if mask is None else [mask], 0.75)
    assert float((seen - share).abs().max()) < 1e-12 and float(share.max()) > 0.1
    assert float((out - expected).abs().max()) < 1e-10


# --- geometry


def test_square_of_an_upright_face():
    """By hand: eyes at (40, 50) and (60, 50), mouth at (50, 75): v = 25, half a side 1.8 * 25 = 45, middle 2.5 below
    the eyes.
    """
    centre, along = alignment.square(torch.tensor([[40.0, 50], [60, 50], [50, 75]], dtype=DOUBLE))
    assert centre.tolist() == pytest.approx([50, 52.5]) and along.tolist() == pytest.approx([45, 0])
    corner = alignment.crop_matrix(torch.tensor([[40.0, 50], [60, 50], [50, 75]], dtype=DOUBLE), 256) @ torch.tensor(
        [[0.0, 256], [0, 256], [1, 1]], dtype=DOUBLE
    )
    assert corner.T.tolist() == [pytest.approx([5, 7.5]), pytest.approx([95, 97.5])]


def test_the_square_follows_every_similarity():
    """Moved, turned and scaled landmarks give the moved, turned and scaled square, to 1e-9."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(40):
        face = torch.randn(3, 2, generator=generator, dtype=DOUBLE) * 30 + 200
        a, b, *shift = (torch.randn(4, generator=generator, dtype=DOUBLE) * 5).tolist()
        turn = torch.tensor([[a, -b], [b, a]], dtype=DOUBLE)
        centre, along = alignment.square(face)
        moved, turned = alignment.square(face @ turn.T + torch.tensor(shift, dtype=DOUBLE))
        assert float((moved - turn @ centre - torch.tensor(shift, dtype=DOUBLE)).abs().max()) < 1e-9
        assert float((turned - turn @ along).abs().max()) < 1e-9


def scenery(u, v):
    """A smooth picture in a face's own axes, -1 to 1, that looks different when turned or mirrored."""
    return torch.stack([0.5 + 0.3 * u + 0.15 * torch.sin(3 * v), 0.5 + 0.3 * v + 0.1 * u * u, 0.5 + 0.2 * u * v], -1)


@pytest.mark.parametrize("degrees", range(0, 360, 30))
def test_a_rolled_head_comes_out_upright(degrees):
    """Whatever its roll, the crop shows the face as drawn in its own axes: nothing turned, mirrored, or half a pixel
    aside.
    """
    place = alignment.lattice(300, 300) - 150
    angle = math.radians(degrees)
    u = (place[..., 0] * math.cos(angle) + place[..., 1] * math.sin(angle)) / 80
    v = (place[..., 1] * math.cos(angle) - place[..., 0] * math.sin(angle)) / 80
    crop, inside = alignment.cut(scenery(u, v), alignment.crop_matrix(points(150, 150, 80, degrees), 128), 128)
    axes = alignment.lattice(128, 128) / 64 - 1
    assert inside.all() and float((crop - scenery(axes[..., 0], axes[..., 1])).abs().max()) < 8e-4


def mesh(right, left, mouth, closed=1.0):
    """478 landmarks with contours of eight vertices around the eyes; closed: 1 open to 0 shut."""
    landmarks, ring = np.zeros((478, 2)), np.linspace(0, 2 * np.pi, 9)[:-1]
    names = {"right_eye": (33, 160, 159, 158, 133, 153, 144, 163), "left_eye": (263, 387, 386, 385, 362, 380, 373, 390)}
    for centre, vertices in zip((right, left), names.values()):
        landmarks[list(vertices)] = np.array(centre) + np.stack([8 * np.cos(ring), 4 * closed * np.sin(ring)], 1)
    landmarks[61], landmarks[291] = np.array(mouth) - (10, 0), np.array(mouth) + (10, 0)
    pairs = {name: frozenset(zip(vertices, vertices[1:] + vertices[:1])) for name, vertices in names.items()}
    return landmarks, pairs


def test_eyes_of_a_mesh():
    """A closed eye lies where the open one does; five points of the same face give the same."""
    expected = torch.tensor([[40.0, 50], [60, 51], [49, 75]], dtype=DOUBLE)
    for closed in (1.0, 0.0):
        assert torch.allclose(
            alignment.points_of_mesh(*mesh((40, 50), (60, 51), (49, 75), closed)), expected, atol=1e-9
        )
    five = np.array([[40, 50], [60, 51], [48, 62], [39, 75], [59, 75]], np.float32)
    assert torch.equal(alignment.points_of_five(five), expected)
    landmarks, pairs = mesh((40, 50), (60, 51), (49, 75))
    with pytest.raises(ValueError, match="'right_eye' is not MediaPipe's, which has the vertex 33"):
        alignment.points_of_mesh(landmarks, {"right_eye": pairs["left_eye"], "left_eye": pairs["right_eye"]})


def test_a_profile_has_the_square_of_the_front():
    """As the head turns the eyes close up; the square keeps its size and direction."""
    front, profile = (torch.tensor([[50 - gap, 50], [50 + gap, 50], [50, 80]], dtype=DOUBLE) for gap in (13.0, 1.5))
    (middle, along), (aside, same) = alignment.square(front), alignment.square(profile)
    assert torch.allclose(middle, aside) and torch.allclose(along, same) and alignment.usable(profile)


def test_what_is_no_face():
    assert alignment.usable(points(half=9)) and not alignment.usable(points(half=7))
    assert not alignment.usable(torch.full((3, 2), math.nan, dtype=DOUBLE))
    for face in ([[5, 5], [5, 5], [5, 5]], [[60, 50], [40, 50], [50, 70]]):  # one point; the eyes exchanged
        assert not alignment.usable(torch.tensor(face, dtype=DOUBLE))


def test_the_smallest_face_has_four_pixels_between_the_eyes():
    for gap, good in ((3.9, False), (4.1, True)):
        assert (
            alignment.usable(torch.tensor([[50, 50], [50 + gap, 50], [50 + gap / 2, 50 + gap]], dtype=DOUBLE)) is good
        )


# --- round trips


@pytest.fixture(scope="module")
def wide():
    return noise(800, 800, 0.1).float()


@pytest.mark.parametrize("side, degrees", [(240, 33), (400, -100), (720, 0), (720, 33)])
def test_an_untouched_crop_comes_back(wide, side, degrees):
    photo = wide
    matrix = alignment.crop_matrix(points(410, 395, side / 2, degrees), 512)
    crop, _ = alignment.cut(photo, matrix, 512)
    out, share = alignment.paste(photo, [crop], [matrix])
    assert psnr(out[share > 0], photo[share > 0]) >= 51
    assert (
        torch.equal(out[share == 0], photo[share == 0]) and 0.8 * side**2 < float((share > 0).sum()) <= 1.02 * side**2
    )


def test_a_crop_of_twice_the_size_fits():
    """As an upscaler gives it."""
    photo = noise(300, 300, 0.08)
    face = points(150, 140, 60, 25)
    transform = alignment.FaceTransform(0, 0, alignment.crop_matrix(face, 128), 128)
    large, _ = alignment.cut(photo, alignment.crop_matrix(face, 256), 256)
    out, share = alignment.paste(photo, [large], [transform.for_size(256)])
    assert psnr(out, photo) > 50
    assert torch.allclose(transform.for_size(128), transform.matrix)


def test_detail_finer_than_the_photo_is_averaged():
    """A checkerboard of single crop pixels, four to a photo's pixel, comes out grey, not as a pattern."""
    board = (torch.arange(256)[:, None] + torch.arange(256)).remainder(2).double()[..., None].expand(-1, -1, 3)
    out, share = alignment.paste(
        torch.zeros(100, 100, 3), [board], [alignment.crop_matrix(points(50, 50, 32, 10), 256)]
    )
    assert float((out[share == 1] - 0.5).abs().max()) < 0.01


def test_landmarks_two_pixels_aside_change_little():
    """The face's square, and what is pasted, move by a few pixels; an untouched crop still comes back."""
    photo, generator = noise(400, 400, 0.1), torch.Generator().manual_seed(1)
    face = points(200, 200, 90, 15)

    def inverted(face):
        matrix = alignment.crop_matrix(face, 256)
        crop, _ = alignment.cut(photo, matrix, 256)
        assert psnr(alignment.paste(photo, [crop], [matrix])[0], photo) > 50
        return alignment.paste(photo, [1 - crop], [matrix])[0]

    before = inverted(face)
    for _ in range(4):
        aside = torch.nn.functional.normalize(torch.randn(3, 2, generator=generator, dtype=DOUBLE), dim=1) * 2
        corners = [
            alignment.crop_matrix(f, 1) @ torch.tensor([[0.0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]], dtype=DOUBLE)
            for f in (face, face + aside)
        ]
        assert float((corners[1] - corners[0]).norm(dim=0).max()) < 16
        assert float((inverted(face + aside) - before).abs().mean()) < 0.01


# --- what is replaced


def test_nothing_else_changes():
    photo = random(90, 120, 3).half()
    matrix = alignment.crop_matrix(points(60, 45, 30, 40), 64)
    crop = random(64, 64, 3, seed=1).float()
    out, share = alignment.paste(photo, [crop], [matrix], 0.2)
    assert out.dtype == photo.dtype and torch.equal(out[share == 0], photo[share == 0])
    assert float((out[share > 0] - photo[share > 0]).abs().min(dim=0).values.max()) >= 0 and not torch.equal(out, photo)
    for nothing in (dict(opacity=0.0), dict(masks=[torch.zeros(8, 8)])):
        same, none = alignment.paste(photo, [crop], [matrix], 0.2, **nothing)
        assert torch.equal(same, photo) and not none.any()
    away = alignment.crop_matrix(points(-400, 45, 30), 64)
    assert torch.equal(alignment.paste(photo, [crop], [away])[0], photo)
    assert torch.equal(alignment.paste(photo, [], [])[0], photo)


def test_overlapping_faces_are_blended_once():
    """The share is the larger of both, in any order; twice the same crop is once the crop; each middle shows its own
    crop.
    """
    photo = noise(120, 160, 0.1)
    matrices = [alignment.crop_matrix(points(x, 60, 40, d), 96) for x, d in ((60, 10), (84, -15))]
    white, black = torch.ones(96, 96, 3, dtype=DOUBLE), torch.zeros(96, 96, 3, dtype=DOUBLE)
    singles = [alignment.paste(photo, [crop], [matrix], 0.3) for crop, matrix in zip((white, black), matrices)]
    out, share = alignment.paste(photo, [white, black], matrices, 0.3)
    turned, _ = alignment.paste(photo, [black, white], matrices[::-1], 0.3)
    assert torch.allclose(out, turned, atol=1e-12)
    assert torch.equal(share, torch.maximum(singles[0][1], singles[1][1]))
    alone = (singles[1][1] == 0) & (share > 0)
    assert torch.allclose(out[alone], singles[0][0][alone], atol=1e-12)
    assert float(out[60, 60].min()) > 0.8 and float(out[60, 84].max()) < 0.2
    one, _ = alignment.paste(photo, [white], matrices[:1], 0.3)
    two, _ = alignment.paste(photo, [white, white], matrices[:1] * 2, 0.3)
    assert torch.allclose(one, two, atol=1e-12)
    crops = [alignment.cut(photo, matrix, 96)[0] for matrix in matrices]
    assert psnr(alignment.paste(photo, crops, matrices, 0.3)[0], photo) > 50


def test_only_the_surroundings_of_a_face_are_computed(monkeypatch):
    """A face of 200 pixels in a photo of 4K: no step works on more than its box, and its detail comes at the photo's
    resolution.
    """
    worked = []
    for name in ("sampled", "blurred"):

        def watched(picture, *rest, was=getattr(alignment, name)):
            worked.append(picture.shape[0] * picture.shape[1])
            result = was(picture, *rest)
            worked.append(result.shape[0] * result.shape[1])
            return result

        monkeypatch.setattr(alignment, name, watched)
    photo = torch.zeros(2160, 3840, 3)
    photo[1000:1200, 3000:3200] = random(200, 200, 3).float()
    matrix = alignment.crop_matrix(points(3100, 1100, 100, 30), 128)
    crop, _ = alignment.cut(photo, matrix, 128)
    out, share = alignment.paste(photo, [crop], [matrix])
    assert max(worked) < 320**2 and out.shape == photo.shape and 0 < int((share > 0).sum()) <= 41_000


# --- several faces, several frames


def test_numbers_of_single_photos():
    large, small = points(100, 50, 40), points(30, 50, 20)
    assert alignment.numbered([[small, large], [small], []]) == [{0: large, 1: small}, {0: small}, {}]


def test_a_film_is_smoothed():
    """p~_t = s p~_(t-1) + (1 - s) p_t; numbers stay although the smaller face grows; a gap begins anew; so does a cut."""
    steps = torch.arange(5, dtype=DOUBLE)
    one = [points(100 + 3 * float(t), 60, 30) for t in steps]
    two = [points(260, 60, 24 + 3 * float(t)) for t in steps]
    film = alignment.numbered([[a, b] for a, b in zip(one, two)], 0.6)
    expected = one[0]
    for frame, points_of in zip(film, one):
        expected = 0.6 * expected + 0.4 * points_of if points_of is not one[0] else points_of
        assert set(frame) == {0, 1} and torch.allclose(frame[0], expected)
    assert alignment.side(film[4][1]) > alignment.side(film[4][0])
    gap = alignment.numbered([[one[0], two[0]], [two[0]], [one[2], two[0]]], 0.6)
    assert [set(frame) for frame in gap] == [{0, 1}, {1}, {0, 1}] and torch.equal(gap[2][0], one[2])
    cut = alignment.numbered([[one[0]], [points(500, 300, 30)]], 0.6)
    assert torch.equal(cut[1][0], points(500, 300, 30))


def test_smoothing_calms_a_trembling_face():
    generator = torch.Generator().manual_seed(2)
    frames = [[points(100, 100, 40) + torch.randn(3, 2, generator=generator, dtype=DOUBLE)] for _ in range(60)]
    spread = lambda film: torch.stack([frame[0] for frame in film]).diff(dim=0).norm(dim=-1).mean()
    assert spread(alignment.numbered(frames, 0.8)) < 0.35 * spread(alignment.numbered(frames))
