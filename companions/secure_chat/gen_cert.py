"""Issue the certificate of a client or a server, with a new key.

    python -m companions.secure_chat.gen_cert client alice@example.org [--name alice]
    python -m companions.secure_chat.gen_cert server localhost

A client is an e-mail address; a word without an @, like localhost, becomes client@localhost. The
files are client_cert.pem and client_private_key.pem, or named after --name. Nothing is overwritten.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from companions.asymmetric import new_identity
from companions.secure_chat.authority import CERTIFICATE_DAYS, certificate, pem_of
from companions.secure_chat.certs import CERTS, file_name, load_authority, save_new
from companions.secure_chat.pki import BadCertificate, Role, Trust, utc_now
from program import Parser, UserError, positive, reason_of, run_program


def issue(
    certs: Path, role: Role, identity: str, name: str, days: int = CERTIFICATE_DAYS
) -> x509.Certificate:
    """Make NAME_cert.pem and NAME_private_key.pem for an identity. Raises UserError."""
    own = load_authority(certs)
    key = new_identity()
    address = identity if role == "server" or "@" in identity else f"client@{identity}"
    try:
        made = certificate(
            own.key, own.certificate, role, address, key.public_key(), utc_now(), days
        )
        trust = Trust(own.pem.encode("ascii"), bytes)
        trust.identify(pem_of(made).decode("ascii"), role, address, utc_now())  # as peers will
        save_new(certs, file_name(name), key, {f"{name}_cert.pem": pem_of(made)})
    except FileExistsError:
        raise UserError(
            f"{certs} already has files named {name!r}; choose others with --name"
        ) from None
    except (ValueError, OverflowError, BadCertificate) as error:
        raise UserError(f"no certificate for {address!r}: {error}") from None
    except OSError as error:
        raise UserError(f"cannot write the key into {certs}: {reason_of(error)}") from None
    return made


def main() -> int:
    parser = Parser("Issue a certificate.")
    parser.add_argument("role", choices=("client", "server"))
    parser.add_argument("identity", help="e-mail address of a client, host name of a server")
    parser.add_argument("--name", help="first part of the files' names; default: the role")
    parser.add_argument("--certs", type=Path, default=CERTS, help=f"folder; default {CERTS}")
    parser.add_argument("--days", type=positive, default=CERTIFICATE_DAYS)
    options = parser.options()
    name = options.name or options.role
    made = issue(options.certs, options.role, options.identity, name, options.days)
    print(f"made {options.certs / f'{name}_cert.pem'}: serial {made.serial_number:x}")
    return 0


if __name__ == "__main__":
    run_program(main)
