"""The nets for the laws of the scale graph: `SUPPORTED` ones, and `PINNED` ones, of whose units some are not free."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from zlib import crc32

import torch
import torch.nn.functional as F
from pathspace.nets import (
    EXACT,
    Block,
    ConvBlock,
    InvertedResidual,
    OwnParameter,
    PreActivation,
    attention,
    between_convs,
    between_linear,
    bilinear,
    branching_inside,
    called_twice,
    columns_into_images,
    conv,
    dense_block,
    every_call_of_relu,
    flattened,
    in_place,
    inception,
    joined_along_positions,
    matrix_product,
    maximum_of_branches,
    mean_over_tokens,
    mlp,
    norm_called_twice,
    normalized,
    normalized_conv,
    parted,
    pooled_channels,
    pooled_columns,
    positions_into_linear,
    pre_activation,
    product_of_branches,
    read_by_two_norms,
    recurrent,
    residual,
    resnet,
    shared_weight,
    squeeze_excite,
    tokens_of,
    transposed,
    two_convs,
    unet,
    with_activation,
    with_raw_input,
    with_weight_norm,
)
from torch import nn


@dataclass(frozen=True)
class Case:
    """A net with `units` units that can be scaled, counted by hand, and rows for it; the same each time.

    `extra` is by how much the rank of the function's Jacobian falls short of m - `units` for another reason, `why`.
    `approximate` of the units are free but for a batch norm's eps. `pinned` are parts of the names of what
    the report says that pins units. With `seed` every unit is on in some rows and off in others.
    """

    name: str
    build: Callable[[], nn.Module]
    units: int
    shape: tuple[int, ...] = (4,)
    extra: int = 0
    why: str = ""
    approximate: int = 0
    pinned: tuple[str, ...] = ()
    seed: int = 0

    def net(self, dtype=torch.float64) -> nn.Module:
        """Return a new net: in training mode where it has batch norms, else in evaluation mode."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(crc32(self.name.encode()) + self.seed)
            net = self.build().double()
            for parameter in net.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
            for name, buffer in net.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.uniform_(0.5, 2)
        return net.to(dtype).train(self.has_batch_norm(net))

    def X(self, n=40, dtype=torch.float64) -> torch.Tensor:
        """Return rows of shape (n, *shape)."""
        generator = torch.Generator().manual_seed(crc32(self.name.encode()) + self.seed)
        X = torch.randn(n, *self.shape, generator=generator, dtype=torch.float64)
        size = torch.rand(n, *[1] * len(self.shape), generator=generator, dtype=torch.float64)
        return (X * 10 ** (2 * size - 1)).to(dtype)

    @staticmethod
    def has_batch_norm(net) -> bool:
        """Return whether the statistics of a batch are part of the function."""
        return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in net.modules())


LINE, SQUARE, CUBE = (2, 4), (2, 3, 3), (2, 3, 3, 3)
relu, leaky = nn.ReLU(), partial(F.leaky_relu, negative_slope=0.1)

