"""MMFS (Li et al., 2023): an encoder keeps a face's structure in a feature map, StyleGAN2's upper layers paint it."""

import torch
from torch import nn
from torch.nn import functional

from .layers import (
    SLOPE,
    ConvLayer,
    EqualLinear,
    PixelNorm,
    ResBlock,
    StyledConv,
    ToRGB,
    channels_last,
    draw_noise,
    normal,
)

HEADS = 8  # of the CLIP mapper


class ClipMapper(nn.Module):
    """CLIP's feature of a picture or a text, of length 1, [B, width] to a style [styles, B, width] (equation 6)."""

    def __init__(self, width: int, styles: int, layers: int = 4):
        super().__init__()
        self.position_embedding = normal(styles, width)
        layer = nn.TransformerEncoderLayer(width, HEADS, 4 * width, dropout=0.1, norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, feature):
        tokens = feature.to(self.position_embedding)[None] + self.position_embedding[:, None]
        return functional.leaky_relu(self.transformer(tokens), SLOPE)


class Stylizer(nn.Module):
    """The network of MMFS, with the weights' names of its files. One style goes to a batch, or one to each picture.

    channels: those of the layers at the pictures' full size S, S/2, S/4 ...; half the last size has the last again.
    The published network has four, so its features are S/16 large; small pictures need fewer. `styles` is the number
    of vectors w of a style, one for each styled layer: ten in the published network.
    style: width of z and w, and of CLIP's features where there is a CLIP mapper (the mapper has no projection).
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (64, 128, 256, 512),
        style: int = 512,
        clip_mapper: bool = False,
        mapping_layers: int = 8,
        mapper_layers: int = 4,
    ):
        super().__init__()
        self.channels, self.style, self.levels = tuple(channels), style, len(channels)
        self.styles, self.stride = 2 * self.levels + 2, 2**self.levels
        first, last = channels[0], channels[-1]
        self.encoder = nn.Sequential(
            ConvLayer(3, first, 3), *map(ResBlock, (first, *channels[:-1]), channels), ConvLayer(last, last, 3)
        )
        self.mapping_z = nn.Sequential(
            PixelNorm(), *[EqualLinear(style, style, rate=0.01, activated=True) for _ in range(mapping_layers)]
        )
        self.decoder0, self.to_rgb0 = StyledConv(last, last, style), ToRGB(last, style, up=False)
        for level, (inputs, outputs) in enumerate(zip((last, *channels[::-1]), channels[::-1]), 1):
            setattr(self, f"decoder{level}a", StyledConv(inputs, outputs, style, up=True))
            setattr(self, f"decoder{level}b", StyledConv(outputs, outputs, style))
            setattr(self, f"to_rgb{level}", ToRGB(outputs, style))
        self.clip_mapper = ClipMapper(style, self.styles, mapper_layers) if clip_mapper else None

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures [B, 3, H, W] to features [B, C, H/stride, W/stride]. Raises ValueError for other sides."""
        if pictures.shape[-1] % self.stride or pictures.shape[-2] % self.stride:
            raise ValueError(
                f"pictures of {pictures.shape[-1]} x {pictures.shape[-2]}: both sides must be multiples of "
                f"{self.stride}"
            )
        return self.encoder(channels_last(pictures))

    def style_from_seed(self, z: torch.Tensor) -> torch.Tensor:
        """z [B, style], normally distributed, to the same w for all layers, [styles, B, style]."""
        return self.mapping_z(z).expand(self.styles, -1, -1)

    @staticmethod
    def mixed(a: torch.Tensor, b: torch.Tensor, first: int) -> torch.Tensor:
        """The first layers' styles from a, the others' from b, both [styles, B, style]; `first` from 1."""
        if not 1 <= first < len(a):
            raise ValueError(f"styles are mixed after layer 1 to {len(a) - 1}, not {first}")
        return torch.cat([a[:first], b[first:]])

    def style_from_clip(self, feature: torch.Tensor) -> torch.Tensor:
        """CLIP's unit feature [B, style] to a style [styles, B, style]. Raises ValueError without a CLIP mapper."""
        if self.clip_mapper is None:
            raise ValueError("no CLIP mapper (phase 2 file); use MMFS Style (Seed) or a phase 3/4 file")
        return self.clip_mapper(feature)

    def noise_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Of the noise maps, in the order of decoder0, decoder1a, decoder1b, decoder2a ..."""
        levels = [0, *(level for level in range(1, self.levels + 1) for _ in "ab")]
        return [(height // self.stride * 2**level, width // self.stride * 2**level) for level in levels]

    def noise_maps(
        self, batch: int, size: tuple[int, int], seed: int | torch.Generator, device="cpu"
    ) -> list[torch.Tensor]:
        """The noise of pictures of `size` (height, width). Batch 1 serves any batch: the same noise for each."""
        return draw_noise(self.noise_sizes(*size), batch, seed, device)

    def decode_unbounded(
        self, features: torch.Tensor, style: torch.Tensor, noise: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """`decode` before its values are cut off at -1 and 1."""
        if len(style) != self.styles or style.shape[1] not in (1, len(features)):
            raise ValueError(
                f"a style for {len(features)} pictures is [{self.styles}, {len(features)} or 1, {self.style}], "
                f"not {list(style.shape)}"
            )
        noise = iter(noise or [None] * (self.styles - 1))
        x = self.decoder0(channels_last(features), style[0], next(noise))
        picture = self.to_rgb0(x, style[1])
        for level in range(1, self.levels + 1):
            x = getattr(self, f"decoder{level}a")(x, style[2 * level - 1], next(noise))
            x = getattr(self, f"decoder{level}b")(x, style[2 * level], next(noise))
            picture = getattr(self, f"to_rgb{level}")(x, style[2 * level + 1], picture)
        return picture

    def decode(
        self, features: torch.Tensor, style: torch.Tensor, noise: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Features [B, C, h, w] in a style [styles, B or 1, style] to pictures [B, 3, stride * h, stride * w].

        noise: `noise_maps`, None for none.
        """
        return functional.hardtanh(self.decode_unbounded(features, style, noise))

    def forward(
        self, pictures: torch.Tensor, style: torch.Tensor, noise: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        return self.decode(self.encode(pictures), style, noise)
