"""A process that has torch and streamcl loaded and forks the real command line on request, in milliseconds.

Requests and answers are JSON lines on stdin and stdout:
{"start": [arguments], "cwd", "out", "err", "env", "hooks": [["module:function", {arguments}]]} -> {"pid"};
{"wait": pid, "seconds": s} -> {"code": exit code, minus a signal's number, or null when the time is over}.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def warm() -> None:
    """Load what a run loads, and build a tiny ViT once."""
    from fault_runs import TINY

    import streamcl.report
    import streamcl.runs.open
    from streamcl.cli import main
    from streamcl.nn.build import build_backbone

    assert main
    assert streamcl.report
    assert streamcl.runs.open
    build_backbone(TINY["name"], weights="none", image_size=32, args=TINY["args"])


def start(request: dict[str, Any]) -> int:
    child = os.fork()
    if child == 0:
        try:
            _run(request)
        finally:
            os._exit(99)  # main leaves by SystemExit, which _run turns into an exit
    return child


def _run(request: dict[str, Any]) -> None:
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    for name in [name for name, value in request["env"].items() if value is None]:
        os.environ.pop(name)
    for number, path in ((1, request["out"]), (2, request["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["streamcl", *request["start"]]
    sys.path.insert(0, request["cwd"])
    code = 1
    try:
        for dotted, arguments in request["hooks"]:
            module, _, name = dotted.partition(":")
            getattr(importlib.import_module(module), name)(**arguments)
        from streamcl.cli import main

        main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.002)


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        answer = (
            {"pid": start(request)}
            if "start" in request
            else {"code": wait(request["wait"], request["seconds"])}
        )
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    warm()
    serve()
