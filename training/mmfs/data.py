"""Pictures of a folder, or of an array file, as the network takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class Pictures:
    """[n][3, side, side] in [-1, 1]: all pictures below a folder, squeezed to a square, or the rows of a .npy file.

    The array is uint8 [n, 3, h, w]. Raises ValueError for a place without pictures, and for one that cannot be read.
    """

    def __init__(self, path: str | Path, side: int):
        self.path, self.side = Path(path), side
        if self.path.suffix == ".npy":
            self.rows = np.load(self.path, mmap_mode="r", allow_pickle=False)
            if self.rows.ndim != 4 or self.rows.shape[1] != 3 or self.rows.dtype != np.uint8:
                raise ValueError(
                    f"{path} holds {self.rows.dtype} {list(self.rows.shape)}; pictures are uint8 [n, 3, h, w]"
                )
        else:
            files = self.path.rglob("*") if self.path.is_dir() else []
            self.rows = sorted(file for file in files if file.suffix.lower() in ENDINGS)
        if not len(self.rows):
            raise ValueError(
                f"no pictures in {path}: give a folder with {', '.join(sorted(ENDINGS))} files, or a .npy file"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> torch.Tensor:
        row = self.rows[number]
        if isinstance(row, Path):
            try:
                with Image.open(row) as picture:
                    size = (self.side, self.side)
                    row = np.array(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)).transpose(2, 0, 1)
            except OSError as error:
                raise ValueError(f"{row} cannot be read as a picture: {error}. Repair or remove it.") from None
        picture = torch.from_numpy(np.array(row)).float() / 127.5 - 1
        if picture.shape[-1] != self.side or picture.shape[-2] != self.side:
            size = (self.side, self.side)
            picture = F.interpolate(picture[None], size, mode="bilinear", antialias=True)[0]
        return picture

    def draw(self, count: int, device) -> torch.Tensor:
        """[count, 3, side, side], by torch's own random state."""
        rows = torch.randint(len(self), (count,)).tolist()
        return torch.stack([self[row] for row in rows]).to(device, memory_format=torch.channels_last)
