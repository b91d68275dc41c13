"""What a server keeps closed, and how it encrypts: tritonserver's arguments for both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nima_build.server._install import ServerError
from nima_client import TLS

ADMIN_HEADER = "nima-admin"
GRPC_ADMIN_HEADER = f"triton-grpc-protocol-{ADMIN_HEADER}"
"""Triton puts a prefix of its own before the header's name in gRPC; in HTTP it does not."""

# What can change the server, read its memory or write files on it. Inference, health, metadata,
# model-config (the client reads the contract there) and statistics stay open.
RESTRICTED_APIS = ("model-repository", "shared-memory", "trace", "logging")


@dataclass(frozen=True)
class ServerTLS:
    """Encryption of the gRPC endpoint. The HTTP endpoint stays closed with it: Triton's has no TLS.

    Attributes:
        cert_file: PEM certificate chain of the server.
        key_file: PEM private key of the server.
        ca_file: PEM authority that signed it; the server's own probe trusts it, and with ``mutual``
            it is the authority that clients' certificates must come from.
        mutual: ask clients for a certificate. The probe then shows the server's own, which must
            therefore be of the same authority and good for client authentication too.
        server_name: name in the certificate, where it does not name the address listened on.
    """

    cert_file: Path
    key_file: Path
    ca_file: Path
    mutual: bool = False
    server_name: str | None = None

    def __post_init__(self) -> None:
        for path in (self.cert_file, self.key_file, self.ca_file):
            if not path.is_file():
                raise ServerError(f"no PEM file at {path}")

    def of_client(self) -> TLS:
        """What the server's own probe connects with."""
        cert, key = (self.cert_file, self.key_file) if self.mutual else (None, None)
        return TLS(self.ca_file, cert, key, self.server_name)

    def arguments(self) -> list[str]:
        """Arguments for tritonserver."""
        # tritonserver has another current folder.
        return [
            "--grpc-use-ssl=true",
            *(["--grpc-use-ssl-mutual=true"] if self.mutual else []),
            f"--grpc-server-cert={self.cert_file.absolute()}",
            f"--grpc-server-key={self.key_file.absolute()}",
            f"--grpc-root-cert={self.ca_file.absolute()}",
        ]


def restriction_arguments(admin_token: str) -> list[str]:
    """Arguments that close :data:`RESTRICTED_APIS` to whoever does not send the token."""
    apis = ",".join(RESTRICTED_APIS)
    return [
        f"--grpc-restricted-protocol={apis}:{ADMIN_HEADER}={admin_token}",
        f"--http-restricted-api={apis}:{ADMIN_HEADER}={admin_token}",
    ]
