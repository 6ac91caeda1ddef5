"""streamcl key, and verify with its keys: elsewhere, by someone else, on a machine without torch."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner
from forgetting_fakes import Opened

from streamcl.cli import cli
from streamcl.errors import ConfigError, ForgettingError
from streamcl.events import ForgetRequest
from streamcl.storage.key_folder import KeyFolder
from streamcl.testing import ScriptedSource, record_id

WITHOUT_TORCH = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "timm", "torchvision", "scipy", "river"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
from streamcl.cli import main
main()
"""


def call(keys, *words):
    done = CliRunner().invoke(cli, [*map(str, words)], env={"STREAMCL_KEYS": str(keys)})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


@pytest.fixture(scope="module")
def operator(tmp_path_factory):
    """A folder with the operator's keys, and a run of which one sample was forgotten."""
    folder = tmp_path_factory.mktemp("operator")
    call(folder / "keys", "key", "init", "--name", "ACME")
    keys = KeyFolder(folder / "keys")
    published = keys.public_keys()
    (key_id,) = published
    jwk = {**published[key_id].to_json(), "nbf": 0}  # the clock of the run below is stopped in 1970
    keys.public_path.write_text(json.dumps({"keys": [jwk]}))
    schedule = [ForgetRequest(ids=[record_id(2)], offset=12, id="r1")]
    source = ScriptedSource([4] * 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STREAMCL_KEYS", str(folder / "keys"))
        with Opened(folder / "run", source, schedule=schedule, signing_key=keys.key_in_use) as run:
            run.run()
    return folder


def test_a_key_is_made_shown_and_replaced(tmp_path):
    assert "no key" in CliRunner().invoke(cli, ["key", "show"], env={"STREAMCL_KEYS": str(tmp_path)}).stderr
    first = call(tmp_path, "key", "init", "--name", "ACME").strip()
    with pytest.raises(ConfigError, match="exists"):
        call(tmp_path, "key", "init")
    second = call(tmp_path, "key", "rotate").strip()
    shown = json.loads(call(tmp_path, "key", "show"))["keys"]
    assert {jwk["kid"] for jwk in shown} == {first, second}
    assert {"exp" in jwk for jwk in shown if jwk["kid"] == first} == {True}
    assert {"d" in jwk for jwk in shown} == {False}


def test_a_stranger_verifies_a_receipt_without_the_run_and_without_torch(operator, tmp_path):
    shutil.copy(operator / "run" / "receipts" / "r1.dsse", tmp_path)
    (tmp_path / "acme.json").write_text(call(operator / "keys", "key", "show"))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "verify", "r1.dsse", "--keys", "acme.json"],
        cwd=tmp_path,
        env={**os.environ, "STREAMCL_KEYS": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "whose holder calls itself 'ACME': not a byte has been changed since" in done.stdout
    assert "request 'r1' to forget single samples was carried out" in done.stdout
    assert "cannot prove that no copy exists outside the run directory" in done.stdout


def test_a_stranger_who_has_the_whole_run_verifies_the_signature_and_is_told_what_was_not_checked(
    operator, tmp_path
):
    receipt = operator / "run" / "receipts" / "r1.json"
    (tmp_path / "acme.json").write_text(call(operator / "keys", "key", "show"))
    shown = call(tmp_path / "none", "verify", receipt, "--keys", tmp_path / "acme.json")
    assert "not a byte has been changed since" in shown
    assert "its run was not checked" in shown
    assert "unbroken chain" not in shown
    assert not (tmp_path / "none").exists()


def test_with_no_key_or_another_one_nothing_is_good(operator, tmp_path):
    shutil.copy(operator / "run" / "receipts" / "r1.dsse", tmp_path)
    with pytest.raises(ForgettingError, match="none of the 0 known public keys"):
        call(tmp_path / "none", "verify", tmp_path / "r1.dsse")
    call(tmp_path / "keys", "key", "init")
    with pytest.raises(ForgettingError, match="none of the 1 known public keys"):
        call(tmp_path / "keys", "verify", tmp_path / "r1.dsse")


def test_the_operator_verifies_the_run_with_the_own_keys(operator):
    shown = call(operator / "keys", "verify", "--show", operator / "run" / "receipts" / "r1.json")
    assert "number 1 of an unbroken chain of 1" in shown
    assert '"outcome": "done"' in shown
    found = CliRunner().invoke(
        cli, ["doctor", str(operator / "run")], env={"STREAMCL_KEYS": str(operator / "keys")}
    )
    assert "1 receipts in an unbroken chain, 1 signed" in found.output


def test_the_head_of_the_chain_among_receipts_is_passed_over(operator):
    folder = operator / "run" / "receipts"
    signed = sorted(folder.glob("*.dsse"))
    assert [path.name for path in signed] == ["_head.dsse", "r1.dsse"]
    shown = call(operator / "keys", "verify", *signed)
    assert shown == call(operator / "keys", "verify", folder / "r1.dsse")
    with pytest.raises(ForgettingError, match="no receipt"):
        call(operator / "keys", "verify", folder / "_head.dsse")
