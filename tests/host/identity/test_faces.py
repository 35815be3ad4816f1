"""Face Analysis Loader and Face Identity Encode through the real insightface, on generated networks."""

import socket
import sys
import types

import numpy as np
import pytest
import torch

from portrait_atelier.host import faces as host
from portrait_atelier.nodes.face_analysis_loader import FaceAnalysisLoader
from portrait_atelier.nodes.face_identity_encode import FaceIdentityEncode

FACE = (160, 160, 50)  # of a picture of 320 x 320: 100 pixels wide where the detector looks


def load(pack="models/tiny", provider="CPU"):
    return FaceAnalysisLoader.execute(pack, provider)[0]


# --- what is found

def test_one_face_five_points_512_values(analysis, encode, photo):
    image = photo([FACE])
    bgr = np.ascontiguousarray((image[0].numpy()[..., ::-1] * 255).round().astype(np.uint8))
    found = analysis.get(bgr)
    assert len(found) == 1 and found[0].kps.shape == (5, 2) and found[0].normed_embedding.shape == (512,)
    identity, crop, count = encode(image)
    assert identity.found and count == 1 and identity.embedding.shape == (1, 512) and crop.shape == (1, 224, 224, 3)
    assert identity.clip is None and identity.grey is None
    assert torch.equal(identity.embedding[0], torch.from_numpy(found[0].normed_embedding))


def cosine(a, b):
    return (a.embedding.double() @ b.embedding.double().T).item()


def test_id_of_a_person_with_himself_is_one(encode, photo):
    first, again, other = (encode(photo([(*FACE, person)]))[0] for person in (0, 0, 2))
    assert abs(cosine(first, again) - 1) < 1e-6
    assert abs(first.embedding.double().norm() - 1) < 1e-6 and cosine(first, other) < 0.999


def test_the_crop_is_aligned_and_rgb(encode, photo):
    """The detector's points are those of a face whose box fills the crop: 128 of its pixels become 224."""
    _, crop, _ = encode(photo([FACE]))
    red = (crop[0] - torch.tensor([0.9, 0.0, 0.0])).abs().amax(-1) < 0.2
    assert abs(red.sum().item() / (np.pi / 4 * (100 / 128 * 224) ** 2) - 1) < 0.03
    y, x = red.nonzero().double().mean(0)
    assert abs(x - 112) < 1.5 and abs(y - 112) < 1.5


SEVERAL = [(60, 96, 15), (160, 160, 50), (250, 60, 15)]


@pytest.mark.parametrize("options, expected", [
    ({"pick": "largest"}, 1), ({"pick": "index"}, 0), ({"pick": "index", "face_index": 1}, 1), ({"pick": "index", "face_index": 2}, 2)])
def test_which_of_several_faces(encode, photo, options, expected):
    x, y, diameter = SEVERAL[expected]
    _, crop, count = encode(photo([(*face, 2 * i) for i, face in enumerate(SEVERAL)]), **options)
    _, alone, _ = encode(photo([(x, y, diameter, 2 * expected)]))
    assert count == 1  # photos, not faces
    assert (crop - alone).abs()[:, 60:164, 60:164].max() < 0.05


def test_the_surest_face(analysis, encode, photo):
    image = photo(SEVERAL)
    bgr = np.ascontiguousarray((image[0].numpy()[..., ::-1] * 255).round().astype(np.uint8))
    surest = max(analysis.get(bgr), key=lambda face: face.det_score)
    assert torch.equal(encode(image, pick="score")[0].embedding[0], torch.from_numpy(surest.normed_embedding))


def test_an_index_beyond_the_faces_is_no_face(encode, photo):
    with pytest.raises(ValueError, match="no face found in the photo"):
        encode(photo(SEVERAL), pick="index", face_index=3)


def test_a_face_that_fills_the_photo_is_found_smaller(analysis, encode, photo):
    image = photo([(160, 160, 105)])
    bgr = np.ascontiguousarray((image[0].numpy()[..., ::-1] * 255).round().astype(np.uint8))
    sizes = [size for size in range(640, 319, -64) if len(analysis.det_model.detect(bgr, input_size=(size, size))[0])]
    assert 640 not in sizes and len(sizes) > 1, "the picture must need a smaller size, and have a choice"
    identity, crop, count = encode(image)
    assert count == 1 and abs(identity.embedding.norm() - 1) < 1e-6
    red = (crop[0, ..., 0] > 0.7) & (crop[0, ..., 1] < 0.2)
    assert abs(red.sum().item() / (np.pi / 4 * (210 * sizes[0] / 640 / 128 * 224) ** 2) - 1) < 0.06, "not the first size that works"


