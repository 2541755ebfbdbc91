"""What all tests share: the device, and one thread."""

import os

import pytest
import torch

collect_ignore = ["standin.py"]  # importing it makes the device
NAME = os.environ.get("GRADSPACE_TEST_DEVICE", "cpu")
if NAME == "standin":
    import standin  # before the first backward pass, which makes a thread for each device


def pytest_collection_modifyitems(items):
    for item in items if NAME == "standin" else ():
        if any(word in item.nodeid for word in standin.LEFT_OUT):
            item.add_marker(pytest.mark.skip(reason="needs what the stand-in for a GPU lacks: standin.LEFT_OUT"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def device():
    """The device of the environment variable GRADSPACE_TEST_DEVICE, by default the CPU; "standin" is `standin`'s."""
    if NAME.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip(f"GRADSPACE_TEST_DEVICE={NAME}, and no CUDA device is there")
    return torch.empty(0, device=NAME).device  # with its number, as tensors have it
