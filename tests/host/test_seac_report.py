"""SEAC Trace and SEAC Report on UNets: the shares are those of the softmax, the pictures stay as they are.

tests/host/test_seac_transformers.py has the same of the transformers.
"""

import pytest
import torch

from portrait_atelier.attention import seac as maths
from portrait_atelier.host import seac as host, seac_report, seac_trace
from portrait_atelier.host.kit.calls import layer_of
from portrait_atelier.nodes.seac_report import SEACReport
from portrait_atelier.nodes.seac_trace import SEACTrace

TOLERANCE = 1e-5


@pytest.fixture
def content(tensor):
    return tensor(2, 4, 8, 8, seed=3)


@pytest.fixture
def banks(sd15, content, tensor):
    """Of two sources, and of references of another size, one of them merged."""
    styles = [sd15.features(tensor(1, 4, 8, side, seed=side)) for side in (12, 16)]
    return sd15.features(content), styles[0], sd15.merge(styles[1], weigh_merged=True)


@pytest.fixture
def half():
    """Ones in the right half of the picture."""
    return torch.cat([torch.zeros(1, 64, 32), torch.ones(1, 64, 32)], 2)


@pytest.fixture
def patched(sd15, banks, half):
    """A source, a reference everywhere and a second one in half of the picture."""
    source, everywhere, merged = banks
    first = sd15.patch(source, everywhere, strength=0.8, style_enhancement=1.4)
    return sd15.patch(None, merged, model=first, mask=half, style_share=0.4, style_enhancement=0.9)


def record_of(studio, model, latent, **options):
    """(the run's record, its pictures)"""
    model, trace = SEACTrace.execute(model).result
    out = studio.sample(model, latent, **options)
    return trace.last, out


def worst(record, literal) -> float:
    """The largest difference of any share, of both prompts, any layer and any group."""
    assert {prompt for prompt, _ in literal} == set(record.shares)
    return max(abs(seac_report.per_layer(record, name, prompt)[layer] - share)
               for (prompt, layer), shares in literal.items() for name, share in shares.items())


def literal(literal_shares, studio, model, banks, latent, **options):
    def sizes(layer):
        tokens = [bank.features[0][layer].shape[1] for bank in banks]
        own = banks[0].features[0][layer].shape[1]
        return dict(zip(["picture", "source", "reference 1", "reference 2"], [own, *tokens]))

    def where(extra, queries, tokens):
        layer = layer_of(extra)
        return layer if layer in banks[0].layers and tokens == sum(sizes(layer).values()) else None

    return literal_shares(model, lambda watched: studio.sample(watched, latent, **options), sizes, where)


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_shares_are_those_of_the_softmax(sd15, patched, banks, content, literal_shares, cfg):
    record, _ = record_of(sd15, patched, content, cfg=cfg)
    assert set(record.shares) == ({0} if cfg == 1 else {0, 1})
    assert worst(record, literal(literal_shares, sd15, patched, banks, content, cfg=cfg)) < TOLERANCE
    for layer in banks[0].layers:
        assert sum(seac_report.per_layer(record, name)[layer] for name in
                   ("picture", "source", "reference 1", "reference 2")) == pytest.approx(1, abs=1e-5)


def no_bias(patch):
    real = maths.attention_per_group
    patch.setattr(maths, "attention_per_group", lambda q, groups, heads, bias: real(q, groups, heads, None))


def lambda_forgotten(patch):
    real = maths.attention_per_group
    patch.setattr(maths, "attention_per_group", lambda q, groups, heads, bias: real(
        q, [host.replace(group, scale=1.0) for group in groups], heads, bias))


def prompts_exchanged(patch):
    real = seac_trace.Record.measure
    patch.setattr(seac_trace.Record, "measure", lambda self, call, *args: real(
        self, host.replace(call, texts=call.texts[::-1]), *args))


def references_exchanged(patch):
    patch.setattr(host, "name_of", lambda reference: f"reference {3 - reference.number}")


@pytest.mark.parametrize("mutant", [no_bias, lambda_forgotten, prompts_exchanged, references_exchanged])
def test_mutants_fail(sd15, patched, banks, content, literal_shares, mutant, monkeypatch):
    expected = literal(literal_shares, sd15, patched, banks, content)
    mutant(monkeypatch)
    assert worst(record_of(sd15, patched, content)[0], expected) > 100 * TOLERANCE


