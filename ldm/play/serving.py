"""A page's server: on this machine, and without a word to any other."""

import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

FIRST, PORTS = 7860, 100  # gradio's usual port, and how many are tried from there on


@contextmanager
def listening(host: str, port: int | None) -> Iterator[socket.socket]:
    """A socket that listens at a port; None is the first free one from 7860 on.

    Raises:
        ValueError: for a port that is in use, or a host that is no address of this machine.
    """
    tried = range(FIRST, FIRST + PORTS) if port is None else [port]
    for number in tried:
        if (bound := _bound(host, number)) is not None:
            with closing(bound):
                yield bound
            return
    taken = f"port={port} is" if port is not None else f"the ports from {FIRST} to {FIRST + PORTS - 1} are all"
    raise ValueError(f"{taken} in use on {host}: pass another port=, or port=null for the first free one")


def _bound(host: str, port: int) -> socket.socket | None:
    """None if the port is in use."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return None
        if error.errno == errno.EACCES:
            raise ValueError(f"port={port} is for the system's own servers: pass one from 1024 on") from None
        raise ValueError(f"host={host} is no address of this machine: pass host=127.0.0.1, or 0.0.0.0") from None


def address_of(bound: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


def keep_gradio_here(uploads: Path) -> None:
    """Before gradio is imported: uploads lie in that folder, and nobody is told or asked anything."""
    uploads.mkdir(mode=0o700)
    os.environ |= {"GRADIO_TEMP_DIR": str(uploads.absolute()), "GRADIO_ANALYTICS_ENABLED": "False"}


class Ended(threading.Event):
    """Set when the page's server is to end, which what is being drawn would hold up."""

    def check(self, *_: Any) -> None:
        """InterruptedError from then on: to be called in between, as by a network's hook."""
        if self.is_set():
            raise InterruptedError("the playground has ended")


@contextmanager
def exit_at_sigterm() -> Iterator[None]:
    """Within it, SIGTERM is SystemExit, so that whoever made temporary files can remove them."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def serve(app: Any, bound: socket.socket, ended: Ended) -> NoReturn:
    """Answer browsers until Ctrl-C (KeyboardInterrupt) or SIGTERM (see `exit_at_sigterm`).

    app: of ASGI.
    """
    import uvicorn  # comes with gradio

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            ended.set()
            super().handle_exit(sig, frame)

    # a browser holds a stream open for as long as its page is: nobody waits for that
    Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)).run([bound])
    raise KeyboardInterrupt  # where a shell has had Ctrl-C ignored, uvicorn alone has heard of it
