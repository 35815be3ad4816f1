"""Installing FastFace's attention manipulation on the decoupled layers of a model that has an adapter, ours or another pack's."""

from collections.abc import Callable
from dataclasses import dataclass

from ..attention import maps
from ..attention.blocks import LayerId, layer_name, select_layers
from .decoupled import ADAPTER_OFF, BRANCHES, Slot, adapters_of_another_pack, change_slots, found_in, occupants
from .kit.calls import Call, name_of
from .kit.sites import attention_layers
from .log import log

SCALE_POWER, SCHEDULED_SOFTMAX = "Scale-Power Attention", "Scheduled-Softmax Attention"
Values = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Transform:
    """A transform of the maps of `layers` between `start` and `end` of the full schedule; `node` put it there."""

    node: str
    layers: frozenset[LayerId]
    start: float
    end: float

    coupled = False

    def now(self, call: Call, layer: LayerId) -> Callable | None:
        """The transform of one layer at this step, or None where it changes nothing."""
        return self.function(call, layer) if call.within(self.start, self.end) else None


@dataclass(frozen=True, eq=False)
class ScalePower(Transform):
    """AM1, equation (8). The middle block, which the paper leaves out, takes the encoder's scale."""

    power: float
    scale_down: Values
    scale_up: Values

    def function(self, call, layer):
        scale = call.value(self.scale_up if layer[0] == "output" else self.scale_down)
        return None if (self.power, scale) == (1, 1) else maps.ScalePower(self.power, scale)


@dataclass(frozen=True, eq=False)
class ScheduledSoftmax(Transform):
    """AM2, equations (9) and (10). `published` couples the rows of a call as the published code does."""

    sharpness: Values
    scale: Values
    quantile: float
    adain_weight: float
    published: bool

    @property
    def coupled(self) -> bool:
        return self.published

    def function(self, call, layer):
        if self.published and call.split:
            call.run.warn(f"{self.node}: this sampling evaluates its prompts in separate calls, so 'published' coupling spans only "
                          "the prompts of one call.")
        return maps.ScheduledSoftmax(call.value(self.sharpness), call.value(self.scale), self.quantile, self.adain_weight, self.published)


def scale_power(model, layers: str, start: float, end: float, power: float, scale_down: Values, scale_up: Values):
    """A clone of `model` with Scale-Power Attention; untouched when it would change nothing. Raises ValueError without an adapter."""
    identity = power == 1 and set(scale_down) == set(scale_up) == {1}
    return installed(model, SCALE_POWER, layers, start, end, identity,
                     lambda *where: ScalePower(*where, power, scale_down, scale_up))


def scheduled_softmax(model, layers: str, start: float, end: float, sharpness: Values, scale: Values, quantile: float,
                      adain_weight: float, published: bool):
    """A clone of `model` with Scheduled-Softmax Attention. Raises ValueError without an adapter."""
    return installed(model, SCHEDULED_SOFTMAX, layers, start, end, False,
                     lambda *where: ScheduledSoftmax(*where, sharpness, scale, quantile, adain_weight, published))


def installed(model, node: str, layers: str, start: float, end: float, identity: bool, make: Callable):
    """A clone of `model` with the transform `make(node, layers, start, end)` in those of `layers` that have an adapter.

    Nothing is installed when the window or the layers are empty, when the transform is the identity, or when all adapters
    are off. Raises ValueError for unknown layers and for a model on which no adapter was put.
    """
    every = list(attention_layers(model))
    chosen = select_layers(layers, every, auto=[layer for layer in every if layer[0] != "middle"])
    adapted = [layer for layer in every if has_adapter(model, layer)]
    ours = model.get_attachment(BRANCHES) or {}
    hidden = [layer for layer in chosen if layer not in adapted and (layer in ours or not adapted)]
    foreign = [found for layer in hidden if (found := found_in(occupants(model), layer)) is not None]
    if foreign:
        what = "cannot reach the face adapter" if ours else "found no face adapter"
        raise ValueError(f"{node} {what}: {name_of(foreign[0])} took the cross-attention layers{'' if ours else ' and may hide one'}. Put {node} "
                         "straight behind the node that adds the adapter, before the node of that patch.")
    if not adapted and model.get_attachment(ADAPTER_OFF) is None:
        raise ValueError(f"{node} found no face adapter on this model. Put it behind Face Adapter Apply, or behind IPAdapter's FaceID node.")
    acting = [layer for layer in chosen if layer in adapted]
    clone = model.clone()
    if start >= end:
        log.warning("%s: start %.3g is not before end %.3g, so it has no effect.", node, start, end)
    if adapted and chosen and not acting:
        log.warning("%s: no adapter acts in the layers '%s', so it has no effect.", node, layers)
    if start >= end or identity or not acting:
        return clone
    transform = make(node, frozenset(acting), start, end)
    replaced = [layer for layer in acting if earlier(model, layer) is not None]
    if replaced:
        other = earlier(model, replaced[0]).node
        log.warning("%s replaces %s in %d layers from %s on: a layer has one transform, that of the last node.",
                    node, other, len(replaced), layer_name(replaced[0], every))

    def add(slot: Slot) -> Slot:
        slot = slot.opened()
        return Slot(slot.base, slot.branches, (*slot.transforms, transform))

    change_slots(clone, acting, every, add)
    return clone


def has_adapter(model, layer: LayerId) -> bool:
    found = found_in(occupants(model), layer)
    if isinstance(found, Slot):
        return found.holds(layer) or adapters_of_another_pack(found.base)
    return adapters_of_another_pack(found)


def earlier(model, layer: LayerId) -> Transform | None:
    found = found_in(occupants(model), layer)
    return found.transform(layer) if isinstance(found, Slot) else None
