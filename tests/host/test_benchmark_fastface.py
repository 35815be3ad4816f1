"""The benchmark counts what really runs, and what it adds up is known to this test from elsewhere."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from portrait_atelier.benchmarks import _fastface, fastface
from portrait_atelier.host import decoupled

SIZE = 64


@pytest.fixture(scope="module")
def study():
    with torch.inference_mode():
        return _fastface.Study(tiny=True)


@pytest.fixture(scope="module")
def meta():
    with torch.inference_mode():
        return _fastface.Study(tiny=True, meta=True)


@pytest.fixture(scope="module")
def report(study, meta):
    with torch.inference_mode():
        return {"tiny": False, "rows": study.rows(), "counts": [meta.count(size) for size in (SIZE, 2 * SIZE)],
                "time": study.time(SIZE, 1, lambda text: None)}


def test_rows(report):
    assert report["rows"] == {
        "person, CFG 1": [1] * 4, "Scale-Power, CFG 1": [1] * 4, "Scheduled-Softmax, CFG 1": [1] * 4, "CFG 2": [2] * 4,
        "Decoupled CFG": [1, 3, 3, 1], "Decoupled CFG, Scale-Power": [1, 3, 3, 1], "Decoupled CFG, rescale all": [2, 3, 3, 2],
        "Decoupled CFG, all rows": [3] * 4}


def test_products_are_those_of_the_real_run(study, meta, report):
    """Against torch's own counter on a run that computes, with plain products for attention."""
    def basic(function, q, k, v, heads, *args, **kwargs):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        return ((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2)

    for name, model in study.models.items():
        with FlopCounterMode(display=False) as counter:
            study.step(model, SIZE, optimized_attention_override=basic)
        assert counter.get_total_flops() == report["counts"][0]["variants"][name]["products"]


def test_what_is_in_use(report):
    """Elements and bytes of a few operations whose tensors are known."""
    with _fastface.Tally() as tally:
        x, w = torch.ones(8, 16, device="meta"), torch.ones(8, 4, device="meta")
        y = x.sigmoid().T  # held by its view
        del x
        z = (y @ w) + 1
    assert (tally.products, tally.operations, tally.elements) == (2 * 16 * 8 * 4, 5, 128 + 32 + 128 + 64)
    assert (tally.peak_bytes, tally.live) == (4 * (128 + 32 + 64 + 64), 4 * (128 + 32 + 64)) and z.shape == (16, 4)
    for count in report["counts"]:
        assert 0 < count["flops_added"]["Scale-Power"] < count["flops_added"]["Scheduled-Softmax"] < 0.03
        assert count["peak_added"] == {"Scale-Power": 0, "Scheduled-Softmax": 0}
        assert count["variants"]["adapter"]["map_bytes"] == 4 * (count["size"] // 16) ** 2 * 4 * 4  # heads, queries, tokens, float32


def test_the_step_keeps_its_result(study, report):
    """Computing each layer in all ways changes nothing; each way really is the one its name says."""
    spent = {name: dict.fromkeys(_fastface.CLOCKS, 0.0) for name in study.models}
    transform = next(slot.transforms[-1] for slot in decoupled.occupants(study.models["Scale-Power"]).values() if slot.transforms)
    outputs, seen = {}, {}

    class Heard:
        def __init__(self, branch):
            self.branch = branch

        def output(self, text, q, k, v, extra, layer, function):
            outputs.setdefault(layer, []).append(type(function).__name__)
            return self.branch.output(text, q, k, v, extra, layer, function)

    def duel(branch):
        return _fastface.Dueling(Heard(branch), {"Scale-Power": transform}, spent)

    for name, model in {"as it is": study.models["adapter"], "dueling": _fastface.around(study.models["adapter"], duel)}.items():
        torch.manual_seed(0)
        handle = model.model.diffusion_model.register_forward_hook(lambda module, args, out, name=name: seen.update({name: out}))
        study.step(model, SIZE)
        handle.remove()
    assert torch.equal(seen["as it is"], seen["dueling"])
    # Two of the three names have no transform here; the middle block has none at all.
    assert {layer: sorted(names) for layer, names in outputs.items()} == {
        layer: ["NoneType"] if layer[0] == "middle" else ["NoneType", "NoneType", "ScalePower"] for layer in outputs}
    assert len(outputs) == 7 and all(spent[name]["seconds"] > 0 for name in spent)
    assert all(isinstance(b, _fastface.face_adapter.FaceBranch) for slot in decoupled.occupants(study.models["adapter"]).values()
               for b in slot.branches)


def test_layer_ratio():
    duel = {"step": {"seconds": 16.0}, "adapter": {"seconds": 1.0}, "Scale-Power": {"seconds": 2.0}, "Scheduled-Softmax": {"seconds": 4.0}}
    # The step held 1 + 2 + 4 seconds of adapters: 10 seconds with the plain one.
    assert _fastface.layer_ratio(duel, "Scale-Power", "seconds") == 1.1 and _fastface.layer_ratio(duel, "Scheduled-Softmax", "seconds") == 1.3


@pytest.mark.parametrize("on_cpu, clock", [(True, "cpu_seconds"), (False, "seconds")])
def test_targets(report, on_cpu, clock):
    both = ("Scale-Power", "Scheduled-Softmax")
    small = {name: {"seconds": 9, "cpu_seconds": 9, clock: 1.05} for name in both}
    good = {**report, "time": {"layer_ratio": small, "step_ratio": small}}
    assert {target["reached"] for target in fastface.targets(good, on_cpu)} == {True}
    assert len(fastface.targets(good, on_cpu)) == 8 + 8 + 2 + 4
    count = {**report["counts"][1], "flops_added": dict.fromkeys(both, 0.031), "peak_added": dict.fromkeys(both, 1),
             "maps_added": dict.fromkeys(both, 99.0)}
    large = {name: {**ratio, clock: 1.06} for name, ratio in small.items()}
    bad = {"tiny": False, "rows": {name: [9] for name in report["rows"]}, "counts": [{**count, "maps_added": dict.fromkeys(both, 98.0)}, count],
           "time": {"layer_ratio": large, "step_ratio": large}}
    assert {target["reached"] for target in fastface.targets(bad, on_cpu)} == {False}
    assert len(fastface.targets({**bad, "tiny": True}, on_cpu)) == 18


def test_the_command_prints_and_writes(tmp_path, capsys, monkeypatch, study, meta, report):
    monkeypatch.setattr(_fastface, "Study", lambda tiny, **options: meta if options.get("meta") else study)
    monkeypatch.setattr(study, "rows", lambda: report["rows"])
    monkeypatch.setattr(meta, "count", lambda size: report["counts"][[SIZE, 2 * SIZE].index(size)])
    file = tmp_path / "results" / "fastface.json"
    assert fastface.main(["--tiny", "--sizes", "64", "--time-size", "64", "--rounds", "0", "--json", str(file)]) == 0
    text, found = capsys.readouterr().out, json.loads(file.read_text())
    assert text.count("reached  ") == 12 and "MISSED" not in text and str(file) in text
    assert found["command"].startswith("python3 atelier.py bench fastface --tiny") and found["time"] is None


@pytest.mark.parametrize("words", [["--sizes", "100"], ["--time-size", "0"], ["--rounds", "-1"], ["--size", "64"], ["--threads", "0"]])
def test_a_bad_call(words, capsys):
    with pytest.raises(SystemExit) as error:
        fastface.arguments(words)
    assert error.value.code == 2 and "error:" in capsys.readouterr().err
