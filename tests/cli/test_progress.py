"""The line on a terminal that shows how far a run has come, and the help's sentences."""

import time

import click
import pytest
from click.testing import CliRunner
from live_readers import Clock

from streamcl.cli import cli
from streamcl.cli.progress import LiveState


def test_a_live_stream_says_what_it_has_learned_and_since_when_it_waits():
    clock = Clock()
    clock.now = 14 * 3600.0
    state = LiveState(clock, time.gmtime)
    assert state.text("") == "0 learned"
    clock.now += 5
    assert state.text("") == "waiting for the first record"
    clock.now += 115
    state.note(1234)
    assert state.text("12 images/s") == "1,234 learned  12 images/s"
    clock.now += 3600
    assert state.text("12 images/s") == "waiting, 1,234 learned, last at 14:02"
    state.note(1235)
    assert state.text("") == "1,235 learned"


def groups(group, path=()):
    yield path, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from groups(command, (*path, name))


GROUPS = dict(groups(cli))


@pytest.mark.parametrize("path", GROUPS, ids="-".join)
def test_the_help_of_no_command_is_cut_off(path):
    shown = CliRunner().invoke(cli, [*path, "--help"]).output
    listed = " ".join(shown.partition("Commands:")[2].split())
    assert "..." not in listed
    for command in GROUPS[path].commands.values():
        assert " ".join(command.help.split("\n\n")[0].split()).split(". ")[0].rstrip(".") in listed
