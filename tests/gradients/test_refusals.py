"""Nets, outputs and options whose gradients would mean nothing are refused, and it is said what is wrong."""

import re

import numpy as np
import pytest
import torch
from nets import Apply
from torch import nn

from sklearn_gradspace.gradients import GradientEngine

X = np.random.default_rng(0).normal(size=(5, 6))


def net_of(*layers):
    return nn.Sequential(nn.Linear(6, 6), *layers, nn.Linear(6, 3)).double()


OUTPUTS = {
    "three axes": (lambda x: x[:, None], r"shape \(n_samples, n_classes\).*\(4, 1, 3\)"),
    "no columns": (lambda x: x[:, :0], r"for 4 samples it returned \(4, 0\)"),
    "rows lost": (lambda x: x[:-1], r"for 4 samples it returned \(3, 3\)"),
    "tuple": (lambda x: (x, x), r"returned tuple\. Pass a function.*as `output`.*returned\[0\]"),
    "dict": (lambda x: {"logits": x}, r"returned dict\. Pass a function.*`net_output` of GradientFeaturizer"),
    "integers": (lambda x: x.long(), "must return real logits; it returned torch.int64"),
    "detached": (lambda x: x.detach(), "cannot be differentiated: its forward detaches it"),
}


@pytest.mark.parametrize("change, message", OUTPUTS.values(), ids=OUTPUTS)
def test_output_that_is_no_table_of_logits(change, message):
    with pytest.raises(ValueError, match=message):
        GradientEngine(nn.Sequential(net_of(), Apply(change)), X)
    with pytest.raises(ValueError, match=message):
        GradientEngine(net_of(), X, output=change)


PROBABILITIES = {
    "softmax": (nn.Softmax(1), r"its rows sum to one.*log|its rows sum to one.*leave the softmax out"),
    "sigmoid of one logit": (nn.Sequential(nn.Linear(3, 1).double(), nn.Sigmoid()), "it ends with a Sigmoid"),
    "call of sigmoid": (nn.Sequential(nn.Linear(3, 1).double(), Apply(lambda z: z.sigmoid()[:, 0])), "it ends with a"),
}


@pytest.mark.parametrize("last, message", PROBABILITIES.values(), ids=PROBABILITIES)
def test_probabilities_are_no_logits(last, message):
    net = nn.Sequential(net_of(), last)
    for scalar in ("cross_entropy", "log_probability"):
        with pytest.raises(ValueError, match=f"returns probabilities: {message}"):
            GradientEngine(net, X, scalar=scalar)
    assert GradientEngine(net, X, scalar="logit")(X).isfinite().all()


def patched(net):
    forward = net[0].forward
    net[0].forward = lambda x: 2 * forward(x)


def hooked(net):
    weight = net[0].weight
    net[1].register_forward_hook(lambda layer, args, output: output + weight.sum())


@pytest.mark.parametrize("change", [patched, hooked])
@pytest.mark.parametrize("dtype", [None, "float64"])
def test_functions_that_hold_on_to_the_weights_of_the_net(change, dtype):
    net = net_of()
    change(net)
    with pytest.raises(ValueError, match=r"holds on to 0.weight(, 0.bias)? from outside of its modules"):
        GradientEngine(net, X, dtype=dtype)


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.output = nn.Parameter(torch.randn(4, dtype=torch.complex64)), nn.Linear(6, 3)

    def forward(self, x):
        return self.output(torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=6))


def test_complex_parameters_have_no_real_gradients():
    for layers in ("weights", "all", "weight"):
        with pytest.raises(ValueError, match="weight: gradients are real, and these parameters are of"):
            GradientEngine(Spectral(), X.astype(np.float32), layers)
    assert GradientEngine(Spectral(), X.astype(np.float32), "output.*").n_params == 21


class Empty(nn.Linear):
    def __init__(self):
        super().__init__(6, 3)
        self.none = nn.Parameter(torch.empty(0))


