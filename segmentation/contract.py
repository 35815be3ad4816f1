"""What a FastSAM network takes and gives: one-class YOLOv8 segmentation.

A: per candidate cx, cy, w, h in input pixels, C class scores from 0 to 1, P mask coefficients. B: P prototypes at a quarter of
the input's size.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

STRIDE = 32           # input sides are multiples of it
CELL = 4              # input pixels per prototype cell
LARGEST = 4096        # pixels of an input's side
# Values of one output per input pixel; FastSAM gives 2, and 0.8. Small inputs may have more, a million in all.
PER_PIXEL, LEAST = 16, 2**20


def fixed_size(shape: Sequence, name: str) -> tuple[int, int] | None:
    """(height, width) of a declared input [1, 3, H, W]; None where H or W may vary. Raises ValueError for any other input."""
    batch, channels, height, width = shape if len(shape) == 4 else (None,) * 4
    wrong = len(shape) != 4 or (isinstance(batch, int) and batch != 1) or (isinstance(channels, int) and channels != 3)
    fixed = isinstance(height, int) and isinstance(width, int)
    if wrong or (fixed and (min(height, width) < STRIDE or height % STRIDE or width % STRIDE)):
        raise ValueError(f"The ONNX model takes '{name}' of shape {list(shape)}, so it is no FastSAM: that takes one picture, "
                         f"[1, 3, height, width] with sides of a multiple of {STRIDE}. Export FastSAM with batch 1.")
    if fixed and max(height, width) > LARGEST:
        raise ValueError(f"The ONNX model takes '{name}' of {width} x {height} pixels, more than the {LARGEST} x {LARGEST} that FastSAM Segment gives. "
                         "Export FastSAM at its training size, 1024.")
    return (height, width) if fixed else None


def check_outputs(outputs: Iterable[tuple[str, Sequence]], size: tuple[int, int]) -> None:
    """Raises ValueError for an output (name, shape) of more values than FastSAM has for an input of (height, width).

    Sides that are no numbers, as declared shapes may have, count as 1.
    """
    most = max(LEAST, PER_PIXEL * size[0] * size[1])
    for name, shape in outputs:
        values = math.prod(side for side in shape if isinstance(side, int))
        if values > most:
            raise ValueError(f"The ONNX model is no FastSAM: its output '{name}' of shape {list(shape)} holds {values} values, and for an input of "
                             f"{size[1]} x {size[0]} at most {most} are read. Export FastSAM again.")


def split_outputs(names: Sequence[str], arrays: Sequence[np.ndarray], size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's outputs, in any order -> A [4 + C + P, N] and B [P, H/4, W/4], float32. size: the input's (H, W).

    A has rank 3 and B rank 4; of several, output0 and output1 are taken. Raises ValueError for outputs that are not FastSAM's
    and for values that are not finite.
    """
    def refuse(reason: str) -> None:
        shapes = ", ".join(f"'{name}' {list(array.shape)}" for name, array in zip(names, arrays))
        raise ValueError(f"The ONNX model is no FastSAM: {reason}. Its outputs: {shapes}. Export FastSAM with its segmentation outputs "
                         "and without built-in suppression (nms).")

    def pick(rank: int, preferred: str) -> np.ndarray | None:
        found = {name: array for name, array in zip(names, arrays) if array.ndim == rank}
        return found.get(preferred, next(iter(found.values()), None))

    check_outputs(((name, array.shape) for name, array in zip(names, arrays)), size)  # before anything is copied
    table, prototypes = pick(3, "output0"), pick(4, "output1")
    if table is None or prototypes is None:
        refuse("it needs one output of three dimensions and one of four")
    if len(table) != 1 or len(prototypes) != 1:
        refuse("outputs must be of one picture")
    wanted = (size[0] // CELL, size[1] // CELL)
    if prototypes.shape[2:] != wanted:
        refuse(f"prototypes of an input of {size[1]} x {size[0]} must be {wanted[1]} x {wanted[0]}")
    count, (_, first, last) = prototypes.shape[1], table.shape
    if first == 5 + count:
        transposed = False
    elif last == 5 + count:
        transposed = True
    elif last == 6 + count:
        refuse("suppression is built into it")
    else:
        transposed = last < first
    rows = torch.from_numpy(np.asarray(table[0].T if transposed else table[0], np.float32, order="C"))
    if len(rows) < 5 + count:
        refuse(f"{len(rows)} rows are too few for a box, a score and {count} prototypes")
    prototypes = torch.from_numpy(np.asarray(prototypes[0], np.float32, order="C"))
    if not (torch.isfinite(rows).all() and torch.isfinite(prototypes).all()):
        raise ValueError("The FastSAM network returned NaN or infinite values. Choose provider cpu, or export the model in float32.")
    return rows, prototypes