def test_a_detector_of_fixed_size_is_not_asked_for_others(put_pack, networks, photo, tmp_path, save_detector):
    save_detector(tmp_path / "fixed.onnx", (640, 640))
    put_pack(files={**networks, "det.onnx": (tmp_path / "fixed.onnx").read_bytes()})
    analysis, asked = load(), []
    detect = analysis.det_model.detect
    analysis.det_model.detect = lambda *args, **options: asked.append(options.get("input_size")) or detect(*args, **options)
    assert FaceIdentityEncode.execute(analysis, photo([FACE]))[2] == 1
    assert FaceIdentityEncode.execute(analysis, photo([]), if_no_face="skip")[2] == 0
    assert asked == [None, None]


# --- pictures of every kind

def test_a_face_at_the_border(encode, photo):
    _, crop, count = encode(photo([(8, 160, 50)]))
    assert count == 1 and (crop[0, :, :20] == 0).all() and crop[0, 112, 150, 0] > 0.7, "black beyond the photo, the face inside"


@pytest.mark.parametrize("height, width", [(8, 8), (1, 1), (1, 2000), (2000, 1), (3, 600)])
def test_tiny_and_narrow_photos_without_a_face(encode, photo, height, width):
    with pytest.raises(ValueError, match="no face found in the photo"):
        encode(photo([], height, width))


def test_a_face_of_two_pixels_in_a_photo_of_eight(encode, photo):
    image = photo([], 8, 8)
    image[0, 3:5, 3:5] = torch.tensor([1.0, 0.0, 0.0])
    identity, crop, count = encode(image)
    assert count == 1 and torch.isfinite(identity.embedding).all() and crop.shape == (1, 224, 224, 3)


def test_a_huge_photo(encode, photo):
    _, crop, count = encode(photo([(2000, 400, 500)], 800, 4000))
    assert count == 1 and crop[0, 112, 112, 0] > 0.7


def test_alpha_is_ignored_and_gray_is_gray(encode, photo, analysis):
    image = photo([FACE])
    rgba = torch.cat([image, torch.rand(1, 320, 320, 1)], -1)
    assert torch.equal(encode(rgba)[0].embedding, encode(image)[0].embedding)

    class Anywhere:  # sees a face in every picture, and keeps the picture
        def get(self, bgr):
            self.seen = bgr
            return [types.SimpleNamespace(bbox=np.array([0, 0, 9, 9]), det_score=1.0, normed_embedding=np.eye(512)[0],
                                          kps=np.array([[3, 3], [6, 3], [4.5, 5], [3.5, 7], [5.5, 7]]))]

    other = Anywhere()  # as other packs' loaders: an object with .get alone
    for gray in (image[..., :1], image[..., :2]):
        identity, crop, _ = FaceIdentityEncode.execute(other, gray).result
        assert other.seen.dtype == np.uint8 and (other.seen == other.seen[..., :1]).all()
        assert np.array_equal(other.seen[..., 0], (image[0, ..., 0].numpy() * 255).round().astype(np.uint8))
        assert torch.equal(identity.embedding, torch.eye(512)[:1]) and torch.equal(crop[..., 0], crop[..., 2])
    FaceIdentityEncode.execute(other, image)
    assert np.array_equal(other.seen[..., 2], (image[0, ..., 0].numpy() * 255).round().astype(np.uint8)), "not BGR"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_no_colours(encode, photo, bad):
    images = torch.cat([photo([FACE])] * 2)
    images[1, 3, 3, 0] = bad
    with pytest.raises(ValueError, match="Face Identity Encode: photo 2 of the batch: holds NaN or infinite values"):
        encode(images)


# --- batches and photos without a face

