"""A server that others can reach: names, proxies, TLS, limits of rates, security headers."""

import datetime
import ipaddress
import json
from pathlib import Path

import pytest
from asgi_calls import application, call
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from live_server import serving

from streamcl.cli import cli
from streamcl.errors import ConfigError
from streamcl.serving.access.access_control import DEFAULT_RATE, WRONG_TOKENS, AccessOptions
from streamcl.serving.access.access_log import ACCESS_LOG
from streamcl.serving.access.tokens import ROLES, TokenFile, hash_of
from streamcl.serving.client import Client, ServerError
from streamcl.serving.http_server import NetworkOptions, server_config
from streamcl.serving.openapi import openapi_document
from streamcl.serving.server import ServerOptions, effective_access
from streamcl.serving.service import ServedRun


@pytest.fixture
def officer(tmp_path):
    """A file with a token of an officer, and its header."""
    file = TokenFile(tmp_path / "keys" / "tokens.json")
    return file, {"authorization": f"Bearer {file.add('dpo', 'officer')}"}


def sent_from(app, address):
    """The application as it is called from an address."""

    async def called(scope, receive, send):
        await app({**scope, "client": (address, 1234)}, receive, send)

    return called


def logged(folder):
    return [json.loads(each) for each in (folder / ACCESS_LOG).read_text().splitlines()]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_addresses_are_refused_where_there_is_no_token(host, tmp_path):
    (tmp_path / "s.yaml").write_text("source: demo_digits\n")
    command = ["serve", str(tmp_path / "s.yaml"), "--host", host, "--tokens", str(tmp_path / "none.json")]
    result = CliRunner().invoke(cli, command)
    assert "there is no token to tell them apart by" in str(result.exception)
    assert result.exception.exit_code == 2


def test_where_others_can_reach_it_everybody_needs_a_token(tmp_path, officer, caplog):
    file, _ = officer
    run, access = ServedRun(tmp_path, "run"), AccessOptions(tokens=file.path)
    there = NetworkOptions(proxies=("127.0.0.1",))
    none = AccessOptions(tokens=tmp_path / "none.json")

    local = effective_access(run, ServerOptions(access=access))
    assert (local.required, local.rate, local.log) == (False, None, tmp_path / ACCESS_LOG)
    for options in (
        ServerOptions(access=access, host="0.0.0.0"),
        ServerOptions(access=access, host="example.org"),
        ServerOptions(access=access, network=there),
    ):
        found = effective_access(run, options)
        assert (found.required, found.rate) == (True, DEFAULT_RATE)
    assert caplog.text.count("unencrypted") == 2
    for options in (
        ServerOptions(access=none, network=there),
        ServerOptions(access=AccessOptions(tokens=none.tokens, required=True)),
    ):
        with pytest.raises(ConfigError, match="everybody needs a token"):
            effective_access(run, options)


def test_a_server_is_reached_by_its_names_and_addresses_only(tmp_path, officer):
    file, header = officer
    names = ("vision.example.org",)
    app = application(tmp_path, access=AccessOptions(tokens=file.path, required=True, public_names=names))

    def status(host, **headers):
        return call(app, "GET /v1/status", headers={**header, "host": host, **headers})[0]

    for known in ("localhost", "Vision.Example.ORG.:443", "192.0.2.1:8000", "[2001:db8::1]", "127.0.0.1"):
        assert status(known) == 200
    for unknown in ("evil.example", "vision.example.org.evil.example", "192.0.2.1.evil.example", ""):
        assert status(unknown) == 403
    assert status("vision.example.org", origin="http://vision.example.org") == 200
    assert status("vision.example.org", origin="https://vision.example.org") == 403
    assert status("vision.example.org", origin="http://evil.example") == 403
    local = application(tmp_path, access=AccessOptions(tokens=file.path))
    assert call(local, "GET /v1/status", headers={"host": "192.0.2.1"})[0] == 403


def test_the_headers_of_named_proxies_are_believed_and_those_of_others_are_not(tmp_path, officer):
    file, header = officer
    access = AccessOptions(tokens=file.path, required=True, log=tmp_path / ACCESS_LOG)
    plain = application(tmp_path, access=access)
    config = server_config(plain, NetworkOptions(proxies=("10.0.0.0/8", "127.0.0.1")), grace=1)
    config.load()
    app = config.loaded_app
    forwarded = {
        **header,
        "x-forwarded-for": "203.0.113.9, 198.51.100.7, 10.0.0.5",
        "x-forwarded-proto": "https",
        "origin": "https://localhost",
    }
    assert call(sent_from(app, "10.1.2.3"), "GET /v1/status", headers=forwarded)[0] == 200
    assert call(sent_from(app, "203.0.113.50"), "GET /v1/status", headers=forwarded)[0] == 403  # http origin
    del forwarded["origin"]
    assert call(sent_from(app, "203.0.113.50"), "GET /v1/status", headers=forwarded)[0] == 200
    without = server_config(plain, NetworkOptions(), grace=1)
    without.load()
    assert call(sent_from(without.loaded_app, "127.0.0.1"), "GET /v1/status", headers=forwarded)[0] == 200
    assert [each["address"] for each in logged(tmp_path)] == ["198.51.100.7", "203.0.113.50", "127.0.0.1"]


def test_a_token_has_a_rate_and_so_has_an_address(tmp_path, officer):
    file, header = officer
    other = {"authorization": f"Bearer {file.add('second', 'reader')}"}
    app = application(tmp_path, access=AccessOptions(tokens=file.path, required=True, rate=0.001))
    near, far = sent_from(app, "192.0.2.1"), sent_from(app, "192.0.2.2")
    assert call(near, "GET /v1/status", headers=header)[0] == 200
    code, headers, _ = call(far, "GET /v1/status", headers=header)
    assert code == 429
    assert 990 <= int(headers["retry-after"]) <= 1000
    assert call(near, "GET /v1/status", headers=other)[0] == 200
    assert [call(near, "GET /health/live")[0] for _ in range(2)] == [200, 429]
    assert call(far, "GET /health/live")[0] == 200


