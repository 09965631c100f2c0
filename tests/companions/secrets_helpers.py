"""What the tests of secrets share: a recorder of all that a protocol makes, and two nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from companions.asymmetric import PrivateKey
from companions.peer_messaging.identity import Trust
from companions.peer_messaging.peer import Event, Limits, Peer
from tests.companions import peers_helpers
from tests.companions.peers_helpers import NOW, Clock
from tests.secrets_walk import held, opaque


class Recorder:
    """Every secret that a protocol has made: by kind, and a number for each that is new."""

    def __init__(self, patch: pytest.MonkeyPatch, protocol: Any) -> None:
        self.secrets: dict[str, bytes] = {}
        for name, record in (
            ("new_share", self._share),
            ("agree", lambda shared: self._note("shared", shared)),
            ("hkdf", lambda secret: self._note("secret", secret)),
            ("keys_of", self._keys),
        ):
            patch.setattr(protocol, name, self._recorded(getattr(protocol, name), record))

    def _recorded(self, function: Callable[..., Any], record: Callable[[Any], None]) -> Any:
        def recorded(*arguments: Any) -> Any:
            result = function(*arguments)
            record(result)
            return result

        return recorded

    def _note(self, kind: str, secret: bytes) -> None:
        if secret not in self.secrets.values():
            number = sum(name.startswith(f"{kind} ") for name in self.secrets)
            self.secrets[f"{kind} {number}"] = secret

    def _share(self, made: tuple[Any, bytes]) -> None:
        self._note("ephemeral", made[0].private_bytes_raw())

    def _keys(self, keys: dict[str, bytes]) -> None:
        for label, key in keys.items():
            self._note(label, key)

    def held_by(self, holder: object) -> set[str]:
        assert not [where for where in opaque(holder) if "X25519PrivateKey" not in where]
        return {*held(holder, self.secrets)}


class Nodes:
    """Two Peers that share a clock; what they tell is kept, and so is what they refuse."""

    def __init__(self, keys: Sequence[PrivateKey]) -> None:
        world = peers_helpers.World(keys)
        self.time = Clock(0.0)
        self.events: tuple[list[Event], list[Event]] = ([], [])
        people = (world.alice, world.bob)
        self.peers = [
            Peer(
                people[n],
                Trust("the peer", people[1 - n].fingerprint),
                Limits(),
                tell=self.events[n].append,
                clock=Clock(NOW),
                timer=self.time,
            )
            for n in (0, 1)
        ]

    def carry(self, sender: int, messages: Iterable[bytes]) -> None:
        """Deliver messages, and all that they lead to."""
        for message in messages:
            self.carry(1 - sender, self.peers[1 - sender].receive(message))

    def meet(self) -> None:
        self.carry(0, self.peers[0].tick())
        assert all(peer.session for peer in self.peers)
