"""The optimizer and the shared work of the demo's training."""
import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from portrait_atelier.demo.making.muon import Muon, orthogonal

ROOT = Path(__file__).resolve().parents[2]

TOGETHER = """
import json, runpy, sys
from pathlib import Path
import torch
runpy.run_path({pack!r})["load_pack"]()
from portrait_atelier.training import stage
folder = Path(sys.argv[1])
torch.set_num_threads(1)
stage.share_work(folder, 2)
rank = int(not stage.writes())

class Descent:  # torch's own SGD takes longer to import than all else here
    def __init__(self, parameters):
        self.param_groups = [{{"params": list(parameters), "lr": 1.}}]

    def zero_grad(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter -= self.param_groups[0]["lr"] * parameter.grad

    def state_dict(self):
        return {{}}

def learn():
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    optimizer = Descent(net.parameters())
    draws = []
    for step, _ in stage.Stage(folder / "net.progress", 3, net=net, optimizer=optimizer):
        x = torch.randn(4, 3)
        draws.append(x.tolist())
        stage.descend(optimizer, net(x).pow(2).mean(), .1)
    (folder / f"told-{{rank}}.json").write_text(json.dumps({{"weight": net.weight.tolist(), "draws": draws}}))
    return net.state_dict()

def alone():
    (folder / f"alone-{{rank}}").touch()

stage.run_stages(folder, {{"pictures": alone, "net.pt": learn}}, shared=("net.pt",))
"""


def test_two_processes_learn_as_one_of_twice_the_batch(tmp_path):
    """The same weights in both, from the mean of both parts of the batch; only the first writes and does what is not shared."""
    script = tmp_path / "together.py"
    script.write_text(TOGETHER.format(pack=str(ROOT / "headless" / "pack.py")), encoding="utf-8")
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, timeout=600)
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert told[0]["weight"] == told[1]["weight"]
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    for parts in zip(told[0]["draws"], told[1]["draws"]):
        assert parts[0] != parts[1]
        net.zero_grad()
        net(torch.tensor(parts).flatten(0, 1)).pow(2).mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= .1 * parameter.grad
    assert torch.allclose(net.weight, torch.tensor(told[0]["weight"]), atol=1e-6)
    assert torch.allclose(torch.load(tmp_path / "net.pt")["weight"], net.weight, atol=1e-6)
    assert (tmp_path / "alone-0").exists() and not (tmp_path / "alone-1").exists() and not (tmp_path / "net.progress").exists()


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_a_step_is_orthogonal(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    [step] = orthogonal(matrix[None]).double()
    values = torch.linalg.svdvals(step)
    assert .6 < values.min() and values.max() < 1.25
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    assert (step - u @ v).norm() < .35 * (u @ v).norm()


def test_muon_learns_and_goes_on_from_its_state():
    """A small regression is learned; an optimizer loaded from another's state takes the same next step."""
    torch.manual_seed(0)
    x, truth = torch.randn(256, 8), torch.nn.Linear(8, 4)
    target = truth(x).detach()

    def step(net, optimizer):
        loss = (net(x) - target).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    net = torch.nn.Linear(8, 4)
    optimizer = Muon(net.parameters(), .02, vectors=.5)
    losses = [step(net, optimizer) for _ in range(150)]
    assert losses[-1] < .02 * losses[0]
    twin = torch.nn.Linear(8, 4)
    twin.load_state_dict(net.state_dict())
    other = Muon(twin.parameters(), .02, vectors=.5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(net, optimizer), step(twin, other)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters()))