@pytest.mark.parametrize("options", [{}, {"cfg": 1.0}, {"sampler": "heun"}])
def test_pictures_stay_as_they_are(sd15, patched, content, options):
    """Recorded, and recorded by two: every bit."""
    expected = sd15.sample(patched, content, **options)
    record, out = record_of(sd15, patched, content, **options)
    assert torch.equal(out, expected) and record.shares
    first, outer = SEACTrace.execute(patched).result
    second, inner = SEACTrace.execute(first).result
    assert torch.equal(sd15.sample(second, content, **options), expected) and inner.last is outer.last is not record


def test_a_trace_may_stand_before_the_patch(sd15, banks, content):
    model, trace = SEACTrace.execute(sd15.model).result
    out = sd15.sample(sd15.patch(banks[0], banks[1], model=model), content)
    assert torch.equal(out, sd15.sample(sd15.patch(banks[0], banks[1]), content))
    assert "SEAC acted in 8 of 8 layers and 2 of 2 steps." in seac_report.text(trace.last)


def test_without_the_node_nothing_is_measured(sd15, patched, content, monkeypatch):
    monkeypatch.setattr(maths, "attention_per_group", None)
    sd15.sample(patched, content)
    bank = sd15.features(content[:1], model=SEACTrace.execute(patched)[0])  # nor in an extraction
    assert bank.layers


def test_where_in_the_picture(sd15, patched, content, half):
    """Reference 2 acts in the right half of the latent alone, and is drawn there in its colour."""
    record, _ = record_of(sd15, patched, content)
    layer = next(layer for layer in record.layers if layer in record.maps and record.maps[layer]["picture"].shape[1] == 8)
    maps = {name: total / record.counts[layer][:, None, None] for name, total in record.maps[layer].items()}
    assert torch.allclose(sum(maps.values()), torch.ones(2, 8, 8), atol=1e-5)
    assert (maps["reference 2"][..., :4] < 1e-3).all() and (maps["reference 2"][..., 4:] > 1e-3).all()
    one, _ = record_of(sd15, patched, content[1:])  # the second picture, on its own
    assert not torch.equal(maps["reference 1"][0], maps["reference 1"][1])

    images = torch.full((2, 64, 64, 3), 0.5)
    shown = seac_report.overlay(record, images)
    assert shown.shape == images.shape and 0 <= shown.min() and shown.max() <= 1
    total = {name: seac_report.over_picture(record, name, (64, 64)) for name in ("reference 1", "reference 2")}
    opacity = {name: seac_report.OPAQUE * part / sum(total.values()).max() for name, part in total.items()}
    for row, column in ((5, 5), (40, 60)):
        colour = sum(opacity[name][1, row, column] * torch.tensor(seac_report.COLOURS[number]) / 255
                     for number, name in enumerate(total))
        left = 1 - sum(part[1, row, column] for part in opacity.values())
        assert torch.allclose(shown[1, row, column], 0.4 * left + colour, atol=1e-5)
    with pytest.raises(ValueError, match="holds 1 pictures, but the run of its SEAC Trace made 2"):
        seac_report.overlay(record, images[:1])


def test_parts_of_the_picture_are_counted_and_not_drawn(sd15, banks, content):
    area = [[sd15.positive[0][0], {**sd15.positive[0][1], "area": (4, 8, 0, 0), "strength": 1.0}], sd15.positive[0]]
    record, _ = record_of(sd15, sd15.patch(banks[0], banks[1]), content, positive=area)
    layer = banks[0].layers[-1]
    assert len(record.shares[0][layer]) == 4 and record.counts[layer].tolist() == [2, 2]


def test_the_words(sd15, patched, banks, content):
    text = seac_report.text(record_of(sd15, patched, content)[0])
    first, *told = text.splitlines()
    assert first == "SEAC acted in 8 of 8 layers and 2 of 2 steps."
    assert "Reference 1 got " in told[0] and "; with the negative prompt " in told[0]
    assert "Reference 2 got " in told[1] and told[1].endswith(". Its mask covers 50.0 % of the picture.")
    assert told[2].startswith("The rest: source ") and ", picture " in told[2] and len(told) == 3


