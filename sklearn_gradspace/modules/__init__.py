"""The nets of the package, as plain torch modules."""

from ._base_nets import MLP, GradNetCNN
from ._gradnet import GradNet

__all__ = ["MLP", "GradNet", "GradNetCNN"]
