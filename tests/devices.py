"""Helper: the devices that a test is tried on, a GPU where there is one."""

import pytest
import torch

needs_gpu = pytest.mark.skipif(torch.cuda.device_count() < 1, reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])]
