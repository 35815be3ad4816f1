"""A face adapter of random weights for the tiny models, and a listener on cross-attention."""

import types

import pytest
import torch

from portrait_atelier.attention import maps
from portrait_atelier.host import decoupled
from portrait_atelier.identity.adapter import FaceAdapter
from portrait_atelier.identity.faces import FaceIdentity
from portrait_atelier.nodes.face_adapter_apply import FaceAdapterApply

TOKENS, WIDTH, CLIP = 4, 64, 6
# Number of the attention processor of every cross-attention, as the design's table has it: down, up, then the middle.
NUMBERS = {
    "nano": {("input", 1, 0): 1, ("output", 2, 0): 3, ("output", 3, 0): 5, ("middle", 0, 0): 7},
    "sd15": {**{("input", n, 0): 2 * i + 1 for i, n in enumerate((1, 2, 4, 5, 7, 8))},
             **{("output", n, 0): 2 * i + 13 for i, n in enumerate(range(3, 12))}, ("middle", 0, 0): 31},
    "sdxl": {**{("input", n, j): 2 * i + 1 for i, (n, j) in enumerate([(n, j) for n in (4, 5) for j in range(2)]
                                                                    + [(n, j) for n in (7, 8) for j in range(10)])},
             **{("output", n, j): 2 * i + 49 for i, (n, j) in enumerate([(n, j) for n in (0, 1, 2) for j in range(10)]
                                                                      + [(n, j) for n in (3, 4, 5) for j in range(2)])},
             **{("middle", 0, j): 2 * j + 121 for j in range(10)}},
}


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Projection(torch.nn.Module):
    """Stands for FaceProjection: both inputs and the shortcut act, and a zero embedding gives tokens that are not zero."""

    embedding_width = 512

    def __init__(self):
        super().__init__()
        self.face = random(512, TOKENS * WIDTH, seed=21) * 0.1
        self.picture = random(CLIP, WIDTH, seed=22)
        self.nobody = random(TOKENS, WIDTH, seed=23)

    def forward(self, embedding, clip=None, shortcut=1.0):
        tokens = (embedding @ self.face.to(embedding)).view(-1, TOKENS, WIDTH) + self.nobody.to(embedding)
        return tokens if clip is None else tokens + shortcut * (clip.mean(1) @ self.picture.to(clip))[:, None]


def blocks(model):
    unet = model.model.diffusion_model
    parts = [("input", unet.input_blocks), ("middle", [unet.middle_block]), ("output", unet.output_blocks)]
    return {(part, number, index): layer for part, group in parts for number, block in enumerate(group) for module in block
            for index, layer in enumerate(getattr(module, "transformer_blocks", []))}


class Faces:
    """Everything around our nodes: an adapter that fits a studio's model, identities, and what the papers say of them."""

    def __init__(self, studio, family="nano", plus=False):
        self.studio, self.family = studio, family
        self.layers = blocks(studio.model)
        lora, keys_values = {}, {}
        for layer, number in NUMBERS[family].items():
            block = self.layers[layer]
            keys_values[number] = tuple(random(block.attn2.to_k.out_features, WIDTH, seed=100 * number + i) * 0.2 for i in (0, 1))
            for attention, n in ((block.attn1, number - 1), (block.attn2, number)):
                for kind, linear in (("q", attention.to_q), ("k", attention.to_k), ("v", attention.to_v), ("out", attention.to_out[0])):
                    lora[f"{n}.to_{kind}_lora.down.weight"] = random(2, linear.in_features, seed=n) * 0.1
                    lora[f"{n}.to_{kind}_lora.up.weight"] = random(linear.out_features, 2, seed=n + 500) * 0.1
        self.adapter = FaceAdapter(name="toy", base="other", width=WIDTH, plus=plus, version="v2", clip_width=CLIP if plus else None,
                                   projection=Projection(), keys_values=keys_values, lora=lora)

    def identity(self, people=1, found=True, seed=30):
        if not found:
            return FaceIdentity(found=False)
        clip, grey = (random(n, 5, CLIP, seed=seed + n) if self.adapter.plus else None for n in (people, 1))
        return FaceIdentity(random(people, 512, seed=seed), clip, grey)

    def apply(self, identity=None, model=None, mask=None, adapter=None, **options):
        return FaceAdapterApply.execute(model or self.studio.model, adapter or self.adapter, identity or self.identity(), mask,
                                        **{"lora_strength": 0.0, **options})[0]


