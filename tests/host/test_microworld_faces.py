"""FastFace's effects against the truth of the microworld, on the model that ships. Means over held-out people, wide margins.

`docs/microworld-faces.md` has the measured values; thresholds here stand well inside them. What the microworld does not show
(fewer pictures without a face: there are hardly any) is not asserted.
"""

import pytest
import torch

from portrait_atelier.demo.measure_faces import FaceStudio, dcg, held_out_people, ranks, sliders, spearman, summary

STYLES = ("photo", "cartoon", "pixel", "watercolor", "popart", "neon", "sepia", "poster")
PEOPLE = 4
RUNS = {"alone": {}, "AM1": {"maps": "AM1"}, "AM2": {"maps": "AM2"}, "DCG": {"guidance": dcg()}, "weaker": {"weight": .3}}


@pytest.fixture(scope="module")
def results():
    """Measures of every method on the same people, styles and noise."""
    with torch.inference_mode():
        studio, people = FaceStudio(), held_out_people(PEOPLE)
        identities = studio.identities(people)
        assert all(identity.found for identity in identities)
        runs = {name: studio.portraits(people, identities, STYLES, **settings) for name, settings in RUNS.items()}
        runs["nobody"] = studio.portraits(people, [None] * PEOPLE, STYLES)
        runs["somebody else"] = studio.portraits(people, identities[1:] + identities[:1], STYLES)
        return {name: summary(run) for name, run in runs.items()}


def test_the_adapter_draws_the_person(results):
    """Far more than without it, and this person rather than another one; more with more weight."""
    identity = {name: result["identity"] for name, result in results.items()}
    assert identity["alone"] > identity["nobody"] + .2 and identity["alone"] > identity["somebody else"] + .2, identity
    assert identity["nobody"] < identity["weaker"] < identity["alone"], identity


def test_faces_are_faces(results):
    assert max(result["fails"] for result in results.values()) <= 7, results


def test_scale_power_raises_identity_at_bounded_loss_of_style(results):
    assert results["AM1"]["identity"] > results["alone"]["identity"] + .02, results
    assert results["AM1"]["style"] > results["alone"]["style"] - .05, results


def test_scheduled_softmax_lowers_the_variance_of_identity(results):
    assert results["AM2"]["spread"] < results["alone"]["spread"], results
    assert results["AM2"]["style"] > results["alone"]["style"] - .08, results


def test_decoupled_guidance_raises_adherence_to_the_style(results):
    """This model draws nearly every style that it is asked for; so the errors count, and how sure the readout is."""
    assert 1 - results["DCG"]["style"] < .5 * (1 - results["alone"]["style"]) and results["DCG"]["odds"] > results["alone"]["odds"] + .2, results


def test_two_sliders():
    """A corner of the grid of docs/microworld-faces.md: each slider moves its own measure up, and that of style hardly the person.

    The adapter costs style nearly as much as the style slider gives, because this model draws most of a style unasked.
    """
    with torch.inference_mode():
        studio, people = FaceStudio(), held_out_people(2)
        identities = studio.identities(people)
        grid = [[summary(studio.portraits(people, identities, STYLES[1:], weight=weight, guidance=dcg("1", f"1, {beta}, {beta}, 1"))) for beta in (1, 1.4, 3)]
                for weight in (0., .5, 1.)]
    told = sliders(*(torch.tensor([[cell[name] for cell in row] for row in grid]) for name in ("identity", "odds")))
    assert told["identity by its slider"] > .9 and told["style by its slider"] > .9, told
    assert told["cross-talk on identity"] < .3 and told["cross-talk on style"] < 1, told


def test_rank_correlation():
    torch.testing.assert_close(ranks(torch.tensor([3., 1., 3., 2.])), torch.tensor([2.5, 0., 2.5, 1.], dtype=torch.float64))
    rising, falling, bent, flat = torch.tensor([[1., 2, 9, 10], [4, 3, 2, 1], [1, 3, 2, 4], [5, 5, 5, 5]])
    torch.testing.assert_close(spearman(torch.stack([rising, falling, bent, flat])), torch.tensor([1., -1, .8, 0], dtype=torch.float64))


def test_what_is_told_of_sliders():
    """Rows follow the identity slider, columns the style slider."""
    identity = torch.arange(4.)[:, None] + .1 * torch.arange(3.)
    style = 2 * torch.arange(3.)[None] - .5 * torch.arange(4.)[:, None]
    told = sliders(identity, style)
    assert told["identity by its slider"] == told["least"] == told["style by its slider"] == 1
    assert told["identity by the style slider"] == pytest.approx(1) and told["style by the identity slider"] == pytest.approx(-1)
    assert told["cross-talk on identity"] == pytest.approx(.2 / 3) and told["cross-talk on style"] == pytest.approx(1.5 / 4)
