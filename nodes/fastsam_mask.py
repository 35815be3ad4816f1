import math

import torch
from comfy_api.latest import io

from ..host.log import log
from ..segmentation import crops, prompts
from ..segmentation.masks import Segments, bounds
from .checks import check_range, in_range, verdict
from .types import FASTSAM, FastSAMResultType, GuidanceType

NAME = "FastSAM Mask"
MODES = ["everything", "box", "points", "text"]
ABSENT = object()  # neither written nor linked; what is linked is None when a run is queued


class FastSAMMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierFastSAMMask",
            display_name=NAME,
            category=FASTSAM,
            description="Picks segments by a box, by points, by words, or all of them, and returns them as a mask. Any node that takes a MASK can "
                        "use it.",
            search_aliases=["fastsam", "segment anything", "select", "prompt", "sam"],
            inputs=[
                FastSAMResultType.Input("fastsam_result", tooltip="Segments from FastSAM Segment."),
                io.Combo.Input("mode", options=MODES, default=MODES[0],
                               tooltip="everything: one mask per segment, largest first. box, points, text: one mask per picture of the segments that the "
                                       "prompt means."),
                GuidanceType.Input("guidance", optional=True, tooltip="For mode text: the model from CLIP Similarity Loader."),
                io.BoundingBox.Input("bboxes", optional=True, force_input=True,
                                     tooltip="For mode box: from Create Bounding Boxes; one, several, or a list per picture. The segment that fits a box best is taken, for each box."),
                io.String.Input("positive", optional=True, force_input=True,
                                tooltip=f"For mode points: places inside what you want, from Pick Points: {prompts.FORM} in pixels of the picture."),
                io.String.Input("negative", optional=True, force_input=True, tooltip="For mode points: places to leave out, in the same form."),
                io.String.Input("text", default="", tooltip="For mode text: what the mask should show, such as 'a red jacket'."),
                io.Combo.Input("pick", options=prompts.PICKS, default=prompts.PICKS[0],
                               tooltip="For mode text: the best segment, the best few (amount), or all that score at least amount times the best score."),
                io.Float.Input("amount", default=1.0, min=0.0, max=1000.0, step=0.05,
                               tooltip="For pick: the number of segments of 'top k', or the share from 0 to 1 of 'threshold'."),
                io.Int.Input("min_area", default=0, min=0, max=2**31 - 1, tooltip="Segments with fewer pixels are left out."),
                io.Float.Input("dedupe", default=1.0, min=0.0, max=1.0, step=0.01, advanced=True,
                               tooltip="For mode everything: drop a segment whose IoU with a larger one exceeds this. 1 drops none."),
                io.Boolean.Input("invert", default=False, advanced=True, tooltip="Return what the chosen segments do not cover, one mask per picture."),
                io.Combo.Input("point_rule", options=prompts.POINT_RULES, default=prompts.POINT_RULES[0], advanced=True,
                               tooltip="paint: the smallest segment around a place decides. subtract: segments with a positive point minus segments with a "
                                       "negative one."),
                io.Combo.Input("text_crop", options=crops.MODES, default=crops.MODES[0], advanced=True,
                               tooltip="What CLIP is shown: the segment cut out on white, or its box at its place on white, as in the published code, where "
                                       "objects near the sides of wide pictures are cut off."),
            ],
            outputs=[
                io.Mask.Output("mask", display_name="mask", tooltip="The mask, 1 where the chosen segments are; black if nothing was chosen, with a "
                                                                    "warning in the log."),
                io.BoundingBox.Output("boxes", display_name="bboxes", tooltip="Per picture the boxes around the chosen segments, in pixels."),
            ],
        )

    @classmethod
    def validate_inputs(cls, mode=None, guidance=ABSENT, bboxes=ABSENT, positive=ABSENT, negative=ABSENT, text="") -> bool | str:
        there = {"guidance": guidance is not ABSENT, "bboxes": bboxes is not ABSENT, "positive": positive is not ABSENT,
                 "text": text is None or bool(text.strip())}
        checks = [(points_form, "positive", positive), (points_form, "negative", negative)] if mode == "points" else []
        return verdict(NAME, (lambda *_: check_prompt(mode, **there), "mode", mode),
                       *(check for check in checks if check[2] is not ABSENT))

    @classmethod
    @in_range
    def execute(cls, fastsam_result, mode=MODES[0], guidance=None, bboxes=None, positive=None, negative=None, text="", pick=prompts.PICKS[0],
                amount=1.0, min_area=0, dedupe=1.0, invert=False, point_rule=prompts.POINT_RULES[0], text_crop=crops.MODES[0]) -> io.NodeOutput:
        check_prompt(mode, guidance=guidance is not None, bboxes=bboxes is not None, positive=positive is not None, text=bool(text.strip()))
        if mode == "text":
            if pick == "top k":
                check_range(NAME, "amount", amount, 1, 1000)
            elif pick == "threshold":
                check_range(NAME, "amount", amount, 0, 1)

        masks, frames = [], []
        for number, found in enumerate(fastsam_result):
            height, width = found.masks.shape[1:]
            kept = prompts.large(found.masks, max(min_area, crops.LEAST + 1) if mode == "text" else min_area)
            if mode == "points":
                region = prompts.by_points(found.masks, kept, prompts.parse_points(positive, "positive", height, width),
                                           prompts.parse_points(negative, "negative", height, width), point_rule)
                rows = region[None] if region.any() else region.new_zeros(0, height, width)
            else:
                if mode == "everything":
                    chosen = prompts.everything(found.masks, kept, dedupe)
                elif mode == "box":
                    mine = prompts.boxes_of_picture(bboxes, number, len(fastsam_result))
                    chosen = prompts.by_boxes(found.masks, kept, prompts.parse_boxes(mine, height, width))
                else:
                    chosen = by_words(found, kept, guidance, text, pick, amount, text_crop)
                rows = found.masks[chosen]
            if not len(rows):
                log.warning("%s: mode %s chose no segment of picture %d (%d found, %d of them large enough).", NAME, mode, number + 1,
                            len(found.masks), len(kept))
            frames.append([box(row) for row in rows])
            if invert:
                rows = ~rows.any(0, keepdim=True)
            elif mode != "everything" or not len(rows):
                rows = rows.any(0, keepdim=True)
            masks.append(rows.float())
        return io.NodeOutput(torch.cat(masks), frames)


