"""``python -m lockstep pair.py`` compares two models; without a file, the project's two trainers."""

import sys

from lockstep import pair

words = sys.argv[1:]
if words[:1] == ["record"] or any(word.endswith(".py") for word in words) or (words and words[0][0] != "-"):
    sys.exit(pair.main(words))

from lockstep import twins  # noqa: E402  what follows needs the rest of the project

twins.run()
