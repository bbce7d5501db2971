"""Run an ONNX file node by node in float64, over ``onnx.reference``, as one side of a comparison."""

import ast
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.errors import UserError
from lockstep.recorder import Operand, Recorder
from lockstep.trace import Edit, Gradients, Rounded, Source, Trace

try:
    import onnx
    from onnx import NodeProto, TensorProto, helper, numpy_helper
    from onnx.inliner import inline_selected_functions
    from onnx.reference import ReferenceEvaluator
except ImportError as error:
    raise UserError("to compare an ONNX file, install onnx: pip install onnx") from error

MOVES = {
    "Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Concat", "Split", "Expand", "Identity",
    "Flatten", "Tile", "Cast", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip
SETTINGS = {
    "Resize",
    "Upsample",
    "Pad",
    "Clip",
    "OneHot",
    "Where",
    "Range",
}  # take numbers that are no weights
OPAQUE = {"LSTM", "GRU", "RNN"}
ROLES = {"Gather": "gather", "Conv": "conv", "ConvTranspose": "conv", "MatMul": "contract"}
TYPES = ("to", "dtype", "stash_type", "softmax_precision")  # attributes that ask for a type
PARAMETERS = {"Add": "bias", "BatchNormalization": ("", "weight", "bias", "running_mean", "running_var")}


class OnnxModel:
    """An ``.onnx`` file as one side of a comparison: forward in float64 only."""

    framework = "ONNX"
    forward_only = True
    everything = False

    def __init__(self, path: Path, args: tuple, kwargs: Mapping[str, Any]):
        """Read a file.

        Args:
            path: the file.
            args: inputs in the file's order.
            kwargs: inputs by the file's names.

        Raises:
            UserError: the file cannot be read, has other inputs, or a node that cannot be looked into.
        """
        self.path = path
        try:
            whole = onnx.load(path)
            model = inline_selected_functions(whole, [], exclude=True, inline_schema_functions=True)
            model = onnx.shape_inference.infer_shapes(model)
            initial = {t.name: _widen(numpy_helper.to_array(t)) for t in model.graph.initializer}
        except Exception as error:  # protobuf, the checker and the inliner have types of their own
            raise UserError(f"{path} is not an ONNX file that can be read: {_explain(error)}") from error
        graph = model.graph
        names = [value.name for value in graph.input if value.name not in initial]
        given = dict(zip(names, args, strict=False)) | dict(kwargs)
        if len(args) > len(names) or set(given) != set(names):
            raise UserError(f"{path} takes the inputs {', '.join(names)}, not {', '.join(given)}")
        self.inputs = {name: _widen(np.asarray(value)) for name, value in given.items()}
        self.outputs = [value.name for value in graph.output]
        opaque = sorted({node.op_type for node in graph.node} & OPAQUE)
        if opaque:
            raise UserError(f"{path} has {opaque[0]} nodes, into which the comparison cannot look")
        origins = _origins(list(graph.node), list(whole.graph.node))
        self.weights, self.constants = _split(list(graph.node), origins, initial)
        ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.input, *graph.value_info)}
        self.nodes = [
            (_as_float64(part), origin)
            for node, origin in zip(graph.node, origins, strict=True)
            for part in _parts(node, ranks, self.constants)
        ]
        self.opsets = list(model.opset_import)
        self.evaluators: dict[bytes, ReferenceEvaluator] = {}

    def trace(
        self,
        reference: Trace | None = None,
        weights: np.ndarray | None = None,
        replace: Mapping[int, np.ndarray] | None = None,
        before: Trace | None = None,
    ) -> Trace:
        """See `Model.trace`."""
        recorder = Recorder(self.framework, reference, weights, replace, self.everything, before)
        leaves = recorder.leaves((name, x, True, False) for name, x in self.weights.items())
        known = dict(zip(self.weights, leaves, strict=True))
        known |= {name: recorder.input(name, x) for name, x in self.inputs.items()}
        known |= {name: recorder.constant(x) for name, x in self.constants.items()}
        for node, origin in self.nodes:
            self._step(node, origin, known, recorder)
        labels = [f"[{i}]" for i in range(len(self.outputs))] if len(self.outputs) > 1 else [""]
        nodes = [known[name].node or 0 for name in self.outputs]
        recorder.trace.outputs = dict(zip(labels, nodes, strict=True))
        recorder.trace.versions = {name: version(name) for name in ("onnx", "numpy")}
        return recorder.finish()

    def replay(
        self,
        trace: Trace,
        changed: Mapping[int, np.ndarray],
        edits: Mapping[int, Edit] | None = None,
        until: int | None = None,
    ) -> dict[int, np.ndarray]:
        """See `Model.replay`; nothing is computed again."""
        return {}

    def gradients(
        self, weights: np.ndarray, cotangents: Mapping[str, np.ndarray], without: str = ""
    ) -> Gradients:
        """There are none."""
        raise UserError(f"{self.path} has no gradients")

    def rounded(self, weights: np.ndarray) -> Rounded:
        """There is no float32: what computes it is another program."""
        raise UserError(f"{self.path} is compared in float64 only")

    def _step(
        self, node: NodeProto, origin: NodeProto, known: dict[str, Operand], recorder: Recorder
    ) -> None:
        """Run one node and record it."""
        names = list(dict.fromkeys(name for name in (*node.input, *_captured(node)) if name in known))
        operands = [known[name] for name in names]
        moved = self._moved(node, known)
        for name, operand in zip(names, operands, strict=True) if moved is None else ():
            if operand.ids is not None:
                others = [other for other in operands if other is not operand and _is_float(other)]
                other = next((o for o in others if o.ids is None), others[0] if others else None)
                _use(recorder, node, name, operand, other)
        values = self._evaluate(node, {name: recorder.value(known[name]) for name in names})
        axes = {"Conv": (1,), "ConvTranspose": (1,), "MatMul": (np.ndim(values[0]) - 1,)}
        sources, module = _where(origin)
        made = recorder.record(
            node.op_type,
            operands,
            values,
            moves=node.op_type in MOVES or moved is not None,
            ids=moved,
            column_axes=axes.get(node.op_type),
            sources=sources,
            module=module,
            params={
                a.name: _plain(helper.get_attribute_value(a)) for a in node.attribute if not a.HasField("t")
            },
        )
        known.update(zip(node.output, made, strict=False))

    def _moved(self, node: NodeProto, known: Mapping[str, Operand]) -> list[np.ndarray] | None:
        """Which weights the results of a node consist of; None if it does more than move them."""
        given = {name: known[name] for name in node.input if name}
        weights = [operand.ids for operand in given.values() if _is_float(operand)]
        chosen = node.op_type == "Gather" and not given[node.input[1]].value.ndim  # one of a stack
        if not weights or any(ids is None for ids in weights) or not (chosen or node.op_type in MOVES):
            return None
        if node.op_type == "Cast":
            return weights  # pyright: ignore  # none is None
        return self._evaluate(node, {n: o.value if o.ids is None else o.ids for n, o in given.items()})

    def _evaluate(self, node: NodeProto, feeds: dict[str, Any]) -> list[np.ndarray]:
        """The results of one node."""
        key = node.SerializeToString()
        try:
            if key not in self.evaluators:
                inputs, outputs = (
                    [
                        helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None)
                        for name in names
                        if name
                    ]
                    for names in (feeds, node.output)
                )
                graph = helper.make_graph([node], "node", inputs, outputs)
                self.evaluators[key] = ReferenceEvaluator(helper.make_model(graph, opset_imports=self.opsets))
            return [_widen(np.asarray(x)) for x in self.evaluators[key].run(None, feeds)]
        except Exception as error:  # whatever the operator's implementation raises
            name = node.name or node.op_type
            raise UserError(f"{self.path}: the node {name} cannot be run: {_explain(error)}") from error


