"""Classifiers: what takes their place, and what is drawn anew."""

import pytest
import torch

from raysweep.nets.backbones import build, outline
from raysweep.nets.heads import reset_head
from raysweep.recipe import Head, Model, RecipeError

NONE = Model(weights="none")


def head_of(head):
    built = build("resnet18", Model(weights="none", head=Head(**head)), 7, seed=1, load=False)
    return built, built.network.eval()


def test_mlp_head():
    built, network = head_of({"kind": "mlp", "sizes": (6, 5), "dropout": 0.1, "hidden_dropout": 0.2})
    kinds = ["Dropout", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert [type(module).__name__ for module in network.fc] == kinds
    assert [network.fc[index].p for index in (0, 3, 6)] == [0.1, 0.2, 0.2]
    assert (built.head, built.fresh) == (("fc",), True)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_mlp_head_without_activation():
    _, network = head_of({"kind": "mlp", "sizes": (6,), "activation": "none"})
    assert [type(module).__name__ for module in network.fc] == ["Linear", "Linear"]


def test_kept_head():
    built, network = head_of({"kind": "keep"})
    assert (built.head, built.fresh, network.fc.out_features) == (("fc",), False, 1000)


def test_stacked_head():
    built, network = head_of({"kind": "stacked"})
    _, kept = head_of({"kind": "keep"})
    assert (built.head, built.fresh) == (("fc.2",), True)
    assert torch.equal(network.fc[0].weight, kept.fc.weight)
    x = torch.randn(2, 3, 32, 32)
    expected = kept(x).softmax(1) @ network.fc[2].weight.T + network.fc[2].bias
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "drawn"),
    [({}, {"fc"}), ({"kind": "mlp", "sizes": (6, 5)}, {"fc.0", "fc.2", "fc.4"}), ({"kind": "stacked"}, {"fc.2"})],
)
def test_reset_head_draws_every_new_layer(head, drawn):
    built, network = head_of(head)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    reset_head(network, built.head, seed=5)
    after = {key: value.clone() for key, value in network.state_dict().items()}
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {f"{name}.{kind}" for name in drawn for kind in ("weight", "bias")}
    reset_head(network, built.head, seed=5)
    assert all(torch.equal(value, after[key]) for key, value in network.state_dict().items())


def test_reset_head_draws_the_head_alone_from_the_seed():
    network = build("small_cnn", NONE, 4, seed=0).network
    stage, heads = network.stage1[0].weight.clone(), []
    for seed in (1, 2, 1):
        reset_head(network, ("classifier",), seed)
        heads.append(network.classifier.weight.clone())
    assert torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], heads[1])
    assert torch.equal(network.stage1[0].weight, stage)


@pytest.mark.parametrize(
    ("name", "head", "classes", "match"),
    [
        ("resnet18", "keep", 1001, "the classifier of resnet18 has 1000 outputs, fewer than the 1001 classes"),
        ("squeezenet1_1", "stacked", 7, r"the classifier of squeezenet1_1 is a convolution \(classifier\.1\)"),
        ("squeezenet1_1", "mlp", 7, r"choose linear or keep"),
    ],
)
def test_head_that_a_network_cannot_have(name, head, classes, match):
    with pytest.raises(RecipeError, match=rf"model\.head\.kind={head}: .*{match}"):
        outline(name, Model(head=Head(kind=head)), classes)
