"""Traced networks: nothing happens in place, dropout follows the mode, and parts compute what the whole does."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raysweep.nets import backbones
from raysweep.nets.layers import set_modes
from raysweep.nets.scratch import SmallCnn
from raysweep.nets.tracing import PROBES, outputs, seconds_per_node, traced
from raysweep.recipe import Model
from tests.devices import DEVICES
from tests.nets.small_networks import InPlace, Net, Untraceable, cut_at, images, lively
from tests.nets.small_transformers import SWIN


def iadd(net, x):
    x += net.branch(x)
    return x


def imul(net, x):
    x *= net.branch(x)
    return x


def isub(net, x):
    x -= net.branch(x)
    return x


CHANGES = {
    "+=": iadd,
    "*=": imul,
    "-=": isub,
    "add_": lambda net, x: x.add_(net.branch(x)),
    "relu_": lambda net, x: torch.relu_(net.branch(x) + torch.relu_(x)),
    "functional relu_": lambda net, x: net.branch(x) + F.relu_(x),
    "relu by position": lambda net, x: net.branch(x) + F.relu(x, True),
    "dropout": lambda net, x: net.branch(x) + net.dropout(x),
    "functional dropout": lambda net, x: net.branch(x) + F.dropout(x, 0.5, net.training, inplace=True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_in_place_operations_leave_the_store_alone(change):
    network = InPlace(change).eval()
    x = images(8)
    with torch.no_grad():
        expected = network(x)
        cut, _ = cut_at(network, ("branch", "fc"), ["fc"], size=8)
        stored = cut.prefix(x)
    before = [value.clone() for value in stored]
    cut.suffix.train()(*stored)
    torch.testing.assert_close(stored, tuple(before), rtol=0, atol=0)
    torch.testing.assert_close(cut.suffix.eval()(*stored), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.Hardswish(inplace=True)])
def test_in_place_activations_do_what_they_did(activation):
    network = Net(activation, 2 * 8 * 8)
    x = images(8)
    expected = network(x)
    cut, _ = cut_at(network, 1, ["fc"], size=8)
    torch.testing.assert_close(cut.suffix(*cut.prefix(x)), expected, rtol=1e-5, atol=1e-5)


def statement(net, x):
    x.add_(1.0)
    return net.branch(x)


def statement_of_module(net, x):
    net.relu(x)
    return net.branch(x)


NEEDED = {
    "method": statement,
    "module": statement_of_module,
    "of a part": lambda net, x: (x[:, 0].mul_(2.0), net.branch(x))[1],
    "seen later": lambda net, x: x.add_(1.0) + net.branch(x),
    "module, seen later": lambda net, x: net.relu(x) + net.branch(x),
    "without counterpart": lambda net, x: net.branch(x) + x.fill_(2.0),
}


@pytest.mark.parametrize("change", NEEDED.values(), ids=NEEDED)
def test_what_is_needed_in_place_is_not_lost(change):
    """Such a network runs whole, every time it is cut."""
    network = InPlace(change).eval()
    network.relu = nn.ReLU(inplace=True)
    x = images(8)
    with torch.no_grad():
        expected = network(x)
        for _ in range(2):
            cut, _ = cut_at(network, ("branch", "fc"), ["fc"], size=8)
            assert cut.whole
            torch.testing.assert_close(cut.suffix(x), expected, rtol=0, atol=0)
    assert not network.training


class FunctionalDropout(Net):
    def forward(self, x):
        return self.fc(F.dropout(self.conv(x), p=0.5, training=self.training).flatten(1))


@pytest.mark.parametrize(
    "network", [FunctionalDropout(None, 128), Net(nn.Dropout(0.5), 128)], ids=["functional", "module"]
)
def test_dropout_before_the_head_belongs_to_the_suffix(network):
    network.eval()
    x = images(8)
    expected = network(x)
    cut, _ = cut_at(network, 1, ["fc"], size=8)
    stored = cut.prefix.train()(x)
    assert torch.equal(stored[0], cut.prefix.train()(x)[0])
    set_modes(cut.suffix, "frozen")
    assert not torch.allclose(cut.suffix(*stored), cut.suffix(*stored))
    torch.testing.assert_close(cut.suffix.eval()(*stored), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [SmallCnn, Untraceable])
def test_cutting_keeps_the_mode_of_the_network(kind):
    network = kind(4).eval()
    cut_at(network, 1, ["classifier"])
    assert not any(module.training for module in network.modules())


# ---- parts and times ----


def test_outputs_are_the_values_of_the_named_nodes():
    network = lively(SmallCnn(4))
    x = images()
    shallow, deep = (cut_at(network, at, ["classifier"])[0] for at in (1, 3))
    part = outputs(network, (*shallow.frontier, *deep.frontier)).eval()
    with torch.no_grad():
        expected = (*shallow.prefix.eval()(x), *deep.prefix.eval()(x))
        torch.testing.assert_close(part(x), expected, rtol=1e-5, atol=1e-5)
    assert "classifier" not in {node.name for node in part.graph.nodes}


def test_every_node_takes_its_time(monkeypatch):
    """On the meta device too, of whose tensors there is nothing but the shapes; the clock is asked about each node."""
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    network = backbones.outline("small_cnn", Model(weights="none"), 4).network
    seconds = seconds_per_node(network, 16, batch=2)
    assert set(seconds) == {node.name for node in traced(network, 16)[0].graph.nodes}
    assert set(seconds.values()) == {0.5}
    assert {value.device.type for value in network.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("device", DEVICES)
def test_seconds_on_a_device(device):
    network = backbones.outline("small_cnn", Model(weights="none"), 4).network
    seconds = seconds_per_node(network, 16, 2, torch.device(device))
    assert all(value > 0 for value in seconds.values())


def test_seconds_of_a_network_with_a_tensor_of_five_axes():
    """Which `nn.Module.to` refuses to put channels last."""
    network = backbones.outline(SWIN, Model(weights="none"), 4).network
    seconds = seconds_per_node(network, 32, batch=2)
    assert set(seconds) == {node.name for node in traced(network, 32)[0].graph.nodes}


def test_shapes_are_read_at_both_probes():
    graph, values = traced(SmallCnn(4), 16)
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    assert [tuple(each[output.name].shape) for each in values] == [(probe, 4) for probe in PROBES]
