"""Decoupled guidance with our own face adapter and attention transforms on the model."""

import pytest
import torch

from portrait_atelier.nodes.decoupled_cfg import DecoupledCFG
from portrait_atelier.nodes.scale_power_attention import ScalePowerAttention
from portrait_atelier.nodes.scheduled_softmax_attention import ScheduledSoftmaxAttention

pytestmark = pytest.mark.quick
TOLERANCE = 1e-5


@pytest.fixture
def latent(tensor):
    return tensor(1, 4, 8, 8, seed=3)


@pytest.fixture
def run(nano, latent):
    return lambda model, cfg=1.0: nano.sample(model, latent, cfg=cfg, steps=4, sampler="euler", denoise=1.0)


def dcg(model, **options):
    return DecoupledCFG.execute(model, **{"rescale": 0.0, **options})[0]


@pytest.mark.parametrize("name, rows", [
    # alpha, beta of each formulation that leave one row: without the person, it is that of the plain model.
    ("DCG_1", [("1", "0", "positive", False), ("1", "1", "positive", True), ("0", "0", "negative", False)]),
    ("DCG_2", [("1", "0", "negative", True), ("1", "1", "positive", True), ("0", "0", "negative", False)]),
    ("DCG_3", [("1", "0", "positive", False), ("0", "1", "negative", True), ("0", "0", "negative", False)]),
])
@pytest.mark.parametrize("routing", ["shared", "separate"])
def test_each_row_has_its_prompt_and_its_person(nano, faces, latent, run, apart, name, rows, routing):
    model = faces.apply(weight=0.8)
    nobody = faces.apply(weight=0.8)
    for alpha, beta, prompt, person in rows:
        conditioning = getattr(nano, prompt)
        out = run(dcg(model, formulation=name, alpha=alpha, beta=beta, routing=routing))
        # Core at CFG 1 gives the first place, which shows the person; CFG 0 the second alone, which shows nobody.
        one = dict(cfg=1.0, positive=conditioning) if person else dict(cfg=0.0, negative=conditioning)
        expected = nano.sample(nobody, latent, steps=4, sampler="euler", denoise=1.0, **one)
        assert apart(out, expected) < TOLERANCE, (alpha, beta)


def test_with_attention_transforms(faces, run, apart):
    for node in (ScalePowerAttention, ScheduledSoftmaxAttention):
        model = node.execute(faces.apply(weight=0.8))[0]
        assert torch.equal(run(dcg(model, alpha="1", beta="1"), cfg=5.0), run(model))
        assert apart(run(dcg(model, alpha="3", beta="3")), run(model, cfg=3.0)) < TOLERANCE
        assert apart(run(dcg(model)), run(dcg(faces.apply(weight=0.8)))) > 1e-3


def test_published_coupling_keeps_all_rows(nano, faces, run):
    model = ScheduledSoftmaxAttention.execute(faces.apply(weight=0.8), coupling="published")[0]
    rows = []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    run(dcg(model))
    handle.remove()
    assert rows == [3, 3, 3, 3]
