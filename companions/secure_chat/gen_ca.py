"""Make the authority: a key, its own certificate, and an empty revocation list.

    python -m companions.secure_chat.gen_ca [--certs certs]

writes ca_private_key.pem (mode 0600), ca_cert.pem and ca_crl.pem. Nothing is overwritten.
"""

from __future__ import annotations

from pathlib import Path

from companions.asymmetric import new_identity
from companions.secure_chat.authority import authority_certificate, pem_of, revocation_list
from companions.secure_chat.certs import CERTS, save_new
from companions.secure_chat.pki import utc_now
from program import Parser, UserError, reason_of, run_program


def create(certs: Path) -> None:
    """Make the three files in a folder, which is made too. Raises UserError."""
    key = new_identity()
    now = utc_now()
    own = authority_certificate(key, now)
    files = {
        "ca_crl.pem": pem_of(revocation_list(key, own, 1, (), now)),
        "ca_cert.pem": pem_of(own),
    }
    try:
        certs.mkdir(parents=True, exist_ok=True)
        save_new(certs, "ca", key, files)
    except FileExistsError:
        raise UserError(f"{certs} already has an authority") from None
    except OSError as error:
        raise UserError(f"cannot make an authority in {certs}: {reason_of(error)}") from None


def main() -> int:
    parser = Parser("Make the authority that issues certificates.")
    parser.add_argument("--certs", type=Path, default=CERTS, help=f"folder; default {CERTS}")
    certs = parser.options().certs
    create(certs)
    print(f"made {certs / 'ca_cert.pem'}; keep ca_private_key.pem to yourself")
    return 0


if __name__ == "__main__":
    run_program(main)
