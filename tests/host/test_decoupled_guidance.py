"""Decoupled guidance in real sampling runs: equations at the UNet, exact laws, row counts, what else hangs on the model."""

import logging
import types

import comfy.hooks
import comfy.sample
import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom
import comfy_extras.nodes_model_advanced
import comfy_extras.nodes_pag
import comfy_extras.nodes_perpneg
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP

from portrait_atelier.guidance import decoupled as maths
from portrait_atelier.host import decoupled_guidance as host
from portrait_atelier.host.kit.calls import KEY, Routes
from portrait_atelier.nodes.decoupled_cfg import DecoupledCFG
from portrait_atelier.nodes.decoupled_cfg_guider import DecoupledCFGGuider
from portrait_atelier.nodes.few_step_preset import FewStepPreset

TOLERANCE = 1e-5
ALPHA, BETA = (1.0, 1.5, 1.5, 1.0), (1.0, 3.0, 3.0, 1.0)
NAMES = ["DCG_1", "DCG_2", "DCG_3"]
ATTENTION = [("input", 1), ("middle", 0), ("output", 2), ("output", 3)]


class Adapter:
    """attn2_replace like a face adapter of another pack: two entries, by place in the call, and an IndexError beyond them."""

    def __init__(self):
        self.entries, self.seen = {}, []

    def __call__(self, q, k, v, extra):
        places = extra["cond_or_uncond"]
        self.seen.append((tuple(places), extra[KEY].texts if KEY in extra else ()))
        width = q.shape[-1]
        if width not in self.entries:
            generator = torch.Generator().manual_seed(width)
            self.entries[width] = [torch.randn(2, 1, 4, width, generator=generator) for _ in ("person", "nobody")]
        rows = q.shape[0] // len(places)
        key, value = (torch.cat([self.entries[width][place][kind].expand(rows, -1, -1) for place in places]) for kind in (0, 1))
        return optimized_attention(q, k, v, extra["n_heads"]) + 0.8 * optimized_attention(q, key, value, extra["n_heads"])


def with_adapter(model):
    clone = model.clone()
    clone.adapter = Adapter()
    for key in ATTENTION:
        clone.set_model_attn2_replace(clone.adapter, *key)
    return clone


@pytest.fixture(scope="module")
def nano(make_studio):
    return make_studio("nano")


@pytest.fixture(scope="module")
def base(build_model):
    """Plain epsilon sampling."""
    return build_model("nano")


@pytest.fixture
def model(base):
    return with_adapter(base)


@pytest.fixture
def latent(tensor):
    return tensor(1, 4, 8, 8, seed=3)


def dcg(model, **options):
    return DecoupledCFG.execute(model, **{"rescale": 0.0, **options})[0]


@pytest.fixture
def run(nano, latent):
    """KSampler from pure noise, at a CFG that must not matter."""
    def sample(model, latent=latent, cfg=5.0, steps=4, sampler="euler", **options):
        return nano.sample(model, latent, cfg=cfg, steps=steps, sampler=sampler, denoise=1.0, **options)
    return sample


class Rows:
    """Counts rows of the UNet, call by call."""

    def __init__(self, model):
        self.unet, self.calls = model.model.diffusion_model, []

    def __enter__(self):
        self.handle = self.unet.register_forward_pre_hook(lambda module, args: self.calls.append(len(args[0])))
        return self.calls

    def __exit__(self, *error):
        self.handle.remove()


# 1. The equations, from the UNet alone: a float64 implementation beside every query of a run.

