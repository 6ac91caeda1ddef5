"""Tokens and roles: each role against each route, revoked and stolen ones, and no secret that is shown."""

import base64
import json
import threading
from pathlib import Path

import anyio
import pytest
from asgi_calls import application, call
from click.testing import CliRunner
from starlette.responses import StreamingResponse

from streamcl.cli import cli
from streamcl.errors import ConfigError
from streamcl.serving.access.access_control import AccessControl, AccessOptions, sent_token
from streamcl.serving.access.tokens import ROLES, LiveTokens, TokenFile, hash_of
from streamcl.serving.openapi import openapi_document
from streamcl.serving.route_table import routes_as_markdown

READER, TEACHER, OFFICER = ({"reader"}, {"teacher"}, {"officer"})
ALL = READER | TEACHER | OFFICER
ANYONE = ALL | {None}
MAY = {
    ("POST", "/v1/predict"): ALL,
    ("GET", "/v1/status"): ALL,
    ("POST", "/v1/records"): TEACHER,
    ("POST", "/v1/labels"): TEACHER,
    ("POST", "/v1/forget"): OFFICER,
    ("GET", "/v1/receipts"): OFFICER,
    ("GET", "/v1/receipts/{request}"): OFFICER,
    ("GET", "/health/live"): ANYONE,
    ("GET", "/health/ready"): ANYONE,
    ("GET", "/v2"): ALL,
    ("GET", "/v2/health/live"): ANYONE,
    ("GET", "/v2/health/ready"): ANYONE,
    ("GET", "/v2/models/{name}"): ALL,
    ("GET", "/v2/models/{name}/ready"): ALL,
    ("POST", "/v2/models/{name}/infer"): ALL,
    ("GET", "/v2/models/{name}/versions/{version}"): ALL,
    ("GET", "/v2/models/{name}/versions/{version}/ready"): ALL,
    ("POST", "/v2/models/{name}/versions/{version}/infer"): ALL,
    ("GET", "/health"): ANYONE,
    ("POST", "/setup"): TEACHER,
    ("POST", "/predict"): TEACHER,
    ("POST", "/webhook"): TEACHER,
    ("GET", "/metrics"): ALL,
    ("GET", "/openapi.json"): ALL,
    ("GET", "/"): ANYONE,
    ("GET", "/page/{name}"): ANYONE,
    ("GET", "/page/charts/{name}.svg"): ALL,
    ("GET", "/page/images/{number}"): TEACHER | OFFICER,
    ("GET", "/v1/events"): ALL,
}
"""Written once more by hand: a route that is missing here, or that the table gives to others, fails."""


@pytest.fixture
def tokens(tmp_path):
    """A file with one token of each role, and their secrets."""
    file = TokenFile(tmp_path / "keys" / "tokens.json")
    return file, {role: file.add(f"a-{role}", role) for role in ROLES}


def closed(tmp_path, file):
    """The application as it is where others can reach it: everybody needs a token."""
    return application(tmp_path, access=AccessOptions(tokens=file.path, required=True))


def bearer(secret):
    return {} if secret is None else {"authorization": f"Bearer {secret}"}


def routes():
    return {
        (method.upper(), path) for path, methods in openapi_document()["paths"].items() for method in methods
    }


def test_each_role_may_use_the_routes_that_are_its_own_and_no_others(tmp_path, tokens):
    file, secrets = tokens
    app = closed(tmp_path, file)
    assert routes() == MAY.keys()
    for (method, path), roles in MAY.items():
        for role in (None, *ROLES):
            line = f"{method} {path.replace('{', '').replace('}', '')}"
            status = call(app, line, headers=bearer(secrets.get(role)), body=[b""])[0]
            expected = "passed" if role in roles else 401 if role is None else 403
            assert ("passed" if status not in {401, 403} else status) == expected, (line, role)


def test_the_document_says_which_roles_may_use_an_operation():
    document = openapi_document()
    for (method, path), roles in MAY.items():
        operation = document["paths"][path][method.lower()]
        assert set(operation["x-roles"]) == roles - {None}
        assert (operation["security"] == []) == (None in roles)
        assert "401" in operation["responses"]


def test_the_page_has_the_table():
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    assert routes_as_markdown() in page, "run `make generated`"


def test_without_a_token_nobody_learns_which_paths_exist(tmp_path, tokens):
    file, secrets = tokens
    app = closed(tmp_path, file)
    for line in ("GET /nothing", "DELETE /v1/status", "GET /v1/predict", "OPTIONS /v1/predict"):
        status, headers, _ = call(app, line)
        assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="streamcl"')
    assert call(app, "GET /nothing", headers=bearer(secrets["reader"]))[0] == 404
    assert call(app, "GET /v1/predict", headers=bearer(secrets["reader"]))[0] == 405
    assert call(app, "HEAD /v1/receipts", headers=bearer(secrets["reader"]))[0] == 403


def test_on_this_machine_alone_nobody_needs_a_token_but_one_that_is_sent_counts(tmp_path, tokens):
    file, secrets = tokens
    app = application(tmp_path, access=AccessOptions(tokens=file.path))
    assert call(app, "GET /v1/receipts")[0] == 200
    assert call(app, "GET /v1/receipts", headers=bearer(secrets["officer"]))[0] == 200
    assert call(app, "GET /v1/receipts", headers=bearer(secrets["reader"]))[0] == 403
    assert call(app, "GET /v1/receipts", headers=bearer("streamcl_none"))[0] == 401


def test_details_of_the_health_are_for_those_with_a_token(tmp_path, tokens):
    file, secrets = tokens
    app = closed(tmp_path, file)
    assert json.loads(call(app, "GET /health/ready")[2]) == {"ready": False}
    assert json.loads(call(app, "GET /health/ready", headers=bearer(secrets["reader"]))[2])["learning"]


