"""Style LoRA Train: equation (3) against a literal float64 training, law 12, Cancel, what is refused."""

import errno
import os
import shutil
from pathlib import Path

import comfy.model_management
import comfy.ops
import comfy.samplers
import comfy.utils
import comfy_extras.nodes_model_advanced
import comfy_extras.nodes_train
import folder_paths
import nodes as core
import pytest
import torch
from comfy.ldm.modules import attention

from portrait_atelier.host import training as host, unfinished
from portrait_atelier.host.adapters import low_rank_pairs
from portrait_atelier.nodes.demo_model_loader import DemoModelLoader
from portrait_atelier.nodes.style_lora_train import StyleLoRATrain
from portrait_atelier.training import style_lora as maths


class PooledVAE:
    """Four channels of 8 x 8 means: what a VAE is to the node."""

    channels = 4

    def spacial_compression_encode(self):
        return 8

    def encode(self, pixels):
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1) * 2 - 1, 8)
        return torch.cat([small, small.mean(1, keepdim=True)] * 4, 1)[:, :self.channels]


class Class:
    """A model with a style picture and a caption: what the ComfyUI graph around the node does."""

    def __init__(self, model, tensor):
        self.model, self.vae = model, PooledVAE()
        self.image = tensor(1, 64, 64, 3, seed=5).sigmoid()
        self.caption = [[tensor(1, 77, 64, seed=1), {"pooled_output": tensor(1, 1280, seed=9)}]]

    def train(self, model=None, **options):
        options = {"image": self.image, "caption": self.caption, "vae": self.vae, "steps": 3, "rank": 4, "resolution": 64, "learning_rate": 1e-3,
                   "checkpointing": False, **options}
        return StyleLoRATrain.execute(model or self.model, **options).result

    def network(self, checkpointing=False, model=None):
        latents = host.encoded(self.model, self.vae, self.image, 64, False)
        with torch.inference_mode(False):
            return host.Network(model or self.model, [[latent.clone() for latent in pair] for pair in latents], self.caption, checkpointing)


@pytest.fixture
def school(build_model, tensor):
    """school(family): built under inference_mode, as another node would."""
    return lambda family="nano": Class(build_model(family), tensor)


@pytest.fixture
def nano(school):
    return school()


def weights(model):
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def sampled_as(kind):
    return lambda model: comfy_extras.nodes_model_advanced.ModelSamplingDiscrete().patch(model, kind, False)[0]


# ---- equation (3), literally


STEPS, SEED, RANK = 3, 11, 4
PROJECTIONS = ("to_q", "to_k", "to_v")


class Recorder:
    """What AdamW is given, step by step: [{module number: (down, up, gradient of down, gradient of up)}]."""

    def __init__(self, monkeypatch):
        self.steps, step = [], torch.optim.AdamW.step

        def record(optimizer, *args):
            parts = [part for group in optimizer.param_groups for part in group["params"]]
            self.steps.append([(down.detach().clone(), up.detach().clone(), down.grad.clone(), up.grad.clone()) for down, up in zip(parts[::2], parts[1::2])])
            return step(optimizer, *args)

        monkeypatch.setattr(torch.optim.AdamW, "step", record)


def projections(unet):
    """Names of the trained modules in the order of a walk through the UNet."""
    layers = [(name, module) for name, module in unet.named_modules() if name.split(".")[-1] in ("attn1", "attn2")]
    return [f"{name}.{part}" for name, module in sorted(layers, key=lambda pair: list("imo").index(pair[0][0])) for part in PROJECTIONS]


