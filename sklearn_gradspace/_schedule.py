"""The learning rate over a fit.

The batches of a fit enter, by way of skorch's callbacks; what leaves is in the optimizer.
"""

from skorch.callbacks import LRScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR


class CosineSchedule(LRScheduler):
    """Learning rates that fall along half a cosine to zero at the last batch of a fit.

    skorch makes a scheduler before it splits off validation rows; here it is made when the number of batches is known.
    When training ends the optimizer gets its rates back, so that it can go on.
    """

    lr_scheduler_: CosineAnnealingLR | None

    def __init__(self) -> None:
        super().__init__(CosineAnnealingLR, step_every="batch")

    def get_params(self, deep: bool = True) -> dict:
        """Return no parameters: all are given."""
        return {}

    def on_train_begin(self, net, **kwargs) -> None:
        """Forget the scheduler of an earlier fit, which an error may have ended."""
        self.on_train_end(net)

    def on_epoch_begin(self, net, dataset_train=None, **kwargs) -> None:
        """Make the scheduler in the first epoch."""
        if self.lr_scheduler_ is None:
            steps = getattr(net, "_epochs", net.max_epochs) * len(net.get_iterator(dataset_train, training=True))
            self.lr_scheduler_ = CosineAnnealingLR(net.optimizer_, steps)

    def on_train_end(self, net, **kwargs) -> None:
        """Give the optimizer its rates back."""
        for group in net.optimizer_.param_groups:
            group["lr"] = group.pop("initial_lr", group["lr"])
        self.lr_scheduler_ = None  # it holds the optimizer, which the net's pickle has already
