"""Decoupled guidance inside ComfyUI: three predictions per query instead of two, in one model call.

The model gets one wrapper, around the sampling run. It installs the rest for that run only, where it can see whether another
node owns the guidance, whichever came first. ComfyUI's own order of things stays: pre-CFG functions, guidance, post-CFG functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import comfy.samplers
import node_helpers
import torch
from comfy.patcher_extension import WrappersMP

from ..attention.features import COND, UNCOND
from ..guidance import decoupled as maths
from ..guidance.decoupled import FORMULATIONS, IDENTITY, Row
from ..guidance.schedule import step_count, step_of, value_at
from .decoupled import Slot, coupled
from .kit.calls import KEY, Routes, name_of, note_calls
from .kit.prompts import check_finite, check_prompt
from .log import log
from .reference_latents import references, with_references, without_references

NODE = "Decoupled CFG"
GUIDANCE = f"{KEY}.guidance"

# Place of each row in ComfyUI's list (positive, negative, a third one), as an index into the formulation's rows.
SLOTS = {"DCG_1": (2, 0, 1), "DCG_2": (2, 0, 1), "DCG_3": (1, 0, 2)}
# Identity adapters take the first place in a call for the person and the second for nobody, as they do the two prompts'.
# Of edit models the reference latents are the identity: rows without it get the prompts without them.


@dataclass(frozen=True, eq=False)
class DecoupledCFG:
    """alpha and beta: values over the steps; phi of equation (6); rescale_all: also in steps where alpha = beta = 1;
    separate: rows whose place tells adapters the wrong thing get model calls of their own."""

    formulation: str
    alpha: tuple[float, ...]
    beta: tuple[float, ...]
    phi: float
    rescale_all: bool
    separate: bool

    @property
    def rows(self) -> tuple[Row, Row, Row]:
        """The rows in the order of ComfyUI's list."""
        return tuple(FORMULATIONS[self.formulation][place] for place in SLOTS[self.formulation])

    def at(self, sigma: float, sample_sigmas) -> tuple[tuple[float, float, float], bool]:
        """Coefficients in the order of the equation, and whether equation (6) applies, where the model is asked about `sigma`."""
        step, steps = step_of(sigma, sample_sigmas), step_count(sample_sigmas)
        alpha, beta = value_at(self.alpha, step, steps), value_at(self.beta, step, steps)
        rescaled = self.phi > 0 and (self.rescale_all or (alpha, beta) != (1, 1))
        return maths.coefficients(self.formulation, alpha, beta), rescaled


def patched(model, dcg: DecoupledCFG):
    """A clone of `model` that is guided by `dcg` in every guider that leaves guidance to the model, at any CFG."""
    clone = model.clone()
    if clone.get_wrappers(WrappersMP.OUTER_SAMPLE, GUIDANCE):
        log.warning("%s: this model has a Decoupled CFG already; the later one counts.", NODE)
        clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, GUIDANCE)
    note_calls(clone)

    def guide_run(executor, *args, **kwargs):
        install(executor.class_obj, dcg)
        return executor(*args, **kwargs)

    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, GUIDANCE, guide_run)
    return clone


class Guider(comfy.samplers.CFGGuider):
    """A CFG guider with a third prompt, for the row of the identity alone."""

    def __init__(self, model, dcg: DecoupledCFG, positive, negative, null=None):
        super().__init__(patched(model, dcg))
        for name, prompt in (("positive", positive), ("negative", negative), ("null", null)):
            if name != "null" or prompt is not None:
                check_prompt(model, prompt, f"'{name}' of {NODE} Guider")
        conds = {"positive": positive, "negative": negative}
        if null is not None:
            conds["null"] = node_helpers.conditioning_set_values(null, {"prompt_type": "negative"})
        self.inner_set_conds(conds)


