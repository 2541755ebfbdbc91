"""Path values are products of weights that no rescaling changes, as many independent ones as there are dimensions."""

import copy
import math

import pytest
import torch
from asserts import assert_close, random_state_untouched, untouched
from pathspace.cases import BY_NAME, CASES
from pathspace.nets import mlp
from pathspace.twins import graph_of, twin
from torch import nn

from sklearn_gradspace.pathspace import basis_path_norm, path_values, rescale, scale_graph

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_case
def test_twins_have_the_same(case):
    net = case.net()
    with untouched(net), random_state_untouched():
        expected = path_values(net, graph_of(case))
    assert {name: value.shape for name, value in expected.items()} == {n: p.shape for n, p in net.named_parameters()}
    for name, values in path_values(twin(case), graph_of(case)).items():
        assert_close(values, expected[name])


@pytest.mark.parametrize("case", CASES[::4], ids=lambda case: case.name)
def test_twins_have_the_same_norm(case):
    net = case.net()
    with untouched(net), random_state_untouched():
        norm = basis_path_norm(net, graph_of(case))
    assert basis_path_norm(twin(case), graph_of(case)) == pytest.approx(norm, rel=1e-10)


def exponents(case):
    """Return the powers of the weights, along the columns, whose products the path values are, along the rows."""
    net, step, columns = case.net(), 1e-5, []

    def logs():
        return torch.cat([value.flatten() for value in path_values(net, graph_of(case)).values()]).abs().log()

    before = logs()
    for name in graph_of(case).edges:
        flat = net.get_parameter(name).detach().view(-1)
        for i in range(len(flat)):
            value = flat[i].item()
            flat[i] = value * math.exp(step)
            columns.append((logs() - before) / step)
            flat[i] = value
    powers = torch.stack(columns, 1)
    assert (powers - powers.round()).abs().max() < 1e-6
    return powers.round()


@pytest.mark.parametrize("name", ["mlp", "deep mlp", "max-pool", "residual", "batch norm", "sigmoid"])
def test_as_many_are_independent_as_there_are_dimensions(name):
    """Of the monomials' exponents all but H are independent, and each leads through its weight."""
    case = BY_NAME[name]
    powers = exponents(case)
    assert reference_rank(powers) == len(powers) - case.units
    assert (powers.diagonal() >= 0).all() and (powers.diagonal() > 0).sum() >= len(powers) - case.units


def reference_rank(matrix):
    return int(torch.linalg.matrix_rank(matrix, rtol=1e-9))


def test_of_one_hidden_layer():
    """Skeleton weights are the largest, and both norms of a unit scale alike: so the largest of its row and column."""
    net = BY_NAME["mlp without biases"].net()
    first, second = net[0].weight.detach(), net[2].weight.detach()
    into, onward = (torch.gather(w, 1, w.abs().argmax(1, keepdim=True))[:, 0] for w in (first, second.T))
    values = path_values(net)
    assert_close(values["0.weight"], first * onward[:, None], 1e-13)
    assert_close(values["2.weight"], into * second, 1e-13)
    total = (values["0.weight"] ** 2).sum() + (values["2.weight"] ** 2).sum() - ((into * onward) ** 2).sum()
    assert basis_path_norm(net) == pytest.approx(total.sqrt().item(), rel=1e-13)


def test_a_bias_is_read_from_a_constant():
    net = BY_NAME["mlp"].net()
    values, weight = path_values(net), net[0].weight.detach()
    assert_close(values["0.bias"] / net[0].bias.detach(), (values["0.weight"] / weight)[:, 0], 1e-12)
    assert_close(values["2.bias"], net[2].bias.detach(), 1e-15)


def test_what_does_not_scale_is_its_own_value():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    for name, values in path_values(net).items():
        assert torch.equal(values, net.get_parameter(name))
    norm = torch.cat([p.flatten() for p in net.parameters()]).norm()
    assert basis_path_norm(net) == pytest.approx(norm.item(), rel=1e-14)


@pytest.mark.parametrize("name", ["mlp", "two convolutions", "residual, two blocks", "batch norm behind leaky relu"])
def test_a_changed_function_has_other_values(name):
    case = BY_NAME[name]
    expected = path_values(case.net(), graph_of(case))
    for parameter_name in expected:
        net = case.net()
        net.get_parameter(parameter_name).data.view(-1)[-1] *= 1.01
        values = path_values(net, graph_of(case))
        assert any(((values[n] / expected[n]).abs().log().abs() > 1e-3).any() for n in expected)


def test_dead_units_and_zeros():
    net = mlp(3, 4, 4, 2).double()
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = 0, 0
        net[4].weight[:, 2] = 0
    values = path_values(net)
    assert all(value.isfinite().all() for value in values.values())
    assert not values["0.weight"][1].any() and not values["4.weight"][:, 2].any()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    assert not any(value.any() for value in path_values(net).values()) and basis_path_norm(net) == 0


@pytest.mark.parametrize("function", [path_values, basis_path_norm])
def test_a_graph_of_another_module_is_refused(function):
    with pytest.raises(ValueError, match=r"graph.*module"):
        function(mlp(3, 4, 2), scale_graph(mlp(3, 5, 2)))


def test_single_precision_and_device(device):
    case = BY_NAME["deep mlp"]
    expected = path_values(case.net())
    for name, values in path_values(copy.deepcopy(case.net(torch.float32)).to(device)).items():
        assert_close(values, expected[name], 1e-5)


def test_weights_of_one_size():
    """Which of them are in the skeleton is not a matter of rounding."""
    net = mlp(4, 4, 4, 3).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randint(0, 2, parameter.shape, generator=generator) - 0.5)
    factors = 1 + torch.rand(8, generator=generator, dtype=torch.float64)
    expected, found = path_values(net), path_values(rescale(net, factors))
    for name, values in expected.items():
        assert_close(found[name], values, 1e-12)
