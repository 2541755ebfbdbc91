"""GradNetClassifier: the quadratic separator on gradient space, as a skorch estimator.

Gradient features of shape (n, n_labels * n_params), lazy or not, and labels enter; a classifier leaves.
"""

from collections.abc import Sequence
from numbers import Integral, Real

import torch
from sklearn.utils import check_scalar
from sklearn.utils.validation import validate_data
from torch import Tensor, nn

from ._net_classifier import NetClassifier, is_skorchs_own
from ._rows import RowDataset, WeightedRows
from ._structure import blocks_of_sizes, group_columns
from .gradients import GradientArray
from .modules import GradNet

_AUTO_LR = 0.05


class GradNetClassifier(NetClassifier):
    """Two-layer net with a block structure on gradient features.

    In training each visit of a row shows the net one random candidate label's view of it; in prediction the outputs for
    all candidate labels are summed, and the class of the largest sum is taken.

    Parameters
    ----------
    hidden_sizes : int or sequence of int, default=32
        Hidden units of each group of the structure.
    structure : {"layer", "adjacent", "full"} or list of lists of str, default="layer"
        Which layers' gradients a hidden unit sees: one layer's, those of two consecutive layers, or all; or the names
        of each group's layers.
    activation : {"relu", "square", "tanh", "identity"} or callable, default="relu"
        "square" makes the separator literally quadratic.
    regularization : float, default=0.0
        Weight λ of the penalty ``λ/2 ‖w‖²`` on all weights, biases apart.
    dropout : float, default=0.0
        Probability with which a hidden unit is left out in training.
    n_labels : int, optional
        Number of candidate labels in the columns. A lazy array tells it. For a plain array, such as dense or sparse
        gradient features, it is 1 by default: all columns are then one view.
    blocks : sequence of int or of Block, optional
        Sizes of the layers' gradients within a candidate label. A lazy array tells them; for plain arrays all columns
        are one block by default.
    class_weight : {"balanced"}, dict or None, default=None
        Weights of the classes in the loss.
    lr : float or "auto", default="auto"
        Learning rate. "auto" is 0.05 / √m for a layer of m inputs, which suits Adam: a step then changes what enters a
        unit by about the same amount in every layer.
    module, criterion, optimizer, max_epochs, batch_size, dataset, train_split, verbose
        As in skorch.
    random_state : int, RandomState or None, default=None
        Seed of initialization, order of the rows, random views and dropout.
    iterator_train__shuffle : bool, default=True
        Whether the rows come in a new order in every epoch.
    device : str or device, optional
        Where to train; by default where the features are computed.
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
    n_features_in_ : int
        Number of columns.

    References
    ----------
    A. R. Aleksziew, "Improving Neural Networks using Gradient Space"; B. Daróczy, R. Aleksziew, A. Benczúr,
    arXiv:1807.06630.

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

    def __init__(
        self,
        hidden_sizes=32,
        *,
        structure="layer",
        activation="relu",
        regularization=0.0,
        dropout=0.0,
        n_labels=None,
        blocks=None,
        class_weight=None,
        module=GradNet,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr="auto",
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
        self.regularization = regularization
        self.dropout = dropout
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

    def _validate_X(self, X, reset):
        if isinstance(X, GradientArray):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if reset:
                self._set_dtype(X.dtype)
        elif is_skorchs_own(X):
            raise TypeError(
                f"X must be gradient features, as a GradientArray or a matrix, not as a {type(X).__name__}."
            )
        else:
            X = super()._validate_X(X, reset)
        if reset:
            self._data_device = X.compute_device if isinstance(X, GradientArray) else torch.device("cpu")
            self._lay_out(X)
        elif isinstance(X, GradientArray) and (X.n_labels, X.blocks) != (self.n_labels_, self.blocks_):
            raise ValueError(
                f"X has {X.n_labels} candidate labels and blocks {[b.name for b in X.blocks]}; the net was fitted to "
                f"{self.n_labels_} and {[b.name for b in self.blocks_]}."
            )
        return X

    def _lay_out(self, X) -> None:
        """Learn the meaning of the columns of `X`."""
        if isinstance(X, GradientArray):
            if self.n_labels not in (None, X.n_labels):
                raise ValueError(f"n_labels={self.n_labels}, but X is a lazy array of {X.n_labels} candidate labels.")
            self.n_labels_, self.blocks_ = X.n_labels, X.blocks
            return
        n_labels = 1 if self.n_labels is None else self.n_labels
        if not isinstance(n_labels, Integral) or n_labels < 1 or self.n_features_in_ % n_labels:
            raise ValueError(
                f"n_labels={n_labels} must be a positive integer that divides the {self.n_features_in_} columns of X."
            )
        self.n_labels_ = int(n_labels)
        self.blocks_ = blocks_of_sizes(self.blocks, self.n_features_in_ // self.n_labels_)

    def _module_sizes(self) -> dict:
        if self.criterion is nn.NLLLoss or isinstance(self.criterion, nn.NLLLoss):
            raise ValueError("criterion=NLLLoss takes probabilities, but GradNet returns logits: use CrossEntropyLoss.")
        check_scalar(self.dropout, "dropout", Real, min_val=0, max_val=1, include_boundaries="left")
        check_scalar(self.regularization, "regularization", Real, min_val=0, max_val=1e30)
        check_scalar(self.max_epochs, "max_epochs", Integral, min_val=0)
        if self.lr != "auto":
            check_scalar(self.lr, "lr", Real, min_val=0)
        groups = group_columns(self.blocks_, self.structure)
        sizes = [self.hidden_sizes] * len(groups) if isinstance(self.hidden_sizes, Integral) else self.hidden_sizes
        known = isinstance(sizes, Sequence) and all(isinstance(size, Integral) and size > 0 for size in sizes)
        if not known or len(sizes) != len(groups):
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
        """Apply the module: to one random view of each row in training, else to all views, whose outputs are summed.

        Parameters
        ----------
        x : GradientArray, ndarray or Tensor of shape (n, n_labels * n_params)
            A batch of gradient features.
        **fit_params : dict
            Passed on to the module.

        Returns
        -------
        logits : Tensor of shape (n, n_classes)
            The module's output.
        """
        x = x.X if isinstance(x, WeightedRows) else x
        if self.module_.training:
            labels = torch.randint(self.n_labels_, (len(x),)) if self.n_labels_ > 1 else torch.zeros(len(x), dtype=int)
            return super().infer(self._view(x, labels), **fit_params)
        parts = x.parts() if isinstance(x, GradientArray) else [self._view(x)]
        return torch.cat([self._sum_over_views(part.to(self._dtype), **fit_params) for part in parts])

    def _view(self, x, labels: Tensor | None = None) -> Tensor:
        """Return features of shape (n, n_params) for `labels`, or (n, n_labels, n_params) for all labels."""
        if isinstance(x, GradientArray):
            return x.view(labels).to(self._dtype)
        views = torch.as_tensor(x, dtype=self._dtype).unflatten(1, (self.n_labels_, -1))
        return views if labels is None else views[torch.arange(len(views)), labels]

    def _sum_over_views(self, views: Tensor, **fit_params) -> Tensor:
        return super().infer(views.flatten(0, 1), **fit_params).unflatten(0, views.shape[:2]).sum(1)

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
            return super().get_loss(y_pred / self.n_labels_, y_true, X, training)
        loss = super().get_loss(y_pred, y_true, X, training)
        if self.regularization:
            weights = [p for p in self.module_.parameters() if p.ndim > 1]
            loss = loss + self.regularization / 2 * sum(w.square().sum() for w in weights)
        return loss

    def _get_predict_nonlinearity(self):
        # The net is trained on single views: the mean over views, not their sum, is a logit of the trained size.
        nonlinearity = super()._get_predict_nonlinearity()
        return lambda logits: nonlinearity(logits / self.n_labels_)


def _linear_parameters(layer: nn.Module) -> list[nn.Parameter]:
    return list(layer.parameters()) if isinstance(layer, nn.Linear) else []
