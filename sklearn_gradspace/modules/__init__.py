"""The nets of the package, as plain torch modules."""

from ._gradnet import GradNet
from ._base_nets import MLP, GradNetCNN

__all__ = ["MLP", "GradNet", "GradNetCNN"]
