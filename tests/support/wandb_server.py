"""As much of wandb's server as `wandb sync` talks to: runs that are made, gone on with, and sent rows."""

import gzip
import json
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

HISTORY, EVENTS, OUTPUT = "wandb-history.jsonl", "wandb-events.jsonl", "output.log"


class Run:
    """A run as the server holds it: the lines of its files by their offsets, which a later upload may overwrite."""

    def __init__(self) -> None:
        self.lines: defaultdict[str, dict[int, str]] = defaultdict(dict)
        self.config, self.summary, self.display, self.uploads = "{}", "{}", "", 0

    def rows(self) -> list[dict[str, Any]]:
        """The history, in the order of its lines."""
        lines = self.lines[HISTORY]
        assert sorted(lines) == list(range(len(lines))), "lines are missing"
        return [json.loads(lines[i]) for i in range(len(lines))]

    def bucket(self, name: str) -> dict[str, Any]:
        count = {file: len(self.lines[file]) for file in (HISTORY, EVENTS, OUTPUT)}

        def tail(file: str) -> str:
            last = max(self.lines[file], default=None)
            return json.dumps([] if last is None else [self.lines[file][last]])

        return {
            "id": name,
            "name": name,
            "displayName": self.display,
            "description": "",
            "config": self.config,
            "summaryMetrics": self.summary,
            "historyLineCount": count[HISTORY],
            "eventsLineCount": count[EVENTS],
            "logLineCount": count[OUTPUT],
            "historyTail": tail(HISTORY),
            "eventsTail": tail(EVENTS),
            "tags": [],
            "notes": "",
            "wandbConfig": "{}",
            "sweepName": None,
            "project": {"id": "project", "name": "ldm", "entity": {"id": "entity", "name": "lab"}},
        }


class Handler(BaseHTTPRequestHandler):
    """Answers what is asked; what it does not know gets an empty answer."""

    protocol_version = "HTTP/1.1"
    runs: ClassVar[dict[str, Run]] = {}

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:  # of files beside the history
        self._body()
        self._reply({})

    def do_POST(self) -> None:
        body, answer = self._body(), {}
        if self.path.endswith("/graphql"):
            asked = json.loads(body)
            answer = {"data": self._answer(asked["query"], asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self._write(self.runs[self.path.split("/")[-2]], json.loads(body).get("files") or {})
        self._reply(answer)

    def _write(self, run: Run, files: dict[str, Any]) -> None:
        for name, part in files.items():
            if name == "wandb-summary.json":
                run.summary = part["content"][-1]
                continue
            for i, line in enumerate(part["content"]):
                run.lines[name][part["offset"] + i] = line

    def _answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        name = given.get("name") or given.get("run") or ""
        if "RunResumeStatus" in query:
            held = self.runs.get(name)
            found = None if held is None else held.bucket(name)
            return {"model": {"id": "project", "name": "ldm", "entity": {"id": "e", "name": "lab"}, "bucket": found}}
        if "upsertBucket" in query:
            new = name not in self.runs
            run = self.runs.setdefault(name, Run())
            run.uploads += new
            run.config = given.get("config") or run.config
            run.display = given.get("displayName") or run.display
            return {"upsertBucket": {"bucket": run.bucket(name), "inserted": new}}
        if "createRunFiles" in query:
            address = f"http://{self.headers['Host']}/upload"
            files = [{"name": file, "uploadUrl": f"{address}/{i}"} for i, file in enumerate(given["files"])]
            return {"createRunFiles": {"runID": name, "uploadHeaders": [], "files": files}}
        if "createArtifact" in query:  # it is known here already
            known = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "a"}}}
            return {"createArtifact": {"artifact": known}}
        if "useArtifact" in query:
            return {"useArtifact": {"artifact": {"id": "a"}}}
        viewer = {"id": "v", "entity": "lab", "username": "me", "flags": "{}", "teams": {"edges": []}}
        info: dict[str, Any] = {
            "cliVersionInfo": {"max_cli_version": "99.0.0"},
            "latestLocalVersionInfo": None,
            "features": [],
        }
        return {"viewer": viewer, "serverInfo": info}


class Server(ThreadingHTTPServer):
    """wandb's service hangs up when it ends, which is no error."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            super().handle_error(request, client_address)


@pytest.fixture
def wandb_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Run]]:
    """The runs that a local server was sent, to which wandb here and in processes that it starts speaks."""
    runs: dict[str, Run] = {}
    handler = type("Own", (Handler,), {"runs": runs})
    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    yield runs
    server.shutdown()
    server.server_close()
    thread.join()
