"""The tables of docs/reliability.md."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from benchmarks.tables import FRAMEWORKS, Tables, describe_origin, load_result, markdown_table, unmeasured


def kills_table() -> str:
    """What became of runs that were killed."""
    result = load_result("reliability-kills")
    if result is None:
        return unmeasured("benchmarks.kills")
    rows = []
    for name, found in result.items():
        for key, moment in (("at_random", "at random"), ("at_every_line_of_writing", "each line of writing")):
            if key in found:
                counts = found[key]
                kept = ", ".join(
                    f"{epochs}: {count}" for epochs, count in counts["kills_by_epochs_kept"].items()
                )
                rows.append(
                    [
                        FRAMEWORKS[name],
                        moment,
                        f"{counts['kills']:,}",
                        f"{counts['bit_identical_after_resume']:,}",
                        f"{counts['unreadable_files']:,}",
                        kept,
                    ]
                )
    header = ["framework", "killed", "kills", "bit-identical after going on", "files lost or half-written"]
    table = markdown_table([*header, "kills by epochs kept"], rows)
    return table + _origins(list(result.values()))


def fuzz_table() -> str:
    """What the readers made of faulty inputs."""
    result = load_result("reliability-fuzz")
    if result is None:
        return unmeasured("benchmarks.fuzz")
    rows = [
        [
            name,
            READ[name],
            f"{found['inputs']:,}",
            f"{found['accepted']:,}",
            f"{found['refused']:,}",
            f"{found['tracebacks']} / {found['crashes']} / {found['hangs']}",
            f"{found['slowest_s']:.2f}",
            f"{found['peak_growth_mib']:.0f}",
        ]
        for name, found in ((name, result[name]) for name in READ if name in result)
    ]
    header = ["reader", "of", "inputs", "accepted", "refused", "tracebacks / crashes / hangs", "slowest, s"]
    return markdown_table([*header, "memory, MiB"], rows) + _origins(
        [result[name] for name in READ if name in result]
    )


def determinism_table() -> str:
    """Whether the same seed gave the same bits."""
    result = load_result("reliability-determinism")
    if result is None:
        return unmeasured("benchmarks.determinism")
    rows = [
        [
            FRAMEWORKS[name],
            f"`{result['network']}`, {result['precision']}, {found['steps']} steps",
            _yes(found["same_bits_with_1_threads"]),
            _yes(found["same_bits_with_2_threads"]),
            _yes(found["same_bits_with_1_and_2_threads"]),
            f"{found['largest_loss_difference_between_1_and_2_threads']:.1g}",
        ]
        for name, found in result["frameworks"].items()
    ]
    header = [
        "framework",
        "run",
        "same bits on one core",
        "on two",
        "on one and on two",
        "largest difference of a loss",
    ]
    return markdown_table(header, rows) + _origins([result])


def coverage_table() -> str:
    """How much of each package the tests run."""
    result = load_result("reliability-coverage")
    if result is None:
        return unmeasured("benchmarks.coverage")
    rows = [
        [
            f"`{name}`",
            f"{found['num_statements']:,}",
            _percent(found["covered_lines"], found["num_statements"]),
            f"{found['num_branches']:,}",
            _percent(found["covered_branches"], found["num_branches"]),
        ]
        for name, found in result["packages"].items()
    ]
    header = ["package", "statements", "run by the tests, %", "branches", "taken by the tests, %"]
    return markdown_table(header, rows) + "\n\n" + describe_origin(result)


def mutation_table() -> str:
    """What the tests noticed of changes in each module."""
    result = load_result("reliability-mutation")
    if result is None:
        return unmeasured("benchmarks.mutation")
    rows, total = [], Counter()
    for name, fates in result["modules"].items():
        total.update(fates)
        rows.append([f"`recipe/{name}.py`", *_fates(fates)])
    header = ["module", "mutants tested", "noticed", "survived", "other", "reached by none of these tests"]
    return markdown_table(header, [*rows, ["all", *_fates(total)]]) + "\n\n" + describe_origin(result)


def _fates(fates: Mapping[str, int]) -> list[str]:
    """Counts of a mutation row: a change that hangs a test is noticed, too."""
    noticed, survived = fates.get("killed", 0) + fates.get("timeout", 0), fates.get("survived", 0)
    unreached = fates.get("no tests", 0)
    tested = sum(fates.values()) - unreached - fates.get("not checked", 0)
    counts = (tested, noticed, survived, tested - noticed - survived, unreached)
    return [f"{count:,}" for count in counts]


READ = {
    "idx": "MNIST's files, plain and gzipped",
    "cache": "the decoded arrays, `.npz`",
    "checkpoint": "the file's bytes and header",
    "resume": "config, metrics and tensors, the digest being right",
    "onnx": "a float32 model, read and run",
    "int8": "a quantised one",
    "command line": "every program's",
}


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _origins(results: list[dict[str, Any]]) -> str:
    """The commands, those together that ran on one machine with the same versions."""
    commands: dict[str, list[str]] = defaultdict(list)
    for result in results:
        commands[_place(result)].append(f"`{result['machine']['command']}`")
    return "".join(f"\n\n{', '.join(found)}: {place}." for place, found in commands.items())


def _place(result: dict[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("torch", "jax", "onnxruntime"))
    where = f"{machine['processor']}, {machine['cores']} core{'s' if machine['cores'] > 1 else ''}"
    return f"{where}; {versions}; {result['date'][:10]}"


TABLES: Tables = {
    "kills": kills_table,
    "fuzz": fuzz_table,
    "determinism": determinism_table,
    "coverage": coverage_table,
    "mutation": mutation_table,
}
