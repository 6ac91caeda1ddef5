"""Requests made from our own OpenAPI document, valid ones and others: each is answered as it says there."""

from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from live_server import serving

from streamcl.serving.openapi import openapi_document
from streamcl.serving.route_table import EVENTS, ROUTES

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed"),
]

RULES = [rule for rule in ROUTES if rule.path != EVENTS]  # its answer never ends


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that takes records and labels."""
    config = {
        "source": {"name": "push"},
        "max_samples": None,
        "batch": {"size": 4, "max_wait": "50ms"},
        "labels": {"wait": "1h", "max_waiting": 100},
    }
    with serving(tmp_path_factory.mktemp("fuzzed"), **config) as started:
        yield started
        assert started.process.poll() is None
        assert started.client.status().predictors.restarts == 0
        assert "Traceback" not in (started.folder / "errors.txt").read_text()


@pytest.fixture(scope="module")
def operations():
    import schemathesis

    found = schemathesis.openapi.from_dict(openapi_document()).get_all_operations()
    return {(each.ok().method.upper(), each.ok().path): each.ok() for each in found}


def send(server, operation, examples):
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    expected = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    cases = st.one_of(
        operation.as_strategy(generation_mode=GenerationMode.POSITIVE),
        operation.as_strategy(generation_mode=GenerationMode.NEGATIVE),
    )

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def answered(case):
        if case.path_parameters and "name" in case.path_parameters:
            case.path_parameters["name"] = "tiny"  # so that what comes after the name is reached
        response = case.call(base_url=server.url, timeout=90)
        case.validate_response(response, checks=expected)

    answered()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_no_request_is_answered_by_a_fault(rule, server, operations):
    send(server, operations[rule.method, rule.path], 4)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_no_request_of_many_is_answered_by_a_fault(rule, server, operations):
    send(server, operations[rule.method, rule.path], 20 if rule.name == "forget" else 150)
