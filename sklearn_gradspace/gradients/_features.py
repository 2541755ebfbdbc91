"""The features of a row and a candidate label: gradient, mask, selection, scaling, power, projection.

Rows of data enter; a tensor of features leaves, for one candidate label a row or for all of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ._blocks import Block
from ._engine import GradientEngine
from ._fisher import Whitening
from ._forward import ForwardPass
from ._mask import entry_names, kept_blocks
from ._names import plain_name
from ._outputs import Labels
from ._projection import Projection
from ._rules import outer_factors
from ._scaling import Scaler, compiled_map
from ._selection import select_largest

_PIECE = 2**18  # entries that are scaled at a time: with two copies of them, what a core's own cache holds


@dataclass(frozen=True)
class GradientFeatures:
    """The map from rows to gradient features.

    Parameters
    ----------
    engine : GradientEngine
        Of the net.
    percentile : float
        Percentage of each block's entries that selection keeps.
    scaler : Scaler or Whitening, optional
        Of selected gradients, or, if it mixes entries, of those before mask and selection.
    power : float, optional
        Exponent p of the power norm ``sign(v) |v|^p``.
    batch_size : int
        Rows of a pass through the net.
    selection : {"exact", "sampled"}
        See `select_largest`.
    compile : bool
        Whether scaling and power are one kernel, made by `torch.compile`.
    labels : {"all", "predicted"}
        Whether a row has a view for every candidate label, or a single one, for the label that the net predicts.
    mask : ndarray of shape (n_params,), optional
        Which columns of a gradient are features, before selection; by default all.
    projection : Projection, optional
        Applied last.

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradspace.gradients import GradientEngine, GradientFeatures
    >>> X = torch.ones(2, 4).numpy()
    >>> features = GradientFeatures(GradientEngine(torch.nn.Linear(4, 3), X), percentile=50)
    >>> features(X).shape, features.feature_names()[:2]
    (torch.Size([2, 3, 12]), ['weight[0,0]', 'weight[0,1]'])
    """

    engine: GradientEngine
    percentile: float = 100
    scaler: Scaler | Whitening | None = None
    power: float | None = None
    batch_size: int = 64
    selection: str = "exact"
    compile: bool = False
    labels: str = "all"
    mask: np.ndarray | None = None
    projection: Projection | None = None

    def __post_init__(self) -> None:
        if self.scaler is not None:
            object.__setattr__(self, "scaler", self.scaler.to(self.engine.device))
        if self.projection is not None:
            object.__setattr__(self, "projection", self.projection.to(self.engine.device))

    def __reduce__(self):
        # By way of the constructor: where the engine finds itself is where the scaler has to be.
        return GradientFeatures, tuple(getattr(self, field.name) for field in fields(self))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The columns of each parameter, within one candidate label."""
        return self.kept_blocks if self.projection is None else self.projection.blocks

    @cached_property
    def kept_blocks(self) -> tuple[Block, ...]:
        """The blocks of what the mask keeps, before projection."""
        return self.engine.blocks if self.mask is None else kept_blocks(self.mask, self.engine.blocks)

    @cached_property
    def columns(self) -> Tensor | slice:
        """The columns of a gradient that are kept."""
        return slice(None) if self.mask is None else torch.from_numpy(np.flatnonzero(self.mask)).to(self.engine.device)

    @property
    def n_labels(self) -> int:
        """Number of views of a row."""
        return 1 if self.labels == "predicted" else self.engine.n_labels

    @property
    def n_features(self) -> int:
        """Number of columns of a view."""
        return sum(block.size for block in self.blocks)

    @cached_property
    def divisors(self) -> list[float] | list[Tensor] | None:
        """What is divided by, or None where features are more than quotients of gradients.

        A number for each block; or, where all are of linear layers, the divisors of each block's entries.
        """
        scaler, blocks = self.scaler, self.engine.blocks
        if self.percentile != 100 or self.power not in (None, 1) or self.blocks != blocks:
            return None
        if scaler is None:
            return [1.0] * len(blocks)
        if type(scaler) is not Scaler or scaler.offset is not None:
            return None
        of_blocks = [scaler.divisor[block.slice] for block in blocks]
        ends = [divisors.aminmax() for divisors in of_blocks]
        if all(torch.equal(low, high) for low, high in ends):
            return [low.item() for low, _ in ends]
        layers = [self.engine.module.get_submodule(block.layer) for block in blocks]
        return of_blocks if all(isinstance(layer, nn.Linear) for layer in layers) else None

    def feature_names(self) -> list[str]:
        """Return the names of a view's columns, such as ``"conv1.weight[0,2,4,4]"``, by plain names of parameters.

        Returns
        -------
        names : list of str
            One a column.
        """
        mask = np.ones(self.engine.n_params, bool) if self.mask is None else self.mask
        whole = {b.name: replace(b, name=plain_name(self.engine.net, b.name)) for b in self.engine.blocks}
        return [
            name
            for kept, block, plain in ((k, b, whole[b.name]) for k, b in zip(self.kept_blocks, self.blocks))
            for name in (entry_names(mask, plain) if kept.size == block.size else plain.numbered_names(block.size))
        ]

    def memory(self, n: int) -> int:
        """Return the bytes that a pass of `n` rows, with all of their views, takes at most.

        Parameters
        ----------
        n : int
            Number of rows.

        Returns
        -------
        n_bytes : int
            Beyond what is there before.
        """
        part, entries = self.engine.part_rows(self.n_labels), 0  # rows whose gradients exist at a time
        if self.engine.device.type != "cpu":  # where magnitudes, orders and squares of a whole part are made
            entries += 4 * part * self.n_labels * self.engine.n_params
        if self._whitens:
            entries += 3 * part * self.n_labels * max(block.size for block in self.engine.blocks)
        if self.mask is not None:
            entries += part * self.n_labels * sum(block.size for block in self.kept_blocks)
        if self.projection is not None:
            entries += 2 * part * self.n_labels * max(block.size for block in self.kept_blocks)
        if not self._in_place:
            entries += n * self.n_labels * self.n_features
        of_pass = self.engine.memory(n, self.labels == "all", None if self._in_place else part)
        matrices = 0 if self.projection is None else self.projection.nbytes
        return of_pass + matrices + entries * self.engine.feature_dtype.itemsize

    def affordable_rows(self, budget: float) -> int:
        """Return how many rows, with all of their views, fit into `budget` bytes, one at least.

        Parameters
        ----------
        budget : float
            Bytes.

        Returns
        -------
        rows : int
            One at least.
        """
        return max(1, int((budget - self.memory(0)) // (self.memory(1) - self.memory(0))))

    @property
    def _in_place(self) -> bool:
        """Whether features are written where the gradients were."""
        return self.mask is None and self.projection is None

    def __call__(self, X: np.ndarray, labels: Tensor | None = None) -> Tensor:
        """Return features of shape (n, n_features), or (n, n_labels, n_features) where `labels` is None."""
        features = self.engine.allocate(len(X), labels is None and self.labels == "all", self.n_features)
        views = features if features.ndim == 3 else features.unsqueeze(1)
        for _ in self.parts(X, labels, views):
            pass
        return views if labels is None else features

    def parts(self, X: np.ndarray, labels: Tensor | None = None, out: Tensor | None = None) -> Iterator[Tensor]:
        """Yield features of consecutive rows, of shape (part, k, n_features), valid until the next are asked for.

        With `out`, of shape (n, k, n_features), they are written there.

        Parameters
        ----------
        X : ndarray of shape (n, ...)
            Rows.
        labels : Tensor of shape (n,), optional
            The number of one label for each row; by default all views.
        out : Tensor of shape (n, k, n_features), optional
            Where to write.

        Yields
        ------
        features : Tensor of shape (part, k, n_features)
            Of consecutive rows.
        """
        place = out if self._in_place else None
        for rows, features in self.engine.parts(X, self.engine_labels(X, labels), place, self.batch_size, self._finish):
            yield features if self._in_place or out is None else out[rows].copy_(features)

    def engine_labels(self, X: np.ndarray, labels: Tensor | None) -> Labels:
        """Return what the engine calls views of rows.

        Parameters
        ----------
        X : ndarray of shape (n, ...)
            Rows.
        labels : Tensor of shape (n,), optional
            The number of one view for each; by default all.

        Returns
        -------
        labels : Tensor of shape (n,), "predicted" or None
            As of a call of the engine.
        """
        if self.labels == "all":
            return labels
        if labels is not None and (len(labels) != len(X) or torch.as_tensor(labels).any()):
            raise ValueError("labels must be 0 for each row: with labels='predicted' a row has a single view.")
        return self.labels

    def selection_error(self, X: np.ndarray) -> float:
        """Return the share of entries of the rows `X` that are selected otherwise than exactly.

        Parameters
        ----------
        X : ndarray of shape (n, ...)
            Rows.

        Returns
        -------
        share : float
            0 where selection is exact.
        """
        if self.selection == "exact" or self.percentile == 100:
            return 0.0
        selected = replace(self, scaler=self.scaler if self._whitens else None, power=None, projection=None)
        mine, exact = (replace(selected, selection=selection)(X) for selection in (self.selection, "exact"))
        return (mine != exact).double().mean().item()

    def _pieces(self, gradients: Tensor) -> Sequence[Tensor]:
        """Return views of shape (rows, n_features), as many rows as are quickly worked on."""
        try:
            rows = gradients.view(-1, gradients.shape[-1])
        except RuntimeError:  # a place between others
            return gradients.unbind()
        on_cpu = gradients.device.type == "cpu" and not self.compile
        return rows.split(max(1, _PIECE // gradients.shape[-1])) if on_cpu else [rows]

    @property
    def _whitens(self) -> bool:
        return isinstance(self.scaler, Whitening)

    def _finish(self, forward: ForwardPass, gradients: Tensor) -> Tensor:
        """Whiten, mask, select, scale, raise to a power and project; in place but for mask and projection."""
        if self._whitens:
            self.scaler(gradients)
        if self.mask is not None:
            gradients = gradients.index_select(-1, self.columns)  # type: ignore[arg-type]
        scratch = self.engine.scratch
        are_of_use = self.percentile < 100 and not self._whitens and self.engine.device.type == "cpu"
        factors = self._factors(forward) if are_of_use else None
        select_largest(gradients, self.kept_blocks, self.percentile, factors, self.selection, scratch)
        scaler = self.scaler if isinstance(self.scaler, Scaler) else None
        for piece in self._pieces(gradients):
            if self.compile:
                of_piece = scaler or Scaler(None)
                compiled_map()(piece, of_piece.offset, of_piece.rounding, of_piece.divisor, self.power)
                continue
            if scaler is not None:
                scaler(piece, scratch)
            if self.power is not None and self.power != 1:
                magnitudes = torch.abs(piece, out=scratch.like("magnitudes", piece))
                torch.copysign(_power(magnitudes, self.power), piece, out=piece)
        return gradients if self.projection is None else self.projection(gradients)

    def _factors(self, forward: ForwardPass) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the factors of the blocks that are outer products, and kept as a whole."""
        factors = outer_factors(forward, self.engine.rules_for(forward))
        sizes = {block.name: block.size for block in self.kept_blocks}
        whole = [block.name for block in self.engine.blocks if sizes.get(block.name) == block.size]
        return {name: factors[name] for name in whole if name in factors}


def _power(magnitudes: Tensor, power: float) -> Tensor:
    """Raise to a power in place. torch's square root is seven times slower at zeros, of which there are many."""
    if power == 0.5 and magnitudes.device.type == "cpu":
        np.sqrt(magnitudes.numpy(), out=magnitudes.numpy())
        return magnitudes
    return magnitudes.pow_(power)
