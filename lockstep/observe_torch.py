"""A PyTorch model, observed: a copy of it runs, every leaf call is recorded, and a leaf can run alone."""

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from lockstep import kinds
from lockstep.observe import Call, Local, Recording, cotangent, labelled
from recipe.console import UserError, explain, reason

DTYPES = {"float64": torch.float64, "float32": torch.float32}


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor, for `labelled`."""
    return isinstance(value, Tensor)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside torch.compile."""
    return getattr(model, "_orig_mod", model)


class TorchSide:
    """A copy of a model in one precision.

    Args:
        model: left as it is.
        precision: ``float64`` or ``float32``.
        together: objects that hold the model's parameters, copied with it, e.g. an optimizer.

    Raises:
        UserError: the model cannot be copied.
    """

    def __init__(self, model: nn.Module, precision: str, together: Any = None):
        try:
            self.model, self.together = copy.deepcopy((unwrap(model), together))
        except Exception as error:
            raise UserError(
                f"the PyTorch model cannot be copied ({reason(error)}); "
                "run it once if it has lazy modules, and detach what is not a parameter"
            ) from error
        self.dtype = DTYPES[precision]
        self.model.to("cpu", self.dtype)
        self.random = self._still_randomness()
        self.paths = {id(module): path for path, module in self.model.named_modules()}

    def _still_randomness(self) -> list[str]:
        """Switch random modules off in train mode; returns their paths."""
        still = []
        for path, module in self.model.named_modules():
            if module.training and kinds.kind_of(module) in kinds.RANDOM:
                module.eval()
                still.append(path)
            rate = getattr(module, "dropout", None)
            if module.training and isinstance(rate, float) and rate and kinds.is_known(kinds.kind_of(module)):
                setattr(module, "dropout", 0.0)  # noqa: B010 - only some modules have it
                still.append(path)
        return still

    def tensors(self, module: nn.Module) -> dict[str, np.ndarray]:
        """A module's parameters and floating-point buffers, by name within it."""
        found = {name: tensor for name, tensor in module.named_parameters() if "parametrizations" not in name}
        found |= {name: tensor for name, tensor in module.named_buffers() if tensor.is_floating_point()}
        if torch.nn.utils.parametrize.is_parametrized(module):
            made: Any = module.parametrizations
            found |= {name: getattr(module, name) for name in made}
        return {name: to_numpy(tensor) for name, tensor in found.items()}

    def nudge(self) -> None:
        """Move every parameter by one unit in the last place, every other one downwards."""
        with torch.no_grad():
            for index, parameter in enumerate(self.model.parameters()):
                if parameter.is_floating_point():
                    towards = torch.full_like(parameter, np.inf if index % 2 == 0 else -np.inf)
                    parameter.copy_(torch.nextafter(parameter, towards))

    def to_tensors(self, inputs: Any, gradient: bool = False) -> Any:
        """NumPy arrays, in whatever structure, as tensors in this precision."""

        def convert(value: Any) -> Any:
            if not isinstance(value, np.ndarray | Tensor | np.generic):
                return value
            tensor = (
                torch.tensor(np.asarray(value)) if not isinstance(value, Tensor) else value.detach().clone()
            )
            if tensor.is_floating_point():
                tensor = tensor.to(self.dtype).requires_grad_(gradient)
            return tensor

        return _pytree.tree_map(convert, inputs)

    def run(
        self,
        args: Sequence,
        kwargs: dict,
        loss: Callable | None = None,
        *,
        backward: bool = True,
        keep: bool = True,
    ) -> Recording:
        """One forward and backward pass; parameters' gradients are in the recording, not in the model.

        Args:
            args: of the model, NumPy arrays and other values.
            kwargs: the same.
            loss: from the model's output to a scalar; None: inner product with `cotangent`.
            backward: whether gradients are computed.
            keep: whether the calls' arguments are kept for `replay`.
        """
        args, kwargs = self.to_tensors((tuple(args), kwargs), gradient=backward)
        # A model may change its input in place, which PyTorch does not allow for a leaf of the graph.
        args, kwargs = _pytree.tree_map(lambda x: x.clone() if is_tensor(x) else x, (args, kwargs))
        self.model.zero_grad(set_to_none=True)
        with self._watch(keep) as calls, self._seeded(), torch.set_grad_enabled(backward):
            try:
                output = self.model(*args, **kwargs)
            except Exception as error:
                raise UserError(
                    f"the PyTorch model cannot take these inputs: {explain(error)}; "
                    "give a tuple for several arguments, a dictionary for named ones"
                ) from error
        outputs = labelled(output, is_tensor)
        if not any(tensor.numel() for tensor in outputs.values()):
            what = "only empty tensors" if outputs else "no tensor"
            raise UserError(f"the PyTorch model returns {what}, so there is nothing to compare")
        for label, tensor in outputs.items():
            if tensor.isnan().any():
                raise UserError(f"the PyTorch model's output{label} has NaN; give other inputs or weights")
        recording = Recording(calls, {label: to_numpy(tensor) for label, tensor in outputs.items()})
        for label, tensor in outputs.items():
            if tensor.requires_grad:
                keep_gradient = recording.output_gradients
                tensor.register_hook(lambda g, k=label, kept=keep_gradient: kept.__setitem__(k, to_numpy(g)))
        objective = self._objective(output, outputs, loss)
        if backward and objective.requires_grad:
            objective.backward()
            recording.gradients = {
                name: to_numpy(parameter.grad)
                for name, parameter in self.model.named_parameters()
                if parameter.grad is not None
            }
        recording.objective = float(objective.detach())
        return recording

    def _objective(self, output: Any, outputs: dict[str, Tensor], loss: Callable | None) -> Tensor:
        if loss:
            try:
                value = loss(output)
            except Exception as error:
                raise UserError(
                    f"the PyTorch loss cannot take the model's output: {explain(error)}"
                ) from error
            if not is_tensor(value) or value.numel() != 1:
                shape = tuple(value.shape) if is_tensor(value) else type(value).__name__
                raise UserError(f"the PyTorch loss must be a scalar tensor, not {shape}; take its mean")
            return value
        total = torch.zeros((), dtype=self.dtype)
        for seed, tensor in enumerate(outputs.values()):
            if tensor.is_floating_point():
                total = total + (tensor * torch.tensor(cotangent(tuple(tensor.shape), seed)).to(tensor)).sum()
        return total

    @contextlib.contextmanager
    def _seeded(self) -> Iterator[None]:
        """The same random numbers at each pass; functional dropout off where its modules are."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            with _NoDropout() if self.model.training else contextlib.nullcontext():
                yield

    @contextlib.contextmanager
    def _watch(self, keep: bool) -> Iterator[list[Call]]:
        """Record leaf calls; modules' own in-place changes are survived by copying."""
        calls: list[Call] = []
        stack: list[dict[str, Any]] = []
        counts: dict[str, int] = {}
        copies: dict[int, tuple[Any, int, np.ndarray]] = {}  # of tensors that have not changed since

        def snapshot(tensor: Tensor) -> np.ndarray:
            known = copies.get(id(tensor))
            if known and known[0]() is tensor and known[1] == tensor._version:
                return known[2]
            array = to_numpy(tensor)
            copies[id(tensor)] = (weakref.ref(tensor), tensor._version, array)
            return array

        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            for frame in stack[-1:]:
                frame["leaf"] = False
            arrays = _pytree.tree_map(lambda x: snapshot(x) if is_tensor(x) else x, (args, kwargs))
            buffers = {n: to_numpy(b) for n, b in module.named_buffers(recurse=False)}
            stack.append({"leaf": True, "arguments": arrays, "statistics": buffers})

        def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
            frame = stack.pop()
            kind = kinds.kind_of(module)
            if not frame["leaf"] or kind == "identity":
                return output
            path = self.paths[id(module)]
            tensors = [x for x in _pytree.tree_leaves(output) if is_tensor(x)]
            if len(tensors) > 1:
                # One may be made of another, as an LSTM's output is of its cell state. A copy's gradient is
                # that of what comes after the layer only.
                output = _pytree.tree_map(lambda x: x.clone() if is_tensor(x) else x, output)
                tensors = [x for x in _pytree.tree_leaves(output) if is_tensor(x)]
            inputs = [x for x in _pytree.tree_leaves(frame["arguments"]) if isinstance(x, np.ndarray)]
            tensors = kinds.canonical("torch", kind, "outputs", tensors)
            call = Call(
                path,
                kind,
                module,
                kinds.canonical("torch", kind, "inputs", inputs),
                [snapshot(tensor) for tensor in tensors],
                statistics=frame["statistics"],
                statistics_after={n: to_numpy(b) for n, b in module.named_buffers(recurse=False)},
                arguments=frame["arguments"] if keep else ((), {}),
                number=counts.get(path, 0),
            )
            counts[path] = call.number + 1
            call.gradients = [None] * len(tensors)
            for index, tensor in enumerate(tensors):
                if tensor.requires_grad:
                    tensor.register_hook(lambda g, c=call, i=index: c.gradients.__setitem__(i, to_numpy(g)))
            calls.append(call)
            return output

        handles = []
        for path, module in self.model.named_modules():
            if "parametrizations" not in path and not isinstance(module, torch.jit.ScriptModule):
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after, with_kwargs=True))
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()

    def replay(self, call: Call, cotangents: Sequence[np.ndarray]) -> Local:
        """Run one leaf alone, on what it got, from the statistics that it had."""
        module, (args, kwargs) = call.module, self.to_tensors(call.arguments, gradient=True)
        floats = [x for x in _pytree.tree_leaves((args, kwargs)) if is_tensor(x)]
        args, kwargs = _pytree.tree_map(lambda x: x.clone() if is_tensor(x) else x, (args, kwargs))
        buffers = dict(module.named_buffers(recurse=False))
        saved = {name: buffer.clone() for name, buffer in buffers.items()}
        set_buffers(module, {name: torch.tensor(value) for name, value in call.statistics.items()})
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        with self._seeded():
            output = module(*args, **kwargs)
        tensors = [x for x in _pytree.tree_leaves(output) if is_tensor(x)]
        tensors = kinds.canonical("torch", call.kind, "outputs", tensors)
        wanted = [x for x in (*floats, *parameters.values()) if x.requires_grad]
        objective = [
            (tensor * torch.tensor(c).to(tensor)).sum()
            for tensor, c in zip(tensors, cotangents, strict=True)
            if tensor.requires_grad
        ]
        gradients: Any = [None] * len(wanted)
        if objective and wanted:
            gradients = torch.autograd.grad(sum(objective), wanted, allow_unused=True)  # pyright: ignore
        by_id = {id(x): g for x, g in zip(wanted, gradients, strict=True)}
        found = [by_id.get(id(x)) for x in floats]
        after = {name: to_numpy(b) for name, b in module.named_buffers(recurse=False)}
        set_buffers(module, saved)
        return Local(
            [to_numpy(x) for x in tensors],
            [None if g is None else to_numpy(g) for g in found],
            {n: to_numpy(g) for n, p in parameters.items() if (g := by_id.get(id(p))) is not None},
            after,
        )


def set_buffers(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Set a module's own buffers to these values."""
    for name, buffer in module.named_buffers(recurse=False):
        if name in values:
            buffer.copy_(values[name])


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A copy as a NumPy array."""
    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    return tensor.numpy(force=True).copy()


class _NoDropout(TorchFunctionMode):
    """Functional dropout returns its input."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in (
            "dropout",
            "dropout1d",
            "dropout2d",
            "dropout3d",
            "alpha_dropout",
            "feature_alpha_dropout",
        ):
            return args[0] if args else (kwargs or {})["input"]
        if name == "scaled_dot_product_attention":
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs = {**(kwargs or {}), **({"dropout_p": 0.0} if len(args) <= 4 else {})}
        return func(*args, **(kwargs or {}))
