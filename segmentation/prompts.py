"""From the masks of a picture to the ones that a prompt means.

`masks` are bool [n, h, w]. A filter gives `kept`, a list of numbers into masks; a score belongs to an entry of kept, so the
answer of the best score is kept[argmax], never argmax itself.
"""

import json
import math
import re
from collections.abc import Sequence

import torch

POINT_RULES = ["paint", "subtract"]
PICKS = ["best", "top k", "threshold"]
FORM = '[{"x": 120, "y": 80}, ...]'
SIGNED = "+120,80 -40,30"
_SIGNED_POINT = re.compile(r"([+-]?)([0-9]{1,9})(?:\.[0-9]+)?,([0-9]{1,9})(?:\.[0-9]+)?")


def large(masks: torch.Tensor, least: int) -> list[int]:
    """Numbers of the masks with at least `least` pixels, and at least one."""
    return [i for i, mask in enumerate(masks) if int(mask.sum()) >= max(least, 1)]


def by_size(masks: torch.Tensor, kept: Sequence[int]) -> list[int]:
    """kept, largest mask first; equal ones keep their order."""
    return sorted(kept, key=lambda i: -int(masks[i].sum()))


def everything(masks: torch.Tensor, kept: Sequence[int], dedupe: float = 1.0) -> list[int]:
    """kept, largest first, without masks whose IoU with a larger chosen one exceeds `dedupe`; 1 drops none."""
    areas = {i: int(masks[i].sum()) for i in kept}
    chosen: list[int] = []
    for i in by_size(masks, kept):
        # IoU is at most the ratio of the areas, which spares most comparisons
        rivals = (j for j in chosen if areas[i] > dedupe * areas[j])
        if not any(_iou(int((masks[i] & masks[j]).sum()), areas[i], areas[j]) > dedupe for j in rivals):
            chosen.append(i)
    return chosen


def by_boxes(masks: torch.Tensor, kept: Sequence[int], boxes: Sequence[tuple[int, int, int, int]]) -> list[int]:
    """Per box (x1, y1, x2, y2, whole pixels) the kept mask with the highest |M and B| / |M or B|; each once, none for a box that
    meets no mask.
    """
    chosen: list[int] = []
    for x1, y1, x2, y2 in boxes:
        scores = [_iou(int(masks[i, y1:y2, x1:x2].sum()), int(masks[i].sum()), (x2 - x1) * (y2 - y1)) for i in kept]
        if scores and max(scores) > 0:
            chosen.append(kept[scores.index(max(scores))])
    return list(dict.fromkeys(chosen))


def by_points(masks: torch.Tensor, kept: Sequence[int], positive: Sequence[tuple[int, int]], negative: Sequence[tuple[int, int]],
              rule: str = "paint") -> torch.Tensor:
    """The region that positive points (x, y) choose and negative ones exclude, bool [h, w].

    paint: from the largest mask to the smallest, a positive point inside sets the mask's pixels, then a negative one clears them;
    so the smallest mask around a place decides. subtract: masks with a positive point minus masks with a negative one.
    """
    def hit(i: int, points: Sequence[tuple[int, int]]) -> bool:
        return any(masks[i, y, x] for x, y in points)

    region, taken = torch.zeros_like(masks[:1].any(0)), torch.zeros_like(masks[:1].any(0))
    for i in by_size(masks, kept):
        if hit(i, positive):
            region |= masks[i]
        if hit(i, negative):
            taken |= masks[i]
            if rule == "paint":
                region &= ~masks[i]
    return region & ~taken if rule == "subtract" else region


def by_text(images: torch.Tensor, text: torch.Tensor, kept: Sequence[int], pick: str, amount: float) -> list[int]:
    """The masks whose crops show what a text says. images [len(kept), D] and text [D] are CLIP's embeddings.

    Score: softmax over kept of 100 cos(image, text). pick: best; "top k", k = amount; "threshold", score >= amount * best score.
    """
    cosine = torch.nn.functional.normalize(images.float(), dim=-1) @ torch.nn.functional.normalize(text.float(), dim=-1)
    scores = (100 * cosine).softmax(0)
    order = scores.sort(descending=True, stable=True).indices.tolist()
    if pick == "threshold":
        best = float(scores[order[0]])
        return [kept[position] for position in order if float(scores[position]) >= amount * best]
    return [kept[position] for position in order[:1 if pick == "best" else int(amount)]]