class Literal:
    """Listens to every query of a run, and says what the paper's equations give there."""

    def __init__(self, model, studio, null=None):
        self.adapter, self.unet = model.adapter, model.model
        self.prompts = {True: studio.positive, False: studio.negative, "null": null or studio.negative}
        self.queries = []

    def listen(self, model):
        def note(executor, x, timestep, *args, **kwargs):
            out = executor(x, timestep, *args, **kwargs)
            self.queries.append((x.clone(), timestep.clone(), out.clone()))
            return out

        heard = model.clone()
        heard.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", note)
        return heard

    def epsilon(self, x, sigma, text, identity):
        prompt = self.prompts["null" if identity and not text else text]
        options = {"cond_or_uncond": [0 if identity else 1], "patches_replace": {"attn2": dict.fromkeys(ATTENTION, self.adapter)}}
        denoised = self.unet.apply_model(x, sigma, c_crossattn=prompt[0][0].expand(len(x), -1, -1), transformer_options=options)
        return (x.double() - denoised.double()) / sigma.double().view(-1, 1, 1, 1)

    def expected(self, x, sigma, name, alpha, beta, phi):
        u, t, i, ti = (self.epsilon(x, sigma, *row) for row in ((False, False), (True, False), (False, True), (True, True)))
        if name == "DCG_1":  # (16)
            guided, second, third = u + alpha * (t - u) + beta * (ti - t), t, ti
        elif name == "DCG_2":  # (5), (17)
            guided, second, third = u + alpha * (i - u) + beta * (ti - i), i, ti
        else:  # (18)
            guided, second, third = u + alpha * (t - u) + beta * (i - u), t, i
        final = []
        for one, b, c in zip(guided, second, third):  # (6)
            ratio = (b.std() + c.std()) / (2 * one.std())
            final.append(phi * ratio * one + (1 - phi) * one)
        return x.double() - sigma.double().view(-1, 1, 1, 1) * torch.stack(final)

    def worst(self, name, phi, everywhere=False, alpha=ALPHA, beta=BETA):
        """Largest error of a run of four steps with one query each, relative to what guidance changes there at most."""
        assert len(self.queries) == 4
        errors = []
        for (x, sigma, out), a, b in zip(self.queries, alpha, beta):
            wanted = self.expected(x, sigma, name, a, b, phi if everywhere or (a, b) != (1, 1) else 0)
            errors.append(((out - wanted).abs().max() / wanted.abs().max()).item())
        return max(errors)


CASES = [(name, *options) for name in NAMES
         for options in ((0.0, "guided", "shared"), (0.75, "guided", "separate"), (0.75, "all", "shared"))]


@pytest.mark.parametrize("name, phi, steps, routing", CASES)
def test_the_equations(nano, model, tensor, run, name, phi, steps, routing):
    literal = Literal(model, nano)
    guided = dcg(model, formulation=name, rescale=phi, rescale_steps=steps, routing=routing)
    run(literal.listen(guided), tensor(2, 4, 8, 8, seed=3))
    assert literal.worst(name, phi, steps == "all") < TOLERANCE


def rescaled_denoised(self, args):
    """Equation (6) on predictions of the clean picture."""
    query, self.query = self.query, None
    listed = (args["cond_denoised"], args["uncond_denoised"], query.third)
    rows = [listed[host.SLOTS[self.dcg.formulation].index(row)] for row in range(3)]
    guided = maths.combine(rows, query.weights)
    return maths.rescale(guided, rows[1], rows[2], self.dcg.phi) if query.rescaled else guided


def over_the_batch(guided, second, third, phi):
    return guided * (phi * (second.std() + third.std()) / (2 * guided.std()) + 1 - phi)


