"""SEAC on ComfyUI's own transformer classes at tiny random width: the laws of ZePo on joint attention."""

import contextlib
import math
from dataclasses import replace

import comfy.ldm.flux.math
import comfy.ldm.krea2.model
import comfy.ldm.lumina.model
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ldm.qwen_image.model
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_flux import FluxKVCache
from tiny_transformers import FAMILIES, POOLED, TEXT, build
from torch.utils.flop_counter import FlopCounterMode

from portrait_atelier.attention import seac as maths
from portrait_atelier.host import feature_files, seac as host, seac_report
from portrait_atelier.host.kit import transformers
from portrait_atelier.host.kit.calls import Kept
from portrait_atelier.nodes.consistency_feature_extract import ConsistencyFeatureExtract
from portrait_atelier.nodes.decoupled_cfg import DecoupledCFG
from portrait_atelier.nodes.reference_weight import ReferenceWeight
from portrait_atelier.nodes.seac_patch import SEACPatch
from portrait_atelier.nodes.seac_trace import SEACTrace
from portrait_atelier.nodes.token_merge import TokenMerge

TOLERANCE = 1e-4
SPIED = [
    (comfy.ldm.flux.math, "optimized_attention"),
    (comfy.ldm.lumina.model, "optimized_attention_masked"),
    (comfy.ldm.qwen_image.model, "optimized_attention_masked"),
    (comfy.ldm.krea2.model, "optimized_attention_masked"),
    (comfy.ldm.modules.diffusionmodules.mmdit, "optimized_attention"),
]


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Stage:
    """A model of a family, prompts and what the ComfyUI graph around our nodes does."""

    def __init__(self, family):
        self.family, self.model = family, build(family)
        self.positive, self.negative = self.prompt(1), self.prompt(2)

    def prompt(self, seed, tokens=7, **more):
        if self.family in ("flux", "sd3"):
            more["pooled_output"] = random(1, POOLED, seed=seed + 50)
        if self.family == "qwen":
            more["attention_mask"] = torch.ones(1, tokens, dtype=torch.long)
            more["attention_mask"][:, tokens - 2 :] = 0  # padding
        return [[random(1, tokens, TEXT, seed=seed), more]]

    def latent(self, seed, images=1, height=8, width=8):
        if self.family == "flux2":
            return random(images, 128, height // 2, width // 2, seed=seed)
        return random(images, 16, height, width, seed=seed)

    def features(self, latent, model=None, **options):
        options = {"positive": self.positive, "negative": self.negative, **options}
        return ConsistencyFeatureExtract.execute(model or self.model, {"samples": latent}, **options)[0]

    def patch(self, source, reference, model=None, **options):
        return SEACPatch.execute(model or self.model, reference, source, **options)[0]

    def sample(self, model, latent, cfg=2.0, sigmas=(0.7, 0.4, 0.0), positive=None, negative=None):
        latent = comfy.sample.fix_empty_latent_channels(model, latent)
        noise = comfy.sample.prepare_noise(latent, 7)
        return comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            comfy.samplers.sampler_object("euler"),
            torch.tensor(sigmas),
            positive or self.positive,
            negative or self.negative,
            latent,
            disable_pbar=True,
            seed=7,
        )

    def at_features(self, model, latent, cfg=2.0, **options):
        """One step from the very state in which features are extracted with seed 0 and timestep 99."""
        latent = comfy.sample.fix_empty_latent_channels(model, latent)
        noise = random(1, *latent.shape[1:], seed=0).expand(latent.shape)
        return comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            comfy.samplers.sampler_object("euler"),
            torch.tensor([0.1, 0.0]),
            options.get("positive") or self.positive,
            options.get("negative") or self.negative,
            latent,
            disable_pbar=True,
            seed=0,
        )


@contextlib.contextmanager
def spy(stage):
    """What the network's own attention calls got and gave, a list for every model call.

    q, k, v, out: [rows, heads, tokens, size]. Ours are not among them: they go to the host's function itself.
    """
    runs, originals = [], [(module, name, getattr(module, name)) for module, name in SPIED]
    handle = stage.model.model.diffusion_model.register_forward_pre_hook(lambda *_: runs.append([]))

    def watched(original):
        def attention(q, k, v, heads, mask=None, **options):
            out = original(q, k, v, heads, mask=mask, **options)
            if not options.get("skip_reshape"):
                q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
            extra = options["transformer_options"]
            runs[-1].append(
                {
                    "q": q.double(),
                    "k": k.double(),
                    "v": v.double(),
                    "out": out.unflatten(-1, (heads, -1)).transpose(1, 2).double(),
                    "slots": extra["cond_or_uncond"],
                    "ours": stage.family == "sd3" or "block_index" in extra,
                }
            )
            return out

        return attention

    try:
        for module, name, original in originals:
            setattr(module, name, watched(original))
        yield runs
    finally:
        handle.remove()
        for module, name, original in originals:
            setattr(module, name, original)


