"""A process that has torch and streamcl loaded and forks the real command line on request, in milliseconds.

Requests and answers are JSON lines on stdin and stdout:
{"start": [arguments], "cwd", "out", "err", "env", "hooks": [["module:function", {arguments}]]} -> {"pid"};
{"wait": pid, "seconds": s} -> {"code": exit code, minus a signal's number, or null when the time is over}.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

IMPORTED_LATE = ("torch._dynamo", "matplotlib.backends.backend_svg", "matplotlib.figure")
"""What a run imports at an optimizer's first step and for its report."""


def warm() -> None:
    """Load what a run loads, and build a tiny ViT once; no child collects or copies any of it."""
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    from fault_runs import TINY

    import streamcl.report
    import streamcl.runs.open
    from streamcl.cli import main
    from streamcl.nn.build import build_backbone

    assert main
    assert streamcl.report
    assert streamcl.runs.open
    build_backbone(TINY["name"], weights="none", image_size=32, args=TINY["args"])
    gc.collect()
    gc.freeze()


def start(request: dict[str, Any]) -> int:
    # Opened before the fork: a child killed before its first step leaves files that are empty.
    streams = [
        os.open(request[kind], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) for kind in ("out", "err")
    ]
    child = os.fork()
    if child == 0:
        try:
            _run(request, streams)
        finally:
            os._exit(99)  # main leaves by SystemExit, which _run turns into an exit
    for stream in streams:
        os.close(stream)
    return child


def _run(request: dict[str, Any], streams: list[int]) -> None:
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    for name in [name for name, value in request["env"].items() if value is None]:
        os.environ.pop(name)
    for number, stream in zip((1, 2), streams, strict=True):
        os.dup2(stream, number)
        os.close(stream)
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
