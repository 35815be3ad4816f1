"""The benchmark counts what really runs, and its two ways of making a step are the same step."""

import json

import pytest
import torch

from portrait_atelier.benchmarks import _diffstyler, diffstyler


@pytest.fixture(scope="module")
def study():
    with torch.inference_mode():
        return _diffstyler.Study(tiny=True, size=64)


@pytest.mark.parametrize("styles, options, inversion, sampling", [
    (2, {}, 5, 23), (1, {"mode": "shared noise", "steps": 4, "cfg": 1.0}, 0, 8),
], ids=str)
def test_rows(study, styles, options, inversion, sampling):
    run = study.whole_run(styles, **{"steps": 5, "mode": "ddim", **options})
    assert (run["inversion"], run["sampling"], run["rows"]) == (inversion, sampling, inversion + sampling)
    assert run["calls"] == (5 if inversion else 0) + run["steps"]


def test_packed_and_separate_steps(study):
    step = study.step(1, 901, 1, lambda text: None)
    assert (step["rows"], step["calls_separate"]) == (3, 2) and step["differ_by"] < 1e-5
    assert all(step[clock]["ratio"] > 0 for clock in ("seconds", "cpu_seconds"))


def test_separate_steps_know_their_styles(study, monkeypatch):
    """Were a LoRA missing in one of the two ways, it would show."""
    original = _diffstyler.Separate.__init__

    def exchanged(self, model, job):
        original(self, model, job)
        self.unets[1] = self.unets[0]
    monkeypatch.setattr(_diffstyler.Separate, "__init__", exchanged)
    assert study.step(1, 301, 1, lambda text: None)["differ_by"] > 1e-3


def test_the_report(tmp_path, monkeypatch, capsys):
    rows = lambda self, styles, steps, mode, cfg=2.0, preset="paper": {
        "styles": styles, "steps": steps, "mode": mode, "cfg": cfg, "preset": preset, "inversion": 50, "sampling": 130, "rows": 180, "calls": 100}
    step = lambda self, styles, timestep, rounds, say: {
        "styles": styles, "timestep": timestep, "rows": 2 * styles + 1, "calls_separate": styles + 1, "differ_by": 1e-6,
        **{clock: {"packed": 1.0, "separate": 2.0, "ratio": 0.5} for clock in ("seconds", "cpu_seconds")}}
    monkeypatch.setattr(_diffstyler.Study, "whole_run", rows)
    monkeypatch.setattr(_diffstyler.Study, "step", step)
    threads = torch.get_num_threads()
    try:
        assert diffstyler.main(["--tiny", "--size", "64", "--rounds", "1", "--styles", "1", "--json", str(tmp_path / "b.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    report, printed = json.loads((tmp_path / "b.json").read_text()), capsys.readouterr().out
    assert report["targets"][0]["reached"] and [step["rows"] for step in report["steps"]] == [3, 3]
    assert "1 against 2" in printed and "reached  50 steps" in printed
