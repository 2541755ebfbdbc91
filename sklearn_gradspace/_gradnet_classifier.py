"""GradNetClassifier: the quadratic separator on gradient space, as a skorch estimator.

Gradient features of shape (n, n_labels * n_params), lazy or not, and labels enter; a classifier leaves.
"""

from collections.abc import Iterable
from functools import partial
from numbers import Integral

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor, nn

from ._held_out import HeldOutMixin
from ._net_classifier import NetClassifier
from ._net_estimator import is_skorchs_own
from ._net_labels import warn_of_order
from ._parameter_checks import check_flags, check_number, positive_integers
from ._rows import RowDataset, WeightedRows
from ._structure import blocks_of_sizes, group_columns
from .gradients import GradientArray, GradientMemmap, two_logits
from .modules import GradNet

_AUTO_LR = 0.05
_ROWS_OF_ORDER = 1000  # on which the base net's own predictions are looked at


class GradNetClassifier(HeldOutMixin, NetClassifier):
    """Two-layer net with a block structure on gradient features.

    The gradients of a row for the candidate labels are views of it. The output for a row is the mean of GradNet's
    outputs over its views: in prediction over all of them, in training over those that `views` draws.

    Parameters
    ----------
    hidden_sizes : int or sequence of int, default=32
        Hidden units of each group of the structure.
    structure : {"layer", "adjacent", "full"} or list of lists of str, default="layer"
        Which layers' gradients a hidden unit sees: one layer's, those of two layers that the net defines one after the
        other, or all; or the names of each group's layers.
    activation : {"relu", "square", "tanh", "identity"} or function, default="relu"
        "square" makes the separator literally quadratic.
    views : {"random", "all"} or int, default="random"
        How many views a row shows at each visit in training: one, drawn at random, as the authors do; all, so that
        training minimizes the loss of what predicts; or that many different ones, drawn at random. A batch takes
        ``batch_size * views * n_params`` numbers.
    base_logits : bool, default=False
        Whether the base net's own logits are added to the output, and GradNet's output layer begins at zero: fitting
        then begins at the base net's predictions. It needs lazy features, and a class for each output of the base net,
        in the order of `classes`, or else in sorted order.
    regularization : float, default=0.0
        Weight λ of the penalty ``λ (l1_ratio ‖w‖₁ + (1 - l1_ratio)/2 ‖w‖²)`` on all weights, biases apart.
    l1_ratio : float, default=0.0
        Share of the penalty that is on magnitudes, in [0, 1].
    label_smoothing : float, default=0.0
        Share of a row's label that the training loss spreads over all classes, in [0, 1).
    dropout : float, default=0.0
        Probability with which a hidden unit is left out in training.
    n_labels : int, optional
        Number of candidate labels in the columns. A lazy array tells it, and one on disk. For a plain array, such as
        dense or sparse gradient features, it is 1 by default: all columns are then one view.
    blocks : sequence of int or of Block, optional
        Sizes of the layers' gradients within a candidate label. A lazy array tells them, and one on disk; for plain
        arrays all columns are one block by default.
    class_weight : {"balanced"}, dict or None, default=None
        Weights of the classes in the loss.
    module, criterion, optimizer
        As in skorch.
    lr : float or "auto", default="auto"
        Learning rate. "auto" is 0.05 / √m for a layer of m inputs, which suits Adam: a step then changes what enters a
        unit by about the same amount in every layer.
    schedule : {"cosine"} or None, default=None
        "cosine": from batch to batch the learning rate falls along half a cosine, from `lr` to zero at the end of
        `max_epochs`. Each call of `partial_fit` begins it anew.
    early_stopping : bool, default=False
        Whether to hold out rows for validation, to stop when their loss has not become less for `n_iter_no_change`
        epochs, and to go back to the epoch where it was least. A `train_split` of your own decides on the rows.
    validation_fraction : float, default=0.1
        Share of the rows, stratified by class, that early stopping holds out.
    n_iter_no_change : int, default=10
        Number of epochs that early stopping waits.
    max_epochs, batch_size, dataset, train_split
        As in skorch.
    random_state : int, RandomState or None, default=None
        Seed of initialization, order of the rows, augmentation, random views, dropout and the rows held out.
    iterator_train__shuffle : bool, default=True
        Whether the rows come in a new order in every epoch.
    device : str or device, optional
        Where to train; by default where the features are computed.
    verbose
        As in skorch.
    **kwargs : dict
        All else that a skorch net takes.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    n_labels_ : int
        Number of candidate labels.
    blocks_ : tuple of Block
        Columns of each layer's gradient within a candidate label.
    module_ : GradNet
        The trained net.
    temperature_ : float
        What logits are divided by in `predict_proba`: the number that gives the held-out rows the least cross-entropy,
        or 1 where early stopping or `train_split` hold out none. It is no part of what `save_params` saves.
    n_features_in_ : int
        Number of columns.

    References
    ----------
    A. R. Aleksziew, "Improving Neural Networks using Gradient Space"; B. Daróczy, R. Aleksziew, A. Benczúr,
    arXiv:1807.06630. Temperature: C. Guo, G. Pleiss, Y. Sun, K. Weinberger, arXiv:1706.04599.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn_gradspace import GradientFeaturizer, GradNetClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = make_pipeline(GradientFeaturizer(random_state=0), GradNetClassifier(random_state=0))
    >>> bool(model.fit(X, y).score(X, y) > 0.9)
    True
    """

    _allow_nd = False
    _of_module = ("hidden_sizes", "structure", "activation", "dropout", "base_logits")
    _base_order = None  # of the base net's outputs, where it is not that of the classes

    def __init__(
        self,
        hidden_sizes=32,
        *,
        structure="layer",
        activation="relu",
        views="random",
        base_logits=False,
        regularization=0.0,
        l1_ratio=0.0,
        label_smoothing=0.0,
        dropout=0.0,
        n_labels=None,
        blocks=None,
        class_weight=None,
        module=GradNet,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr="auto",
        schedule=None,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        max_epochs=30,
        batch_size=32,
        dataset=RowDataset,
        train_split=None,
        random_state=None,
        iterator_train__shuffle=True,
        device=None,
        verbose=0,
        **kwargs,
    ):
        self.hidden_sizes = hidden_sizes
        self.structure = structure
        self.activation = activation
        self.views = views
        self.base_logits = base_logits
        self.regularization = regularization
        self.l1_ratio = l1_ratio
        self.label_smoothing = label_smoothing
        self.dropout = dropout
        self.schedule = schedule
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.n_labels = n_labels
        self.blocks = blocks
        super().__init__(
            module,
            criterion=criterion,
            optimizer=optimizer,
            lr=lr,
            max_epochs=max_epochs,
            batch_size=batch_size,
            dataset=dataset,
            train_split=train_split,
            class_weight=class_weight,
            random_state=random_state,
            iterator_train__shuffle=iterator_train__shuffle,
            device=device,
            verbose=verbose,
            **kwargs,
        )

    @property
    def _adds_logits(self) -> bool:
        """`base_logits` as it was in `fit`."""
        return vars(self).get("_with_base", self.base_logits)

    def _validate(self, X, y, classes, reset):
        if reset:
            self._with_base = self.base_logits
        X, y = super()._validate(X, y, classes, reset)
        counted = isinstance(self.views, Integral) and self.views is not True and 1 <= self.views <= self.n_labels_
        if not counted and not (isinstance(self.views, str) and self.views in ("random", "all")):
            raise ValueError(
                f"views={self.views!r} is neither 'random', 'all' nor a number from 1 to the {self.n_labels_} labels."
            )
        if self._adds_logits and reset:
            self._learn_base_order(X, y, self.classes if classes is None else classes)
        return X, y

    def _learn_base_order(self, X: GradientArray, y: np.ndarray, classes) -> None:
        """Learn which of the base net's outputs is which class, and look whether some rows agree."""
        rows = np.linspace(0, len(X) - 1, min(len(X), _ROWS_OF_ORDER), dtype=int)
        logits, n_classes = two_logits(X[rows].outputs()), len(self._labels)
        ordered = self._labels if classes is None else classes
        if not len(ordered) == logits.shape[1] == n_classes:
            raise ValueError(
                f"base_logits=True adds the base net's {logits.shape[1]} logits to those of {n_classes} classes: name "
                "all by classes=[...], in the order of its outputs, or use base_logits=False."
            )
        order = np.argsort(ordered)
        self._base_order = None if (order == np.arange(n_classes)).all() else order.tolist()
        right = (logits[:, order].argmax(1).cpu().numpy() == y[rows]).mean()
        warn_of_order(right, len(rows), np.asarray(ordered))

    def _check_training_parameters(self) -> None:
        if isinstance(self.lr, str) and self.lr != "auto":
            raise TypeError(f"lr={self.lr!r} is neither a number nor 'auto'.")
        super()._check_training_parameters()
        check_flags(self, "base_logits")
        check_number(self.dropout, "dropout", min_val=0, max_val=1, include_boundaries="left")
        check_number(self.regularization, "regularization", min_val=0)
        check_number(self.l1_ratio, "l1_ratio", min_val=0, max_val=1)
        check_number(self.label_smoothing, "label_smoothing", min_val=0, max_val=1, include_boundaries="left")
        self._check_held_out()

    def _validate_X(self, X, reset):
        given = X
        if isinstance(X, GradientArray):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if not len(X):
                raise ValueError(f"Found array with 0 sample(s) (shape={X.shape}) while a minimum of 1 is required.")
            if reset:
                self._set_dtype(X.dtype)
        elif is_skorchs_own(X):
            raise TypeError(
                f"X must be gradient features, as a GradientArray or a matrix, not as a {type(X).__name__}."
            )
        else:
            X = super()._validate_X(X, reset)
        if self._adds_logits and not isinstance(X, GradientArray):
            raise TypeError(
                f"base_logits=True needs features that know their net, a GradientArray as GradientFeaturizer("
                f"output='lazy') makes it, not a {type(X).__name__}. Use lazy features, or base_logits=False."
            )
        if reset:
            self._data_device = X.compute_device if isinstance(X, GradientArray) else torch.device("cpu")
            self._lay_out(given)
        elif _knows_columns(given) and (given.n_labels, given.blocks) != (self.n_labels_, self.blocks_):
            raise ValueError(
                f"X has {given.n_labels} candidate labels and blocks {[b.name for b in given.blocks]}; the net was "
                f"fitted to {self.n_labels_} and {[b.name for b in self.blocks_]}."
            )
        return X

    def _lay_out(self, X) -> None:
        """Learn the meaning of the columns of `X`."""
        if _knows_columns(X):
            if self.n_labels not in (None, X.n_labels):
                raise ValueError(f"n_labels={self.n_labels}, but X is an array of {X.n_labels} candidate labels.")
            sizes = [block.size for block in X.blocks]
            if self.blocks is not None and sizes != [b.size for b in blocks_of_sizes(self.blocks, sum(sizes))]:
                raise ValueError(f"blocks={self.blocks!r}, but X is an array of blocks of {sizes} features.")
            self.n_labels_, self.blocks_ = X.n_labels, X.blocks
            return
        n_labels = 1 if self.n_labels is None else self.n_labels
        if not isinstance(n_labels, Integral) or n_labels < 1 or self.n_features_in_ % n_labels:
            raise ValueError(
                f"n_labels={n_labels!r} must be a positive integer that divides the {self.n_features_in_} columns of X."
            )
        self.n_labels_ = int(n_labels)
        self.blocks_ = blocks_of_sizes(self.blocks, self.n_features_in_ // self.n_labels_)

    def _module_sizes(self) -> dict:
        if self.criterion is nn.NLLLoss or isinstance(self.criterion, nn.NLLLoss):
            raise ValueError("criterion=NLLLoss takes probabilities, but GradNet returns logits: use CrossEntropyLoss.")
        groups = group_columns(self.blocks_, self.structure)
        sizes = positive_integers(self.hidden_sizes)
        if isinstance(self.hidden_sizes, Integral) and sizes:
            sizes *= len(groups)
        if sizes is None or len(sizes) != len(groups):
            raise ValueError(
                f"hidden_sizes={self.hidden_sizes!r} must be a positive integer or one for each of the {len(groups)} "
                f"groups of structure={self.structure!r}."
            )
        return {
            "groups": groups,
            "n_classes": len(self._labels),
            "hidden_sizes": list(sizes),
            "activation": self.activation,
            "dropout": self.dropout,
            "zero_output": self.base_logits,
        }

    def get_params_for_optimizer(self, prefix, named_parameters):
        """Return the arguments of the optimizer, with a learning rate for each layer where `lr` is "auto".

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
        if kwargs["lr"] == "auto":
            if isinstance(self.optimizer, type) and issubclass(self.optimizer, torch.optim.LBFGS):
                raise ValueError("lr='auto' is a rate for each layer, which LBFGS does not have: set lr to a number.")
            fan_ins = {p: layer.in_features for layer in self.module_.modules() for p in _linear_parameters(layer)}
            groups = [
                {**group, "params": [p], "lr": group.get("lr", _AUTO_LR / fan_ins.get(p, 1) ** 0.5)}
                for group in args[0]
                for p in group["params"]
            ]
            args, kwargs = (groups,), {name: value for name, value in kwargs.items() if name != "lr"}
        return args, kwargs

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
        if self.initialized_ and params.get("lr") == "auto":
            # skorch would hand the word to the optimizer that is there.
            self.lr = params.pop("lr")
            self._initialize_optimizer(reason="Re-initializing optimizer because lr was set to 'auto'.")
        return super().set_params(**params)

    def infer(self, x, **fit_params):
        """Apply the module to views of each row, and return the mean of its outputs.

        These are all views, or in training those that `views` draws, of rows that are augmented.

        Parameters
        ----------
        x : GradientArray, ndarray or Tensor of shape (n, n_labels * n_params)
            A batch of gradient features.
        **fit_params : dict
            Passed on to the module.

        Returns
        -------
        logits : Tensor of shape (n, n_classes)
            The mean over the views and, with `base_logits`, the base net's logits.
        """
        x = x.X if isinstance(x, WeightedRows) else x
        labels = None
        if self.module_.training:
            if isinstance(x, GradientArray) and x.augment is not None:
                x = x.augmented(np.random.default_rng(int(torch.randint(2**62, ()))))
            labels = self._drawn_labels(len(x))
        outputs = torch.cat(list(self._outputs(x, labels, fit_params)))
        logits = outputs.unflatten(0, (len(x), -1)).mean(1)
        if not self._adds_logits:
            return logits
        base = two_logits(x.outputs()).to(logits)
        if self._base_order is not None:  # by slices, of which none waits for a device
            base = torch.stack([base[:, i] for i in self._base_order], 1)
        return logits + base

    def _outputs(self, x, labels: Tensor | None, fit_params: dict) -> Iterable[Tensor]:
        """Yield GradNet's outputs of shape (part * v, n_classes) for consecutive rows."""
        lazy, infer = isinstance(x, GradientArray), partial(super().infer, **fit_params)
        if lazy and labels is not None:
            x, labels = x[np.arange(len(x)).repeat(labels.shape[1])], labels.flatten()
        factors = lazy and isinstance(self.module_, GradNet)
        factored = x.factored(partial(self.module_, **fit_params), labels) if factors else None
        return map(infer, self._features(x, labels)) if factored is None else factored

    def _drawn_labels(self, n: int) -> Tensor | None:
        """Return different random labels for each of `n` rows, of shape (n, v), or None for all of them."""
        v = {"random": 1, "all": self.n_labels_}.get(self.views, self.views)
        if v == self.n_labels_:
            return None
        return torch.randint(self.n_labels_, (n, 1)) if v == 1 else torch.rand(n, self.n_labels_).argsort(1)[:, :v]

    def _features(self, x, labels: Tensor | None) -> Iterable[Tensor]:
        """Return features of shape (part * v, n_params), of consecutive rows, for all labels or for given ones.

        These are of shape (n, v) for an array, and for a lazy one of shape (n,).
        """
        if not isinstance(x, GradientArray):
            views = torch.as_tensor(x, dtype=self._dtype).unflatten(1, (self.n_labels_, -1))
            views = views if labels is None else views[torch.arange(len(views)).unsqueeze(1), labels]
            return [views.flatten(0, 1)]
        if self.module_.training:
            return [x.view(labels).flatten(0, -2).to(self._dtype)]
        return (part.flatten(0, 1).to(self._dtype) for part in x.parts(labels))

    def get_loss(self, y_pred, y_true, X=None, training=False):
        """Return the mean loss of a batch and, in training, the penalty.

        Parameters
        ----------
        y_pred : Tensor of shape (n, n_classes)
            Output of :meth:`infer`.
        y_true : Tensor of shape (n,)
            Numbers of the classes.
        X : array-like
            The batch.
        training : bool, default=False
            Whether this is a step of training.

        Returns
        -------
        loss : Tensor of shape ()
            The loss.
        """
        if not training:
            return super().get_loss(y_pred, y_true, X, training)
        loss = self._smoothed_loss(y_pred, y_true, X) if self.label_smoothing else super().get_loss(y_pred, y_true, X)
        if self.regularization:
            weights = [p for p in self.module_.parameters() if p.ndim > 1]
            penalty = (1 - self.l1_ratio) / 2 * sum(w.square().sum() for w in weights)
            if self.l1_ratio:
                penalty = penalty + self.l1_ratio * sum(w.abs().sum() for w in weights)
            loss = loss + self.regularization * penalty
        return loss

    def _constant_loss(self, X, y):
        return None if self.regularization or self.label_smoothing else super()._constant_loss(X, y)

    def _smoothed_loss(self, y_pred: Tensor, y_true: Tensor, X) -> Tensor:
        criterion = self.criterion_
        if not hasattr(criterion, "label_smoothing"):
            raise ValueError(f"label_smoothing={self.label_smoothing} needs CrossEntropyLoss, not {criterion}.")
        before, criterion.label_smoothing = criterion.label_smoothing, self.label_smoothing
        try:
            return super().get_loss(y_pred, y_true, X)
        finally:
            criterion.label_smoothing = before


def _knows_columns(X) -> bool:
    return isinstance(X, (GradientArray, GradientMemmap)) and X.blocks is not None


def _linear_parameters(layer: nn.Module) -> list[nn.Parameter]:
    return list(layer.parameters()) if isinstance(layer, nn.Linear) else []
