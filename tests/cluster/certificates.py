"""Create certificate authorities for a test, and certificates signed by them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files: the authority's certificate, and one party's certificate and key."""

    ca: Path
    cert: Path
    key: Path

    @property
    def options(self) -> list[str]:
        """Options of ``dask scheduler`` and ``dask worker``."""
        return [
            "--protocol", "tls", "--tls-ca-file", str(self.ca), "--tls-cert", str(self.cert), "--tls-key", str(self.key)
        ]  # fmt: skip

    @property
    def yaml(self) -> str:
        """Lines of a cluster file that name the certificates."""
        return f"security: {{ca: {self.ca}, cert: {self.cert}, key: {self.key}}}\n"


def certificates(folder: Path, name: str) -> Certificates:
    """Create an authority, and a certificate for 127.0.0.1 signed by it."""
    folder.mkdir(exist_ok=True)
    authority_key, party_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _signed(f"{name} authority", authority_key, f"{name} authority", authority_key, ca=True)
    signed = _signed(name, party_key, f"{name} authority", authority_key, ca=False)
    paths = Certificates(*(folder / f"{name}-{part}.pem" for part in ("ca", "cert", "key")))
    paths.ca.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    paths.cert.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths.key.write_bytes(
        party_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


def _signed(
    subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey, ca: bool
) -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(signer, hashes.SHA256())
    )
