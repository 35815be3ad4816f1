"""The demo's faces: recognisers that know the truth, a file in FaceID's format, nodes that take both, training that agrees with them."""

import types

import comfy.sample
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from portrait_atelier.demo import checkpoint, faces
from portrait_atelier.demo.codec import CHANNELS
from portrait_atelier.demo.judges import GEOMETRY
from portrait_atelier.demo.making import denoiser, faces as making, judges, pictures
from portrait_atelier.demo.portraits import draw, sample_identities
from portrait_atelier.demo.styles import NAMES, TRAINED, paint, render
from portrait_atelier.host import demo_model
from portrait_atelier.host.face_adapter import patched
from portrait_atelier.identity.adapter import load_adapter
from portrait_atelier.identity.faces import FaceIdentity
from portrait_atelier.nodes.demo_face_loader import DemoFaceLoader
from portrait_atelier.nodes.face_adapter_apply import FaceAdapterApply
from portrait_atelier.nodes.face_identity_encode import FaceIdentityEncode


def people(count, seed=77_000):
    generator = torch.Generator().manual_seed(seed)
    return sample_identities(count, generator), generator


def test_true_embeddings():
    """Nobody is like another on average, everybody like himself, whatever the background, the shirt, the light and the smile."""
    who, generator = people(400)
    truth = faces.identity_of(who)
    assert truth.shape == (400, faces.WIDTH)
    cosine = truth @ truth.T
    torch.testing.assert_close(cosine.diagonal(), torch.ones(400))
    assert abs(float((cosine.sum() - 400) / (400 * 399))) < .02
    other, _ = people(400, 5)
    dressed = {**who, **{name: other[name] for name in ("background", "shirt", "scene", "hat", "light", "gaze", "tilt", "x", "y", "mouth_curve", "open_mouth")}}
    assert torch.equal(faces.identity_of(dressed), truth)
    for name in (*faces.SHAPES, *faces.LOOKS, *faces.MARKS):
        assert not torch.equal(faces.identity_of({**who, name: other[name]}), truth), name


def test_shares_of_traits():
    """Each trait has the spread that it is given, so none drowns the others."""
    traits, column = faces.traits_vector(people(20_000)[0]).var(0), 0
    for name, share in {**faces.SHAPES, **faces.LOOKS, **faces.MARKS}.items():
        width = len(faces.CHOICES[name]) if name in faces.LOOKS else 1
        assert float(traits[column:column + width].sum()) == pytest.approx(share, rel=.06), name
        column += width
    assert column == faces.WIDTH


@pytest.fixture(scope="module")
def rendered():
    """27 people, each as a photo and in another style."""
    who, generator = people(27)
    layers, variant = draw(who), torch.zeros(27, dtype=torch.long)
    return who, paint(layers, variant, variant, generator), paint(layers, torch.tensor([NAMES.index(TRAINED[1 + k % 9]) for k in range(27)]), variant, generator)


@pytest.mark.parametrize("role", ["own", "judge"])
def test_recognisers_know_people_across_styles(role, rendered):
    """A photo is like a picture of the same person in another style, and unlike those of others."""
    network = getattr(faces.load_recognisers(), role)
    who, photos, drawings = rendered
    photo, drawn = network.embed(photos), network.embed(drawings)
    cosine = photo @ drawn.T
    same, other = cosine.diagonal().mean(), (cosine.sum() - cosine.trace()) / (27 * 26)
    assert same > .5 and abs(other) < .15, (same, other)
    assert (cosine.argmax(1) == torch.arange(27)).float().mean() > .5
    assert float((photo * faces.identity_of(who)).sum(1).mean()) > .6       # 0 for a stranger; the shipped judge reads .70


def test_two_recognisers():
    pair = faces.load_recognisers()
    assert not torch.equal(pair.own.traits.weight, pair.judge.traits.weight)


