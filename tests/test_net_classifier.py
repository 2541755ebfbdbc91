"""The skorch side of the estimators: everything that a skorch net takes and does still works."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from skorch.callbacks import Callback
from skorch.dataset import Dataset, ValidSplit
from torch import nn

from sklearn_gradspace import GradientKernelClassifier
from sklearn_gradspace._net_classifier import NetClassifier
from sklearn_gradspace.modules import MLP

X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
y = (X[:, 0] > 0).astype(np.int64)


def make(**options):
    return NetClassifier(MLP, random_state=0, **({"max_epochs": 20} | options))


@pytest.mark.parametrize(
    "data",
    [
        X,
        X.astype(np.float64),
        torch.from_numpy(X),
        pd.DataFrame(X),
        sparse.csr_array(X),
        sparse.dok_array(X),
        X.tolist(),
    ],
    ids=lambda data: type(data).__name__,
)
@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_kinds_of_data(data):
    assert make().fit(data, y).score(data, y) > 0.9


def test_labels_as_tensor_and_as_column():
    assert make().fit(torch.from_numpy(X), torch.from_numpy(y)).score(X, y) > 0.9
    with pytest.warns(UserWarning, match="column-vector"):
        make(max_epochs=1).fit(X, y[:, None])


def test_a_skorch_dataset():
    net = make(module__n_features=6, module__n_outputs=2).fit(Dataset(X, y), None)
    assert net.score(X, y) > 0.9
    np.testing.assert_array_equal(net.classes_, [0, 1])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_fit_where_gradients_are_switched_off(mode):
    with mode():
        net = make(max_epochs=2).fit(X, y)
    np.testing.assert_array_equal(net.predict_proba(X), make(max_epochs=2).fit(X, y).predict_proba(X))
    assert not next(net.module_.parameters()).is_inference()


class Conv(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3, 2))


@pytest.mark.parametrize("dataset", [False, True])
def test_images_as_lists_and_after_a_dataset(dataset):
    images = np.random.default_rng(0).normal(size=(12, 2, 3, 3)).astype(np.float32)
    net = NetClassifier(Conv, max_epochs=1, random_state=0)
    net.fit(*((Dataset(images, y[:12]), None) if dataset else (images, y[:12])))
    np.testing.assert_array_equal(net.predict_proba(images.tolist()), net.predict_proba(images))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 2)

    def forward(self, left, right):
        return self.linear(torch.cat([left, right], 1))


def test_a_dictionary_for_a_module_of_two_inputs():
    data = {"left": X[:, :2], "right": X[:, 2:]}
    net = NetClassifier(TwoInputs, max_epochs=60, random_state=0).fit(data, y)
    assert (net.predict(data) == y).mean() > 0.9


class Count(Callback):
    def __init__(self, step=1):
        self.step = step

    def initialize(self):
        self.seen = 0
        return self

    def on_epoch_end(self, net, **kwargs):
        self.seen += self.step


class Interrupt(Callback):
    """Interrupts training as ctrl-c does, in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_batch_end(self, net, training=False, **kwargs):
        if len(net.history) == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("epoch", [1, 3])
@pytest.mark.parametrize("options", [{}, {"train_split": ValidSplit(5)}], ids=["", "validated"])
def test_training_that_is_interrupted_stands_as_it_is(epoch, options):
    net = make(callbacks=[("interrupt", Interrupt(epoch))], max_epochs=5, **options).fit(X, y)
    assert len(net.history) == epoch and "train_loss" not in net.history[-1]
    assert net.predict(X).shape == (40,)
    assert len(net.set_params(callbacks__interrupt__epoch=0).partial_fit(X, y).history) == epoch + 5


def test_callbacks_and_their_parameters_wait_for_fit():
    net = make(callbacks=[("count", Count())], max_epochs=3)
    net.set_params(callbacks__count__step=5)
    assert not hasattr(net, "callbacks_") and clone(net).get_params()["callbacks__count__step"] == 5
    net.fit(X, y)
    assert dict(net.callbacks_)["count"].seen == 15
    with pytest.raises(ValueError, match="callback missing which does not exist"):
        make().set_params(callbacks__missing__step=1).fit(X, y)