def install(guider, dcg: DecoupledCFG) -> None:
    """Puts guidance into the options of one run, which ComfyUI drops after it. Nothing of it is on the model."""
    options = guider.model_options
    check_owner(options)
    check_layout(options, dcg)
    for name, conds in guider.original_conds.items():
        check_finite([(cond.get("cross_attn"), cond) for cond in conds], f"The prompt '{name}' of the sampler behind {NODE}")
    tell(guider, dcg)
    run = Guided(dcg, guider)
    options["sampler_calc_cond_batch_function"] = run.predict
    # First among the post-CFG functions, in place of ComfyUI's own combination. A CFG function could not return a prediction
    # bit for bit, as it has to give x - prediction.
    options["sampler_post_cfg_function"] = [run.guide, *options.get("sampler_post_cfg_function", [])]
    # Anything but False keeps the negative prompt at CFG 1; True means that somebody else needs its prediction.
    options["disable_cfg1_optimization"] = options.get("disable_cfg1_optimization") or GUIDANCE
    wrappers = options["transformer_options"]["wrappers"][WrappersMP.APPLY_MODEL]
    # Outermost, so that other wrappers see the places that we publish.
    options["transformer_options"]["wrappers"][WrappersMP.APPLY_MODEL] = {KEY: wrappers[KEY], **wrappers}


def check_owner(options: dict) -> None:
    for slot in ("sampler_cfg_function", "sampler_calc_cond_batch_function"):
        if slot in options:
            raise ValueError(f"{NODE} and another guidance node ({name_of(options[slot])}, such as RescaleCFG) are on the same model, and only one of "
                             "them can guide. Remove that node from the model line.")


def check_layout(options: dict, dcg: DecoupledCFG) -> None:
    """NAG of sd-perturbed-attention takes all rows from the first positive one on as positive."""
    found = options["transformer_options"].get("patches_replace", {}).get("attn2", {}).values()
    names = [getattr(patch.base if isinstance(patch, Slot) else patch, "__qualname__", "") for patch in found]
    if not dcg.separate and any("nag_attn2_replace" in name for name in names):
        raise ValueError(f"{NODE} packs three rows into one model call, and Normalized Attention Guidance (NAG) on the same model cannot tell "
                         f"them apart. Set 'routing' of {NODE} to separate, or take NAG off this model.")


def tell(guider, dcg: DecoupledCFG) -> None:
    """Logs what guidance does to a model on which nothing distinguishes the rows by identity."""
    null = guider.original_conds.get("null")
    if null is not None and IDENTITY not in dcg.rows:
        log.warning("%s: %s has no prediction of the identity alone, so 'null' is not used.", NODE, dcg.formulation)
    if any("reference_latents" in cond for cond in guider.original_conds.get("positive", ())):
        log.info("%s: the identity is that of the reference latents.", NODE)
        return
    options = guider.model_options["transformer_options"]
    if options.get("patches_replace", {}).get("attn2") or options.get("patches", {}).get("attn2_patch"):
        return
    if dcg.formulation == "DCG_1":
        effect = "the rows with and without identity are equal: this is ordinary guidance of scale alpha"
    elif null is None and dcg.formulation == "DCG_2":
        effect = "the row of the identity alone equals the negative prompt's: this is ordinary guidance of scale beta"
    elif null is None:
        effect = "the row of the identity alone equals the negative prompt's: this is ordinary guidance of scale alpha"
    elif dcg.formulation == "DCG_2":
        effect = "it guides by two prompts, alpha from 'negative' to 'null' and beta from 'null' to 'positive'"
    else:
        effect = "it guides by two prompts, alpha from 'negative' to 'positive' and beta from 'negative' to 'null'"
    log.warning("%s without an identity adapter on the model: %s.", NODE, effect)


@dataclass(frozen=True, eq=False)
class Query:
    """What `Guided.predict` leaves for `Guided.guide`."""

    third: torch.Tensor
    weights: tuple[float, float, float]
    rescaled: bool


