"""Bad input: a clear error that names the argument, the layer or the rows, and says what to do."""

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from skorch import NeuralNetClassifier
from skorch.dataset import Dataset
from torch import nn

from sklearn_gradspace import GradientFeaturizer, GradientKernel, GradientKernelClassifier, GradNetClassifier
from sklearn_gradspace._net_classifier import NetClassifier
from sklearn_gradspace.gradients import Block, GradientArray
from sklearn_gradspace.gradients import _memory as memory
from sklearn_gradspace.modules import MLP

X = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
y = np.arange(12) % 3


class Returns(nn.Module):
    """A net that returns what a function makes of its logits."""

    def __init__(self, function):
        super().__init__()
        self.function, self.linear = function, nn.Linear(6, 3)

    def forward(self, x):
        return self.function(self.linear(x))


def frozen():
    return MLP(6, 3).requires_grad_(False)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Returns(lambda z: z[:, 0, None, None]), r"logits of shape \(n_samples, n_classes\).*returned \(4, 1, 1\)"),
        (Returns(lambda z: z[:, :0]), r"returned \(4, 0\)"),
        (Returns(lambda z: (z, z)), "returned tuple.*`net_output` of GradientFeaturizer"),
        (Returns(lambda z: z[:2]), r"for 4 samples it returned \(2, 3\)"),
        (Returns(lambda z: z / 0), r"NaN or infinity for rows \[0, 1, 2, 3\]"),
        (Returns(lambda z: z - z.mean(0)), "mixes the rows of a batch"),
        (Returns(lambda z: z + torch.rand(())), r"random|mixes"),
        (nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False)), "layer '1' mixes the rows"),
        (MLP(7, 3), r"cannot compute samples of shape \(6,\)"),
        (nn.Flatten(), "net has no parameters"),
        (nn.Sequential(MLP(6, 3), nn.Softmax(-1)), "net returns probabilities"),
        (nn.Sequential(nn.LazyLinear(3)), "parameters without values, 0.weight"),
        (Returns(lambda z: z.detach()), "cannot be differentiated"),
        (Returns(lambda z: z.long()), "must return real logits"),
        (Returns(lambda z: z.cumsum(0)), "mixes the rows of a batch"),
        (frozen(), "all parameters of net are frozen"),
    ],
)
def test_nets(net, message):
    with pytest.raises(ValueError, match=message):
        GradientFeaturizer(net).fit(X)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"percentile": 0}, ValueError, r"percentile=0 is not in \(0, 100\]"),
        ({"percentile": 100.5}, ValueError, r"percentile=100.5"),
        ({"percentile": "15"}, ValueError, r"percentile='15'"),
        ({"percentile": float("nan")}, ValueError, r"percentile=nan"),
        ({"scale": "standard"}, ValueError, r"scale='standard' is none of"),
        ({"power": -1}, ValueError, r"power=-1"),
        ({"output": "numpy"}, ValueError, r"output='numpy' is none of 'lazy', 'dense', 'csr'"),
        ({"scalar": "loss"}, ValueError, r"scalar='loss' is none of 'cross_entropy', 'log_probability', 'logit'"),
        ({"scalar": None}, ValueError, r"scalar=None is none of"),
        ({"scalar": torch.sum}, ValueError, r"scalar must map outputs of shape .* it returned \(\)"),
        ({"scalar": torch.Tensor.detach}, ValueError, r"scalar returns what cannot be differentiated"),
        ({"scalar": lambda z: z * z.sum(0)}, ValueError, "scalar mixes the rows of a batch"),
        ({"selection": "fast"}, ValueError, r"selection='fast' is none of 'exact', 'sampled'"),
        ({"dtype": "float16"}, ValueError, r"dtype='float16' is none of None, 'float64'"),
        ({"dtype": torch.float32}, ValueError, r"dtype=torch.float32 is none of"),
        ({"net_output": 0}, TypeError, "net_output is neither None nor a function"),
        ({"net_output": lambda z: [z]}, ValueError, "for 4 samples it returned list"),
        ({"batch_size": 0}, ValueError, r"batch_size=0"),
        ({"device": "nowhere"}, ValueError, r"device='nowhere' cannot be used"),
        ({"layers": "conv*"}, ValueError, r"no trainable parameter matches 'conv\*'. Trainable are layers.1.weight"),
        ({"net": "resnet18"}, TypeError, r"net must be a torch Module"),
        ({"net": MLP}, TypeError, r"net is the class MLP: pass a trained instance"),
        ({"net": FrozenEstimator(LogisticRegression())}, TypeError, r"not a LogisticRegression"),
        ({"layers": []}, ValueError, r"layers=\[\] is neither"),
        ({"layers": 3}, ValueError, r"layers=3 is neither"),
        ({"power": float("inf")}, ValueError, r"power=inf"),
        ({"labels": "true"}, ValueError, "labels='true' is none of 'all', 'predicted'"),
        ({"labels": "predicted", "scalar": lambda z: z}, ValueError, "labels='predicted' needs scalar='cross_entropy'"),
        ({"scale": "fisher", "scalar": "logit"}, ValueError, "scale='fisher' needs scalar='cross_entropy' or"),
        ({"scale": "kronecker", "scalar": lambda z: z}, ValueError, "scale='kronecker' needs scalar='cross_entropy'"),
        ({"projection": 0}, ValueError, "projection=0 is neither a positive number of dimensions"),
        ({"projection": 1.5}, ValueError, r"projection=1.5 is neither"),
        ({"projection": True}, ValueError, r"projection=True is neither"),
        ({"projection": "auto"}, ValueError, r"projection='auto' is neither"),
        ({"edges": {"conv1": np.ones(3, bool)}}, ValueError, r"edges names \['conv1'\].*are \['layers.1.weight'"),
        ({"edges": {"layers.1.weight": np.ones(3, bool)}}, ValueError, r"edges\['layers.1.weight'\] .* \(32, 6\)"),
        ({"edges": {"layers.1.weight": np.ones((32, 6))}}, ValueError, "True and False .* dtype float64"),
        ({"edges": np.ones(5, bool)}, ValueError, r"edges must be an array .* \(288,\); it is of shape \(5,\)"),
        ({"edges": np.zeros(288, bool)}, ValueError, "edges keeps no entry"),
        ({"edges": "layers.1.weight"}, ValueError, "edges must be an array of True and False"),
        ({"augment": "flip"}, TypeError, "augment='flip' is neither None nor a function"),
        ({"augment": lambda X, generator: X, "output": "csr"}, ValueError, "augment needs output='lazy'"),
        ({"augment": lambda X, generator: X, "output": "dense"}, ValueError, "augment needs output='lazy'"),
        (
            {"augment": lambda X, generator: X[:, :3]},
            ValueError,
            r"augment returned rows of shape \(4, 3\)",
        ),
        ({"net": lambda X, y: None}, TypeError, r"must return a torch Module"),
    ],
)
def test_parameters(parameters, error, message):
    with pytest.raises(error, match=message):
        GradientFeaturizer(**({"net": MLP(6, 3)} | parameters)).fit(X, y)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")
