"""Copies share a net's memory and leave it alone; pickles carry its values, ties and flags, and hash the same."""

import copy
import os
import pickle
import subprocess
import sys
from functools import cache

import joblib
import numpy as np
import pytest
import reference
import torch
from asserts import as_array, assert_close, random_state_untouched, untouched
from cases import BY_NAME, CASES
from torch import nn

from sklearn_gradspace.gradients import GradientEngine, packed, shared_copy
from sklearn_gradspace.gradients._forward import leaves

# torch does not pickle parametrized modules, see test_what_torch_cannot_pickle.
PICKLED = [case for case in CASES if case.name != "weight norm"]
every_pickled = pytest.mark.parametrize("case", PICKLED, ids=lambda case: case.name)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def all_tensors(net):
    return {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers(remove_duplicate=False))}


def unpickled(net):
    return pickle.loads(pickle.dumps(packed(net)))


def assert_same_net(net, other):
    """Assert equal names, values, precisions, flags, modes and ties."""
    mine, theirs = all_tensors(net), all_tensors(other)
    assert list(mine) == list(theirs)
    for name, tensor in mine.items():
        twin = theirs[name]
        assert type(twin) is type(tensor) and twin.dtype == tensor.dtype and twin.requires_grad == tensor.requires_grad
        assert torch.equal(twin, tensor) and twin.data_ptr() != tensor.data_ptr()
    ties = [[list(map(id, tensors.values())).index(id(t)) for t in tensors.values()] for tensors in (mine, theirs)]
    assert ties[0] == ties[1]
    assert [module.training for module in net.modules()] == [module.training for module in other.modules()]


@every_case
def test_shared_copy_is_the_same_memory_in_evaluation_mode(case, device):
    net = case.net().to(device)
    with untouched(net), random_state_untouched():
        twin = shared_copy(net)
    in_training = [module for module in twin.modules() if module.training]
    assert twin is not net and all(isinstance(of, nn.RNNBase) and of.weight_hh_l0.is_cuda for of in in_training)
    for name, tensor in all_tensors(net).items():
        other = all_tensors(twin)[name]
        shared = name in dict(net.named_parameters(remove_duplicate=False))  # a forward pass may write to buffers
        assert other is not tensor and (other.data_ptr() == tensor.data_ptr()) == shared
        assert other.requires_grad == tensor.requires_grad and other.stride() == tensor.stride()


def test_grads_flags_and_hooks_of_the_copy_are_its_own():
    net = BY_NAME["batch norm 1d"].net()
    twin = shared_copy(net)
    with untouched(net):
        twin(torch.ones(3, 6, dtype=torch.float64)).sum().backward()
        twin[0].register_forward_hook(lambda *args: None)
        twin.requires_grad_(False).train()
    assert all(parameter.grad is None for parameter in net.parameters())


@every_pickled
def test_pickle_is_the_same_net(case):
    net = case.net()
    with untouched(net), random_state_untouched():
        other = unpickled(net)
    assert_same_net(net, other)
    mine, theirs = (leaves(twin.eval()(torch.tensor(case.X))) for twin in (copy.deepcopy(net), other))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@every_pickled
def test_hash_survives_copy_and_pickle(case):
    net = case.net()
    expected = joblib.hash(packed(net))
    for other in (copy.deepcopy(net), unpickled(net), unpickled(unpickled(net))):
        assert joblib.hash(packed(other)) == expected
    with torch.no_grad():
        next(net.parameters()).add_(1)
    assert joblib.hash(packed(net)) != expected


@cache
def kept(case):
    """Return one net of the case, which stays: what is packed does not keep its net."""
    return case.net()


PROGRAM = """
import pickle, sys, joblib
from sklearn_gradspace.gradients import packed
nets = pickle.load(sys.stdin.buffer)
pickle.dump({name: joblib.hash(packed(net)) for name, net in nets.items()}, sys.stdout.buffer)
"""


@pytest.fixture(scope="module")
def hashes_in_another_process():
    nets = {case.name: packed(kept(case)) for case in PICKLED}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONHASHSEED": "7"}
    job = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=pickle.dumps(nets), capture_output=True, env=environment, check=True
    )
    return pickle.loads(job.stdout)


@every_pickled
def test_hash_is_the_same_in_another_process(case, hashes_in_another_process):
    assert hashes_in_another_process[case.name] == joblib.hash(packed(kept(case)))


def test_what_torch_cannot_pickle():
    net = BY_NAME["weight norm"].net()
    with pytest.raises(RuntimeError, match="parametrized modules is only supported through state_dict"):
        pickle.dumps(packed(net))


def test_hash_of_a_net_that_is_built_again():
    for name in ("mlp of two layers", "batch norm 2d", "tied weights", "lstm"):
        nets = [BY_NAME[name].net() for _ in range(2)]
        assert joblib.hash(packed(nets[0])) == joblib.hash(packed(nets[1]))


