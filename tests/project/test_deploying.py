"""The files to deploy streamcl with: they agree with the product, and pass the linters that can be had."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from streamcl.cli import cli
from streamcl.serving.openapi import openapi_document

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
CONTAINER = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
UNIT = (DEPLOY / "streamcl.service").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
STATEFUL, SERVICE = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
POD = STATEFUL["spec"]["template"]["spec"]
USER = 10001


def options_of(arguments):
    return {each.partition("=")[0] for each in arguments if each.startswith("--")}


@pytest.mark.parametrize(
    "arguments",
    [
        re.findall(r'"([^"]+)"', CONTAINER.rpartition("CMD ")[2]),
        COMPOSE["services"]["streamcl"]["command"],
        POD["containers"][0]["args"],
        re.search(r"^ExecStart=\S+ (.*)$", UNIT, re.MULTILINE)[1].split(),
    ],
    ids=["container", "compose", "kubernetes", "systemd"],
)
def test_the_commands_have_options_that_exist(arguments):
    known = {name for each in cli.commands[arguments[0]].params for name in each.opts}
    assert options_of(arguments) <= known
    assert arguments[1].endswith("stream.yaml")


def test_probes_ask_what_is_answered():
    paths = openapi_document()["paths"].keys()
    container = POD["containers"][0]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {each["path"] for each in probes} == {"/health/ready", "/health/live"} <= paths
    assert re.search(r"127\.0\.0\.1:8000(/health/\w+)", CONTAINER)[1] in paths
    (port,) = container["ports"]
    assert port["name"] == SERVICE["spec"]["ports"][0]["targetPort"] == probes[0]["port"]
    assert port["containerPort"] == 8000
    assert "EXPOSE 8000" in CONTAINER


def test_nobody_is_privileged_and_one_learner_is_given_time_to_commit():
    assert f"useradd --uid {USER}" in CONTAINER
    assert f"USER {USER}" in CONTAINER
    assert (POD["securityContext"]["runAsUser"], POD["securityContext"]["runAsNonRoot"]) == (USER, True)
    for each in (*POD["initContainers"], *POD["containers"]):
        assert each["securityContext"]["readOnlyRootFilesystem"]
        assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    service = COMPOSE["services"]["streamcl"]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert STATEFUL["spec"]["replicas"] == 1
    stops = (POD["terminationGracePeriodSeconds"], int(re.search(r"TimeoutStopSec=(\d+)", UNIT)[1]))
    assert {*stops, int(service["stop_grace_period"].rstrip("s"))} == {40}
    assert "SuccessExitStatus=143" in UNIT


def test_the_folders_that_have_to_stay_are_on_volumes():
    for folder in re.findall(r"STREAMCL_\w+=(\S+)", CONTAINER):
        assert folder.startswith("/data/")
    mounts = {each["name"]: each["mountPath"] for each in POD["containers"][0]["volumeMounts"]}
    assert mounts["data"] == "/data"
    assert STATEFUL["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] == "data"
    assert "streamcl:/data" in COMPOSE["services"]["streamcl"]["volumes"]


def lint(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [
        line for line in (done.stdout + done.stderr).splitlines() if "is not executable" not in line
    ], done


def test_hadolint_finds_nothing():
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("hadolint is not installed")
    said, done = lint(program, str(DEPLOY / "Containerfile"))
    assert (done.returncode, said) == (0, [])


@pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None, reason="kubernetes-validate is not installed"
)
def test_kubernetes_takes_the_manifests():
    import kubernetes_validate

    for each in (STATEFUL, SERVICE):
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit():
    said, _ = lint("systemd-analyze", "verify", "--man=no", str(DEPLOY / "streamcl.service"))
    assert said == []
