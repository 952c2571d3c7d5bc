"""Faster arithmetic on a CPU: the numbers stay those of the plain way."""

import copy

import pytest
import torch
from torch import nn

from raysweep.nets import cpu as kernels

CPU = torch.device("cpu")
AS_PRODUCTS = [
    # size of the map, kernel, stride, padding
    (1, 1, 1, 0),
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
    (2, 1, 1, 0),
    (8, 1, 1, 0),
    (15, 1, 2, 0),
    (1, 1, 1, 1),
    (1, 2, 3, 4),
    (4, 2, 2, 0),
    (5, 5, 1, 1),
]
AS_BEFORE = [(4, 3, 1, 1), (8, 3, 2, 1), (9, 1, 1, 0), (2, 1, 1, 1)]


def both_ways(make, maps, monkeypatch, *, linear):
    """Outputs and gradients of a convolution and of the same one arranged; `linear` says how it must compute."""
    plain, arranged = make(), make()
    arranged.load_state_dict(plain.state_dict())
    kernels.arrange(arranged, CPU)
    called = []
    original = nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda *args: called.append(1) or original(*args))
    results = []
    for module in (plain, arranged):
        inputs = maps.clone().requires_grad_()
        outputs = module(inputs)
        (outputs * torch.arange(outputs.numel(), dtype=outputs.dtype).view(outputs.shape).sin()).sum().backward()
        results.append((outputs, inputs.grad, *(parameter.grad for parameter in module.parameters())))
    assert bool(called) == linear
    return results


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), AS_PRODUCTS)
@pytest.mark.parametrize("bias", [False, True])
def test_small_maps_and_single_points_as_matrix_products(size, kernel, stride, padding, bias, monkeypatch):
    torch.manual_seed(0)
    maps = torch.randn(16, 3, size, size, dtype=torch.float64)
    plain, arranged = both_ways(
        lambda: nn.Conv2d(3, 5, kernel, stride, padding, bias=bias, dtype=torch.float64), maps, monkeypatch, linear=True
    )
    for a, b in zip(plain, arranged, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_maps_that_are_not_square(monkeypatch):
    maps = torch.randn(16, 3, 1, 2, dtype=torch.float64)
    plain, arranged = both_ways(
        lambda: nn.Conv2d(3, 5, (1, 3), padding=(0, 1), dtype=torch.float64), maps, monkeypatch, linear=True
    )
    torch.testing.assert_close(plain, arranged, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), AS_BEFORE)
def test_larger_maps_as_before(size, kernel, stride, padding, monkeypatch):
    maps = torch.randn(16, 4, size, size)
    plain, arranged = both_ways(lambda: nn.Conv2d(4, 6, kernel, stride, padding), maps, monkeypatch, linear=False)
    torch.testing.assert_close(plain, arranged)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1, "groups": 2},
        {"padding": 2, "dilation": 2},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": "same"},
    ],
)
def test_other_kinds_of_convolution_as_before(options, monkeypatch):
    plain, arranged = both_ways(
        lambda: nn.Conv2d(4, 6, 3, **options), torch.randn(16, 4, 2, 2), monkeypatch, linear=False
    )
    torch.testing.assert_close(plain, arranged)


@pytest.mark.parametrize("of", ["maps", "kernel"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_one_gradient_alone(of, kernel):
    plain = nn.Conv2d(3, 5, kernel, padding=kernel // 2)
    arranged = kernels.arrange(copy.deepcopy(plain), CPU)
    found = []
    for module in (plain, arranged):
        maps = torch.linspace(-1, 1, 4 * 3 * 2 * 2).view(4, 3, 2, 2).requires_grad_(of == "maps")
        module.weight.requires_grad_(of == "kernel")
        module(maps).square().sum().backward()
        found.append(maps.grad if of == "maps" else module.weight.grad)
        assert (module.weight if of == "maps" else maps).grad is None
    torch.testing.assert_close(*found)


def test_autocast_as_before(monkeypatch):
    with torch.autocast("cpu", torch.bfloat16):
        plain, arranged = both_ways(
            lambda: nn.Conv2d(4, 6, 3, padding=1), torch.randn(16, 4, 2, 2), monkeypatch, linear=False
        )
    torch.testing.assert_close(plain, arranged)


def test_a_kernel_larger_than_the_map_is_refused_as_before():
    with pytest.raises(RuntimeError, match=r"[Kk]ernel size"):
        kernels.arrange(nn.Conv2d(4, 6, 3), CPU)(torch.randn(16, 4, 2, 2))


def test_outputs_are_channels_last():
    convolution = kernels.arrange(nn.Conv2d(4, 6, 3, padding=1), CPU)
    maps = torch.randn(16, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    assert convolution(maps).is_contiguous(memory_format=torch.channels_last)


def test_the_names_of_an_arranged_network_stay():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    names = set(network.state_dict())
    assert set(kernels.arrange(network, CPU).state_dict()) == names


def test_matrix_products_stay_exact():
    kernels.use_wide_matmul()
    left, right = torch.randn(300, 500), torch.randn(500, 200)
    torch.testing.assert_close(left @ right, (left.double() @ right.double()).float(), rtol=0, atol=2e-4)
    assert kernels._is_exact()


def test_the_probe_sees_numbers_rounded():
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernels._is_exact()


def test_a_processor_that_would_round_is_left_alone(monkeypatch):
    before = torch.backends.mkldnn.matmul.fp32_precision
    monkeypatch.setattr(kernels, "_is_exact", lambda: False)
    kernels.use_wide_matmul.__wrapped__()
    assert torch.backends.mkldnn.matmul.fp32_precision == before
