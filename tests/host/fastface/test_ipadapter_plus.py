"""Living with IPAdapter_plus: a double with the shape of its patches, written from their description, on our layers and under them.

The double has what matters: one object per attn2 slot with the lists `callback` and `kwargs`, text attention and then the
callbacks whose window holds sigma; `.add` on whatever sits in a taken slot; arguments per device; per-picture repetition,
the conditional tokens for place 0 and the unconditional for place 1, all kinds of weights and embeds scaling, masks; the
tokens of several photos as a batch that attention joins; a middle block registered where ComfyUI never looks.
docs/compatibility.md has the same tried on the real one.
"""

import math
import types

import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention

from portrait_atelier.host import decoupled, ipadapter_plus
from portrait_atelier.nodes.scale_power_attention import ScalePowerAttention
from portrait_atelier.nodes.scheduled_softmax_attention import ScheduledSoftmaxAttention


class Replacement:
    def __init__(self, callback, **kwargs):
        self.callback, self.kwargs, self.multigpu_kwargs = [callback], [kwargs], {}

    def get_multigpu_kwargs(self, device):
        return self.multigpu_kwargs.get(device, self.kwargs)

    def add(self, callback, **kwargs):
        self.callback.append(callback)
        self.kwargs.append(kwargs)
        for name, value in kwargs.items():
            setattr(self, name, value)

    def __call__(self, q, k, v, extra):
        out, sigma = optimized_attention(q, k, v, extra["n_heads"]), extra["sigmas"][0].item()
        for callback, own, kwargs in zip(self.callback, self.kwargs, self.get_multigpu_kwargs(q.device)):
            if own["sigma_end"] <= sigma <= own["sigma_start"]:
                out = out + callback(out, q, k, v, extra, **kwargs)
        return out.to(q.dtype)

    def to(self, device, *args, **kwargs):
        return self


def grid_of(queries, picture):
    """Rows and columns as that pack guesses them from the latent's size."""
    rows = picture[0] / math.sqrt(picture[0] * picture[1] / queries)
    rows = int(rows) + (1 if queries % int(rows) else 0)
    return rows, queries // rows


