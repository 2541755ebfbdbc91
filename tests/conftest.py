"""What all tests share: the device, and one thread."""

import os

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def device():
    """The device of the environment variable GRADSPACE_TEST_DEVICE, by default the CPU."""
    name = os.environ.get("GRADSPACE_TEST_DEVICE", "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip(f"GRADSPACE_TEST_DEVICE={name}, and no CUDA device is there")
    return torch.device(name)