def test_points_lie_on_the_face(rendered):
    who, pictures, _ = rendered
    analysis, errors = faces.Analysis(faces.load_recognisers().own), []
    for number, picture in enumerate(pictures[:12]):
        bgr = np.ascontiguousarray((picture.movedim(0, -1) * 255).byte().numpy()[..., ::-1])
        [face] = analysis.get(bgr)
        parts = {name: float(who[name][number]) for name in GEOMETRY}
        eyes = faces.place([(-parts["eye_gap"], parts["eye_y"]), (parts["eye_gap"], parts["eye_y"])], parts) * 256
        errors.append(np.abs(face.kps[:2] - eyes).max())
        left, top, right, bottom = face.bbox
        assert left < face.kps[:, 0].min() and right > face.kps[:, 0].max() and top < face.kps[:, 1].min() and bottom > face.kps[:, 1].max()
        assert face.aligned.shape == (224, 224, 3) and face.aligned.dtype == np.uint8 and abs(np.linalg.norm(face.normed_embedding) - 1) < 1e-5
    assert np.mean(errors) < 12, errors


def test_places_are_the_renderers():
    """The point between the eyes of a tilted head is where the renderer draws the glasses' bridge."""
    who, generator = people(1)
    who = {**who, "glasses": torch.ones(1), "tilt": torch.full((1,), .13), "x": torch.full((1,), .08), "cut": torch.zeros(1, dtype=torch.long)}
    without = {**who, "glasses": torch.zeros(1)}
    style = torch.tensor([NAMES.index("cartoon")])
    seen = (render(who, style, style * 0, generator) - render(without, style, style * 0, generator)).abs().amax(1)[0]
    rows, columns = torch.nonzero(seen > .2, as_tuple=True)
    parts = {name: float(who[name][0]) for name in GEOMETRY}
    [[x, y]] = faces.place([(0, parts["eye_y"])], parts) * 256
    assert abs(float(columns.float().mean()) - x) < 4 and abs(float(rows.float().mean()) - y) < 6


def test_no_face_in_a_plain_picture(rendered):
    """Flat grounds, and portraits cut into shuffled tiles, of which a few hold a face by chance."""
    analysis = faces.Analysis(faces.load_recognisers().own)
    torch.manual_seed(0)
    tiles = [judges.spoil(picture[None])[0] for picture in rendered[1][:8]]
    found = [len(analysis.get(np.ascontiguousarray((picture.movedim(0, -1) * 255).byte().numpy()[..., ::-1])))
             for picture in (torch.full((3, 256, 256), .5), torch.ones(3, 256, 256), *tiles)]
    assert found[:2] == [0, 0] and sum(map(bool, found)) <= 2, found


def test_the_nodes_take_them(monkeypatch):
    """Demo Face Loader, Face Identity Encode, Face Adapter Apply, without insightface."""
    monkeypatch.setitem(__import__("sys").modules, "insightface", None)
    analysis, adapter = DemoFaceLoader.execute().result
    who, generator = people(2)
    photos = render(who, torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long), generator).movedim(1, -1)
    identity, crop, found = FaceIdentityEncode.execute(analysis, photos).result
    assert found == 2 and crop.shape == (2, 224, 224, 3) and identity.embedding.shape == (1, faces.WIDTH)
    world = checkpoint.load()
    model = demo_model.model(world.unet, world.scale, *world.codec.preview())
    [patched_model] = FaceAdapterApply.execute(model, adapter, identity).result
    assert len(patched_model.model_options["transformer_options"]["patches_replace"]["attn2"]) == 16


def test_files_are_small_and_plain():
    assert checkpoint.PATH.stat().st_size + faces.ADAPTER_PATH.stat().st_size + faces.PATH.stat().st_size <= 24e6
    adapter = load_adapter(faces.ADAPTER_PATH)
    assert (adapter.base, adapter.plus, adapter.width, len(adapter.keys_values)) == ("other", False, demo_model.CONTEXT, 16)
    assert len(adapter.lora) == 2 * 4 * 32
    assert adapter.projection.tokens == 4 and adapter.projection.embedding_width == faces.WIDTH


@pytest.mark.parametrize("load", [faces.load_recognisers, faces.load_face_adapter])
def test_missing_files(load, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.safetensors.* missing from .*train"):
        load(tmp_path / "none.safetensors")


def test_recognisers_of_another_version(tmp_path):
    faces.save_recognisers(tmp_path / "r.safetensors", {"a": torch.ones(1)}, {}, {})
    with pytest.raises(ValueError, match="another version of the pack"):
        faces.load_recognisers(tmp_path / "r.safetensors")


def random_world():
    torch.manual_seed(3)
    net = demo_model.network(16, 48)
    denoiser.start_network(net)
    for module in net.modules():
        if type(module).__name__ in ("SpatialTransformer", "ResBlock"):
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=.05) if parameter.ndim > 1 else None
    torch.nn.init.normal_(net.out[2].weight, std=.1)
    return net.state_dict()


