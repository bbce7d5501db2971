"""The list of benchmarks: ``python -m benchmarks``."""

from pathlib import Path

from recipe import console


def main() -> None:
    """Print the commands of README.md with what each answers and how many minutes it takes."""
    lines = (Path(__file__).parent / "README.md").read_text().splitlines()
    for line in lines:
        if line.startswith("| `python"):
            command, answer, minutes = (cell.strip(" `") for cell in line.split("|")[1:4])
            console.show_line(f"{command:<60}{minutes:>6} min\n    {answer}")
    console.show_line("Each explains its options with --help. Results go to runs/bench/.")


if __name__ == "__main__":
    main()
