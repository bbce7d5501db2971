"""How the two training programs differ, line by line."""

from io import StringIO
from itertools import pairwise, zip_longest

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.record import RESULTS

FILE = "train.py"
FIRST, LAST = "def normalise", "def train_step"  # what the picture shows


def shared_lines(ours: list[str], theirs: list[str]) -> list[tuple[int, int]]:
    """Positions of the longest common subsequence of lines, which is what ``diff`` leaves unmarked."""
    longest = [[0] * (len(theirs) + 1) for _ in range(len(ours) + 1)]
    for i in reversed(range(len(ours))):
        for j in reversed(range(len(theirs))):
            same = ours[i] == theirs[j]
            longest[i][j] = longest[i + 1][j + 1] + 1 if same else max(longest[i + 1][j], longest[i][j + 1])
    i, j, found = 0, 0, []
    while i < len(ours) and j < len(theirs):
        if ours[i] == theirs[j]:
            found.append((i, j))
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    return found


def draw_twins() -> bytes:
    """The picture, SVG: lines that both have in grey, the others in colour and side by side."""
    programs = [(RESULTS.parent / f"{name}_impl" / FILE).read_text() for name in ("torch", "jax")]
    ours, theirs = (text[text.index(FIRST) : text.index(LAST)].rstrip().splitlines() for text in programs)
    table = Table.grid(padding=(0, 2))
    table.add_row(Text(f"torch_impl/{FILE}", "bold"), Text(f"jax_impl/{FILE}", "bold"))
    ends = [(-1, -1), *shared_lines(ours, theirs), (len(ours), len(theirs))]
    for (i, j), (next_i, next_j) in pairwise(ends):
        for left, right in zip_longest(ours[i + 1 : next_i], theirs[j + 1 : next_j], fillvalue=""):
            table.add_row(Text(left, "orange3"), Text(right, "cornflower_blue"))
        for line in ours[next_i : next_i + 1]:  # none after the last
            table.add_row(Text(line, "grey70"), Text(line, "grey70"))
    width = sum(max(map(len, lines)) for lines in (ours, theirs)) + 2
    console = Console(record=True, width=width, file=StringIO(), emoji=False)
    console.print(table)
    return console.export_svg(title="The beginning of both training programs").encode()
