"""Secrets of a configuration: from the environment alone, and in no file and no message of a run."""

from __future__ import annotations

import json

import pytest

from streamcl.config.compatibility import differences, fingerprint
from streamcl.config.load import config_from_dict, dump_config, load_config
from streamcl.errors import ConfigError

YAML = """
source:
  name: redis
  args:
    keys: cam
    url: ${URL:-redis://localhost}
    password: ${PW}
    options: {nested: [{api_key: "${KEY}-x"}], token_size: 3, path: "${HOME_OF}/x"}
"""
VALUES = {"PW": "hunter2", "KEY": "k3y", "URL": "rediss://me:pass%20word@host:1/0", "HOME_OF": "/data"}


def load(tmp_path, text=YAML, overrides=(), **values):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return load_config(path, overrides, environment=VALUES | values)


def test_they_stay_variables_in_what_is_written_and_come_back(tmp_path):
    config = load(tmp_path)
    assert config.source.args["password"] == "hunter2"
    written = dump_config(config)
    for secret in ("hunter2", "k3y", "pass%20word"):
        assert secret not in written
    assert "/data/x" in written
    assert load(tmp_path, written) == config
    assert fingerprint(load(tmp_path, written)) == fingerprint(config)


def test_what_is_written_loads_without_them(tmp_path):
    path = tmp_path / "b.yaml"
    path.write_text(dump_config(load(tmp_path, YAML.replace("${URL:-redis://localhost}", "redis://host"))))
    again = load_config(path, environment={})
    assert again.source.args["password"] is None
    assert fingerprint(again) == fingerprint(
        load(tmp_path, YAML.replace("${URL:-redis://localhost}", "redis://host"))
    )


def test_a_changed_secret_is_no_difference_and_is_not_shown(tmp_path):
    old, new = load(tmp_path), load(tmp_path, PW="other", URL="rediss://me:new@host:1/0")
    assert differences(old, new) == []
    (difference,) = differences(old, load(tmp_path, PW="other", HOME_OF="/else"))
    assert "other" not in str(difference)
    assert "hunter2" not in str(difference)


WRAPPED = """
source:
  name: redis
  args:
    keys: cam
    headers: ["Bearer ${HUB_TOKEN}"]
    query: "?key=${API_KEY}&size=3"
    path: "${HOME_OF}/x"
"""


def test_what_a_variable_with_the_name_of_a_secret_is_part_of_stays_a_variable(tmp_path):
    values = {"HUB_TOKEN": "hub-1", "API_KEY": "api-1"}
    config = load(tmp_path, WRAPPED, **values)
    assert config.source.args["headers"] == ["Bearer hub-1"]
    written = dump_config(config)
    assert "hub-1" not in written
    assert "api-1" not in written
    assert "/data/x" in written
    assert load(tmp_path, written, **values) == config
    assert fingerprint(load(tmp_path, written, **values)) == fingerprint(config)
    other = load(tmp_path, WRAPPED, **values | {"HUB_TOKEN": "hub-2"})
    assert differences(config, other) == []
    assert fingerprint(other) == fingerprint(config)
    elsewhere = load(tmp_path, WRAPPED, **values | {"HOME_OF": "/else"})
    assert [each.path for each in differences(config, elsewhere)] == ["source.args"]
    assert fingerprint(elsewhere) != fingerprint(config)


def test_an_override_may_bring_one(tmp_path):
    config = load(tmp_path, overrides=["source.args.password=${KEY}"])
    assert config.source.args["password"] == "k3y"
    assert "${KEY:-}" in dump_config(config)
    config = load(tmp_path, overrides=["source.args={keys: cam}"])
    assert config.variables == {}


@pytest.mark.parametrize(
    "line",
    [
        "password: hunter2",
        "password: 12345",
        "url: redis://:hunter2@host",
        "options: {client_secret: hunter2}",
    ],
)
def test_one_that_stands_in_the_file_is_refused_without_showing_it(tmp_path, line):
    text = f"source: {{name: redis, args: {{keys: cam, {line}}}}}"
    with pytest.raises(ConfigError, match=r"a\.yaml:1:\d+: source\.args\..* is a secret") as raised:
        load(tmp_path, text)
    assert "hunter2" not in str(raised.value)
    with pytest.raises(ConfigError, match="is a secret"):
        load(tmp_path, "source: demo_digits", [f"source.args.{line.replace(': ', '=', 1)}"])


def test_one_that_python_code_gives_is_withheld():
    config = config_from_dict({"source": {"name": "redis", "args": {"keys": "cam", "password": "hunter2"}}})
    assert config.source.args["password"] == "hunter2"
    assert "hunter2" not in dump_config(config) + json.dumps(
        [str(each) for each in differences(config, config)]
    )
