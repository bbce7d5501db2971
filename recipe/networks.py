"""The networks as data: one list of layers each, from which both implementations are built."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType

from recipe.errors import UserError

Shape = tuple[int, ...]

IMAGE_SHAPE = (1, 28, 28)
CLASSES = 10


@dataclass(frozen=True)
class Conv:
    """Convolution with stride 1 and the same zero padding on all four sides."""

    channels: int
    kernel: int = 3
    pad: int = 0
    bias: bool = True
    shared: int | None = None  # the number of an earlier convolution, whose weights it uses


@dataclass(frozen=True)
class Norm:
    """Batch normalisation over batch, height and width; the defaults are PyTorch's."""

    epsilon: float = 1e-5
    momentum: float = 0.1  # the weight of the new value in a running statistic


@dataclass(frozen=True)
class Relu:
    """Rectified linear unit."""


@dataclass(frozen=True)
class Dropout:
    """Element-wise dropout; the rate is the recipe's."""


@dataclass(frozen=True)
class MaxPool:
    """2x2 maximum with stride 2."""


@dataclass(frozen=True)
class AvgPool:
    """2x2 mean with stride 2."""


@dataclass(frozen=True)
class Average:
    """Mean over height and width, down to 1x1."""


Operation = Conv | Norm | Relu | Dropout | MaxPool | AvgPool | Average


@dataclass(frozen=True)
class Layer:
    """One operation at its place in a network; shapes are (C, H, W)."""

    name: str
    operation: Operation
    in_shape: Shape
    out_shape: Shape

    @property
    def owner(self) -> str:
        """Name of the layer whose tensors it uses: its own, or that of an earlier convolution."""
        shared = self.operation.shared if isinstance(self.operation, Conv) else None
        return self.name if shared is None else f"conv{shared}"

    @property
    def parameters(self) -> dict[str, Shape]:
        """Shapes of its own trainable tensors, by canonical name (convolution kernels are OIHW)."""
        match self.operation:
            case Conv(channels, kernel, _, bias, None):
                weight = {f"{self.name}.weight": (channels, self.in_shape[0], kernel, kernel)}
                return weight | ({f"{self.name}.bias": (channels,)} if bias else {})
            case Norm():
                return {f"{self.name}.{tensor}": self.in_shape[:1] for tensor in ("weight", "bias")}
        return {}

    @property
    def buffers(self) -> dict[str, Shape]:
        """Shapes of the running statistics, by canonical name."""
        if isinstance(self.operation, Norm):
            return {f"{self.name}.{tensor}": self.in_shape[:1] for tensor in ("running_mean", "running_var")}
        return {}

    @property
    def parameter_count(self) -> int:
        """Number of trainable numbers."""
        return sum(prod(shape) for shape in self.parameters.values())


@dataclass(frozen=True)
class Network:
    """A named list of layers from the image to the (10, 1, 1) logits."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> dict[str, Shape]:
        """Shapes of all trainable tensors, by canonical name, in layer order."""
        return {name: shape for layer in self.layers for name, shape in layer.parameters.items()}

    @property
    def buffers(self) -> dict[str, Shape]:
        """Shapes of all running statistics, by canonical name, in layer order."""
        return {name: shape for layer in self.layers for name, shape in layer.buffers.items()}

    @property
    def kernels(self) -> list[str]:
        """Canonical names of the convolution kernels: the tensors that weight decay applies to."""
        return [name for name, shape in self.parameters.items() if len(shape) == 4]

    @property
    def dropouts(self) -> list[str]:
        """Names of the dropout layers, in order; the position is the layer number in the dropout hash."""
        return [layer.name for layer in self.layers if isinstance(layer.operation, Dropout)]

    @property
    def parameter_count(self) -> int:
        """Number of trainable numbers."""
        return sum(layer.parameter_count for layer in self.layers)


def build_network(name: str, operations: list[Operation]) -> Network:
    """Name the layers and work out their shapes.

    A layer is numbered after the convolution it follows: ``conv3``, ``norm3``, ``pool3``.

    Raises:
        ValueError: the operations do not end in (10, 1, 1) logits, a map is too small for its kernel, or a
            convolution shares the weights of none before it, or of one of another kind.
    """
    layers: list[Layer] = []
    shape: Shape = IMAGE_SHAPE
    number = 0
    for operation in operations:
        channels, height, width = shape
        kind = type(operation).__name__.lower()
        match operation:
            case Conv(channels, kernel, pad):
                number += 1
                shrink = kernel - 1 - 2 * pad
                out = (channels, height - shrink, width - shrink)
            case MaxPool() | AvgPool():
                out = (channels, height // 2, width // 2)
            case Average():
                out = (channels, 1, 1)
            case _:
                out = shape
        if min(out) < 1:
            raise ValueError(f"{name}: {kind}{number} leaves nothing of {shape}")
        layer = Layer(f"{kind}{number}", operation, shape, out)
        if isinstance(operation, Conv) and operation.shared is not None:
            owner, bare = layer.owner, replace(operation, shared=None)
            if (owner, bare, channels) not in [(o.name, o.operation, o.in_shape[0]) for o in layers]:
                raise ValueError(f"{name}: {layer.name} cannot have the weights of {owner}")
        layers.append(layer)
        shape = out
    if shape != (CLASSES, 1, 1):
        raise ValueError(f"{name} ends in {shape}, not in ({CLASSES}, 1, 1)")
    return Network(name, tuple(layers))


def _net10040() -> list[Operation]:
    def block(channels: int, kernel: int = 3, pad: int = 0) -> list[Operation]:
        return [Conv(channels, kernel, pad, bias=False), Norm(), Relu(), Dropout()]

    return [
        *block(8, pad=1),
        *block(16, pad=1),
        *block(16, pad=1),
        MaxPool(),
        *block(8, kernel=1),
        *block(16, pad=1),
        *block(16, pad=1),
        MaxPool(),
        *block(8, kernel=1),
        *block(16),
        Conv(10, bias=False),
        Average(),
    ]


def _net9954() -> list[Operation]:
    def block(channels: int) -> list[Operation]:
        return [Conv(channels), Relu(), Norm()]

    return [
        *block(8),
        *block(16),
        Conv(8, kernel=1),
        MaxPool(),
        Dropout(),
        *block(16),
        *block(16),
        MaxPool(),
        Dropout(),
        Conv(32),
        Conv(10, kernel=1),
        Average(),
    ]


def _net9808() -> list[Operation]:
    """This project's own: narrow and deep, with four kernels used twice each (docs/accuracy.md)."""

    def block(shared: int | None = None) -> list[Operation]:
        return [Conv(16, pad=1, bias=False, shared=shared), Norm(), Relu()]

    return [
        *block(),
        AvgPool(),
        *block(),
        *block(),
        *block(shared=2),
        *block(shared=3),
        AvgPool(),
        *block(),
        *block(),
        *block(shared=6),
        *block(shared=7),
        Average(),
        Conv(CLASSES, kernel=1, bias=False),
    ]


NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "net10040": build_network("net10040", _net10040()),
        "net9954": build_network("net9954", _net9954()),
        "net9808": build_network("net9808", _net9808()),
    }
)


def get_network(name: str) -> Network:
    """The network of that name.

    Raises:
        UserError: there is none.
    """
    if name not in NETWORKS:
        raise UserError(f"unknown network {name!r}; choose one of: {', '.join(NETWORKS)}")
    return NETWORKS[name]
