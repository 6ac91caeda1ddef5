"""Time stamps of receipts by an authority that openssl plays here, verified without the network."""

import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from click.testing import CliRunner
from signed_runs import KEYS, make_run, receipts, signed_run_fixtures

from streamcl.cli import cli
from streamcl.errors import ConfigError, ForgettingError
from streamcl.forgetting.receipts.archive import no_signing_key
from streamcl.forgetting.receipts.timestamp import request_stamp, stamp_path, verify_stamp
from streamcl.forgetting.receipts.verify import verify_receipt

pytest.importorskip("rfc3161_client")
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

OPENSSL = """
[req]
distinguished_name = name
prompt = no
[name]
CN = A test authority
[root]
basicConstraints = critical, CA:true
[stamper]
extendedKeyUsage = critical, timeStamping
[tsa]
default_tsa = stamps
[stamps]
serial = SERIAL
signer_cert = stamper.pem
signer_key = stamper.key

signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256, sha512
ess_cert_id_alg = sha256
"""


def openssl(folder, *words):
    done = subprocess.run(["openssl", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def make_authority(folder):
    """Make a root certificate, and one for stamps under it."""
    folder.mkdir()
    (folder / "openssl.cnf").write_text(OPENSSL.replace("SERIAL", str(folder / "serial")))
    (folder / "serial").write_text("01\n")
    config = ("-config", "openssl.cnf")
    made = ("-newkey", "rsa:2048", "-nodes", *config)
    openssl(folder, "req", "-x509", *made, "-extensions", "root", "-keyout", "root.key", "-out", "root.pem")
    openssl(folder, "req", *made, "-keyout", "stamper.key", "-out", "stamper.csr")
    signed = ("-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-extfile", "openssl.cnf")
    openssl(
        folder, "x509", "-req", "-in", "stamper.csr", *signed, "-extensions", "stamper", "-out", "stamper.pem"
    )
    return folder


class Authority:
    """Answers each query with openssl; `replay` answers with the answer to the first query instead."""

    def __init__(self, folder, *, replay=False, answer=None):
        first = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                query = self.rfile.read(int(self.headers["Content-Length"]))
                (folder / "query.tsq").write_bytes(query)
                reply = ("-reply", "-config", "openssl.cnf", "-queryfile", "query.tsq", "-out", "answer.tsr")
                openssl(folder, "ts", *reply)
                first.append((folder / "answer.tsr").read_bytes())
                data = answer if answer is not None else first[0 if replay else -1]
                self.send_response(200)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        return self.url

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority") / "trusted")


signed, run = signed_run_fixtures()


def test_a_stamped_receipt_is_verified_with_the_authoritys_root_alone(run, authority, tmp_path):
    path = receipts(run)[0].with_suffix(".dsse")
    with Authority(authority) as url:
        assert request_stamp(path, url) == stamp_path(path)
    assert verify_receipt(receipts(run)[0], KEYS), "the answer beside it is no link of the chain"
    for place in (path, stamp_path(path)):
        shutil.copy(place, tmp_path)
    sentence = verify_stamp(tmp_path / "r1.dsse", authority / "root.pem")
    assert "states that the signed receipt existed at 20" in sentence


def test_a_stamp_of_another_receipt_or_authority_and_a_changed_one_are_refused(run, authority, tmp_path):
    first, second = (path.with_suffix(".dsse") for path in receipts(run)[:2])
    with Authority(authority) as url:
        request_stamp(first, url)
    with pytest.raises(ForgettingError, match="has no time stamp"):
        verify_stamp(second, authority / "root.pem")
    shutil.copy(stamp_path(first), stamp_path(second))
    with pytest.raises(ForgettingError, match="no valid time stamp"):
        verify_stamp(second, authority / "root.pem")
    other = make_authority(tmp_path / "other")
    with pytest.raises(ForgettingError, match="no valid time stamp"):
        verify_stamp(first, other / "root.pem")
    data = stamp_path(first).read_bytes()
    for place in range(60, len(data), 97):
        stamp_path(first).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ForgettingError):
            verify_stamp(first, authority / "root.pem")
    with pytest.raises(ForgettingError, match="holds no certificates"):
        verify_stamp(first, first)


def test_an_answer_to_another_request_and_one_that_is_none_are_refused(run, authority):
    first, second = (path.with_suffix(".dsse") for path in receipts(run)[:2])
    with Authority(authority, replay=True) as url:
        request_stamp(first, url)
        with pytest.raises(ForgettingError, match="answered another request"):
            request_stamp(second, url)
    assert not stamp_path(second).exists()
    for answer in (b"", b"hello", b"0" * 3000):
        with (
            Authority(authority, answer=answer) as url,
            pytest.raises(ForgettingError, match="does not answer like an authority"),
        ):
            request_stamp(second, url)


def test_what_cannot_be_stamped_is_said(run, tmp_path):
    with pytest.raises(ForgettingError, match="cannot be reached"):
        request_stamp(receipts(run)[0], "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="expected http"):
        request_stamp(receipts(run)[0], "file:///etc/passwd")
    unsigned = make_run(tmp_path / "unsigned", no_signing_key)
    with pytest.raises(ForgettingError, match="is not signed"):
        request_stamp(receipts(unsigned)[0], "http://127.0.0.1:9")


def test_the_commands_request_a_stamp_and_verify_it(run, authority, tmp_path):
    path = receipts(run)[0].with_suffix(".dsse")
    (tmp_path / "keys.json").write_bytes(KEYS.to_bytes())
    verify = [
        "verify",
        str(path),
        "--keys",
        str(tmp_path / "keys.json"),
        "--roots",
        str(authority / "root.pem"),
    ]
    with pytest.raises(ForgettingError, match="has no time stamp"):
        CliRunner().invoke(cli, verify, catch_exceptions=False)
    with Authority(authority) as url:
        done = CliRunner().invoke(cli, ["timestamp", str(path), "--authority", url], catch_exceptions=False)
    assert done.output == f"{stamp_path(path)}\n"
    assert "an authority that you trust states" in CliRunner().invoke(cli, verify).output
