"""Faulty files and command lines: valid ones, changed where a change is most likely to do harm.

Every function gets a ``random.Random``, so a number reproduces an input.
"""

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save

from recipe.checkpoint import Checkpoint, _digest

EXTREMES = (0, 1, 2, 7, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1)
SIGNED_EXTREMES = (-(2**63), -1, *EXTREMES)
DEEP = "deep"  # in JSON, stands for a hundred thousand brackets
PATHS = ("../../../../etc/passwd", "/dev/zero", "w")
TEXTS = ("", "a", "\x1b[2J\n", PATHS[0], "x" * 100_000, "\ud800", "nan", "mnist", "auto", "\0")
NUMBERS = (True, False, -1, 0, 0.5, 1e308, float("nan"), float("inf"), 2**63, 10**400)
VALUES = (None, *NUMBERS, [], {}, DEEP, *TEXTS)


# ---------------------------------------------------------------------------------------------------- bytes


def mutate(rng: Random, content: bytes) -> bytes:
    """Some faults anywhere, most often near the ends, where headers and tables are."""
    for _ in range(rng.randint(1, 3)):
        content = rng.choice(BYTE_FAULTS)(rng, content)
    return content


def _position(rng: Random, content: bytes) -> int:
    length = len(content)
    near = min(length, 256)
    return rng.choice((rng.randint(0, near), length - rng.randint(0, near), rng.randint(0, length)))


def _range(rng: Random, content: bytes) -> tuple[int, int]:
    start, stop = sorted((_position(rng, content), _position(rng, content)))
    return start, stop


def _flip_bits(rng: Random, content: bytes) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(rng.randint(1, 8)):
        changed[min(_position(rng, content), len(changed) - 1)] ^= 1 << rng.randint(0, 7)
    return bytes(changed)


def _truncate(rng: Random, content: bytes) -> bytes:
    return content[: _position(rng, content)]


def _behead(rng: Random, content: bytes) -> bytes:
    return content[_position(rng, content) :]


def _overwrite_number(rng: Random, content: bytes) -> bytes:
    at, size = _position(rng, content), rng.choice((1, 2, 4, 8))
    number = (rng.choice(EXTREMES) % 256**size).to_bytes(size, rng.choice(("little", "big")))
    return content[:at] + number + content[at + size :]


def _insert(rng: Random, content: bytes) -> bytes:
    at = _position(rng, content)
    return content[:at] + rng.randbytes(rng.randint(1, 16)) + content[at:]


def _repeat(rng: Random, content: bytes) -> bytes:
    start, stop = _range(rng, content)
    return content[:stop] + content[start : min(stop, start + 10_000)] + content[stop:]


def _remove(rng: Random, content: bytes) -> bytes:
    start, stop = _range(rng, content)
    return content[:start] + content[stop:]


def _noise(rng: Random, content: bytes) -> bytes:
    return content[: rng.choice((0, 4, 16))] + rng.randbytes(rng.randint(0, 64))


BYTE_FAULTS: Sequence[Callable[[Random, bytes], bytes]] = (
    _flip_bits,
    _truncate,
    _behead,
    _overwrite_number,
    _insert,
    _repeat,
    _remove,
    _noise,
)


# ----------------------------------------------------------------------------------------- IDX and the cache


def faulty_idx(rng: Random, content: bytes, bomb: bytes) -> bytes:
    """An original file: plain or gzipped; with faults before or after it was compressed; or a bomb."""
    match rng.randint(0, 5):
        case 0:
            return mutate(rng, content)
        case 1:
            return mutate(rng, gzip.compress(content, 1))
        case 2:
            return gzip.compress(mutate(rng, content), 1)
        case 3:
            return gzip.compress(content, 1) + mutate(rng, gzip.compress(content, 1))  # a second member
        case 4:
            return mutate(rng, bomb)
    return content if rng.randint(0, 1) else gzip.compress(content, 1)


def faulty_cache(rng: Random, arrays: dict[str, np.ndarray], bomb: bytes) -> bytes:
    """The cache: a zip whose arrays are not what they say, whose members are others, or that is damaged."""
    members = {f"{name}.npy": npy(array) for name, array in arrays.items()}
    name = rng.choice(sorted(members))
    compression = zipfile.ZIP_DEFLATED
    match rng.randint(0, 8):
        case 0:
            members[name] = mutate(rng, members[name])
        case 1:
            shape = tuple(rng.choice(EXTREMES) for _ in range(rng.randint(0, 4)))
            members[name] = npy_header(
                shape, rng.choice(("|u1", "<f8", "|O", "<U1000000000", "|V9"))
            ) + bytes(64)
        case 2:
            text = rng.choice(
                ("(" * 5_000, "{" * 200, "__import__('os')", "{'descr': 1}", "\xff", "[" * 9_000)
            )
            members[name] = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode("latin1")
        case 3:
            del members[name]
            members[rng.choice(("../../escape.npy", "/etc/x.npy", name.upper(), "x" * 60_000))] = b"x"
        case 4:
            members[name] = rng.choice((b"\x80\x04\x95", b"", bomb, members[name] + b"\0"))
        case 5:
            compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        case 6:
            members |= {f"{number}": b"" for number in range(rng.choice((10, 3_000)))}
    archive = make_zip(members, compression)
    return archive if rng.randint(0, 2) == 0 else mutate(rng, archive)