def test_an_unknown_parameter_is_refused():
    with pytest.raises(ValueError, match=r"no parameter .optimiser__momentum.; did you mean .optimizer."):
        make(optimiser__momentum=0.9).fit(X, y)
    with pytest.raises(ValueError, match="Invalid parameter"):
        make().set_params(optimiser=1)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9, "lr": 0.05},
        {"criterion__label_smoothing": 0.1},
        {"module__hidden_layer_sizes": (4, 4)},
        {"batch_size": -1, "max_epochs": 100},
        {"iterator_train__drop_last": True},
        {"iterator_train__shuffle": False},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_skorch(options):
    assert make(**options).fit(X, y).score(X, y) > 0.9


def test_parameters_are_those_of_the_constructor_alone():
    net = make(module__hidden_layer_sizes=(4,))
    before = set(net.get_params(deep=False))
    assert not any(name.startswith("_") or name.endswith("_") for name in before)
    assert set(net.fit(X, y).get_params(deep=False)) == before
    assert {"module", "lr", "random_state", "class_weight", "module__hidden_layer_sizes"} <= before


def test_fit_parameters_reach_the_module():
    class Scaled(MLP):
        def forward(self, features, scale=None):
            assert scale is not None or not self.training
            return super().forward(features)

    net = NetClassifier(Scaled, max_epochs=1).fit(X, y, scale=2.0)
    assert net.predict(X).shape == (40,)


class Failing(MLP):
    def forward(self, features, scale=1.0):
        self.calls = getattr(self, "calls", 0) + 1
        outputs = super().forward(features)
        if scale == 2:
            raise RuntimeError("two is too much")
        return self.layers[-1](outputs)


@pytest.mark.parametrize(
    "scale, told",
    [
        (1.0, r"its layer 'layers.3', Linear\(.*\), fails for an input of shape \(32, 2\): mat1 and mat2"),
        (2.0, r"its Failing fails for an input of shape \(32, 6\): two is too much"),
    ],
)
def test_the_layer_that_fails_is_named_without_another_pass(scale, told):
    net = NetClassifier(Failing, max_epochs=1)
    with pytest.raises(ValueError, match=told):
        net.fit(X, y, scale=scale)
    assert net.module_.calls == 1


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.head, self.gate = nn.Linear(6, 6), nn.Linear(6, 2), nn.Sigmoid()

    def forward(self, features):
        return self.head(10 * features * self.gate(self.linear(features)))


def test_a_sigmoid_in_front_of_logits():
    NetClassifier(Gated, max_epochs=1, random_state=0).fit(X, y)


def test_set_params_on_a_fitted_net_reinitializes_as_in_skorch():
    net = make(max_epochs=1).fit(X, y)
    net.set_params(lr=0.5)
    assert net.optimizer_.param_groups[0]["lr"] == 0.5
    net.set_params(module__hidden_layer_sizes=(3,))
    assert net.module_.layers[1].out_features == 3


def test_set_params_on_a_fitted_net_of_what_skorch_refuses():
    net = make(max_epochs=1).fit(X, y)
    before = net.predict_proba(X)
    net.set_params(optimizer=torch.optim.SGD, optimizer__momentum=0.5, lr=0.1)
    assert type(net.optimizer_) is torch.optim.SGD
    assert net.optimizer_.param_groups[0]["momentum"] == 0.5
    assert net.optimizer_.param_groups[0]["lr"] == 0.1
    net.set_params(optimizer__weight_decay=0.01)
    assert net.get_params()["optimizer__weight_decay"] == net.optimizer_.param_groups[0]["weight_decay"] == 0.01
    net.set_params(iterator_train__shuffle=False, iterator_valid__drop_last=False, dataset=net.dataset)
    np.testing.assert_array_equal(net.predict_proba(X), before)  # nothing of the module is made new
    assert len(net.partial_fit(X, y).history) == 2
    np.testing.assert_array_equal(net.fit(X, y).predict_proba(X), clone(net).fit(X, y).predict_proba(X))
    assert net.optimizer_.param_groups[0]["momentum"] == 0.5
    with pytest.raises(ValueError, match="iterator_trian__shuffle"):
        net.set_params(iterator_trian__shuffle=True)


class HiddenSigmoid(nn.Module):
    """A net whose last layer but not last step is a sigmoid."""

    def __init__(self, n_features, n_outputs):
        super().__init__()
        self.hidden, self.output = nn.Linear(n_features, 8), nn.Linear(8, n_outputs)
        self.activation = nn.Sigmoid()

    def forward(self, x):
        return self.output(self.activation(self.hidden(x)))


class CalledSigmoid(HiddenSigmoid):
    """A net whose last step is a sigmoid that is no layer."""

    def forward(self, x):
        return self.output(self.hidden(x).relu()).sigmoid()