REAL = types.SimpleNamespace(coefficients=maths.coefficients, rescale=maths.rescale, combine=maths.combine)
MUTANTS = {
    "rows exchanged": (maths, "combine", lambda rows, weights: REAL.combine([rows[0], rows[2], rows[1]], weights)),
    "cond and uncond exchanged": (maths, "combine", lambda rows, weights: REAL.combine(rows[::-1], weights)),
    "identity on and off": (host, "Routes", lambda people, texts: Routes(tuple(1 - place for place in people), texts)),
    "rescale on denoised": (host.Guided, "guide", rescaled_denoised),
    "alpha and beta exchanged": (maths, "coefficients", lambda name, alpha, beta: REAL.coefficients(name, beta, alpha)),
    "phi's complement": (maths, "rescale", lambda *args: REAL.rescale(*args[:3], 1 - args[3])),
    "deviation over the batch": (maths, "rescale", over_the_batch),
    "no routing": (host, "Routes", lambda people, texts: None),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mistakes_are_noticed(nano, model, tensor, run, monkeypatch, mutant):
    monkeypatch.setattr(*MUTANTS[mutant])
    literal = Literal(model, nano)
    try:
        run(literal.listen(dcg(model, rescale=0.75)), tensor(2, 4, 8, 8, seed=3))
    except (IndexError, TypeError) as error:  # an adapter's third place, or a row that is not there
        assert mutant in ("no routing", "cond and uncond exchanged", "rows exchanged"), error
    else:
        assert literal.worst("DCG_2", 0.75) > 1e-3


@pytest.mark.parametrize("name, routing", [("DCG_1", "shared"), ("DCG_2", "separate"), ("DCG_3", "shared"), ("DCG_2", "shared")])
def test_the_third_prompt(nano, model, tensor, latent, name, routing):
    """The guider's null prompt goes with the identity alone, and with nothing else."""
    null = [[tensor(1, 77, 64, seed=41), dict(nano.positive[0][1])]]
    literal = Literal(model, nano, null)
    guided_by(nano, literal.listen(model), latent, null, formulation=name, rescale=0.75, routing=routing)
    assert literal.worst(name, 0.75) < TOLERANCE


def guided_by(nano, model, latent, null=None, sampler="euler", **options):
    """SamplerCustomAdvanced with the guider node."""
    guider = DecoupledCFGGuider.execute(model, nano.positive, nano.negative, null, **{"rescale": 0.0, **options})[0]
    sigmas = custom.BasicScheduler.execute(model, "simple", 4, 1.0)[0]
    return custom.SamplerCustomAdvanced.execute(custom.RandomNoise.execute(7)[0], guider, comfy.samplers.sampler_object(sampler), sigmas,
                                                {"samples": latent})[0]["samples"]


# 2. What adapters and text patches are told.

TOLD = {"DCG_1": ((1, 1, 0), (0, 1, 0)), "DCG_2": ((0, 1, 0), (1, 1, 0)), "DCG_3": ((0, 1, 1), (1, 1, 0))}


@pytest.mark.parametrize("name", NAMES)
def test_places_and_prompts(nano, model, run, name):
    run(dcg(model, formulation=name, alpha="2", beta="3"))
    assert set(model.adapter.seen) == {TOLD[name]}
    model.adapter.seen.clear()
    run(dcg(model, formulation=name, alpha="2", beta="3", routing="separate"))
    alone = {"DCG_1": {((1, 0), (1, 0)), ((1,), (0,))}, "DCG_2": {((1, 0), (1, 0)), ((0,), (1,))},
             "DCG_3": {((1,), (1,)), ((1,), (0,)), ((0,), (1,))}}
    assert set(model.adapter.seen) == alone[name]


@pytest.mark.parametrize("order", ["before", "after"])
def test_wrappers_of_others_are_told_too(model, run, order):
    seen = set()

    def note(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        seen.add((tuple(transformer_options["cond_or_uncond"]), transformer_options[KEY].texts))
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def listen(m):
        m = m.clone()
        m.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", note)
        return m

    options = {"alpha": "2", "beta": "3"}
    run(dcg(listen(model), **options) if order == "before" else listen(dcg(model, **options)))
    assert seen == {TOLD["DCG_2"]}


# 3. Exact laws.

@pytest.mark.parametrize("routing", ["shared", "separate"])
@pytest.mark.parametrize("name, cfg", [("DCG_1", 7.0), ("DCG_2", 7.0), ("DCG_2", 1.0)])
def test_scales_of_one_are_cfg_1(nano, model, latent, run, name, cfg, routing):
    plain = run(model, cfg=1.0)
    guided = dcg(model, formulation=name, alpha="1", beta="1", rescale=0.75, routing=routing)
    assert torch.equal(run(guided, cfg=cfg), plain)
    assert torch.equal(guided_by(nano, model, latent, formulation=name, alpha="1", beta="1", routing=routing), plain)


def test_scales_of_one_are_not_cfg_1_in_the_third_formulation(model, run, apart):
    assert apart(run(dcg(model, formulation="DCG_3", alpha="1", beta="1")), run(model, cfg=1.0)) > 1e-2


@pytest.mark.parametrize("name, w", [("DCG_1", 4), ("DCG_2", 4), ("DCG_2", 0.5), ("DCG_1", 1.8)])
def test_equal_scales_are_ordinary_guidance(model, run, apart, name, w):
    guided = dcg(model, formulation=name, alpha=str(w), beta=str(w))
    with Rows(model) as rows:
        out = run(guided, cfg=1.0)
    assert rows == [2, 2, 2, 2]
    assert apart(out, run(model, cfg=w)) < TOLERANCE
    assert apart(run(dcg(model, formulation=name, alpha=str(w), beta=str(w + 0.5))), out) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_guider_is_the_patch(nano, model, latent, run, name):
    options = {"formulation": name, "rescale": 0.75}
    assert torch.equal(guided_by(nano, model, latent, **options), run(dcg(model, **options)))
    assert torch.equal(guided_by(nano, model, latent, null=nano.negative, **options), run(dcg(model, **options)))


@pytest.mark.parametrize("steps, counts", [("guided", [1, 3, 3, 1]), ("all", [2, 3, 3, 2])])
def test_row_counts(model, tensor, run, steps, counts):
    for batch in (1, 2):
        with Rows(model) as rows:
            run(dcg(model, rescale=0.75, rescale_steps=steps), tensor(batch, 4, 8, 8, seed=3))
        assert rows == [batch * count for count in counts]


@pytest.mark.parametrize("name", NAMES)
def test_leaving_out_rows_changes_nothing(model, run, apart, name):
    options = {"formulation": name, "alpha": "1, 0, 2, 1", "beta": "1, 2, 2, 1", "rescale": 0.75}
    few = run(dcg(model, **options))
    with Rows(model) as rows, pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "coupled", lambda options: True)
        out = run(dcg(model, **options))
    assert rows == [3, 3, 3, 3]
    assert apart(few, out) < TOLERANCE


def test_runs_repeat_and_leave_nothing_behind(model, run):
    def state(m):
        def frozen(value):
            if isinstance(value, dict):
                return {key: frozen(item) for key, item in value.items()}
            return [frozen(item) for item in value] if isinstance(value, list) else value
        return frozen(m.model_options), frozen(m.wrappers), frozen(m.callbacks), frozen(m.attachments), frozen(m.patches)

    before, plain = state(model), run(model)
    guided = dcg(model, rescale=0.75)
    patched = state(guided)
    first = run(guided)
    assert torch.equal(run(guided), first) and torch.equal(run(dcg(model, rescale=0.75)), first)
    assert torch.equal(run(model), plain)
    assert state(model) == before and state(guided) == patched and guided.model_options == model.model_options


def test_a_guider_can_be_used_again(nano, model, latent):
    """ComfyUI keeps the GUIDER while nothing before it changes."""
    guider = DecoupledCFGGuider.execute(model, nano.positive, nano.negative, nano.negative)[0]
    sigmas = custom.BasicScheduler.execute(model, "simple", 4, 1.0)[0]
    first, again = (custom.SamplerCustomAdvanced.execute(custom.RandomNoise.execute(7)[0], guider, comfy.samplers.sampler_object("euler"),
                                                         sigmas, {"samples": latent})[0]["samples"] for _ in range(2))
    assert torch.equal(first, again)


def test_a_failed_run_leaves_nothing_behind(model, run):
    guided = dcg(model, rescale=0.75)
    first = run(guided)

    def fail(module, args):
        raise RuntimeError("stop")

    handle = model.model.diffusion_model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        run(guided)
    handle.remove()
    assert torch.equal(run(guided), first)


# 4. Batches.

@pytest.mark.parametrize("routing", ["shared", "separate"])
def test_pictures_are_independent(nano, model, tensor, apart, routing):
    noise, latent = tensor(3, 4, 8, 8, seed=6), tensor(3, 4, 8, 8, seed=3)
    guided = dcg(model, rescale=0.75, routing=routing)

    def sample(order):
        return comfy.sample.sample(guided, noise[order], 4, 3.0, "euler", "simple", nano.positive, nano.negative, latent[order], denoise=0.9,
                                   seed=1, disable_pbar=True)

    together = sample([0, 1, 2])
    assert apart(sample([2, 0, 1]), together[[2, 0, 1]]) < TOLERANCE
    for i in range(3):
        assert apart(sample([i])[0], together[i]) < TOLERANCE


# 5. Samplers and step counts.

class Asked:
    """The (sigma, alpha, beta) of every query of a run."""

    def __init__(self, monkeypatch):
        self.list, real = [], maths.coefficients

        def note(name, alpha, beta):
            self.list.append((alpha, beta))
            return real(name, alpha, beta)

        monkeypatch.setattr(maths, "coefficients", note)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "uni_pc", "dpmpp_2m", "dpmpp_sde"])