@pytest.fixture
def album(photo):
    """Person, nobody, another person, nobody."""
    return torch.cat([photo([(*FACE, 0)]), photo([]), photo([(*FACE, 2)]), photo([])])


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_one_faceless_photo_loses_nothing_else(encode, album, policy, caplog):
    identity, crop, count = encode(album, if_no_face=policy, combine="tokens")
    alone = [encode(album[i:i + 1]) for i in (0, 2)]
    assert count == 2 and identity.found
    assert torch.equal(identity.embedding, torch.cat([one[0].embedding for one in alone]))
    assert torch.equal(crop, torch.cat([one[1] for one in alone]))
    assert "no face in photo 2, 4 of 4; left out" in caplog.text


def test_previous_keeps_the_number_of_people(encode, album):
    identity, crop, count = encode(album, if_no_face="previous", combine="tokens")
    first, second = (encode(album[i:i + 1])[0].embedding for i in (0, 2))
    assert count == 2 and torch.equal(identity.embedding, torch.cat([first, first, second, second])) and len(crop) == 4


def test_previous_leaves_out_what_comes_before_the_first_face(encode, album):
    identity, _, count = encode(album[1:], if_no_face="previous", combine="tokens")
    assert count == 1 and torch.equal(identity.embedding, encode(album[2:3])[0].embedding.expand(2, -1))


def test_the_mean_of_several_photos(encode, album):
    """The mean of unit vectors in float64, brought back to length 1."""
    mean, crop, count = encode(album)
    each = encode(album, combine="tokens")[0].embedding.double().numpy()
    expected = each.sum(0) / np.sqrt((each.sum(0) ** 2).sum())
    assert mean.embedding.shape == (1, 512) and count == 2 and len(crop) == 2
    assert np.abs(mean.embedding[0].numpy() - expected).max() < 1e-7


def test_nobody_at_all(encode, photo):
    nobody = torch.cat([photo([])] * 2)
    identity, crop, count = encode(nobody, if_no_face="skip")
    assert not identity.found and identity.embedding is None and count == 0 and crop.shape == (1, 224, 224, 3) and not crop.any()
    for policy in ("error", "previous"):
        with pytest.raises(ValueError, match=r"Face Identity Encode: no face found in any of the 2 photos \(searched at sizes 640, 576, 512, 448, "
                                             r"384, 320\). Use a photo .* set if_no_face to skip"):
            encode(nobody, if_no_face=policy)


# --- packs

def test_nothing_is_fetched(put_pack, monkeypatch, photo):
    def denied(*args, **kwargs):
        raise AssertionError("the network was used")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, denied)
    put_pack()
    assert FaceIdentityEncode.execute(load(), photo([FACE]))[2] == 1
    for pack in ("buffalo_l", "models/antelopev2"):  # names that insightface would fetch
        with pytest.raises(ValueError, match="no face pack"):
            load(pack)


def test_the_pack_may_lie_anywhere_below(put_pack, folders, tmp_path, monkeypatch):
    import folder_paths

    for name in ("tiny", "models/antelopev2/antelopev2", "models/buffalo_l", "a/b/c/too/deep"):
        put_pack(name)
    second = tmp_path / "second"
    second.mkdir()
    (folders / "insightface" / "models" / "antelopev2").rename(second / "antelopev2")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "insightface", ([str(folders / "insightface"), str(second)], set()))
    packs = host.face_packs()
    assert list(packs) == ["models/buffalo_l", "antelopev2/antelopev2", "tiny"]
    assert packs["antelopev2/antelopev2"] == second / "antelopev2" / "antelopev2"
    assert FaceAnalysisLoader.define_schema().inputs[0].options == list(packs)
    load("antelopev2/antelopev2")


def test_no_pack_at_all(folders):
    """The combo is not empty but says what to do, and so does running it."""
    [line] = FaceAnalysisLoader.define_schema().inputs[0].options
    assert "models/insightface/models/buffalo_l" in line
    with pytest.raises(ValueError) as error:
        load(line)
    assert str(error.value).startswith(f"Face Analysis Loader: no face pack in {folders / 'insightface'}. Nothing is downloaded")
    assert str(folders / "insightface" / "models" / "buffalo_l") in str(error.value)


@pytest.mark.parametrize("name", ["../outside", "models/../../outside", "models/gone"])
def test_a_pack_that_is_not_listed(put_pack, folders, networks, name):
    put_pack()
    put_pack("../outside")
    with pytest.raises(ValueError, match=r"no face pack '.*' in .*insightface \(found: models/tiny\)"):
        load(name)


