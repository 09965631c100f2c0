"""Whether an implementation, in any language, does what PROTOCOL.md says: checks, live over TCP.

`peer` is the tester's end of a connection, `checks` what a check is, `server_checks` and
`client_checks` are the checks, `targets` starts what is tested, `runner` runs them; `__main__` is
the program.
"""