def callback(out, q, k, v, extra, module_key="", ipadapter=None, weight=1.0, cond=None, cond_alt=None, uncond=None, weight_type="linear",
             mask=None, sigma_start=0.0, sigma_end=1.0, unfold_batch=False, embeds_scaling="V only", **others):
    slots, key = extra["cond_or_uncond"], module_key + "_to_{}_ip"
    ipadapter, rows = ipadapter.get_multigpu_clone(q.device), len(q) // len(slots)
    if isinstance(weight, float) and weight == 0:
        return 0
    if weight_type == "ease in":
        weight = weight * (0.05 + 0.95 * (1 - extra["transformer_index"] / 16))
    if unfold_batch:
        cond, uncond = (torch.cat([x, x[-1:].expand(rows - len(x), -1, -1)])[:rows] for x in (cond, uncond))
    projected = {kind: [ipadapter.ip_layers.to_kvs[key.format(kind)](x).repeat(1 if unfold_batch else rows, 1, 1) for x in (cond, uncond)]
                 for kind in "kv"}
    if len(slots) == 3:
        projected = {kind: [a, b, a] for kind, (a, b) in projected.items()}
    ip_k, ip_v = (torch.cat([projected[kind][i] for i in slots]) for kind in "kv")
    if embeds_scaling == "K+V":
        result = optimized_attention(q, ip_k * weight, ip_v * weight, extra["n_heads"])
    else:
        result = optimized_attention(q, ip_k, ip_v, extra["n_heads"]) * weight
    if mask is not None:
        height, width = grid_of(q.shape[1], extra["original_shape"][-2:])
        placed = torch.nn.functional.interpolate(mask[:, None], size=(height, width), mode="bilinear")[:, 0]
        placed = torch.cat([placed, placed[-1:].expand(max(rows - len(placed), 0), -1, -1)])[:rows]
        placed = placed.repeat(len(slots), 1, 1).flatten(1)[..., None]
        missing = q.shape[1] - height * width
        if missing > 0:
            placed = torch.nn.functional.pad(placed, (0, 0, missing // 2, missing - missing // 2))
        elif missing < 0:
            placed = placed[:, -missing // 2:][:, :q.shape[1]]
        result = result * placed
    return result.to(q.dtype)


UNHEARD = ("middle", 1, 0)  # where that pack registers the middle block; ComfyUI calls ("middle", 0)


class Pack:
    """The nodes of that pack for a studio's model: `apply` is their loop over the layers."""

    def __init__(self, faces):
        self.faces = faces
        self.layers = {name: faces.layers[name] for name in faces.layers if name[0] != "middle"}
        self.numbers = {name: 2 * i + 1 for i, name in enumerate(
            sorted(self.layers, key=lambda name: (("input", "output").index(name[0]), name[1])))}

    def adapter(self, seed=40, **attributes):
        to_kvs = {}
        for name, block in self.layers.items():
            for kind in "kv":
                linear = torch.nn.Linear(64, block.attn2.to_k.out_features, bias=False)
                linear.weight.data = 0.2 * torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(seed + self.numbers[name]))
                to_kvs[f"{self.numbers[name]}_to_{kind}_ip"] = linear.requires_grad_(False)
        own = types.SimpleNamespace(ip_layers=types.SimpleNamespace(to_kvs=to_kvs), clip_extra_context_tokens=4, **attributes)
        own.get_multigpu_clone = lambda device: own
        return own

    def apply(self, model=None, adapter=None, people=1, seed=60, **options):
        work, adapter = (model or self.faces.studio.model).clone(), adapter or self.adapter()
        generator = torch.Generator().manual_seed(seed)
        cond, uncond = (torch.randn(people, 4, 64, generator=generator) for _ in range(2))
        for name, number in {**self.numbers, UNHEARD: 2 * len(self.numbers) + 1}.items():
            kwargs = dict(module_key=str(number), ipadapter=adapter, weight=0.7, cond=cond, cond_alt=None, uncond=uncond, weight_type="linear",
                          mask=None, sigma_start=1e9, sigma_end=0.0, unfold_batch=False, embeds_scaling="V only")
            kwargs.update(options)
            key = name[:2]
            to = work.model_options["transformer_options"] = dict(work.model_options["transformer_options"])
            to["patches_replace"] = dict(to.get("patches_replace", {}))
            to["patches_replace"]["attn2"] = dict(to["patches_replace"].get("attn2", {}))
            taken = to["patches_replace"]["attn2"]
            if key in taken:
                taken[key].add(callback, **kwargs)
            else:
                taken[key] = Replacement(callback, **kwargs)
        return work


@pytest.fixture(scope="module")
def pack(faces):
    return Pack(faces)


@pytest.fixture
def latent(tensor):
    return tensor(2, 4, 8, 8, seed=3)


def am1(model, **options):
    return ScalePowerAttention.execute(model, **options)[0]


def am2(model, **options):
    return ScheduledSoftmaxAttention.execute(model, **options)[0]


# Recomputing their branch.

OPTIONS = {
    "plain": {}, "another weight": {"weight": 1.4}, "weight zero": {"weight": 0.0}, "window": {"sigma_start": 5.0, "sigma_end": 1.0},
    "mask": {"mask": torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(1))},
    "two masks": {"mask": torch.rand(2, 40, 64, generator=torch.Generator().manual_seed(2))}, "two people": {"people": 2},
}


@pytest.mark.parametrize("size", [(8, 8), (13, 19)])
@pytest.mark.parametrize("case", OPTIONS)
def test_identity_is_the_original(faces, pack, tensor, identity_transform, monkeypatch, case, size):
    monkeypatch.setitem(globals(), "optimized_attention", decoupled.optimized_attention)
    model, latent = pack.apply(**OPTIONS[case]), tensor(2, 4, *size, seed=3)
    run = lambda m: faces.studio.sample(m, latent, steps=1, denoise=1.0)
    assert torch.equal(run(am1(model)), run(model))


def test_their_maps_are_transformed(faces, pack, latent, law, cross_trace, apart):
    """One call, one layer, two people: AM1 on their tokens against equation (8) in float64."""
    model = am1(pack.apply(people=2), power=1.3, scale_down="2", scale_up="3")
    with cross_trace(faces.studio.model) as seen:
        faces.studio.sample(model, latent, steps=1, denoise=1.0)
    for call in seen.calls:
        for name, number in pack.numbers.items():
            branch = decoupled.occupants(model)[name[:2]].branches[0]
            to_kvs, attn = branch.kwargs["ipadapter"].ip_layers.to_kvs, faces.layers[name].attn2
            scale = 3 if name[0] == "output" else 2
            for row, (n, context) in enumerate(zip(call["layers"][name]["n"], call["layers"][name]["context"])):
                tokens = branch.kwargs["uncond" if call["slots"][row // 2] == 1 else "cond"].flatten(0, 1).double()
                q, k, v, kp, vp = ((x @ w.weight.double().T).unflatten(-1, (attn.heads, -1)).transpose(0, 1) for x, w in (
                    (n, attn.to_q), (context, attn.to_k), (context, attn.to_v),
                    (tokens, to_kvs[f"{number}_to_k_ip"]), (tokens, to_kvs[f"{number}_to_v_ip"])))
                text, own = (torch.softmax(q @ x.transpose(1, 2) / q.shape[-1] ** 0.5, -1) for x in (k, kp))
                z = text @ v + 0.7 * (scale * own ** 1.3) @ vp
                assert apart(call["layers"][name]["out"][row], z.transpose(0, 1).flatten(1)) < 1e-5


def test_the_first_token_of_every_person(pack):
    for shape in ((2, 4, 64), (1, 8, 64)):
        assert list(ipadapter_plus.first_tokens(dict(cond=torch.zeros(shape), ipadapter=pack.adapter()))) == [0, 4]
    odd = types.SimpleNamespace()
    assert list(ipadapter_plus.first_tokens(dict(cond=torch.zeros(1, 8, 64), ipadapter=odd))) == [0]


@pytest.mark.parametrize("options", [{"weight_type": "ease in"}, {"embeds_scaling": "K+V"}, {"unfold_batch": True},
                                     {"weight": torch.tensor([0.3, 0.6])[:, None, None].repeat(2, 1, 1)}])
def test_the_other_kinds_run_as_they_are(faces, pack, latent, caplog, options):
    model = pack.apply(**options)
    assert torch.equal(faces.studio.sample(am2(model), latent), faces.studio.sample(model, latent))
    assert caplog.text.count("keeps its attention maps to itself") == 1, "logged once"


def test_three_prompts(faces, pack):
    """Places 0 and 2 get the person, as their own code for three prompts has it; a lone 2, where it fails, does too."""
    branch = am1(pack.apply())
    slot = decoupled.occupants(branch)["input", 1]
    kwargs = slot.branches[0].kwargs
    q = torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(1))
    seen = []
    ipadapter_plus.branch(q, kwargs, {"cond_or_uncond": [2, 1, 0]}, lambda q, k, v: seen.append(k) or q)
    ipadapter_plus.branch(q[:1], kwargs, {"cond_or_uncond": [2]}, lambda q, k, v: seen.append(k) or q)
    three, lone = seen
    assert torch.equal(three[0], three[2]) and torch.equal(three[0], lone[0]) and not torch.equal(three[0], three[1])


def test_arguments_per_device(faces, pack, latent):
    model = pack.apply()
    for replacement in decoupled.occupants(model).values():
        replacement.multigpu_kwargs[torch.device("cpu")] = [dict(kwargs, weight=0.1) for kwargs in replacement.kwargs]
    weak = am1(pack.apply(weight=0.1))
    assert torch.equal(faces.studio.sample(am1(model), latent), faces.studio.sample(weak, latent))


# Nothing of theirs changes, and nothing of ours upstream.

def lists(model):
    """All but the slot that is never called and so never ours: their own node adds to it in place."""
    return {key: (list(slot.callback), [dict(kwargs) for kwargs in slot.kwargs], sorted(vars(slot)))
            for key, slot in decoupled.occupants(model).items() if key != UNHEARD[:2]}


@pytest.mark.parametrize("ours", ["am1", "am2", "adapter"])
def test_their_model_stays(faces, pack, latent, ours):
    model = pack.apply()
    before, plain = lists(model), faces.studio.sample(model, latent)
    patched = {"am1": am1, "am2": am2, "adapter": lambda m: am1(faces.apply(model=m))}[ours](model)
    changed = faces.studio.sample(patched, latent)
    more = pack.apply(patched, seed=90)
    assert not torch.equal(faces.studio.sample(more, latent), changed) and not torch.equal(changed, plain)
    assert str(lists(model)) == str(before)
    assert torch.equal(faces.studio.sample(model, latent), plain)
    assert torch.equal(faces.studio.sample(patched, latent), changed)


def test_their_node_behind_ours(faces, pack, latent, apart):
    """It writes to the object it finds: ours, which a clone has replaced by its own copy."""
    ours = faces.apply()
    plain, options = faces.studio.sample(ours, latent), {key: slot.branches for key, slot in decoupled.occupants(ours).items()}
    both = pack.apply(ours)
    stacked = faces.studio.sample(both, latent)
    assert torch.equal(faces.studio.sample(ours, latent), plain)
    assert {key: slot.branches for key, slot in decoupled.occupants(ours).items()} == options
    assert apart(stacked, plain) > 1e-3
    assert apart(faces.studio.sample(faces.apply(model=pack.apply()), latent), stacked) < 1e-5, "sums in either order"
    clone = both.clone()
    pack.apply(clone, seed=91)
    assert torch.equal(faces.studio.sample(both, latent), stacked) and torch.equal(faces.studio.sample(clone, latent), stacked)


@pytest.mark.parametrize("patch", [am1, am2])
def test_transforms_in_any_order_with_both_adapters(faces, pack, latent, apart, patch):
    under = faces.studio.sample(patch(faces.apply(model=pack.apply())), latent)
    between = faces.studio.sample(faces.apply(model=patch(pack.apply())), latent)
    over = faces.studio.sample(patch(pack.apply(faces.apply())), latent)
    assert torch.equal(under, between) and apart(under, over) < 1e-5


def test_moving_reaches_theirs(faces, pack):
    class Moved(Replacement):
        def to(self, device, *args, **kwargs):
            moves.append(device)
            return self

    moves = []
    base = Moved(callback)
    for slot in (decoupled.Slot(base), decoupled.Slot(base).opened()):
        assert slot.to(torch.device("cpu")) is slot
    assert moves == [torch.device("cpu")] * 2

    class Renewed(Replacement):
        def to(self, device, *args, **kwargs):
            return Renewed(callback)

    slot = decoupled.Slot(Renewed(callback))
    assert slot.to(torch.device("cpu")).base is not slot.base


def test_their_adapters_are_not_mistaken(faces, pack):
    with pytest.raises(ValueError, match="found no face adapter"):
        taken = faces.studio.model.clone()
        taken.set_model_attn2_replace(types.SimpleNamespace(callback=None, kwargs={}), "input", 1)
        am1(taken)
