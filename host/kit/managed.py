"""Networks that are no torch modules under ComfyUI's memory management: opened to be used, closed when memory is short."""

from collections.abc import Callable

import comfy.model_management
import comfy.model_patcher
import torch


class Managed(comfy.model_patcher.ModelPatcher):
    """What `make` makes, kept as long as ComfyUI has memory for it and no other of its kind is used.

    ComfyUI frees nothing on the CPU by itself: hence one of a kind. size: bytes, about; device: where it computes.
    """

    def __init__(self, kind: str, make: Callable, size: int, device: torch.device):
        super().__init__(torch.nn.Identity(), device, torch.device("cpu"), size=max(1, size))
        self.kind, self.make, self.made = kind, make, None

    def opened(self):
        """What was made, made again where it was closed."""
        comfy.model_management.load_models_gpu([self])
        return self.made

    def use(self, work: Callable):
        """`work` of what was made; where memory was too short for it, once more when the device is empty of other models."""
        try:
            return work(self.opened())
        except Exception as error:  # the runtime raises classes of its own, which share no other base
            if not short_of_memory(error):
                raise
        comfy.model_management.free_memory(1e30, self.load_device)
        return work(self.opened())

    # What ComfyUI asks and tells a model: it is here as a whole or not at all.

    def loaded_size(self) -> int:
        return 0 if self.made is None else self.size

    def current_loaded_device(self) -> torch.device:
        return self.offload_device if self.made is None else self.load_device

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False) -> int:
        if self.made is None:
            for other in [loaded.model for loaded in comfy.model_management.current_loaded_models]:
                if isinstance(other, Managed) and other.kind == self.kind:
                    other.made = None
            self.made = self.make()
        return self.size

    def partially_unload(self, device_to, memory_to_free=0, force_patch_weights=False) -> int:
        return 0

    def detach(self, unpatch_all=True) -> torch.nn.Module:
        if unpatch_all:  # else ComfyUI only puts it to the front of its list
            self.made = None
        return self.model


def short_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in ("memory", "alloc"))