def test_hash_tells_nets_apart():
    hashes = {case.name: joblib.hash(packed(kept(case))) for case in PICKLED}
    assert len(set(hashes.values())) == len(PICKLED)
    net = BY_NAME["frozen"].net()
    before = joblib.hash(packed(net))
    net[0].weight.requires_grad_(True)
    assert joblib.hash(packed(net)) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_precisions_survive(dtype):
    net = BY_NAME["batch norm 2d"].net().to(dtype)
    net.register_buffer("scalar", torch.tensor(2.5, dtype=dtype))
    net.register_buffer("empty", torch.empty(0, 3, dtype=dtype))
    net.register_buffer("mask", torch.tensor([True, False]))
    assert_same_net(net[:0], unpickled(net[:0]))
    other = unpickled(net)
    for name, tensor in net.state_dict().items():
        assert other.state_dict()[name].dtype == tensor.dtype and torch.equal(other.state_dict()[name], tensor)


def test_buffers_over_the_same_memory_keep_their_values():
    net = nn.Linear(3, 3)
    net.register_buffer("first", torch.arange(9.0).view(3, 3))
    net.register_buffer("second", net.first.t())
    assert torch.equal(unpickled(net).second, net.second)


@pytest.mark.parametrize("name", ["mlp of two layers", "channels last", "batch norm 2d"])
@pytest.mark.parametrize("change", ["in place", "through .data", "by assignment", "by an optimiser", "by loading"])
def test_pickle_is_of_the_present_values(name, change):
    net = BY_NAME[name].net()
    pickle.dumps(packed(net))
    parameters = list(net.parameters())
    if change == "in place":
        with torch.no_grad():
            [parameter.add_(1) for parameter in parameters]
    elif change == "through .data":
        [parameter.data.add_(1) for parameter in parameters]
    elif change == "by assignment":
        for parameter in parameters:
            parameter.data = parameter.data + 1
    elif change == "by an optimiser":
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD(parameters, 1.0).step()
    else:
        net.load_state_dict({key: value + 1 for key, value in net.state_dict().items()})
    other = unpickled(net)
    for key, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_two_references_are_one_module():
    net = BY_NAME["mlp of two layers"].net()
    assert packed(net) is packed(net)
    first, second = pickle.loads(pickle.dumps([packed(net), packed(net)]))
    assert first is second


def test_unchanged_weights_are_packed_once():
    net = BY_NAME["mlp of two layers"].net()
    first, second = (packed(net).__reduce__()[1][1] for _ in range(2))
    assert all(mine is theirs for mine, theirs in zip(first, second, strict=True))


def test_weights_travel_as_arrays_that_joblib_maps(tmp_path):
    net = BY_NAME["mlp of two layers"].net()
    joblib.dump(packed(net), tmp_path / "net.joblib")
    assert_same_net(net, joblib.load(tmp_path / "net.joblib"))
    mapped = joblib.load(tmp_path / "net.joblib", mmap_mode="r")
    assert_same_net(net, mapped)


def test_what_is_packed_does_not_keep_its_net_alive():
    from sklearn_gradspace.gradients._sharing import _packed

    before = len(_packed)
    net = nn.Linear(2, 2)
    packed(net)
    assert len(_packed) == before + 1
    del net
    assert len(_packed) == before


SURVIVES = [
    "mlp of two layers", "conv2d twice", "layer norm", "tied weights", "lstm", "frozen", "transformer", "embedding",
    "one logit", "regression", "sum and product", "returns what is cut",
]  # fmt: skip


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("name", SURVIVES)
def test_engine_survives_pickling(name, dtype, device):
    case = BY_NAME[name]
    engine = case.engine(device, dtype=dtype)
    twin = pickle.loads(pickle.dumps(engine))
    for attribute in ("blocks", "rules", "n_labels", "scalar", "rounding_error", "feature_dtype"):
        assert getattr(twin, attribute) == getattr(engine, attribute)
    assert twin.memory(3) == engine.memory(3)
    np.testing.assert_array_equal(as_array(twin(case.X)), as_array(engine(case.X)), strict=True)


def test_weights_that_a_forward_pass_writes_to_are_copied(device):
    X = np.random.default_rng(0).integers(7, size=(5, 3))
    net = nn.Sequential(nn.Embedding(7, 4, max_norm=0.5), nn.Flatten(), nn.Linear(12, 3)).double()
    with untouched(net):
        gradients = GradientEngine(net, X, "all", device)(X)
    assert_close(gradients, reference.gradients(copy.deepcopy(net), X))


def test_engines_of_one_net_share_it_after_pickling():
    case = BY_NAME["mlp of two layers"]
    net = case.net()
    first, second = pickle.loads(pickle.dumps([GradientEngine(net, case.X), GradientEngine(net, case.X, "all")]))
    assert first.net is second.net


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_on_cuda_devices_have_a_backward_pass(kind, monkeypatch):
    """cuDNN has one in training mode alone; the function is that of evaluation mode nevertheless."""

    class Own(kind):
        pass

    options = {"num_layers": 2, "dropout": 0.5, "batch_first": True}
    net = nn.ModuleDict({"usual": kind(4, 5, **options), "own": Own(4, 5, **options), "rest": nn.Dropout()})
    assert not any(module.training for module in shared_copy(net).modules())
    monkeypatch.setattr(nn.Parameter, "is_cuda", True, raising=False)
    module = shared_copy(net)
    monkeypatch.undo()
    assert [name for name, of in module.items() if of.training] == ["usual"]
    x = torch.randn(3, 6, 4)
    assert torch.equal(module["usual"](x)[0], net.eval()["usual"](x)[0])
    assert net["usual"].dropout == module["own"].dropout == 0.5 and module["usual"].weight_hh_l0.grad is None