@pytest.mark.filterwarnings("ignore:the base net's outputs, taken for")  # the net is not trained
def test_a_hidden_sigmoid_is_no_sigmoid_at_the_end():
    assert NetClassifier(HiddenSigmoid, random_state=0, lr=0.1).fit(X, y).score(X, y) > 0.9
    with pytest.raises(ValueError, match="module gives probabilities"):
        NetClassifier(nn.Sequential(HiddenSigmoid(6, 2), nn.Sigmoid())).fit(X, y)
    with pytest.raises(ValueError, match="module gives probabilities"):
        NetClassifier(CalledSigmoid).fit(X, y)
    net = HiddenSigmoid(6, 1)
    with torch.no_grad():
        net.output.weight.mul_(10)
    assert GradientKernelClassifier(net).fit(X, y).score(X, y) > 0.9


class Focal(nn.Module):
    def forward(self, logits, y):
        log_p = logits.log_softmax(1).gather(1, y[:, None])
        return -((1 - log_p.exp()) ** 2 * log_p).mean()


@pytest.mark.parametrize("criterion", [Focal, nn.MultiMarginLoss, nn.CrossEntropyLoss])
def test_probabilities_are_the_softmax_of_logits_whatever_the_loss(criterion):
    net = make(criterion=criterion).fit(X, y)
    logits = torch.as_tensor(net.forward(X))
    np.testing.assert_array_equal(net.predict_proba(X), logits.softmax(1).numpy())
    np.testing.assert_array_equal(net.set_params(predict_nonlinearity=None).predict_proba(X), logits.numpy())
    softmax = nn.Sequential(MLP(6, 2), nn.Softmax(1))
    proba = NetClassifier(softmax, criterion=nn.NLLLoss, random_state=0).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
    assert proba.max() > 0.8  # not the softmax of probabilities


def test_an_instance_is_copied():
    module = MLP(6, 2)
    before = [p.detach().clone() for p in module.parameters()]
    net = NetClassifier(module, random_state=0, max_epochs=20)
    first = net.fit(X, y).predict_proba(X)
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(module.parameters(), before))
    np.testing.assert_array_equal(net.fit(X, y).predict_proba(X), first)  # not from where the first fit ended
    start = NetClassifier(module, max_epochs=0).fit(X, y).module_
    assert all(torch.equal(p, q) for p, q in zip(start.parameters(), before))


def test_a_module_gets_the_sizes_that_it_asks_for():
    made = []

    def build(n_classes, width=3, *, n_features):
        made.append((n_classes, width, n_features))
        return nn.Sequential(nn.Flatten(), nn.Linear(n_features, n_classes))

    images = X.reshape(40, 2, 3)
    NetClassifier(build, max_epochs=1).fit(images, y)
    NetClassifier(build, max_epochs=1, module__width=5).fit(images, y)
    NetClassifier(lambda: nn.Linear(6, 2), max_epochs=1).fit(X, y)
    assert made == [(2, 3, 6), (2, 5, 6)]
    with pytest.raises(TypeError, match=r"'n_labels'.*names n_features, n_outputs, n_classes; give"):
        NetClassifier(lambda n_features, n_labels: None).fit(X, y)


def test_going_on_without_the_cuda_device(monkeypatch):
    """A fit on one leaves its random state as well, which training on the CPU has no use for."""
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *of: pytest.fail("the device's own state is overwritten"))
    one, other = (make(max_epochs=2, module__hidden_layer_sizes=(4,)).fit(X, y) for _ in range(2))
    other._rng_states.append(torch.zeros(16, dtype=torch.uint8))
    np.testing.assert_array_equal(one.partial_fit(X, y).predict_proba(X), other.partial_fit(X, y).predict_proba(X))
    assert len(other._rng_states) == 1


@pytest.mark.parametrize("as_instance", [False, True])
def test_the_criterion_is_where_the_data_are(as_instance):
    """With ``device=None`` that is where lazy features are computed; what the user passed stays where it is."""
    weight = torch.tensor([1.0, 2.0])
    criterion = nn.CrossEntropyLoss(weight)
    options = {"criterion": criterion} if as_instance else {"criterion__weight": weight}
    net = make(device=None, **options).fit(X, y)
    assert net.criterion_.weight.device.type == weight.device.type
    net._data_device = torch.device("meta")
    net.initialize_criterion()
    assert net.criterion_.weight.is_meta and not weight.is_meta and not criterion.weight.is_meta
