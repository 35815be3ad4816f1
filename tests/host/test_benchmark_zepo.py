"""The benchmark counts what really runs, and its baseline is the same method."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from portrait_atelier.benchmarks import _zepo, zepo

VARIANTS = ["plain", "cold", "warm", "recomputed"]


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode():
        return _zepo.random_model(tiny=True)


@pytest.fixture(scope="module")
def run(model):
    with torch.inference_mode():
        return _zepo.compare(model, 64, 4, 0.5, 1, lambda text: None)


def parts(run, name, key):
    return [(part["part"], part[key]) for part in run["variants"][name]["parts"]]


def test_rows_and_calls(run):
    assert {name: run["variants"][name]["rows"] for name in VARIANTS} == {"plain": 8, "cold": 12, "warm": 8, "recomputed": 24}
    assert {name: run["variants"][name]["calls"] for name in VARIANTS} == {"plain": 4, "cold": 6, "warm": 4, "recomputed": 8}
    assert parts(run, "plain", "rows") == parts(run, "warm", "rows") == [("step", 2)] * 4
    assert parts(run, "cold", "rows") == [("extraction", 4)] + [("step", 2)] * 4
    assert parts(run, "recomputed", "rows") == [("step", 6)] * 4


def test_flops_of_a_patched_step(run, model):
    assert 1 <= run["step_flops"] <= 1.05
    flops = {name: run["variants"][name]["flops"] for name in VARIANTS}
    assert flops["warm"] < 1.05 * flops["plain"] and 1.4 < flops["cold"] / flops["plain"] < 1.6
    assert 2.9 < flops["recomputed"] / flops["plain"] < 3.1
    unmerged = _zepo.compare(model, 64, 1, 0.0, 0, lambda text: None)
    assert unmerged["step_flops"] > run["step_flops"]  # twice the keys and values must show
    assert unmerged["recomputed_differs_by"] < 1e-5
    assert unmerged["bank_bytes"] == unmerged["bank_bytes_unmerged"] == 2 * run["bank_bytes"]


def test_parts_make_up_the_whole(run):
    for name in VARIANTS:
        variant = run["variants"][name]
        for key in ("rows", "calls"):
            assert sum(part[key] for part in variant["parts"]) == variant[key]
        assert sum(part["flops"] for part in variant["parts"]) == variant["flops"]
        for clock in ("seconds", "cpu_seconds"):
            assert 0 < sum(part[clock] for part in variant["parts"]) < variant[clock]


def test_recomputing_every_step_gives_the_same_picture(run):
    assert run["recomputed_differs_by"] < 1e-5 and run["plain_differs_by"] > 1e-2


def test_cold_and_warm_give_the_same_picture_and_plain_another(model, apart):
    study = _zepo.Study(model, 64, 2, 0.5)
    pictures = {}
    for name, variant in study.variants.items():
        with _zepo.Meter(model) as meter:
            pictures[name] = variant(meter)
    assert torch.equal(pictures["cold"], pictures["warm"])
    assert apart(pictures["recomputed"], pictures["warm"]) < 1e-5
    assert apart(pictures["plain"], pictures["warm"]) > 1e-2


def test_the_model_is_left_without_hooks(run, model):
    assert not model.model.diffusion_model._forward_pre_hooks


def test_attention_is_in_the_count(monkeypatch):
    _zepo.check_counter()

    def uncounted(*args):
        with FlopCounterMode(display=False):
            return args[0]

    uncounted.__name__ = "uncounted"
    monkeypatch.setattr(_zepo, "optimized_attention", uncounted)
    with pytest.raises(RuntimeError, match="uncounted is not in torch's FLOP count"):
        _zepo.check_counter()


def test_the_command_prints_and_writes(tmp_path, capsys):
    file = tmp_path / "results" / "zepo.json"
    zepo.main(["--tiny", "--sizes", "64", "--steps", "4", "1", "--rounds", "0", "--json", str(file)])
    text = capsys.readouterr().out
    report = json.loads(file.read_text())
    assert [run["steps"] for run in report["runs"]] == [4, 1]
    assert [target["reached"] for target in report["runs"][0]["targets"]] == [True] * 4
    assert [target["reached"] for target in report["runs"][1]["targets"]] == [True] * 2
    assert text.count("reached  ") == 6 and "MISSED" not in text and str(file) in text
    assert report["command"].startswith("python3 atelier.py bench zepo --tiny") and report["threads"] == 1


@pytest.mark.parametrize("on_cpu, clock", [(True, "cpu_seconds"), (False, "seconds")])
def test_a_target_that_is_missed_says_so(run, on_cpu, clock):
    rows = {"cold": 13, "recomputed": 23, "warm": 12, "plain": 8}
    bad = {**run, "step_flops": 1.06, "step_time": {"seconds": 1, "cpu_seconds": 1, clock: 1.11},
           "variants": {name: {"rows": rows[name]} for name in rows}}
    assert [target["reached"] for target in zepo.targets(bad, on_cpu)] == [False] * 5
    assert len(zepo.targets({**bad, "merge": 0.0, "steps": 2}, on_cpu)) == 1


@pytest.mark.parametrize("words", [["--sizes", "100"], ["--sizes", "0"], ["--merge", "0.8"], ["--steps", "0"], ["--rounds", "-1"],
                                   ["--merge", "nan"], ["--device", "tpu"], ["--size", "64"]])
def test_a_bad_call(words, capsys):
    with pytest.raises(SystemExit) as error:
        zepo.arguments(words)
    assert error.value.code == 2 and "error:" in capsys.readouterr().err
