"""In the loops that people write: schedulers, closures, clipping, mixed precision, compiled and parallel modules."""

import copy

import pytest
import torch
from asserts import assert_close
from optim.training import INNER, METHODS, SGD, Adam, data, loss_of, small, train
from pathspace.cases import BY_NAME
from pathspace.nets import mlp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler

from sklearn_gradspace.optim import ECOptimizer

every_method = pytest.mark.parametrize("method", METHODS)
SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=15),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
}


def build(net, method, inner="momentum", **options):
    kind, parameters = INNER[inner]
    return ECOptimizer(net, kind, method=method, **{"init": "keep", "chart_every": 7, **parameters, **options})


def assert_same(net, other):
    for mine, others in zip(net.parameters(), other.parameters()):
        assert torch.equal(mine, others)


def changed(net, case):
    """Return whether training has changed the weights."""
    original = case.net(next(net.parameters()).dtype)
    return any((a - b).abs().max() > 1e-4 for a, b in zip(net.parameters(), original.parameters()))


@pytest.mark.parametrize("name", SCHEDULERS)
@every_method
def test_schedulers(method, name):
    """As if each rate, and each momentum that the scheduler cycles, were set by hand."""
    case, net, X, y = small("bottleneck")
    other, optimizer = case.net(), build(net, method)
    scheduler, by_hand = SCHEDULERS[name](optimizer), build(other, method)
    rates = set()
    for _ in range(10):
        by_hand.param_groups[0].update({key: optimizer.param_groups[0][key] for key in ("lr", "momentum")})
        train(net, optimizer, X, y, 1, scheduler.step)
        train(other, by_hand, X, y, 1)
        rates.add(optimizer.param_groups[0]["lr"])
    assert_same(net, other)
    assert len(rates) > 2 and changed(net, case)


@every_method
def test_a_rate_is_halved_on_a_plateau(method):
    _, net, X, y = small()
    optimizer = build(net, method)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for _ in range(3):
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] == INNER["momentum"][1]["lr"] / 4
    before = copy.deepcopy(net)
    train(net, optimizer, X, y, 1)
    assert not torch.equal(net[0].weight, before[0].weight)


@every_method
def test_schedulers_want_a_step_first(method):
    """torch warns where the scheduler's step comes first, and only there."""
    _, net, X, y = small()
    optimizer = build(net, method)
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()
    train(net, optimizer, X, y, 1, scheduler.step)


@every_method
def test_a_closure_is_called_once(method):
    case, net, X, y = small()
    other, calls = case.net(), []
    optimizer = build(net, method)

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = loss_of(net, X, y)
        loss.backward()
        return loss

    for step in range(5):
        before = loss_of(net, X, y).item()
        assert optimizer.step(closure).item() == before
        assert calls == [True] * (step + 1)
    train(other, build(other, method), X, y, 5)
    assert_same(net, other)


@every_method
def test_groups_of_one_rate_are_one_group(method):
    case, net, X, y = small("residual, two blocks")
    other = case.net()
    parameters = list(net.parameters())
    groups = [{"params": parameters[::2]}, {"params": parameters[1::2], "lr": 0.02}]
    train(net, build(net, method, params=groups), X, y, 15)
    train(other, build(other, method), X, y, 15)
    for mine, others in zip(net.parameters(), other.parameters()):
        assert_close(mine, others, 1e-13)


@every_method
def test_a_group_without_a_rate_does_not_learn(method):
    """What the last layer computes from the units in front of it stays the same, up to their scales."""
    case, net, X, y = small("bottleneck")
    groups = [{"params": net[:6].parameters()}, {"params": net[6].parameters(), "lr": 0.0}]
    train(net, build(net, method, params=groups, balance_every=2), X, y, 20)
    last, original = net[6], case.net()[6]
    ratio = last.weight / original.weight
    if method == "balanced":
        assert_close(ratio, ratio[:1].expand_as(ratio), 1e-11)
    assert torch.equal(last.bias, original.bias) and changed(net[:6], case)


def test_named_parameters_and_added_groups():
    net = mlp(4, 5, 5, 3).double()
    optimizer = ECOptimizer(net, SGD, params=net.named_parameters(), lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in net.named_parameters()]
    extra = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer.add_param_group({"params": [("extra", extra)], "lr": 0.5})
    X, y = data(BY_NAME["mlp"])
    optimizer.zero_grad()
    (loss_of(net, X, y) + extra.square().sum() / 2).backward()
    optimizer.step()
    assert_close(extra, torch.full((3,), 0.5).double(), 1e-15)


@every_method
def test_clipping_is_what_changes_the_gradients(method):
    case, net, X, y = small()
    other = case.net()
    optimizer, by_hand = build(net, method), build(other, method)
    for _ in range(6):
        norms = []
        for model, own in ((net, optimizer), (other, by_hand)):
            own.zero_grad()
            loss_of(model, X, y).backward()
            norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        for parameter in other.parameters():
            parameter.grad *= 0.1 / (norms[1] + 1e-6) if norms[1] > 0.1 else 1
        optimizer.step()
        by_hand.step()
    for mine, others in zip(net.parameters(), other.parameters()):
        assert_close(mine, others, 1e-12)
    assert changed(net, case)