def literal_step(lesson, names, values, draw, prediction):
    """(1) and (3) in float64 on the bare UNet with merged weights: (loss, gradients of every down and up)."""
    unet = type(lesson.model.model.diffusion_model)(**lesson.model.model.model_config.unet_config, operations=comfy.ops.disable_weight_init).double()
    fixed = {name: value.double().clone() for name, value in lesson.model.model.diffusion_model.state_dict().items()}
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, 0)[draw["t"]]
    z0 = lesson.vae.encode(lesson.image).double().clone() * 0.18215
    zt = abar.sqrt() * z0 + (1 - abar).sqrt() * draw["epsilon"]
    free = {name: [part.double().clone().requires_grad_() for part in pair] for name, pair in zip(names, values)}
    merged = {**fixed, **{f"{name}.weight": fixed[f"{name}.weight"] + up @ down for name, (down, up) in free.items()}}
    out = torch.func.functional_call(unet, merged, (zt, torch.tensor([float(draw["t"])])), {"context": lesson.caption[0][0].double().clone(), "transformer_options": {}})
    wanted = draw["epsilon"] if prediction == "epsilon" else abar.sqrt() * draw["epsilon"] - (1 - abar).sqrt() * z0
    loss = ((out - wanted) ** 2).mean()
    return float(loss.detach()), torch.autograd.grad(loss, [part for pair in free.values() for part in pair])


def error_of_training(lesson, prediction, apart, monkeypatch):
    """Largest relative error of losses and gradients over the steps; random numbers are drawn here anew, in the documented order."""
    recorder = Recorder(monkeypatch)
    model = lesson.model if prediction == "epsilon" else sampled_as("v_prediction")(lesson.model)
    _, curve = lesson.train(model, steps=STEPS, seed=SEED, rank=RANK, learning_rate=0.02)
    names, generator, worst = projections(lesson.model.model.diffusion_model), torch.Generator().manual_seed(SEED), 0.0
    with torch.inference_mode(False):
        for down, up, _, _ in recorder.steps[0]:
            if len(names) != len(recorder.steps[0]) or not torch.equal(down, torch.randn(down.shape, generator=generator) / RANK) or up.any():
                return float("inf")
        for step, given in enumerate(recorder.steps):
            for _ in range(2):  # which picture, which variant: one of one
                torch.randint(1, (), generator=generator)
            draw = {"t": int(torch.randint(1000, (), generator=generator)), "epsilon": torch.randn(1, 4, 8, 8, generator=generator).double()}
            loss, grads = literal_step(lesson, names, [pair[:2] for pair in given], draw, prediction)
            found = [grad for pair in given for grad in pair[2:]]
            worst = max(worst, abs(curve["loss"][step] / loss - 1), *(apart(f.double(), g) for f, g in zip(found, grads) if g.any()))
            assert all(not f.any() for f, g in zip(found, grads) if not g.any())
    assert len(recorder.steps) == STEPS
    return worst


TOLERANCE = 2e-4


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_training_is_equation_3(nano, apart, monkeypatch, prediction):
    assert error_of_training(nano, prediction, apart, monkeypatch) < TOLERANCE


@pytest.mark.parametrize("prediction, place, name, mutant", [
    ("epsilon", maths, "target", lambda draw, *_: draw.z0),  # loss on x0
    ("v", maths, "target", lambda draw, alphas, _: alphas[draw.t].sqrt() * draw.epsilon + (1 - alphas[draw.t]).sqrt() * draw.z0),
    ("v", maths, "target", lambda draw, *_: draw.epsilon),
    ("epsilon", maths, "noised", lambda draw, alphas: alphas[draw.t] * draw.z0 + (1 - alphas[draw.t]) * draw.epsilon),
    ("epsilon", maths, "noised", lambda draw, alphas: draw.z0 + ((1 - alphas[draw.t]) / alphas[draw.t]).sqrt() * draw.epsilon),
    ("epsilon", host, "TARGETS", {"qkv": ("to_k",)}), ("epsilon", host, "TARGETS", {"qkv": ("to_q", "to_k", "to_v", "to_out.0")}),
])
def test_mutants_of_the_training(nano, apart, monkeypatch, prediction, place, name, mutant):
    monkeypatch.setattr(place, name, mutant)
    assert error_of_training(nano, prediction, apart, monkeypatch) > 5 * TOLERANCE


# ---- law 12


