import pytest

from portrait_atelier.attention.blocks import automatic_layers, layer_name, select_layers, valid_range


def tree(**parts):
    """{"output": {3: 1, 4: 2}} -> layer ids in order."""
    return [(part, block, i) for part in ("input", "middle", "output") for block, depth in parts.get(part, {}).items() for i in range(depth)]


SD15 = tree(input={n: 1 for n in (1, 2, 4, 5, 7, 8)}, middle={0: 1}, output={n: 1 for n in range(3, 12)})
SDXL = tree(input={4: 2, 5: 2, 7: 10, 8: 10}, middle={0: 10}, output={0: 10, 1: 10, 2: 10, 3: 2, 4: 2, 5: 2})
REFINER = tree(input={4: 4, 5: 4, 7: 4, 8: 4}, middle={0: 4}, output={n: 4 for n in range(3, 9)})


@pytest.mark.parametrize("layers, count, first", [(SD15, 16, 8), (SDXL, 70, 35), (REFINER, 44, 21)])
def test_auto_is_every_decoder_layer_but_the_first(layers, count, first):
    assert len(layers) == count
    assert automatic_layers(layers) == layers[first:] == select_layers("auto", layers)


@pytest.mark.parametrize("layers, text, same", [
    (SD15, "u1-8", "auto"), (SD15, "u1-u8", "auto"), (SDXL, "u0.1-9,u1-5", "auto"), (SDXL, " U0.1-9 , u1-U5 ", "auto"),
    (SD15, "d,m,u", "all"), (SD15, "u,d,m", "all"), (SD15, "m", "m0"), (SD15, "u3,u3,u1-3", "u1-3"), (SDXL, "u0.0-9", "u0"),
])
def test_equal_texts(layers, text, same):
    assert select_layers(text, layers) == select_layers(same, layers)


@pytest.mark.parametrize("text, expected", [
    ("", []), (" , ", []), ("d3", [("input", 5, 0)]), ("u0", [("output", 3, 0)]), ("m", [("middle", 0, 0)]),
    ("u8,d0", [("input", 1, 0), ("output", 11, 0)]),
])
def test_names(text, expected):
    assert select_layers(text, SD15) == expected


def test_indices_inside_blocks():
    assert select_layers("u0.2-4,m.9", SDXL) == [("middle", 0, 9), ("output", 0, 2), ("output", 0, 3), ("output", 0, 4)]
    assert select_layers("u1-2.0", SDXL) == [("output", 1, 0), ("output", 2, 0)]


def test_auto_may_mean_something_else():
    assert select_layers("auto,m", SD15, auto=[("input", 1, 0)]) == [("input", 1, 0), ("middle", 0, 0)]


@pytest.mark.parametrize("text", ["x1", "u-1", "u1-", "u1--2", "u1.", "u1.2.3", "1", "auto1", "d1-m2", "u1;u2", "u9", "d6", "m1", "u5-3", "u0.1"])
def test_unknown_names(text):
    with pytest.raises(ValueError, match="d0-5, m0, u0-8") as error:
        select_layers(f"auto,{text}", SD15)
    assert f"'{text}'" in str(error.value)


def test_a_part_without_attention():
    with pytest.raises(ValueError, match="Valid: auto, all, u0-8"):
        select_layers("m", SD15[7:])
    assert valid_range(SD15[6:]) == "auto, all, m0, u0-8"


@pytest.mark.parametrize("layers", [SD15, SDXL, REFINER])
def test_every_layer_has_a_name_that_selects_it(layers):
    for layer in layers:
        assert select_layers(layer_name(layer, layers), layers) == [layer]
