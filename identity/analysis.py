"""From photos to faces: which face, the aligned crop, and what happens where there is none.

An analysis is any object whose `.get(bgr uint8 [height, width, 3])` lists faces with bbox, kps, normed_embedding and det_score,
as insightface's FaceAnalysis does. A face that also has `aligned` (uint8 [224, 224, 3], BGR), as the demo's, needs no insightface.
"""

from collections.abc import Sequence

import numpy as np
import torch

SIZES = (640, 576, 512, 448, 384, 320)  # a face that fills the picture is found when the detector sees it smaller
CROP = 224
LONGEST = 300  # times the short side: the detector shrinks the long side to 320, and would leave nothing of the short one


def to_bgr(image: torch.Tensor) -> np.ndarray:
    """A ComfyUI picture [height, width, 1 to 4 channels] in 0..1 as OpenCV keeps it: uint8, BGR. Alpha is dropped.

    Raises ValueError for NaN and infinite values.
    """
    if not torch.isfinite(image).all():
        raise ValueError("holds NaN or infinite values. Check the node it comes from")
    rgb = image[..., :3] if image.shape[-1] > 2 else image[..., :1].expand(-1, -1, 3)
    pixels = (rgb.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return np.ascontiguousarray(pixels[..., ::-1])


def find_faces(analysis, bgr: np.ndarray) -> list:
    """All faces of one picture, searched again at smaller and smaller sizes (`SIZES`) as long as there is none."""
    if max(bgr.shape[:2]) > LONGEST * min(bgr.shape[:2]):
        return []
    faces = analysis.get(bgr)
    detector = getattr(analysis, "det_model", None)
    if len(faces) or not takes_any_size(detector):
        return list(faces)
    for size in SIZES[1:]:
        # The size goes with the call: insightface 2 ignores an assignment to the detector's input_size.
        boxes, points = detector.detect(bgr, input_size=(size, size))
        if len(boxes):
            return [recognised(analysis, bgr, box, None if points is None else points[i]) for i, box in enumerate(boxes)]
    return []


def takes_any_size(detector) -> bool:
    """Whether the detector's network takes pictures of any size; an analysis of another kind may have no detector at all."""
    session = getattr(detector, "session", None)
    return session is not None and not isinstance(session.get_inputs()[0].shape[2], int)


def recognised(analysis, bgr: np.ndarray, box: np.ndarray, points: np.ndarray | None):
    """The face in a detector's box (left, top, right, bottom, score), with its embedding."""
    from insightface.app.common import Face

    face = Face(bbox=box[:4], kps=points, det_score=box[4])
    analysis.models["recognition"].get(bgr, face)
    return face


def pick_face(faces: Sequence, pick: str, index: int = 0):
    """One face, or None where there is none: the `largest`, the one of the highest `score`, or number `index` from the left."""
    if pick == "index":
        from_left = sorted(faces, key=lambda face: float(face.bbox[0] + face.bbox[2]))
        return from_left[index] if index < len(from_left) else None
    keys = {"largest": lambda face: float((face.bbox[2] - face.bbox[0]) * (face.bbox[3] - face.bbox[1])),
            "score": lambda face: float(face.det_score)}
    return max(faces, key=keys[pick], default=None)


def align(bgr: np.ndarray, face) -> np.ndarray:
    """The face turned and scaled so that its five points lie where FaceID was trained: [224, 224, 3], BGR, black beyond the photo.

    Raises ValueError when the analysis gave no points.
    """
    aligned = getattr(face, "aligned", None)
    if aligned is not None:
        return aligned
    from insightface.utils import face_align

    if face.kps is None:
        raise ValueError("The face analysis gives no points of the face, which aligning needs. Use an insightface pack such as buffalo_l")
    return face_align.norm_crop(bgr, landmark=face.kps, image_size=CROP)


def repeat_previous(found: Sequence) -> list:
    """`found` with every None replaced by what came before it. Photos before the first face stay None."""
    filled = []
    for face in found:
        filled.append(face if face is not None or not filled else filled[-1])
    return filled
