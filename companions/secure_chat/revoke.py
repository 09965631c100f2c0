"""Revoke certificates, and renew the list, which is good for seven days.

    python -m companions.secure_chat.revoke certs/bob_cert.pem      or the serial number in hex
    python -m companions.secure_chat.revoke                         renews the list

A running server needs no restart: it reads ca_crl.pem for each certificate that it is shown.
"""

from __future__ import annotations

import re
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from classroom.output import write_whole
from companions.locking import locked
from companions.secure_chat.authority import pem_of, revocation_list, revoked_entry
from companions.secure_chat.certs import CERTS, load_authority, load_trust
from companions.secure_chat.pki import BadCertificate, list_number, parse_pem, utc_now
from program import Parser, UserError, read_whole, reason_of, run_program

MAX_SERIAL_BITS = 159  # 20 bytes, without the sign bit


def renew(certs: Path, serials: list[int]) -> x509.CertificateRevocationList:
    """Replace the list by the next one, with these serials revoked too. Raises UserError."""
    own = load_authority(certs)
    path = certs / "ca_crl.pem"
    now = utc_now()
    with locked(certs / "ca_crl.lock"):
        try:
            before = load_trust(certs).signed_list(read_whole(path))
        except OSError as error:
            raise UserError(f"cannot read the list {path}: {reason_of(error)}") from None
        except BadCertificate as error:
            raise UserError(f"{path} is no list of this authority: {error}") from None
        known = {one.serial_number for one in before}
        new = [one for one in dict.fromkeys(serials) if one not in known]
        entries = [*before, *(revoked_entry(one, now) for one in new)]
        made = revocation_list(own.key, own.certificate, list_number(before) + 1, entries, now)
        write_whole(path, pem_of(made))
        return made


def serial_of(certs: Path, which: str) -> int:
    """Return the serial number of a certificate's file, or the one written in hex. UserError."""
    if re.fullmatch("[0-9a-fA-F]{1,40}", which) and not Path(which).exists():
        serial = int(which, 16)
        if not 1 <= serial.bit_length() <= MAX_SERIAL_BITS:
            raise UserError(f"{which} is no serial number: it has 1 to {MAX_SERIAL_BITS} bits")
        return serial
    try:
        found = parse_pem(read_whole(Path(which)).decode("ascii", "replace"))[0]
        found.verify_directly_issued_by(load_authority(certs).certificate)
    except OSError as error:
        raise UserError(f"cannot read {which}: {reason_of(error)}") from None
    except BadCertificate as error:
        raise UserError(f"{which} is not a certificate: {error}") from None
    except (ValueError, TypeError, InvalidSignature):
        raise UserError(f"{which} was not issued by the authority in {certs}") from None
    return found.serial_number


def main() -> int:
    parser = Parser("Revoke certificates, or renew the revocation list.")
    parser.add_argument("which", nargs="*", metavar="FILE_OR_SERIAL")
    parser.add_argument("--certs", type=Path, default=CERTS, help=f"folder; default {CERTS}")
    options = parser.options()
    serials = [serial_of(options.certs, one) for one in options.which]
    made = renew(options.certs, serials)
    print(
        f"revocation list: number {list_number(made)}, {len(made)} revoked, "
        f"next update {made.next_update_utc:%Y-%m-%d %H:%M} UTC"
    )
    return 0


if __name__ == "__main__":
    run_program(main)