class Guided:
    """Guidance of one sampling run. query: what the step's prediction left for its guidance."""

    def __init__(self, dcg: DecoupledCFG, guider):
        self.dcg, self.guider, self.query = dcg, guider, None

    def predict(self, args: dict) -> list[torch.Tensor]:
        """sampler_calc_cond_batch_function: the predictions of the first two places; the third one waits in `query`.

        Rows that cannot change the result are not computed and read as zeros.
        """
        options = args["model_options"]
        transformer_options = options["transformer_options"]
        weights, rescaled = self.dcg.at(float(args["sigma"].flatten()[0]), transformer_options.get("sample_sigmas"))
        needed = maths.rows_needed(weights, rescaled)
        places = {place for place, row in enumerate(SLOTS[self.dcg.formulation]) if row in needed}
        if options.get("sampler_pre_cfg_function") or len(options["sampler_post_cfg_function"]) > 1:
            places.add(0)  # ComfyUI promises them the positive prediction,
        if options["disable_cfg1_optimization"] is True:
            places.add(1)  # and the negative one to those who ask
        if coupled(transformer_options):
            places = {0, 1, 2}
        positive, negative = args["conds"]
        conds = [self.prompt(row, positive, negative) if place in places else None for place, row in enumerate(self.dcg.rows)]
        out = self.calculate(args, conds)
        self.query = Query(out[2], weights, rescaled)
        return out[:2]

    def prompt(self, row: Row, positive, negative):
        """The conditioning of a row."""
        if row.text:
            return positive if row.identity else without_references(positive)
        null = self.guider.conds.get("null") if row == IDENTITY else None
        found = null or negative
        if found is None:
            raise ValueError(f"{NODE} needs a negative prompt, which this guider does not have. Use KSampler, CFG Guider or Decoupled CFG "
                             "Guider.")
        if any(references(cond) for cond in positive):
            return with_references(found, positive) if row.identity else without_references(found)
        return found

    def calculate(self, args: dict, conds: list) -> list[torch.Tensor]:
        """The predictions for `conds`, None among them for zeros, in as few model calls as routing allows."""
        places = [COND if row.identity else UNCOND for row in self.dcg.rows]
        texts = [COND if row.text else UNCOND for row in self.dcg.rows]
        if not self.dcg.separate:
            return self.call(args, conds, places, texts)
        here = [cond if place == places[place] else None for place, cond in enumerate(conds[:2])]
        out = [*self.call(args, here, places, texts), torch.zeros_like(args["input"])]
        for number, place in enumerate(places):
            if conds[number] is not None and place != number:
                alone = [None, None]
                alone[place] = conds[number]
                out[number] = self.call(args, alone, [COND, UNCOND], [texts[number]] * 2)[place]
        return out

    def call(self, args: dict, conds: list, places: Sequence[int], texts: Sequence[int]) -> list[torch.Tensor]:
        if all(cond is None for cond in conds):
            return [torch.zeros_like(args["input"]) for _ in conds]
        options = dict(args["model_options"])
        published = options["transformer_options"]
        options["transformer_options"] = {**published, KEY: replace(published[KEY], routes=Routes(tuple(places), tuple(texts)))}
        return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], options)

    def guide(self, args: dict) -> torch.Tensor:
        """The first sampler_post_cfg_function: the guided prediction in place of ComfyUI's.

        Predictions of the clean picture are combined as they are; equation (6) is about epsilon, hence about x - prediction.
        """
        query, self.query = self.query, None
        if query is None:
            raise ValueError(f"{NODE} cannot act in this guider ({type(self.guider).__name__}), which guides in its own way. Use KSampler, "
                             "CFG Guider or Decoupled CFG Guider.")
        listed = (args["cond_denoised"], args["uncond_denoised"], query.third)
        rows = [listed[SLOTS[self.dcg.formulation].index(row)] for row in range(3)]
        guided = maths.combine(rows, query.weights)
        if not query.rescaled:
            return guided
        x = args["input"]
        return x - maths.rescale(x - guided, x - rows[1], x - rows[2], self.dcg.phi)
