from comfy_api.latest import io

from ..host.decoupled_guidance import NODE as NAME, DecoupledCFG as Guidance, patched
from .checks import in_range, step_values, verdict
from .types import FASTFACE

FORMULATIONS = ["DCG_2", "DCG_1", "DCG_3"]


def widgets() -> list:
    """What Decoupled CFG and Decoupled CFG Guider have in common."""
    return [
        io.Combo.Input("formulation", options=FORMULATIONS, default="DCG_2",
                       tooltip="DCG_2, the paper's: alpha scales the identity alone, beta the text given the identity. DCG_1: alpha scales the "
                               "text alone, beta the identity given the text. DCG_3: text (alpha) and identity (beta) independently."),
        io.String.Input("alpha", default="1, 1.5, 1.5, 1",
                        tooltip="First scale: one number, or one per step; the list stretches to any number of steps. Where alpha = beta = 1 a "
                                "step costs one row and is that of CFG 1 (not in DCG_3)."),
        io.String.Input("beta", default="1, 3, 3, 1",
                        tooltip="Second scale, as alpha. alpha = beta = w is ordinary guidance of scale w (not in DCG_3). Guidance in the first or "
                                "last step harms distilled models."),
        io.Float.Input("rescale", default=0.75, min=0.0, max=1.0, step=0.05,
                       tooltip="The paper's phi: how far the guided noise is brought back to the contrast of its parts. 0 is off."),
        io.Combo.Input("rescale_steps", options=["guided", "all"], default="guided", advanced=True,
                       tooltip="guided: rescale only where alpha or beta is not 1, as the paper means it. all: every step, as its code does, for two "
                               "more rows in four steps and nearly the same picture."),
        io.Combo.Input("routing", options=["shared", "separate"], default="shared", advanced=True,
                       tooltip="shared: all rows of a step in one model call. separate: rows that an adapter would take for others get calls of "
                               "their own, for adapters of other packs that shared calls confuse."),
    ]


def scales(node: str, name: str, text: str) -> tuple[float, ...]:
    return step_values(node, name, text, -100, 100)


def refusal(node: str, alpha: str | None, beta: str | None) -> bool | str:
    """What validate_inputs of both nodes answers."""
    return verdict(node, (scales, "alpha", alpha), (scales, "beta", beta))


def guidance(node: str, formulation: str, alpha: str, beta: str, rescale: float, rescale_steps: str, routing: str) -> Guidance:
    """The widgets' meaning. Raises ValueError that names `node` and the widget."""
    return Guidance(formulation, scales(node, "alpha", alpha), scales(node, "beta", beta), phi=rescale, rescale_all=rescale_steps == "all", separate=routing == "separate")


class DecoupledCFG(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierDecoupledCFG",
            display_name=NAME,
            category=FASTFACE,
            description="Decoupled guidance (FastFace): identity and prompt get a scale each, per step, for distilled models with a face adapter. "
                        "Works with KSampler and CFG Guider at any CFG. The paper counts 15 to 24 % less identity for more style.",
            search_aliases=["fastface", "DCG", "decoupled guidance", "cfg", "faceid", "rescale"],
            inputs=[
                io.Model.Input("model", tooltip="The model, with or without a face adapter. No other node on it may own the guidance, such as "
                                                "RescaleCFG."),
                *widgets(),
            ],
            outputs=[io.Model.Output("patched_model", display_name="model",
                                     tooltip="The guided model, for KSampler (its CFG no longer matters). The input model stays as it is.")],
        )

    @classmethod
    def validate_inputs(cls, alpha=None, beta=None) -> bool | str:
        return refusal(NAME, alpha, beta)

    @classmethod
    @in_range
    def execute(cls, model, formulation="DCG_2", alpha="1, 1.5, 1.5, 1", beta="1, 3, 3, 1", rescale=0.75, rescale_steps="guided",
                routing="shared") -> io.NodeOutput:
        return io.NodeOutput(patched(model, guidance(NAME, formulation, alpha, beta, rescale, rescale_steps, routing)))
