"""What the programs of device and server share: flags, identity, log, progress."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from pathlib import Path

from companions.device_transfer.certificates import (
    Identity,
    RevocationListUnusable,
    Role,
    Trust,
    load_identity,
    load_trust,
)
from companions.terminal import ask_passphrase
from endpoint import HOST
from program import Parser, UserError, port_number
from protocol_fsm import ProtocolError

PORT = 9998  # the core's server has 9999
PACE_S = 2.0  # between two lines of progress

log = logging.getLogger("device_transfer")


class PartyParser(Parser):
    """The flags of a program with an identity."""

    def __init__(self, description: str) -> None:
        super().__init__(description)
        self.add_argument(
            "--identity",
            type=Path,
            required=True,
            metavar="FOLDER",
            help="private key, certificate and authority, as ca.py issues them",
        )
        self.add_argument(
            "--revocations",
            type=Path,
            metavar="FILE",
            help="revocation list; default: revocation_list.json beside the folder",
        )
        self.add_argument("--host", default=HOST, help=f"default {HOST}")
        self.add_argument("--port", type=port_number, default=PORT, help=f"default {PORT}")
        self.add_argument("--log", type=Path, metavar="FILE", help="write the log there too")


# Identity -----------------------------------------------------------------------------------------


def load_party(options: argparse.Namespace, role: Role) -> tuple[Identity, Trust]:
    """Return our identity and what we trust. Raises UserError.

    If our own certificate is not valid, that is only logged: the peer's clock and list decide.
    """
    identity = load_identity(options.identity, ask_passphrase)
    trust = load_trust(options.identity, options.revocations)
    check_role(identity, role)
    try:
        trust.check(identity.certificate.encoded, role)
    except RevocationListUnusable as error:
        log.warning(
            "no valid revocation list, so no device is let in; ca refresh makes one: %s", error
        )
    except ProtocolError as error:
        log.warning("our own certificate is not valid: %s", error)
    return identity, trust


def check_role(identity: Identity, role: Role) -> None:
    """Raise UserError unless the certificate is for this role."""
    certificate = identity.certificate
    if certificate.role is not role:
        raise UserError(
            f"the certificate of {certificate.common_name} is for a "
            f"{certificate.role.value}, and a {role.value} is needed here"
        )


class Pace:
    """Tells `say` every 2 s how much of something is done, if it takes that long."""

    def __init__(
        self,
        what: str,
        size: int,
        say: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._size = size
        self._say = say
        self._clock = clock
        self._done = 0
        self._next = clock() + PACE_S

    def __call__(self, count: int) -> None:
        """Count `count` more bytes."""
        self._done += count
        if self._clock() >= self._next:
            self._next = self._clock() + PACE_S
            self._say(f"{self._what}: {self._done / 1e6:,.0f} of {self._size / 1e6:,.0f} MB")