def test_samplers(model, latent, run, monkeypatch, sampler):
    asked, sigmas = Asked(monkeypatch), []

    def note(executor, x, timestep, model_options={}, seed=None):
        sigmas.append((float(timestep[0]), model_options["transformer_options"]["sample_sigmas"].tolist()))
        return executor(x, timestep, model_options, seed)

    guided = dcg(model, rescale=0.75)
    guided.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", note)
    assert torch.isfinite(run(guided, sampler=sampler)).all()
    assert len(asked.list) == len(sigmas) >= 4
    for (alpha, beta), (sigma, grid) in zip(asked.list, sigmas):
        step = 0
        while step < 3 and sigma <= grid[step + 1] * 1.00005:  # the interval grid[step] >= sigma > grid[step + 1]
            step += 1
        assert (alpha, beta) == (ALPHA[step], BETA[step]), (sampler, sigma, grid)
    assert {pair for pair in asked.list} == {(1.0, 1.0), (1.5, 3.0)}
    assert asked.list[0] == (1, 1) and (sampler == "uni_pc" or asked.list[-1] == (1, 1))


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 12])
def test_numbers_of_steps(model, run, monkeypatch, steps):
    asked = Asked(monkeypatch)
    assert torch.isfinite(run(dcg(model), steps=steps)).all()
    assert asked.list == [(1, 1)] + [(1.5, 3)] * (steps - 2) + [(1, 1)] * (steps > 1)


