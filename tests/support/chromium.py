"""A page in headless Chromium, by the DevTools protocol: what it says, what it asks for, how it looks."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from support.refusals import time_limit

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
SECONDS = 240  # that a browser may be used, on a busy machine


class Page:
    """One tab. events: all that the browser has told of it, as the protocol has them."""

    def __init__(self, commands: IO[bytes], answers: IO[bytes]) -> None:
        self.commands, self.answers = commands, answers
        self.calls, self.events, self.session = 0, list[dict[str, Any]](), dict[str, str]()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and wait for its answer."""
        self.calls += 1
        call = {"id": self.calls, "method": method, "params": parameters, **self.session}
        self.commands.write(json.dumps(call).encode() + b"\0")
        while (message := self.received()).get("id") != self.calls:
            self.events.append(message)
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    def received(self) -> dict[str, Any]:
        """The browser's next message; a zero byte ends each."""
        content = b"".join(iter(lambda: self.answers.read(1), b"\0"))
        message: dict[str, Any] = json.loads(content)
        return message

    def open(self, file: Path, width: int, height: int, scheme: str) -> None:
        """Open a file in a window of this size, in the light or dark scheme, and wait until it is loaded."""
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=file.resolve().as_uri())
        while self.evaluate("document.readyState") != "complete":
            time.sleep(0.05)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def requests(self) -> list[str]:
        """What the page has asked for, but for data: URIs."""
        sent = [event["params"]["request"]["url"] for event in self.of("Network.requestWillBeSent")]
        return [url for url in sent if not url.startswith("data:")]

    def complaints(self) -> list[dict[str, Any]]:
        """Errors and warnings of the console, and exceptions."""
        logged = [event["params"]["entry"] for event in self.of("Log.entryAdded")]
        said = [
            event["params"] for event in (*self.of("Runtime.exceptionThrown"), *self.of("Runtime.consoleAPICalled"))
        ]
        return [entry for entry in logged if entry["level"] in ("error", "warning")] + said

    def of(self, method: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("method") == method]

    def screenshot(self, file: Path) -> None:
        """The whole page, as a PNG."""
        result = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(result["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A browser with one tab; the test is skipped where there is none. profile: an empty folder of its own."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("needs chromium on PATH")
    (its_in, commands), (answers, its_out) = os.pipe(), os.pipe()

    def with_its_ends() -> None:
        """In the browser's process: it reads descriptor 3 and writes 4."""
        high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (its_in, its_out)]
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    with (
        subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}"],
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=with_its_ends,
        ) as browser,
        open(commands, "wb", buffering=0) as writes,
        open(answers, "rb") as reads,
    ):
        os.close(its_in)
        os.close(its_out)
        try:
            with time_limit(SECONDS):
                yield Page(writes, reads)
        finally:
            browser.terminate()
