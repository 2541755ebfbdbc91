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
    device : device
        Where the sums are.

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
    """

    def __init__(self, blocks: Sequence[Block], n_groups: int, device: torch.device) -> None:
        def zeros() -> dict[str, Tensor]:
            return {
                block.name: torch.zeros(n_groups, block.size, dtype=torch.float64, device=device) for block in blocks
            }

        self._shapes = {block.name: block.shape for block in blocks}
        self._sums, self._squares = zeros(), zeros()
        self.counts = torch.zeros(n_groups, dtype=torch.int64, device=device)
        self.n_rows = 0
        self._n_added = {block.name: [0] * n_groups for block in blocks}  # rows, whatever their group

    def count(self, groups: Tensor) -> None:
        """Count rows, each with the number of its group, when all of their scores are added."""
        self.n_rows += len(groups)
        self.counts += torch.bincount(groups, minlength=len(self.counts))

    def add(self, name: str, scores: Tensor, groups: Tensor, start: int, scale: Tensor | float = 1.0) -> None:
        """Add scores of shape (n, size) of the rows from `start` on, to be multiplied by `scale`.

        They are written over.
        """
        of_group = torch.stack([self._new(name, group, groups, start) for group in range(len(self.counts))])
        of_group = of_group.to(scores.dtype)  # (n_groups, n)
        sums = (of_group @ scores).double() * scale
        squares = (of_group @ scores.square_()).double() * scale**2
        self._sums[name] += sums
        self._squares[name] += squares
        self._n_added[name] = [max(n, start + len(groups)) for n in self._n_added[name]]

    def _new(self, name: str, group: int, groups: Tensor, start: int) -> Tensor:
        """Return which of the rows from `start` on are of a group and not added yet."""
        of_group = groups == group
        of_group[: max(0, self._n_added[name][group] - start)] = False
        return of_group

    def add_products(self, name: str, left: Tensor, right: Tensor, groups: Tensor, start: int, scale: Tensor) -> None:
        """Add the scores ``left_i right_j``, to be multiplied by ``scale_ij``, without forming those of a row.

        Parameters
        ----------
        name : str
        left : Tensor of shape (n, n_out)
        right : Tensor of shape (n, n_in)
        groups : Tensor of shape (n,)
        start : int
            The number of the first row.
        scale : Tensor of shape (n_out, n_in)
        """
        scale = scale.flatten()
        for group in range(len(self.counts)):
            of_group = self._new(name, group, groups, start)
            u, v = left[of_group], right[of_group]
            sums = (u.T @ v).flatten().double() * scale
            squares = (u.square().T @ v.square()).flatten().double() * scale**2
            self._sums[name][group] += sums
            self._squares[name][group] += squares
            self._n_added[name][group] = max(self._n_added[name][group], start + len(groups))

    def mean(self, name: str, groups: Sequence[int]) -> Tensor:
        """Return the mean score of the rows of some groups, of the parameter's shape; NaN where there are none."""
        groups = list(groups)
        return (self._sums[name][groups].sum(0) / self.counts[groups].sum()).view(self._shapes[name])

    def standard_error(self, name: str, groups: Sequence[int]) -> Tensor:
        """Return the standard error of `mean`; NaN where there are less than two rows."""
        groups = list(groups)
        n, total = self.counts[groups].sum().double(), self._sums[name][groups].sum(0)
        deviations = (self._squares[name][groups].sum(0) - total.square() / n).clamp(min=0)
        errors = (deviations / n / (n - 1)).sqrt() if n > 1 else torch.full_like(deviations, torch.nan)
        return errors.view(self._shapes[name])