def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="device='cuda' cannot be used"):
        GradientFeaturizer(MLP(6, 3), device="cuda").fit(X)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.where(X > 1, np.float32(np.nan), X), "NaN"),
        (np.where(X > 1, np.float32(np.inf), X), "infinity"),
        (X[:0], r"0 sample\(s\)"),
        (X[0], "Expected 2D array"),
        (X[:, :5], r"expecting 6 features"),
        (X[:, :, None], r"samples of shape \(6, 1\); the net was fitted to \(6,\)"),
        (X.astype(complex) + 1j, "Complex data not supported"),
        (X.astype(str).astype(object) + "a", "could not convert string to float"),
    ],
)
def test_samples(bad, message):
    featurizer = GradientFeaturizer(MLP(6, 3)).fit(X)
    with pytest.raises(ValueError, match=message):
        featurizer.transform(bad)


def test_labels_unknown_to_the_base_net():
    classifier = NetClassifier(MLP, max_epochs=1).fit(X, np.array(["a", "b", "c"])[y])
    with pytest.raises(ValueError, match=r"unknown to the base net: \['d'\]"):
        GradientFeaturizer(classifier).fit(X, np.array(["a", "b", "d"])[y])
    with pytest.raises(ValueError, match=r"unknown to the base net: \[3, 4, 5\]"):
        GradientFeaturizer(MLP(6, 3)).fit(X, np.arange(12) % 6)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_script_module():
    with pytest.raises(TypeError, match="net is a ScriptModule"):
        GradientFeaturizer(torch.jit.trace(MLP(6, 3), torch.zeros(1, 6))).fit(X)