class StaysInTraining(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(True)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of the scripted layer that is refused
def test_modules_that_have_no_gradients():
    with pytest.raises(ValueError, match=r"layers=\['none'\] have no entries"):
        GradientEngine(Empty(), X, "none")
    with pytest.raises(ValueError, match="layer '1' mixes the rows of a batch: StaysInTraining that stays in training"):
        GradientEngine(net_of(StaysInTraining(6)), X)
    child = nn.Sequential(nn.Linear(6, 6), torch.jit.script(nn.Linear(6, 3)))
    with pytest.raises(TypeError, match="layer '1' of net is a ScriptModule, whose layers cannot be looked into"):
        GradientEngine(child, X)


@pytest.mark.parametrize("options, message", [
    ({"scalar": "loss"}, r"scalar='loss' is none of 'cross_entropy', 'log_probability', 'logit', and no function"),
    ({"scalar": 3}, "scalar=3 is none of"),
    ({"dtype": "float16"}, r"dtype='float16' is none of None, 'float64', 'float32', 'bfloat16', 'tf32'"),
])  # fmt: skip
def test_options_that_are_not_known(options, message):
    with pytest.raises(ValueError, match=message):
        GradientEngine(net_of(), X, **options)


@pytest.mark.parametrize("scalar, message", [
    (lambda z: z.sum(), r"scalar must map outputs.*for outputs of shape \(4, 3\) it returned \(\)"),
    (lambda z: z[1:], r"scalar must map outputs.*it returned \(3, 3\)"),
    (lambda z: z[:, None], r"it returned \(4, 1, 3\)"),
    (lambda z: (z,), "it returned tuple"),
    (lambda z: z.detach(), "scalar returns what cannot be differentiated in the outputs: it detaches them"),
    (lambda z: z * z.sum(0), "scalar mixes the rows of a batch"),
    (lambda z: z / z.norm(dim=0), "scalar mixes the rows of a batch"),
    (lambda z: z - z.mean(0), "scalar mixes the rows of a batch"),
    (lambda z: z.softmax(0), "scalar mixes the rows of a batch"),
    (lambda z: z.flip(0), "scalar mixes the rows of a batch"),
    (lambda z: z @ z.T, "scalar"),
], ids=["sum", "rows lost", "three axes", "tuple", "detached", "times the sum", "by the norm", "from the mean",
        "softmax over rows", "flipped", "as many as rows"])  # fmt: skip
def test_functions_that_are_no_scalars_of_a_row(scalar, message):
    with pytest.raises(ValueError, match=message):
        GradientEngine(net_of(), X, scalar=scalar)


@pytest.mark.parametrize("shape", [(5, 7), (5,), (5, 2, 3)], ids=str)
def test_rows_of_a_shape_that_the_net_does_not_take(shape):
    message = rf"cannot compute samples of shape {re.escape(str(shape[1:]))} in torch.float64 on cpu: RuntimeError: "
    with pytest.raises(ValueError, match=message):
        GradientEngine(net_of(), np.ones(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_logits_name_the_rows(value):
    engine = GradientEngine(net_of(), X)
    bad = X.copy()
    bad[[1, 3], 2] = value
    for compute in (engine, engine.outputs):
        with pytest.raises(ValueError, match=r"rows \[1, 3\]"):
            compute(bad)


def test_not_finite_logits_in_the_sample():
    with pytest.raises(ValueError, match=r"rows \[0\]"):
        GradientEngine(net_of(), np.where(np.arange(5)[:, None] == 0, np.nan, X))


def test_net_that_mixes_rows():
    with pytest.raises(ValueError, match=r"net mixes the rows.*, first in its layer '1': the logits of a row differ"):
        GradientEngine(net_of(Apply(lambda x: x - x.mean(0))), X)
    with pytest.raises(ValueError, match=r"net mixes the rows of a batch, or is random: the logits of a row differ"):
        GradientEngine(net_of(), X, output=lambda x: x - x.mean(0))


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_batch_norm_without_running_statistics(kind):
    net = net_of(nn.Sequential(nn.ReLU(), kind(6, track_running_stats=False)))
    with pytest.raises(ValueError, match=rf"layer '1\.1' mixes.*{kind.__name__} without running statistics"):
        GradientEngine(net, X)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_net_that_is_random_in_evaluation_mode(p):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with pytest.raises(ValueError, match=r"random in evaluation mode|differ by"):
            GradientEngine(net_of(Apply(lambda x: nn.functional.dropout(x, p, training=True))), X)


def test_gradients_that_depend_on_the_other_rows():
    """An index's gradient is divided by how often it occurs, here more than once in a row that does not decide."""
    indices = np.arange(27).reshape(9, 3)
    indices[1] = 5
    net = nn.Sequential(nn.Embedding(27, 4, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(ValueError, match=r"0\.weight|layer '0'"):
        GradientEngine(net, indices, "all")


def test_net_without_parameters():
    with pytest.raises(ValueError, match="no parameters: Softmax has no gradient space"):
        GradientEngine(nn.Softmax(1), X)


def test_net_that_is_frozen():
    with pytest.raises(ValueError, match=r"all parameters of net are frozen.*requires_grad_\(\)"):
        GradientEngine(net_of().requires_grad_(False), X)


def test_pattern_that_matches_nothing():
    with pytest.raises(ValueError, match=r"no trainable parameter matches 'conv\*'.*0\.weight, 0\.bias"):
        GradientEngine(net_of(), X, layers="conv*")


@pytest.mark.parametrize("layers", ["weights", "all", "0.*"])
def test_refusal_leaves_the_net_as_it_was(layers):
    net = net_of(Apply(lambda x: x - x.mean(0)))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="mixes"):
        GradientEngine(net, X, layers=layers)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(not module._forward_hooks and module.training for module in net.modules())