SUPPORTED = [
    Case("mlp", partial(mlp, 4, 5, 3), 5),
    Case("mlp without biases", partial(mlp, 4, 5, 3, bias=False), 5),
    Case("deep mlp", partial(mlp, 4, 4, 5, 4, 2), 13, seed=21),
    Case("one hidden unit", partial(mlp, 3, 1, 2), 1, (3,)),
    Case("one output", partial(mlp, 4, 6, 1), 6),
    Case("bottleneck", partial(mlp, 4, 6, 2, 6, 3), 14, seed=89),
    Case("bottleneck without biases", partial(mlp, 4, 6, 2, 6, 3, bias=False), 14, seed=145),
    Case("leaky relu", lambda: with_activation(nn.LeakyReLU(0.1), nn.LeakyReLU(0.3, inplace=True)), 10),
    Case("prelu of one slope", lambda: with_activation(nn.PReLU(), relu), 10),
    Case("prelu of a slope a unit", lambda: with_activation(relu, nn.PReLU(5)), 10),
    Case(
        "identity and dropout", lambda: with_activation(nn.Sequential(relu, nn.Dropout(0.5), nn.Identity())), 5, seed=1
    ),
    Case("every call of relu", every_call_of_relu, 14, seed=88),
    Case("leaky relu as a function", lambda: between_linear(leaky), 7),
    Case(
        "no activation between two layers",
        lambda: nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)),
        2,
        extra=4,
        why="any invertible matrix and any shift can be put between linear layers, and 2 of the dimensions are scales",
    ),
    Case("conv1d", lambda: conv(1, features=9), 3, LINE),
    Case("conv2d", lambda: conv(2, features=12), 3, SQUARE),
    Case("conv3d", lambda: conv(3, features=24), 3, CUBE),
    Case("conv2d without bias", lambda: conv(2, features=12, bias=False), 3, SQUARE),
    Case("stride, dilation and padding", lambda: conv(1, features=12, stride=2, dilation=2, padding=2), 3, (2, 5)),
    Case("padding same", lambda: conv(2, features=27, kernel_size=3, padding="same"), 3, SQUARE),
    Case("two convolutions", lambda: two_convs(nn.Conv2d(4, 3, 2), features=3), 7, SQUARE, seed=3),
    Case("groups", lambda: two_convs(nn.Conv2d(4, 6, 2, groups=2), features=6), 10, SQUARE),
    Case("groups at the input", lambda: conv(1, features=12, channels=4, groups=2), 4, LINE, seed=1),
    Case("depthwise", lambda: two_convs(nn.Conv2d(4, 4, 2, groups=4), features=4), 8, SQUARE, seed=5),
    Case(
        "depthwise, two filters a channel",
        lambda: two_convs(nn.Conv2d(4, 8, 2, groups=4), features=8),
        12,
        SQUARE,
        seed=18,
    ),
    Case(
        "depthwise separable",
        lambda: two_convs(nn.Sequential(nn.Conv2d(4, 4, 2, groups=4), nn.ReLU(), nn.Conv2d(4, 3, 1)), features=3),
        11,
        SQUARE,
        seed=19,
    ),
    Case("transposed 1d", lambda: transposed(1), 8, LINE, seed=2),
    Case("transposed 2d", lambda: transposed(2, stride=2), 8, SQUARE, seed=94),
    Case("transposed 3d", lambda: transposed(3, bias=False), 8, (2, 2, 2, 2)),
    Case("transposed with groups", lambda: transposed(2, groups=2), 8, SQUARE, seed=1),
    Case("transposed depthwise", lambda: transposed(1, groups=4), 8, LINE, seed=5),
    Case("max-pool", lambda: conv(2, nn.MaxPool2d(2, 1), features=3), 3, SQUARE, seed=1),
    Case("max-pool 1d", lambda: conv(1, nn.MaxPool1d(2, ceil_mode=True), features=6), 3, LINE),
    Case("padded max-pool 3d", lambda: conv(3, nn.MaxPool3d(2, padding=1), features=24), 3, CUBE),
    Case("average-pool", lambda: two_convs(nn.Conv2d(4, 3, 2), nn.AvgPool2d(2, 1, padding=1), features=3), 7, SQUARE),
    Case("average-pool 1d", lambda: conv(1, nn.AvgPool1d(2), features=3), 3, LINE),
    Case("average-pool 3d", lambda: conv(3, nn.AvgPool3d(2), features=3), 3, CUBE),
    Case("adaptive average-pool", lambda: conv(2, nn.AdaptiveAvgPool2d((1, 2)), features=6), 3, SQUARE),
    Case("adaptive average-pool 1d", lambda: conv(1, nn.AdaptiveAvgPool1d(2), features=6), 3, LINE),
    Case("adaptive max-pool", lambda: conv(2, nn.AdaptiveMaxPool2d(1), features=3), 3, SQUARE),
    Case("max-pool as a function", lambda: between_convs(lambda x: F.max_pool2d(x, 2, 1)), 6, (2, 4, 4)),
    Case(
        "average-pool as a function",
        lambda: between_convs(lambda x: F.avg_pool2d(x, kernel_size=2, stride=1)),
        6,
        (2, 4, 4),
        seed=1,
    ),
    Case(
        "adaptive pool as a function",
        lambda: between_convs(lambda x: F.adaptive_avg_pool2d(x, 2)),
        6,
        (2, 4, 4),
        seed=1,
    ),
    Case(
        "dropout as a function", lambda: between_convs(lambda x: F.dropout(x, 0.5, training=False)), 6, SQUARE, seed=2
    ),
    Case("flattened by a method", lambda: flattened(lambda x: x.flatten(1)), 3, SQUARE),
    Case("flattened by a function", lambda: flattened(lambda x: torch.flatten(x, 1)), 3, SQUARE),
    Case("flattened by a keyword", lambda: flattened(lambda x: torch.flatten(x, start_dim=1, end_dim=-1)), 3, SQUARE),
    Case("flattened by a view", lambda: flattened(lambda x: x.view(x.size(0), -1)), 3, SQUARE),
    Case("flattened by reshape", lambda: flattened(lambda x: x.reshape(x.shape[0], -1)), 3, SQUARE),
    Case("reshaped to a number", lambda: flattened(lambda x: torch.reshape(x, (-1, 12))), 3, SQUARE),
    Case("mean over positions", lambda: flattened(lambda x: x.mean((2, 3)), 3), 3, SQUARE),
    Case("mean over positions, one after the other", lambda: flattened(lambda x: x.mean(-1).mean(2), 3), 3, SQUARE),
    Case(
        "mean as a function",
        lambda: flattened(lambda x: torch.mean(x, dim=[-2, -1], keepdim=True).flatten(1), 3),
        3,
        SQUARE,
    ),
    Case("zero padding", lambda: two_convs(nn.Conv2d(4, 2, 2), nn.ZeroPad2d((1, 1, 0, 1)), features=2), 6, SQUARE),
    Case("zero padding as a function", lambda: between_convs(lambda x: F.pad(x, (0, 1, 0, 1))), 6, SQUARE),
    Case(
        "nearest upsampling", lambda: two_convs(nn.Conv2d(4, 2, 2), nn.Upsample(scale_factor=2), features=2), 6, SQUARE
    ),
    Case(
        "bilinear upsampling",
        lambda: between_convs(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)),
        6,
        SQUARE,
    ),
    Case("interpolated to a size", lambda: between_convs(lambda x: F.interpolate(x, size=(4, 3))), 6, SQUARE),
    Case("batch norm", lambda: normalized(eps=EXACT), 10),
    Case("batch norm 2d", lambda: normalized_conv(2, eps=EXACT), 6, SQUARE),
    Case("batch norm 1d of channels", lambda: normalized_conv(1, eps=EXACT), 6, (2, 3)),
    Case("batch norm 3d", lambda: normalized_conv(3, eps=EXACT), 6, CUBE),
    Case(
        "bias in front of a batch norm", lambda: normalized(bias=True, eps=EXACT), 10, extra=5, why="it has no effect"
    ),
    Case("batch norm with eps", lambda: normalized(eps=0.1), 10, approximate=5),
    Case("batch norm without weights", lambda: normalized(eps=EXACT, affine=False), 5),
    Case("batch norm without running statistics", lambda: normalized(eps=EXACT, track_running_stats=False), 10, seed=1),
    Case(
        "batch norm behind leaky relu",
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(0.1), nn.BatchNorm1d(5, EXACT), relu, nn.Linear(5, 3)),
        10,
        seed=1,
    ),
    Case("batch norm at the input", lambda: nn.Sequential(nn.BatchNorm1d(4, EXACT), relu, nn.Linear(4, 3)), 4),
    Case(
        "batch norm at the output",
        lambda: nn.Sequential(nn.Linear(4, 5), relu, nn.Linear(5, 3, bias=False), nn.BatchNorm1d(3, EXACT)),
        8,
    ),
    Case("read by two batch norms", read_by_two_norms, 9, seed=4),
    Case("residual", lambda: residual(Block(3, 4)), 7, seed=3),
    Case("residual, projected", lambda: residual(Block(3, 4, 4)), 11, seed=322),
    Case("residual, two blocks", lambda: residual(Block(3, 2), Block(3, 4)), 9, seed=204),
    Case(
        "residual, two blocks of which one is projected",
        lambda: residual(Block(3, 3, activation=leaky), Block(3, 3, 4, activation=leaky)),
        13,
        seed=27,
    ),
    Case("residual on the input", lambda: nn.Sequential(Block(4, 5), nn.Linear(4, 2)), 5, pinned=("add",)),
    Case("residual, in place", lambda: residual(Block(3, 4, plus=in_place)), 7, seed=36),
    Case("residual, subtracted", lambda: residual(Block(3, 4, plus=torch.sub)), 7, seed=16),
    Case("residual, subtracted by an operator", lambda: residual(Block(3, 4, plus=lambda x, y: y - x)), 7),
    Case("residual, weighted", lambda: residual(Block(3, 4, plus=lambda x, y: 0.5 * x + y / 3 - 2 * (-y))), 7, seed=29),
    Case(
        "residual, added by a method",
        lambda: residual(Block(3, 4, plus=lambda x, y: x.mul(2).add(y, alpha=0.5))),
        7,
        seed=17,
    ),
    Case(
        "residual without activation",
        lambda: residual(Block(3, 4, activation=nn.Identity())),
        7,
        extra=7,
        why="of what the block adds, the last layer reads 2 of 3 dimensions from each of 4 units, and no bias",
        seed=5,
    ),
    Case("residual with batch norm", lambda: resnet(ConvBlock(2, 2)), 2 + 2 + 2 + 2 + 2, SQUARE),
    Case(
        "residual with batch norm, projected",
        lambda: resnet(ConvBlock(2, 3, 2), out=3),
        2 + 2 + 3 * 5,
        (2, 4, 4),
        extra=3,
        why="the shifts of two batch norms are added",
    ),
    Case("pre-activation", lambda: pre_activation(PreActivation(3, 2)), 3 + 3 + 2 + 2 + 3),
    Case("pre-activation, two blocks", lambda: pre_activation(PreActivation(3, 2), PreActivation(3, 4)), 24),
    Case("inverted residual", lambda: resnet(InvertedResidual(2, 3), relu), 2 + 2 + 3 * 4 + 2, SQUARE),
    Case("dense block", dense_block, 5, (2, 3), seed=5),
    Case("joined with the input", with_raw_input, 3, seed=2),
    Case("parallel branches", inception, 7, SQUARE),
    Case("u-net", unet, 7, (2, 4, 4), seed=114),
    Case("chunks", lambda: parted(lambda x: x.chunk(2, 1)), 7, seed=1),
    Case("chunks as a function", lambda: parted(lambda x: torch.chunk(x, 2, dim=-1)), 7, seed=6),
    Case("split", lambda: parted(lambda x: x.split(2, dim=1)), 7, seed=3),
    Case("split by sizes", lambda: parted(lambda x: torch.split(x, [2, 2], 1)), 7, seed=7),
    Case("joined along positions", joined_along_positions, 3, LINE),
    Case("slices", lambda: parted(lambda x: (x[:, :2], x[:, 2:])), 7, seed=10),
    Case("circular padding", lambda: conv(1, features=12, padding=1, kernel_size=3, padding_mode="circular"), 3, LINE),
    Case("tokens, flattened", lambda: nn.Sequential(nn.Linear(3, 4), relu, nn.Flatten(), nn.Linear(8, 2)), 4, (2, 3)),
    Case("tokens", lambda: nn.Sequential(mlp(3, 4, 3), relu, nn.Flatten(), nn.Linear(6, 2)), 7, (2, 3)),
    Case("times a constant", lambda: between_linear(lambda x: 0.5 * x * 3 / 2), 7, seed=9),
    Case("negated and subtracted", lambda: between_linear(lambda x: x - (-x) * 0.5), 7, seed=8),
]

