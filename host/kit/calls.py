"""What a patch may know of the sampling run and of the model call it acts in, said once for all methods.

One wrapper around the sampling run keeps what lives as long as the run; one around each model call reads once for all layers
what they need (sigma too: reading it in a layer would wait for the GPU there). Under `KEY` of the transformer options there is
the `Run`, and inside a call, in a copy of them, its `Call`.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from comfy.patcher_extension import WrappersMP

from ...attention.blocks import LayerId
from ...attention.features import COND, UNCOND
from ...guidance.schedule import step_count, step_of, value_at
from ..log import log

KEY = "portrait_atelier"


class Kept(dict):
    """What is made once and kept as long as a run."""

    def once(self, of: object, how: Hashable, make: Callable):
        """What `make` made of this object, which is kept too, so that its id stays its own."""
        if (id(of), how) not in self:
            self[id(of), how] = of, make()
        return self[id(of), how][1]

    def moved(self, tensor: torch.Tensor, device, dtype) -> torch.Tensor:
        """A patch's tensor on this device and in this dtype."""
        return self.once(tensor, (device, dtype), lambda: tensor.to(device, dtype))


@dataclass(frozen=True, eq=False)
class Routes:
    """What the rows of a packed call are, by their place in the list of prompts: COND or UNCOND, of the person and of the text."""

    people: tuple[int, ...]
    texts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Run:
    """One sampling run: its latent's (height, width), its guider (None outside of a run), what it keeps and has warned of."""

    size: tuple[int, int]
    guider: object = None
    routes: Routes | None = None
    kept: Kept = field(default_factory=Kept)
    warned: set[str] = field(default_factory=set)
    reached: set = field(default_factory=set)  # (layer, id) of what has acted
    last: list = field(default_factory=list)  # sigma and places of the call before

    def warn(self, message: str) -> None:
        if message not in self.warned:
            self.warned.add(message)
            log.warning("%s", message)

    def owns(self, model) -> bool:
        """False for the second model of core's Dual Model guider, which our patches were not made for."""
        other = getattr(self.guider, "uncond_inner", None)
        return other is None or model is not other or model is self.guider.inner_model

    def texts(self, options: dict) -> tuple[int, ...]:
        """COND or UNCOND for each chunk of rows, by the prompt that it carries.

        The place in the list of a call decides, unless the prompt itself is known: Dual CFG lists negative first; Dual Model
        and Self-Attention Guidance call the negative prompt alone.
        """
        places = options.get("cond_or_uncond", ())
        known = self._prompts()
        return tuple(known.get(uuid, min(place, UNCOND)) for place, uuid in zip(places, options.get("uuids", places)))

    def _prompts(self) -> dict:
        """COND or UNCOND of every prompt of the guider by the id that calls carry; those in two lists are left out."""
        conds = self.guider.conds if self.guider is not None else {}
        if "positive" not in conds:
            return {}
        positive = {cond["uuid"] for cond in conds["positive"]}
        others = {cond["uuid"] for name, entries in conds.items() if name != "positive" for cond in entries or ()}
        return {uuid: COND if uuid in positive else UNCOND for uuid in positive ^ others}


@dataclass(frozen=True, eq=False)
class Call:
    """One model call; `step` of `steps` holds its sigma. model: the inner model that is called.

    texts, people: COND or UNCOND for each chunk of rows, by its prompt and by whether adapters show the person in it
    batch: which pictures of the batch each chunk holds, None for all of them
    cropped: the call is about a part of the picture; split: its sigma was seen just before with other prompts
    shape: of the latent that the model is called with
    attention: what the attention method on the model wants its hooks to see
    references: by layer, how much tokens of reference latents weigh where it is not 1
    """

    run: Run
    model: object
    sigma: float
    step: int = 0
    steps: int = 1
    texts: tuple[int, ...] = ()
    people: tuple[int, ...] = ()
    batch: tuple[int, ...] | None = None
    cropped: bool = False
    split: bool = False
    shape: tuple[int, ...] = ()
    attention: object = None
    references: Mapping[LayerId, float] = field(default_factory=dict)

    def within(self, start: float, end: float) -> bool:
        """Whether sigma lies in this part of the full schedule, in fractions of it. The sampling in force decides."""
        sampling = self.model.model_sampling
        return sampling.percent_to_sigma(end) <= self.sigma <= sampling.percent_to_sigma(start)

    def value(self, values: Sequence[float]) -> float:
        """The value of a per-step list at this step; the first where the caller gave no schedule."""
        return value_at(values, self.step, self.steps)

    def moved(self, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """A patch's tensor in the device and dtype of `like`, moved once per run."""
        return self.run.kept.moved(tensor, like.device, like.dtype)

    def of_pictures(self, stored: torch.Tensor, rows: int) -> torch.Tensor:
        """Entries of `stored`, [images, ...], for the `rows` rows of one chunk: that of picture i is i mod images."""
        pictures = range(rows) if self.batch is None else self.batch
        return stored[torch.tensor([picture % len(stored) for picture in pictures], device=stored.device)]


def layer_of(extra: dict) -> LayerId:
    """The layer in which a patch is called."""
    return (*extra["block"], extra["block_index"])


def name_of(patch: Callable) -> str:
    """What another pack's patch is called, and where it comes from."""
    function = getattr(patch, "func", patch)
    own = getattr(function, "__qualname__", type(function).__qualname__).split(".")[0]
    return f"'{own}' of {getattr(function, '__module__', None) or type(function).__module__}"


def note_calls(model) -> None:
    """Puts the wrappers on `model`, a fresh clone, unless they are there."""
    if not model.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, keep_run)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, note_call)


def keep_run(executor, noise, *args, **kwargs):
    options = executor.class_obj.model_options["transformer_options"]
    options[KEY] = Run(tuple(noise.shape[-2:]), executor.class_obj)
    try:
        return executor(noise, *args, **kwargs)
    finally:
        del options[KEY]


def note_call(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
    options = dict(transformer_options)
    run = options.get(KEY) or Run(tuple(x.shape[-2:]))  # somebody may call the model outside of a sampling run
    places = tuple(options.get("cond_or_uncond", ()))
    if run.routes is None:
        people, texts = tuple(UNCOND if place == UNCOND else COND for place in places), run.texts(options)
    else:
        # In a copy: ComfyUI sorts the output by its own list. Other packs' adapters read the person from it.
        people, texts = (tuple(of[place] for place in places) for of in (run.routes.people, run.routes.texts))
        options["cond_or_uncond"] = list(people)
    places = tuple(options.get("cond_or_uncond", ()))
    sigma, schedule = float(t.flatten()[0]), options.get("sample_sigmas")
    split = bool(run.last) and run.last[0] == sigma and run.last[1] != places
    run.last[:] = sigma, places
    window = options.get("context_window")
    batch = None
    if window is not None and window.dim == 0:
        batch = tuple(window.get_tensor(torch.arange(window.total_frames)).tolist())
    options[KEY] = Call(run, executor.class_obj, sigma, step_of(sigma, schedule), step_count(schedule), texts, people, batch,
                        tuple(x.shape[-2:]) != run.size, split, tuple(x.shape))
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
