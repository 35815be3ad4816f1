"""Faces: is there one, and is it the same person's?"""

from __future__ import annotations

import contextlib
import sys

import numpy as np

from ..identity.analysis import find_faces, pick_face
from . import pictures
from .errors import EvaluationError, MissingWeights, Undefined


def load_analysis(tools):
    """insightface with the pack from `models/insightface`, never a download. Raises MissingWeights."""
    folder = tools.find("faces", tools.face_pack, places=("insightface/models", "insightface")).resolve()
    if len(list(folder.glob("*.onnx"))) < 2:  # insightface would go and download the pack
        raise MissingWeights(f"{folder} holds no detector and recogniser (.onnx)")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it loads
            import insightface.app
            analysis = insightface.app.FaceAnalysis(name=str(folder), allowed_modules=["detection", "recognition"])
            analysis.prepare(ctx_id=0 if tools.device.type == "cuda" else -1, det_size=(640, 640))
    except ImportError as error:
        raise MissingWeights(f"insightface cannot be imported ({pictures.first_line(error)}): {sys.executable} -m pip install "
                             "insightface, and then onnxruntime-gpu again if you had it") from None
    except Exception as error:  # onnxruntime raises its own kinds for a damaged file
        raise EvaluationError(f"{folder} cannot be read as a face pack: {pictures.first_line(error)}") from None
    if "recognition" not in analysis.models:
        raise EvaluationError(f"{folder} holds no recogniser: identities cannot be compared")
    return analysis


class Faces:
    """The most certain face of a picture. Each picture is analysed once."""

    def __init__(self, tools):
        self.analysis, self.seen = load_analysis(tools), {}  # anything with .get(bgr) -> faces

    def best(self, path):
        """The face (bbox, normed_embedding) with the highest detection score, as FastFace's published code takes; or None."""
        if path not in self.seen:
            bgr = np.ascontiguousarray(np.asarray(pictures.load(path))[..., ::-1])
            self.seen[path] = pick_face(find_faces(self.analysis, bgr), "score")
        return self.seen[path]


class Identity:
    """Cosine of the faces' embeddings in generated picture and identity photo, from -1 to 1; FastFace's column ID."""

    name, needs, better = "identity", ("generated", "identity"), "up"

    def __init__(self, tools):
        self.faces = tools.faces

    def __call__(self, item: dict) -> float:
        person = self.faces.best(item["identity"])
        if person is None:
            raise EvaluationError(f"{item['identity']} shows no face to compare with")
        face = self.faces.best(item["generated"])
        if face is None:
            raise Undefined("no face in the generated picture")  # face_fails counts it; the mean leaves it out
        return float(np.asarray(person.normed_embedding, np.float64) @ np.asarray(face.normed_embedding, np.float64))


class CopyPaste:
    """Is the face the photo's own rather than the person's? From -1 to 1, as WithAnyone (2025) defines it.

    (angle to another photo of the person - angle to the identity photo) / angle between these two: 1 for a copy of the
    identity photo, 0 for a face that is as near to both, -1 for a copy of the other photo. Angles are those of embeddings.
    """

    name, needs, better = "copy_paste", ("generated", "identity", "other_photo"), "down"

    def __init__(self, tools):
        self.faces = tools.faces

    def __call__(self, item: dict) -> float:
        found = {}
        for side in self.needs:
            face = self.faces.best(item[side])
            if face is None and side == "generated":
                raise Undefined("no face in the generated picture")
            if face is None:
                raise EvaluationError(f"{item[side]} shows no face to compare with")
            found[side] = np.asarray(face.normed_embedding, np.float64)
        to_other, to_photo, between = (np.arccos(np.clip(found[a] @ found[b], -1, 1)) for a, b in (
            ("generated", "other_photo"), ("generated", "identity"), ("identity", "other_photo")))
        if between < 1e-3:
            raise EvaluationError(f"{item['other_photo']} shows the same face as {item['identity']}: give another photo of the person")
        return float((to_other - to_photo) / between)


class FaceFails:
    """1 where no face is found in the generated picture, else 0; their sum is FastFace's column FFC."""

    name, needs, better = "face_fails", ("generated", "identity"), "down"

    def __init__(self, tools):
        self.faces = tools.faces

    def __call__(self, item: dict) -> float:
        return float(self.faces.best(item["generated"]) is None)


class FaceStyle:
    """CLIP score of the generated face, cut out, with the prompt's words for the style; FastFace's FCS (table 2)."""

    name, needs, better = "face_style", ("generated", "style_prompt"), "up"

    def __init__(self, tools):
        self.faces, self.clip = tools.faces, tools.clip

    def __call__(self, item: dict) -> float:
        face, picture = self.faces.best(item["generated"]), pictures.load(item["generated"])
        if face is None:
            raise Undefined("no face in the generated picture")
        left, top, right, bottom = (int(number) for number in face.bbox)
        box = (max(left, 0), max(top, 0), min(right, picture.width), min(bottom, picture.height))
        if box[2] <= box[0] or box[3] <= box[1]:
            raise Undefined("the face lies outside the generated picture")
        return float(self.clip.image(picture.crop(box)) @ self.clip.text(item["style_prompt"]))