def parse_points(text: str | None, name: str, height: int, width: int) -> list[tuple[int, int]]:
    """A JSON list of {"x", "y"} in pixels of the picture -> whole pixels (x, y). None and empty texts hold no points.

    Raises ValueError for anything else and for points outside the picture.
    """
    if text is None or not text.strip():
        return []
    try:
        points = [(float(point["x"]), float(point["y"])) for point in json.loads(text)]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f"'{name}' of FastSAM Mask is not a list of points: {text[:200]!r}. It must look like {FORM}.") from None
    for x, y in points:
        check_inside(x, y, height, width, f"'{name}' of FastSAM Mask")
    return [(math.floor(x), math.floor(y)) for x, y in points]


def parse_signed(text: str) -> list[tuple[bool, int, int]]:
    """Points such as "+120,80 -40,30" -> (exclude, x, y), whole pixels. The sign + may be left out; an empty text holds no points.

    Raises ValueError for anything else. The same rules as web/js/points.mjs.
    """
    words = re.sub(r"([+-]) ", r"\1", re.sub(r" ?, ?", ",", re.sub(r"\s+", " ", text)))
    points = []
    for number, word in enumerate(filter(None, re.split("[ ;]", words)), 1):
        found = _SIGNED_POINT.fullmatch(word)
        if not found:
            raise ValueError(f"Point {number} is {word[:80]!r}, which is no point. Write x,y in pixels of the picture, with - in front to "
                             f"exclude, and spaces between points: {SIGNED}")
        sign, x, y = found.groups()
        points.append((sign == "-", int(x), int(y)))
    return points


def check_inside(x: float, y: float, height: int, width: int, name: str) -> None:
    """Raises ValueError, which starts with `name`, for a point outside the picture."""
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"{name} has a point at ({x:g}, {y:g}), outside the picture of {width} x {height} pixels. x runs "
                         f"from 0 to {width - 1}, y from 0 to {height - 1}.")


def parse_boxes(boxes, height: int, width: int) -> list[tuple[int, int, int, int]]:
    """BOUNDING_BOX dicts (x, y, width, height) of one picture -> (x1, y1, x2, y2), rounded and clamped to the picture.

    Raises ValueError for other things and for boxes without a pixel inside the picture.
    """
    sides = []
    for box in boxes:
        try:
            x, y, wide, high = (float(box[key]) for key in ("x", "y", "width", "height"))
            x1, y1, x2, y2 = (math.floor(side + 0.5) for side in (x, y, x + wide, y + high))
        except (ValueError, TypeError, KeyError, OverflowError):
            raise ValueError(f"'bboxes' of FastSAM Mask holds {str(box)[:200]}, which is no box: it needs the numbers x, y, width and height.") from None
        x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
        if x2 <= x1 or y2 <= y1:
            raise ValueError(f"'bboxes' of FastSAM Mask holds a box without area: x {x:g}, y {y:g}, width {wide:g}, height {high:g} covers no pixel of "
                             f"the picture of {width} x {height}. Draw it larger, or inside the picture.")
        sides.append((x1, y1, x2, y2))
    return sides


def boxes_of_picture(boxes, number: int, count: int):
    """The boxes for picture `number` of `count`: one box, a list for all pictures, or a list of lists, one per picture."""
    if isinstance(boxes, dict):
        return [boxes]
    if boxes and all(isinstance(entry, (list, tuple)) for entry in boxes):
        if len(boxes) not in (1, count):
            raise ValueError(f"'bboxes' of FastSAM Mask has lists for {len(boxes)} pictures, but {count} were segmented. Connect boxes of the same pictures.")
        return boxes[number if len(boxes) == count else 0]
    return boxes


def _iou(common: int, first: int, second: int) -> float:
    return common / (first + second - common)