def test_wrong_tokens_are_slowed_and_right_ones_pass(tmp_path, officer):
    file, header = officer
    app = application(tmp_path, access=AccessOptions(tokens=file.path, required=True))
    near, far = sent_from(app, "2001:db8::1"), sent_from(app, "2001:db8:0:1::1")
    wrong = {"authorization": "Bearer streamcl_wrong"}
    codes = [call(near, "GET /v1/status", headers=wrong)[0] for _ in range(WRONG_TOKENS + 1)]
    assert codes == [401] * WRONG_TOKENS + [429]
    assert call(sent_from(app, "2001:db8::ffff"), "GET /v1/status", headers=wrong)[0] == 429
    assert call(far, "GET /v1/status", headers=wrong)[0] == 401
    assert call(near, "GET /v1/status", headers=header)[0] == 200


def test_every_answer_has_security_headers_and_none_lets_other_origins_read_it(tmp_path, officer):
    file, header = officer
    app = application(tmp_path, access=AccessOptions(tokens=file.path, required=True))
    answers = [
        call(app, "GET /v1/status", headers=header),
        call(app, "GET /v1/status"),
        call(app, "GET /nothing", headers=header),
        call(app, "GET /v1/status", headers={"host": "evil.example"}),
        call(app, "OPTIONS /v1/predict", headers={**header, "origin": "http://localhost"}),
        call(app, "POST /v1/predict", headers={**header, "content-length": "999999999999"}),
    ]
    assert [code for code, *_ in answers] == [200, 401, 404, 403, 405, 413]
    for _, headers, _ in answers:
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert not [name for name in headers if name.startswith("access-control-")]
        assert "strict-transport-security" not in headers


class Faulty:
    def __bool__(self):
        raise RuntimeError("a fault")


def test_a_fault_has_them_too(tmp_path):
    app = application(tmp_path, alive=Faulty())
    sent = []

    async def send(message):
        sent.append(message)

    with pytest.raises(RuntimeError, match="a fault"):  # the server logs it
        call(_with_send(app, send), "GET /v1/status")
    assert sent[0]["status"] == 500
    assert dict(sent[0]["headers"])[b"x-content-type-options"] == b"nosniff"


def _with_send(app, send):
    async def called(scope, receive, _):
        await app(scope, receive, send)

    return called


def test_certificates_and_proxies_are_checked_before_anything_starts(tmp_path):
    key, certificate = certificate_files(tmp_path)
    NetworkOptions(tls_cert=certificate, tls_key=key, proxies=("::1", "10.0.0.0/8")).check()
    (tmp_path / "none.pem").write_text("")
    for options, message in (
        (NetworkOptions(tls_cert=certificate), "given together"),
        (NetworkOptions(tls_cert=tmp_path / "none.pem", tls_key=key), "cannot be used"),
        (NetworkOptions(tls_cert=tmp_path / "missing.pem", tls_key=key), "cannot be used: No such file"),
        (NetworkOptions(proxies=("proxy.example",)), "--proxy proxy.example"),
    ):
        with pytest.raises(ConfigError, match=message):
            options.check()


def certificate_files(folder: Path):
    """A key, and a certificate for 127.0.0.1 that it signs itself, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (folder / "chain.pem").write_bytes(certificate.public_bytes(pem))
    return folder / "key.pem", folder / "chain.pem"


@pytest.mark.long
def test_a_server_on_all_addresses_with_tls(tmp_path, monkeypatch):
    """Over sockets: the client's errors, a revocation while connected, and no secret in what is written."""
    file = TokenFile(tmp_path / "keys" / "tokens.json")
    secrets = {role: file.add(f"a-{role}", role) for role in ROLES}
    key, certificate = certificate_files(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    folder = tmp_path / "served"
    folder.mkdir()
    options = ("--host", "0.0.0.0", "--tokens", file.path, "--tls-cert", certificate, "--tls-key", key)
    with serving(folder, *map(str, options), token=secrets["officer"]) as server:
        assert server.url.startswith("https://")
        reader = Client(server.url, token=secrets["reader"])
        assert reader.status().ready
        with pytest.raises(ServerError, match="send a token") as refused:
            Client(server.url).status()
        assert refused.value.status == 401
        with pytest.raises(ServerError, match="to those with a token"):
            Client(server.url).readiness()
        for client in (reader, Client(server.url, token=secrets["teacher"])):
            with pytest.raises(ServerError, match="needed is officer") as refused:
                client.forget(label="4")
            assert refused.value.status == 403
        requested = server.client.forget(label="4").id
        assert server.client.wait_for_request(requested).status == "done"
        file.revoke("a-reader")
        with pytest.raises(ServerError, match="the token is not valid"):
            reader.status()
        shown = [server.client.status().model_dump_json(), json.dumps(openapi_document())]
        with pytest.raises(ServerError, match="does not answer"):
            Client(server.url.replace("https", "http")).status()
        server.stop()
    entries = logged(server.run)
    (forgotten,) = [each for each in entries if "request" in each]
    assert (forgotten["token"], forgotten["route"], forgotten["request"]) == (
        "a-officer",
        "POST /v1/forget",
        requested,
    )
    assert {(each["role"], each["status"]) for each in entries if each["route"] == "POST /v1/forget"} == {
        *(("officer", 202), ("reader", 403), ("teacher", 403))
    }
    written = [path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()]
    for secret in secrets.values():
        assert not [text for text in written + shown if secret in text or hash_of(secret) in text]
