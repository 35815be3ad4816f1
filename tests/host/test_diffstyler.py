"""The exact laws of DiffStyler: what must not change, what must agree with the paper's own way of doing it, what must differ."""

import pytest
import torch


def left_half(side=64):
    mask = torch.zeros(1, side, side)
    mask[..., : side // 2] = 1
    return mask


def test_it_runs(desk):
    lora = desk.lora()
    source = desk.source()
    plain = desk.sample(source, desk.branch())
    styled = desk.sample(source, desk.branch(lora=lora))
    assert styled.shape == plain.shape and not torch.equal(plain, styled)
