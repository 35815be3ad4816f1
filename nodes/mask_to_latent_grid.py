from comfy_api.latest import io

from ..attention.masks import mask_on_grid
from ..host.log import log
from ..segmentation.masks import checked, feather, grow
from .checks import in_range
from .types import FASTSAM

NAME = "Mask to Latent Grid"
FAINT = 0.05


class MaskToLatentGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMaskToLatentGrid",
            display_name=NAME,
            category=FASTSAM,
            description="Grows and softens a mask in the picture's pixels and shows it as the latent will see it: every cell holds the share of its "
                        "area that is covered. The output can be used as a mask itself.",
            search_aliases=["mask", "latent", "feather", "grow", "preview"],
            inputs=[
                io.Mask.Input("mask", tooltip="Any mask made from the picture. Several are united, unless 'row' names one."),
                io.Latent.Input("latent", tooltip="The picture's latent: its height and width are the grid."),
                io.Int.Input("grow", default=0, min=-256, max=256, tooltip="Pixels by which the mask becomes wider on every side; negative: narrower."),
                io.Int.Input("feather", default=0, min=0, max=256, tooltip="Soft edge: the mask ramps from 0 to 1 between so many pixels outside and inside."),
                io.Int.Input("row", default=-1, min=-1, max=4095, advanced=True, tooltip="Which of several masks to take, from 0. -1 unites them all."),
            ],
            outputs=[io.Mask.Output("grid", display_name="mask", tooltip="The mask at latent size, values from 0 to 1.")],
        )

    @classmethod
    @in_range
    def execute(cls, mask, latent, grow=0, feather=0, row=-1) -> io.NodeOutput:
        return io.NodeOutput(on_grid(mask, tuple(latent["samples"].shape[-2:]), grow, feather, row))


def on_grid(mask, size: tuple[int, int], wider: int, soft: int, row: int):
    mask = checked(mask, size, f"'mask' of {NAME}")
    if row >= len(mask):
        raise ValueError(f"'row' of {NAME} is {row}, but the mask has {len(mask)} rows: 0 to {len(mask) - 1}, or -1 for all of them united.")
    mask = mask[row:row + 1] if row >= 0 else mask.amax(0, keepdim=True)
    mask = feather(grow(mask, wider), soft)
    grid = mask_on_grid(mask, size).unflatten(1, size)
    if mask.any() and float(grid.max()) < FAINT:
        log.warning("%s: the region is too small for this latent: no cell is covered by more than %.1f %%. Use a larger latent or a larger 'grow'.",
                    NAME, 100 * float(grid.max()))
    return grid
