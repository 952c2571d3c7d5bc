"""The arithmetic that networks compute in."""

import pytest
import torch
from torch import nn

from raysweep.nets.precision import InPrecision, gpu_settings
from raysweep.nets.scratch import SmallCnn
from tests.devices import DEVICES

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TOLERANCES = {"float32": 1e-5, "tf32": 2e-3, "bfloat16": 2e-2, "float16": 2e-3}
"""Of values of about one, and several layers."""


def flags():
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(),
    )


class Scores(nn.Module):
    """Maps and scores of a small network, as a prefix gives several tensors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = SmallCnn(4).eval()

    def forward(self, images):
        return self.network.stage1(images), self.network(images), torch.arange(len(images))


def test_the_settings_of_a_gpu_are_set_back():
    """Also after an error, and where one context is within another; they can be read without a GPU."""
    before = flags()
    for outer, inner in (("tf32", "float32"), ("float32", "tf32"), ("bfloat16", "tf32")):
        with pytest.raises(KeyError), gpu_settings(outer, GPU):
            assert flags()[:3] == (outer == "tf32", outer == "tf32", True)
            with gpu_settings(inner, GPU):
                assert flags()[:3] == (inner == "tf32", inner == "tf32", True)
            assert flags()[:3] == (outer == "tf32", outer == "tf32", True)
            raise KeyError
        assert flags() == before


def test_a_cpu_has_no_such_settings():
    before = flags()
    with gpu_settings("tf32", CPU):
        assert flags() == before


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", TOLERANCES)
@torch.no_grad()
def test_what_is_computed(device, precision):
    """Close to float32 on the CPU, and really in the precision that is asked for."""
    network, images = Scores().to(device), torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = InPrecision(network, precision)(images.to(device))
    expected = Scores()(images)
    assert [one.dtype for one in found] == [torch.float32, torch.float32, torch.int64]
    for some, other in zip(found, expected, strict=True):
        assert some.device.type == device
        torch.testing.assert_close(some.cpu(), other, rtol=TOLERANCES[precision], atol=TOLERANCES[precision])
    rounds = precision in ("bfloat16", "float16") or (precision == "tf32" and device == "cuda")
    same = InPrecision(Scores().to(device), "float32")(images.to(device))
    assert torch.equal(found[1], same[1]) == (not rounds)


def test_the_mode_reaches_the_network():
    wrapped = InPrecision(Scores(), "float32")
    wrapped.train()
    assert wrapped.network.network.training
    wrapped.eval()
    assert not wrapped.network.network.training
