"""All nets for the laws of the scale graph: `SUPPORTED` ones, and `PINNED` ones, of whose units some are not free."""

from pathspace.case import Case
from pathspace.pinned import PINNED
from pathspace.supported import SUPPORTED

__all__ = ["BY_NAME", "CASES", "PINNED", "SUPPORTED", "Case"]

CASES = SUPPORTED + PINNED
BY_NAME = {case.name: case for case in CASES}
