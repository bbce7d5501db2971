"""``python -m lockstep pair.py``: compare the models that a file defines; ``record`` writes one of them."""

import argparse
import difflib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from lockstep.errors import UserError

NAMES = {  # what a file may define: its name here, and that of the time when only these two were compared
    "reference": "torch_model", "port": "flax_model", "inputs": "inputs", "port_inputs": "flax_inputs",
    "reference_loss": "torch_loss", "port_loss": "flax_loss",
    "reference_optimizer": "torch_optimizer", "port_optimizer": "flax_optimizer",
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def make_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = _Parser(
        prog="python -m lockstep",
        allow_abbrev=False,
        description="Compare a model with its port, operation by operation, in float64. The file defines "
        "reference(), port() and inputs(rng); docs/porting.md says what else it may define. "
        "Exit code 0: equal, 1: different, 2: an error.",
    )
    parser.add_argument("file", type=Path, help="the file, e.g. pair.py")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to this file")
    parser.add_argument("--no-weights", action="store_true", help="compare the given weights too")
    parser.add_argument("--no-backward", action="store_true", help="leave out gradients")
    parser.add_argument("--no-float32", action="store_true", help="leave out float32")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="training steps to compare (10)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of rng (0)")
    parser.add_argument("--table", action="store_true", help="show each module of the reference")
    parser.add_argument("--exact", action="store_true", help="evaluate JAX's primitives by JAX, not by NumPy")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="a recorded trace or an .onnx file")
    return parser


def main(words: list[str]) -> int:
    """Run the command; returns the exit code."""
    try:
        return record(words[1:]) if words[:1] == ["record"] else compare(words)
    except UserError as error:
        return refuse(str(error))


def refuse(message: str) -> int:
    """Print the one line that a mistake ends with; returns the exit code."""
    print(f"error: {message}", file=sys.stderr)
    return 2


def compare(words: list[str]) -> int:
    """Compare as the command line says and print the result.

    Raises:
        UserError: the file cannot be used, or what `lockstep.compare` raises.
    """
    import lockstep

    options = make_parser().parse_args(words)
    if options.steps < 1 or options.seed < 0:
        raise UserError("--steps must be at least 1 and --seed at least 0")
    if options.json:
        _check_destination("--json", options.json)
    module = load(options.file)
    needed = ("port", "inputs") if options.reference else ("reference", "port", "inputs")
    _check(module, options.file, needed)
    inputs = make_inputs(module, options.seed)
    given = dict(getattr(module, "OPTIONS", {}))
    if options.no_weights:
        given["copy_weights"] = False
    result = lockstep.compare(
        str(options.reference) if options.reference else call(module, "reference"),
        call(module, "port"),
        inputs,
        port_inputs=call(module, "port_inputs", inputs) if find(module, "port_inputs") else None,
        loss=_both(module, "loss", options.reference is not None),
        optimizers=_both(module, "optimizer", options.reference is not None),
        steps=options.steps,
        backward=not options.no_backward,
        float32=not options.no_float32,
        exact=options.exact,
        progress=_say,
        **given,
    )
    if options.table:
        from rich.console import Console

        Console(width=80, emoji=False, highlight=False).print(result.table())
    print(result)
    if options.json:
        options.json.write_text(result.to_json() + "\n")
        print(f"wrote {options.json}", file=sys.stderr)
    return 0 if result.equal else 1


def record(words: list[str]) -> int:
    """Write the trace of a file's reference, to be compared in another environment.

    Raises:
        UserError: the file cannot be used or written.
    """
    parser = _Parser(prog="python -m lockstep record", allow_abbrev=False)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="e.g. reference.safetensors")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of rng (0)")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="training steps to record (10)")
    options = parser.parse_args(words)
    _check_destination("--out", options.out)
    module = load(options.file)
    _check(module, options.file, ("reference", "inputs"))
    from lockstep.comparison import as_inputs, make_model
    from lockstep.record import record as run
    from lockstep.record import write

    inputs = as_inputs(make_inputs(module, options.seed))
    model = make_model(call(module, "reference"), [inputs], loss=find(module, "reference_loss"))
    write(options.out, run(model, inputs, find(module, "reference_optimizer"), options.steps))
    print(f"wrote {options.out}")
    return 0


def _check_destination(option: str, path: Path) -> None:
    """Refuse a file that cannot be written, before the work and not after it."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UserError(f"{option} {path}: there is no folder {folder}; make it first")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise UserError(f"{option} {path}: it cannot be written; name a file in a folder of yours")


def _say(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


def find(module: ModuleType, name: str) -> Any:
    """What a file defines under a name or its older one; None if it does not."""
    return getattr(module, name, None) or getattr(module, NAMES[name], None)


def make_inputs(module: ModuleType, seed: int) -> Any:
    """The inputs that a file makes of a seed."""
    import numpy as np

    return call(module, "inputs", np.random.default_rng(seed))


def _both(module: ModuleType, what: str, recorded: bool) -> tuple[Any, Any] | None:
    """The reference's and the port's loss, or optimizers; an Optax transformation is made.

    Raises:
        UserError: only one is defined.
    """
    names = [f"reference_{what}", f"port_{what}"]
    defined = [find(module, name) for name in names]
    if not any(defined[recorded:]):
        return None
    if not all(defined[recorded:]):
        raise UserError(f"{module.__file__} must define {names[defined.index(None)]} too")
    if what == "optimizer":
        arguments = defined[1].__code__.co_argcount if hasattr(defined[1], "__code__") else 0
        defined[1] = defined[1] if arguments else call(module, names[1])
    return None if recorded else defined[0], defined[1]


def _check(module: ModuleType, path: Path, needed: tuple[str, ...]) -> None:
    missing = [name for name in needed if not callable(find(module, name))]
    if missing:
        raise UserError(f"{path} must define the function {' and '.join(missing)}; see docs/porting.md")
    known = [*NAMES, *NAMES.values()]
    for name in vars(module):
        meant = difflib.get_close_matches(name, [n for n in known if not hasattr(module, n)], 1, 0.85)
        if meant and name not in known:
            print(
                f"note: {path} defines {name}, which is not used; did you mean {meant[0]}?", file=sys.stderr
            )


def load(path: Path) -> ModuleType:
    """Run a file as a module; its folder can be imported from.

    Raises:
        UserError: it is missing or fails.
    """
    if not path.is_file():
        raise UserError(
            f"there is no file {path}; give a Python file that defines reference, port and inputs"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: the name of a Python file ends in .py; give such a file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} fails{_line(error, path)}: {_explain(error)}") from error
    return module


def _line(error: Exception, path: Path) -> str:
    """The last line of a file that an error came through, in words."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    return f" at line {lines[-1]}" if lines else ""


def _explain(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def call(module: ModuleType, name: str, *arguments: Any) -> Any:
    """What a function of the file returns.

    Raises:
        UserError: it fails.
    """
    try:
        return find(module, name)(*arguments)
    except UserError:
        raise
    except Exception as error:
        path = Path(str(module.__file__))
        raise UserError(f"{name} in {path} fails{_line(error, path)}: {_explain(error)}") from error
