"""ECOptClassifier and ECOptRegressor: nets trained in their equivalent-class space, as skorch estimators.

Samples and targets enter; a classifier or a regressor leaves. :class:`sklearn_gradspace.optim.ECOptimizer` trains it.
"""

from inspect import signature

import torch
from torch import nn

from ._net_classifier import NetClassifier
from ._net_regressor import NetRegressor
from ._parameter_checks import check_choices, check_number, positive_integers
from .modules import MLP
from .optim import ECOptimizer
from .pathspace._graph import graph_of

_OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class ECOptMixin:
    """Parameters of an ECOptimizer, which trains a net; to the left of a NetEstimator."""

    _of_module = ("hidden_layer_sizes",)

    def __init__(
        self,
        hidden_layer_sizes=(100,),
        *,
        module=MLP,
        optimizer="sgd",
        lr=0.02,
        momentum=0.9,
        weight_decay=1e-3,
        method="path",
        init="auto",
        path_penalty=0.0,
        graph=None,
        max_epochs=30,
        batch_size=32,
        random_state=None,
        device="cpu",
        **kwargs,
    ):
        super().__init__(
            module,
            optimizer=optimizer,
            lr=lr,
            max_epochs=max_epochs,
            batch_size=batch_size,
            random_state=random_state,
            device=device,
            **kwargs,
        )
        self.hidden_layer_sizes = hidden_layer_sizes
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.method = method
        self.init = init
        self.path_penalty = path_penalty
        self.graph = graph

    @property
    def _optimizer_class(self):
        return _OPTIMIZERS.get(self.optimizer, self.optimizer) if isinstance(self.optimizer, str) else self.optimizer

    @property
    def _optimizer_arguments(self):
        return {*signature(ECOptimizer).parameters} | super()._optimizer_arguments

    def _validate(self, X, y, classes, reset):
        self._check_parameters()
        return super()._validate(X, y, classes, reset)

    def _check_parameters(self) -> None:
        check_choices(self, {"method": ("path", "balanced"), "init": ("auto", "keep", "skeleton", "identity")})
        if not callable(self._optimizer_class):
            raise ValueError(f"optimizer={self.optimizer!r} is neither of {[*_OPTIMIZERS]} nor one of torch's classes.")
        for name in ("lr", "momentum", "weight_decay", "path_penalty"):
            check_number(getattr(self, name), name, min_val=0)
        if self.graph is not None and not callable(self.graph):
            raise TypeError(f"graph={self.graph!r} is no function from a module to its ScaleGraph.")
        self._hidden_layer_sizes()

    def _hidden_layer_sizes(self) -> tuple[int, ...]:
        given = self.hidden_layer_sizes
        sizes = positive_integers(given)
        if sizes is None:
            raise ValueError(f"hidden_layer_sizes={given!r} is neither a positive integer nor a sequence of some.")
        return sizes

    def _module_sizes(self) -> dict:
        return super()._module_sizes() | {"hidden_layer_sizes": self._hidden_layer_sizes()}

    def set_params(self, **params):
        """Set parameters of the net, its module, criterion, optimizer and callbacks.

        Parameters
        ----------
        **params : dict
            Names as :meth:`get_params` gives them.

        Returns
        -------
        self : object
            The net.
        """
        super().set_params(**params)
        of_optimizer = sorted(params.keys() & {"momentum", "weight_decay", "method", "path_penalty", "graph"})
        if self.initialized_ and of_optimizer:
            self._initialize_optimizer(reason=f"Re-initializing optimizer because {of_optimizer} were set.")
        return self

    def get_params_for_optimizer(self, prefix, named_parameters):
        """Return the arguments of the inner optimizer, with those of `momentum` and `weight_decay` that it takes.

        Parameters
        ----------
        prefix : str
            Name of the optimizer.
        named_parameters : iterable of (str, Parameter)
            What it optimizes.

        Returns
        -------
        args : tuple
            The parameter groups.
        kwargs : dict
            All other arguments.
        """
        args, kwargs = super().get_params_for_optimizer(prefix, named_parameters)
        taken = signature(self._optimizer_class).parameters
        given = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        return args, {name: value for name, value in given.items() if name in taken} | kwargs

    def initialize_optimizer(self):
        """Make the optimizer, for the module's scale graph; weights that were given or trained are not made new.

        Returns
        -------
        self : object
            The net.
        """
        self._check_parameters()
        (groups,), kwargs = self.get_params_for_optimizer("optimizer", self.get_all_learnable_params())
        if own := sorted(kwargs.keys() & {"method", "init", "path_penalty"}):
            name = own[0]
            raise ValueError(f"optimizer__{name}: that is a parameter of {type(self).__name__} itself, {name}=...")
        graph = graph_of(self.module_, self.graph and self.graph(self.module_))
        trained = hasattr(self, "optimizer_") and self.scale_graph_.module is graph.module
        given = isinstance(self.module, nn.Module) and self.init == "auto"
        self.optimizer_ = ECOptimizer(
            graph,
            self._optimizer_class,
            params=groups,
            method=self.method,
            init="keep" if trained or given else self.init,
            path_penalty=self.path_penalty,
            **kwargs,
        )
        return self

    def _restore(self):
        init, self.init = self.init, "keep"
        try:
            super()._restore()
        finally:
            self.init = init

    @property
    def scale_graph_(self):
        """The units that can be rescaled, and what pins others."""
        # Accelerate wraps the optimizer.
        return getattr(self.optimizer_, "optimizer", self.optimizer_).graph

    @property
    def invariant_ratio_(self):
        """Number of these units divided by the number of weights."""
        return self.scale_graph_.invariant_ratio