NOTHING = [
    ({"strength": 0.0}, "SEAC did nothing: its strength is 0."),
    ({"layers": ""}, "SEAC did nothing: its 'layers' name none."),
    ({"start": 0.6, "end": 0.4}, "SEAC did nothing: its start, 0.6, is not before its end, 0.4."),
    ({"end": 0.3}, "Reference 1 could do nothing: no step lies in its window, start 0 to end 0.3: sampling went from 0.50 "
                   "to 0.74 of the schedule."),
    ({"mask": torch.zeros(1, 64, 64)}, "Reference 1 could do nothing: its mask is empty."),
    ({"style_share": 0.0}, "Reference 1 could do nothing: its style_share is 0."),
]


@pytest.mark.parametrize("options, words", NOTHING)
def test_why_nothing_happened(sd15, banks, content, options, words):
    record, out = record_of(sd15, sd15.patch(banks[0], banks[1], **options), content)
    assert words in seac_report.text(record)
    image = torch.rand(2, 64, 64, 3)
    assert torch.allclose(seac_report.overlay(record, image), 0.8 * image.mean(-1, keepdim=True).expand_as(image))
    assert seac_report.plot(record).shape[3] == 3


def test_a_later_reference_that_is_off_keeps_its_number(sd15, banks, content):
    model = sd15.patch(banks[0], banks[1])
    model = sd15.patch(None, banks[1], model=sd15.patch(None, banks[2], model=model, strength=0.0))
    told = seac_report.text(record_of(sd15, model, content)[0]).splitlines()
    assert told[1].startswith("Reference 1 got ") and told[3].startswith("Reference 3 got ")
    assert told[2] == "Reference 2 could do nothing: its strength is 0."


def test_no_patch_and_no_run(sd15, content):
    model, trace = SEACTrace.execute(sd15.model).result
    assert seac_report.text(trace.last) == seac_report.NO_RUN
    assert torch.equal(sd15.sample(model, content), sd15.sample(sd15.model, content))
    assert seac_report.text(trace.last) == seac_report.NO_PATCH
    with pytest.raises(RuntimeError):
        sd15.sample(model, content, positive=[[torch.zeros(1, 77, 3), sd15.positive[0][1]]])
    assert trace.last is None, "a run that failed leaves no report of the one before"


def test_layers_of_another_node_are_named(sd15, banks, content):
    model = sd15.patch(banks[0], banks[1])
    model.set_model_attn1_replace(lambda q, k, v, extra: v, "output", 11)
    text = seac_report.text(record_of(sd15, model, content)[0])
    assert "SEAC acted in 7 of 8 layers" in text and "Not reached: u8.0. Another node replaces" in text


def test_what_the_run_warned_of_is_told(sd15, banks, content, half):
    area = [[sd15.positive[0][0], {**sd15.positive[0][1], "area": (4, 8, 0, 0), "strength": 1.0}]]
    record, _ = record_of(sd15, sd15.patch(banks[0], banks[1], mask=half), content, positive=area, cfg=1.0)
    assert "SEAC Patch: a mask cannot be placed on a part of the picture" in seac_report.text(record)


def test_the_plot_has_a_bar_for_every_layer(sd15, patched, content):
    """Its colours take the shares of its height."""
    record, _ = record_of(sd15, patched, content)
    plot = (seac_report.plot(record)[0] * 255).round().int()
    top = next(row for row in range(len(plot)) if (plot[row, 50] == torch.tensor(seac_report.OTHERS["picture"])).all())
    layers, step = seac_report.measured(record), (seac_report.WIDTH - 2 * seac_report.MARGIN) / 8
    assert len(layers) == 8
    for number, layer in enumerate(layers):
        column = plot[top:top + seac_report.BARS + 1, int(seac_report.MARGIN + step * (number + 0.5))]
        for name, colour in seac_report.colours(record).items():
            share = seac_report.per_layer(record, name).get(layer, 0.0)
            height = (column == torch.tensor(colour)).all(-1).sum().item()
            assert abs(height - share * seac_report.BARS) <= 2, (layer, name)


def test_the_node_shows_plot_and_overlay(sd15, patched, content):
    model, trace = SEACTrace.execute(patched).result
    sd15.sample(model, content)
    output = SEACReport.execute(trace, torch.rand(2, 64, 64, 3))
    text, plot, overlay = output.result
    assert output.ui["text"] == [text] and len(output.ui["images"]) == 3
    assert plot.shape[0] == 1 and overlay.shape == (2, 64, 64, 3)
