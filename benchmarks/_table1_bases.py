"""Base nets of given accuracies: the authors' own, and nets trained by their recipe and stopped on the way.

Images and levels of accuracy enter; trained nets leave, of which those trained here are cached in files.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _cifar10 import authors_net
from _table1_images import Augmented, CentreCropAndStandardise, Images
from skorch.callbacks import Callback, LRScheduler
from torch import nn
from torch.optim.lr_scheduler import StepLR

from sklearn_gradspace._net_classifier import NetClassifier

AUTHORS = "authors"
_HELD_OUT = 2000  # rows of the first half by which the moment to stop is chosen
_EVERY = 20  # batches


def trainer(images: Images, epochs: int, device: str, seed: int, callbacks: Sequence = ()) -> NetClassifier:
    """Return what trains a net as the authors do: SGD, the learning rate halved every 25 epochs."""
    halved = LRScheduler(StepLR, step_size=25, gamma=0.5)
    return NetClassifier(
        partial(new_augmented, images.new_net, images.augment(contrast=True)),
        optimizer=torch.optim.SGD,
        optimizer__weight_decay=5e-4,
        lr=0.05,
        batch_size=64,
        max_epochs=epochs,
        callbacks=[("halved", halved), *callbacks],
        device=device,
        random_state=seed,
    )


def base_nets(names: Sequence[str], images: Images, data_home: str, folder: Path, name: str, device: str, epochs: int):
    """Return nets by name: ``"authors"``, or the accuracy at which training is stopped."""
    files = {level: folder / f"{name}_base_{level}.pt" for level in names if level != AUTHORS}
    missing = [level for level, file in files.items() if not file.is_file()]
    if missing:
        _train(missing, images, files, device, epochs)
    nets = {}
    for base in names:
        if base == AUTHORS:
            nets[base] = authors_base(images, data_home)
        elif files[base].is_file():
            nets[base] = images.new_net()
            nets[base].load_state_dict(torch.load(files[base], map_location="cpu", weights_only=True))
        else:
            raise SystemExit(f"no base net of accuracy {base} came of {epochs} epochs: raise --base-epochs.")
    return {base: net.to(device).eval() for base, net in nets.items()}


def authors_base(images: Images, data_home: str) -> nn.Module:
    """Return the authors' net, in evaluation mode, for images as they come."""
    return nn.Sequential(CentreCropAndStandardise(images.side), authors_net(data_home)).eval()


def _train(levels: list[str], images: Images, files: dict[str, Path], device: str, epochs: int) -> None:
    """Train on the first half, and save the net whenever it reaches one more level on rows held out of it."""
    n = images.half - min(_HELD_OUT, images.half // 5)
    held_out = images.X[n : images.half], images.y[n : images.half]
    snapshots = Snapshots({float(level): files[level] for level in levels}, held_out)
    trainer(images, epochs, device, 0, [("snapshots", snapshots)]).fit(images.X[:n], images.y[:n])


def new_augmented(new_net, augment) -> Augmented:
    """Return a net of new weights, which gets augmented images in training."""
    return Augmented(new_net(), augment)


class Snapshots(Callback):
    """Saves a net at levels of accuracy on rows held out, and ends training when it has reached the last."""

    def __init__(self, files: dict[float, Path], held_out: tuple[np.ndarray, np.ndarray]) -> None:
        self.files, self.held_out = files, held_out

    def on_train_begin(self, net, **kwargs) -> None:
        """Expect all levels."""
        self.wanted, self.batches = sorted(self.files), 0

    def on_batch_end(self, net, training=False, **kwargs) -> None:
        """Look at the net now and then."""
        self.batches += training
        if not training or self.batches % _EVERY:
            return
        X, y = self.held_out
        accuracy = (np.concatenate([p.cpu() for p in net.forward_iter(X, training=False)]).argmax(1) == y).mean()
        net.module_.train()
        while self.wanted and accuracy >= self.wanted[0]:
            torch.save(net.module_.net.state_dict(), self.files[self.wanted.pop(0)])
        if not self.wanted:
            raise KeyboardInterrupt  # by which skorch's EarlyStopping ends training as well
