"""FastSAM's decoder, masks and prompts against literal implementations in float64, and mutants that must fail."""

import importlib
import itertools
import math
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

MODULES = ["contract", "preprocess", "candidates", "masks", "prompts", "crops"]
REAL = types.SimpleNamespace(**{name: importlib.import_module(f"portrait_atelier.segmentation.{name}") for name in MODULES})
# height, width, longer side, fixed input: portrait, landscape, tiny, thin, odd paddings, a fixed input with padding on either axis
SHAPES = [(151, 268, 256, None), (268, 151, 256, None), (40, 40, 128, None), (1, 500, 128, None), (50, 71, 160, None), (71, 50, 160, None),
          (50, 71, 1024, (128, 192)), (90, 33, 1024, (96, 96))]


# ---- the literal implementation -------------------------------------------------------------------------------------------

class Literal:
    """The network's tensors to boxes and masks, one number at a time where that is bearable."""

    def __init__(self, h, w, size, fixed):
        self.h, self.w = h, w
        H, W = fixed or (size, size)
        self.s = min(H / h, W / w)
        self.n_h, self.n_w = max(1, round(h * self.s)), max(1, round(w * self.s))
        self.H = fixed[0] if fixed else math.ceil(self.n_h / 32) * 32
        self.W = fixed[1] if fixed else math.ceil(self.n_w / 32) * 32
        self.top, self.left = math.floor((self.H - self.n_h) / 2), math.floor((self.W - self.n_w) / 2)

    def input(self, image):
        out = np.full((3, self.H, self.W), 114 / 255)
        for channel in range(3):
            small = bilinear(image[:, :, channel], *((np.arange(n) + .5) * side / n for n, side in ((self.n_h, self.h), (self.n_w, self.w))))
            out[channel, self.top:self.top + self.n_h, self.left:self.left + self.n_w] = np.round(small * 255) / 255
        return out

    def boxes(self, A, P, conf, iou, max_det, reference):
        """-> boxes in input pixels, in image pixels, scores, coefficients."""
        found = []
        for n in range(A.shape[1]):
            score = max(A[4:A.shape[0] - P, n])
            if score > conf:
                cx, cy, bw, bh = A[:4, n]
                found.append((score, (cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2), A[A.shape[0] - P:, n]))
        found = sorted(found, key=lambda entry: -entry[0])[:30000]
        kept = []
        for entry in found:
            if all(overlap(entry[1], other[1]) <= iou for other in kept):
                kept.append(entry)
        kept = kept[:max_det]
        F = (0, 0, self.W, self.H) if reference else (self.left, self.top, self.left + self.n_w, self.top + self.n_h)
        inner, outer = [], []
        for _, (x1, y1, x2, y2), _ in kept:
            x1, y1 = F[0] if x1 < F[0] + 20 else x1, F[1] if y1 < F[1] + 20 else y1
            x2, y2 = F[2] if x2 > F[2] - 20 else x2, F[3] if y2 > F[3] - 20 else y2
            box = F if overlap((x1, y1, x2, y2), F) > .9 else (x1, y1, x2, y2)
            sx, sy = (self.s, self.s) if reference else (self.n_w / self.w, self.n_h / self.h)
            inner.append(box)
            outer.append([min(max((value - shift) / scale, 0), limit) for value, shift, scale, limit in
                          zip(box, (self.left, self.top) * 2, (sx, sy) * 2, (self.w, self.h) * 2)])
        return inner, outer, [entry[0] for entry in kept], [entry[2] for entry in kept]

    def values(self, m, mode):
        """Logits of a mask as the mode reads them at every pixel of the picture, without the box."""
        H, W = m.shape
        if mode == "image":
            return bilinear(m, ((np.arange(self.h) + .5) * self.n_h / self.h + self.top) / 4,
                            ((np.arange(self.w) + .5) * self.n_w / self.w + self.left) / 4)
        g = min(H / self.h, W / self.w)
        py, px = (H - self.h * g) / 2, (W - self.w * g) / 2
        window = m[math.floor(py):math.floor(H - py), math.floor(px):math.floor(W - px)]
        return bilinear(window, (np.arange(self.h) + .5) * window.shape[0] / self.h, (np.arange(self.w) + .5) * window.shape[1] / self.w)

    def prototype(self, m, box):
        H, W = m.shape
        boxed = np.array([[m[i, j] if box[0] / 4 <= j < box[2] / 4 and box[1] / 4 <= i < box[3] / 4 else 0 for j in range(W)] for i in range(H)])
        large = bilinear(boxed, (np.arange(self.H) + .5) / 4, (np.arange(self.W) + .5) / 4)
        rows = [self.top + math.floor((v + .5) * self.n_h / self.h) for v in range(self.h)]
        columns = [self.left + math.floor((u + .5) * self.n_w / self.w) for u in range(self.w)]
        return large[np.ix_(rows, columns)]


def bilinear(grid, ys, xs):
    """Values at continuous positions (cell i is centred at i + 1/2), clamped at the border."""
    def weights(positions, length):
        p = np.clip(positions - .5, 0, length - 1)
        low = np.minimum(np.floor(p).astype(int), max(length - 2, 0))
        return low, np.minimum(low + 1, length - 1), p - low
    y0, y1, fy = weights(ys, grid.shape[0])
    x0, x1, fx = weights(xs, grid.shape[1])
    return ((grid[np.ix_(y0, x0)] * (1 - fx) + grid[np.ix_(y0, x1)] * fx) * (1 - fy)[:, None]
            + (grid[np.ix_(y1, x0)] * (1 - fx) + grid[np.ix_(y1, x1)] * fx) * fy[:, None])


