"""What is for the classroom: demonstrations of the channel, started by run.py."""

import guard  # noqa: F401
