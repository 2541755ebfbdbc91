"""Mean and standard error over rows of a score that every entry of a parameter has.

Scores of rows, or the factors of scores that are outer products, enter batch by batch; means and standard errors leave.
What is kept are two sums of each entry for each group of rows, however many rows there are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._blocks import Block


class ScoreMoments:
    """Sums and sums of squares of scores over rows, in double precision, apart for groups of rows.

    Parameters
    ----------
    blocks : sequence of Block
        The parameters, whose entries have the scores.
    n_groups : int
        Number of groups.
    device : device
        Where the sums are.
    by_tap : bool, default=False
        Whether scores come in the order of :meth:`Block.shaped_by_tap`.

    Attributes
    ----------
    counts : Tensor of shape (n_groups,)
        Number of rows of each group.
    n_rows : int
        Number of all rows that were counted.

    Notes
    -----
    Within a batch the sums are in the precision of the scores, which enter divided by their largest: the square of a
    squared gradient would else leave the range of single precision.

    Rows come in order. Of rows that come again, since what was made of them did not fit into memory, each entry is
    counted once.

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradspace.gradients import Block, ScoreMoments
    >>> moments, groups = ScoreMoments([Block("bias", (2,), 0)], 1, torch.device("cpu")), torch.tensor([0, 0])
    >>> moments.add("bias", torch.tensor([[1.0, 2.0], [3.0, 2.0]]), groups, start=0)
    >>> moments.count(groups)
    >>> moments.mean("bias", [0]).tolist(), moments.standard_error("bias", [0]).tolist()
    ([2.0, 2.0], [1.0, 0.0])
    """

    def __init__(self, blocks: Sequence[Block], n_groups: int, device: torch.device, by_tap: bool = False) -> None:
        def zeros() -> dict[str, Tensor]:
            return {
                block.name: torch.zeros(n_groups, block.size, dtype=torch.float64, device=device) for block in blocks
            }

        self._shaped = {block.name: block.shaped_by_tap if by_tap else block.shaped for block in blocks}
        self._sums, self._squares = zeros(), zeros()
        self.counts = torch.zeros(n_groups, dtype=torch.int64, device=device)
        self.n_rows = 0
        self._n_added = {block.name: [0] * n_groups for block in blocks}  # rows, whatever their group

    def count(self, groups: Tensor) -> None:
        """Count rows, each with the number of its group, when all of their scores are added.

        Parameters
        ----------
        groups : Tensor of shape (n,)
            Number of each row's group.
        """
        self.n_rows += len(groups)
        self.counts += torch.bincount(groups, minlength=len(self.counts))

    def add(self, name: str, scores: Tensor, groups: Tensor, start: int, scale: Tensor | float = 1.0) -> None:
        """Add scores of the rows from `start` on, to be multiplied by `scale`; they are written over.

        Parameters
        ----------
        name : str
            The parameter.
        scores : Tensor of shape (n, size)
            One a row and entry.
        groups : Tensor of shape (n,)
            Number of each row's group.
        start : int
            Number of the first row.
        scale : Tensor of shape (size,) or (1,), or float, default=1.0
            What scores are multiplied by.
        """
        of_group = torch.stack([self._new(name, group, groups, start) for group in range(len(self.counts))])
        of_group = of_group.to(scores.dtype)  # (n_groups, n)
        sums = (of_group @ scores) * scale
        squares = (of_group @ scores.square_()) * scale**2
        self._sums[name] += sums
        self._squares[name] += squares
        self._n_added[name] = [max(n, start + len(groups)) for n in self._n_added[name]]

    def _new(self, name: str, group: int, groups: Tensor, start: int) -> Tensor:
        """Return which of the rows from `start` on are of a group and not added yet."""
        of_group = groups == group
        of_group[: max(0, self._n_added[name][group] - start)] = False
        return of_group

    def add_products(
        self, name: str, left: Tensor, right: Tensor, groups: Tensor, start: int, scale: Tensor | float = 1.0
    ) -> None:
        """Add the scores ``left_i right_j``, to be multiplied by ``scale_ij``, without forming those of a row.

        Parameters
        ----------
        name : str
            The parameter.
        left : Tensor of shape (n, n_out)
            One factor of each row.
        right : Tensor of shape (n, n_in)
            The other one.
        groups : Tensor of shape (n,)
            Number of each row's group.
        start : int
            Number of the first row.
        scale : Tensor of shape (n_out, 1), or float, default=1.0
            What scores are multiplied by.
        """
        for group in range(len(self.counts)):
            of_group = self._new(name, group, groups, start)
            u, v = left[of_group], right[of_group]
            sums = u.T @ v * scale
            squares = u.square_().T @ v.square_() * scale**2
            self._sums[name][group] += sums.flatten()
            self._squares[name][group] += squares.flatten()
            self._n_added[name][group] = max(self._n_added[name][group], start + len(groups))

    def mean(self, name: str, groups: Sequence[int]) -> Tensor:
        """Return the mean score of the rows of some groups, of the parameter's shape; NaN where there are none.

        Parameters
        ----------
        name : str
            The parameter.
        groups : sequence of int
            Numbers of the groups.

        Returns
        -------
        mean : Tensor
            Of the parameter's shape.
        """
        groups = list(groups)
        return self._shaped[name](self._sums[name][groups].sum(0) / self.counts[groups].sum())

    def standard_error(self, name: str, groups: Sequence[int]) -> Tensor:
        """Return the standard error of `mean`; NaN where there are less than two rows.

        Parameters
        ----------
        name : str
            The parameter.
        groups : sequence of int
            Numbers of the groups.

        Returns
        -------
        error : Tensor
            Of the parameter's shape.
        """
        groups = list(groups)
        n, total = self.counts[groups].sum().double(), self._sums[name][groups].sum(0)
        deviations = (self._squares[name][groups].sum(0) - total.square() / n).clamp(min=0)
        errors = (deviations / n / (n - 1)).sqrt() if n > 1 else torch.full_like(deviations, torch.nan)
        return self._shaped[name](errors)
