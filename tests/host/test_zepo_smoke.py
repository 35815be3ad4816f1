import torch


def test_slice(studio, tensor, apart):
    content, style = tensor(1, 4, 8, 8, seed=3), tensor(1, 4, 8, 8, seed=4)
    a, b = studio.features(content), studio.features(style)
    plain = studio.sample(studio.model, content)
    out = studio.sample(studio.patch(a, b), content)
    assert torch.isfinite(out).all()
    print(len(a.layers), a.layers[:2], apart(out, plain))
    assert apart(out, plain) > 0.01
    m = studio.sample(studio.patch(studio.merge(a), studio.merge(b), strength=.7, balance="images"), content)
    assert apart(m, out) > 0.01
