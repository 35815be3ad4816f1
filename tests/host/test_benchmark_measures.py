"""The benchmark of measures against the renderer's truth: its statistics, and a run of a few people."""

import pytest
import torch

from portrait_atelier.benchmarks import measures
from portrait_atelier.demo.styles import NAMES


def test_the_rank_correlation_is_spearmans():
    from scipy.stats import spearmanr
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(9, (40,), generator=generator), torch.randn(40, generator=generator)
    assert measures.correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert measures.correlation(b, b ** 3) == pytest.approx(1) and measures.correlation(b, -b) == pytest.approx(-1)


def test_each_style_is_measured(monkeypatch):
    """A measure that is the truth ranks perfectly, and so the pairs are the right ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        results = measures.identity(3, generator) | measures.style(2, generator)
    assert len(results) == 4 * len(NAMES) and all(-1 <= found["rank"] <= 1 and 0 <= found["first"] <= 1 for found in results.values())
    assert measures.table(results).count("\n") == 4 * len(NAMES) + 2
    asked = []
    monkeypatch.setattr(measures, "render", lambda who, style, *_: asked.append(style) or measures.faces.identity_of(who))
    perfect = type("Recogniser", (), {"embed": staticmethod(lambda pictures: pictures)})
    monkeypatch.setattr(measures.faces, "load_recognisers", lambda: type("Both", (), {"own": perfect, "judge": perfect}))
    with torch.inference_mode():
        found = measures.identity(5, generator).values()
    assert all(entry["first"] == 1 and entry["rank"] == pytest.approx(1) for entry in found)
    assert [int(style[0]) for style in asked] == [0, *range(len(NAMES))]
