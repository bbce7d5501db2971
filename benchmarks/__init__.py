"""How fast and how accurate: one short program for each table, and the tables of the pages."""

from recipe import start_program

start_program()
