"""What anchors meet outside: an S3 store in a process of its own, and an authority that says what time it is."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tls_front import Certificates

# moto's own command cannot tell which port it was given.
_MOTO = """
import contextlib, ssl, sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

context = None
if sys.argv[1:]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[1:])
application = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, application, threaded=True, ssl_context=context)
end = server.shutdown_request

def farewell(request):
    # As TLS has it: whoever is not told that this was all takes it for cut off.
    with contextlib.suppress(OSError, AttributeError):
        request.settimeout(1)
        request.unwrap()
    end(request)

server.shutdown_request = farewell
print(server.port, flush=True)
server.serve_forever()
"""


# Nobody's, and no look at those of whoever runs this.
CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def store(tls: Certificates | None = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run an S3 store, with TLS if there are certificates for it; give its address, and its process."""
    secured = [] if tls is None else [str(tls.chain), str(tls.key)]
    process = subprocess.Popen(
        [sys.executable, "-c", _MOTO, *secured], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        assert port, "the store did not start"
        yield f"https://localhost:{port}" if secured else f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def web(answer: Callable[[BaseHTTPRequestHandler, bytes], None]) -> Iterator[str]:
    """Run an http server that lets ``answer`` deal with what is posted; give its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer(self, self.rfile.read(int(self.headers["Content-Length"])))

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/stamp"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send(handler: BaseHTTPRequestHandler, body: bytes, *, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "application/timestamp-reply")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


class Authority:
    """A time-stamping authority: a root, a certificate of it for this alone, and `openssl ts`."""

    def __init__(self, folder: Path, *, digests: str = "sha256, sha384, sha512") -> None:
        self._folder = folder
        root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        self.root = _certificate(f"root of {folder.name}", root_key, root_key, None)
        self.certificate = _certificate("authority", key, root_key, self.root)
        self.root_file = folder / "root.pem"
        self.root_file.write_bytes(self.root.public_bytes(Encoding.PEM))
        (folder / "tsa.pem").write_bytes(self.certificate.public_bytes(Encoding.PEM))
        (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        (folder / "tsa.conf").write_text(_CONFIGURATION.format(folder=folder, digests=digests))

    def reply(self, query: bytes) -> bytes:
        """Answer a query, as the authority that it is."""
        asked, answered = self._folder / "query.tsq", self._folder / "reply.tsr"
        asked.write_bytes(query)
        arguments = ["ts", "-reply", "-queryfile", asked, "-config", self._folder / "tsa.conf", "-out", answered]
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
        return answered.read_bytes()

    def verifies(self, reply: bytes, data: bytes) -> bool:
        """Whether `openssl ts` finds a reply to be this authority's, over this data."""
        given, said = self._folder / "data", self._folder / "given.tsr"
        given.write_bytes(data)
        said.write_bytes(reply)
        arguments = ["ts", "-verify", "-data", given, "-in", said, "-CAfile", self.root_file]
        return subprocess.run(["openssl", *arguments], check=False, capture_output=True).returncode == 0


_CONFIGURATION = """
[tsa]
default_tsa = here
[here]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
signer_key = {folder}/key.pem
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = {digests}
accuracy = secs:1
ess_cert_id_alg = sha256
"""


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if issuer is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True)
    return builder.sign(issuer_key, hashes.SHA256())