def plain_bank(stage, latent, after=None, **prompts):
    """The picture's keys and values, where the plain model puts them, in the state of (6): {slot: [(k, v), ...]}."""
    tokens, bank = math.prod(grid_of(stage, latent)), {}
    after = end_padding(stage, latent) if after is None else after
    with spy(stage) as runs:
        stage.at_features(stage.model, latent, **prompts)
    for run in runs:
        for number, slot in enumerate(run[0]["slots"]):
            bank[slot] = []
            for call in run:
                end = max(call["k"].shape[2] - after, tokens)  # SD3.5's second attention is over the picture alone
                bank[slot].append(
                    tuple(call[name].chunk(len(call["slots"]))[number][:, :, end - tokens : end] for name in "kv")
                )
    return bank


def grid_of(stage, latent):
    patch = 1 if stage.family == "flux2" else 2
    return [-(-size // patch) for size in latent.shape[-2:]]


def literal(queries, groups):
    """softmax(q K^T / sqrt(d)) V in float64 for one row, every token of a group with its weight.

    queries: [heads, queries, size]; groups: [(k, v, lambda, weight)], the weight a number or [queries, 1]
    """
    logits = [lam * queries @ k.transpose(-1, -2) / queries.shape[-1] ** 0.5 for k, _, lam, _ in groups]
    high = torch.cat(logits, -1).amax(-1, keepdim=True)
    mass = [weight * (part - high).exp() for part, (*_, weight) in zip(logits, groups)]
    return sum(part @ v for part, (_, v, *_) in zip(mass, groups)) / sum(part.sum(-1, keepdim=True) for part in mass)


def worst(
    stage,
    runs,
    latent,
    source,
    reference,
    lam=1.2,
    own=0.0,
    shares=(0.5, 0.5),
    start=None,
    after=0,
    padding=0,
    layers=None,
    weight=1.0,
):
    """The largest relative error of a real run: picture rows to [others, own, source, lambda reference].

    source, reference: of `plain_bank`; own, shares: the weights of its own tokens and theirs
    start: tokens before the picture, after: behind it, padding: hidden ones at the text's end
    layers: numbers of the blocks where it acts, None for all; weight: of what stands behind the picture
    """
    tokens, error, controlled = math.prod(grid_of(stage, latent)), 0.0, 0
    for run in runs:
        number = 0
        for site, call in enumerate(run):
            slots, length = call["slots"], call["k"].shape[2]
            end = length - after if length > tokens else tokens
            begin = end - tokens
            if call["ours"] and length > tokens and start is not None:
                assert begin == start
            shown = torch.ones(length, dtype=torch.bool)
            acts = call["ours"] and (layers is None or number in layers)
            number += call["ours"] and length > tokens
            if call["ours"]:
                shown[begin - padding : begin] = False
            for row in range(len(call["q"])):
                slot, picture = slots[row // (len(call["q"]) // len(slots))], row % (len(call["q"]) // len(slots))
                q, k, v, out = (call[name][row] for name in ("q", "k", "v", "out"))
                inside = torch.zeros(length, dtype=torch.bool)
                inside[begin:end] = acts
                asking = inside[: q.shape[1]]  # the keys may be more
                if acts:
                    behind = torch.arange(length) >= end
                    groups = [
                        (k[:, ~inside & shown & ~behind], v[:, ~inside & shown & ~behind], 1.0, 1.0),
                        (k[:, behind & shown], v[:, behind & shown], 1.0, weight),
                        (k[:, inside], v[:, inside], 1.0, own),
                    ]
                    for bank, factor, share in ((source, 1.0, shares[0]), (reference, lam, shares[1])):
                        if bank is not None:
                            groups.append((*(x[picture % len(x)] for x in bank[slot][site]), factor, share))
                    expected = literal(q[:, asking], groups)
                    error = max(error, ((out[:, asking] - expected).abs().max() / expected.abs().max()).item())
                    controlled += 1
                others = (~asking).nonzero()[:, 0]
                if len(others):
                    others = others[:: max(1, len(others) // 8)]  # FLUX.2 has 512
                    expected = literal(q[:, others], [(k[:, shown], v[:, shown], 1.0, 1.0)])
                    error = max(error, ((out[:, others] - expected).abs().max() / expected.abs().max()).item())
    assert controlled
    return error


def text_tokens(stage, tokens=7):
    return {"flux2": 512, "zimage": -(-tokens // 8) * 8}.get(stage.family, tokens)


def end_padding(stage, latent):
    """Tokens that Z-Image puts behind the picture."""
    return -math.prod(grid_of(stage, latent)) % 8 if stage.family == "zimage" else 0


stages = {}


@pytest.fixture(params=list(FAMILIES))
def stage(request):
    return stage_of(request.param)


@pytest.fixture(params=["zimage", "flux", "qwen", "sd3"])
def kind(request):
    """One family of each layout: behind the text with padding, before reference latents, with a mask, without RoPE."""
    return stage_of(request.param)


def stage_of(family):
    if family not in stages:
        stages[family] = Stage(family)
    return stages[family]


# 1. Self-reference: with K = [K, K] attention cannot tell the difference.


def test_self_reference(stage, apart):
    latent = stage.latent(3)
    bank, plain = stage.features(latent), stage.at_features(stage.model, latent)
    for options in ({}, {"balance": "images"}, {"strength": 0.4, "style_share": 0.9}):
        model = stage.patch(bank, bank, style_enhancement=1.0, **options)
        assert apart(stage.at_features(model, latent), plain) < TOLERANCE, options
    assert apart(stage.at_features(stage.patch(bank, bank, style_enhancement=1.3), latent), plain) > 1e-3


# 2. Every layer of every call against the equations in float64, text rows as they are without us.

HIDDEN = {"qwen": 2}  # padded tokens of the prompts above


def law(
    stage,
    content,
    style,
    target=None,
    *,
    start="text",
    positive=None,
    negative=None,
    cfg=2.0,
    sigmas=(0.7, 0.4, 0.0),
    empty=False,
    **options,
):
    prompts = {"positive": positive or stage.positive, "negative": negative or stage.negative}
    target = content if target is None else target
    source = None if empty else stage.features(content, **prompts)
    model = stage.patch(
        source,
        stage.features(style, **prompts),
        **{name: value for name, value in options.items() if name != "expected"},
    )
    with spy(stage) as runs:
        stage.sample(model, target, cfg, sigmas, **prompts)
    expected = {
        "after": end_padding(stage, target),
        "padding": HIDDEN.get(stage.family, 0),
        **options.get("expected", {}),
    }
    if start == "text":
        expected["start"] = text_tokens(stage)
    return worst(
        stage,
        runs,
        target,
        None if empty else plain_bank(stage, content, **prompts),
        plain_bank(stage, style, **prompts),
        **expected,
    )


def test_every_layer_and_step(stage, monkeypatch):
    if stage.family != "sd3":
        monkeypatch.setattr(maths, "EXTRA_CHANNELS", maths.WIDEST)  # no room for more: the heads of the others have 128
    assert law(stage, stage.latent(3), stage.latent(4)) < TOLERANCE


def test_no_source_is_the_pictures_own_tokens(stage):
    error = law(
        stage,
        stage.latent(3),
        stage.latent(4),
        empty=True,
        cfg=1.0,
        strength=0.8,
        expected={"own": 0.6, "shares": (0, 0.4)},
    )
    assert error < TOLERANCE


def test_sizes_batches_and_split_calls(stage):
    """Three sizes, one that fills no whole patches; pictures in cycles; prompts too different to share a call."""
    error = law(
        stage,
        stage.latent(3, 2, 8, 8),
        stage.latent(4, 1, 6, 10),
        stage.latent(5, 2, 8, 7),
        start=None,
        sigmas=(0.7, 0.0),
        negative=stage.prompt(2, 11),
        pairing="cycle",
    )
    assert error < TOLERANCE


def test_text_rows_are_bit_equal_before_the_first_change(kind):
    latent, rows = kind.latent(3), []
    model = kind.patch(kind.features(latent), kind.features(kind.latent(4)))
    for each in (kind.model, model):
        with spy(kind) as runs:
            kind.sample(each, latent, sigmas=(0.7, 0.0))
        rows.append(next(call for call in runs[0] if call["ours"])["out"][:, :, : text_tokens(kind)])
    assert torch.equal(*rows)


# 3. Nothing to do, nothing changed.


def test_off_is_the_plain_model(kind):
    latent = kind.latent(3)
    bank = kind.features(latent)
    plain = kind.sample(kind.model, latent)
    for off in ({"strength": 0.0}, {"start": 0.6, "end": 0.4}, {"layers": ""}):
        assert torch.equal(kind.sample(kind.patch(bank, bank, **off), latent), plain), off
    early = kind.patch(bank, bank, start=0.0, end=0.01)
    assert torch.equal(kind.sample(early, latent), plain), "outside of the window"
    assert not torch.equal(kind.sample(kind.patch(bank, bank), latent), plain)
    assert torch.equal(kind.sample(kind.model, latent), plain), "the model stays as it is"


# 4. Sizes, masks, reference latents, padding.


def test_masks_lie_on_the_pictures_grid(stage):
    """A mask of 4 x 6 blocks has their values at the tokens; at p = 1/2 they weigh the reference against the source."""
    blocks = random(4, 6, seed=8).sigmoid()
    share = blocks.flatten()[:, None].double()
    error = law(
        stage,
        stage.latent(3),
        stage.latent(4),
        stage.latent(5, 1, 8, 12),
        sigmas=(0.7, 0.0),
        cfg=1.0,
        mask=blocks.repeat_interleave(16, 0).repeat_interleave(16, 1)[None],
        expected={"shares": (1 / (1 + share), share / (1 + share))},
    )
    assert error < TOLERANCE


def test_masked_references_that_share_the_picture_are_one(kind, apart):
    """Two references of one picture that share the picture by masks are the reference."""
    latent, bank = kind.latent(3), kind.features(kind.latent(4))
    left = torch.zeros(1, 64, 64)
    left[:, :, :32] = 1
    both = kind.patch(None, bank, model=kind.patch(None, bank, mask=left), mask=1 - left)
    whole = kind.patch(None, bank)
    assert apart(kind.sample(both, latent), kind.sample(whole, latent)) < TOLERANCE
    assert apart(kind.sample(kind.patch(None, bank, mask=left), latent), kind.sample(whole, latent)) > 1e-3


@pytest.mark.parametrize("family", ["zimage", "flux", "flux2", "qwen", "krea2"])
def test_reference_latents_are_others(family):
    """An edit model's pictures stand behind the sampled one, in Z-Image before it; neither is ours."""
    stage = stage_of(family)
    latents = [stage.latent(6, 1, 8, 8), stage.latent(7, 1, 4, 8)]
    prompts = {
        "positive": stage.prompt(1, reference_latents=latents),
        "negative": stage.prompt(2, reference_latents=latents),
    }
    if family in ("qwen", "krea2"):
        latents[:] = [latent[:, :, None] for latent in latents]
    content, style = stage.latent(3), stage.latent(4)
    after = (
        end_padding(stage, content)
        if family == "zimage"
        else sum(math.prod(grid_of(stage, latent)) for latent in latents)
    )
    model = stage.patch(stage.features(content, **prompts), stage.features(style, **prompts))
    with spy(stage) as runs:
        stage.sample(model, content, sigmas=(0.7, 0.0), **prompts)
    source, reference = (plain_bank(stage, latent, after, **prompts) for latent in (content, style))
    error = worst(
        stage,
        runs,
        content,
        source,
        reference,
        after=after,
        padding=HIDDEN.get(family, 0),
        start=None if family == "zimage" else text_tokens(stage),
    )
    assert error < TOLERANCE


WITH_REFERENCES = ["flux", "flux2", "qwen", "krea2"]


def with_latents(stage, **more):
    latents = [stage.latent(6, 1, 8, 8), stage.latent(7, 1, 4, 8)]
    after = sum(math.prod(grid_of(stage, latent)) for latent in latents)
    if stage.family in ("qwen", "krea2"):
        latents = [latent[:, :, None] for latent in latents]
    prompts = zip(("positive", "negative"), (1, 2))
    return {name: stage.prompt(seed, reference_latents=latents, **more) for name, seed in prompts}, after


@pytest.mark.parametrize("family", WITH_REFERENCES)
@pytest.mark.parametrize("weight", [0.0, 2.5])
def test_references_weigh_what_the_node_says(family, weight):
    """Alone, and with SEAC before and behind it, in float64; text and references themselves attend as ever."""
    stage = stage_of(family)
    (prompts, after), content, style = with_latents(stage), stage.latent(3), stage.latent(4)
    expected = {"after": after, "padding": HIDDEN.get(family, 0), "start": text_tokens(stage), "weight": weight}
    banks = stage.features(content, **prompts), stage.features(style, **prompts)
    plain = [plain_bank(stage, latent, after, **prompts) for latent in (content, style)]
    alone = ReferenceWeight.execute(stage.model, weight=weight)[0]
    runs = [
        (alone, {"source": None, "reference": None, "own": 1.0}),
        (stage.patch(*banks, model=alone), dict(zip(("source", "reference"), plain))),
        (ReferenceWeight.execute(stage.patch(*banks), weight=weight)[0], dict(zip(("source", "reference"), plain))),
    ]
    for model, groups in runs:
        with spy(stage) as calls:
            stage.sample(model, content, sigmas=(0.7, 0.0), **prompts)
        assert worst(stage, calls, content, **groups, **expected) < TOLERANCE
        assert worst(stage, calls, content, **groups, **{**expected, "weight": 1.0}) > 1e-3


def test_references_that_weigh_as_ever_change_nothing():
    stage = stage_of("flux2")
    (prompts, _), latent = with_latents(stage), stage.latent(3)
    plain = stage.sample(stage.model, latent, **prompts)
    for off in ({"weight": 1.0}, {"start": 0.6, "end": 0.4}, {"layers": ""}):
        model = ReferenceWeight.execute(stage.model, **{"weight": 2.0, **off})[0]
        assert not model.wrappers.get("apply_model") and torch.equal(stage.sample(model, latent, **prompts), plain)
    late = ReferenceWeight.execute(stage.model, weight=2.0, end=0.1)[0]  # the steps come later
    assert torch.equal(stage.sample(late, latent, **prompts), plain)
    other = ReferenceWeight.execute(stage.model, weight=2.0)[0]
    assert torch.equal(stage.sample(other, latent), stage.sample(stage.model, latent)), "no reference"
    assert not torch.equal(stage.sample(other, latent, **prompts), plain)
    half = [ReferenceWeight.execute(ReferenceWeight.execute(stage.model, weight=a)[0], weight=b)[0] for a, b in ((4.0, 0.5), (1.0, 2.0))]
    assert torch.equal(*(stage.sample(model, latent, **prompts) for model in half)), "two nodes multiply"
    with pytest.raises(ValueError, match="does not know where the reference latents of TinyZImage models stand"):
        ReferenceWeight.execute(stage_of("zimage").model)


def test_the_weight_with_balance_and_the_kv_cache():
    """Words weigh as much as without it; cached references stand behind the keys alone."""
    stage = stage_of("flux2")
    (prompts, after), content, style = with_latents(stage, reference_latents_method="index_timestep_zero"), stage.latent(3), stage.latent(4)
    banks = stage.features(content, **prompts), stage.features(style, **prompts)
    model = ReferenceWeight.execute(stage.patch(*banks, balance="images"), weight=3.0)[0]
    source, reference = (plain_bank(stage, latent, after, **prompts) for latent in (content, style))
    for cached in (model, FluxKVCache.execute(model)[0]):
        with spy(stage) as runs:
            stage.sample(cached, content, **prompts)
        assert worst(stage, runs, content, source, reference, after=after, start=text_tokens(stage), shares=(0.5, 0.5), weight=3.0) < TOLERANCE


@pytest.mark.parametrize("family", WITH_REFERENCES)
@pytest.mark.parametrize("lent", [False, True])
def test_decoupled_guidance_takes_the_references_for_the_identity(family, lent, apart):
    """Each formulation from four plain predictions; `lent`: the negative prompt has no reference of its own."""
    stage = stage_of(family)
    (prompts, _), latent = with_latents(stage), stage.latent(3, 2)
    bare = {"positive": stage.positive, "negative": stage.negative}

    def drawn(model, positive, negative, cfg=1.0):  # one step gives the prediction of the clean picture
        return stage.sample(model, latent, cfg, (0.6, 0.0), positive, negative)

    u, t, i, ti = (drawn(stage.model, given[text], bare["negative"])
                   for given in (bare, prompts) for text in ("negative", "positive"))
    assert apart(i, u) > 1e-3 and apart(ti, t) > 1e-3
    negative = (bare if lent else prompts)["negative"]
    for formulation, expected in {
        "DCG_2": u + 1.5 * (i - u) + 3 * (ti - i),
        "DCG_1": u + 1.5 * (t - u) + 3 * (ti - t),
        "DCG_3": u + 1.5 * (t - u) + 3 * (i - u),
    }.items():
        scales = {"alpha": "1.5", "beta": "3", "rescale": 0.0}
        model = DecoupledCFG.execute(stage.model, formulation=formulation, **scales)[0]
        assert apart(drawn(model, prompts["positive"], negative), expected) < TOLERANCE, formulation
    plain = DecoupledCFG.execute(stage.model, alpha="1", beta="1")[0]
    assert torch.equal(drawn(plain, prompts["positive"], negative), ti)


def test_decoupled_guidance_without_references_is_as_ever(apart):
    stage = stage_of("flux2")
    model = DecoupledCFG.execute(stage.model, alpha="2", beta="2", rescale=0.0)[0]
    assert apart(stage.sample(model, stage.latent(3)), stage.sample(stage.model, stage.latent(3), cfg=2.0)) < TOLERANCE


def test_flux_kv_cache():
    """Core's node takes reference latents out of the sequence after a step, and puts their keys behind the others."""
    stage = stage_of("flux2")  # its reference latents fail in core on Flux.1
    latents, content, style = [stage.latent(6, 1, 8, 8)], stage.latent(3), stage.latent(4)
    prompts = {
        name: stage.prompt(seed, reference_latents=latents, reference_latents_method="index_timestep_zero")
        for name, seed in (("positive", 1), ("negative", 2))
    }
    model = FluxKVCache.execute(stage.patch(stage.features(content, **prompts), stage.features(style, **prompts)))[0]
    with spy(stage) as runs:
        stage.sample(model, content, **prompts)
    assert [run[0]["k"].shape[2] - run[0]["q"].shape[2] for run in runs] == [0, 16]
    source, reference = (plain_bank(stage, latent, 16, **prompts) for latent in (content, style))
    assert worst(stage, runs, content, source, reference, after=16, start=text_tokens(stage)) < TOLERANCE


def test_banks_that_are_too_large_for_the_device_come_layer_by_layer(monkeypatch):
    stage = stage_of("flux")
    latent, bank = stage.latent(3), stage.features(stage.latent(4))
    size = bank.features[0]["block", 0, 0].nbytes
    assert [host.layers_within(bank, room) for room in (0, 2 * size - 1, 2 * size, 5 * size, 100 * size)] == [
        0,
        0,
        1,
        2,
        4,
    ]
    model, kept, once = stage.patch(bank, bank), [], Kept.once

    def watched(self, of, how, make):
        if isinstance(how, tuple) and how[0] == host.SLOT:
            kept.append(how[1])
        return once(self, of, how, make)

    monkeypatch.setattr(Kept, "once", watched)
    expected = stage.sample(model, latent)
    assert set(kept) == set(bank.layers)
    kept.clear()
    monkeypatch.setattr(host, "KEPT_BYTES", 5 * size)
    assert torch.equal(stage.sample(model, latent), expected)
    assert set(kept) == {("block", 0, 0), ("block", 1, 0)}


@pytest.mark.parametrize("family", ["zimage", "lumina"])
def test_a_prompt_of_another_length_moves_the_reference_along(family):
    """Lumina puts pictures behind the text: a bank of a longer prompt is moved to where this picture stands."""
    stage = stage_of(family)
    longer, content = stage.prompt(3, 21), stage.latent(3)
    model = stage.patch(None, stage.features(content, positive=longer), strength=1.0, style_share=1.0)
    with spy(stage) as runs:
        stage.sample(model, content, cfg=1.0, sigmas=(0.7, 0.0))
    bank = plain_bank(stage, content, positive=longer)
    steps = text_tokens(stage) - text_tokens(stage, 21)
    assert steps < 0

    def moved(k):
        pairs = torch.view_as_complex(k[..., :4].contiguous().unflatten(-1, (2, 2)))
        turn = torch.polar(torch.ones(2).double(), steps * 256.0 ** (-torch.arange(2).double() / 2))
        return torch.cat([torch.view_as_real(pairs * turn).flatten(-2), k[..., 4:]], -1)

    for shift, fits in ((moved, True), (lambda k: k, False)):
        error = worst(
            stage,
            runs,
            content,
            None,
            {slot: [(shift(k), v) for k, v in kept] for slot, kept in bank.items()},
            own=0.0,
            shares=(0.0, 1.0),
            after=end_padding(stage, content),
        )
        assert (error < TOLERANCE) == fits


# 5. Others.


def test_somebody_elses_override_is_called_with_our_keys(kind):
    latent, seen = kind.latent(3), []

    def other(func, q, k, v, *args, **options):
        seen.append(
            (q.shape[2 if options.get("skip_reshape") else 1], k.shape[2 if options.get("skip_reshape") else 1])
        )
        return func(q, k, v, *args, **options)

    model = kind.patch(kind.features(latent), kind.features(kind.latent(4)))
    expected = kind.sample(model, latent)
    model.model_options["transformer_options"]["optimized_attention_override"] = other
    assert torch.equal(kind.sample(model, latent), expected)
    tokens = math.prod(grid_of(kind, latent))
    assert any(queries == tokens and keys >= 2 * tokens for queries, keys in seen)


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_tokens_keep_their_places_in_any_order(family, apart):
    """A bank whose tokens are shuffled along with their places, as merging leaves them, is the same bank."""
    stage = stage_of(family)
    latent, bank = stage.latent(3), stage.features(stage.latent(4, 1, 8, 12))
    order, where = (
        torch.randperm(24, generator=torch.Generator().manual_seed(1)),
        torch.cartesian_prod(torch.arange(4.0), torch.arange(6.0)),
    )
    moved = {
        slot: {layer: tokens[:, order] for layer, tokens in layers.items()} for slot, layers in bank.features.items()
    }
    places = {slot: dict.fromkeys(layers, where[order][None]) for slot, layers in bank.features.items()}
    plain, shuffled, lost = (
        stage.sample(stage.patch(bank, each), latent)
        for each in (bank, replace(bank, features=moved, places=places), replace(bank, features=moved))
    )
    assert apart(shuffled, plain) < TOLERANCE
    assert (apart(lost, plain) > 1e-3) == (family == "flux"), "only where keys are turned by their place"


def test_merged_tokens_stand_at_the_mean_of_their_places():
    stage = stage_of("zimage")
    bank = stage.features(stage.latent(4))
    merged = TokenMerge.execute(bank, ratio=0.5, weigh_merged=True)[0]
    for slot, layers in merged.features.items():
        for layer, tokens in layers.items():
            counts, places = merged.counts[slot][layer], merged.places[slot][layer]
            assert tokens.shape[1] == 8 and counts.sum() == 16
            assert torch.allclose((places * counts[..., None]).sum(1) / 16, torch.tensor([[1.5, 1.5]]))
            alone = counts[0] == 1
            assert (places[0, alone] == places[0, alone].round()).all() and not (places[0] == places[0].round()).all()
    out = stage.sample(stage.patch(merged, merged), stage.latent(3))
    assert torch.isfinite(out).all() and not torch.equal(out, stage.sample(stage.patch(bank, bank), stage.latent(3)))


@pytest.mark.parametrize("layers, numbers", [("b1-2", {1, 2}), ("b3", {3})])
def test_layers_are_numbered_through_both_kinds_of_blocks(layers, numbers):
    stage = stage_of("flux")  # two blocks with two streams, two with one
    assert (
        law(stage, stage.latent(3), stage.latent(4), sigmas=(0.7, 0.0), layers=layers, expected={"layers": numbers})
        < TOLERANCE
    )
    with pytest.raises(ValueError, match=r"'b4' .*outside.*b0-3"):
        stage.features(stage.latent(3), layers="b4")


def test_a_control_networks_blocks_are_not_ours():
    """Z-Image's runs blocks of its own behind a layer, with the layer's options."""
    stage, latent = stage_of("zimage"), stage_of("zimage").latent(3)
    control, seen = build("zimage", seed=1).model.diffusion_model.layers[0], []

    def behind(args):
        joined = torch.cat([args["txt"], args["img"]], 1)
        with spy(stage) as runs:
            runs.append([])
            control(
                joined,
                None,
                args["transformer_options"]["test_pe"],
                args["vec"],
                transformer_options=args["transformer_options"],
            )
        seen.append(runs[-1][0])
        return {}

    model = stage.patch(stage.features(latent), stage.features(stage.latent(4)))
    model.set_model_patch(behind, "double_block")
    pe = stage.model.model.diffusion_model.rope_embedder(torch.zeros(1, 24, 3)).movedim(1, 2)
    model.model_options["transformer_options"]["test_pe"] = pe
    stage.sample(model, latent, sigmas=(0.7, 0.0))
    assert len(seen) == 3
    for call in seen:
        for row in range(2):
            expected = literal(call["q"][row], [(call["k"][row], call["v"][row], 1.0, 1.0)])
            assert ((call["out"][row] - expected).abs().max() / expected.abs().max()) < TOLERANCE


@pytest.mark.parametrize("family", ["zimage", "flux", "sd3"])
def test_a_merged_step_costs_what_a_plain_step_costs(family, monkeypatch):
    """Counted: products of matrices in one step with features at hand, and in extracting them for two prompts."""
    monkeypatch.setattr(maths, "WIDEST", 12)  # heads here have 12 channels instead of 128; SD3's have their 64
    stage = stage_of(family)
    latent, flops = stage.latent(3, 1, 16, 16), []
    bank, reference = (stage.features(stage.latent(seed, 1, 16, 16)) for seed in (3, 4))
    merged = [TokenMerge.execute(each, ratio=0.5)[0] for each in (bank, reference)]
    runs = [stage.model, stage.patch(*merged), stage.patch(bank, reference), None]
    for model in runs:
        with FlopCounterMode(display=False) as counter:
            if model is None:
                stage.features(latent)
            else:
                stage.sample(model, latent, sigmas=(0.7, 0.0))
        flops.append(counter.get_total_flops())
    plain, warm, unmerged, extraction = flops
    assert warm <= 1.05 * plain < unmerged and extraction <= 1.05 * plain


# What SEAC Report tells: tests/host/test_seac_report.py has the rest of it, on UNets.


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_the_report_has_the_shares_of_the_softmax(stage, literal_shares, cfg):
    """Two references, one merged, in a part of the picture; recorded runs are those without, bit for bit."""
    latent, known = stage.latent(3, 2), transformers.joint_layers(stage.model.model.diffusion_model)
    names = {(*block, layer[2]): layer for layer, block in known.items()}
    banks = [stage.features(latent), stage.features(stage.latent(4, 1, 8, 12))]
    banks.append(TokenMerge.execute(stage.features(stage.latent(5)), ratio=0.5, weigh_merged=True)[0])
    model = stage.patch(*banks[:2], strength=0.8, balance="images" if stage.family == "krea2" else "tokens")
    mask = torch.cat([torch.zeros(1, 64, 32), torch.ones(1, 64, 32)], 2)
    model = stage.patch(None, banks[2], model=model, mask=mask, style_share=0.4)
    expected = stage.sample(model, latent, cfg)

    def sizes(layer):
        tokens = [bank.features[0][layer].shape[1] for bank in banks]
        return dict(zip(["picture", "source", "reference 1", "reference 2"], [tokens[0], *tokens]))

    def layer_of(extra, queries, tokens):
        held = 16 + 16 + 24 + 8
        block = extra.get("block_type"), extra.get("block_index"), int(stage.family == "sd3" and tokens == held)
        return names.get(block) if queries == 16 and tokens >= held else None

    shares = literal_shares(model, lambda watched: stage.sample(watched, latent, cfg), sizes, layer_of)
    assert {layer for _, layer in shares} == set(known)
    model, trace = SEACTrace.execute(model).result
    assert torch.equal(stage.sample(model, latent, cfg), expected)
    assert set(trace.last.shares) == {prompt for prompt, _ in shares} == ({0} if cfg == 1 else {0, 1})
    for (prompt, layer), groups in shares.items():
        for name, share in groups.items():
            assert seac_report.per_layer(trace.last, name, prompt)[layer] == pytest.approx(share, abs=1e-5), (layer, name)
    assert seac_report.text(trace.last).startswith(f"SEAC acted in {len(known)} of {len(known)} layers and 2 of 2 steps.")
    for layer, maps in trace.last.maps.items():
        assert (maps["reference 2"][..., :2] / trace.last.counts[layer][0] < 1e-3).all()
        assert (maps["reference 2"][..., 2:] > 1e-3).all()


# Mutants: mistakes that are easy to make. Each must be far outside the tolerance.


def lambda_on_values(patch):
    patch.setattr(maths, "joint_values", lambda groups: torch.cat([group.scale * group.values for group in groups], 1))


def prompts_exchanged(patch):
    projected = host.Control.projected
    patch.setattr(
        host.Control, "projected", lambda self, bank, text, site, like: projected(self, bank, 1 - text, site, like)
    )


def one_layer_off(patch):
    projected = host.Control.projected

    def off(self, bank, text, site, like):
        return projected(self, bank, text, replace(site, layer=bank.layers[bank.layers.index(site.layer) - 1]), like)

    patch.setattr(host.Control, "projected", off)


def a_word_taken_for_the_picture(patch):
    site = transformers.JointAttention.site

    def shifted(self, *args):
        found = site(self, *args)
        return found and replace(found, start=found.start - 1, end=found.end - 1)

    patch.setattr(transformers.JointAttention, "site", shifted)


def words_weighed_like_the_shares(patch):
    present = maths.present
    patch.setattr(maths, "present", lambda groups: [replace(group, share=1.0) for group in present(groups)])


def place_forgotten(patch):
    turned = transformers.JointSite.turned
    patch.setattr(
        transformers.JointSite,
        "turned",
        lambda self, keys, at, size: keys if at.sum() > 0 else turned(self, keys, at, size),
    )


def place_of_the_pictures_grid(patch):
    projected = transformers.JointSite.projected
    patch.setattr(
        transformers.JointSite,
        "projected",
        lambda self, features, places, grid, like: projected(
            self, features, transformers.grid_places(grid[::-1])[None], grid, like
        ),
    )


def mask_transposed(patch):
    at = host.Region.at
    patch.setattr(host.Region, "at", lambda self, call, queries, grid: at(self, call, queries, grid[::-1]))


def padding_attended(patch):
    patch.setattr(transformers, "rows_of", lambda mask, site: None)


def second_attention_left_out(patch):
    joint = host.Control.joint
    patch.setattr(host.Control, "joint", lambda self, site, *args: None if site.layer[2] else joint(self, site, *args))


@pytest.mark.parametrize(
    "family, mutant",
    [
        ("flux", lambda_on_values),
        ("flux", prompts_exchanged),
        ("lumina", one_layer_off),
        ("krea2", a_word_taken_for_the_picture),
        ("chroma", words_weighed_like_the_shares),
        ("zimage", place_forgotten),
        ("qwen", place_of_the_pictures_grid),
        ("flux2", mask_transposed),
        ("qwen", padding_attended),
        ("sd3", second_attention_left_out),
    ],
)
def test_mutants_fail(family, mutant, monkeypatch):
    stage, options = stage_of(family), {"sigmas": (0.7, 0.0)}
    latents = [stage.latent(3, 1, 8, 12), stage.latent(4, 1, 8, 12)]
    if mutant is mask_transposed:
        blocks = random(4, 6, seed=8).sigmoid()
        share = blocks.flatten()[:, None].double()
        options.update(
            mask=blocks.repeat_interleave(16, 0).repeat_interleave(16, 1)[None],
            expected={"shares": (1 / (1 + share), share / (1 + share))},
        )
    assert law(stage, *latents, **options) < TOLERANCE
    mutant(monkeypatch)
    options.setdefault("start", None)
    assert law(stage, *latents, **options) > 1e-2


# What is refused.


def test_banks_and_latents_of_other_models():
    flux, qwen = stage_of("flux"), stage_of("qwen")
    bank = flux.features(flux.latent(3))
    with pytest.raises(
        ValueError, match="reference features were extracted from .* TinyFlux, but this model is TinyQwenImage"
    ):
        qwen.patch(None, bank)
    with pytest.raises(ValueError, match="holds 2 frames.*still pictures"):
        qwen.features(random(1, 16, 2, 8, 8, seed=1))
    with pytest.raises(ValueError, match=r"\(1, 4, 8, 8\), but TinyFlux takes \[images, 16"):
        flux.features(random(1, 4, 8, 8, seed=1))
    with pytest.raises(ValueError, match="UNet of the SD1, SD2 or SDXL family, but this model is TinyFlux"):
        feature_files.save(flux.model, bank, "never", False)


def test_a_layer_that_another_pack_leaves_out_is_named():
    stage = stage_of("flux")
    model = stage.model.clone()
    model.set_model_patch_replace(lambda args, extra: {"img": args["img"]}, "dit", "single_block", 1)
    with pytest.raises(ValueError, match="never reached the attention of layer b3.0"):
        stage.features(stage.latent(3), model=model)
    assert stage.features(stage.latent(3), model=model, layers="b0-2").layers == [
        ("block", number, 0) for number in range(3)
    ]


def test_a_network_of_an_unknown_kind_is_refused_by_name(monkeypatch):
    stage = stage_of("chroma")
    monkeypatch.delitem(transformers.ARCHITECTURES, transformers.class_name(stage.model.model.diffusion_model))
    with pytest.raises(ValueError, match="does not know the network of TinyChroma models"):
        stage.features(stage.latent(3))
