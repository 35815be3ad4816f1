"""What is no torch module under ComfyUI's memory management."""

import weakref
from functools import partial

import comfy.model_management
import pytest
import torch

from portrait_atelier.host.kit.managed import Managed

CPU = torch.device("cpu")


class Thing:
    pass


@pytest.fixture
def managed():
    """managed(kind): one whose memory is enough for so many `managed.most` of them at once."""
    there = weakref.WeakSet()

    def build(kind):
        def make():
            if len(there) >= build.most:
                raise RuntimeError("Failed to allocate memory for requested buffer of size 8")
            thing = Thing()
            there.add(thing)
            build.made += 1
            return thing

        return Managed(kind, make, 8, CPU)

    build.most, build.made, build.there = 9, 0, there
    return build


def test_made_once_and_again_after_it_was_let_go(managed):
    one = managed("a")
    assert one.opened() is one.opened() and managed.made == 1 and one.loaded_size() == one.model_size() == 8
    comfy.model_management.unload_all_models()
    assert not managed.there and one.loaded_size() == 0
    assert isinstance(one.opened(), Thing) and managed.made == 2
    del one
    assert not managed.there


def test_one_of_a_kind(managed):
    first, second, other = managed("a"), managed("a"), managed("b")
    for each in (other, first, second):
        each.opened()
    assert first.made is None and second.made is not None and other.made is not None


def test_other_models_want_the_memory(managed, monkeypatch):
    """ComfyUI's own count: what it asks for is freed, and no more."""
    both = managed("a"), managed("b")
    for each in both:
        each.opened()

    def free(device, torch_free_too=False):
        memory = 8 * (2 - len(managed.there))
        return (memory, 0) if torch_free_too else memory

    monkeypatch.setattr(comfy.model_management, "get_free_memory", free)
    comfy.model_management.free_memory(0, CPU)
    assert len(managed.there) == 2
    comfy.model_management.free_memory(8, CPU)
    assert len(managed.there) == 1 and sorted(each.loaded_size() for each in both) == [0, 8]


def test_too_little_memory_to_open_and_to_work(managed):
    managed.most = 1
    first, second = managed("a"), managed("b")
    first.opened()
    assert second.use(lambda thing: thing) is second.made and first.made is None
    managed.most, asked = 9, []
    first.opened()

    def work(thing):
        asked.append(type(thing))
        if len(managed.there) > 1:
            raise RuntimeError("Available memory of 5 is smaller than requested bytes of 8")
        return "done"

    assert second.use(work) == "done" and len(asked) == 2 and first.made is None


def test_what_is_no_want_of_memory_is_told_at_once(managed):
    asked = []

    def work(thing, error):
        asked.append(error)
        raise error

    for error in (ValueError, MemoryError):
        with pytest.raises(error):
            managed("a").use(partial(work, error=error))
    assert asked == [ValueError, MemoryError, MemoryError]
