"""The nodes' effects against the truth of the microworld, on the model that ships. Means over held-out pairs, wide margins.

`docs/microworld.md` has the measured values; thresholds here stand well inside them.
"""

import pytest
import torch

from portrait_atelier.demo import checkpoint, judges
from portrait_atelier.demo.making.codec import cell_ratio
from portrait_atelier.demo.measure import Studio, held_out_pairs
from portrait_atelier.demo.styles import NAMES, TRAINED

LAMBDAS = (.8, 1., 1.2, 1.4)


@pytest.fixture(scope="module")
def studio():
    with torch.inference_mode():
        yield Studio()


@pytest.fixture(scope="module")
def pairs():
    return held_out_pairs(18)


@pytest.fixture(scope="module")
def results(studio, pairs):
    """What the judges say of every kind of attention control, on the same pairs and noise."""
    runs = {"none": dict(strength=0.), "alone": dict(style_enhancement=1., share=1.), **{value: dict(style_enhancement=value) for value in LAMBDAS}}
    pictures = {name: studio.stylize(pairs.contents, pairs.references, **settings) for name, settings in runs.items()}
    pictures["truth"] = pairs.oracles
    return {name: {**studio.judge(picture, pairs), "cells": cell_ratio(picture)} for name, picture in pictures.items()}


def test_lambda_moves_style_towards_the_reference(results):
    distances = [results["none"]["style"], *(results[value]["style"] for value in LAMBDAS)]
    assert all(later < earlier for earlier, later in zip(distances, distances[1:])), distances


def test_lambda_goes_far_towards_the_truth(results):
    """At the paper's lambda, of the way from no control to a rendering in the reference's style: 62 % over 27 pairs."""
    none, drawn, truth = (results[name]["style"] for name in ("none", 1.2, "truth"))
    assert (none - drawn) / (none - truth) > .45, results
    assert results[1.2]["as reference"] > .25 and results[1.2]["structure"] > .79, results


def test_cells_do_not_show(results):
    """Borders of the codec's cells, against renders in the same styles; the model before had three times as many."""
    assert max(results[value]["cells"] for value in (.8, 1.2, "alone")) < 1.15 * results["truth"]["cells"], results


def test_the_own_reference_gains_more_than_another(results):
    gain = {kind: results["none"][kind] - results[1.2][kind] for kind in ("style", "other")}
    assert gain["style"] > gain["other"], gain


def test_the_reference_alone_stylizes_more_and_keeps_less(results):
    assert results["alone"]["style"] < results[1.2]["style"]
    assert results["alone"]["structure"] < results[1.2]["structure"]


def test_the_person_stays(results, studio, pairs):
    """Outlines remain those of the own content, far from those of another one."""
    stylized = studio.stylize(pairs.contents, pairs.references)
    own = judges.structure(stylized, pairs.contents).mean()
    assert own > judges.structure(stylized, pairs.contents.roll(1, 0)).mean() + .15
    assert results[1.2]["identity"] < results["none"]["identity"] + .25


def test_merging_changes_little(results, studio, pairs):
    unmerged = studio.judge(studio.stylize(pairs.contents, pairs.references, merge=0.), pairs)
    control = results["none"]["style"] - results["alone"]["style"]
    assert abs(unmerged["style"] - results[1.2]["style"]) < control / 2


def test_no_control_means_no_difference(studio, pairs):
    """Strength 0 is image-to-image to the last bit, whatever the reference."""
    off = studio.stylize(pairs.contents[:2], pairs.references[:2], strength=0.)
    plain = studio.decode(studio.sample(studio.model, studio.encode(pairs.contents[:2]), denoise=.5))
    assert torch.equal(off, plain)


def test_four_steps_draw_the_styles(studio):
    """The judge of renders finds the style that the word names, far above what other words draw, and a face in nearly all."""
    told = {style: studio.world.judges(studio.draw(f"portrait, {style}", 8, seed=11)) for style in TRAINED}
    logits = torch.stack([told[style]["style"].mean(0)[[NAMES.index(name) for name in TRAINED]] for style in TRAINED])   # [word, judged]
    own = logits.diagonal()
    others = (logits.sum(0) - own) / (len(TRAINED) - 1)
    assert (own - others).min() > 3, own - others
    assert (logits.argmax(1) == torch.arange(len(TRAINED))).sum() >= 9, logits
    assert torch.cat([told[style]["face"] > 0 for style in TRAINED]).float().mean() > .9


def test_the_codec_keeps_pictures(studio, pairs):
    error = (studio.decode(studio.encode(pairs.contents)) - pairs.contents).pow(2).mean()
    assert -10 * error.log10() > 27


def test_weights_are_small_and_described():
    assert checkpoint.PATH.stat().st_size <= 24e6
    assert {"recipe", "seed", "judges"} <= checkpoint.load().metadata.keys()