def test_the_loss_falls_on_the_demo_model(tensor):
    model, clip, vae = DemoModelLoader.execute().result
    caption = core.CLIPTextEncode().encode(clip, "portrait")[0]
    image = comfy.utils.common_upscale(tensor(1, 3, 8, 8, seed=4).sigmoid(), 256, 256, "bicubic", "disabled").movedim(1, -1).clamp(0, 1)
    _, curve = StyleLoRATrain.execute(model, vae, image, caption, steps=12, learning_rate=2e-3, resolution=256, checkpointing=False).result
    before, after = curve["probe"]
    assert after < 0.97 * before and len(curve["loss"]) == 12


@pytest.mark.parametrize("targets, pairs", [("qkv", 96), ("qkv+out", 128)])
def test_every_pair_of_sd15_is_loaded(school, targets, pairs, caplog):
    sd15 = school("sd15")
    lora, _ = sd15.train(steps=2, targets=targets)
    assert sum(name.endswith(".alpha") for name in lora) == pairs and len(lora) == 3 * pairs
    assert all(name.startswith(("lora_unet_down_blocks_", "lora_unet_mid_block_", "lora_unet_up_blocks_")) for name in lora)
    loaded = comfy_extras.nodes_train.LoraModelLoader.execute(sd15.model, lora, 1.0)[0]
    assert len(loaded.patches) == pairs and "not loaded" not in caplog.text
    routed = low_rank_pairs(sd15.model, lora, "style")  # what LoRA Cross-Injection reads
    assert len(routed) == pairs and {pair.scale for pair in routed.values()} == {1.0}


def answers(model, caption, x, sigma):
    """(x - D) / sigma of ComfyUI's own sampling at cfg 1."""
    kept = {}

    def sampler(denoise, x, sigmas, extra_args, callback, disable):
        kept["x"] = x
        kept["out"] = (x - denoise(x, sigmas[:1], **extra_args)) / sigmas[0]
        return x

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(caption, caption)
    guider.set_cfg(1.0)
    guider.sample(x, torch.zeros_like(x), comfy.samplers.KSAMPLER(sampler), torch.tensor([sigma, 0.0]), disable_pbar=True, seed=0)
    return kept["x"], kept["out"]


def error_of_round_trip(lesson, tensor, apart, tamper=lambda lora: lora):
    """Stock loader's output against the trainer's own."""
    network = lesson.network()
    with torch.inference_mode(False):
        adapters = maths.Adapters(host.target_modules(network.inner, "qkv"), 4, torch.Generator().manual_seed(0))
        prediction, alphas = host.schedule(lesson.model)
        with adapters.attached():
            maths.train(network.predict, adapters, network.pictures, alphas, prediction=prediction, steps=2, learning_rate=0.02, window=1,
                        generator=torch.Generator().manual_seed(1), on_step=lambda *_: None)
            sigma = float(lesson.model.get_model_object("model_sampling").sigmas[400])
            loaded = comfy_extras.nodes_train.LoraModelLoader.execute(lesson.model, tamper(host.lora_file(adapters, host.file_names(network.inner, adapters.modules_by_name))), 1.0)[0]
            with torch.inference_mode():
                x, stock = answers(loaded, lesson.caption, tensor(1, 4, 8, 8, seed=8), sigma)
            with torch.no_grad():
                own = network.predict((x / (1 + sigma**2) ** 0.5).clone(), 400)
    plain = answers(lesson.model, lesson.caption, tensor(1, 4, 8, 8, seed=8), sigma)[1]
    network.close()
    assert apart(plain, own) > 1e-2, "training changed too little to see"
    return apart(stock, own)


@pytest.mark.parametrize("family", ["nano", "sd15", "sd21", "sdxl"])
def test_the_stock_loader_gives_the_trainers_output(school, tensor, apart, family):
    assert error_of_round_trip(school(family), tensor, apart) < 1e-5


def test_mutant_alpha(nano, tensor, apart):
    wrong = lambda lora: {name: torch.tensor(1.0) if name.endswith(".alpha") else value for name, value in lora.items()}
    assert error_of_round_trip(nano, tensor, apart, wrong) > 1e-3