def check_prompt(mode: str, *, guidance: bool, bboxes: bool, positive: bool, text: bool) -> None:
    """Raises ValueError for a mode whose prompt is not there."""
    if mode not in MODES:
        raise ValueError(f"'mode' of {NAME} is '{mode}'. It must be one of {', '.join(MODES)}.")
    if mode == "box" and not bboxes:
        raise ValueError(f"{NAME} in mode box has no box. Connect 'bboxes' (ComfyUI's Create Bounding Boxes draws them), or choose another mode.")
    if mode == "points" and not positive:
        raise ValueError(f"{NAME} in mode points has no points. Connect 'positive' (Pick Points makes them), or choose another mode.")
    if mode == "text" and not guidance:
        raise ValueError(f"{NAME} in mode text has no guidance. Connect CLIP Similarity Loader.")
    if mode == "text" and not text:
        raise ValueError(f"{NAME} in mode text has no text. Write what the mask should show.")


def points_form(node: str, name: str, text: str) -> None:
    """Raises ValueError for a text that is no list of points; whether they lie in the picture, only a run can tell."""
    prompts.parse_points(text, name, math.inf, math.inf)


def by_words(found: Segments, kept: list[int], guidance, text: str, pick: str, amount: float, text_crop: str) -> list[int]:
    if not kept:
        return []
    cuts = [crops.cutout(found.image, found.masks[i]) if text_crop == "cutout" else crops.in_place(found.image, found.boxes[i]) for i in kept]
    return prompts.by_text(guidance.image_features(cuts), guidance.text_features([text])[0], kept, pick, amount)


def box(mask: torch.Tensor) -> dict[str, int]:
    x1, y1, x2, y2 = bounds(mask)
    return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
