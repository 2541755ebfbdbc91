"""The Fisher metric: second moments of gradients under the label distribution of the net itself.

Batches of rows enter; the scaler of the metric's diagonal, or the whitening of its Kronecker factors, leaves. The
factors are those of Martens and Grosse, arXiv:1503.05671, of gradients as a whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ._blocks import Block
from ._forward import ForwardPass
from ._memory import require_memory
from ._outputs import label_probabilities
from ._scaling import Scaler
from ._sharing import tensor_of

FISHER_SCALES = ("fisher", "kronecker")

_DAMPING = 1e-3  # ε, as a share of the mean eigenvalue


@dataclass(frozen=True)
class Whitening:
    """The map ``G -> L G R`` of the gradients of each parameter, as matrices of its first axis and of all others.

    Parameters
    ----------
    blocks : tuple of Block
        The columns of each parameter.
    factors : tuple of tuple of Tensor
        For each block L and R, or for a vector the numbers that its entries are multiplied by.

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradspace.gradients import Block, Whitening
    >>> whitening = Whitening((Block("weight", (2, 3), 0),), ((2 * torch.eye(2), torch.eye(3)),))
    >>> whitening(torch.ones(1, 6))
    tensor([[2., 2., 2., 2., 2., 2.]])
    """

    blocks: tuple[Block, ...]
    factors: tuple[tuple[Tensor, ...], ...]

    def __reduce__(self):
        # As arrays, which joblib maps into workers and hashes alike everywhere.
        return _unpack, (self.blocks, [[factor.cpu().numpy() for factor in factors] for factors in self.factors])

    @property
    def is_finite(self) -> bool:
        """Whether every number is finite: where a gradient was not, this shows it."""
        return all(torch.isfinite(factor).all().item() for factors in self.factors for factor in factors)

    def to(self, device: torch.device) -> "Whitening":
        """Return the whitening on `device`.

        Parameters
        ----------
        device : device
            Where to.

        Returns
        -------
        whitening : Whitening
            The same map.
        """
        return Whitening(self.blocks, tuple(tuple(f.to(device) for f in factors) for factors in self.factors))

    def __call__(self, gradients: Tensor) -> Tensor:
        """Whiten `gradients` of shape (..., n_params) in place and return them."""
        for block, factors in zip(self.blocks, self.factors):
            part = gradients[..., block.slice]
            if len(factors) == 1:
                part.mul_(factors[0])
            else:
                left, right = factors
                part.copy_((left @ (_as_matrices(part, block) @ right)).flatten(-2))
        return gradients


def _unpack(blocks: tuple[Block, ...], factors: list[list[np.ndarray]]) -> Whitening:
    return Whitening(blocks, tuple(tuple(tensor_of(factor) for factor in of_block) for of_block in factors))


class FisherStatistics:
    """Second moments of gradients over rows and over the labels that the net expects, which add up over batches.

    Parameters
    ----------
    scale : {"fisher", "kronecker"}
        "fisher": those of each entry, ``E g²``. "kronecker": of a parameter's gradients G as matrices ``E G Gᵀ`` and
        ``E Gᵀ G``; of vectors those of each entry.
    blocks : sequence of Block

    Notes
    -----
    The expectation is ``E_x Σ_c p_c(x) g_c(x)²``, of gradients before selection.
    """

    def __init__(self, scale: str, blocks: Sequence[Block]) -> None:
        self.scale, self.blocks = scale, tuple(blocks)
        self._moments: list[Tensor] | None = None
        self._n_rows = 0

    def _is_factored(self, block: Block) -> bool:
        return self.scale == "kronecker" and len(block.shape) > 1

    def require_memory(self, device: torch.device) -> None:
        """Raise MemoryError if the moments do not fit on `device`."""
        for block in self.blocks:
            if self._is_factored(block):
                sides = (block.shape[0], block.size // block.shape[0])
                require_memory(  # the sums, those of a batch, and a decomposition's vectors and workspace
                    5 * 8 * sum(side**2 for side in sides),
                    f"scale='kronecker' for {block.name!r}, with factors of {sides[0]} and {sides[1]} rows,",
                    "Use scale='fisher', or leave this parameter out of `layers`.",
                    device,
                )

    def of(self, batch) -> "FisherStatistics":
        """Return the statistics of one batch, a GradientArray; its selection and scaling have no part in them."""
        found, engine = FisherStatistics(self.scale, self.blocks), batch.features.engine
        for rows, gradients in engine.parts(batch.X, None, None, batch.features.batch_size, _weighted_by_label):
            with engine.computing():
                found._add(gradients.flatten(0, 1), rows.stop - rows.start)
        return found

    def _add(self, gradients: Tensor, n_rows: int) -> None:
        moments = []
        for block in self.blocks:
            part = gradients[:, block.slice].double()  # so that the size of the batches does not show
            if self._is_factored(block):
                matrices = _as_matrices(part, block)
                by_row, by_column = matrices.transpose(0, 1).flatten(1), matrices.flatten(0, 1)
                moments += [by_row @ by_row.T, by_column.T @ by_column]
            else:
                moments.append(part.square().sum(0))
        of_part = FisherStatistics(self.scale, self.blocks)
        of_part._moments, of_part._n_rows = moments, n_rows
        self.merge(of_part)

    def merge(self, other: "FisherStatistics") -> "FisherStatistics":
        """Take in what `other` has seen."""
        if other._moments is not None:
            mine = self._moments
            self._moments = other._moments if mine is None else [a + b for a, b in zip(mine, other._moments)]
            self._n_rows += other._n_rows
        return self

    def scaler(self, dtype: torch.dtype) -> Scaler | Whitening:
        """Return the scaler of everything seen, or its whitening.

        The scaler divides by ``√(E g²)``, and by one where that is 0. The whitening is, with ``L = E G Gᵀ``,
        ``R = E Gᵀ G`` and ``t = E ‖G‖²``, ``√t (L + ε I)^(-1/2) G (R + ε I)^(-1/2)``, where ε is a thousandth of a
        matrix's mean eigenvalue; it leaves alone what is always 0.
        """
        moments = iter(moment / self._n_rows for moment in self._moments)
        if self.scale == "fisher":
            roots = torch.cat(list(moments)).sqrt()
            return Scaler(torch.where(roots == 0, 1, roots).to(dtype))
        factors: list[tuple[Tensor, ...]] = []
        for block in self.blocks:
            moment = next(moments)
            if self._is_factored(block):
                factors.append((_inverse_root(moment) * moment.trace().sqrt(), _inverse_root(next(moments))))
            else:
                factors.append((1 / (moment + _DAMPING * moment.mean()).sqrt(),))
            if not moment.any():
                factors[-1] = tuple(torch.ones_like(f) if f.ndim == 1 else torch.eye(len(f)).to(f) for f in factors[-1])
        return Whitening(self.blocks, tuple(tuple(f.to(dtype) for f in of_block) for of_block in factors))


def _weighted_by_label(forward: ForwardPass, gradients: Tensor) -> None:
    """Multiply gradients by √p_c, so that sums of their products are expectations over labels."""
    weights = label_probabilities(forward.outputs.double()).sqrt()
    gradients.mul_(weights.to(gradients.dtype).unsqueeze(-1))


def _as_matrices(gradients: Tensor, block: Block) -> Tensor:
    """Return a view of shape (..., rows, columns) on gradients of a block."""
    return gradients.unflatten(-1, (block.shape[0], -1))


def _inverse_root(moment: Tensor) -> Tensor:
    """Return ``(moment + ε I)^(-1/2)``."""
    if not torch.isfinite(moment).all():
        return moment  # where `is_finite` finds it
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp(min=0)
    return vectors / (values + _DAMPING * values.mean()).sqrt() @ vectors.T
