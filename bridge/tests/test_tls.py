"""TLS on the way to an engine: why it failed is told, with what to set; SSL_CERT_FILE makes an authority known."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.services import MODEL, FakeEngine, Listener, answer, events, piece, piped, serving
from tests.test_cli import doctor
from tests.test_proxy import proxy
from tests.test_stdio import call

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)
OK = events(piece("over TLS", "stop"))


class Authority:
    """Signs certificates of servers.

    Args:
        folder: for its files.
        name: its own.
    """

    def __init__(self, folder: Path, name: str = "An authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self._certificate = self._signed(self._name, self._key, None)
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(_pem(self._certificate))

    def context(
        self, *hosts: str, begins: dt.datetime = NOW - DAY, ends: dt.datetime = NOW + DAY, with_chain: bool = False
    ) -> ssl.SSLContext:
        """Return the TLS of a server with a certificate for hosts; without any, it has that of the authority itself."""
        key, certificate = self._key, self._certificate
        if hosts:
            key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "A server")])
            certificate = self._signed(name, key, _names(hosts), begins, ends)
        file = self._folder / "server.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + _pem(certificate)
            + (_pem(self._certificate) if with_chain else b"")
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _signed(
        self,
        name: x509.Name,
        key: EllipticCurvePrivateKey,
        names: x509.SubjectAlternativeName | None,
        begins: dt.datetime = NOW - DAY,
        ends: dt.datetime = NOW + DAY,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _names(hosts: tuple[str, ...]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(
        [x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host) for host in hosts]
    )


class TlsEngine(FakeEngine):
    """Answers over TLS.

    Args:
        context: its side of TLS.
        reply: to every request.
    """

    def __init__(self, context: ssl.SSLContext, reply: bytes = OK) -> None:
        super().__init__(reply)
        self._context = context

    def _handle(self, connection: socket.socket) -> None:
        with self._context.wrap_socket(connection, server_side=True) as wrapped:
            super()._handle(wrapped)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def asked(url: str, host: str = "127.0.0.1", scheme: str = "https", **environment: str) -> str:
    """Ask an engine once; gives the text of the result."""
    url = url.replace("http", scheme).replace("127.0.0.1", host)
    settings = {"LOCAL_API_URL": url, "MODEL_NAME": MODEL, "OPENAI_MAX_RETRIES": "0", **environment}
    (reply,), _ = piped(call(1, "hi"), **settings)
    result: dict[str, Any] = reply["result"]
    text: str = result["content"][0]["text"]
    assert "Operation not permitted" not in text
    assert "Is it running?" not in text
    return text


def test_ssl_cert_file_makes_an_authority_known(authority: Authority) -> None:
    with TlsEngine(authority.context("127.0.0.1")).running() as url:
        assert asked(url, SSL_CERT_FILE=str(authority.file)) == "over TLS"


def test_a_certificate_of_ones_own_is_its_own_authority(authority: Authority) -> None:
    with TlsEngine(authority.context()).running() as url:
        text = asked(url)
        assert "cannot be reached over TLS: its certificate is self-signed. Set SSL_CERT_FILE to a PEM file" in text


@pytest.mark.parametrize("with_chain", [False, True])
def test_an_authority_that_is_not_known(authority: Authority, *, with_chain: bool) -> None:
    words = "its certificate is signed by an authority that this machine does not know"
    with TlsEngine(authority.context("127.0.0.1", with_chain=with_chain)).running() as url:
        assert f"{words}. Set SSL_CERT_FILE to a PEM file" in asked(url)


@pytest.mark.parametrize("name", ["Another", "An authority"])
def test_a_file_of_authorities_without_the_right_one(authority: Authority, tmp_path: Path, name: str) -> None:
    (other := tmp_path / "other").mkdir()
    file = Authority(other, name).file
    with TlsEngine(authority.context("127.0.0.1")).running() as url:
        text = asked(url, SSL_CERT_FILE=str(file))
    assert f"SSL_CERT_FILE names {file}, which does not hold the authority: add it there" in text


@pytest.mark.parametrize(
    ("variable", "content", "words"),
    [
        ("SSL_CERT_FILE", None, "and there is no such file"),
        ("SSL_CERT_FILE", b"", "which holds no certificate in PEM"),
        ("SSL_CERT_FILE", b"\x30\x82\x01\x0a", "which holds no certificate in PEM"),
        ("SSL_CERT_DIR", None, "and there is no such folder"),
        ("SSL_CERT_DIR", b"", "which is a file"),
    ],
)
def test_a_setting_that_names_no_authorities(
    authority: Authority, tmp_path: Path, variable: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / "named"
    if content is not None:
        path.write_bytes(content)
    with TlsEngine(authority.context("127.0.0.1")).running() as url:
        assert f"{variable} names {path}, {words}" in asked(url, **{variable: str(path)})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (".", "which is a folder"),
        ("server.pem/ca", "which cannot be read (Not a directory)"),
        ("x" * 300, "which cannot be read (File name too long)"),
        ("b\udcff.pem", "and there is no such file"),
    ],
)
def test_a_name_of_no_file(authority: Authority, tmp_path: Path, name: str, words: str) -> None:
    with TlsEngine(authority.context("127.0.0.1")).running() as url:
        text = asked(url, SSL_CERT_FILE=f"{tmp_path}/{name}")
    assert f"{words}: correct it" in text


def test_a_file_that_is_half_broken(authority: Authority) -> None:
    broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    authority.file.write_text(authority.file.read_text() + broken)
    with TlsEngine(authority.context("127.0.0.1")).running() as url:
        text = asked(url, SSL_CERT_FILE=str(authority.file))
    assert "or a broken one" in text


@pytest.mark.parametrize(
    ("begins", "ends", "words"),
    [
        (NOW - 9 * DAY, NOW - DAY, "its certificate has expired. Renew the certificate there."),
        (NOW + DAY, NOW + 9 * DAY, "its certificate is not valid yet. This machine's date is"),
    ],
)
def test_a_certificate_of_another_time(
    authority: Authority, begins: dt.datetime, ends: dt.datetime, words: str
) -> None:
    with TlsEngine(authority.context("127.0.0.1", begins=begins, ends=ends)).running() as url:
        text = asked(url, SSL_CERT_FILE=str(authority.file))
    assert words in text
    assert f"{dt.datetime.now(dt.UTC):%Y-%m}" in text


@pytest.mark.parametrize(("host", "of"), [("127.0.0.1", "engine.example"), ("localhost", "127.0.0.1")])
def test_a_certificate_of_another_name(authority: Authority, host: str, of: str) -> None:
    with TlsEngine(authority.context(of)).running() as url:
        text = asked(url, host, SSL_CERT_FILE=str(authority.file))
    assert f"its certificate is not for {host}. Use the name in its address that its certificate has" in text


def test_plain_http_where_tls_is_expected() -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer("400 Bad Request", "text/plain", "what?"))

    listener = Listener(refuse)
    try:
        text = asked(listener.url)
    finally:
        listener.close()
    assert "it does not speak TLS at this port. Write http:// instead of https://" in text


def test_a_server_that_waits_for_the_end_of_a_line() -> None:
    with FakeEngine(OK).running() as url:
        assert "no answer in time. Is its host up, and does it speak TLS at this port?" in asked(url)


def _hangs_up(connection: socket.socket) -> None:
    connection.recv(65536)


def _alerts(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"\x15\x03\x01\x00\x02\x02\x46")  # protocol version


@pytest.mark.parametrize(
    ("scheme", "handle", "words"),
    [
        ("https", _hangs_up, "Does it speak TLS at this port?"),
        ("https", _alerts, "it and this machine have no version of TLS in common"),
        ("http", _alerts, "answers in TLS at this port. Write https:// instead of http://"),
        ("http", _hangs_up, "If it speaks TLS, write https:// in its address."),
    ],
)
def test_a_server_that_ends_it(scheme: str, handle: Callable[[socket.socket], None], words: str) -> None:
    listener = Listener(handle)
    try:
        assert words in asked(listener.url, scheme=scheme)
    finally:
        listener.close()


@pytest.mark.parametrize(
    "words",
    [
        "<title>400 The plain HTTP request was sent to HTTPS port</title><center>nginx</center>",
        "Client sent an HTTP request to an HTTPS server.",
        "<p>Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />",
    ],
)
def test_a_server_that_says_that_it_speaks_tls(words: str) -> None:
    with FakeEngine(answer("400 Bad Request", "text/html", words)).running() as url:
        assert "). Write https:// instead of http:// in its address." in asked(url, scheme="http")


def test_tls_where_plain_http_is_expected(authority: Authority) -> None:
    with TlsEngine(authority.context("127.0.0.1")).running() as url:
        assert "If it speaks TLS, write https:// in its address." in asked(url, scheme="http")


def test_a_server_that_wants_a_certificate_of_its_clients(authority: Authority) -> None:
    context = authority.context("127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.file)
    with TlsEngine(context).running() as url:
        text = asked(url, SSL_CERT_FILE=str(authority.file))
    # It says so after the handshake: whether that is read before the connection is gone is a matter of chance.
    assert "it wants a TLS certificate from its clients" in text


def test_through_a_tunnel_it_is_the_engines_certificate(authority: Authority) -> None:
    with TlsEngine(authority.context("engine.example")).running() as url:
        port = int(url.partition("127.0.0.1:")[2].partition("/")[0])
        with proxy(b"HTTP/1.1 200 Connection established\r\n\r\n", tunnels_to=port) as (name, _):
            named = {"https_proxy": f"http://{name}", "SSL_CERT_FILE": str(authority.file)}
            assert asked("http://engine.example/v1", **named) == "over TLS"
            text = asked("http://other.example/v1", **named)
    assert text.startswith(
        "The model server at https://other.example/v1 cannot be reached over TLS: its certificate is"
    )


def test_doctor_says_what_to_set(authority: Authority) -> None:
    with TlsEngine(authority.context("127.0.0.1")).running() as url:
        found = doctor(environment={"LOCAL_API_URL": url.replace("http", "https"), "MODEL_NAME": MODEL})
    assert "an authority that this machine does not know. Set SSL_CERT_FILE" in found["engine"]["found"]
    assert "firewall" not in found["engine"]["todo"]


def test_readyz_says_why_too(authority: Authority, tmp_path: Path) -> None:
    engine = TlsEngine(authority.context("127.0.0.1"))
    with engine.running() as url, serving(tmp_path / "bridge", url.replace("http", "https")) as bridge:
        status, text, _ = bridge.http("/readyz")
    assert status == 503
    assert "an authority that this machine does not know. Set SSL_CERT_FILE" in text
