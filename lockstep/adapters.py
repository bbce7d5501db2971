"""JAX models of every library as one thing: named arrays, and a function of them and the inputs."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lockstep.errors import UserError

STATISTICS = ("batch_stats",)


@dataclass(frozen=True)
class Function:
    """A function ``f(params, *inputs)`` over any PyTree."""

    f: Callable[..., Any]
    params: Any


@dataclass(frozen=True)
class Linen:
    """A `flax.linen` module with its variables; ``arguments`` go to each call."""

    module: Any
    variables: Any
    method: Any = None
    arguments: dict[str, Any] = field(default_factory=dict)


def function(f: Callable[..., Any], params: Any) -> Function:
    """A plain function as a model: ``f(params, *inputs)``, with the parameters as any PyTree."""
    return Function(f, params)


def linen(module: Any, variables: Any = None, method: Any = None, **arguments: Any) -> Linen:
    """A `flax.linen` module as a model.

    Args:
        module: the module, or a transformers Flax model, which brings its own variables.
        variables: what ``module.init`` returned.
        method: another method than ``__call__``, by name or itself.
        arguments: given to each call, such as ``train=False``; and ``rngs`` or ``mutable``.
    """
    return Linen(module, variables, method, arguments)


@dataclass
class Adapter:
    """A JAX model.

    Attributes:
        names: of the leaves.
        leaves: arrays, and random keys.
        call: from leaves, args and kwargs to the output and the leaves that the call changed, by name.
        parameters: from leaves to the tree that an optimizer takes, without those that are never trained.
        trainable: names of parameters.
        tables: names of arrays that belong to the model and are never trained.
        channels_last: the library's convolutions take channels last.
        plain: names of arrays of an NNX module that are no `nnx.Variable`; nothing says if they are trained.
    """

    names: list[str]
    leaves: list[Any]
    call: Callable[[list[Any], tuple, dict], tuple[Any, dict[str, Any]]]
    parameters: Callable[[list[Any]], Any]
    trainable: set[str]
    tables: set[str]
    channels_last: bool = False
    plain: set[str] = field(default_factory=set)


def kind_of(model: Any) -> str:
    """The library of a model by its classes, without importing any; empty if it is none."""
    if isinstance(model, Function | Linen):
        return type(model).__name__.lower()
    modules = [f"{c.__module__}.{c.__name__}" for c in type(model).__mro__]
    kinds = {"torch.nn.modules.module.Module": "torch", "flax.nnx": "nnx", "flax.linen": "linen module",
             "equinox": "equinox", "transformers.modeling_flax": "transformers"}  # fmt: skip
    return next((kind for start, kind in kinds.items() if any(m.startswith(start) for m in modules)), "")


def adapt(model: Any, training: bool | None) -> Adapter:
    """The adapter of a JAX model.

    Args:
        model: of NNX, Linen, Equinox or transformers, or a function.
        training: the reference's mode, in which a model is put that has modes.

    Raises:
        UserError: it is none of these.
    """
    kind = kind_of(model)
    if kind == "nnx":
        return _adapt_nnx(model, training)
    if kind == "linen":
        own = kind_of(model.module) == "transformers"
        return _adapt_transformers(model.module, model) if own else _adapt_linen(model)
    if kind == "transformers":
        return _adapt_transformers(model, Linen(model, None))
    if kind == "equinox":
        import equinox

        if training is False:
            model = equinox.nn.inference_mode(model)
        return _adapt_tree(model, lambda tree, args, kwargs: tree(*args, **kwargs))
    if kind == "function":
        return _adapt_tree(model.params, lambda tree, args, kwargs: model.f(tree, *args, **kwargs))
    if kind == "linen module":
        raise UserError(
            f"{type(model).__name__} is a flax.linen module without variables; "
            "give lockstep.linen(module, variables)"
        )
    raise UserError(f"cannot compare {describe(model)}")


def describe(model: Any) -> str:
    """What was given instead of a model, and what to do."""
    if inspect.isclass(model):
        return f"the class {model.__name__}; call it"
    if callable(model):
        name = getattr(model, "__name__", type(model).__name__)
        return (
            f"the function {name}: call it if it makes the model, or give lockstep.function({name}, params)"
        )
    return f"a {type(model).__name__}; give a model"


def _name(path: tuple) -> str:
    if path and getattr(path[-1], "name", "") in ("value", "raw_value"):  # of an NNX variable
        path = path[:-1]
    return (
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path) or "params"
    )


def is_array(x: Any) -> bool:
    """Whether something is an array of NumPy or JAX."""
    return hasattr(x, "dtype") and hasattr(x, "shape")


def _adapt_tree(tree: Any, call: Callable[[Any, tuple, dict], Any]) -> Adapter:
    import jax

    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    kept = [is_array(leaf) for _, leaf in paths]
    names = [_name(path) for (path, _), keep in zip(paths, kept, strict=True) if keep]

    def run(leaves: list[Any], args: tuple, kwargs: dict) -> tuple[Any, dict[str, Any]]:
        arrays = iter(leaves)
        every = [next(arrays) if keep else leaf for (_, leaf), keep in zip(paths, kept, strict=True)]
        return call(jax.tree_util.tree_unflatten(structure, every), args, kwargs), {}

    def parameters(leaves: list[Any]) -> Any:
        arrays = iter(leaves)
        every = [next(arrays) if keep else None for keep in kept]
        return jax.tree_util.tree_unflatten(structure, every)

    arrays = [leaf for _, leaf in paths if is_array(leaf)]
    return Adapter(names, arrays, run, parameters, set(names), set())


def _adapt_nnx(model: Any, training: bool | None) -> Adapter:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    model = nnx.merge(*nnx.split(model))  # a copy
    if training is not None:  # the mode is the reference's
        model.train() if training else model.eval()
    for _, part in nnx.iter_modules(model):
        for name in ("dtype", "param_dtype"):
            asked = getattr(part, name, None)
            if isinstance(asked, type | np.dtype) and np.dtype(asked) == np.float32:
                setattr(part, name, jnp.float64)
    graph, state = nnx.split(model)
    paths, structure = jax.tree_util.tree_flatten_with_path(state)
    names = [_name(path) for path, _ in paths]
    variables = {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    trainable = {name for name, variable in variables.items() if isinstance(variable, nnx.Param)}
    tables = {n for n, v in variables.items() if not isinstance(v, nnx.Param | nnx.BatchStat)}
    plain = {n for n, v in variables.items() if not isinstance(v, nnx.Variable)}

    def run(leaves: list[Any], args: tuple, kwargs: dict) -> tuple[Any, dict[str, Any]]:
        copy = nnx.merge(graph, jax.tree_util.tree_unflatten(structure, leaves))
        out = copy(*args, **kwargs)
        after, _ = jax.tree_util.tree_flatten_with_path(nnx.split(copy)[1])
        before = dict(zip(names, leaves, strict=True))
        changed = {_name(path): leaf for path, leaf in after if leaf is not before.get(_name(path), leaf)}
        return out, {name: leaf for name, leaf in changed.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}

    def parameters(leaves: list[Any]) -> Any:
        return nnx.filter_state(jax.tree_util.tree_unflatten(structure, leaves), nnx.Param)

    leaves = [leaf for _, leaf in paths]
    return Adapter(names, leaves, run, parameters, trainable, tables, channels_last=True, plain=plain)


def _adapt_linen(model: Linen) -> Adapter:
    import jax

    if model.variables is None:
        raise UserError("lockstep.linen needs the variables that module.init returned")
    options = dict(model.arguments)
    rngs = options.pop("rngs", None)
    asked = options.pop("mutable", None)
    collections = [name for name in model.variables if name != "params"]

    def call(variables: Any, args: tuple, kwargs: dict) -> tuple[Any, dict[str, Any]]:
        keys = rngs if rngs is not None else {"dropout": jax.random.key(0)}
        mutable = asked if asked is not None else collections
        out = model.module.apply(
            variables, *args, **kwargs, **options, method=model.method, rngs=keys, mutable=mutable or False
        )
        if not mutable:
            return out, {}
        out, changed = out
        before = {_name(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]}
        after = {_name(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(changed)[0]}
        return out, {name: leaf for name, leaf in after.items() if leaf is not before.get(name, leaf)}

    paths, structure = jax.tree_util.tree_flatten_with_path(model.variables)
    names = [_name(path) for path, _ in paths]

    def run(leaves: list[Any], args: tuple, kwargs: dict) -> tuple[Any, dict[str, Any]]:
        return call(jax.tree_util.tree_unflatten(structure, leaves), args, kwargs)

    def parameters(leaves: list[Any]) -> Any:
        return jax.tree_util.tree_unflatten(structure, leaves)["params"]

    tables = {n for n in names if n.split("/")[0] not in ("params", *STATISTICS)}
    trainable = {n for n in names if n.split("/")[0] == "params"}
    return Adapter(names, [leaf for _, leaf in paths], run, parameters, trainable, tables, channels_last=True)


def _adapt_transformers(model: Any, options: Linen) -> Adapter:
    params = options.variables if options.variables is not None else model.params
    method = getattr(model, options.method) if isinstance(options.method, str) else options.method or model
    return _adapt_tree(
        params, lambda tree, args, kwargs: method(*args, params=tree, **kwargs, **options.arguments)
    )
