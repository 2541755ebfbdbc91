"""How many examples hypothesis draws: a few, the same each time, or as many as GRADSPACE_EXAMPLES says, at random."""

import os

from hypothesis import HealthCheck, settings

_ANY = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("few", derandomize=True, database=None, max_examples=12, **_ANY)
settings.register_profile("search", max_examples=int(os.environ.get("GRADSPACE_EXAMPLES", 1000)), **_ANY)
settings.load_profile("search" if "GRADSPACE_EXAMPLES" in os.environ else "few")