class CrossTrace:
    """What every cross-attention of a model got and gave, call by call, from the modules themselves."""

    def __init__(self, model):
        self.unet, self.layers, self.calls, self.handles = model.model.diffusion_model, blocks(model), [], []

    def __enter__(self):
        def begin(module, args, kwargs):
            options = kwargs.get("transformer_options", {})
            self.calls.append({"slots": options["cond_or_uncond"], "sigma": float(options["sigmas"][0]), "layers": {}})

        self.handles.append(self.unet.register_forward_pre_hook(begin, with_kwargs=True))
        for name, layer in self.layers.items():
            for key, module in (("n", layer.attn2.to_q), ("context", layer.attn2.to_k), ("out", layer.attn2.to_out)):
                self.handles.append(module.register_forward_pre_hook(
                    lambda m, a, name=name, key=key: self.calls[-1]["layers"].setdefault(name, {}).update({key: a[0].double()})))
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


@pytest.fixture(scope="session")
def make_faces():
    return Faces


@pytest.fixture(scope="session")
def nano(make_studio):
    return make_studio("nano")


@pytest.fixture(scope="session")
def faces(nano):
    """Four layers: enough for most laws, and fast."""
    return Faces(nano)


@pytest.fixture(scope="session")
def sixteen(sd15):
    """SD1.5's sixteen layers."""
    return Faces(sd15, "sd15")


@pytest.fixture(scope="session")
def cross_trace():
    return CrossTrace


def literal_tokens(faces, identity, shortcut=1.0):
    """(tokens of the people, tokens of nobody), [people * tokens, width] each, in float64."""
    def tokens(embedding, clip):
        return faces.adapter.projection(embedding.double(), None if clip is None else clip.double(), shortcut).flatten(0, 1)

    grey = None if identity.clip is None else identity.grey.expand(len(identity.embedding), -1, -1)
    return tokens(identity.embedding, identity.clip), tokens(torch.zeros_like(identity.embedding), grey)


def softmax_map(q, k):
    return torch.softmax(q @ k.T / q.shape[-1] ** 0.5, -1)


def literal_error(faces, trace, branches, transform=None):
    """Largest relative error of equation (3), z = A V + sum of lambda m f(A') V', in float64, over all calls, layers and rows.

    branches: [(identity, weight, mask(layer, picture) or 1, active(sigma), shortcut)]
    transform: f(A' of the heads of one row [heads, queries, tokens], V' [heads, tokens, d], layer, sigma) -> [heads, queries, d]
    """
    worst = 0.0
    for call in trace.calls:
        for name, seen in call["layers"].items():
            attn, number = faces.layers[name].attn2, NUMBERS[faces.family][name]
            to_k, to_v = (w.double() for w in faces.adapter.keys_values[number])
            size = len(seen["n"]) // len(call["slots"])
            for row, (n, context) in enumerate(zip(seen["n"], seen["context"])):
                slot, picture = call["slots"][row // size], row % size
                def heads(x):
                    return x.unflatten(-1, (attn.heads, -1)).transpose(0, 1)
                q = heads(n @ attn.to_q.weight.double().T)
                k, v = (heads(context @ w.weight.double().T) for w in (attn.to_k, attn.to_v))
                z = torch.stack([softmax_map(q[h], k[h]) @ v[h] for h in range(attn.heads)])
                for identity, weight, mask, active, shortcut in branches:
                    if not active(call["sigma"]):
                        continue
                    person, nobody = literal_tokens(faces, identity, shortcut)
                    tokens = nobody if slot == 1 else person
                    kp, vp = heads(tokens @ to_k.T), heads(tokens @ to_v.T)
                    maps = torch.stack([softmax_map(q[h], kp[h]) for h in range(attn.heads)])
                    out = maps @ vp if transform is None else transform(maps, vp, name, call["sigma"])
                    area = mask(name, picture) if callable(mask) else mask
                    z = z + weight * out * area
                expected = z.transpose(0, 1).flatten(1)
                worst = max(worst, ((seen["out"][row] - expected).abs().max() / expected.abs().max()).item())
    return worst


@pytest.fixture(scope="session")
def law():
    """The literal equation and the numbers of the layers, for tests."""
    return types.SimpleNamespace(error=literal_error, numbers=NUMBERS, tokens=TOKENS, always=lambda sigma: True)


@pytest.fixture
def identity_transform(monkeypatch):
    """Scale-Power Attention whose f in equation (7) is the identity. Attention without f is computed from the map as well: a fused
    kernel rounds otherwise on some processors, and then equal bits would say nothing."""
    monkeypatch.setattr(maps.ScalePower, "__call__", lambda self, a, v, first_tokens: maps.weigh_values(a, v))

    def attention(q, k, v, heads, **options):
        k, v = (x.reshape(len(q), -1, x.shape[-1]) for x in (k, v))  # ComfyUI joins the tokens of a larger batch
        return maps.join_heads(maps.weigh_values(maps.attention_maps(q, k, heads), v))

    monkeypatch.setattr(decoupled, "optimized_attention", attention)
