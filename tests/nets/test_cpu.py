"""Convolutions as matrix products: the numbers stay those of PyTorch's own."""

import copy

import pytest
import torch
from torch import nn

from raysweep.nets import cpu
from raysweep.nets.cpu import MatrixConv2d, compute_on, place_matrix_convolutions


def both_ways(plain, maps):
    """Outputs and gradients of a convolution and of the same one as matrix products."""
    results = []
    for module in (plain, MatrixConv2d(copy.deepcopy(plain))):
        inputs = maps.clone().requires_grad_()
        outputs = module(inputs)
        (outputs * torch.arange(outputs.numel(), dtype=outputs.dtype).view(outputs.shape).sin()).sum().backward()
        results.append((outputs, inputs.grad, *(parameter.grad for parameter in module.parameters())))
    return results


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        (1, 3, 1, 1),
        (2, 3, 1, 1),
        (2, 3, 2, 1),
        (1, 3, 2, 1),
        (2, 2, 2, 0),
        (3, 5, 1, 2),
        (4, 7, 2, 3),
        (3, 3, 1, 1),
        (4, 3, 2, 1),
        (5, 3, 2, 1),
        (4, 3, 1, 1),
        (8, 3, 2, 1),
        (1, 2, 3, 4),
        (4, 2, 2, 0),
        (5, 5, 1, 1),
        (1, 1, 1, 1),
        (8, 1, 1, 0),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_the_numbers_are_those_of_the_convolution(size, kernel, stride, padding, bias):
    torch.manual_seed(0)
    maps = torch.randn(16, 3, size, size, dtype=torch.float64)
    plain, products = both_ways(nn.Conv2d(3, 5, kernel, stride, padding, bias=bias, dtype=torch.float64), maps)
    torch.testing.assert_close(products, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("height", "width", "kernel", "padding"), [(1, 2, (1, 3), (0, 1)), (3, 2, (2, 3), (0, 2))])
def test_maps_that_are_not_square(height, width, kernel, padding):
    torch.manual_seed(0)
    maps = torch.randn(16, 3, height, width, dtype=torch.float64)
    plain, products = both_ways(nn.Conv2d(3, 5, kernel, padding=padding, dtype=torch.float64), maps)
    torch.testing.assert_close(products, plain, rtol=1e-12, atol=1e-12)


def test_single_precision():
    torch.manual_seed(0)
    plain, products = both_ways(nn.Conv2d(64, 32, 3, padding=1), torch.randn(16, 64, 2, 2))
    torch.testing.assert_close(products, plain, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("of", ["maps", "kernel"])
def test_one_gradient_alone(of):
    plain = nn.Conv2d(3, 5, 3, padding=1, dtype=torch.float64)
    found = []
    for module in (plain, MatrixConv2d(copy.deepcopy(plain))):
        maps = torch.linspace(-1, 1, 4 * 3 * 2 * 2, dtype=torch.float64).view(4, 3, 2, 2).requires_grad_(of == "maps")
        module.weight.requires_grad_(of == "kernel")
        module(maps).square().sum().backward()
        found.append(maps.grad if of == "maps" else module.weight.grad)
        assert (module.weight if of == "maps" else maps).grad is None
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_outputs_are_channels_last():
    convolution = MatrixConv2d(nn.Conv2d(4, 6, 3, padding=1))
    maps = torch.randn(16, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    assert convolution(maps).is_contiguous(memory_format=torch.channels_last)


# ---- placing them ----


def test_named_convolutions_are_placed_and_keep_their_parameters():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)))
    before = dict(network.named_parameters())
    place_matrix_convolutions(network, ["2.0"])
    assert [type(network[0]), type(network[2][0])] == [nn.Conv2d, MatrixConv2d]
    after = dict(network.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1, "groups": 2},
        {"padding": 2, "dilation": 2},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": "same"},
        {"padding": 1, "dtype": torch.float64},
        {"padding": 1, "dtype": torch.bfloat16},
    ],
)
def test_other_kinds_of_convolution_stay(options):
    network = nn.Sequential(nn.Conv2d(4, 6, **({"kernel_size": 3} | options)))
    convolution = network[0]
    place_matrix_convolutions(network, ["0"])
    assert network[0] is convolution


def test_what_is_no_convolution_stays():
    network = nn.Sequential(nn.Linear(4, 6))
    place_matrix_convolutions(network, ["0"])
    assert type(network[0]) is nn.Linear


# ---- products ----


@pytest.fixture
def precision_kept():
    """A test changes what a process multiplies by, and how many threads it has."""
    threads, before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("precision_kept")
def test_products_are_not_rounded():
    compute_on(2)
    assert torch.get_num_threads() == 2
    a, b = torch.randn(300, 500), torch.randn(500, 200)
    torch.testing.assert_close(a @ b, (a.double() @ b.double()).float(), rtol=0, atol=2e-4)
    assert cpu._is_exact()


def test_rounding_is_seen():
    with torch.autocast("cpu", torch.bfloat16):
        assert not cpu._is_exact()


@pytest.mark.usefixtures("precision_kept")
@pytest.mark.parametrize(("exact", "gpu"), [(False, False), (True, True)])
def test_a_processor_that_rounds_and_a_process_with_a_gpu_are_left_as_they_are(monkeypatch, exact, gpu):
    monkeypatch.setattr(cpu, "_is_exact", lambda: exact)
    compute_on(1, gpu=gpu)
    assert torch.get_float32_matmul_precision() == "highest"
