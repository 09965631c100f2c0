"""Which modules are mutated, and which tests have to notice."""

from __future__ import annotations

DEVICE = "companions/device_transfer/"
PEERS = "companions/peer_messaging/"
CHAT = "companions/secure_chat/"


def core(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_{name}.py" for name in names)


def companion(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/companions/test_{name}.py" for name in names)


# Each module, with the test files that should notice, the likeliest first.
MODULES = {
    "guard.py": core("guard"),
    "crypto_utils.py": core("crypto_utils", "vectors"),
    "protocol_fsm.py": core("protocol_fsm", "vectors"),
    "channel.py": (*core("channel", "server", "seams"), *companion("channel")),
    "program.py": core("program", "programs"),
    "endpoint.py": core("endpoint", "keylog", "programs"),
    "server.py": core("roster", "server", "documents", "programs"),
    "readings.py": core("readings", "programs"),
    "client.py": core("client", "programs", "server"),
    "lab/frames.py": core("lab", "proxy", "attacks"),
    "lab/proxy.py": core("proxy", "lab", "attacks"),
    "lab/verdict.py": core("lab", "attacks"),
    "lab/search.py": core("search", "matrix"),
    "lab/weakened.py": core("attacks", "matrix"),
    "companions/asymmetric.py": companion("asymmetric"),
    "companions/terminal.py": companion("terminal"),
    "companions/locking.py": companion("ca", "chat_pki"),
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
    CHAT + "protocol.py": companion("chat_protocol", "chat_updates"),
    CHAT + "dh.py": companion("chat_protocol"),
    CHAT + "pae.py": companion("chat_protocol", "chat_evidence"),
    CHAT + "pins.py": companion("chat_pins"),
    CHAT + "pki.py": companion("chat_pki", "chat_rooms"),
    CHAT + "rooms.py": companion("chat_rooms", "chat_evidence"),
    CHAT + "forms.py": companion("chat_evidence", "chat_rooms"),
    CHAT + "transcript.py": companion("chat_evidence"),
    CHAT + "verify.py": companion("chat_evidence"),
    CHAT + "evidence.py": companion("chat_evidence", "chat_programs", "chat_many_rooms"),
    CHAT + "accounts.py": companion("chat_accounts", "chat_resume", "chat_tries"),
    CHAT + "tries.py": companion("chat_tries", "chat_accounts"),
    CHAT + "server.py": companion(
        "chat_programs", "chat_updates", "chat_resume", "chat_many_rooms"
    ),
    "classroom/kit/graft.py": core("kit_grade"),
    "classroom/kit/sandbox.py": core("kit_grade"),
    "classroom/kit/grading.py": core("kit_grade"),
    "classroom/proxy.py": core("proxy", "live"),
    "classroom/proxy_commands.py": core("proxy"),
    "classroom/proxy_pair.py": core("proxy", "live"),
    "classroom/live/safe.py": core("live"),
    "classroom/live/app.py": core("live"),
    "classroom/live/ends.py": core("live"),
    "classroom/live/plays.py": core("live"),
    "classroom/live/room.py": core("live"),
    "classroom/live/scene.py": core("live"),
    "classroom/live/table.py": core("live"),
    "classroom/live/views.py": core("live"),
    "classroom/conform/peer.py": core("conform"),
    "classroom/conform/targets.py": core("conform"),
}


def wider(module: str) -> tuple[str, ...]:
    """Return the tests that a survivor has to survive, too."""
    if module == "guard.py" or module.startswith("classroom/"):
        return ()
    if module.startswith(PEERS):
        return companion("peers_node", "peers_talk", "peers_attacks", "peers_programs")
    if module.startswith(CHAT):
        return companion("chat_programs", "chat_updates", "chat_attacks")
    if module.startswith("companions/"):
        return companion("programs", "device", "server", "attacks")
    return core("server", "channel", "programs", "attacks", "keylog", "seams")
