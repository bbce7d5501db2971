"""``python -m lockstep pair.py``: compare the two models that a file defines."""

import difflib
import importlib.util
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from recipe import console
from recipe.checkpoint import write_atomically
from recipe.console import UserError, check_range, explain, option
from recipe.run import MAX_SEED

NEEDED = ("torch_model", "flax_model", "inputs")
OPTIONAL = ("pairs", "flax_inputs", "torch_loss", "flax_loss", "torch_optimizer", "flax_optimizer")


@dataclass(frozen=True)
class PairOptions:
    """Compare a PyTorch model with its Flax port, layer by layer.

    The file defines torch_model(), flax_model() and inputs(rng).

    docs/porting.md says what else it may define.

    Exit code 0: equal, 1: different, 2: an error.
    """

    file: Path = option(help="The file, e.g. pair.py")
    weights: bool = option(
        True,
        "Copy PyTorch's weights into Flax; --no-weights compares them too, e.g. of a converted checkpoint",
    )
    backward: bool = option(True, "Compare gradients")
    float32: bool = option(True, "Compare in float32 too, against the noise floor")
    steps: int = option(10, "Training steps to compare if there are optimizers")
    seed: int = option(0, "Of the inputs")
    json: Path | None = option(None, "Write the result to this file")
    arrays: Path | None = option(None, "Write the arrays of the first difference to this .npz file")


def main(options: PairOptions) -> None:
    """Compare, print, and exit with 1 if something differs.

    Raises:
        UserError: the file cannot be used, or what `lockstep.compare` raises.
    """
    import numpy as np

    check_range("--seed", options.seed, 0, MAX_SEED)
    check_range("--steps", options.steps, 1, 10_000)
    module = load(options.file)
    from lockstep.models import compare

    given = call(module, "inputs", np.random.default_rng(options.seed))
    result = compare(
        call(module, "torch_model"),
        call(module, "flax_model"),
        given,
        flax_inputs=call(module, "flax_inputs", given) if hasattr(module, "flax_inputs") else None,
        pairs=getattr(module, "pairs", None),
        copy_weights=options.weights,
        loss=both(module, "torch_loss", "flax_loss"),
        optimizers=both(module, "torch_optimizer", "flax_optimizer"),
        steps=options.steps,
        backward=options.backward,
        float32=options.float32,
    )
    if console.screen.is_terminal:
        console.screen.print(result)
    else:  # 80 columns, as a file has them, are too few for the table
        print(result)
    if options.json:
        write_atomically(options.json, result.to_json().encode())
    if options.arrays and result.first:
        result.save_arrays(options.arrays)
    elif options.arrays:
        console.show_notice(f"nothing differs, so {options.arrays} was not written")
    if not result.equal:
        sys.exit(1)


def both(module: ModuleType, torch_name: str, flax_name: str) -> tuple[Any, Any] | None:
    """PyTorch's and Flax's of something; an Optax transformation is made, the rest are functions.

    Raises:
        UserError: only one is defined.
    """
    defined = [hasattr(module, name) for name in (torch_name, flax_name)]
    if not any(defined):
        return None
    if not all(defined):
        missing = (torch_name, flax_name)[defined.index(False)]
        raise UserError(f"{module.__file__} must define {missing} too")
    flax = call(module, flax_name) if flax_name == "flax_optimizer" else getattr(module, flax_name)
    return getattr(module, torch_name), flax


def load(path: Path) -> ModuleType:
    """Run a file as a module; its folder can be imported from.

    Raises:
        UserError: it is missing, fails, or lacks a function.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a Python file that defines {', '.join(NEEDED)}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file; give one whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} fails{_line(error, path)}: {explain(error)}") from error
    missing = [name for name in NEEDED if not callable(getattr(module, name, None))]
    if missing:
        raise UserError(f"{path} must define the function {' and '.join(missing)}; see docs/porting.md")
    for name in vars(module):
        meant = difflib.get_close_matches(name.lower(), OPTIONAL, 1, 0.85)
        if meant and name not in OPTIONAL:
            console.show_notice(f"{path} defines {name}, which is not used; did you mean {meant[0]}?")
    return module


def _line(error: Exception, path: Path) -> str:
    """The last line of a file that an error came through, in words."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    return f" at line {lines[-1]}" if lines else ""


def call(module: ModuleType, name: str, *arguments: Any) -> Any:
    """What a function of the file returns.

    Raises:
        UserError: it fails.
    """
    try:
        return getattr(module, name)(*arguments)
    except UserError:
        raise
    except Exception as error:
        path = Path(str(module.__file__))
        raise UserError(f"{name} in {path} fails{_line(error, path)}: {explain(error)}") from error
