"""Put the figures of ``results/`` into the documents' tables: ``python -m benchmarks.pages``.

A test holds the documents to what this writes.
"""

from benchmarks import readme, reliability_page, training_page, tuning_page
from benchmarks.tables import ROOT, Tables, fill_tables

PAGES: dict[str, Tables] = {
    "README.md": readme.TABLES,
    "docs/recipe.md": tuning_page.TABLES,
    "docs/reliability.md": reliability_page.TABLES,
    "docs/speed.md": training_page.TABLES,
}


def main() -> None:
    """Rewrite every table of every document."""
    for name, tables in PAGES.items():
        path = ROOT / name
        path.write_text(fill_tables(path.read_text(), tables))


if __name__ == "__main__":
    main()
