from __future__ import annotations

import pytest
import torch
from torch import nn

from ddim.train.muon import MOMENTUM, Muon, orthogonalised


def matrix(rows, columns, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(16, 16), (16, 144), (144, 16), (80, 720)])
def test_singular_vectors_stay_and_singular_values_become_one(shape):
    given = matrix(*shape)
    found = orthogonalised(given[None])[0]
    u, s, v = torch.linalg.svd(given, full_matrices=False)
    values = u.T @ found @ v.T
    off = values - torch.diag(values.diagonal())
    assert off.abs().max() < 1e-10
    assert values.diagonal().min() > 0
    # The iteration lifts a value by 3.44 a round at most; the band of those that arrive is narrow.
    large = s / s.norm() > 0.03
    assert large.sum() > len(s) / 2
    assert ((values.diagonal()[large] > 0.65) & (values.diagonal()[large] < 1.25)).all()


def test_the_scale_of_the_gradient_does_not_matter():
    given = matrix(16, 32)[None]
    small, large = orthogonalised(torch.cat([1e-4 * given, given]))
    assert torch.allclose(small, large, atol=1e-10)
    assert not orthogonalised(torch.zeros(1, 4, 4)).any()


def test_an_update_by_hand():
    """Two steps of the weights, with decay: Nesterov momentum, then the orthogonal direction."""
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 24, 3, bias=False).double()
    optimizer = Muon(layer, lr=0.1, weight_decay=0.5)
    weight, momentum = layer.weight.detach().clone(), torch.zeros(24, 144, dtype=torch.float64)
    for seed in (1, 2):
        gradient = matrix(24, 144, seed)
        layer.weight.grad = gradient.view(24, 16, 3, 3)
        optimizer.step()
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        ahead = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        step = 0.1 * 0.2 * 144**0.5 * orthogonalised(ahead[None])
        weight = weight * (1 - 0.1 * 0.5) - step.view(24, 16, 3, 3)
        assert torch.allclose(layer.weight, weight, atol=1e-12)


def test_its_update_is_as_large_as_that_of_adamw():
    """One learning rate serves both: the root mean square is about 0.2 of it, AdamW's own."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 32, bias=False)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.randn(32, 64)
    Muon(layer, lr=1.0, weight_decay=0.0).step()
    change = (layer.weight.detach() - before).square().mean().sqrt()
    assert change == pytest.approx(0.2, rel=0.25)


def test_everything_else_is_left_to_adamw():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.GroupNorm(4, 32), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 1, 1)
    )
    other = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.GroupNorm(4, 32), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 1, 1)
    )
    other.load_state_dict(net.state_dict())
    settings = {"lr": 1e-2, "weight_decay": 0.1}
    muon, adamw = Muon(net, **settings), torch.optim.AdamW(other.parameters(), **settings)
    for _ in range(3):
        for one, another in zip(net.parameters(), other.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            another.grad = one.grad.clone()
        muon.step()
        adamw.step()
    differing = [
        name
        for (name, one), another in zip(net.named_parameters(), other.parameters(), strict=True)
        if not torch.equal(one, another)
    ]
    assert differing == ["2.weight"]


def test_embeddings_are_not_matrices():
    net = nn.Sequential(nn.Embedding(32, 32), nn.Linear(32, 32))
    (group,) = [g for g in Muon(net, lr=1e-3).param_groups if g["matrices"]]
    assert group["params"] == [net[1].weight]


def test_a_badly_scaled_problem():
    """Linear regression whose inputs have a condition number of 1e4: where Adam crawls."""
    g = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(32, 32, generator=g))
    x = torch.randn(512, 32, generator=g) * torch.logspace(0, -2, 32) @ rotation
    goal = torch.randn(32, 32, generator=g) / 32**0.5
    losses = {}
    for name, rate in (("muon", 0.1), ("adamw", 0.02)):
        layer = nn.Linear(32, 32, bias=False)
        nn.init.zeros_(layer.weight)
        if name == "muon":
            optimizer = Muon(layer, lr=rate, weight_decay=0.0)
        else:
            optimizer = torch.optim.AdamW(layer.parameters(), lr=rate, weight_decay=0.0)
        falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / 200, 200)
        for _ in range(200):
            loss = (layer(x) - x @ goal.T).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            falling.step()
        losses[name] = loss.item()
    assert losses["muon"] < losses["adamw"] / 2


def test_a_network_without_matrices_is_refused(refuses):
    for net in (nn.Linear(8, 64), nn.Embedding(32, 32), nn.Linear(32, 32).requires_grad_(False)):
        with refuses("muon is for weights of at least 16 x 16 .* use adamw"):
            Muon(net, lr=1e-3)