def overlap(a, b):
    common = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def tensors(literal, seed, classes=1, count=6, candidates=40):
    """A table of candidates (duplicates, some near the border, some over all of it) and wavy prototypes; half of the columns are noise."""
    rng = np.random.default_rng(seed)
    W, H, rows = literal.W, literal.H, []
    for n in range(candidates):
        kind = n % 4
        x1, y1 = rng.uniform(-5, W * .6), rng.uniform(-5, H * .6)
        x2, y2 = x1 + rng.uniform(8, W * .6), y1 + rng.uniform(8, H * .6)
        if kind == 1 and rows:
            (cx, cy, w, h), jitter = rows[-1][:4], rng.uniform(-.04, .04, 2)
            x1, x2, y1, y2 = cx - w / 2, cx + w / 2 + w * jitter[0], cy - h / 2, cy + h / 2 + h * jitter[1]
        if n in (3, 11):            # over all of it but a strip of 7 %: no side within 20 pixels on the larger inputs, and yet the frame
            x1, y1, x2, y2 = literal.left + literal.n_w * .07 * (n == 3), literal.top, literal.left + literal.n_w, literal.top + literal.n_h * (1 - .07 * (n == 11))
        if kind == 2 and n % 8 == 2:
            x1, y1, x2, y2 = (literal.left + rng.uniform(-3, 9), literal.top + rng.uniform(-3, 9),
                              literal.left + literal.n_w - rng.uniform(-3, 9), literal.top + literal.n_h - rng.uniform(-3, 9))
        low = .99 if n in (3, 11) else .1
        rows.append([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, *rng.uniform(low, 1, classes), *rng.normal(0, 1, count)])
    y, x = np.mgrid[:H // 4, :W // 4]
    waves = [np.sin(x * rng.uniform(.1, .7) + y * rng.uniform(.1, .7) + rng.uniform(0, 6)) + rng.normal() * .3 for _ in range(count)]
    return np.array(rows).T.astype(np.float32), np.array(waves).astype(np.float32)


# ---- checks, which mutants must fail ---------------------------------------------------------------------------------------

def check_input(pack):
    for number, (h, w, size, fixed) in enumerate(SHAPES):
        literal = Literal(h, w, size, fixed)
        geometry = pack.preprocess.plan(h, w, size, fixed)
        assert (geometry.input_height, geometry.input_width) == (literal.H, literal.W)
        assert (geometry.rows, geometry.columns, geometry.top, geometry.left) == (literal.n_h, literal.n_w, literal.top, literal.left)
        assert geometry.scale == literal.s
        image = torch.rand(h, w, 3, generator=torch.Generator().manual_seed(number))
        ours, expected = pack.preprocess.fit(image, geometry)[0].double().numpy(), literal.input(image.double().numpy())
        error = np.abs(ours - expected)
        assert (error > 1e-6).mean() < 1e-3 and error.max() < 1.01 / 255      # float32 may round a tie to the other level


def check_boxes(pack, reference=False):
    for number, (h, w, size, fixed) in enumerate([*SHAPES, (300, 402, 1024, None)]):
        literal = Literal(h, w, size, fixed)
        A, B = tensors(literal, number, classes=1 + 2 * (number % 2))
        geometry = pack.preprocess.plan(h, w, size, fixed)
        found = pack.candidates.candidates(torch.from_numpy(A), len(B), .3, .9, 30)
        inner = pack.candidates.snap(found.boxes, pack.candidates.frame(geometry, reference))
        outer = pack.candidates.to_image(inner, geometry, reference)
        boxes, image_boxes, scores, coefficients = literal.boxes(A.astype(np.float64), len(B), .3, .9, 30, reference)
        assert 5 < len(boxes) == len(found.boxes)
        assert np.allclose(inner, boxes, atol=1e-3) and np.allclose(outer, image_boxes, atol=1e-3 * max(1, 1 / literal.s))
        assert np.allclose(found.scores, scores) and np.array_equal(found.coefficients, np.array(coefficients, np.float32))
        assert found.best == pytest.approx(A[4:len(A) - len(B)].max())


def check_masks(pack, mode):
    seen = 0
    for number, (h, w, size, fixed) in enumerate(SHAPES):
        literal = Literal(h, w, size, fixed)
        A, B = tensors(literal, number, candidates=12)
        geometry = pack.preprocess.plan(h, w, size, fixed)
        image = torch.zeros(h, w, 3)
        found = pack.masks.segments(torch.from_numpy(A), torch.from_numpy(B), geometry, image, .3, .9, 5, mode)
        inner, outer, _, coefficients = literal.boxes(A.astype(np.float64), len(B), .3, .9, 5, mode == "reference")
        assert found.masks.dtype == torch.bool and found.masks.shape == (len(outer), h, w) and found.image is image
        for mask, box_in, box, c in zip(found.masks.numpy(), inner, outer, coefficients):
            m = np.einsum("p,phw->hw", c.astype(np.float64), B.astype(np.float64))
            if mode == "prototype":
                values = literal.prototype(m, box_in)
                near = (np.abs(values) < 1e-4) & (values != 0)          # exactly 0 is outside the box
                assert all(abs(side / 4 - round(side / 4)) > 1e-4 or side == round(side) for side in box_in)
                inside = np.ones_like(mask)
            else:
                values = literal.values(m, mode)
                x, y = np.arange(w), np.arange(h)
                inside = ((box[0] <= x) & (x < box[2]))[None] & ((box[1] <= y) & (y < box[3]))[:, None]
                edges = [np.abs(axis[:, None] - np.array(box)[None, sides]).min(1) for axis, sides in ((x, [0, 2]), (y, [1, 3]))]
                unsure = [(edge < 1e-3) & (edge > 0) for edge in edges]
                near = (np.abs(values) < 1e-3) | unsure[0][None] | unsure[1][:, None]
            assert near.mean() < .05 or min(h, w) < 3
            assert np.array_equal(mask[~near], ((values > 0) & inside)[~near]), (h, w, mode)
            seen += int(mask.any() and not mask.all())
    assert seen > 10


def five_masks(seed=0):
    """Five overlapping rectangles on 20 x 30 whose areas differ."""
    masks = torch.zeros(5, 20, 30, dtype=torch.bool)
    for i, (y1, y2, x1, x2) in enumerate([(2, 9, 3, 12), (1, 19, 2, 28), (10, 15, 15, 26), (4, 8, 5, 9), (12, 14, 1, 20)]):
        masks[i, y1:y2, x1:x2] = True
    return masks


def check_bookkeeping(pack):
    """All 32 filter patterns of five masks: whatever is filtered, the answer is the best of those left, by its own number."""
    masks, prompts = five_masks(), pack.prompts
    boxes = [(3, 2, 12, 9), (14, 10, 27, 15), (5, 4, 9, 9), (0, 0, 30, 20), (1, 12, 20, 13)]
    embeddings = torch.eye(5)[:, :4] + torch.arange(5)[:, None] * .01
    text = torch.tensor([.1, .3, .2, .4])
    cosines = [float(e @ text / e.norm() / text.norm()) for e in embeddings]
    def iou(i, box):
        inside = torch.zeros(20, 30, dtype=torch.bool)
        inside[box[1]:box[3], box[0]:box[2]] = True
        return int((masks[i] & inside).sum()) / int((masks[i] | inside).sum())
    for pattern in itertools.product([False, True], repeat=5):
        kept = [i for i in range(5) if pattern[i]]
        for box in boxes:
            best = [i for i in kept if iou(i, box) > 0 and iou(i, box) == max(iou(j, box) for j in kept)][:1]
            assert prompts.by_boxes(masks, kept, [box]) == best
        union = prompts.by_boxes(masks, kept, boxes)
        assert len(set(union)) == len(union) and set(union) == {i for box in boxes for i in prompts.by_boxes(masks, kept, [box])}
        assert prompts.everything(masks, kept) == sorted(kept, key=lambda i: -masks[i].sum().item())
        if kept:
            ranked = sorted(kept, key=lambda i: -cosines[i])
            rows = embeddings[kept] * 3
            assert prompts.by_text(rows, text * 7, kept, "best", 1) == ranked[:1]
            assert prompts.by_text(rows, text, kept, "top k", 3) == ranked[:3]
            weights = {i: math.exp(100 * cosines[i]) for i in kept}
            for share in (0.0, 1e-3, .05, 1.0):
                assert prompts.by_text(rows, text, kept, "threshold", share) == [i for i in ranked if weights[i] >= share * weights[ranked[0]]]


def check_points(pack):
    masks = five_masks()
    places = [(7, 5), (15, 3), (20, 12), (4, 12), (29, 19)]
    for kept, count in itertools.product(([0, 1, 2, 3, 4], [0, 3, 4], [1], []), (1, 2)):
        for positive, negative in itertools.product(itertools.combinations(places, count), [(), (places[0],), (places[1],), (places[2], places[3])]):
            painted, wanted, unwanted = np.zeros((20, 30), bool), np.zeros((20, 30), bool), np.zeros((20, 30), bool)
            for i in sorted(kept, key=lambda i: masks[i].sum().item(), reverse=True):
                area = masks[i].numpy()
                if any(area[y, x] for x, y in positive):
                    painted[area] = wanted[area] = True
                if any(area[y, x] for x, y in negative):
                    painted[area], unwanted[area] = False, True
            assert np.array_equal(pack.prompts.by_points(masks, kept, positive, negative, "paint"), painted)
            assert np.array_equal(pack.prompts.by_points(masks, kept, positive, negative, "subtract"), wanted & ~unwanted)


def check_dedupe(pack):
    masks = torch.zeros(4, 10, 20, dtype=torch.bool)
    masks[0, :, :10], masks[1, :, :9], masks[2, :, 5:15], masks[3, :, :20] = True, True, True, True
    # IoU: 0-1 0.9, 0-2 1/3, 1-2 4/15, 3-0 0.5, 3-2 0.5, 3-1 0.45
    kept = [0, 1, 2, 3]
    assert pack.prompts.everything(masks, kept) == [3, 0, 2, 1]
    assert pack.prompts.everything(masks, kept, .91) == [3, 0, 2, 1]
    assert pack.prompts.everything(masks, kept, .89) == [3, 0, 2]
    assert pack.prompts.everything(masks, kept, .48) == [3, 1]
    assert pack.prompts.everything(masks, kept, .3) == [3]
    assert pack.prompts.everything(masks, [0, 1, 2], .3) == [0]
    assert pack.prompts.everything(masks, [1, 2], .3) == [2, 1]
    assert pack.prompts.everything(masks, [1, 2], .2) == [2]


CHECKS = {"input": check_input, "boxes": check_boxes, "reference boxes": lambda pack: check_boxes(pack, True),
          **{f"{mode} masks": (lambda pack, mode=mode: check_masks(pack, mode)) for mode in ("image", "prototype", "reference")},
          "bookkeeping": check_bookkeeping, "points": check_points, "dedupe": check_dedupe}


@pytest.mark.parametrize("name", CHECKS)
def test_equals_the_literal_implementation(name):
    CHECKS[name](REAL)


MUTANTS = [
    ("input", "preprocess", "(inner[0] - rows) // 2", "(inner[0] - rows + 1) // 2"),                     # padding split the other way
    ("input", "preprocess", "(inner[0] - rows) // 2, (inner[1] - columns) // 2", "(inner[1] - columns) // 2, (inner[0] - rows) // 2"),
    ("input", "preprocess", "image.float()", "image.flip(-1).float()"),                                  # BGR
    ("input", "preprocess", "114 / 255", "0.5"),
    ("input", "preprocess", "round(height * scale)", "int(height * scale)"),
    ("input", "preprocess", ".round() / 255", " / 255"),
    ("input", "preprocess", 'mode="bilinear"', 'mode="bilinear", antialias=True'),
    ("input", "preprocess", 'mode="bilinear"', 'mode="bilinear", align_corners=True'),
    ("input", "preprocess", "-(-rows // STRIDE) * STRIDE", "box[0]"),                                    # always square
    ("input", "preprocess", "min(box[0] / height, box[1] / width)", "min(1, box[0] / height, box[1] / width)"),    # never enlarged
    ("boxes", "candidates", "table[2:4, chosen].T / 2", "table[2:4, chosen].T"),                         # corners at w instead of w/2
    ("boxes", "candidates", ".amax(0)", "[0]"),                                                           # first class only
    ("boxes", "candidates", "prototypes:, chosen[kept]]", "prototypes:, kept]"),
    ("boxes", "candidates", "nms(boxes, scores[chosen], iou)", "nms(boxes, scores[chosen], 1.0)"),
    ("boxes", "candidates", "low + NEAR", "NEAR"),                                                       # the input's border, not the picture's
    ("boxes", "candidates", "overlap / (area + (high - low).prod() - overlap)", "overlap / (area + (high - low).prod())"),
    ("boxes", "candidates", "torch.where(whole[:, None], border, boxes)", "boxes"),
    ("boxes", "candidates", "torch.where(whole[:, None], border, boxes)", "torch.where(whole.any(), border, boxes)"),
    ("boxes", "candidates", "(geometry.columns / geometry.width, geometry.rows / geometry.height)", "(geometry.rows / geometry.height, geometry.columns / geometry.width)"),
    ("boxes", "candidates", "boxes - shift", "boxes"),
    ("reference boxes", "candidates", "(geometry.scale,) * 2 if reference else ", ""),
    ("reference boxes", "candidates", "if reference else geometry.content", "if not reference else geometry.content"),
    ("image masks", "masks", "geometry.top) / geometry.input_height", "geometry.left) / geometry.input_height"),
    ("image masks", "masks", "+ 0.5 for", "for"),                                                        # pixel corners
    ("image masks", "masks", "align_corners=False", "align_corners=True"),
    ("image masks", "masks", 'indexing="xy"), -1)', 'indexing="xy")[::-1], -1)'),                         # x and y exchanged
    ("image masks", "masks", "math.ceil(side)", "int(side)"),
    ("image masks", "masks", "return slice(max(y1, 0), max(min(y2, height), 0)), slice(max(x1, 0), max(min(x2, width), 0))",
     "return slice(0, height), slice(0, width)"),                                                        # no box test
    ("reference masks", "masks", "int(height - y)", "math.ceil(height - y)"),
    ("reference masks", "masks", "logits[int(y)", "logits[round(y)"),
    ("reference masks", "masks", "gain = min(", "gain = max("),
    ("prototype masks", "masks", "inside(box / CELL", "inside(box"),
    ("prototype masks", "masks", "nearest-exact", "nearest"),
    ("prototype masks", "masks", "inner[i] if", "boxes[i] if"),
    ("prototype masks", "masks", "mask[..., y1:y2, x1:x2]", "mask[..., :y2 - y1, :x2 - x1]"),
    ("bookkeeping", "prompts", "kept[scores.index(max(scores))]", "scores.index(max(scores))"),          # position instead of number
    ("bookkeeping", "prompts", "kept[scores.index(max(scores))]", "scores.index(max(scores)) + len(masks) - len(kept)"),   # an offset
    ("bookkeeping", "prompts", "return [kept[position] for position in order[", "return [position for position in order["),
    ("dedupe", "prompts", "first + second - common", "first + second"),
    ("bookkeeping", "prompts", "first + second - common", "second"),
    ("bookkeeping", "prompts", "masks[i, y1:y2, x1:x2]", "masks[i, x1:x2, y1:y2]"),
    ("bookkeeping", "prompts", "list(dict.fromkeys(chosen))", "chosen"),
    ("bookkeeping", "prompts", "(100 * cosine)", "(cosine)"),
    ("bookkeeping", "prompts", "normalize(images.float(), dim=-1)", "normalize(images.float(), dim=0)"),
    ("bookkeeping", "prompts", ">= amount * best", ">= amount"),
    ("points", "prompts", "masks[i, y, x] for", "masks[i, min(x, 19), y] for"),
    ("points", "prompts", "-int(masks[i].sum()))", "int(masks[i].sum()))"),                              # smallest first
    ("points", "prompts", 'region & ~taken if rule == "subtract" else region', "region & ~taken"),
    ("dedupe", "prompts", "first + second - common", "min(first, second)"),
    ("dedupe", "prompts", "for j in chosen if areas[i] > dedupe", "for j in kept if i != j and areas[i] > dedupe"),
]


@pytest.fixture
def mutant(tmp_path):
    """mutant(module, old, new): the folder segmentation/ with one line changed, as a package of its own."""
    def build(module, old, new):
        folder = tmp_path / "segmentation_mutant"
        shutil.copytree(Path(REAL.masks.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
        path = folder / f"{module}.py"
        source = path.read_text(encoding="utf-8")
        assert old in source
        path.write_text(source.replace(old, new), encoding="utf-8")
        return types.SimpleNamespace(**{name: importlib.import_module(f"{folder.name}.{name}") for name in MODULES})

    sys.path.insert(0, str(tmp_path))
    importlib.invalidate_caches()
    yield build
    sys.path.remove(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "segmentation_mutant"]:
        del sys.modules[name]


@pytest.mark.parametrize("check, module, old, new", MUTANTS)
def test_mutants_fail(mutant, check, module, old, new):
    pack = mutant(module, old, new)
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        CHECKS[check](pack)


# ---- cases by hand ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("picture, fixed, size, rows, columns, top, left", [
    ((603, 1072), None, (576, 1024), 576, 1024, 0, 0), ((1072, 603), None, (1024, 576), 1024, 576, 0, 0),
    ((40, 40), None, (1024, 1024), 1024, 1024, 0, 0), ((1, 5000), None, (32, 1024), 1, 1024, 15, 0),
    ((1024, 1024), None, (1024, 1024), 1024, 1024, 0, 0), ((500, 700), None, (736, 1024), 731, 1024, 2, 0),
    ((500, 700), (640, 640), (640, 640), 457, 640, 91, 0), ((700, 500), (640, 960), (640, 960), 640, 457, 0, 251),
    ((6000, 4000), None, (1024, 704), 1024, 683, 0, 10),
])
def test_where_pictures_lie(picture, fixed, size, rows, columns, top, left):
    found = REAL.preprocess.plan(*picture, 1024, fixed)
    assert (found.input_height, found.input_width) == size
    assert (found.rows, found.columns, found.top, found.left) == (rows, columns, top, left)
    assert found.content == (left, top, left + columns, top + rows)


@pytest.mark.parametrize("picture, place", [((603, 1072), (301, 20)), ((1072, 603), (5, 590)), ((40, 40), (39, 0)), ((500, 700), (250, 699))])
def test_a_pixel_maps_there_and_back(picture, place):
    geometry = REAL.preprocess.plan(*picture, 1024)
    image = torch.zeros(*picture, 3)
    image[place] = 1
    light = REAL.preprocess.fit(image, geometry)[0, 1]
    x1, y1, x2, y2 = geometry.content
    light = torch.where(torch.arange(light.shape[1]) < x2, light, 0) * ((torch.arange(len(light)) >= y1) & (torch.arange(len(light)) < y2))[:, None]
    y = float((light.sum(1) * (torch.arange(len(light)) + .5)).sum() / light.sum())
    x = float((light.sum(0) * (torch.arange(light.shape[1]) + .5)).sum() / light.sum())
    box = REAL.candidates.to_image(torch.tensor([[x, y, x, y]]), geometry, False)[0]
    assert abs(float(box[0]) - place[1] - .5) < .5 and abs(float(box[1]) - place[0] - .5) < .5


def rows(*boxes, scores=None, count=2):
    """A table of candidates from corners."""
    columns = [[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, score, *range(10 * i, 10 * i + count)]
               for i, ((x1, y1, x2, y2), score) in enumerate(zip(boxes, scores or [.9] * len(boxes)))]
    return torch.tensor(columns, dtype=torch.float32).T


def test_duplicates():
    """IoU 0.95 is suppressed at 0.9, 0.85 is not, and the higher score stays."""
    table = rows((0, 0, 100, 95), (0, 0, 100, 100), (200, 0, 300, 85), (200, 0, 300, 100), scores=[.8, .9, .7, .6])
    found = REAL.candidates.candidates(table, 2, .4, .9, 300)
    assert found.boxes.tolist() == [[0, 0, 100, 100], [200, 0, 300, 85], [200, 0, 300, 100]]
    assert found.coefficients[:, 0].tolist() == [10, 20, 30]


def test_ties_keep_their_order_and_the_most_is_a_limit():
    table = rows(*[(50 * i, 0, 50 * i + 40, 40) for i in range(20)])
    assert REAL.candidates.candidates(table, 2, .4, .9, 300).coefficients[:, 0].tolist() == list(range(0, 200, 10))
    assert REAL.candidates.candidates(table, 2, .4, .9, 3).coefficients[:, 0].tolist() == [0, 10, 20]


def test_the_threshold_is_not_reached_by_equality():
    table = rows((0, 0, 9, 9), (20, 0, 29, 9), scores=[.5, .5000001])
    found = REAL.candidates.candidates(table, 2, .5, .9, 300)
    assert len(found.boxes) == 1 and found.boxes[0, 0] == 20
    nothing = REAL.candidates.candidates(table, 2, .75, .9, 300)
    assert nothing.boxes.shape == (0, 4) and nothing.coefficients.shape == (0, 2) and nothing.best == pytest.approx(.5)


def test_only_the_best_30000_are_compared(monkeypatch):
    monkeypatch.setattr(REAL.candidates, "MOST", 3)
    table = rows(*[(50 * i, 0, 50 * i + 40, 40) for i in range(5)], scores=[.5, .9, .6, .8, .7])
    assert REAL.candidates.candidates(table, 2, .4, .9, 300).coefficients[:, 0].tolist() == [10, 30, 40]


def test_snapping_at_19_9_and_20():
    border = torch.tensor([100., 0, 900, 640])
    boxes = torch.tensor([[119.9, 19.9, 500, 500], [120, 20, 880, 620], [300, 300, 880.1, 620.1], [90, -3, 910, 700]])
    assert torch.equal(REAL.candidates.snap(boxes, border), torch.tensor([[100., 0, 500, 500], [120, 20, 880, 620], [300, 300, 900, 640], [100, 0, 900, 640]]))


@pytest.mark.parametrize("whole", [0, 1, 3])
def test_any_number_of_boxes_may_fill_the_frame(whole):
    """Each becomes the frame and keeps its place; the published tool fails at two."""
    border = torch.tensor([0., 0, 1000, 1000])
    boxes = torch.tensor([[0., 0, 1000, 930 + 5 * i] for i in range(whole)] + [[40., 40, 500, 500], [0, 0, 1000, 890]])
    assert REAL.candidates.snap(boxes, border).tolist() == [[0, 0, 1000, 1000]] * whole + [[40, 40, 500, 500], [0, 0, 1000, 890]]


def names_and_arrays(C=1, P=3, H=64, W=96, transposed=False, swapped=False, dtype=np.float32):
    N = H * W // 64 + H * W // 256 + H * W // 1024
    A, B = np.zeros((1, 4 + C + P, N), dtype), np.zeros((1, P, H // 4, W // 4), dtype)
    A[0] = np.arange(A[0].size).reshape(A[0].shape) % 997
    B[0, 0] = 3
    A = A.transpose(0, 2, 1) if transposed else A
    return (["output1", "output0"], [B, A]) if swapped else (["output0", "output1"], [A, B])


@pytest.mark.parametrize("options", [{}, {"transposed": True}, {"swapped": True}, {"C": 3}, {"C": 3, "transposed": True}, {"dtype": np.float16},
                                     {"P": 32, "H": 576, "W": 1024}])
def test_outputs_are_found_by_their_rank(options):
    names, arrays = names_and_arrays(**options)
    size = (options.get("H", 64), options.get("W", 96))
    table, prototypes = REAL.contract.split_outputs(names, arrays, size)
    A = next(array for array in arrays if array.ndim == 3)[0]
    assert np.array_equal(table, (A.T if options.get("transposed") else A).astype(np.float32)) and table.dtype == torch.float32
    assert len(table) == 4 + options.get("C", 1) + options.get("P", 3) and prototypes.shape == (options.get("P", 3), size[0] // 4, size[1] // 4)
    if options.get("P") == 32:
        assert table.shape == (37, 12096) and prototypes.shape == (32, 144, 256)


def test_of_several_outputs_the_known_names_count():
    names, (A, B) = names_and_arrays()
    table, prototypes = REAL.contract.split_outputs(["a", "b", *names], [A + 1, B + 1, A, B], (64, 96))
    assert np.array_equal(table, A[0]) and np.array_equal(prototypes, B[0])


@pytest.mark.parametrize("change, message", [
    (lambda A, B: [A], "one output of three dimensions and one of four.*'a' .1, 8, 126."),
    (lambda A, B: [A[0], B], "one output of three"),
    (lambda A, B: [np.zeros((1, 300, 9), np.float32), B], "suppression is built into it.*'a' .1, 300, 9., 'b' .1, 3, 16, 24."),
    (lambda A, B: [A[:, :7], B], "7 rows are too few for a box, a score and 3 prototypes"),
    (lambda A, B: [A, B[:, :, :8]], "prototypes of an input of 96 x 64 must be 24 x 16"),
    (lambda A, B: [np.concatenate([A, A]), B], "of one picture"),
    (lambda A, B: [A * np.float32("nan"), B], "NaN or infinite.*provider cpu"),
    (lambda A, B: [A, B + np.float32("inf")], "NaN or infinite"),
])
def test_other_outputs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        REAL.contract.split_outputs(["a", "b"], change(*names_and_arrays()[1]), (64, 96))


def test_declared_inputs():
    assert REAL.contract.fixed_size([1, 3, 640, 1024], "images") == (640, 1024)
    assert REAL.contract.fixed_size(["batch", 3, "height", None], "images") is None
    for shape in ([1, 3, 640], [8, 3, 640, 640], [1, 1, 640, 640], [1, 3, 650, 640], [1, 3, 0, 640]):
        with pytest.raises(ValueError, match="'images' of shape.*no FastSAM.*batch 1"):
            REAL.contract.fixed_size(shape, "images")
    assert REAL.contract.fixed_size([1, 3, 4096, 4096], "images") == (4096, 4096)
    for shape in ([1, 3, 4128, 64], [1, 3, 64, 4128]):
        with pytest.raises(ValueError, match="'images' of .* pixels, more than the 4096 x 4096"):
            REAL.contract.fixed_size(shape, "images")


def test_outputs_that_are_too_large():
    for size, most in (((64, 64), 2**20), ((1024, 512), 16 * 1024 * 512)):
        REAL.contract.check_outputs([("a", (1, most)), ("b", ("n", 2, None)), ("c", ())], size)
        with pytest.raises(ValueError, match=f"no FastSAM: its output 'b' of shape .* holds {most + 1} values, .* at most {most} are read"):
            REAL.contract.check_outputs([("a", (1, most)), ("b", (1, "n", most + 1))], size)
    wide = np.broadcast_to(np.float32(0), (1, 8, 2**18))     # refused before it is written out
    with pytest.raises(ValueError, match=f"'a' of shape .* holds {2**21} values"):
        REAL.contract.split_outputs(["a", "b"], [wide, np.zeros((1, 3, 16, 24), np.float32)], (64, 96))


def disc(h, w, y, x, radius):
    v, u = torch.meshgrid(torch.arange(h) + .5, torch.arange(w) + .5, indexing="ij")
    return (v - y) ** 2 + (u - x) ** 2 < radius ** 2


@pytest.mark.parametrize("h, w, fixed", [(256, 256, None), (200, 333, None), (333, 200, None), (250, 171, (256, 320)), (700, 900, None)])
def test_a_moved_disc_moves_the_mask(h, w, fixed):
    """A prototype that is the disc's distance: the mask is the disc, and moves as it does."""
    geometry = REAL.preprocess.plan(h, w, 256, fixed)
    H, W = geometry.input_height, geometry.input_width
    centroids, step = [], (5, 7)
    for shift in (0, 1):
        y, x, radius = h * .45 + shift * step[0], w * .4 + shift * step[1], min(h, w) * .25
        py = ((torch.arange(H // 4) + .5) * 4 - geometry.top) * h / geometry.rows
        px = ((torch.arange(W // 4) + .5) * 4 - geometry.left) * w / geometry.columns
        logits = radius - ((py[:, None] - y) ** 2 + (px[None] - x) ** 2).sqrt()
        mask = REAL.masks.image_mask(logits, torch.tensor([0., 0, w, h]), geometry)
        truth = disc(h, w, y, x, radius)
        assert float((mask & truth).sum() / (mask | truth).sum()) > .98
        centroids.append(mask.nonzero().double().mean(0))
    assert (centroids[1] - centroids[0] - torch.tensor(step, dtype=torch.float64)).abs().max() < .1


def test_a_huge_and_a_thin_picture():
    for h, w in ((3000, 4000), (1, 5000), (5000, 1)):
        literal = Literal(h, w, 256, None)
        A, B = tensors(literal, 3, candidates=6)
        for mode in REAL.masks.MODES:
            found = REAL.masks.segments(torch.from_numpy(A), torch.from_numpy(B), REAL.preprocess.plan(h, w, 256), torch.zeros(1), .3, .9, 2, mode)
            assert found.masks.shape == (2, h, w)


# ---- what users write ------------------------------------------------------------------------------------------------------

def test_points_are_read():
    parse = REAL.prompts.parse_points
    assert parse('[{"x": 0, "y": 3}, {"x": 9.7, "y": 4.2}]', "positive", 5, 10) == [(0, 3), (9, 4)]
    assert parse(None, "positive", 5, 10) == parse("", "positive", 5, 10) == parse(" []", "positive", 5, 10) == []


@pytest.mark.parametrize("text", ["[", "{}x", '[{"x": 1}]', '[[1, 2]]', '[{"x": "a", "y": 1}]', '[{"x": null, "y": 1}]', "3", '{"x": 1, "y": 2}', "[" * 5000])
def test_malformed_points_are_quoted(text):
    with pytest.raises(ValueError, match="'negative' of FastSAM Mask is not a list of points.*must look like") as error:
        REAL.prompts.parse_points(text, "negative", 5, 10)
    assert repr(text[:200]) in str(error.value)


@pytest.mark.parametrize("x, y", [(10, 0), (0, 5), (-1, 0), (0, -.5), ("NaN", 1), ("Infinity", 1)])
def test_points_outside_the_picture(x, y):
    with pytest.raises(ValueError, match="outside the picture of 10 x 5 pixels"):
        REAL.prompts.parse_points(f'[{{"x": {x}, "y": {y}}}]', "positive", 5, 10)


def test_boxes_are_rounded_and_clamped():
    parse = REAL.prompts.parse_boxes
    assert parse([{"x": 1.5, "y": -4, "width": 3, "height": 100, "score": 1}], 5, 10) == [(2, 0, 5, 5)]
    assert parse([{"x": 8, "y": 4, "width": 30, "height": 1}], 5, 10) == [(8, 4, 10, 5)]
    for box in ({"x": 1, "y": 1, "width": 0, "height": 3}, {"x": 11, "y": 1, "width": 3, "height": 3}, {"x": 4, "y": 2, "width": -2, "height": 2}):
        with pytest.raises(ValueError, match="box without area.*10 x 5"):
            parse([box], 5, 10)
    for box in ({"x": 1}, 3, None, {"x": float("nan"), "y": 0, "width": 1, "height": 1}, {"x": 0, "y": 0, "width": float("inf"), "height": 1}, [1, 2, 3, 4]):
        with pytest.raises(ValueError, match="which is no box"):
            parse([box], 5, 10)


def test_boxes_of_one_or_several_pictures():
    a, b = {"x": 1}, {"x": 2}
    of = REAL.prompts.boxes_of_picture
    assert of(a, 1, 2) == [a] and of([a, b], 1, 2) == [a, b] and of([[a], [b, a]], 1, 2) == [b, a] and of([[a]], 1, 2) == [a]
    assert of([[], [b]], 0, 2) == [] and of([], 0, 1) == []
    with pytest.raises(ValueError, match="lists for 3 pictures, but 2 were segmented"):
        of([[a], [a], [a]], 0, 2)


def test_nothing_is_chosen_of_nothing():
    masks, prompts = torch.zeros(0, 4, 6, dtype=torch.bool), REAL.prompts
    assert prompts.large(masks, 0) == prompts.everything(masks, []) == prompts.by_boxes(masks, [], [(0, 0, 3, 3)]) == []
    assert prompts.by_points(masks, [], [(1, 1)], []).shape == (4, 6) and not prompts.by_points(masks, [], [(1, 1)], []).any()
    assert prompts.by_boxes(five_masks(), [3], [(28, 18, 30, 20)]) == []       # a box that meets no mask


def test_small_masks_are_filtered():
    masks = five_masks()
    areas = [int(mask.sum()) for mask in masks]
    assert REAL.prompts.large(masks, areas[3]) == [0, 1, 2, 3, 4] and REAL.prompts.large(masks, areas[3] + 1) == [0, 1, 2, 4]
    assert REAL.prompts.large(torch.zeros(2, 3, 3, dtype=torch.bool), 0) == []


# ---- crops -----------------------------------------------------------------------------------------------------------------

def test_crops():
    image = torch.rand(30, 50, 3, generator=torch.Generator().manual_seed(0)) * .5
    mask = torch.zeros(30, 50, dtype=torch.bool)
    mask[5:15, 10:30], mask[5, 10] = True, False
    cut = REAL.crops.cutout(image, mask)
    assert cut.shape == (22, 22, 3)
    seen = (cut < 1).all(-1)
    assert int(seen.sum()) == 199 and seen[6:16, 1:21].sum() == 199 and not seen[6, 1]
    assert torch.equal(cut[7:16, 1:21], image[6:15, 10:30])
    place = REAL.crops.in_place(image, torch.tensor([10., 5, 30, 15]))
    assert place.shape == image.shape and torch.equal(place[5:15, 10:30], image[5:15, 10:30])
    assert float(place.sum()) == pytest.approx(float(image[5:15, 10:30].sum()) + (30 * 50 - 200) * 3, rel=1e-6)


# ---- masks of any node -----------------------------------------------------------------------------------------------------

def test_grow_and_feather():
    mask = torch.zeros(2, 21, 31)
    mask[0, 8:13, 10:20], mask[1] = 1, .3
    wider, narrower = REAL.masks.grow(mask, 3), REAL.masks.grow(mask, -2)
    assert torch.equal(wider[0].nonzero().amin(0), torch.tensor([5, 7])) and torch.equal(wider[0].nonzero().amax(0), torch.tensor([15, 22]))
    assert wider[0].sum() == 11 * 16 and narrower[0].sum() == 1 * 6 and torch.equal(REAL.masks.grow(mask, 0), mask)
    assert torch.equal(wider[1], mask[1]) and torch.equal(narrower[1], mask[1])        # the picture's border is no edge
    soft = REAL.masks.feather(mask, 2)
    padded = np.pad(mask[0].double().numpy(), 2, mode="edge")
    expected = [[padded[y:y + 5, x:x + 5].mean() for x in range(31)] for y in range(21)]
    assert np.allclose(soft[0], expected, atol=1e-6) and torch.allclose(soft[1], mask[1]) and torch.equal(REAL.masks.feather(mask, 0), mask)
    edge = REAL.masks.feather((torch.arange(31) >= 15).float().expand(1, 21, 31), 4)[0, 10]
    assert edge[10] == 0 and edge[19] == 1 and torch.allclose(edge[11:19].diff(), torch.full((7,), 1 / 9))


@pytest.mark.parametrize("mask, message", [
    (torch.zeros(0, 64, 64), "^The mask of X holds no mask: nothing was found"),
    (torch.zeros(1, 64, 80), "^The mask of X is 80 x 64, another shape than the latent's 8 x 8"),
    (torch.full((1, 64, 64), float("nan")), "^The mask of X holds NaN"),
    (torch.full((1, 64, 64), float("inf")), "^The mask of X holds NaN or infinite"),
    (torch.zeros(1, 64, 64, 3), r"^The mask of X has dimensions \[1, 64, 64, 3\], but a mask is \[masks, height, width\].*Convert Image to Mask"),
    (torch.zeros(64), r"^The mask of X has dimensions \[64\]"),
])
def test_masks_that_cannot_be_used(mask, message):
    with pytest.raises(ValueError, match=message):
        REAL.masks.checked(mask, (8, 8), "The mask of X")


def test_any_other_mask_can():
    assert torch.equal(REAL.masks.checked(torch.tensor([[-1., .5], [2, 1]]), (8, 8), "x"), torch.tensor([[[0., .5], [1, 1]]]))
    assert REAL.masks.checked(torch.ones(3, 100, 199), (8, 16), "x").shape == (3, 100, 199)     # within 1 %
    assert REAL.masks.checked(torch.ones(2, 8, 8, dtype=torch.bool), (8, 8), "x").dtype == torch.float32
    assert REAL.masks.checked(torch.ones(2, 1, 4, 9), None, "x").shape == (2, 4, 9)      # one channel; only sampling knows the size


@pytest.mark.parametrize("width, height, size", [
    (512, 512, (64, 64)), (519, 512, (64, 64)), (512, 519, (64, 64)), (2018, 2000, (250, 250)), (2000, 2018, (250, 250)), (300, 200, (12, 18)), (303, 207, (12, 18)),
])
def test_masks_of_the_picture_that_was_encoded(width, height, size):
    """1 %, or what encoding cut off: up to one cell a side."""
    REAL.masks.check_aspect((height, width), size, "x")


@pytest.mark.parametrize("width, height, size", [
    (521, 512, (64, 64)), (512, 521, (64, 64)), (2022, 2000, (250, 250)), (2000, 2022, (250, 250)), (400, 100, (64, 64)), (512, 768, (96, 48)),
])
def test_masks_of_another_shape(width, height, size):
    with pytest.raises(ValueError, match=f"x is {width} x {height}, another shape than the latent's {size[1]} x {size[0]}"):
        REAL.masks.check_aspect((height, width), size, "x")


@pytest.mark.parametrize("text, points", [
    ("", []),
    (" \n ", []),
    ("120,80", [(False, 120, 80)]),
    ("+120,80 -40,30", [(False, 120, 80), (True, 40, 30)]),
    ("+ 120 , 80;-40.9,30.2\n7,8;", [(False, 120, 80), (True, 40, 30), (False, 7, 8)]),
    ("0,0 0,0", [(False, 0, 0), (False, 0, 0)]),
])
def test_signed_points(text, points):
    assert REAL.prompts.parse_signed(text) == points


@pytest.mark.parametrize("text, number, word", [
    ("here", 1, "here"), ("1,2 3", 2, "3"), ("1,2,3", 1, "1,2,3"), ("1,2 --3,4", 2, "--3,4"), ("1,2+3,4", 1, "1,2+3,4"), ("nan,1", 1, "nan,1"),
    ("1e3,1", 1, "1e3,1"), (",", 1, ","), ('[{"x": 1, "y": 2}]', 1, '[{"x":'), ("1" * 5000 + ",1", 1, "1" * 80), ("٣,٤", 1, "٣,٤"),
])
def test_bad_signed_points_are_named(text, number, word):
    with pytest.raises(ValueError) as error:
        REAL.prompts.parse_signed(text)
    assert str(error.value).startswith(f"Point {number} is {word!r}, which is no point. Write x,y") and REAL.prompts.SIGNED in str(error.value)