def test_without_a_schedule_it_is_the_first_value():
    plan = host.DecoupledCFG("DCG_2", (2.0, 9.0), (3.0, 9.0), 0.75, False, False)
    assert plan.at(3.0, None) == (maths.coefficients("DCG_2", 2.0, 3.0), True)


# 6. Kinds of conditioning.

def entry(tensor, seed, tokens=77, **options):
    return [tensor(1, tokens, 64, seed=seed), {"pooled_output": tensor(1, 1280, seed=9), **options}]


@pytest.fixture(params=["two masks", "area", "longer prompt", "much longer prompt", "hooks", "timestep range"])
def prompts(request, nano, model, tensor):
    first = entry(tensor, 1)
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    lora = {"diffusion_model.input_blocks.1.1.proj_in.lora_up.weight": tensor(32, 2, 1, 1, seed=51),
            "diffusion_model.input_blocks.1.1.proj_in.lora_down.weight": tensor(2, 32, 1, 1, seed=52)}
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0) if request.param == "hooks" else None
    positive = {
        "two masks": [entry(tensor, 1, mask=mask, mask_strength=1.0), entry(tensor, 5, mask=1 - mask, mask_strength=1.0)],
        "area": [first, entry(tensor, 5, area=(4, 8, 2, 0), strength=1.0)],
        "longer prompt": [entry(tensor, 1, tokens=100)],
        "much longer prompt": [entry(tensor, 1, tokens=154)],
        "hooks": [entry(tensor, 1, hooks=hooks)],
        "timestep range": [entry(tensor, 1, start_percent=0.0, end_percent=0.3), entry(tensor, 5, start_percent=0.3, end_percent=1.0)],
    }[request.param]
    return request.param, positive


def test_conditioning(model, run, apart, prompts):
    """Each row is predicted as core predicts it alone, whatever areas, masks and hooks it has."""
    kind, positive = prompts
    options = {"formulation": {"hooks": "DCG_1", "area": "DCG_3"}.get(kind, "DCG_2"), "rescale": 0.75}
    with Rows(model) as rows:
        shared = run(dcg(model, **options), positive=positive)
    if kind in ("longer prompt", "hooks"):
        assert len(rows) > 4, "prompts that cannot share a call"
    assert apart(run(dcg(model, **options, routing="separate"), positive=positive), shared) < TOLERANCE
    ordinary = run(model, cfg=3.0, positive=positive)
    assert apart(run(dcg(model, alpha="3", beta="3"), positive=positive), ordinary) < TOLERANCE
    assert apart(shared, ordinary) > 1e-3


def test_a_noise_mask(nano, model, latent, apart):
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    noise = comfy.sample.prepare_noise(latent, 7)

    def sample(m, cfg):
        return comfy.sample.sample(m, noise, 4, cfg, "euler", "simple", nano.positive, nano.negative, latent, noise_mask=mask, seed=7,
                                   disable_pbar=True)

    out = sample(dcg(model, alpha="3", beta="3"), 1.0)
    assert apart(out, sample(model, 3.0)) < TOLERANCE
    assert apart(out[..., 4:], latent[..., 4:]) < 1e-4


# 7. Other nodes' functions.

