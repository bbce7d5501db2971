"""Draw how the two training programs differ: ``python -m benchmarks.twins`` writes docs/figures/twins.svg."""

from difflib import SequenceMatcher
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

ROOT = Path(__file__).parent.parent
FILE = "train.py"
FIRST = "def normalise"  # what is above is imports


def main() -> None:
    """Write the picture: lines that both have in grey, the others in colour."""
    ours, theirs = (
        path.read_text()[path.read_text().index(FIRST) :].splitlines()
        for path in (ROOT / "torch_impl" / FILE, ROOT / "jax_impl" / FILE)
    )
    table = Table.grid(padding=(0, 2))
    table.add_row(Text(f"torch_impl/{FILE}", "bold"), Text(f"jax_impl/{FILE}", "bold"))
    for kind, a, b, c, d in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        styles = ("bright_black",) * 2 if kind == "equal" else ("orange3", "cornflower_blue")
        for row in range(max(b - a, d - c)):
            lines = (part[row] if row < len(part) else "" for part in (ours[a:b], theirs[c:d]))
            table.add_row(*(Text(line, style) for line, style in zip(lines, styles, strict=True)))
    console = Console(record=True, width=230, file=StringIO())
    console.print(table)
    console.save_svg(str(ROOT / "docs" / "figures" / "twins.svg"), title="The two training programs")


if __name__ == "__main__":
    main()
