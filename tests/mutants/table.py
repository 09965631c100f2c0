"""Which modules are mutated, and which tests have to notice."""

from __future__ import annotations

DEVICE = "companions/device_transfer/"
PEERS = "companions/peer_messaging/"


def core(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_{name}.py" for name in names)


def companion(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/companions/test_{name}.py" for name in names)


# Each module, with the test files that should notice, the likeliest first.
MODULES = {
    "crypto_utils.py": core("crypto_utils", "vectors"),
    "protocol_fsm.py": core("protocol_fsm", "vectors"),
    "channel.py": core("channel", "server", "seams"),
    "program.py": core("program", "programs"),
    "endpoint.py": core("endpoint", "keylog", "programs"),
    "server.py": core("roster", "server", "server_load", "programs"),
    "client.py": core("readings", "programs", "server"),
    "lab/frames.py": core("lab", "proxy", "attacks"),
    "lab/proxy.py": core("proxy", "lab", "attacks"),
    "lab/verdict.py": core("lab", "attacks"),
    "lab/search.py": core("search", "matrix"),
    "lab/weakened.py": core("attacks", "matrix"),
    "companions/asymmetric.py": companion("asymmetric"),
    "companions/terminal.py": companion("terminal"),
    "companions/listening.py": companion("server", "chat_programs"),
    DEVICE + "protocol.py": companion("protocol", "channel"),
    DEVICE + "certificates.py": companion("certificates"),
    DEVICE + "transfer.py": companion("transfer"),
    DEVICE + "store.py": companion("store", "transfer"),
    DEVICE + "journal.py": companion("journal", "server"),
    DEVICE + "ca.py": companion("ca", "programs"),
    DEVICE + "server.py": companion("server", "device", "programs"),
    DEVICE + "device.py": companion("device", "programs"),
    DEVICE + "options.py": companion("programs", "server"),
    PEERS + "protocol.py": companion("peers_protocol"),
    PEERS + "identity.py": companion("peers_identity", "peers_programs"),
    PEERS + "peer.py": companion("peers_peer"),
}


def wider(module: str) -> tuple[str, ...]:
    """Return the tests that a survivor has to survive, too."""
    if module.startswith(PEERS):
        return companion("peers_node", "peers_talk", "peers_attacks", "peers_programs")
    if module.startswith("companions/"):
        return companion("programs", "device", "server", "attacks")
    return core("server", "channel", "programs", "attacks", "keylog", "seams")