def test_other_functions_see_what_core_promises(model, run):
    seen = []

    def pre(args):
        seen.append(("pre", args["conds_out"][0].any().item(), args["conds_out"][1].any().item()))
        return args["conds_out"]

    def post(args):
        seen.append(("post", args["cond_denoised"].any().item(), args["uncond_denoised"].any().item()))
        return args["denoised"]

    for need in (False, True):
        listening = model.clone()
        listening.set_model_sampler_pre_cfg_function(pre)
        listening.set_model_sampler_post_cfg_function(post, disable_cfg1_optimization=need)
        seen.clear()
        out = run(dcg(listening))
        assert torch.equal(out, run(dcg(model))) or need
        assert seen == [(kind, True, need or step in (1, 2)) for step in range(4) for kind in ("pre", "post")]
    # The positive row is not needed at beta 0, but promised.
    listening = model.clone()
    listening.set_model_sampler_post_cfg_function(post)
    seen.clear()
    run(dcg(listening, alpha="1", beta="0"))
    assert seen == [("post", True, False)] * 4


def test_a_later_post_function_has_the_last_word(model, run):
    guided = dcg(model)
    guided.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0)
    assert run(guided).abs().max() < 1e-6


def test_pre_functions_act_on_guidance(model, run, apart):
    def halve(args):
        return [args["conds_out"][0] / 2, args["conds_out"][1]]

    def ones(m):
        m = m.clone()
        m.set_model_sampler_pre_cfg_function(halve)
        return m

    guided = {"alpha": "1", "beta": "1"}
    assert torch.equal(run(dcg(ones(model), **guided)), run(ones(model), cfg=1.0))
    assert apart(run(ones(model), cfg=1.0), run(model, cfg=1.0)) > 1e-2


def test_perturbed_attention_guidance(model, run, apart):
    def pag(m):
        return comfy_extras.nodes_pag.PerturbedAttentionGuidance.execute(m, 2.0)[0]

    plain = run(pag(model), cfg=1.0)
    guided = {"alpha": "1", "beta": "1"}
    assert torch.equal(run(dcg(pag(model), **guided)), plain) and torch.equal(run(pag(dcg(model, **guided))), plain)
    assert apart(plain, run(model, cfg=1.0)) > 1e-2
    assert torch.equal(run(dcg(pag(model))), run(pag(dcg(model))))


@pytest.mark.parametrize("sampler", ["euler_cfg_pp", "euler_ancestral_cfg_pp"])
def test_samplers_that_need_the_negative_prediction(model, run, apart, sampler):
    with Rows(model) as rows:
        out = run(dcg(model, alpha="1", beta="1"), sampler=sampler)
    assert rows == [2, 2, 2, 2]
    assert apart(out, run(model, cfg=1.0, sampler=sampler)) < TOLERANCE


def test_with_seac(nano, latent, tensor, apart):
    """Attention control sees the bank of the prompt that a row carries, not of its place, on whichever side of us it is."""
    model = with_adapter(nano.model)
    banks = nano.features(tensor(1, 4, 8, 8, seed=8)), nano.features(tensor(1, 4, 8, 8, seed=9))

    def seac(m):
        return nano.patch(*banks, model=m)

    for name in NAMES:
        options = {"formulation": name, "rescale": 0.75}
        shared = nano.sample(dcg(seac(model), **options), latent, steps=4)
        assert torch.equal(nano.sample(seac(dcg(model, **options)), latent, steps=4), shared)
        assert apart(nano.sample(dcg(seac(model), **options, routing="separate"), latent, steps=4), shared) < TOLERANCE
        assert apart(nano.sample(dcg(model, **options), latent, steps=4), shared) > 1e-3
    w = {"alpha": "3", "beta": "3"}
    assert apart(nano.sample(dcg(seac(model), **w), latent, steps=4), nano.sample(seac(model), latent, cfg=3.0, steps=4)) < TOLERANCE


def test_seac_reads_the_prompt_of_a_row(nano, latent, tensor, monkeypatch):
    from portrait_atelier.host import seac
    model, seen, real = with_adapter(nano.model), [], seac.hooked

    def note(patch, call, options):
        seen.append(call.texts)
        return real(patch, call, options)

    monkeypatch.setattr(seac, "hooked", note)
    patched = nano.patch(nano.features(latent), nano.features(tensor(1, 4, 8, 8, seed=9)), model=model)
    seen.clear()
    # The same prompt twice: only what we publish tells its rows apart from each other.
    nano.sample(dcg(patched, formulation="DCG_1", alpha="2", beta="3"), latent, positive=nano.positive, negative=nano.positive)
    assert set(seen) == {(0, 1, 0)}


