import torch
from comfy_api.latest import io

from ..host.fastsam import segment
from ..segmentation.contract import STRIDE
from ..segmentation.masks import MODES
from .checks import check_range, in_range, verdict
from .types import FASTSAM, FastSAMModelType, FastSAMResultType

NAME = "FastSAM Segment"
LARGEST = 4096


class FastSAMSegment(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierFastSAMSegment",
            display_name=NAME,
            category=FASTSAM,
            description="Finds all segments of a picture in one pass of the FastSAM network. FastSAM Mask then picks among them: changing a "
                        "prompt there never runs the network again.",
            search_aliases=["fastsam", "segment anything", "mask"],
            inputs=[
                FastSAMModelType.Input("fastsam_model", tooltip="The network from Load FastSAM (ONNX)."),
                io.Image.Input("image", tooltip="The picture to segment. A batch is segmented one by one."),
                io.Int.Input("size", default=1024, min=STRIDE, max=LARGEST, step=STRIDE,
                             tooltip="Longer side of the network's input in pixels, a multiple of 32. FastSAM was trained at 1024. A model exported for one "
                                     "size uses that."),
                io.Float.Input("conf", default=0.4, min=0.0, max=1.0, step=0.01,
                               tooltip="Only segments with a higher score are kept. Lower it to find more."),
                io.Float.Input("iou", default=0.9, min=0.0, max=1.0, step=0.01,
                               tooltip="Of two boxes that overlap by more than this, the one with the lower score is dropped."),
                io.Int.Input("max_det", default=300, min=1, max=1000, tooltip="At most so many segments, the best ones."),
                io.Combo.Input("mask_mode", options=MODES, default=MODES[0],
                               tooltip="image: smooth edges at the picture's resolution. prototype: coarser and simpler. reference: as the published code, "
                                       "off by up to 4 network pixels where the picture is padded."),
            ],
            outputs=[
                FastSAMResultType.Output("fastsam_result", display_name="fastsam_result", tooltip="All segments of each picture, for FastSAM Mask."),
                io.Mask.Output("everything", display_name="everything", tooltip="What any segment covers, one mask per picture."),
            ],
        )

    @classmethod
    def validate_inputs(cls, size=None) -> bool | str:
        return verdict(NAME, (network_size, "size", size))

    @classmethod
    @in_range
    def execute(cls, fastsam_model, image, size=1024, conf=0.4, iou=0.9, max_det=300, mask_mode=MODES[0]) -> io.NodeOutput:
        network_size(NAME, "size", size)
        if image.shape[-1] < 3 or image.numel() == 0 or not torch.isfinite(image).all():
            raise ValueError(f"'image' of {NAME} has shape {list(image.shape)} and must hold RGB pictures without NaN. Check the node it comes from.")
        found = segment(fastsam_model, image, size, conf, iou, max_det, mask_mode)
        return io.NodeOutput(found, torch.stack([result.masks.any(0).float() for result in found]))


def network_size(node: str, name: str, size: int) -> None:
    check_range(node, name, size, STRIDE, LARGEST)
    if size % STRIDE:
        raise ValueError(f"'{name}' of {node} is {size}. It must be a multiple of {STRIDE}, for example {size // STRIDE * STRIDE}.")