PINNED = [
    Case("sigmoid", lambda: with_activation(nn.Sigmoid(), relu), 5, pinned=("1",)),
    Case("tanh as a function", lambda: between_linear(torch.tanh), 3, pinned=("tanh",)),
    Case("sigmoid as a method", lambda: between_linear(lambda x: x.sigmoid()), 3, pinned=("sigmoid",)),
    Case("gelu", lambda: with_activation(relu, nn.GELU()), 5, pinned=("3",)),
    Case("elu", lambda: with_activation(nn.ELU(), relu), 5, pinned=("1",)),
    Case("relu6", lambda: with_activation(relu, nn.ReLU6()), 5, pinned=("3",)),
    Case("clamped", lambda: between_linear(lambda x: x.clamp(0, 0.5)), 3, pinned=("clamp",)),
    Case("squared", lambda: between_linear(lambda x: x**2), 3, pinned=("pow",)),
    Case("softmax", lambda: with_activation(nn.Softmax(1), relu), 5, pinned=("1",)),
    Case("softmax as a function", lambda: between_linear(lambda x: F.softmax(x, 1)), 3, pinned=("softmax",)),
    Case("layer norm", lambda: with_activation(relu, nn.Sequential(nn.LayerNorm(5), relu)), 5, pinned=("3",)),
    Case("group norm", lambda: two_convs(nn.Conv2d(4, 3, 2), nn.GroupNorm(2, 4), features=3), 3, SQUARE, pinned=("2",)),
    Case(
        "instance norm",
        lambda: two_convs(nn.Conv2d(4, 3, 2), nn.InstanceNorm2d(4), features=3),
        3,
        SQUARE,
        pinned=("2",),
    ),
    Case("product of two branches", product_of_branches, 0, pinned=("mul",)),
    Case("squeeze and excite", squeeze_excite, 2, SQUARE, pinned=("sigmoid", "mul")),
    Case("plus a constant", lambda: between_linear(lambda x: x + 1), 3, pinned=("add",)),
    Case("plus a constant, in place", lambda: between_linear(lambda x: in_place(1, 2 * x)), 3, pinned=("add",)),
    Case("constant minus", lambda: between_linear(lambda x: 1 - x), 3, pinned=("sub",)),
    Case("divided by its norm", lambda: between_linear(lambda x: x / x.norm()), 3, pinned=("norm", "div")),
    Case("inverted", lambda: between_linear(lambda x: 1 / (x + 1)), 3, pinned=("add",)),
    Case(
        "padded with ones",
        lambda: between_convs(lambda x: F.pad(x, (1, 0), "constant", 1.0)),
        3,
        SQUARE,
        pinned=("pad",),
    ),
    Case(
        "constant padding",
        lambda: two_convs(nn.Conv2d(4, 3, 2), nn.ConstantPad2d(1, 0.5), features=3),
        3,
        SQUARE,
        pinned=("2",),
    ),
    Case(
        "channels padded", lambda: between_convs(lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), 5), 3, SQUARE, pinned=("pad",)
    ),
    Case("columns padded", lambda: between_linear(lambda x: F.pad(x, (1, -1))), 3, pinned=("pad",)),
    Case("columns pooled", lambda: pooled_columns(nn.MaxPool1d(3, 1, 1)), 3, SQUARE, pinned=("4",)),
    Case("columns padded by a layer", lambda: pooled_columns(nn.ZeroPad1d((1, -1))), 3, SQUARE, pinned=("4",)),
    Case("channels pooled", lambda: conv(1, nn.AvgPool2d(3, 1, 1), features=9), 0, LINE, pinned=("2",)),
    Case(
        "channels pooled by a function",
        lambda: pooled_channels(lambda x: F.max_pool2d(x, 3, 1, 1)),
        0,
        LINE,
        pinned=("pool",),
    ),
    Case("channels shifted", lambda: between_convs(lambda x: x.roll(1, 1)), 3, SQUARE, pinned=("roll",)),
    Case("sum over channels", lambda: between_convs(lambda x: x.sum(1, keepdim=True), 1), 3, SQUARE, pinned=("sum",)),
    Case("mean over tokens", mean_over_tokens, 0, (2, 3), pinned=("mean",)),
    Case("positions into a linear layer", positions_into_linear, 0, (2, 5), pinned=("positions",)),
    Case("transposed", lambda: tokens_of(lambda x: x.transpose(1, 2)), 4, LINE, pinned=("transpose",)),
    Case("columns into images", columns_into_images, 2, pinned=("view",)),
    Case(
        "shuffled pixels",
        lambda: two_convs(nn.Conv2d(1, 3, 2), nn.PixelShuffle(2), features=3),
        3,
        SQUARE,
        pinned=("2",),
    ),
    Case("maximum of two branches", maximum_of_branches, 0, pinned=("maximum",)),
    Case("a bilinear layer", bilinear, 0, pinned=("bilinear",)),
    Case("a matrix product of two branches", matrix_product, 0, LINE, pinned=("matmul",)),
    Case("shared weight", shared_weight, 0, pinned=("2",)),
    Case("called twice", called_twice, 0, pinned=("step",)),
    Case("a batch norm called twice", norm_called_twice, 3, pinned=("norm",)),
    Case("attention", attention, 0, (2, 3), pinned=("attention",)),
    Case("times a parameter", lambda: OwnParameter(torch.mul, 4), 0, pinned=("mul",)),
    Case("plus a parameter", lambda: OwnParameter(torch.add, 4), 0, pinned=("add",)),
    Case("a parameter read by a function", lambda: OwnParameter(F.linear, 4, 4), 0, pinned=("linear",)),
    Case("weight norm", with_weight_norm, 4, pinned=("1",)),
    Case("control flow in a submodule", branching_inside, 3, pinned=("2",)),
    Case("recurrent", recurrent, 3, (2, 3)),
]
CASES = SUPPORTED + PINNED
BY_NAME = {case.name: case for case in CASES}