def test_a_saved_file_loads_in_the_stock_loaders_and_plots(nano, tensor):
    lora, curve = nano.train()
    comfy_extras.nodes_train.SaveLoRA.execute(lora, "loras/round_trip")
    path = Path(folder_paths.get_output_directory()) / "loras" / "round_trip_00001_.safetensors"
    assert same(comfy.utils.load_torch_file(str(path), safe_load=True), lora)
    assert comfy_extras.nodes_train.LossGraphNode.execute(curve, "x").ui is not None


def test_the_base_stays_bit_equal_through_two_trainings(nano, tensor):
    before, state = weights(nano.model), torch.get_rng_state()
    x = tensor(1, 4, 8, 8, seed=8)
    plain = answers(nano.model, nano.caption, x, 3.0)[1]
    first, curve = nano.train(steps=4)
    torch.manual_seed(12345)  # another state of the global generator
    second, again = nano.train(steps=4)
    assert same(first, second) and curve == again
    assert not same(first, nano.train(steps=4, seed=1)[0])
    assert same(before, weights(nano.model))
    assert torch.equal(plain, answers(nano.model, nano.caption, x, 3.0)[1])
    modules = list(nano.model.model.modules())
    assert not any(module._forward_hooks or "forward" in vars(module) for module in modules)
    assert not any(p.requires_grad or p.grad is not None for p in nano.model.model.parameters())
    assert not comfy.model_management.in_training
    torch.set_rng_state(state)


def test_training_draws_nothing_from_the_global_generator(nano):
    state = torch.get_rng_state()
    nano.train(augment="flip and crop")
    assert torch.equal(state, torch.get_rng_state())


def test_gradients_reach_the_adapters_alone(nano):
    network = nano.network()
    with torch.inference_mode(False):
        adapters = maths.Adapters(host.target_modules(network.inner, "qkv"), 4, torch.Generator().manual_seed(0))
        prediction, alphas = host.schedule(nano.model)
        with adapters.attached():
            maths.loss(network.predict, maths.probes(network.pictures, 1000, 0)[3], alphas, prediction).backward()
    assert all(p.grad is None and not p.requires_grad for p in network.inner.parameters())
    assert all(down.grad is not None and float(up.grad.abs().sum()) > 0 for down, up in adapters.pairs.values())
    assert {p.data_ptr() for p in network.inner.parameters()}.isdisjoint(p.data_ptr() for p in nano.model.model.parameters())


# ---- the model as it comes


def test_checkpointing_changes_memory_only(nano):
    calls = []
    unet = type(nano.model.model.diffusion_model.middle_block[0])
    forward = unet._forward
    try:
        unet._forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
        plain = nano.train()[0]
        once, calls[:] = len(calls), []
        assert same(plain, nano.train(checkpointing=True)[0])
    finally:
        unet._forward = forward
    assert len(calls) > once


def test_a_lora_on_the_model_acts_and_is_not_applied_twice(nano):
    other = nano.train(learning_rate=0.05, seed=3)[0]
    tuned = comfy_extras.nodes_train.LoraModelLoader.execute(nano.model, other, 1.0)[0]
    fresh = nano.train(tuned)
    assert fresh[1]["probe"] != nano.train()[1]["probe"]
    comfy.model_management.load_models_gpu([tuned])  # now the shared weights carry it
    assert same(fresh[0], nano.train(tuned)[0])


def test_lcm_sampling_trains_as_the_plain_model(nano):
    assert same(nano.train(sampled_as("lcm")(nano.model))[0], nano.train()[0])


@pytest.mark.parametrize("trained", [lambda model: model, sampled_as("lcm"), sampled_as("eps")])
def test_a_model_that_was_just_sampled_trains_the_same(nano, trained):
    """The run before left its sampling on the shared network: LCM's 50 timesteps are not what the network was trained on."""
    fresh = nano.train()[0]
    comfy.model_management.load_models_gpu([sampled_as("lcm")(nano.model)])
    assert len(nano.model.model.model_sampling.sigmas) == 50
    assert same(nano.train(trained(nano.model))[0], fresh)


