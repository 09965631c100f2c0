"""The man in the middle in a browser: what the proxy and the event log know, live on one page."""