def _origins(nodes: list[NodeProto], whole: list[NodeProto]) -> list[NodeProto]:
    """For each node the one of the file that it comes from: the parts of a function end with its result."""
    by_output = {name: node for node in whole for name in node.output if name}
    found, origin = [], NodeProto()
    for node in reversed(nodes):
        origin = next((by_output[name] for name in node.output if name in by_output), origin)
        found.append(origin)
    return found[::-1]


def _split(
    nodes: list[NodeProto], origins: list[NodeProto], initial: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weights and constants.

    Exporters keep equal arrays, such as all zeros: each use gets its own again. A weight without the name
    of a parameter gets that of the module that uses it.
    """
    settings = {name for node in nodes if node.op_type in SETTINGS for name in node.input}
    weights, constants = {}, {}
    for name, x in initial.items():
        if x.dtype.kind not in "fc" or x.size < 2 or name in settings:
            constants[name] = x
            continue
        uses = [(k, i) for k, node in enumerate(nodes) for i, used in enumerate(node.input) if used == name]
        repeated = len(uses) > 1 and (x == x.flat[0]).all()
        new = name
        for k, i in uses:
            if repeated or (new == name and "." not in name):
                own = PARAMETERS.get(nodes[k].op_type, "weight")
                new = f"{_where(origins[k])[1] or name}.{own if isinstance(own, str) else own[i]}"
                while new in weights or new in initial:
                    new += "'"
            nodes[k].input[i] = new
            weights[new] = x
    return weights, constants


def _parts(
    node: NodeProto, ranks: Mapping[str, int], constants: dict[str, np.ndarray]
) -> Iterator[NodeProto]:
    """A node as several: a product, a bias, a scale and a statistic are operations of their own."""
    out, inputs = node.output[0] if node.output else "", list(node.input)
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    made: list[NodeProto] = []

    def add(op: str, *names: str, **attributes: Any) -> str:
        made.append(helper.make_node(op, names, [f"{out}/{len(made)}"], node.name, **attributes))
        return made[-1].output[0]

    def constant(x: Any) -> str:
        name = f"{out}/constant {len(constants)}"
        constants[name] = np.asarray(x)
        return name

    def channels(name: str) -> str:
        return add("Reshape", name, constant([-1, *[1] * (ranks.get(inputs[0], 4) - 2)]))

    if node.op_type in ("Conv", "ConvTranspose") and len(inputs) == 3:
        add("Add", add(node.op_type, *inputs[:2], **values), channels(inputs[2]))
    elif node.op_type == "Gemm":
        turned = (values.get("transA"), values.get("transB"))
        y = add("MatMul", *(add("Transpose", x) if t else x for x, t in zip(inputs, turned, strict=False)))
        alpha, beta = _decimal(values.get("alpha", 1.0)), _decimal(values.get("beta", 1.0))
        y = y if alpha == 1 else add("Mul", y, constant(alpha))
        if len(inputs) > 2:
            add("Add", y, inputs[2] if beta == 1 else add("Mul", inputs[2], constant(beta)))
    elif node.op_type == "BatchNormalization" and not values.get("training_mode"):
        scale, bias, mean, variance = (channels(name) for name in inputs[1:])
        epsilon = constant(_decimal(values.get("epsilon", 1e-5)))
        y = add("Div", add("Sub", inputs[0], mean), add("Sqrt", add("Add", variance, epsilon)))
        add("Add", add("Mul", y, scale), bias)
    else:
        made.append(node)
    made[-1].output[0] = out
    yield from made


def _use(recorder: Recorder, node: NodeProto, name: str, operand: Operand, other: Operand | None) -> None:
    """Say how a node uses weights, in the form of `Site.ids`."""
    ids, role = operand.ids, ROLES.get(node.op_type, node.op_type.lower())
    assert ids is not None
    if role == "contract":
        ids = (
            ids.reshape(1, -1, 1) if ids.ndim == 1 else ids.swapaxes(-1, -2) if node.input[0] == name else ids
        )
        ids = ids.reshape((-1, *ids.shape[-2:]))
    elif role == "conv" and node.input[1] == name:
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type == "ConvTranspose":  # (inputs, outputs of a group, *window), flipped
            n, outputs, *window = ids.shape
            ids = ids.reshape(groups, n // groups, outputs, *window).swapaxes(1, 2)
            ids = np.flip(ids.reshape(groups * outputs, -1, *window), tuple(range(2, 2 + len(window))))
        if groups == 1 and ids[0, 0].size == 1:
            role, ids = "contract", ids.reshape(ids.shape[:2]).T[None]
    elif role == "gather" and node.input[0] == name and ids.ndim == 2:
        ids = ids[None]
    recorder.use(role, operand, ids, other)


def _where(node: NodeProto) -> tuple[tuple[Source, ...], str]:
    """The lines of the model's code, innermost first, and the path of the module, if the exporter says so."""
    said = {entry.key: entry.value for entry in node.metadata_props}
    lines = re.findall(r'File "([^"\n]+)", line (\d+)', said.get("pkg.torch.onnx.stack_trace", ""))
    own = [(file, int(line)) for file, line in lines if "site-packages" not in Path(file).parts]
    try:
        scopes = [str(scope) for scope in ast.literal_eval(said.get("pkg.torch.onnx.name_scopes", "[]"))]
    except (ValueError, SyntaxError):
        scopes = []
    return tuple(reversed(own)), scopes[-2] if len(scopes) > 1 else ""


def _captured(node: NodeProto) -> Iterator[str]:
    """Names that the bodies of If, Loop and Scan may take from outside."""
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from (*inner.input, *_captured(inner))


def _as_float64(node: NodeProto) -> NodeProto:
    """The node with float64 wherever it asks for float32."""
    for attribute in node.attribute:
        if attribute.name in TYPES and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.DOUBLE
        for inner in attribute.g.node:
            _as_float64(inner)
    return node


def _widen(x: np.ndarray) -> np.ndarray:
    """Float64; a single number as its shortest decimal, as 0.01 is not what float32 makes of it."""
    if x.dtype.kind != "f" or x.dtype == np.float64:
        return x
    return np.full(x.shape, _decimal(x.flat[0])) if x.size == 1 else x.astype(np.float64)


def _decimal(x: Any) -> float:
    """The shortest decimal that float32 rounds to the same number."""
    return float(str(np.float32(x)))


def _is_float(operand: Operand) -> bool:
    return np.asarray(operand.value).dtype.kind in "fc"


def _plain(value: Any) -> Any:
    return (
        value.decode()
        if isinstance(value, bytes)
        else list(value)
        if isinstance(value, list | tuple)
        else value
    )


def _explain(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