# 8. Who may guide.

@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("owner", ["RescaleCFG", "a batch function"])
def test_another_owner_is_refused(model, run, owner, order):
    def other(m):
        if owner == "RescaleCFG":
            return comfy_extras.nodes_model_advanced.RescaleCFG().patch(m, 0.7)[0]
        m = m.clone()
        m.set_model_sampler_calc_cond_batch_function(lambda args: comfy.samplers.calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]))
        return m

    guided = dcg(other(model)) if order == "before" else other(dcg(model))
    with pytest.raises(ValueError, match="another guidance node") as error:
        run(guided)
    message = str(error.value)
    assert "\n" not in message and "Decoupled CFG" in message and "RescaleCFG" in message and "Remove" in message
    run(other(model))


def test_the_later_of_two_counts(model, run, caplog):
    first = dcg(model, alpha="5", beta="7")
    with caplog.at_level(logging.WARNING, "portrait_atelier"):
        both = dcg(first)
    assert "the later one counts" in caplog.text
    assert torch.equal(run(both), run(dcg(model)))
    with Rows(model) as rows:
        run(both)
    assert rows == [1, 3, 3, 1]


GUIDERS = {
    "BasicGuider": lambda m, s: custom.BasicGuider.execute(m, s.positive)[0],
    "Guider_DualCFG": lambda m, s: custom.DualCFGGuider.execute(m, s.positive, s.positive, s.negative, 2.0, 3.0, "regular")[0],
    "Guider_PerpNeg": lambda m, s: comfy_extras.nodes_perpneg.PerpNegGuider.execute(m, s.positive, s.negative, s.negative, 2.0, 1.0)[0],
}


@pytest.mark.parametrize("kind", GUIDERS)
def test_guiders_it_cannot_act_in(nano, base, latent, kind):
    sigmas = custom.BasicScheduler.execute(base, "simple", 4, 1.0)[0]
    guider = GUIDERS[kind](dcg(base, alpha="2"), nano)
    with pytest.raises(ValueError, match="negative prompt" if kind == "BasicGuider" else kind) as error:
        custom.SamplerCustomAdvanced.execute(custom.RandomNoise.execute(7)[0], guider, comfy.samplers.sampler_object("euler"), sigmas,
                                             {"samples": latent})
    assert "Decoupled CFG" in str(error.value) and "KSampler, CFG Guider" in str(error.value)


def test_a_basic_guider_at_scales_of_one(nano, model, latent, run):
    guider = GUIDERS["BasicGuider"](dcg(model, alpha="1", beta="1"), nano)
    sigmas = custom.BasicScheduler.execute(model, "simple", 4, 1.0)[0]
    out = custom.SamplerCustomAdvanced.execute(custom.RandomNoise.execute(7)[0], guider, comfy.samplers.sampler_object("euler"), sigmas,
                                               {"samples": latent})[0]["samples"]
    assert torch.equal(out, run(model, cfg=1.0))


# 9. Without an adapter: two prompts.

@pytest.mark.parametrize("name, scale", [("DCG_1", "alpha"), ("DCG_2", "beta"), ("DCG_3", "alpha")])
def test_without_an_adapter_it_is_ordinary_guidance(base, run, apart, caplog, name, scale):
    with caplog.at_level(logging.WARNING, "portrait_atelier"):
        out = run(dcg(base, formulation=name, **{"alpha": "2", "beta": "2", scale: "3.5"}))
    assert f"ordinary guidance of scale {scale}" in caplog.text and "without an identity adapter" in caplog.text
    assert apart(out, run(base, cfg=3.5)) < TOLERANCE


def test_without_an_adapter_it_guides_by_two_prompts(nano, base, tensor, latent, run, caplog):
    """DCG_2: alpha from negative to null, beta from null to positive; with beta = 1 and no pull the other way round."""
    null = [[tensor(1, 77, 64, seed=41), dict(nano.positive[0][1])]]
    with caplog.at_level(logging.WARNING, "portrait_atelier"):
        first = guided_by(nano, base, latent, null, alpha="3", beta="0")
        third = guided_by(nano, base, latent, null, formulation="DCG_3", alpha="0", beta="3")
    assert caplog.text.count("guides by two prompts") == 2
    expected = run(base, cfg=3.0, positive=null)
    assert (first - expected).abs().max() < TOLERANCE * expected.abs().max() and torch.equal(third[0, 0, 0], first[0, 0, 0])


