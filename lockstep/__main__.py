"""Compare two models (``python -m lockstep pair.py``) or, without a file, the project's two trainers."""

import sys

from lockstep import pair


def main(words: list[str]) -> None:
    """Run the program that the command line asks for."""
    own = words[:1] == ["record"] or any(word.endswith(".py") for word in words)
    if own or (words and not words[0].startswith("-")):
        sys.exit(pair.main(words))

    try:
        from lockstep import twins  # here: it needs the rest of the project
    except ModuleNotFoundError as error:
        sys.exit(pair.refuse(f"{error.name} is not installed; pip install -e '.[all]' in the checkout"))

    twins.run()


if __name__ == "__main__":
    main(sys.argv[1:])
