"""Ports of models to JAX as people write them, most of them after a public report, right and with faults.

Each file is what ``python -m lockstep`` takes, and right as it is. Its variable FAULT puts a fault in: True
where there is one, else the fault's name. Lines with the word FAULT (and the name) say where the fault is.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Case:
    """A port with one of its faults, and what a comparison must say of it."""

    port: str
    fault: str | bool = True
    cause: str = "$^"
    """A regular expression for every right cause; the default: only silence is right."""
    kinds: tuple[str, ...] = ("values", "order", "wiring")
    """`Difference.kind`: a fault in code may show as another result or as the same numbers elsewhere."""
    by_cause: bool = False
    """No line of the port is at fault, but a setting, a weight or what is absent: the cause is the place."""
    variables: dict[str, Any] = field(default_factory=dict)
    """Further variables of the file, for both forms."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `lockstep.compare`, for both forms."""

    def __str__(self) -> str:
        words = [self.port, *([] if self.fault is True else [str(self.fault)])]
        return ": ".join(words) + "".join(f", {k}={v}" for k, v in self.variables.items())


GIVEN_WEIGHTS = {"copy_weights": False}
MASK = "mask|causal"
GELU = "(?i)gelu|erf|tanh"
REVERSED = "revers|flip|order"
TRANSPOSED = "transpos|permut|order|ax[ei]s"

CASES = (
    Case("adversarial", "scores", TRANSPOSED),
    Case("adversarial", "height and width", TRANSPOSED),
    Case("adversarial", "flipped", REVERSED),
    Case("adversarial", "batch reversed", REVERSED),
    Case("adversarial", "gate", "relu.*tanh|tanh.*relu"),
    Case("avgpool", cause="count_include_pad|padded places"),
    Case("bfloat16", cause="bfloat16", kinds=("precision",)),
    Case("bilstm", cause="length"),
    Case("buckets", cause="bidirectional|bucket"),
    Case("causal_mask", cause=MASK),
    Case("dataclasses_out", "before the norm", "norm"),
    Case("dataclasses_out", "missing", "hidden|output", ("missing",)),
    Case("decoder", cause=MASK),
    Case("dit", cause="exchang|swap|other", kinds=("wiring", "values")),
    Case("dit", cause="exchang|swap|other", kinds=("wiring", "values"), variables={"REMAT": False}),
    Case(
        "dropout", cause="dropout, or|rate of dropout", kinds=("setting", "missing", "values"), by_cause=True
    ),
    Case("float32_norm", cause="epsilon"),
    Case("fourier", cause="norm|ortho|by 8"),
    Case("frozen", cause="train|frozen|requires_grad|stop", kinds=("gradient", "parameter")),
    Case("gpt", cause="rotat|only the port computes .* in rope"),
    Case("gru", cause="reset|gate|takes add .* where the reference takes mul"),
    Case("ignored_labels", cause="mean|sum|counts|denominator|ignore", kinds=("loss",)),
    Case("image_positions", cause="minus|subtract|sign|-1"),
    Case("linen_block", cause="epsilon"),
    Case("linen_plain", cause="(?i)silu|relu|swish"),
    Case("lora", cause="2|scale|factor"),
    Case("lstm_checkpoint", cause="bias", kinds=("weights",), options=GIVEN_WEIGHTS, by_cause=True),
    Case("lstm_words", cause="state|carry"),
    Case("mamba", cause="softplus|relu"),
    Case("masked_rows", cause="-inf|nan"),
    Case("maximum", cause=r"0\.5|half|tie|maximum", kinds=("gradient",)),
    Case("optimizer", "limit", r"clip.*0\.02|0\.02.*clip", ("parameter",), by_cause=True),
    Case("optimizer", "epsilon", "clip.*(1e-0?6|epsilon)", ("parameter",), by_cause=True),
    Case("optimizer", "root", "root|eps_in_sqrt", ("parameter",), by_cause=True),
    Case("optimizer", "schedule", "schedule|learning rate", ("parameter",), by_cause=True),
    Case("padded_positions", cause="pad|cumsum|position"),
    Case("pixel_shuffle", cause=TRANSPOSED),
    Case("plain_gpt", cause=r"root|sqrt|scale|factor|\bd\b"),
    Case("pointwise", cause=GELU),
    Case("positions", "from one", "shift|plus|one|1"),
    Case("positions", "permuted", "a factor is 3 in the port, 1"),
    Case("raw_parameters", cause=GELU),
    Case("resize", "antialias", "antialias"),
    Case("resize", "bicubic", r"-0\.75|-0\.5|cubic"),
    Case("rms_norm", cause=r"1 \+|one plus|plus 1|plus one"),
    Case("rope", cause="interleav|halves|half|pairs"),
    Case("separate_projections", cause=MASK),
    Case("stacked_blocks", cause=GELU),
    Case("three_faults", cause=GELU),
    Case("timestep", "swapped", "order|exchang|sin|cos"),
    Case("timestep", "half minus one", r"- 1|minus (1|one)|divisor is 7 in the port, 8 in"),
    Case(
        "timestep",
        "half minus one",
        r"- 1|minus (1|one)|divisor is 7 in the port, 8 in",
        variables={"FLOAT32": True},
    ),
    Case("timestep", "activation", GELU, variables={"FLOAT32": True}),
    Case("train_argument", cause="epsilon"),
    Case("transposed", cause="padding"),
    Case("transposed_checkpoint", cause="flip", kinds=("weights",), options=GIVEN_WEIGHTS, by_cause=True),
    Case("unet", cause="exchang|swap|order|concat", kinds=("order", "wiring", "values")),
    Case(
        "unet",
        cause="exchang|swap|order|concat",
        kinds=("order", "wiring", "values"),
        variables={"FLOAT32": False},
    ),
    Case("weight_norm", cause="norm|ax[ei]s|output"),
)

RIGHT = tuple({(case.port, *case.variables.items()): case for case in CASES}.values())  # each right form once