def test_a_loaders_model_is_loaded_again(nano, build_model):
    plain, asked = nano.train()[0], []
    nano.model.cached_patcher_init = (lambda family, disable_dynamic=False: asked.append(torch.is_inference_mode_enabled()) or build_model(family), ("nano",))
    assert same(plain, nano.train()[0]) and asked == [False]


def test_gguf_weights(nano, in_blocks, apart):
    expected, found = [nano.train()[0] for _ in in_blocks(nano.model)]
    assert expected.keys() == found.keys() and all(apart(found[name], expected[name]) < 1e-4 for name in expected)


def test_fp8_weights(nano):
    """Storage in fp8, computing in float32: as the same model with weights rounded to fp8."""
    rounded = [module for module in nano.model.model.modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))]
    for module in rounded:
        module.weight = torch.nn.Parameter(module.weight.to(torch.float8_e4m3fn).float(), requires_grad=False)
    expected = nano.train()[0]
    for module in rounded:
        module.weight = torch.nn.Parameter(module.weight.to(torch.float8_e4m3fn), requires_grad=False)
    assert same(expected, nano.train()[0])
    assert {module.weight.dtype for module in rounded} == {torch.float8_e4m3fn}


def test_any_attention_backend_can_be_trained_through(nano, monkeypatch):
    plain = nano.train()[0]

    @attention.wrap_attn
    def no_gradients(*args, **kwargs):
        raise RuntimeError("forward only")

    monkeypatch.setattr(attention, "optimized_attention", no_gradients)
    assert same(plain, nano.train()[0])


def test_several_pictures_augmented(nano, tensor):
    nano.image = tensor(2, 96, 160, 3, seed=6).sigmoid()
    network = host.encoded(nano.model, nano.vae, nano.image, 128, True)
    assert [tuple(latent.shape) for pair in network for latent in pair] == [(1, 4, 16, 24)] * 4
    assert torch.allclose(network[0][1], network[0][0].flip(3), atol=1e-6)
    lora, curve = nano.train(augment="flip and crop", resolution=128)
    assert len(curve["loss"]) == 3


@pytest.mark.parametrize("size, short, expected", [((64, 64), 64, (8, 8)), ((100, 300), 128, (16, 32)), ((2000, 70), 64, (16, 8)), ((512, 700), 512, (64, 88))])
def test_sizes(nano, tensor, size, short, expected):
    latent, = host.encoded(nano.model, nano.vae, tensor(1, *size, 3, seed=6).sigmoid(), short, False)[0]
    assert tuple(latent.shape[-2:]) == expected


def test_grey_pictures_are_grey_colours(nano):
    grey = nano.image[..., :1]
    plain, opaque, colour = (nano.train(image=image)[0] for image in (grey, with_channel(grey, 1.0), grey.repeat(1, 1, 1, 3)))
    assert same(plain, colour) and same(opaque, colour)


def test_an_opaque_fourth_channel_is_fine(nano):
    with_alpha = torch.cat([nano.image, torch.ones_like(nano.image[..., :1])], -1)
    assert same(nano.train()[0], nano.train(image=with_alpha)[0])


# ---- progress, Cancel, failures


@pytest.fixture
def progress(monkeypatch):
    """progress(f): f(step, of, preview) is called when the node tells the progress bar, which itself skips what comes too fast."""
    return lambda f: monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", lambda bar, value, total, preview: f(value, total, preview))


@pytest.fixture
def loras():
    folder = Path(folder_paths.get_output_directory()) / "loras"
    before = set(folder.glob("*"))
    return lambda: sorted(set(folder.glob("*")) - before)


def test_progress_and_previews(nano, progress, monkeypatch):
    from comfy.cli_args import LatentPreviewMethod, args
    seen = []
    progress(lambda *event: seen.append(event))
    plain = nano.train(steps=10)[0]
    assert [event[:2] for event in seen] == [(step, 10) for step in range(1, 11)] and not any(event[2] for event in seen)
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    seen.clear()
    assert same(plain, nano.train(steps=10)[0])
    assert [event[2] is not None for event in seen] == [False] * 9 + [True] and seen[-1][2][1].size == (8, 8)


