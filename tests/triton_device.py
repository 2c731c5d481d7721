"""Where Triton kernels run in tests: on the GPU if there is one, else on CPU tensors in its interpreter."""

import pytest
import torch


@pytest.fixture
def kernel_device():
    pytest.importorskip("triton", reason="Triton is not installed (it comes with CUDA builds of torch)")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