@torch.inference_mode(False)
def test_what_is_trained_is_what_the_nodes_apply(tmp_path):
    """The adapter as it learns, and its file behind Face Adapter Apply at weight 1: the same picture, of a person and of nobody."""
    weights = random_world()
    build = lambda: demo_model.model(weights, 1., [[0.] * 3] * 16, [0.] * 3)
    learning, plain = build(), build()
    adapter = making.Decoupled(learning)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=.3) if parameter.ndim > 1 else None
    save_file(adapter.state_dict(), tmp_path / "a.safetensors")
    who = torch.nn.functional.normalize(torch.randn(1, faces.WIDTH), dim=1)
    applied = patched(plain, load_adapter(tmp_path / "a.safetensors"), FaceIdentity(who), weight=1., lora_strength=1., shortcut=1., start=0., end=1., mask=None, skip_middle=False)
    context = torch.randn(2, 16, 64)
    with torch.no_grad():
        for key, attend in adapter.options(who)["patches_replace"]["attn2"].items():
            learning.set_model_attn2_replace(attend, *key)
        z = torch.randn(1, 16, 8, 8)
        draw = lambda model: comfy.sample.sample(model, z, 2, 1., "euler", "simple", [[context[:1], {}]], [[context[1:], {}]], z * 0, disable_pbar=True)
        expected, bare = draw(learning), draw(plain)
        torch.testing.assert_close(draw(applied), expected, rtol=0, atol=5e-4)
        assert (bare - expected).abs().max() > .05


def test_photos_and_their_people():
    """Rows of pictures.render: eight people at a time, one style after the other."""
    words = torch.zeros(80, 20, dtype=torch.long)
    words[:, 1] = making.INDEX["ink"]
    words[[16 + 3, 40 + 32 + 7], 1] = making.INDEX["photo"]
    rows, photos = making.photos_of_people(words)
    assert rows.tolist() == [[3, 11, 19, 27, 35], [47, 55, 63, 71, 79]] and photos.tolist() == [19, 79]


def test_prompts_without_identity():
    torch.manual_seed(0)
    words = torch.arange(1, 21).expand(4000, 20)
    kept = making.without_identity(words)
    share = lambda number: float((kept == number).any(1).float().mean())
    assert abs(share(2) - .81) < .03 and abs(share(5) - .09) < .03 and abs(float((kept == 0).all(1).float().mean()) - .1) < .03


def test_training_runs_through_and_resumes(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "portrait_atelier")
    monkeypatch.setattr(denoiser, "WIDTH", 32)
    pictures.render(tmp_path, 8, "cpu")
    words = torch.from_numpy(np.load(tmp_path / "words.npy"))
    torch.save({"latents": torch.randn(len(words), CHANNELS, 16, 16), "words": words}, tmp_path / "latents.pt")
    teacher = denoiser.new_model("cpu")
    for parameter in teacher.parameters():      # some of which start at zero and would let nothing through
        torch.nn.init.normal_(parameter, std=.05)
    torch.save(teacher.state_dict(), tmp_path / "unet.pt")
    args = types.SimpleNamespace(folder=tmp_path, device="cpu", share=1e-9, identities=64, output=None)
    with torch.inference_mode(False):
        making.run(args)
    adapter, pair = faces.load_face_adapter(tmp_path / faces.ADAPTER_PATH.name), faces.load_recognisers(tmp_path / faces.PATH.name)
    assert any(value.abs().sum() > 0 for name, value in adapter.lora.items() if "up" in name) and isinstance(pair.judge, faces.Recogniser)
    (tmp_path / "adapter.pt").unlink()
    caplog.clear()
    with torch.inference_mode(False):
        making.run(args)
    again = faces.load_face_adapter(tmp_path / faces.ADAPTER_PATH.name)
    assert all(torch.equal(value, again.lora[name]) for name, value in adapter.lora.items())      # the same seed
    assert "making adapter.pt" in caplog.text and "making recogniser" not in caplog.text
