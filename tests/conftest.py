"""Settings for all tests."""

from __future__ import annotations

from hypothesis import settings

# A slow machine is no defect of ours; what failed can be repeated from what is printed.
settings.register_profile("lab", deadline=None, print_blob=True)
settings.load_profile("lab")
