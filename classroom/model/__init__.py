"""The design of the protocol for ProVerif, and what runs it; README.md is the page to read."""
