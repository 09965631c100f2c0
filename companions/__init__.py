"""Secure channels of other kinds than the core's, each in a folder of its own."""

import guard  # noqa: F401
