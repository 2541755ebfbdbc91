"""Results that are kept line by line, so that what is there need not be computed again.

A CSV file's path, and lines of it, enter and leave; the first line names the columns.
"""

import csv
from collections.abc import Sequence
from pathlib import Path


def read_lines(path: str | Path) -> list[list[str]]:
    """Return the lines of a file but its first, none where there is no file."""
    if not Path(path).is_file():
        return []
    with open(path, newline="") as file:
        return list(csv.reader(file))[1:]


def append_line(path: str | Path, columns: Sequence[str], line: Sequence) -> None:
    """Write a line at once; a new file begins with the names of the columns."""
    fresh = not Path(path).is_file()
    with open(path, "a", newline="") as file:
        csv.writer(file).writerows([columns, line] if fresh else [line])