@every_method
def test_gradients_are_as_they_were_behind_a_step(method):
    """But for the first, whose gradients are then those of the canonical twin."""
    _, net, X, y = small()
    optimizer = build(net, method, chart_every=1, balance_every=1)
    train(net, optimizer, X, y, 3)
    optimizer.zero_grad()
    loss_of(net, X, y).backward()
    before = [p.grad.clone() for p in net.parameters()]
    optimizer.step()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), before))


@every_method
def test_accumulated_gradients(method):
    case, net, X, y = small()
    other = case.net()
    optimizer = build(net, method)
    for _ in range(5):
        optimizer.zero_grad()
        for part, labels in zip(X.chunk(4), y.chunk(4)):
            (loss_of(net, part, labels) / 4).backward()
        optimizer.step()
    train(other, build(other, method), X, y, 5)
    for mine, others in zip(net.parameters(), other.parameters()):
        assert_close(mine, others, 1e-12)


@every_method
def test_grad_scaler(method, device):
    """A scale of a power of two changes nothing; where it is too large the step is left out and the scale halved."""
    case = BY_NAME["bottleneck"]
    X, y = (part.to(device) for part in data(case, dtype=torch.float32))
    net, other = (case.net(torch.float32).to(device) for _ in range(2))
    optimizer, plain = build(net, method), build(other, method)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
    for step in range(8):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, X, y)).backward()
        if step % 2:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        train(other, plain, X, y, 1)
    assert_same(net, other)
    before = copy.deepcopy(net.state_dict())
    optimizer.zero_grad()
    scaler.scale(loss_of(net, X, y) * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@every_method
@pytest.mark.parametrize("inner", INNER)
def test_autocast(inner, method, device):
    case = BY_NAME["average-pool"]
    X, y = (part.to(device) for part in data(case, dtype=torch.float32))
    net = case.net(torch.float32).to(device)
    optimizer, losses = build(net, method, inner), []
    for _ in range(40):
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(net, X, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in net.parameters())


@every_method
@pytest.mark.parametrize("inner", INNER)
def test_weights_in_bfloat16(inner, method):
    case = BY_NAME["mlp"]
    net, (X, y) = case.net(torch.bfloat16), data(case, dtype=torch.bfloat16)
    start = loss_of(net, X, y).item()
    optimizer = build(net, method, inner, **({"lr": 0.05} if inner != "adam" else {}))
    train(net, optimizer, X, y, 40)
    assert loss_of(net, X, y).item() < start
    assert all(p.dtype == torch.bfloat16 and p.isfinite().all() for p in net.parameters())


@every_method
def test_a_compiled_module(method):
    case, net, X, y = small("residual, two blocks")
    other = case.net()
    compiled = torch.compile(net, backend="eager")
    train(compiled, build(compiled, method), X, y, 5)
    train(other, build(other, method), X, y, 5)
    for mine, others in zip(net.parameters(), other.parameters()):
        assert_close(mine, others, 1e-12)


@every_method
def test_distributed_data_parallel(method):
    """A single process, so that the averaged gradients are its own."""
    case, net, X, y = small("bottleneck")
    other = case.net()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(net)
        train(parallel, build(parallel, method), X, y, 5)
    finally:
        torch.distributed.destroy_process_group()
    train(other, build(other, method), X, y, 5)
    for mine, others in zip(net.parameters(), other.parameters()):
        assert_close(mine, others, 1e-13)


@every_method
def test_hooks_of_an_optimizer_are_called(method):
    _, net, X, y = small()
    optimizer, calls = build(net, method), []
    optimizer.register_step_pre_hook(lambda *args: calls.append("before"))
    optimizer.register_step_post_hook(lambda *args: calls.append("after"))
    train(net, optimizer, X, y, 2)
    assert calls == ["before", "after"] * 2
    assert isinstance(optimizer, torch.optim.Optimizer)


@every_method
def test_maximizing_goes_the_other_way(method):
    _, net, X, y = small()
    start = loss_of(net, X, y).item()
    train(net, ECOptimizer(net, Adam, method=method, init="keep", lr=0.01, maximize=True), X, y, 5)
    assert loss_of(net, X, y).item() > start


@every_method
def test_memory_of_the_weights_stays(method):
    """So that views of them, flat buffers and graphs that were captured go on to be valid."""
    _, net, X, y = small("average-pool")
    pointers = [p.data_ptr() for p in net.parameters()]
    train(net, build(net, method, chart_every=1), X, y, 5)
    assert pointers == [p.data_ptr() for p in net.parameters()]
    assert all(p.requires_grad and p.is_leaf for p in net.parameters())
