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
    "protocol_fsm.py": core("protocol_fsm", "vectors", "patches_found"),
    "endpoint.py": core("patches_found", "server", "programs", "keylog", "hold"),
    "server.py": core("server", "patches_found", "hold", "programs"),
    "companions/asymmetric.py": companion("asymmetric"),
    "companions/channel.py": companion("channel", "server", "patches_found"),
    DEVICE + "protocol.py": companion("protocol", "patches_found", "channel"),
    DEVICE + "certificates.py": companion("certificates", "patches_found"),
    DEVICE + "transfer.py": companion("transfer", "patches_found"),
    DEVICE + "store.py": companion("store", "patches_found", "transfer"),
    DEVICE + "journal.py": companion("journal", "patches_found", "server"),
    DEVICE + "ca.py": companion("ca", "patches_found", "programs"),
    DEVICE + "server.py": companion("server", "patches_found", "device", "programs"),
    DEVICE + "device.py": companion("device", "patches_found", "programs"),
    DEVICE + "options.py": companion("programs", "patches_found", "server"),
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
    return core("server", "programs", "attacks", "keylog", "hold", "patches_found")