def make_zip(members: dict[str, bytes], compression: int) -> bytes:
    """A zip of files."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return archive.getvalue()


def npy(array: np.ndarray) -> bytes:
    """An array as ``.npy``."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """A ``.npy`` header with this shape and dtype, true or not."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()


# ---------------------------------------------------------------------------------------------- checkpoints


def mutate_json(rng: Random, value: Any) -> Any:
    """One node anywhere replaced, removed or added."""
    if isinstance(value, dict) and value and rng.randint(0, 7):
        key, changed = rng.choice(list(value)), dict(value)
        match rng.randint(0, 9):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice(TEXTS)] = rng.choice(VALUES)
            case _:
                changed[key] = mutate_json(rng, value[key])
        return changed
    if isinstance(value, list) and value and rng.randint(0, 7):
        at = rng.randint(0, len(value) - 1)
        match rng.randint(0, 5):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value * 2
        return [*value[:at], mutate_json(rng, value[at]), *value[at + 1 :]]
    return rng.choice(VALUES)


def dump_json(value: Any) -> str:
    """JSON, with brackets a hundred thousand deep in the place of `DEEP`."""
    return json.dumps(value).replace(json.dumps(DEEP), "[" * 100_000)


def faulty_checkpoint(rng: Random, content: bytes) -> bytes:
    """A checkpoint: whole, or with faults in its bytes, its header's length, or the list of tensors."""
    length = int.from_bytes(content[:8], "little")
    header, body = content[8 : 8 + length], content[8 + length :]
    match rng.randint(0, 4):
        case 0:
            return content
        case 1:
            return mutate(rng, content)
        case 2:
            return rng.choice(EXTREMES).to_bytes(8, "little") + content[8:]
        case 3:
            header = mutate(rng, header)
        case _:
            header = dump_json(mutate_json(rng, json.loads(header))).encode("utf-8", "replace")
    length = len(header) if rng.randint(0, 3) else rng.choice(EXTREMES)
    return length.to_bytes(8, "little") + header + body


def faulty_state(rng: Random, checkpoint: Checkpoint) -> bytes:
    """A checkpoint with a right digest and wrong content: somebody made it so."""
    state = {"step": checkpoint.step, "metrics": checkpoint.metrics, "config": checkpoint.config}
    tensors = dict(checkpoint.tensors) | {"losses": checkpoint.losses}
    for _ in range(rng.randint(0, 3)):
        state = mutate_json(rng, state)
    name = rng.choice(sorted(tensors))
    match rng.randint(0, 9):
        case 0:
            del tensors[name]
        case 1:
            tensors[name] = tensors[name].astype(rng.choice(("float16", "int8", "float64", "bool", "uint64")))
        case 2:
            tensors[name] = np.zeros(rng.choice(((), (0,), (0, 9), (1, 1, 1), (1000,))), tensors[name].dtype)
        case 3:
            tensors[rng.choice(TEXTS[1:4])] = np.zeros(3, np.float32)
        case 4:
            tensors[name] = np.full_like(tensors[name], rng.choice((np.nan, np.inf, -1e30, 0.0)))
        case 5:
            tensors["losses"] = np.full(3, rng.choice((np.nan, -np.inf, -1.0, 1e308)))
    about = dump_json(state)
    return save(tensors, {"lockstep": about, "sha256": _digest(tensors, about)})


# ------------------------------------------------------------------------------------------------------ ONNX

OPERATORS = """
    Loop If ConstantOfShape Range Expand Tile Resize Gather Reshape Pad Conv MaxPool Softmax QuantizeLinear
    StringNormalizer Nothing Transpose Einsum Add
    """.split()  # noqa: SIM905 (a list would have a line each)
ATTRIBUTES = "pads kernel_shape strides dilations group axis value shape perm equation".split()  # noqa: SIM905


