"""The benchmark's ways compute the same network, and it counts what really runs."""

import json

import pytest

from portrait_atelier.benchmarks import _mmfs, mmfs


@pytest.fixture(scope="module")
def network():
    return _mmfs.random_network(tiny=True)


def say(text):
    pass


@pytest.mark.parametrize("styles, decoder", [(2, False), (1, True)])
def test_the_ways_agree(network, styles, decoder):
    ways = _mmfs.forward(network, 64, 2, styles, decoder, 1, say)
    assert set(ways) == {"ours", "grouped", "published"} and all(way["differs_by"] < 1e-4 and way["x_ours"] > 0 for way in ways.values())
    assert ways["published"]["differs_by"] > 0      # they are not the same code


def test_the_ways_agree_in_gradients(network):
    assert all(way["differs_by"] < 1e-4 for way in _mmfs.step(network, 64, 2, 1, say).values())
    assert not any(weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize("kind", [_mmfs.layers.ModulatedConv, _mmfs.layers.BiasAct])
def test_another_network_would_show(network, monkeypatch, kind):
    right = _mmfs.GROUPED[kind]
    monkeypatch.setitem(_mmfs.GROUPED, kind, lambda self, *args: 1.01 * right(self, *args))
    ways = _mmfs.forward(network, 64, 1, 1, True, 1, say)
    assert ways["ours"]["differs_by"] == 0 and ways["grouped"]["differs_by"] > 1e-3 and ways["published"]["differs_by"] > 1e-3


def test_the_report(tmp_path, capsys):
    assert mmfs.main(["--tiny", "--sizes", "64", "--rounds", "1", "--styles", "3", "--json", str(tmp_path / "mmfs.json")]) == 0
    report = json.loads((tmp_path / "mmfs.json").read_text())
    assert len(report["runs"]) == 5 and report["targets"][-1]["reached"]
    assert (report["sweep"]["once"]["encode"], report["sweep"]["each time"]["encode"], report["sweep"]["once"]["decode"]) == (1, 3, 3)
    kept = report["memory"]["64"]
    assert kept["8"]["ours"] > 2 * kept["1"]["ours"] and all(ways["ours"] < ways["grouped"] for ways in kept.values())
    assert report["decibels"]["float32"] > 100 and "not measured" in capsys.readouterr().out
