"""A headless Chromium, driven through a pipe by its DevTools protocol: pages as a reader sees them."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
]
PATIENCE = 120  # seconds that a page may take for anything, on a busy machine


class Browser:
    """One tab, as it has been since a page was opened.

    requests:   the URLs that it has asked for, but for those that hold their data
    errors:     exceptions of its scripts
    complaints: all that its console says
    """

    def __init__(self, to: int, back: int) -> None:
        self.to, self.back, self.rest, self.count = to, back, b"", 0
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session: str | None = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "DOM", "Log"):
            self.call(f"{domain}.enable")

    session: str | None = None

    def call(self, method: str, **params: Any) -> Any:
        """What the browser answers; events that come first are noted."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            more = os.read(self.back, 2**20)
            assert more, "the browser has ended"
            self.rest += more
        one, _, self.rest = self.rest.partition(b"\0")
        return json.loads(one)

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        url = {"Network.requestWillBeSent": params.get("request", params), "Network.webSocketCreated": params}
        if method in url and not url[method]["url"].startswith("data:"):
            self.requests.append(url[method]["url"])
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:500])
        if method in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(params)[:500])

    def open(self, url: str, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Go to a page, in a window of this size, light or dark; it may still be loading when this returns."""
        for noted in (self.requests, self.errors, self.complaints):
            noted.clear()
        self.resize(width, height)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=url)

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise's, once it has one."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression, as soon as it is true; the page looks at it once a frame."""
        waiting = f"""new Promise((done, fail) => {{
            const end = Date.now() + {1000 * PATIENCE};
            const look = () => {{
                let value = null;
                try {{ value = {script}; }} catch (error) {{ }}
                if (value) done(value);
                else if (Date.now() > end) fail(new Error("waited too long"));
                else setTimeout(look, 50);
            }};
            look();
        }})"""
        return self.run(waiting)

    def upload(self, selector: str, file: Path) -> None:
        """Choose a file in an <input type=file>."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self.call("DOM.setFileInputFiles", files=[str(file)], objectId=found["result"]["objectId"])

    def screenshot(self, file: Path) -> None:
        """The whole page, at the window's width."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(data))


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile of its own; skips the test where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH")
    theirs, to = os.pipe()
    back, out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs, out)]  # not 3 or 4 themselves

        def joined() -> None:
            """In the browser's process: it reads from descriptor 3, and writes to 4."""
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(3, 4),
            preexec_fn=joined,
            stderr=subprocess.DEVNULL,
        )
        for end in ends:
            os.close(end)
        os.close(theirs)
        os.close(out)
        try:
            yield Browser(to, back)
        finally:
            process.terminate()
            process.wait()
            os.close(to)
            os.close(back)
