"""Trace a PyTorch model: every ATen operation of a forward pass, in float64."""

import copy
import inspect
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch._decomp import get_decompositions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from lockstep.errors import UserError, explain, own_line
from lockstep.outputs import labelled
from lockstep.recorder import Operand, Recorder, once
from lockstep.trace import Edit, Gradients, Rounded, Source, Trace

aten = torch.ops.aten
WIDER = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}
NARROW = (torch.float16, torch.bfloat16)
DECOMPOSED = get_decompositions(
    [
        aten.native_layer_norm, aten.native_group_norm, aten.native_batch_norm, aten._native_batch_norm_legit,
        aten._native_batch_norm_legit_no_training, aten._batch_norm_with_update, aten._softmax,
        aten._log_softmax, aten.gelu, aten.silu, aten.hardswish, aten.hardsigmoid, aten.softplus,
        aten.leaky_relu, aten.std, aten.var, aten.nll_loss_forward, aten.masked_fill, aten.addcmul,
        aten._fused_rms_norm, aten.rms_norm, aten.addmv, aten._weight_norm_interface, aten.mish, aten.elu,
        aten.log_sigmoid_forward, aten.linalg_vector_norm, aten.mse_loss, aten.smooth_l1_loss,
        aten.huber_loss, aten.binary_cross_entropy, aten.glu, aten.hardtanh, aten.addcdiv,
        aten.baddbmm, aten.lerp,
    ]
)  # fmt: skip
MOVES = {
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "slice",
    "select", "split", "split_with_sizes", "unbind", "cat", "stack", "clone", "detach", "alias", "_to_copy",
    "flip", "lift_fresh", "lift_fresh_copy", "as_strided", "unfold", "_reshape_alias", "view_as_real",
    "view_as_complex", "repeat", "chunk", "unsafe_split", "unsafe_chunk", "roll", "_conj", "movedim",
    "diagonal", "contiguous", "narrow", "copy", "real", "imag",
}  # fmt: skip
LOOKUPS = ("embedding", "index_select", "index")  # of rows that no input decides: numbers are moved only
JOINS = ("cat", "stack")
PRODUCTS = ("mm", "bmm", "dot", "mv", "vdot")
READS = ("_local_scalar_dense", "is_same_size", "equal", "sym_size", "is_nonzero", "item")
DRAWS = {  # random numbers become this number, in every framework
    "bernoulli": 1.0, "bernoulli_": 1.0, "rand": 0.5, "rand_like": 0.5, "randn": 0.5, "randn_like": 0.5,
}  # fmt: skip
LIBRARIES = (*tuple(str(Path(p).parent) + "/" for p in (torch.__file__, __file__)), "<frozen", "<string>")
STIR = 0.1  # how far constant parameters are moved, so that a zero or one hides nothing


