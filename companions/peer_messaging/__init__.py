"""Two equal nodes that talk over ZeroMQ: see README.md in this folder."""
