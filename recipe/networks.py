"""The networks as data: one list of layers each, from which both implementations are built."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType

from recipe.console import UserError

Shape = tuple[int, ...]

IMAGE_SHAPE = (1, 28, 28)
CLASSES = 10
# Of a network that the user lists; a map is one image's.
MAX_WORDS, MAX_PARAMETERS, MAX_MAP = 100, 1_000_000, 2**16
EXAMPLE = "13 13 pool 13 13 pool 13 13 13 average 10x1"


@dataclass(frozen=True)
class Conv:
    """Convolution with stride 1 and the same zero padding on all four sides."""

    channels: int
    kernel: int = 3
    pad: int = 0
    bias: bool = True
    shared: int | None = None  # the number of an earlier convolution, whose weights it uses
    depthwise: bool = False  # each channel by itself; there are as many channels as before


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
            case Conv(channels, kernel, _, bias, None, depthwise):
                read = 1 if depthwise else self.in_shape[0]
                weight = {f"{self.name}.weight": (channels, read, kernel, kernel)}
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
    def label(self) -> str:
        """A short name for files: that of a named network, else parameters and a hash of the list."""
        if self.name in NETWORKS:
            return self.name
        return f"net{self.parameter_count}-{hashlib.sha256(self.name.encode()).hexdigest()[:6]}"

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

    A layer is numbered after the convolution it follows: ``conv3``, ``norm3``, ``maxpool3``, ``maxpool3b``.

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
            raise ValueError(
                f"{name}: {kind}{number} gets a map of {height}x{width}, too small for it; leave it out or "
                "put it earlier"
            )
        label = f"{kind}{number}"
        while label in {layer.name for layer in layers}:  # two pools after one convolution
            label += "b"
        layer = Layer(label, operation, shape, out)
        if isinstance(operation, Conv) and operation.shared is not None:
            owner, bare = layer.owner, replace(operation, shared=None)
            if (owner, bare, layer.in_shape[0]) not in [(o.name, o.operation, o.in_shape[0]) for o in layers]:
                raise ValueError(
                    f"{name}: {layer.name} cannot have the weights of {owner}: that takes the same "
                    "channels, input channels, kernel and bias"
                )
        layers.append(layer)
        shape = out
    if shape != (CLASSES, 1, 1):
        raise ValueError(
            f"{name} ends in {shape}, not in ({CLASSES}, 1, 1), as {CLASSES}x1 after average does"
        )
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


_WORDS: Mapping[str, Operation] = {
    "pool": MaxPool(),
    "avgpool": AvgPool(),
    "average": Average(),
    "dropout": Dropout(),
}


def get_network(text: str) -> Network:
    """The network of that name, or the one whose layers the text lists.

    The words of a list, from the image to the logits; the list, with single spaces, is the network's name:

    - ``16``: a 3x3 convolution to 16 channels; ``16x1``, ``16x5``: 1x1, 5x5, up to 9x9. All keep the size of
      the map. Batch norm and ReLU follow each but the last.
    - ``16s``: a depthwise separable convolution: 3x3 in each channel by itself, then 1x1 to 16 channels.
    - ``16@a``, ``16s@a``: all with one letter have the same weights, each with a batch norm of its own.
    - ``bias``, right after the last convolution: it has a bias. The others have that of their batch norm.
    - ``pool``: 2x2 maximum; ``avgpool``: 2x2 mean; ``average``: mean over the whole map.
    - ``dropout``: element-wise, at the recipe's rate.

    Raises:
        UserError: the text is neither, or the layers do not lead from an image to ten logits.
    """
    words = text.split()
    if len(words) < 2:
        if text not in NETWORKS:
            raise UserError(
                f"unknown network {text!r}; choose one of: {', '.join(NETWORKS)}, or list layers: {EXAMPLE!r}"
            )
        return NETWORKS[text]
    operations = _parse(words)
    try:
        network = build_network(" ".join(words), operations)
    except ValueError as error:
        raise UserError(str(error)) from None
    for layer in network.layers:
        if prod(layer.out_shape) > MAX_MAP:
            raise UserError(
                f"{layer.name} of {network.name} gives {prod(layer.out_shape):,} numbers for an image; "
                f"at most {MAX_MAP:,} are taken"
            )
    if network.parameter_count > MAX_PARAMETERS:
        raise UserError(
            f"{network.name} has {network.parameter_count:,} parameters; at most {MAX_PARAMETERS:,} are taken"
        )
    return network


def _parse(words: Sequence[str]) -> list[Operation]:
    if len(words) > MAX_WORDS:
        raise UserError(f"a network of {len(words):,} words; at most {MAX_WORDS} are allowed")
    operations: list[Operation] = []
    owners: dict[str, int] = {}  # the number of the first convolution of each letter
    number, channels = 0, IMAGE_SHAPE[0]
    last = max((position for position, word in enumerate(words) if word[0].isdigit()), default=-2)
    for position, word in enumerate(words):
        if word in _WORDS:
            operations.append(_WORDS[word])
            continue
        if word == "bias" and position - 1 == last:
            continue
        match = re.fullmatch(r"(\d{1,6})(?:x(\d)|(s))?(?:@([a-z]))?", word, re.ASCII)
        if not match:
            known = ", ".join(_WORDS)
            raise UserError(
                f"unknown layer {word!r}; layers are 16, 16x1, 16s, 16@a, {known}, and, at the end, bias"
            )
        before, channels, letter = channels, int(match[1]), match[4]
        kernel = 1 if match[3] else int(match[2] or 3)
        if channels == 0:
            raise UserError(f"{word!r}: a convolution has at least one channel; give 1 or more")
        if kernel % 2 == 0:
            odd = f"{channels}x{kernel - 1}" if kernel else f"{channels}x1"
            raise UserError(
                f"{word!r}: only odd kernels keep the size of the map; give {odd} or {channels}x{kernel + 1}"
            )
        owner = owners.setdefault(letter, number + 1) if letter else None
        shared = None if owner == number + 1 else owner
        if match[3]:
            operations.append(Conv(before, 3, 1, False, shared, depthwise=True))
            shared = shared and shared + 1
            number += 1
        number += 1
        bias = words[position + 1 : position + 2] == ["bias"]
        operations.append(Conv(channels, kernel, kernel // 2, bias, shared))
        if position != last:
            operations += [Norm(), Relu()]
    return operations


# This project's own (docs/accuracy.md): the most accurate is narrow and deep, with four kernels used twice
# each; the first small one is the same and narrower, with a layer more, the second has depthwise separable
# convolutions; the fastest, for the recipe `fast`, does most of its work on small maps.
_OURS = {
    "net9808": "16 avgpool 16@a 16@b 16@a 16@b avgpool 16@c 16@d 16@c 16@d average 10x1",
    "net3663": "9 avgpool 9@a 9@b 9@a 9@b avgpool 9@c 9@d 9@c 9@d 24x1 average 10x1",
    "net3542": "22 avgpool 22s@a 22s@b 22s@a 22s@b avgpool 22s@c 22s@d 22s@c 22s@d average 10x1",
    "net17816": "8 avgpool 16 16 avgpool 24 24 24 average 10x1",
}

NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "net10040": build_network("net10040", _net10040()),
        "net9954": build_network("net9954", _net9954()),
    }
    | {name: build_network(name, _parse(words.split())) for name, words in _OURS.items()}
)
