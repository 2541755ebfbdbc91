"""The steps of differentiation behind a net's outputs: which of them use a parameter, or change the order of rows.

Outputs that can be differentiated enter; what was found in their graph leaves.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.autograd.graph import Node

# Steps that may put rows in an order that depends on them.
_ORDERINGS = ("Index", "Gather", "Scatter", "Sort", "Topk", "Flip", "Roll", "Take", "Put", "MaskedS", "RepeatI")


class Survey(NamedTuple):
    """What every pass looks for.

    Parameters
    ----------
    uses : dict of int to int
        By the identity of a parameter, how many steps use it.
    orders_rows : bool
        Whether rows may come in another order.
    """

    uses: Mapping[int, int]
    orders_rows: bool


def survey(outputs: Tensor) -> Survey:
    """Return which parameters are used how often behind `outputs`, and whether rows may be put in another order."""
    ahead, seen, orders_rows = [outputs.grad_fn], {outputs.grad_fn}, False
    uses: dict[int, int] = {}
    while ahead:
        step = ahead.pop()
        orders_rows = orders_rows or type(step).__name__.startswith(_ORDERINGS)
        for source, _ in step.next_functions:
            parameter = getattr(source, "variable", None)
            if parameter is not None:
                uses[id(parameter)] = uses.get(id(parameter), 0) + 1
            elif source is not None and source not in seen:
                seen.add(source)
                ahead.append(source)
    return Survey(uses, orders_rows)


class StepGraph:
    """The steps behind outputs, each with those that come after it.

    Parameters
    ----------
    outputs : Tensor
    """

    def __init__(self, outputs: Tensor) -> None:
        self._after: dict[Node, list[Node]] = {}
        for step in before([outputs.grad_fn]):
            for source, _ in step.next_functions:
                if source is not None:
                    self._after.setdefault(source, []).append(step)
        self._leaves = {id(step.variable): step for step in self._after if hasattr(step, "variable")}

    def leads_past(self, parameter: Tensor, calls: Sequence[tuple[Collection[Node], Collection[Node]]]) -> bool:
        """Return whether outputs depend on `parameter` by other steps than those of a layer, too.

        Parameters
        ----------
        parameter : Tensor
        calls : sequence of (collection of Node, collection of Node)
            The steps of what the layer returned in each of its calls, and of what it got.
        """
        ends = {step for of_call, _ in calls for step in of_call}
        inside = {step for of_call, sources in calls for step in before(set(of_call).difference(sources), sources)}
        ahead = [self._leaves[id(parameter)]]
        seen = set(ahead)
        while ahead:
            for after in self._after[ahead.pop()]:
                if after not in inside:
                    return True
                if after not in seen and after not in ends:
                    seen.add(after)
                    ahead.append(after)
        return False


def before(steps: Iterable[Node | None], sources: Collection[Node] = ()) -> dict[Node, None]:
    """Return `steps` and all that come before them in the net, up to `sources`, in the same order every time."""
    ahead = [step for step in steps if step is not None]
    found = dict.fromkeys(ahead)
    while ahead:
        for source, _ in ahead.pop().next_functions:
            if source is not None and source not in found and source not in sources:
                found[source] = None
                ahead.append(source)
    return found
