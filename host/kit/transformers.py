"""Transformers whose text and picture attend in one sequence: their blocks, and where the picture stands.

Adding one means an entry of `ARCHITECTURES` and its tests. Their attention is reached through the host's attention
override, in a copy of one call's options; nothing is put on modules.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from comfy.ldm.flux.math import apply_rope1

from ...attention.blocks import LayerId
from .calls import KEY, Call

OVERRIDE = "optimized_attention_override"
SECOND = 1  # the last number of a layer that attends over the picture alone, behind the joint one of its block


@dataclass(frozen=True)
class Architecture:
    """What tells one network from another, all of it read from a loaded one.

    blocks:   its lists of blocks in forward order, each with what the host calls them while they run
    width:    channels of a token's keys, before heads are repeated
    origin:   where the picture's first token stands under RoPE, (time, row, column), from the tokens' grid and the
              number of tokens before them; None where positions are added to the tokens, and keys are not turned
    rescaled: whether the host's `rope_options` act
    second:   whether a block attends a second time, over the picture alone; None where none does
    """

    blocks: tuple[tuple[str, str], ...]
    width: Callable[[torch.nn.Module], int] = lambda network: network.hidden_size
    origin: Callable[[tuple[int, int], int], tuple[int, int, int]] | None = lambda grid, before: (0, 0, 0)
    patch: str = "patch_size"
    embedder: str = "pe_embedder"
    rescaled: bool = False
    second: Callable[[torch.nn.Module], bool] | None = None


def grouped_width(attention: torch.nn.Module, heads: str, size: str) -> int:
    return getattr(attention, heads) * getattr(attention, size)


SD3 = "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper"
STREAMS = (("double_blocks", "double"), ("single_blocks", "single"))
# By the name of their class in comfy.ldm: an older host has not all of them.
ARCHITECTURES = {
    "lumina.model.NextDiT": Architecture(
        (("layers", "double"),), lambda network: grouped_width(network.layers[0].attention, "n_kv_heads", "head_dim"),
        lambda grid, before: (before + 1, 0, 0), embedder="rope_embedder", rescaled=True),
    "flux.model.Flux": Architecture(STREAMS, rescaled=True),
    "chroma.model.Chroma": Architecture(STREAMS),
    "qwen_image.model.QwenImageTransformer2DModel": Architecture(
        (("transformer_blocks", "double"),), lambda network: network.inner_dim,
        lambda grid, before: (0, -(grid[0] // 2), -(grid[1] // 2))),
    "krea2.model.SingleStreamDiT": Architecture(
        (("blocks", "single"),), lambda network: grouped_width(network.blocks[0].attn, "kvheads", "headdim"),
        patch="patch"),
    SD3: Architecture(
        (("joint_blocks", "double"),), origin=None, second=lambda block: block.x_block.x_block_self_attn),
}


def architecture(network) -> Architecture | None:
    """What is known of a network; its subclasses may do otherwise and are not known."""
    return ARCHITECTURES.get(class_name(network))


def class_name(network) -> str:
    return f"{type(network).__module__}.{type(network).__qualname__}".removeprefix("comfy.ldm.")


def joint_layers(network) -> dict[LayerId, tuple[str, int]]:
    """The attention layers of a known network in forward order, with the host's name and number of their block."""
    known, found = architecture(network), {}
    places = [(kind, index, block) for name, kind in known.blocks for index, block in enumerate(getattr(network, name))]
    for number, (kind, index, block) in enumerate(places):
        found["block", number, 0] = kind, index
        if known.second is not None and known.second(block):
            found["block", number, SECOND] = kind, index
    return found