def cancel_at(step):
    return lambda value, *_: comfy.model_management.interrupt_current_processing(value == step)


def test_cancel_keeps_what_is_trained(nano, progress, loras, caplog):
    before = weights(nano.model)
    progress(cancel_at(3))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        nano.train(steps=50)
    path, = loras()
    assert path.name.startswith("style_lora_unfinished_0") and path.name.endswith("_3_steps.safetensors") and str(path) in caplog.text
    progress(lambda *_: None)
    assert same(comfy.utils.load_torch_file(str(path), safe_load=True), nano.train(steps=3)[0])
    folder_paths.add_model_folder_path("loras", str(path.parent))  # as ComfyUI does when it starts
    loaded = core.LoraLoaderModelOnly().load_lora_model_only(nano.model, path.name, 1.0)[0]
    assert len(loaded.patches) == len(list(host.target_modules(nano.model.model, "qkv")))
    assert same(before, weights(nano.model))


def test_cancel_before_the_first_step_saves_nothing(nano, loras):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        nano.train()
    assert loras() == []


def test_a_full_disk_leaves_no_piece_and_cancel_stays_cancel(nano, progress, loras, caplog):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    progress(cancel_at(2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            nano.train(steps=50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert loras() == []
    assert os.strerror(errno.EFBIG) in caplog.text and folder_paths.get_output_directory() in caplog.text


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_steps_before(nano, monkeypatch, loras):
    predict, calls = host.Network.predict, []

    def overflow(network, z_t, t):
        calls.append(t)
        return predict(network, z_t, t) * (float("inf") if len(calls) == 8 + 3 else 1)  # eight probes come first

    monkeypatch.setattr(host.Network, "predict", overflow)
    with pytest.raises(ValueError, match="step 3 of 5.*learning_rate"):
        nano.train(steps=5)
    path, = loras()
    monkeypatch.undo()
    assert same(comfy.utils.load_torch_file(str(path), safe_load=True), nano.train(steps=2)[0])


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    (tmp_path / "output").mkdir()
    return tmp_path / "output"


@pytest.mark.parametrize("prefix, reason", [
    ("/somewhere/else", "not allowed"), ("../escaped", "not allowed"), ("loras/../../escaped", "not allowed"), ("", "names no file"),
    ("  ", "names no file"), ("loras/", "names no file"), (".", "names no file"), ("loras/..", "names no file"),
    ("loras/a:b", "':' cannot stand in the name"), ("what?", "'\\?' cannot stand"), ("nul\0", "cannot stand"),
    ("a_file/unfinished", os.strerror(errno.ENOTDIR)), ("locked/unfinished", os.strerror(errno.EACCES)),
    ("loras/" + "x" * 300, os.strerror(errno.ENAMETOOLONG)),
])
def test_where_nothing_could_be_kept_is_told_before_the_first_step(nano, output, monkeypatch, prefix, reason):
    (output / "a_file").write_bytes(b"")
    made = open

    def locked(path, *args):  # whoever runs as root may write anywhere
        if "locked" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return made(path, *args)

    monkeypatch.setattr(unfinished, "open", locked, raising=False)
    monkeypatch.setattr(host, "encoded", lambda *_: pytest.fail("the work began"))
    with pytest.raises(ValueError, match=f"(?s)^'cancel_prefix' of Style LoRA Train is .* cannot be kept: .*{reason}.*for example loras/style_lora_unfinished") as error:
        nano.train(cancel_prefix=prefix)
    assert str(error.value).count("\n") == prefix.count("\n") and "**" not in str(error.value)
    assert [path.name for path in output.parent.rglob("*") if path.is_file()] == ["a_file"]


def test_the_check_leaves_nothing_behind(nano, output):
    nano.train(cancel_prefix="loras/checked")
    assert not [path for path in output.rglob("*") if path.is_file()]


@pytest.mark.parametrize("broken, place", [("mine", "loras/style_lora_unfinished"), ("mine loras", "style_lora_unfinished")])
def test_a_folder_that_vanished_does_not_cost_the_training(nano, progress, output, caplog, broken, place):
    """Here a file is put where the folders were: even ComfyUI cannot make them again."""
    def replace_folders(step, *_):
        if step == 2:
            for name in broken.split():
                shutil.rmtree(output / name, ignore_errors=True)
                (output / name).write_bytes(b"")
            comfy.model_management.interrupt_current_processing(True)

    progress(replace_folders)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        nano.train(steps=50, cancel_prefix="mine/unfinished")
    path, = output.rglob("*_2_steps.safetensors")
    assert path.relative_to(output).as_posix().startswith(place + "_0")
    assert "could not be saved under 'mine/unfinished'" in caplog.text and f"is kept in {path}" in caplog.text
    progress(lambda *_: None)
    assert same(comfy.utils.load_torch_file(str(path), safe_load=True), nano.train(steps=2, cancel_prefix="free")[0])


def test_what_fails_after_the_last_step_does_not_cost_the_training(nano, monkeypatch, loras):
    probe, calls = maths.probe_loss, []

    def broken(*args):
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError
        return probe(*args)

    monkeypatch.setattr(maths, "probe_loss", broken)
    with pytest.raises(MemoryError):
        nano.train()
    assert loras()[0].name.endswith("_3_steps.safetensors")


# ---- what is refused


def with_channel(image, value):
    return torch.cat([image, torch.full_like(image[..., :1], value)], -1)


@pytest.mark.parametrize("change, message", [
    (lambda s: {"image": s.image[:, :63]}, "64 x 63 pixels.*at least 64"),
    (lambda s: {"image": with_channel(s.image, 0.5)}, "transparent.*background"),
    (lambda s: {"image": s.image * float("nan")}, "training picture.*NaN"),
    (lambda s: {"image": s.image[:0]}, "batch is empty"),
    (lambda s: {"image": with_channel(s.image[..., :1], 0.5)}, "transparent.*background"),
    (lambda s: {"image": torch.cat([s.image, s.image], -1)}, r"dimensions \[1, 64, 64, 6\].*1 to 4 channels"),
    (lambda s: {"image": s.image[0]}, r"dimensions \[64, 64, 3\]"),
    (lambda s: {"caption": s.caption * 2}, "holds 2 prompts"),
    (lambda s: {"caption": []}, "holds 0 prompts"),
    (lambda s: {"caption": [[s.caption[0][0], {"area": (8, 8, 0, 0)}]]}, "carries 'area'"),
    (lambda s: {"caption": [[s.caption[0][0], {"hooks": object()}]]}, "carries 'hooks'"),
    (lambda s: {"caption": [[s.caption[0][0] * float("inf"), {}]]}, "'caption'.*NaN"),
    (lambda s: {"learning_rate": float("nan")}, "'learning_rate'.*nan"),
    (lambda s: {"rank": 0}, "'rank'"),
    (lambda s: {"steps": 1}, "'steps'"),
])
def test_bad_input(nano, change, message):
    before = weights(nano.model)
    with pytest.raises(ValueError, match=message):
        nano.train(**change(nano))
    assert same(before, weights(nano.model))


def test_the_vae_of_another_model(nano):
    nano.vae.channels = 16
    with pytest.raises(ValueError, match="takes .images, 4, height"):
        nano.train()


@pytest.mark.parametrize("kind", ["x0", "img_to_img"])
def test_models_that_predict_something_else(nano, kind):
    with pytest.raises(ValueError, match="epsilon or v"):
        nano.train(sampled_as(kind)(nano.model))


def test_continuous_models(nano):
    model = comfy_extras.nodes_model_advanced.ModelSamplingContinuousEDM().patch(nano.model, "edm_playground_v2.5", 80.0, 0.002)[0]
    with pytest.raises(ValueError, match="epsilon or v"):
        nano.train(model)


def test_inpainting_models(nano):
    nano.model.model.set_inpaint()
    with pytest.raises(ValueError, match="inpainting"):
        nano.train()


def test_models_that_are_no_unet(nano):
    nano.model.model.diffusion_model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="SD1, SD2 or SDXL"):
        nano.train()
