"""The command line: streamcl run, serve, watch, advise, validate, schema, fetch, list, source, status,
report, predict, export, doctor, forget, retry, verify, key, token, timestamp, audit, bench."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from streamcl import __version__
from streamcl.cli.advise import advise
from streamcl.cli.audit import audit
from streamcl.cli.bench import bench
from streamcl.cli.forget import forget, retry_request, verify
from streamcl.cli.help import FullHelpGroup
from streamcl.cli.inspect_commands import doctor, list_names, report, schema, status, validate
from streamcl.cli.key import key, timestamp
from streamcl.cli.messages import DEBUG, print_error, report_error, silence_messages
from streamcl.cli.model_commands import export, fetch
from streamcl.cli.monitor import monitor
from streamcl.cli.predict import predict
from streamcl.cli.run import run
from streamcl.cli.serve import serve
from streamcl.cli.source import source
from streamcl.cli.terminal import use_any_encoding
from streamcl.cli.token import token
from streamcl.errors import EXIT_STOPPED, SourceError


@click.group(cls=FullHelpGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="streamcl")
@click.option(DEBUG, is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:  # noqa: ARG001 - `main` reads it
    """Vision models that keep learning from a changing stream, and forget on request."""
    silence_messages()


COMMANDS = (
    *(run, serve, monitor, advise, validate, schema, fetch, list_names, source, status, report, predict),
    *(export, doctor, forget, retry_request, verify, key, token, timestamp, audit, bench),
)
for command in COMMANDS:
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command line and exit with the code of `streamcl.errors`, or 0."""
    use_any_encoding()
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG]
    try:
        code = cli(arguments, prog_name="streamcl", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        sys.exit(130)
    except Exception as error:
        sys.exit(report_error(error))
    except SystemExit as error:
        if error.code == EXIT_STOPPED:
            raise
        hint = "code that is called by a run must return or raise; --debug shows where it exits"
        print_error(SourceError(f"code of yours called sys.exit({error.code!r})", hint=hint))
        sys.exit(SourceError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
