"""The flags that device and server share."""
from __future__ import annotations

import argparse
import getpass
import logging
import sys
from pathlib import Path

from companions.device_transfer.certificates import Identity, Trust, load_identity, load_trust
from endpoint import HOST, Parser, UserError, port_number, reason_of

PORT = 9998  # the core's server has 9999

class PartyParser(Parser):
    """The flags of somebody who has an identity."""

    def __init__(self, description: str) -> None:
        super().__init__(description, is_endpoint=False)
        self.add_argument("--identity", type=Path, required=True, metavar="FOLDER",
                          help="private key, certificate and authority, as ca.py issues them")
        self.add_argument("--revocations", type=Path, metavar="FILE",
                          help="revocation list; default: revocation_list.json beside the folder")
        self.add_argument("--host", default=HOST, help=f"default {HOST}")
        self.add_argument("--port", type=port_number, default=PORT, help=f"default {PORT}")
        self.add_argument("--log", type=Path, metavar="FILE", help="write the log there, too")

def load_party(options: argparse.Namespace) -> tuple[Identity, Trust]:
    """Return who we are and whom we trust. Raises UserError."""
    return (load_identity(options.identity, getpass.getpass),
            load_trust(options.identity, options.revocations))

def start_log(path: Path | None, level: int = logging.INFO) -> None:
    """Log to stderr, and to a file if there is one; with times, and without keys. UserError."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    try:
        if path:
            handlers.append(logging.FileHandler(path, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot log to {path}: {reason_of(error)}") from None
    logging.basicConfig(level=level, handlers=handlers, format="%(asctime)s %(message)s",
                        datefmt="%Y-%m-%d %H:%M:%S")
