"""ONNX files come from anywhere: how much memory their sessions may take, and how large inputs and outputs may be.

A file of one kilobyte may ask for any amount, in its inputs, its outputs and anywhere between.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import comfy.model_management
import torch

from ..segmentation.contract import LARGEST
from .log import log

MEMORY = 8 * 2**30           # bytes on the CPU for all sessions of the pack, at most half of the machine's
FOLDED = 2**20               # bytes of a constant that is computed when a file is opened
SIDE = LARGEST               # pixels of a fixed input
VALUES = 2**26               # of an output whose size is declared


@lru_cache(maxsize=1)
def session_options():
    """SessionOptions for every session of the pack: one memory pool with a limit; onnxruntime's own have none."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(FOLDED))
    most = min(MEMORY, int(comfy.model_management.get_total_memory(torch.device("cpu")) // 2))
    try:
        kind, memory = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
        pool = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, memory)
        onnxruntime.create_and_register_allocator(pool, onnxruntime.OrtArenaCfg(most, -1, -1, -1))
    except Exception as error:  # an old onnxruntime, or another pack made the process's pool before us
        log.debug("onnxruntime's memory has no limit: %s", error)
    else:
        options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def check_declared(session, where: str) -> None:
    """Raises ValueError that begins with `where` for a fixed input above `SIDE` and an output above `VALUES`."""
    for kind, entries in (("takes", session.get_inputs()), ("gives", session.get_outputs())):
        for entry in entries:
            sides = known(entry.shape)
            if (kind == "takes" and max(sides, default=0) > SIDE) or math.prod(sides) > VALUES:
                raise ValueError(f"{where} {kind} '{entry.name}' of shape {list(entry.shape)}, more than any "
                                 "network of its kind. Download or export the file again.")


def known(shape: Sequence) -> list[int]:
    """The fixed sides of a declared shape; others are names or None."""
    return [side for side in shape if isinstance(side, int)]