def test_a_prompt_without_use_is_told(nano, model, latent, caplog):
    with caplog.at_level(logging.WARNING, "portrait_atelier"):
        guided_by(nano, model, latent, nano.negative, formulation="DCG_1")
        assert "'null' is not used" in caplog.text
        caplog.clear()
        guided_by(nano, model, latent, nano.negative, formulation="DCG_2")
    assert not caplog.records, "nothing to tell with an adapter"


# 10. Bad input.

@pytest.mark.parametrize("widget, value, words", [
    ("alpha", "", "'alpha' of Decoupled CFG is empty"), ("beta", "1, two", "'two' is not a number"), ("alpha", "nan", "'nan' is not a number"),
    ("beta", "1e9", "'beta' of Decoupled CFG is"), ("rescale", float("nan"), "'rescale' of Decoupled CFG is nan"), ("rescale", 1.5, "between 0 and 1"),
])
def test_bad_input(nano, model, widget, value, words):
    with pytest.raises(ValueError, match=words):
        dcg(model, **{widget: value})
    with pytest.raises(ValueError, match=words.replace("Decoupled CFG", "Decoupled CFG Guider")):
        DecoupledCFGGuider.execute(model, nano.positive, nano.negative, **{widget: value})


# 11. Presets.

TABLE = {  # base: sampler, timesteps, CFG without decoupled guidance
    "Hyper": ("sample_euler", [999, 749, 499, 249], 1),
    "Lightning": ("sample_euler", [999, 749, 499, 249], 1),
    "LCM": ("sample_lcm", [999, 759, 499, 259], 1.5),
    "Turbo": ("sample_euler_ancestral", [999, 749, 499, 249], 1),
}


@pytest.mark.parametrize("family, name", [*(("nano", name) for name in TABLE), ("sdxl", "LCM")])
def test_presets(build_model, family, name):
    base = build_model(family)
    model, sampler, sigmas, cfg, alpha, beta, steps = FewStepPreset.execute(base, name).result
    sampling = model.get_model_object("model_sampling")
    function, timesteps, scale = TABLE[name]
    assert [round(float(sampling.timestep(sigma))) for sigma in sigmas[:-1]] == timesteps and sigmas[-1] == 0
    assert sampler.sampler_function.__name__ == function and cfg == scale and steps == 4
    assert (alpha, beta) == ("1, 1.5, 1.5, 1", "1, 3, 3, 1")
    assert not base.object_patches, "the input model stays as it is"


def test_a_preset_of_a_picture(base):
    whole = FewStepPreset.execute(base, "LCM", 8)[2]
    assert torch.equal(FewStepPreset.execute(base, "LCM", 4, 0.5)[2], whole[4:])


@pytest.mark.parametrize("name", TABLE)
def test_presets_sample(nano, base, latent, name):
    model, sampler, sigmas, _, alpha, beta, _ = FewStepPreset.execute(with_adapter(base), name).result
    guider = DecoupledCFGGuider.execute(model, nano.positive, nano.negative, alpha=alpha, beta=beta)[0]
    with Rows(base) as rows:
        out = custom.SamplerCustomAdvanced.execute(custom.RandomNoise.execute(7)[0], guider, sampler, sigmas, {"samples": latent})[0]["samples"]
    assert rows == [1, 3, 3, 1] and torch.isfinite(out).all()


@pytest.mark.parametrize("widget, value", [("steps", 0), ("denoise", 0.0), ("denoise", float("nan"))])
def test_bad_presets(base, widget, value):
    with pytest.raises(ValueError, match=f"'{widget}' of Few-Step Preset"):
        FewStepPreset.execute(base, "Hyper", **{widget: value})


def test_presets_are_for_unets(base):
    class Other:
        diffusion_model, model_config = torch.nn.Linear(1, 1), type("Flux", (), {})()

    class Patcher:
        model = Other()

    with pytest.raises(ValueError, match="SD1, SD2 or SDXL family, but this model is Flux"):
        FewStepPreset.execute(Patcher(), "LCM")