def test_the_analysis_is_prepared_as_the_papers_do(analysis):
    assert analysis.det_model.input_size == (640, 640) and set(analysis.models) == {"detection", "recognition"}


INCOMPLETE = {
    "no recogniser": lambda pack: {"det.onnx": pack["det.onnx"]},
    "no detector": lambda pack: {"rec.onnx": pack["rec.onnx"]},
    "two detectors": lambda pack: {"a.onnx": pack["det.onnx"], "b.onnx": pack["det.onnx"]},
    "two recognisers": lambda pack: {"a.onnx": pack["rec.onnx"], "b.onnx": pack["rec.onnx"]},
    "an empty file": lambda pack: {**pack, "rec.onnx": b""},
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_an_incomplete_pack(put_pack, networks, case):
    path = put_pack("models/cut", INCOMPLETE[case](networks))
    with pytest.raises(ValueError, match="is not complete: it needs a detector and a recogniser") as error:
        load("models/cut")
    assert str(path) in str(error.value) and all(f"{file.name} ({file.stat().st_size} bytes)" in str(error.value) for file in path.iterdir())


def test_a_damaged_pack(put_pack, networks):
    put_pack(files={**networks, "rec.onnx": b"version https://git-lfs.github.com/spec/v1"})
    with pytest.raises(ValueError, match=r"could not be loaded: .* Found: det.onnx .* Unpack the zip file again") as error:
        load()
    assert "\n" not in str(error.value)


# --- packages

COMMAND = f'Run: "{sys.executable}" -m pip install insightface && "{sys.executable}" -m pip install --force-reinstall --no-deps onnxruntime'


def fails_with(*words):
    with pytest.raises(ValueError) as error:
        load()
    assert all(word in str(error.value) for word in words), error.value


def test_networks_of_other_sizes(put_pack, networks, tmp_path, save_detector):
    """A fixed detector far larger than any picture would have every photo blown up to that size."""
    save_detector(tmp_path / "large.onnx", (32768, 32768))
    folder = put_pack(files={**networks, "det.onnx": (tmp_path / "large.onnx").read_bytes()})
    with pytest.raises(ValueError, match=r"Face Analysis Loader: 'det.onnx' in .* takes 'picture' of shape \[1, 3, 32768, 32768\], more than any"):
        load()
    assert folder.is_dir()


def test_missing_onnxruntime(put_pack, monkeypatch):
    put_pack()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    fails_with("Face Analysis Loader: the package onnxruntime is missing", COMMAND)


def test_gutted_onnxruntime(put_pack, monkeypatch):
    put_pack()
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    fails_with("the package onnxruntime is an empty shell", COMMAND)


def without_insightface(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "insightface"]:
        monkeypatch.setitem(sys.modules, name, None)


def test_missing_insightface(put_pack, monkeypatch):
    put_pack()
    without_insightface(monkeypatch)
    fails_with("the package insightface cannot be imported", COMMAND)


def test_missing_insightface_while_encoding(analysis, photo, monkeypatch):
    without_insightface(monkeypatch)
    with pytest.raises(ValueError, match="Face Identity Encode: the package insightface cannot be imported"):
        FaceIdentityEncode.execute(analysis, photo([FACE]))


def test_a_server_without_libgl(put_pack, monkeypatch):
    error = ImportError("libGL.so.1: cannot open shared object file")
    assert str(host.missing_insightface("x", error)).endswith("install --force-reinstall --no-deps opencv-python-headless")


def test_with_an_nvidia_gpu_its_runtime_comes_last(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    first, last = host.install_command().split(" && ")
    assert first == f'"{sys.executable}" -m pip install insightface' and last.endswith(" onnxruntime-gpu")
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert host.install_command().endswith(" onnxruntime")


def test_providers(put_pack, monkeypatch):
    cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
    assert host.execution_providers("auto", [cpu]) == host.execution_providers("CPU", [cuda, cpu]) == [cpu]
    assert host.execution_providers("auto", [cpu, cuda, "CoreMLExecutionProvider"]) == [cuda, cpu]
    put_pack()
    import onnxruntime
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cpu])
    with pytest.raises(ValueError, match="this onnxruntime has no provider 'CUDA'; it has CPU. Choose one of them or auto"):
        load(provider="CUDA")