@dataclass(frozen=True, eq=False)
class JointSite:
    """One attention call: its layer, the picture's tokens `start` to `end` on their grid, the options it is given.

    references: how many keys right behind the picture are those of reference latents
    """

    network: torch.nn.Module
    layer: LayerId
    heads: int
    start: int
    end: int
    grid: tuple[int, int]
    extra: dict
    references: int = 0

    @property
    def weight(self) -> float:
        """How much a key of a reference latent weighs against another, for the picture's queries."""
        return self.extra[KEY].references.get(self.layer, 1.0) if self.references else 1.0

    @property
    def place(self) -> tuple | None:
        """What keys that are put into their place depend on, beside their grid."""
        return self.origin((0, 0))

    def picture(self, tokens: torch.Tensor, axis: int = 1) -> torch.Tensor:
        """The picture's part of [rows, tokens, channels]."""
        return tokens.narrow(axis, self.start, self.end - self.start)

    def others(self, tokens: torch.Tensor, axis: int = 1, hidden: int = 0) -> torch.Tensor:
        """All but the picture's part and so many tokens behind it: text, reference latents, padding."""
        end, length = self.end + hidden, tokens.shape[axis]
        return torch.cat([tokens.narrow(axis, 0, self.start), tokens.narrow(axis, end, length - end)], axis)

    def seen(self, tokens: torch.Tensor, axis: int = 1) -> torch.Tensor:
        """`others` of keys, without references that weigh nothing."""
        return self.others(tokens, axis, self.references if self.weight == 0 else 0)

    def weights(self, seen: torch.Tensor) -> torch.Tensor | None:
        """The weight of each of these keys, [rows, tokens] in float32; None for equal ones."""
        if self.weight in (0, 1):
            return None
        weights = seen.new_ones(seen.shape[:2], dtype=torch.float32)
        weights[:, self.start:self.start + self.references] = self.weight
        return weights

    def stored(self, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """What a bank keeps of the picture's keys, without place, and values: [rows, tokens, channels of both]."""
        width = architecture(self.network).width(self.network)
        size = k.shape[-1] // self.heads
        k, v = (self.picture(x).unflatten(-1, (width // size, -1, size))[..., 0, :].flatten(2) for x in (k, v))
        positions = self.positions(None, self.grid, k.device)
        return torch.cat([self.turned(k, None if positions is None else -positions, size), v], -1)

    def projected(self, features: torch.Tensor, places: torch.Tensor | None, grid: tuple[int, int],
                  like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of stored features, [images, tokens, channels] each, in `like`'s precision and heads.

        They stand where tokens of a picture of their grid would in this call, at `places` (see `positions`).
        """
        size = like.shape[-1] // self.heads
        k, v = features.to(like.device, like.dtype).chunk(2, -1)
        k = self.turned(k, self.positions(places, grid, like.device), size)
        repeats = like.shape[-1] // k.shape[-1]
        return tuple(x.unflatten(-1, (-1, size)).repeat_interleave(repeats, 2).flatten(2) for x in (k, v))

    def origin(self, grid: tuple[int, int]) -> tuple | None:
        """Where a picture of that grid begins under RoPE, and how far the next tokens are.

        (time, row, column, step down, step right); None without RoPE
        """
        known = architecture(self.network)
        if known.origin is None:
            return None
        scale = self.extra.get("rope_options") or {} if known.rescaled else {}
        begin = known.origin(grid, self.start)
        shifted = (at + scale.get(f"shift_{axis}", 0.0) for at, axis in zip(begin, "tyx"))
        return (*shifted, scale.get("scale_y", 1.0), scale.get("scale_x", 1.0))

    def positions(self, places: torch.Tensor | None, grid: tuple[int, int], device) -> torch.Tensor | None:
        """Where tokens stand under RoPE, [images or 1, tokens, axes]; None without RoPE.

        places: [images, tokens, (row, column)] on their grid; None for all of the grid in order
        """
        origin = self.origin(grid)
        if origin is None:
            return None
        if places is None:
            places = grid_places(grid)[None]
        time, row, column, down, right = origin
        found = places.new_zeros(*places.shape[:2], len(self.embedder.axes_dim))
        found[..., 0] = time
        found[..., 1] = row + down * places[..., 0]
        found[..., 2] = column + right * places[..., 1]
        return found.to(device)

    @property
    def embedder(self) -> torch.nn.Module:
        return getattr(self.network, architecture(self.network).embedder)

    def turned(self, keys: torch.Tensor, positions: torch.Tensor | None, size: int) -> torch.Tensor:
        """Keys [images, tokens, channels] moved under RoPE; by a negative position back to none."""
        if positions is None:
            return keys
        heads = keys.unflatten(-1, (-1, size)).transpose(1, 2)
        return apply_rope1(heads, self.embedder(positions)).transpose(1, 2).flatten(2)


def grid_places(grid: tuple[int, int]) -> torch.Tensor:
    """(row, column) of every token of a grid, [tokens, 2]."""
    return torch.cartesian_prod(*(torch.arange(size, dtype=torch.float32) for size in grid)).view(-1, 2)


class JointAttention:
    """The attention of one model call. `act(site, attention, q, k, v, mask)` answers for the picture's queries.

    act's q are the picture's [rows, queries, heads * size], k and v everybody's [rows, tokens, heads * size], mask what
    the model adds to the logits of those queries, [rows or 1, queries or 1, tokens]; `attention(q, k, v, **options)` is
    the host's. It returns [rows, queries, heads * size], or None to let the call be.
    """

    def __init__(self, call: Call, options: dict, act: Callable):
        self.network, self.act, self.earlier = call.model.diffusion_model, act, options.get(OVERRIDE)
        if self.earlier is attend:  # ours, of another node
            self.earlier = options[KEY].attention.earlier
        known = architecture(self.network)
        patch = getattr(self.network, known.patch)
        self.grid = tuple(-(-size // patch) for size in call.shape[-2:])
        self.tokens = self.grid[0] * self.grid[1] * (call.shape[2] if len(call.shape) == 5 else 1)
        self.padding = -self.tokens % (getattr(self.network, "pad_tokens_multiple", None) or 1)
        self.layers = {(*block, layer[2]): layer for layer, block in call.run.kept.once(
            self.network, "layers", lambda: joint_layers(self.network)).items()}
        self.done: set[LayerId] = set()

    def site(self, queries: int, tokens: int, heads: int, extra: dict) -> JointSite | None:
        """The layer where so many queries attend to so many tokens.

        None for what is none of ours: text refiners, and a control network's blocks, which see the options of a layer
        behind it.
        """
        references = held = sum(extra.get("reference_image_num_tokens", ()))
        if tokens - queries == references:  # core's Flux KV Cache: those of the first step, behind the keys alone
            references = 0
        end = queries - self.padding - references
        start = end - self.tokens
        block = extra.get("block_type"), extra.get("block_index")
        layer = self.layers.get((*block, SECOND if queries == self.tokens else 0))
        if layer is None or layer in self.done or start < 0 or tokens < queries:
            return None
        self.done.add(layer)
        held = held if layer[2] != SECOND else 0
        return JointSite(self.network, layer, heads, start, end, self.grid, extra, held)


def overridden(call: Call, options: dict, joint: JointAttention) -> dict:
    """A copy of one call's options with `joint` in it."""
    options = {**options, OVERRIDE: attend, KEY: replace(call, attention=joint)}
    if class_name(joint.network) == SD3:  # its blocks are not told their number
        replaced = options.get("patches_replace", {})
        taken = replaced.get("dit", {})
        told = {("double_block", index): partial(tell_number, index, taken.get(("double_block", index)))
                for index in range(len(joint.network.joint_blocks))}
        options["patches_replace"] = {**replaced, "dit": {**taken, **told}}
    return options


def tell_number(index: int, taken: Callable | None, args: dict, extra: dict) -> dict:
    options = {**args["transformer_options"], "block_type": "double", "block_index": index}
    args = {**args, "transformer_options": options}
    return extra["original_block"](args) if taken is None else taken(args, extra)


@torch.compiler.disable
def attend(func, q, k, v, heads, mask=None, **options):
    """The override: the picture's queries go to `act`, those of text and the rest attend as they do without us."""
    extra = options.get("transformer_options") or {}
    joint = extra[KEY].attention
    attention = func if joint.earlier is None else partial(joint.earlier, func)
    axis = 2 if options.get("skip_reshape") else 1
    queries = q.shape[axis]
    site = None if options.get("skip_output_reshape") else joint.site(queries, k.shape[axis], heads, extra)
    if site is None:
        return attention(q, k, v, heads, mask=mask, **options)

    def plainly(q, k, v, mask=None, **more):
        return attention(q, k, v, heads, mask=mask, **{**options, "skip_reshape": False, **more})

    flat = [x.transpose(1, 2).flatten(2) if axis == 2 else x.flatten(2) for x in (q, k, v)]
    out = joint.act(site, plainly, site.picture(flat[0]), *flat[1:], rows_of(mask, site))
    if out is None:
        return attention(q, k, v, heads, mask=mask, **options)
    if site.end - site.start == queries:
        return out
    if mask is not None and mask.ndim > 1 and mask.shape[-2] == queries:
        mask = site.others(mask, mask.ndim - 2)
    rest = attention(site.others(q, axis), k, v, heads, mask=mask, **options)
    return torch.cat([rest[:, :site.start], out, rest[:, site.start:]], 1)


def rows_of(mask: torch.Tensor | None, site: JointSite) -> torch.Tensor | None:
    """What a model's mask adds to the logits of the picture's queries, [rows or 1, queries or 1, tokens].

    mask: added to logits, or boolean, with or without dimensions for rows and for heads, of which it takes the first
    """
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.finfo(torch.float32).max)
    if mask.ndim == 4:
        mask = mask[:, 0]
    if mask.ndim == 2:
        mask = mask[None]
    return mask if mask.shape[1] == 1 else mask[:, site.start:site.end]