def test_a_skorch_net_that_returns_probabilities():
    net = NeuralNetClassifier(nn.Sequential(MLP(6, 3), nn.Softmax(-1)), max_epochs=1, verbose=0, train_split=None).fit(
        X, y
    )
    with pytest.raises(ValueError, match=r"criterion NLLLoss.*train with CrossEntropyLoss"):
        GradientFeaturizer(net).fit(X)


@pytest.mark.parametrize("data", [Dataset(X, y), {"X": X}])
def test_gradnet_takes_features_alone(data):
    with pytest.raises(TypeError, match="X must be gradient features"):
        GradNetClassifier().fit(data, y)


def test_one_class_cannot_train_a_base_net():
    with pytest.raises(ValueError, match="one class"):
        GradientFeaturizer().fit(X, np.zeros(12, int))


def test_a_net_that_is_to_be_trained_needs_labels():
    with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
        GradientFeaturizer().fit(X)


class NoHalf(nn.Module):
    """Stands for a device without half precision."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        if x.dtype == torch.float16:
            raise RuntimeError("\"addmm_impl\" not implemented for 'Half'")
        return self.linear(x)


def test_half_precision_that_the_device_lacks():
    with pytest.raises(ValueError, match=r"in torch.float16 on cpu: .*not implemented for 'Half'.*net.float\(\)"):
        GradientFeaturizer(NoHalf().half()).fit(X)


def test_densifying_beyond_the_limit_names_size_and_way_out(monkeypatch):
    lazy = GradientFeaturizer(MLP(6, 3)).fit_transform(X)
    monkeypatch.setattr(GradientArray, "max_bytes", lazy.nbytes - 1)
    with pytest.raises(MemoryError, match=r"GiB.*GradNetClassifier"):
        np.asarray(lazy)
    assert lazy.toarray().shape == lazy.shape


@pytest.mark.parametrize("output", ["dense", "csr"])
def test_densifying_beyond_the_memory_that_is_free(monkeypatch, output):
    featurizer = GradientFeaturizer(MLP(6, 3), output=output).fit(X)
    monkeypatch.setattr(memory, "available_bytes", lambda: 100)
    with pytest.raises(MemoryError, match=r"GiB are free. Use output='lazy'"):
        featurizer.transform(X)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"structure": "tree"}, "structure='tree' is none of layer, adjacent, full"),
        ({"structure": [["conv9"]]}, r"structure names \['conv9'\]"),
        ({"structure": [[]]}, "an empty group"),
        ({"activation": "relu6"}, "activation='relu6' is none of relu"),
        ({"hidden_sizes": 0}, "hidden_sizes=0 must be"),
        ({"hidden_sizes": (4, 4)}, r"hidden_sizes=\(4, 4\) must be .* 1 groups"),
        ({"dropout": 1.0}, "dropout == 1.0, must be < 1"),
        ({"regularization": -1}, "regularization == -1, must be >= 0"),
        ({"regularization": "a"}, "regularization must be an instance of"),
        ({"dropout": None}, "dropout must be an instance of"),
        ({"lr": "fast"}, "lr must be an instance of"),
        ({"max_epochs": 2.5}, "max_epochs must be an instance of"),
        ({"lr": 1e30}, "training diverged"),
        ({"structure": []}, r"structure=\[\] is neither"),
        ({"structure": None}, "structure=None is neither"),
        ({"hidden_sizes": 2.5}, "hidden_sizes=2.5 must be"),
        ({"activation": 3}, "activation=3 is none of"),
        ({"class_weight": {0: -1.0}}, "class_weight has negative weights"),
        ({"class_weight": {7: 1.0}}, r"class_weight.*\[7\]"),
        ({"criterion": nn.NLLLoss}, "criterion=NLLLoss takes probabilities"),
        ({"device": "nowhere"}, "device='nowhere' cannot be used"),
        ({"n_labels": 5}, "n_labels=5 must be a positive integer that divides the 6 columns"),
        ({"n_labels": 2, "blocks": [2, 2]}, "blocks add up to 4 features, but there are 3"),
        ({"not_a_parameter": 1}, "not_a_parameter"),
        ({"views": 2}, "views=2 is neither 'random', 'all' nor a number from 1 to the 1 labels"),
        ({"views": 4, "n_labels": 3}, "views=4 is neither .* from 1 to the 3 labels"),
        ({"views": 0}, "views=0 is neither"),
        ({"views": "some"}, "views='some' is neither"),
        ({"views": [1]}, r"views=\[1\] is neither"),
        ({"l1_ratio": 1.5}, "l1_ratio == 1.5, must be <= 1"),
        ({"l1_ratio": -0.1}, "l1_ratio == -0.1, must be >= 0"),
        ({"label_smoothing": 1.0}, "label_smoothing == 1.0, must be < 1"),
        ({"label_smoothing": -0.1}, "label_smoothing == -0.1, must be >= 0"),
        ({"label_smoothing": 0.1, "criterion": nn.MultiMarginLoss}, "label_smoothing=0.1 needs CrossEntropyLoss"),
        ({"schedule": "linear"}, "schedule='linear' is neither None nor 'cosine'"),
        ({"early_stopping": True, "validation_fraction": 1.0}, "validation_fraction == 1.0, must be < 1"),
        ({"early_stopping": True, "n_iter_no_change": 0}, "n_iter_no_change == 0, must be >= 1"),
        ({"early_stopping": True, "validation_fraction": 0.1}, r"cannot hold out validation_fraction=0.1 of 12 rows"),
        ({"base_logits": True}, "base_logits=True needs .* GradientArray .* not a ndarray"),
    ],
)
def test_gradnet_parameters(parameters, message):
    with pytest.raises((ValueError, TypeError), match=message):
        GradNetClassifier(**parameters).fit(X, y)


def test_gradnet_knows_the_blocks_it_was_fitted_to():
    lazy, other = (GradientFeaturizer(net).fit_transform(X) for net in (MLP(6, 3, (5,)), MLP(6, 5, (3,))))
    classifier = GradNetClassifier(max_epochs=1).fit(lazy, y)
    assert lazy.shape[1] != other.shape[1]
    with pytest.raises(ValueError, match="features"):
        classifier.predict(other)
    with pytest.raises(ValueError, match="n_labels=2, but X is an array of 3"):
        GradNetClassifier(n_labels=2).fit(lazy, y)
    same_width = GradientFeaturizer(MLP(6, 3, (5,)), layers=["layers.3.weight", "layers.1.weight"]).fit_transform(X)
    assert same_width.blocks == lazy.blocks == classifier.blocks_
    assert all(isinstance(block, Block) for block in classifier.blocks_)


def test_base_logits_need_a_class_for_each_output():
    lazy = GradientFeaturizer(MLP(6, 3)).fit_transform(X)
    with pytest.raises(ValueError, match=r"the base net's 3 logits to those of 2 classes"):
        GradNetClassifier(base_logits=True).fit(lazy, y % 2)
    classifier = GradNetClassifier(base_logits=True, classes=[0, 1, 2], max_epochs=1).fit(lazy, y % 2)
    with pytest.raises(TypeError, match="base_logits=True needs"):
        classifier.predict(lazy.toarray())


@pytest.mark.parametrize(
    ("weight", "message"),
    [(np.zeros(12), "zero"), (-np.ones(12), "[Nn]egative"), (np.ones(11), r"sample_weight")],
)
def test_sample_weights(weight, message):
    with pytest.raises(ValueError, match=message):
        GradNetClassifier().fit(X, y, sample_weight=weight)


def test_a_class_that_partial_fit_was_not_told_of():
    classifier = GradNetClassifier(max_epochs=1).partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match=r"does not know: \[3\].*partial_fit\(classes=\.\.\.\)"):
        classifier.partial_fit(X, y + 1)


def test_initializing_before_any_data():
    with pytest.raises(Exception, match="sizes of its module from data: call fit") as error:
        GradNetClassifier().initialize()
    assert "NotFitted" in type(error.value).__name__


KERNEL_PARAMETERS = [
    ({"degree": 0}, ValueError, "degree == 0, must be >= 1"),
    ({"degree": 1.5}, TypeError, "degree must be an instance of"),
    ({"normalize": "row"}, ValueError, "normalize='row' is none of True, False, 'layer'"),
    ({"normalize": None}, ValueError, "normalize=None is none of"),
    ({"scalar": "loss"}, ValueError, "scalar='loss' is none of"),
    ({"scalar": ["logit"]}, ValueError, r"scalar=\['logit'\] is none of"),
    ({"scalar": torch.sum}, ValueError, r"scalar must map outputs of shape .* it returned \(\)"),
    ({"dtype": "float16"}, ValueError, "dtype='float16' is none of None, 'float64'"),
    ({"products": "float16"}, ValueError, "products='float16' is none of None, 'bfloat16'"),
    ({"n_directions": 0}, ValueError, "n_directions == 0, must be >= 1"),
    ({"n_directions": 2.0}, TypeError, "n_directions must be an instance of"),
    ({"n_directions": 2, "scalar": "cross_entropy"}, ValueError, "it needs scalar='logit', not 'cross_entropy'"),
    ({"n_directions": 2, "scalar": torch.sin}, ValueError, "it needs scalar='logit', not"),
    ({"projection": 0}, ValueError, "projection == 0, must be >= 1"),
    ({"projection": 0.5}, TypeError, "projection must be an instance of"),
    ({"n_components": 0}, ValueError, "n_components == 0, must be >= 1"),
    ({"n_components": "all"}, TypeError, "n_components must be an instance of"),
    ({"views": 2}, TypeError, "views is neither None nor a function"),
    ({"views": lambda X: [X[:, :2]]}, ValueError, r"views must return arrays of shape \(\d+, 6\).*\(\d+, 2\)"),
    ({"net_output": 0}, TypeError, "net_output is neither None nor a function"),
    ({"device": "nowhere"}, ValueError, "device='nowhere' cannot be used"),
    ({"layers": "conv*"}, ValueError, r"no trainable parameter matches 'conv\*'"),
    ({"layers": []}, ValueError, r"layers=\[\] is neither"),
    ({"net": "resnet18"}, TypeError, "net must be a torch Module"),
    ({"net": MLP}, TypeError, "net is the class MLP: pass a trained instance"),
    ({"net": lambda X, y: None}, TypeError, "must return a torch Module"),
    ({"net": nn.Sequential(MLP(6, 3), nn.Softmax(-1)), "scalar": "cross_entropy"}, ValueError, "returns probabilities"),
    ({"net": Returns(lambda z: z - z.mean(0))}, ValueError, "mixes the rows of a batch"),
]


@pytest.mark.parametrize("estimator", [GradientKernel, GradientKernelClassifier])
@pytest.mark.parametrize(("parameters", "error", "message"), KERNEL_PARAMETERS)
def test_kernel_parameters(estimator, parameters, error, message):
    with pytest.raises(error, match=message):
        model = estimator(**({"net": MLP(6, 3)} | parameters)).fit(X, y)
        getattr(model, "transform", getattr(model, "predict", None))(X)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alphas": []}, r"alphas=\[\] is not a sequence of positive numbers"),
        ({"alphas": 0.1}, "alphas=0.1 is not a sequence"),
        ({"alphas": None}, "alphas=None is not a sequence"),
        ({"alphas": "auto"}, "alphas='auto' is not a sequence"),
        ({"alphas": [[0.1]]}, r"alphas=\[\[0.1\]\] is not a sequence"),
        ({"alphas": [0.1, [0.2]]}, "alphas=.* is not a sequence"),
        ({"alphas": [0.1, 0.0]}, r"alphas=\[0.1, 0.0\] is not a sequence"),
        ({"alphas": [0.1, float("nan")]}, "is not a sequence"),
        ({"alphas": [float("inf")]}, "is not a sequence"),
        ({"net": MLP(6, 4)}, "of 4 labels that the net knows, but y holds 3 classes: use base_output=False"),
    ],
)
@pytest.mark.parametrize("n_components", [None, 3])
def test_kernel_classifier_parameters(parameters, message, n_components):
    with pytest.raises(ValueError, match=message):
        GradientKernelClassifier(**({"net": MLP(6, 3), "n_components": n_components} | parameters)).fit(X, y)


@pytest.mark.parametrize("estimator", [GradientKernel, GradientKernelClassifier])
def test_samples_of_a_kernel(estimator):
    model = estimator(MLP(6, 3)).fit(X, y)
    function = getattr(model, "transform", getattr(model, "predict", None))
    for bad, message in (
        (np.where(X > 1, np.float32(np.nan), X), "NaN"),
        (X[:0], r"0 sample\(s\)"),
        (X[:, :5], "expecting 6 features"),
        (X[:, :, None], r"samples of shape \(6, 1\); the net was fitted to \(6,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            function(bad)


def test_labels_of_a_kernel():
    for classifier in (GradientKernelClassifier(MLP(6, 3)), GradientKernelClassifier(MLP(6, 3), base_output=False)):
        with pytest.raises(ValueError, match="y holds only one class, 1; a classifier needs two"):
            classifier.fit(X, np.ones(12, int))
        with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
            classifier.fit(X, None)
        with pytest.raises(ValueError, match="Unknown label type"):
            classifier.fit(X, np.linspace(0, 1, 12))
    with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
        GradientKernel().fit(X)
