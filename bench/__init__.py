"""The core and the companions, measured beside others."""

import guard  # noqa: F401