def test_a_stolen_hash_is_no_token(tmp_path, tokens):
    file, secrets = tokens
    app = closed(tmp_path, file)
    (stored, *_) = json.loads(file.path.read_text())["tokens"]
    assert stored["sha256"] == hash_of(secrets["reader"])
    for stolen in (stored["sha256"], f"streamcl_{stored['sha256']}", stored["name"], ""):
        assert call(app, "GET /v1/status", headers=bearer(stolen))[0] == 401


def test_a_token_is_read_as_bearer_or_as_the_password_of_basic():
    def sent(value):
        return sent_token([(b"host", b"localhost"), (b"authorization", value)])

    assert sent_token([(b"host", b"localhost")]) is None
    assert sent(b"Bearer abc") == sent(b"bearer  abc ") == "abc"
    assert sent(b"Basic " + base64.b64encode(b"label-studio:abc")) == "abc"
    for wrong in (b"Basic", b"Basic !!", b"Digest abc", b"abc", b"", b"Basic \xff"):
        assert sent(wrong) == ""


def test_a_token_that_is_revoked_counts_no_more(tmp_path, tokens):
    file, secrets = tokens
    app = closed(tmp_path, file)
    assert call(app, "GET /v1/status", headers=bearer(secrets["reader"]))[0] == 200
    file.revoke("a-reader")
    assert call(app, "GET /v1/status", headers=bearer(secrets["reader"]))[0] == 401
    assert call(app, "GET /v1/status", headers=bearer(secrets["teacher"]))[0] == 200
    added = file.add("a-reader", "reader")
    assert call(app, "GET /v1/status", headers=bearer(added))[0] == 200
    assert call(app, "GET /v1/status", headers=bearer(secrets["reader"]))[0] == 401
    file.path.unlink()
    assert call(app, "GET /v1/status", headers=bearer(added))[0] == 401


@pytest.mark.parametrize("damage", ["{", '{"version": 2}', '{"tokens": [{"name": "a"}]}', ""])
def test_a_damaged_file_makes_every_token_void(tmp_path, tokens, damage, caplog):
    file, secrets = tokens
    app = closed(tmp_path, file)
    file.path.write_text(damage)
    assert call(app, "GET /v1/status", headers=bearer(secrets["officer"]))[0] == 401
    assert "no token is valid" in caplog.text
    with pytest.raises(ConfigError, match="no file of tokens"):
        file.tokens()


def test_an_answer_that_streams_ends_where_its_token_is_revoked(tokens):
    file, secrets = tokens
    sent = []

    async def endless(scope, receive, send):
        async def parts():
            while True:
                yield b"x"
                await anyio.sleep(0.001)

        await StreamingResponse(parts())(scope, receive, send)

    async def exchange():
        finished = anyio.Event()

        async def receive():
            await finished.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            if len(sent) == 5:
                file.revoke("a-reader")
            if message["type"] == "http.response.body" and not message["more_body"]:
                finished.set()

        headers = [(b"authorization", f"Bearer {secrets['reader']}".encode())]
        scope = {"type": "http", "method": "GET", "path": "/v1/status", "root_path": "", "headers": headers}
        app = AccessControl(endless, options=AccessOptions(tokens=file.path, required=True))
        with anyio.fail_after(60):
            await app(scope, receive, send)

    anyio.run(exchange)
    assert [each["body"] for each in sent[1:]] == [b"x", b"x", b"x", b"x", b""]


def test_the_file_is_for_its_owner_alone(tokens):
    file, _ = tokens
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.path.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in file.path.parent.iterdir()] == ["tokens.json"]
    file.path.chmod(0o640)
    with pytest.raises(ConfigError, match="read or changed by others"):
        file.tokens()
    file.path.chmod(0o600)
    file.path.parent.chmod(0o770)
    with pytest.raises(ConfigError, match="read or changed by others"):
        file.add("b", "reader")


def test_an_existing_folder_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o755)
    TokenFile(tmp_path / "tokens.json").add("a", "reader")
    assert tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["", "a b", "-a", "a" * 65, "a\n", "ä", "a/b"])
def test_a_name_of_a_token_fits_on_one_line(tmp_path, name):
    with pytest.raises(ConfigError, match="no name of a token"):
        TokenFile(tmp_path / "tokens.json").add(name, "reader")


def test_a_name_is_used_once(tokens):
    file, _ = tokens
    with pytest.raises(ConfigError, match="there is a token 'a-reader'"):
        file.add("a-reader", "officer")
    with pytest.raises(ConfigError, match="there is no token 'nobody'"):
        file.revoke("nobody")


def test_tokens_that_are_added_at_the_same_time_are_all_there(tmp_path):
    path = tmp_path / "keys" / "tokens.json"
    path.parent.mkdir(mode=0o700)
    threads = [
        threading.Thread(target=TokenFile(path).add, args=(f"t{each}", "reader")) for each in range(20)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(TokenFile(path).tokens()) == 20
    assert len({each.sha256 for each in LiveTokens(TokenFile(path)).current()}) == 20


def test_the_commands_print_a_secret_once_and_nowhere_else(tmp_path):
    path = tmp_path / "t.json"

    def run(*arguments):
        result = CliRunner().invoke(cli, ["token", *arguments, "--tokens", str(path)], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    secret = run("add", "camera-7", "--role", "teacher").strip()
    assert secret.startswith("streamcl_")
    assert len(base64.urlsafe_b64decode(secret.removeprefix("streamcl_") + "=")) == 32
    listed = run("list")
    assert listed.split()[:2] == ["camera-7", "teacher"]
    assert secret not in listed + path.read_text()
    assert hash_of(secret) not in listed
    run("revoke", "camera-7")
    assert run("list") == ""