class Lift(TorchDispatchMode):
    """Compute in float64 what asks for less, and let random numbers be fixed ones."""

    def __init__(self, narrowest: int):
        super().__init__()
        self.narrowest = narrowest  # bytes of the model's narrowest parameter

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else PyTorch imports its compiler, which takes longer than the comparison of a small model.
        return False

    def prepare(self, func: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The arguments of an operation with every narrow type widened."""
        asked = kwargs.get("dtype")
        if asked in WIDER:
            kwargs["dtype"] = WIDER[asked]
        args = tuple(WIDER.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
        if not func._schema.is_mutable:
            args, kwargs = tree_map(self.widen, args), tree_map(self.widen, kwargs)
        return args, kwargs

    def widen(self, x: Any) -> Any:
        """A tensor in float64, anything else as it is."""
        return x.to(WIDER[x.dtype]) if isinstance(x, torch.Tensor) and x.dtype in WIDER else x

    def narrows(self, name: str, args: tuple, kwargs: dict) -> torch.dtype | None:
        """A type narrower than the model's own parameters that a cast asks for: it belongs to the model."""
        asked = kwargs.get("dtype")
        floats = bool(args) and isinstance(args[0], torch.Tensor) and args[0].is_floating_point()
        return asked if name == "_to_copy" and asked in NARROW and self.narrowest > 2 and floats else None

    def draw(self, name: str, args: tuple, kwargs: dict, out: Any) -> Any:
        """Fixed numbers for random ones."""
        if name in DRAWS:
            return out.fill_(DRAWS[name])
        if name in ("normal_", "uniform_"):
            low = args[1] if len(args) > 1 else kwargs.get("mean", kwargs.get("from", 0.0))
            high = args[2] if len(args) > 2 else kwargs.get("std", kwargs.get("to", 1.0))
            return out.fill_(low + 0.5 * high if name == "normal_" else 0.5 * (low + high))
        if name == "native_dropout":
            p = args[1]
            return args[0] / (1 - p), torch.ones_like(args[0], dtype=torch.bool)
        return out

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, dict(kwargs or {})
        narrow = self.narrows(name, args, kwargs)
        if narrow:
            return args[0].to(narrow).to(torch.float64)
        args, kwargs = self.prepare(func, args, kwargs)
        return self.draw(name, args, kwargs, func(*args, **kwargs))


class Tracer(Lift):
    """Record each operation: its inputs, its result, the user's lines and the module's path."""

    def __init__(self, recorder: Recorder, narrowest: int):
        super().__init__(narrowest)
        self.recorder = recorder
        self.known: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor to Operand
        self.storages: dict[int, list[tuple[int, Any]]] = {}  # storage to nodes and tensors that share it
        self.modules: list[str] = []
        self.scalars: set[float] = set()
        self.root: FrameType | None = None

    def add(self, tensor: torch.Tensor, operand: Operand) -> None:
        """Remember which operand a tensor is."""
        import weakref

        self.known[tensor] = operand
        key = tensor.untyped_storage().data_ptr()
        self.storages.setdefault(key, []).append((operand.node or 0, weakref.ref(tensor)))

    def operand(self, tensor: torch.Tensor) -> Operand:
        """The operand of a tensor; one that no operation made is a constant."""
        found = self.known.get(tensor)
        if found is None:
            found = self.recorder.constant(array(self.widen(tensor)), self.sources())
            self.add(tensor, found)
        return found

    def sources(self) -> tuple[Source, ...]:
        """The user's lines that led here, innermost first."""
        frame, found = sys._getframe(1), []
        while frame is not None and frame is not self.root and len(found) < 6:
            name = frame.f_code.co_filename
            if not name.startswith(LIBRARIES) and "/einops/" not in name and "contextlib" not in name:
                found.append((name, frame.f_lineno))
            frame = frame.f_back
        return tuple(found)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, dict(kwargs or {})
        self.scalars.update(abs(a) for a in tree_leaves((args, kwargs)) if isinstance(a, float))
        narrow = self.narrows(name, args, kwargs)
        if narrow:
            rounded = args[0].to(narrow).to(torch.float64)
            self._record("round", [args[0]], [rounded], params={"rounded": str(narrow)[6:]})
            return rounded
        asked = kwargs.get("dtype")
        if name == "_to_copy" and asked is torch.float32 and args[0].dtype is torch.float64:
            self.recorder.casts.add(self.sources())
        with torch._C.DisableTorchFunction():
            before = args, kwargs
            args, kwargs = self.prepare(func, args, kwargs)
            for old, new in zip(tree_leaves(before), tree_leaves((args, kwargs)), strict=True):
                if isinstance(new, torch.Tensor) and new is not old:
                    self.known[new] = self.operand(old)
            simpler = self._decompose(func, name, args, kwargs)
        return self._run(func, name, args, kwargs) if simpler is NotImplemented else simpler

    def _decompose(self, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
        """The same as simpler operations, which both frameworks have; NotImplemented if there are none."""
        if func in DECOMPOSED:
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, torch.Tensor):
                    self.operand(tensor)
            with self:
                result = DECOMPOSED[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        if name == "addmm" and kwargs.get("alpha", 1) == 1 and kwargs.get("beta", 1) == 1:
            with self:
                return aten.add(aten.mm(args[1], args[2]), args[0])
        if name == "convolution" and args[2] is not None:
            with self:
                y = aten.convolution(args[0], args[1], None, *args[3:])
                return aten.add(y, args[2].view(-1, *[1] * (y.ndim - 2)))
        if not func._schema.is_mutable and name not in MOVES:
            with self:
                return func.decompose(*args, **kwargs)
        return NotImplemented

    def _run(self, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
        recorder = self.recorder
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        operands = [self.operand(t) for t in tensors]
        mutable = func._schema.is_mutable
        moves, ids = name in MOVES, None
        if name in LOOKUPS and operands[0].ids is not None and not self._depends(operands[1:]):
            ids = _moved_ids(func, name, (tensors[0], *args[1:]), kwargs, [operands[0].ids])
            moves = ids is not None
        elif moves and operands and all(o.ids is not None for o in operands):
            ids = _moved_ids(func, name, args, kwargs, [o.ids for o in operands])
        if (
            not mutable
            and any(o.roots is not None for o in operands)
            and (not moves or (name in JOINS and ids is None))
        ):
            self._use(name, args, operands)
            if recorder.binder or recorder.given is not None:
                args, kwargs = self._rebind(args, kwargs)
        if mutable:
            self._keep_old(tensors)
        out = self.draw(name, args, kwargs, func(*args, **kwargs))
        if name in READS:
            return out
        outs = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        if moves and not mutable:
            outs = [t for t in outs if not any(t is given for given in tensors)]
        if not outs:
            return out
        moved = (lambda x: _moved_ids(func, name, args, kwargs, [x])) if moves and not mutable else None
        pointwise = torch.Tag.pointwise in func.tags and not mutable
        axes, settings = _column_axes(name, args, outs[0]), _settings(func, args, kwargs)
        ids = None if mutable else ids
        made = self._record(
            name, tensors, outs, moves=moves, ids=ids, moved=moved, pointwise=pointwise, column_axes=axes,
            params=settings,
        )  # fmt: skip
        if mutable:
            self._alias(name, outs[0], made[0])
        return out

    def _depends(self, operands: list[Operand]) -> bool:
        """Whether one of them depends on the inputs."""
        return any(o.node is not None and self.recorder.trace.nodes[o.node].data for o in operands)

    def _record(self, name: str, tensors: list, outs: list, **more: Any) -> list[Operand]:
        made = self.recorder.record(
            name,
            [self.operand(t) for t in tensors],
            [array(t) for t in outs],
            sources=self.sources(),
            module=self.modules[-1] if self.modules else "",
            **more,
        )
        for tensor, operand in zip(outs, made, strict=True):
            if operand.node in self.recorder.replace:
                tensor.copy_(torch.from_numpy(np.asarray(operand.value, order="C")))
            self.add(tensor, operand)
        return made

    def _rebind(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        def current(x: Any) -> Any:
            if not isinstance(x, torch.Tensor) or self.operand(x).ids is None:
                return x
            operand = self.operand(x)
            fresh = torch.from_numpy(np.asarray(self.recorder.value(operand), order="C"))
            self.known[fresh] = operand
            return fresh.reshape(x.shape)

        return tree_map(current, args), tree_map(current, kwargs)

    def _keep_old(self, tensors: list[torch.Tensor]) -> None:
        """Values of nodes that share memory with what is changed in place."""
        values = self.recorder.trace.values
        for tensor in tensors:
            for node, _ in self.storages.get(tensor.untyped_storage().data_ptr(), ()):
                if node in values:
                    values[node] = values[node].copy()

    def _alias(self, name: str, changed: torch.Tensor, operand: Operand) -> None:
        """Every other view of changed memory has new values."""
        for _, reference in list(self.storages.get(changed.untyped_storage().data_ptr(), ())):
            other = reference()
            if other is not None and other is not changed and other in self.known:
                old = self.known[other]
                (new,) = self.recorder.record(
                    name, [old, operand], [array(other)], moves=True, sources=self.sources(),
                    module=self.modules[-1] if self.modules else "",
                )  # fmt: skip
                self.add(other, new)

    def _use(self, name: str, args: tuple, operands: list[Operand]) -> None:
        for position, operand in enumerate(operands):
            kernel, convolved = position == 1, name == "convolution"
            ids = operand.roots if convolved or name in PRODUCTS else operand.ids
            if ids is None:
                continue
            others = [o for o in operands if o is not operand]
            other = next((o for o in others if o.ids is None), others[0] if others else None)
            role = name.rstrip("_")
            if name in PRODUCTS:
                role = "contract"
                if position == 0 and ids.ndim > 1:
                    ids = ids.swapaxes(-1, -2)
                ids = (
                    ids.reshape((1,) * (3 - ids.ndim) + ids.shape) if ids.ndim > 1 else ids.reshape(1, -1, 1)
                )
            elif convolved and not kernel:
                role, ids = "image", once(ids.reshape(-1, *ids.shape[2:]))
            elif convolved:
                role, ids = "conv", _kernel_ids(ids, transposed=args[6], groups=args[8])
                count, ids = len(ids), once(ids)
                if all(n == 1 for n in ids.shape[2:]) and args[8] * len(ids) == count:
                    role, ids = "contract", ids.reshape(ids.shape[:2]).T[None]
            elif name in ("embedding", "index_select", "index") and position == 0 and ids.ndim == 2:
                role, ids = "gather", ids[None]
            self.recorder.use(role, operand, ids, other)


def _kernel_ids(ids: np.ndarray, transposed: bool, groups: int) -> np.ndarray:
    """A convolution's kernel as (outputs, inputs of a group, *window), not flipped."""
    if not transposed:
        return ids
    inputs, outputs, *window = ids.shape
    ids = ids.reshape(groups, inputs // groups, outputs, *window).swapaxes(1, 2)
    return np.flip(ids.reshape(groups * outputs, -1, *window), tuple(range(2, ids.ndim - 1)))


def _column_axes(name: str, args: tuple, out: torch.Tensor) -> tuple[int, ...] | None:
    if name == "convolution":
        return (1,)
    return (out.ndim - 1,) if name in ("mm", "bmm") else None


def _moved_ids(
    func: Any, name: str, args: tuple, kwargs: dict, ids: Sequence[np.ndarray | None]
) -> list[np.ndarray] | None:
    """What an operation that moves numbers does to the places of weights; None if it cannot be said."""
    places = iter([torch.from_numpy(np.array(x, order="C")) for x in ids])
    swap = lambda x: next(places, x) if isinstance(x, torch.Tensor) else x  # noqa: E731
    moved = tree_map(swap, args)
    if name in ("_to_copy", "view_as_real"):
        return [moved[0].numpy()]
    try:
        return [t.numpy() for t in tree_leaves(func(*moved, **kwargs))]
    except (RuntimeError, TypeError):
        return None


def _settings(func: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of an operation that are no tensors, by name."""
    names = [a.name for a in func._schema.arguments]
    named = {**dict(zip(names, args, strict=False)), **kwargs}
    plain = (int, float, bool, str, list, tuple)
    return {
        k: list(v) if isinstance(v, list | tuple) else v
        for k, v in named.items()
        if isinstance(v, plain) and not any(isinstance(x, torch.Tensor) for x in tree_leaves(v))
    }


def array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's numbers without a copy, where that is possible; bfloat16 as float32."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.float()
    return tensor.to_dense().numpy() if tensor.layout is not torch.strided else tensor.cpu().numpy()


class TorchModel:
    """A `torch.nn.Module` as one side of a comparison; the module itself stays as it is."""

    framework = "PyTorch"
    everything = False

    def __init__(
        self, module: torch.nn.Module, args: tuple, kwargs: dict, loss: Any = None, stir: bool = True
    ):
        module = _eager(module)
        self.original, self.args, self.kwargs, self.loss = module, args, kwargs, loss
        floats = [p for p in module.parameters() if p.is_floating_point()]
        self.narrowest = min((p.element_size() for p in floats), default=4)
        self.module = _copy(module)
        self.summed = _sum_biases(self.module)
        self.given = _numbers(self.module)
        if stir:
            _stir(self.module, self.summed)

    # --- Model ---

    def trace(
        self,
        reference: Trace | None = None,
        weights: np.ndarray | None = None,
        replace: Mapping[int, np.ndarray] | None = None,
        before: Trace | None = None,
    ) -> Trace:
        """See `Model.trace`."""
        module = copy.deepcopy(self.module)
        recorder = Recorder("PyTorch", reference, weights, replace, self.everything, before)
        tracer = Tracer(recorder, self.narrowest)
        trace = recorder.trace
        tensors = dict(_tensors(module))
        if weights is not None:
            self._load(module, weights)
        kept = {name: array(t).copy() for name, t in tensors.items()}
        buffers = dict(module.named_buffers())
        leaves = recorder.leaves(
            (name, kept[name], name not in buffers and t.requires_grad, _is_table(name, buffers))
            for name, t in tensors.items()
        )
        for tensor, leaf in zip(tensors.values(), leaves, strict=True):
            tracer.add(tensor, leaf)
        hooks = _watch(module, tracer)
        args, kwargs = self._inputs(tracer)
        tracer.root = sys._getframe()
        try:
            with torch.no_grad(), _plain_kernels(), tracer:
                out = self._call(module, args, kwargs)
                loss = self._loss(out)
        finally:
            for hook in hooks:
                hook.remove()
        for label, value in labelled(out, torch.is_tensor).items():
            trace.outputs[label] = recorder.keep(tracer.operand(value))
        if not trace.outputs:
            raise UserError("the PyTorch model returns no tensor, so there is nothing to compare")
        if loss is not None:
            trace.loss = tracer.operand(loss).node
        for name, tensor in buffers.items():
            if not np.array_equal(array(tensor), kept[name], equal_nan=True):
                trace.state[name] = recorder.keep(tracer.operand(tensor))
        trace.training = all(part.training for part in module.modules())  # a wrapper may not know its mode
        trace.notes += recorder.describe_casts()
        constants = {abs(n.scalar) for n in trace.nodes if n.scalar}
        trace.scalars = sorted(tracer.scalars | constants)
        trace.given, trace.summed = self.given, self.summed
        for path, part in module.named_modules():
            index: Any = getattr(part, "padding_idx", None)
            if index is not None:
                trace.padding[f"{path}.weight" if path else "weight"] = int(index)
        trace.versions = {name: version(name) for name in ("torch", "numpy")}
        return recorder.finish()

    def replay(
        self,
        trace: Trace,
        changed: Mapping[int, np.ndarray],
        edits: Mapping[int, Edit] | None = None,
        until: int | None = None,
    ) -> dict[int, np.ndarray]:
        """See `Model.replay`: by a whole run; edits are not supported."""
        if edits:
            return {}
        values = self.trace(trace, trace.weights, changed).values
        return {i: x for i, x in values.items() if until is None or i <= until}

    def gradients(
        self, weights: np.ndarray, cotangents: Mapping[str, np.ndarray], without: str = ""
    ) -> Gradients:
        """See `Model.gradients`."""
        module = copy.deepcopy(self.module)
        self._load(module, weights)
        lift = Lift(self.narrowest)
        args, kwargs = self._inputs(None)
        with torch.enable_grad(), _plain_kernels(), lift:
            out = self._call(module, args, kwargs)
            loss = self._loss(out)
            if loss is None:
                outputs = labelled(out, torch.is_tensor)
                terms = [(outputs[k] * torch.from_numpy(v)).sum() for k, v in cotangents.items()]
                loss = sum((t.real for t in terms), torch.zeros(()))
            if loss.requires_grad:
                loss.backward()
        found, at = np.full(weights.shape, np.nan, weights.dtype), 0
        for _name, tensor in _tensors(module):
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            part, at = slice(at, at + tensor.numel()), at + tensor.numel()
            if tensor.requires_grad:
                found[part] = 0.0 if tensor.grad is None else array(tensor.grad).ravel()
                tensor.grad = None
        return Gradients(float(loss.detach()), found)

    def rounded(self, weights: np.ndarray) -> Rounded:
        """See `Model.rounded`."""
        module = copy.deepcopy(self.original).cpu()
        runs = []
        for units in (0, 1, -1):
            moved = weights.astype(np.complex64 if np.iscomplexobj(weights) else np.float32)
            moved = moved * np.float32(1 + units * np.finfo(np.float32).eps)
            self._load(module, moved)
            with torch.no_grad(), _plain_kernels(torch.float32), _Draw():
                out = self._call(module, *_convert(self.args, self.kwargs, torch.float32))
            runs.append({k: array(v).astype(np.float64) for k, v in labelled(out, torch.is_tensor).items()})
        floor = {k: max(float(np.abs(r[k] - v).max(initial=0)) for r in runs[1:]) for k, v in runs[0].items()}
        return Rounded(runs[0], floor)

    # --- helpers ---

    def _call(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> Any:
        try:
            return module(*args, **kwargs)
        except UserError:
            raise
        except Exception as error:
            line = own_line(error, LIBRARIES)
            raise UserError(f"the PyTorch model cannot take these inputs: {explain(error)}{line}") from error

    def _loss(self, out: Any) -> torch.Tensor | None:
        if self.loss is None:
            return None
        loss = self.loss(out)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise UserError("the PyTorch loss must be a scalar tensor")
        return loss

    def _inputs(self, tracer: Tracer | None) -> tuple[tuple, dict]:
        args, kwargs = _convert(self.args, self.kwargs, torch.float64)
        if tracer:
            for label, tensor in labelled(self._named(args, kwargs), torch.is_tensor).items():
                tracer.add(tensor, tracer.recorder.input(label, array(tensor)))
        return args, kwargs

    def _named(self, args: tuple, kwargs: dict) -> Any:
        """The inputs by the names of their arguments; as they are if they do not fit, which the call says."""
        try:
            return dict(inspect.signature(self.original.forward).bind(*args, **kwargs).arguments)
        except (TypeError, ValueError):  # another number of them, or a forward without a signature
            return args, kwargs

    def _load(self, module: torch.nn.Module, weights: np.ndarray) -> None:
        at = 0
        with torch.no_grad():
            for _, tensor in _tensors(module):
                if tensor.is_floating_point() or tensor.is_complex():
                    numbers = weights[at : at + tensor.numel()]
                    at += tensor.numel()
                    numbers = numbers if tensor.is_complex() else np.real(numbers)
                    tensor.copy_(torch.from_numpy(np.asarray(numbers, order="C")).reshape(tensor.shape))


class _Draw(TorchDispatchMode):
    """Fixed numbers for random ones, in any type."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see `Lift`

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return Lift.draw(self, func.overloadpacket.__name__, args, kwargs, func(*args, **kwargs))  # type: ignore


class _plain_kernels:
    """No compiled code or fast path, attention in its mathematical form, constants in a given type."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        self.dtype = dtype

    def __enter__(self) -> None:
        self.old = torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled()
        torch.set_default_dtype(self.dtype)
        torch.backends.mha.set_fastpath_enabled(False)
        self.contexts = ExitStack()
        self.contexts.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
        if "torch._dynamo" in sys.modules:  # without it, nothing in the model can be compiled
            self.contexts.enter_context(torch.compiler.set_stance("force_eager"))

    def __exit__(self, *error: Any) -> None:
        self.contexts.close()
        torch.set_default_dtype(self.old[0])
        torch.backends.mha.set_fastpath_enabled(self.old[1])


def _tensors(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _is_table(name: str, buffers: Mapping[str, torch.Tensor]) -> bool:
    return name in buffers and not name.endswith(("running_mean", "running_var"))


def _convert(args: tuple, kwargs: dict, dtype: torch.dtype) -> tuple[tuple, dict]:
    def convert(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(x.copy())
        if isinstance(x, torch.Tensor):
            x = x.detach().cpu()
            return x.to(dtype) if x.is_floating_point() else x.clone()
        return x

    return tree_map(convert, args), tree_map(convert, kwargs)


def _numbers(module: torch.nn.Module) -> np.ndarray:
    """All numbers of a module's floating-point tensors, in order."""
    floats = (t for _, t in _tensors(module) if t.is_floating_point() or t.is_complex())
    parts = [array(t).ravel() for t in floats]
    return np.concatenate(parts) if parts else np.zeros(0)


def _eager(module: torch.nn.Module) -> torch.nn.Module:
    """The module without torch.compile, whose code stays bound to the parameters that it has now."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled
        return module
    from torch._dynamo import OptimizedModule

    def compiled(part: torch.nn.Module) -> bool:
        own = hasattr(vars(part).get("forward"), "_torchdynamo_orig_callable")
        return own or isinstance(part, OptimizedModule) or part._compiled_call_impl is not None

    if not any(map(compiled, module.modules())):
        return module
    around = copy.deepcopy(torch.nn.Sequential(module))
    for part in list(around.modules()):
        part._compiled_call_impl = None
        for name, child in part._modules.items():
            part._modules[name] = child._orig_mod if isinstance(child, OptimizedModule) else child
        if compiled(part) and not isinstance(part, OptimizedModule):
            del part.forward
    return around[0]


def _copy(module: torch.nn.Module) -> torch.nn.Module:
    """A copy in float64."""
    for part in module.modules():  # what an old weight norm leaves behind cannot be copied
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                setattr(part, name, value.detach())
    module = copy.deepcopy(module).cpu().double()
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.dtype is torch.complex64:
                wide = parameter.detach().to(torch.complex128)
                part._parameters[name] = torch.nn.Parameter(wide, parameter.requires_grad)
    return module


def _stir(module: torch.nn.Module, summed: Mapping[str, Any]) -> None:
    """Move constant parameters, so that a zero or one hides nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in _tensors(module):
            constant = tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())
            if not tensor.is_floating_point() or not constant or "parametrizations" in name or name in summed:
                continue
            tensor += STIR * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            if name.endswith("running_var"):
                tensor.abs_()


def _sum_biases(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Make one of an LSTM's two biases, and of two thirds of a GRU's, as ports have them.

    Returns:
        The biases as they were, by name.
    """
    lstm, gru = (torch.nn.LSTM, torch.nn.LSTMCell), (torch.nn.GRU, torch.nn.GRUCell)
    simple = (torch.nn.RNN, torch.nn.RNNCell)
    before = {}
    for path, part in module.named_modules():
        if not isinstance(part, (*lstm, *gru, *simple)):
            continue
        own = dict(part.named_parameters(recurse=False))
        for name in [n for n in own if n.startswith("bias_ih")]:
            bias, both = own[name].data, own[name.replace("ih", "hh")].data
            for each, tensor in ((name, bias), (name.replace("ih", "hh"), both)):
                before[f"{path}.{each}" if path else each] = array(tensor).copy()
            if isinstance(part, gru):  # as nnx.GRUCell has them
                n = 2 * part.hidden_size
                bias[:n] += both[:n]
                both[:n] = 0
            else:
                both += bias
                bias.zero_()
    return before


def _watch(module: torch.nn.Module, tracer: Tracer) -> list[Any]:
    """Hooks that keep the path of the module that runs, and note each call's output."""
    hooks = []
    for name, part in module.named_modules():

        def enter(_: Any, args: Any, name: str = name) -> None:
            tracer.modules.append(name)

        def leave(_: Any, args: Any, out: Any, name: str = name) -> None:
            tracer.modules.pop()
            if isinstance(out, torch.Tensor) and name:
                operand = tracer.known.get(out)
                if operand is not None and operand.node is not None:
                    tracer.recorder.trace.calls.append((name, operand.node))

        hooks += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave, always_call=True)]
    return hooks