class ECOptClassifier(ECOptMixin, NetClassifier):
    """ReLU net that is trained in its equivalent-class space, for classification.

    A hidden unit's incoming weights times c > 0 and its outgoing weights divided by c leave a ReLU net's function as it
    is, but not how SGD goes on. :class:`sklearn_gradspace.optim.ECOptimizer` makes its steps in the space of what such
    rescaling does not change: two nets that differ in the units' scales alone train alike.

    Inputs should be of about the same scale: put a ``StandardScaler`` in front.

    Parameters
    ----------
    hidden_layer_sizes : int or array-like of int, default=(100,)
        Widths of the hidden layers of the default `module`, a ReLU net; empty for a linear model.
    module : Module class, instance or callable, default=MLP
        The net, from (n, ...) to logits of shape (n, n_classes). A class or callable gets those of `n_features`,
        `n_outputs`, `n_classes` and `hidden_layer_sizes` that it has arguments for, ``module__...`` parameters, and the
        precision of `X`; an instance is copied in `fit`, which begins at its weights, in their precision. What a
        callback freezes later may still be rescaled. It has to be one that
        :func:`~sklearn_gradspace.pathspace.scale_graph` can trace, unless there is `graph`.
    optimizer : {"sgd", "adam", "adamw"} or Optimizer class, default="sgd"
        The inner optimizer, which makes the steps; ``optimizer__...`` are arguments of it, or of
        :class:`~sklearn_gradspace.optim.ECOptimizer`: ``optimizer__units``, ``optimizer__chart_every``,
        ``optimizer__balance_every`` and ``optimizer__approximate``.
    lr : float, default=0.02
        Learning rate. The default is SGD's; Adam wants one of about 0.003.
    momentum : float, default=0.9
        Momentum, for inner optimizers that have one.
    weight_decay : float, default=0.001
        Weight decay of the inner optimizer.
    method : {"path", "balanced"}, default="path"
        Whether steps are made in the values of basis paths or in the balanced representative of the net's class.
    init : {"auto", "keep", "skeleton", "identity"}, default="auto"
        Where training begins: at the function that `module` is made with, with all skeleton weights at 1, or with those
        at 1 and small others, next to the identity; "auto" is the last for deep nets without normalisation or
        shortcuts, unless `module` is an instance, and else "keep". Skeleton weights are one into and one out of each
        unit, which basis paths go along: see the user guide on equivalent-class space.
    path_penalty : float, default=0.0
        Factor of the squared norm of basis path values in the loss; for ``method="path"``.
    graph : callable, optional
        From a module to its :class:`~sklearn_gradspace.pathspace.ScaleGraph`, for nets that cannot be traced.
    max_epochs : int, default=30
        Number of epochs.
    batch_size : int, default=32
        Number of rows a step; -1 is all.
    random_state : int, RandomState or None, default=None
        Seed of initialization, order of the rows and dropout. Global random states are left alone.
    device : str or device, default="cpu"
        Where to train.
    class_weight : {"balanced"}, dict or None, default=None
        Weights of the classes in the loss.
    **kwargs : dict
        All else that a skorch net takes: `criterion`, `callbacks`, `train_split`, `warm_start`, `verbose`, `classes`
        (labels that `y` may lack) and so on.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    module_ : Module
        The trained net, which :class:`GradientFeaturizer` takes as well as the classifier.
    scale_graph_ : ScaleGraph
        The units that can be rescaled, and what pins others; it prints as a table.
    invariant_ratio_ : float
        Number of these units divided by the number of weights.
    optimizer_ : ECOptimizer
        The optimizer.
    history_ : History
        Losses and scores of the epochs.
    n_features_in_ : int
        Number of columns.

    References
    ----------
    Q. Meng, S. Zheng, H. Zhang, W. Chen, Q. Ye, Z.-M. Ma, N. Yu, T.-Y. Liu, "G-SGD: Optimizing ReLU neural networks in
    its positively scale-invariant space", ICLR 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_gradspace import ECOptClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = ECOptClassifier(random_state=0).fit(X, y)
    >>> bool(classifier.score(X, y) > 0.95)
    True
    >>> classifier.scale_graph_.n_units
    100
    """


class ECOptRegressor(ECOptMixin, NetRegressor):
    """ReLU net that is trained in its equivalent-class space, for regression to one or more targets.

    Inputs should be of about the same scale: put a ``StandardScaler`` in front. Targets may be of any.

    Parameters
    ----------
    hidden_layer_sizes, optimizer, lr, momentum, weight_decay, method, init, path_penalty, graph
        As of :class:`ECOptClassifier`.
    module : Module class, instance or callable, default=MLP
        As of :class:`ECOptClassifier`, to outputs of shape (n, n_outputs), or (n,) for one; there is no `n_classes`.
    max_epochs, batch_size, random_state, device
        As of :class:`ECOptClassifier`.
    normalize_y : bool, default=True
        Whether the net learns targets less their mean, divided by their standard deviation.
    **kwargs : dict
        All else that a skorch net takes: `criterion`, by default the squared error, `callbacks` and so on.

    Attributes
    ----------
    y_mean_, y_scale_ : ndarray of shape (n_outputs,)
        Predictions are the net's outputs times `y_scale_` plus `y_mean_`.
    module_, scale_graph_, invariant_ratio_, optimizer_, history_, n_features_in_
        As of :class:`ECOptClassifier`.

    References
    ----------
    As of :class:`ECOptClassifier`.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_gradspace import ECOptRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = make_pipeline(StandardScaler(), ECOptRegressor(random_state=0)).fit(X, y)
    >>> bool(model.score(X, y) > 0.5)
    True
    """
