"""Memory is the same each time under one name, and nobody's twice at once."""

import pickle
from threading import Thread

import pytest
import torch

from sklearn_gradspace.gradients._scratch import Scratch

CPU = torch.device("cpu")


def address(tensor):
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool], ids=str)
def test_tensors_are_as_they_were_asked_for(shape, dtype):
    tensor = Scratch()("a", shape, dtype, CPU)
    assert tensor.shape == shape and tensor.dtype == dtype and tensor.is_contiguous()


def test_one_name_is_one_memory_that_grows():
    scratch = Scratch()
    first = scratch("a", (10,), torch.float32, CPU)
    assert address(scratch("a", (2, 5), torch.float32, CPU)) == address(first)
    assert scratch("a", (11,), torch.float32, CPU).numel() == 11
    larger = address(scratch("a", (11,), torch.float32, CPU))
    assert address(scratch("a", (3,), torch.float32, CPU)) == larger


def test_names_kinds_and_threads_have_their_own():
    scratch = Scratch()
    kept = [scratch("a", (9,), torch.float32, CPU), scratch("b", (9,), torch.float32, CPU)]
    kept.append(scratch("a", (9,), torch.float64, CPU))
    thread = Thread(target=lambda: kept.append(scratch("a", (9,), torch.float32, CPU)))
    thread.start()
    thread.join()
    assert len({address(tensor) for tensor in kept}) == 4


def test_what_is_lent_nobody_else_gets():
    scratch = Scratch()
    with scratch.lent("a", (9,), torch.float32, CPU) as first, scratch.lent("a", (9,), torch.float32, CPU) as second:
        assert len({address(tensor) for tensor in (first, second, scratch("a", (9,), torch.float32, CPU))}) == 3
    assert address(scratch("a", (9,), torch.float32, CPU)) == address(first)


def test_is_given_back_after_an_error():
    scratch = Scratch()
    with pytest.raises(KeyError), scratch.lent("a", (9,), torch.float32, CPU) as first:
        raise KeyError
    assert address(scratch("a", (9,), torch.float32, CPU)) == address(first)


def test_like_has_the_shape_and_is_contiguous():
    tensor = Scratch().like("a", torch.ones(4, 3).T)
    assert tensor.shape == (3, 4) and tensor.is_contiguous()


def test_is_pickled_empty():
    scratch = Scratch()
    scratch("a", (10_000,), torch.float32, CPU)
    assert len(pickle.dumps(scratch)) < 200
    assert isinstance(pickle.loads(pickle.dumps(scratch)), Scratch)
