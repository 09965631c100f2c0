"""A chat with certificates, accounts, signed messages and evidence: see README.md."""
