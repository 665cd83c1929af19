"""A W&B service on loopback that keeps the history of runs as the real one does: by run, line by line at its offset."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Service(ThreadingHTTPServer):
    """history: the lines of every run, by its id. requests: how many there were."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.requests = 0

    @property
    def environment(self) -> dict[str, str]:
        """What points wandb to this service."""
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}", "WANDB_API_KEY": "0" * 40}

    def stream(self, run: str, files: dict[str, dict[str, Any]]) -> dict[str, Any]:
        if lines := files.get("wandb-history.jsonl"):
            kept = self.history.setdefault(run, [])
            kept[lines["offset"] : lines["offset"] + len(lines["content"])] = map(json.loads, lines["content"])
        return {"exitcode": None, "limits": {}}

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            name = variables["name"]
            project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "me"}}
            bucket = {"id": name, "name": name, "displayName": name, "config": "{}", "project": project}
            bucket |= {"historyLineCount": len(self.history.get(name, []))}
            return {"upsertBucket": {"bucket": bucket, "inserted": name not in self.history}}
        if "createRunFiles" in query:
            base = f"{self.environment['WANDB_BASE_URL']}/upload"
            files = [{"name": name, "uploadUrl": f"{base}/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        if "serverInfo" in query:
            return {"serverInfo": {"features": []}}
        return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}


class _Handler(BaseHTTPRequestHandler):
    server: Service  # type: ignore[assignment]

    def do_POST(self) -> None:
        self.server.requests += 1
        sent = self._read()
        if self.path == "/graphql":
            self._answer({"data": self.server.graphql(sent["query"], sent.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            self._answer(self.server.stream(self.path.split("/")[-2], sent.get("files") or {}))
        else:
            self._answer({})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer({})

    def do_GET(self) -> None:
        self._answer({})

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def _read(self) -> dict[str, Any]:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            raw = gzip.decompress(raw)
        return json.loads(raw) if raw.startswith(b"{") else {}

    def _answer(self, data: dict[str, Any]) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Service]:
    with Service() as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield service
        service.shutdown()