def faulty_onnx(rng: Random, content: bytes) -> bytes:
    """A model: faults in its bytes or in any part of its graph."""
    if rng.randint(0, 2) == 0:
        return mutate(rng, content)
    model = onnx.load_model_from_string(content)
    for _ in range(rng.randint(1, 3)):
        with suppress(IndexError):  # an earlier fault has removed everything of this kind
            rng.choice(GRAPH_FAULTS)(rng, model)
    return model.SerializeToString()


def _change_node(rng: Random, model: onnx.ModelProto) -> None:
    node = rng.choice(model.graph.node)
    match rng.randint(0, 4):
        case 0:
            node.op_type = rng.choice(OPERATORS)
        case 1:
            node.domain = rng.choice(("com.microsoft", "ai.onnx.ml", "../x"))
        case 2:
            node.input.append(rng.choice(model.graph.node).output[0])  # perhaps a cycle
        case 3:
            del node.input[-1]
        case 4:
            node.output[0] = rng.choice(("", "logits", "image", "x" * 10_000))


def _change_attribute(rng: Random, model: onnx.ModelProto) -> None:
    node, name = rng.choice(model.graph.node), rng.choice(ATTRIBUTES)
    for attribute in [each for each in node.attribute if each.name == name]:
        node.attribute.remove(attribute)
    numbers = [rng.choice(SIGNED_EXTREMES) for _ in range(rng.randint(1, 5))]
    node.attribute.append(helper.make_attribute(name, rng.choice((numbers[0], numbers, 1.5, "ij->" * 50))))


def _change_tensor(rng: Random, model: onnx.ModelProto) -> None:
    tensor = rng.choice(model.graph.initializer)
    match rng.randint(0, 5):
        case 0:
            tensor.dims[:] = [rng.choice((-1, *EXTREMES)) for _ in range(rng.randint(0, 6))]
        case 1:
            tensor.raw_data = mutate(rng, tensor.raw_data)
        case 2:
            tensor.data_type = rng.choice((0, 2, 7, 8, 10, 16, 99))
        case 3:
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=rng.choice(PATHS))
        case 4:
            tensor.float_data[:] = [rng.random()] * rng.choice((1, 10_000))
        case 5:
            tensor.name = rng.choice(("image", "", "logits", tensor.name * 2))


def _change_shape(rng: Random, model: onnx.ModelProto) -> None:
    value = rng.choice([*model.graph.input, *model.graph.output])
    dimensions = value.type.tensor_type.shape.dim
    if dimensions and rng.randint(0, 3):
        rng.choice(dimensions).dim_value = rng.choice((-1, *EXTREMES))
    else:
        dimensions.add().dim_value = rng.choice(EXTREMES)


def _nest(rng: Random, model: onnx.ModelProto) -> None:
    graph = onnx.GraphProto()
    for _ in range(rng.randint(1, 20)):
        outer = onnx.GraphProto()
        outer.node.add(op_type="If").attribute.append(helper.make_attribute("then_branch", graph))
        graph = outer
    rng.choice(model.graph.node).attribute.append(helper.make_attribute("body", graph))


def _change_head(rng: Random, model: onnx.ModelProto) -> None:
    match rng.randint(0, 4):
        case 0:
            model.ir_version = rng.choice((-1, *EXTREMES))
        case 1:
            model.opset_import[0].version = rng.choice((-1, *EXTREMES))
        case 2:
            del model.opset_import[:]
        case 3:
            helper.set_model_props(model, {rng.choice(("network", "weights_sha256")): rng.choice(TEXTS[:5])})
        case 4:
            model.functions.add(name="f", domain="")


GRAPH_FAULTS: Sequence[Callable[[Random, onnx.ModelProto], None]] = (
    _change_node,
    _change_attribute,
    _change_tensor,
    _change_shape,
    _nest,
    _change_head,
)


# ---------------------------------------------------------------------------------------------- command lines

WORDS = [
    *"""
    - -- --- = --= -h --help -x --no- @x %s {} None True nan -1 0 1 7 1e9 0x10 1_0 inf * ~nobody/x é
    net9954 tuned digits cpu float32 torch --tyro-print-completion --tyro-write-completion bash
    """.split(),  # noqa: SIM905
    *("", "9" * 30, "9" * 5_000, "\udcff", "a b", "\x1b[2J", "x" * 5_000, "\n"),
]


def faulty_arguments(rng: Random, flags: Sequence[str]) -> list[str]:
    """Words after a program's name: its own options and others, with values and without."""
    words = []
    for _ in range(rng.randint(0, 8)):
        flag, value = rng.choice(flags), rng.choice(WORDS)
        match rng.randint(0, 5):
            case 0:
                words.append(flag)
            case 1:
                words.append(value)
            case 2:
                words.append(f"{flag}={value}")
            case 3:
                words.append(flag[: rng.randint(0, len(flag))])
            case _:
                words += [flag, value]
    return words
