"""How fast and how accurate: one short program for each table, and the tables of the pages."""

from recipe import end_quietly_on_signals

end_quietly_on_signals()
