from __future__ import annotations

import pytest
import torch
from torch import nn

from cytolake.models.objectives.heads import MinibatchNorm, PrototypeHead, mlp, without_autocast

FREE, FROZEN = torch.tensor(False), torch.tensor(True)


def test_the_norm_of_a_minibatch_is_torch_s_own_with_its_gradient():
    ours, theirs = MinibatchNorm(5), nn.BatchNorm1d(5)
    for norm in (ours, theirs):
        nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
        nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(1))
    values = 3 + 2 * torch.randn(8, 5, generator=torch.Generator().manual_seed(2))
    here, there = values.clone().requires_grad_(), values.clone().requires_grad_()
    torch.testing.assert_close(ours(here), theirs(there))
    ours(here).sin().sum().backward()
    theirs(there).sin().sum().backward()
    torch.testing.assert_close(here.grad, there.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_evaluation_norms_as_training_does():
    norm, values = MinibatchNorm(3), torch.randn(4, 3)
    assert torch.equal(norm.eval()(values), norm.train()(values))


@pytest.mark.parametrize(
    ("widths", "normalised", "kinds"),
    [
        ((4, 8, 2), False, ["Linear", "ReLU", "Linear"]),
        ((4, 8, 2), True, ["Linear", "MinibatchNorm", "ReLU", "Linear"]),
        ((4, 8, 8, 2), True, [*["Linear", "MinibatchNorm", "ReLU"] * 2, "Linear"]),
    ],
)
def test_layers_of_an_mlp(widths, normalised, kinds):
    head = mlp(widths, normalised=normalised)
    assert [type(layer).__name__ for layer in head] == kinds
    assert head(torch.randn(3, 4)).shape == (3, 2)


def test_prototypes_give_cosines_whatever_their_length():
    head, features = PrototypeHead(6, 16, 4, 10), torch.randn(5, 6)
    cosines = head(features, FREE)
    wanted = torch.cosine_similarity(head.mlp(features)[:, None], head.prototypes[None], dim=-1)
    torch.testing.assert_close(cosines, wanted)
    with torch.no_grad():
        head.prototypes *= torch.linspace(0.1, 9, 10)[:, None]
    torch.testing.assert_close(head(features, FREE), cosines)


def test_frozen_prototypes_have_no_gradient_and_all_else_does():
    head = PrototypeHead(6, 16, 4, 10)
    free, frozen = head(torch.ones(5, 6), FREE), head(torch.ones(5, 6), FROZEN)
    assert torch.equal(free, frozen)
    frozen.square().sum().backward()
    assert head.prototypes.grad.abs().max() == 0
    assert head.mlp[0].weight.grad.abs().max() > 0
    free.square().sum().backward()
    assert head.prototypes.grad.abs().max() > 0


def test_products_are_exact_within_autocast_and_shapes_can_be_computed_without_a_device():
    values = torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (values @ values).dtype == torch.bfloat16
        with without_autocast(values):
            assert (values @ values).dtype == torch.float32
    with without_autocast(values.to("meta")):
        pass
