"""A stand-in for the wandb server, since no real one can be had offline: enough of its GraphQL and file stream for wandb-core.

It keeps what it was sent, run by run. History lines lie at the offsets that the client names, as on the real server, so a client
that sends a line twice shows up as a line that stands there twice, or that was overwritten. How the real server answers is taken
from wandb-core's queries and from what it accepts; where the two may differ a test here proves nothing.
"""

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]
KEY = "k" * 40


@dataclass
class Run:
    """What the server holds of one run. `lines_sent` counts every history line that arrived, `states` every change of state."""

    name: str
    history: list[Json] = field(default_factory=list)
    events: list[Json] = field(default_factory=list)
    summary: Json = field(default_factory=dict)
    config: Json = field(default_factory=dict)
    alerts: list[Json] = field(default_factory=list)
    artifacts: list[Json] = field(default_factory=list)
    rewinds: list[int] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    lines_sent: int = 0
    commit: str = ""

    @property
    def steps(self) -> list[int]:
        """The steps of the history, in the order in which they stand there."""
        return [line["_step"] for line in self.history]

    def curve(self, name: str) -> dict[int, Any]:
        """The values of a metric by step."""
        return {line["_step"]: line[name] for line in self.history if name in line}


@dataclass
class WandbServer:
    """What a stand-in was asked and holds. A server that refuses to rewind answers so with an error, as one without the feature."""

    url: str = ""
    runs: dict[str, Run] = field(default_factory=dict)
    operations: list[str] = field(default_factory=list)
    manifests: dict[str, Json] = field(default_factory=dict)
    refuses_rewind: bool = False
    fails_with: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def environment(self) -> dict[str, str]:
        """What sends a program's wandb here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online", "WANDB_SILENT": "true"}


@contextmanager
def wandb_server(**settings: Any) -> Iterator[WandbServer]:
    """A stand-in that listens as long as the context lasts."""
    state = WandbServer(**settings)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{server.server_port}"
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed says nothing about the stand-in."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    state: WandbServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        body = self._body()
        if self.path.startswith("/manifest/"):
            self.state.manifests[self.path.removeprefix("/manifest/")] = json.loads(body)
        self._answer({})

    def do_POST(self) -> None:
        content = self._body()
        if self.path.startswith("/sdk/otel/"):  # telemetry about wandb itself
            self._answer({})
            return
        body = json.loads(content or b"{}")
        if self.state.fails_with:
            self._answer({"error": "out of order"}, code=self.state.fails_with)
            return
        with self.state.lock:
            if match := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                self._answer(_stream(self.state.runs[match[1]], body))
            else:
                self._answer(_graphql(self.state, body["query"], body.get("variables") or {}))

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, content: Json, code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _stream(run: Run, body: Json) -> Json:
    for name, lines in (("wandb-history.jsonl", run.history), ("wandb-events.jsonl", run.events)):
        if chunk := body.get("files", {}).get(name):
            lines[chunk["offset"] : chunk["offset"] + len(chunk["content"])] = [json.loads(line) for line in chunk["content"]]
            run.lines_sent += len(chunk["content"]) if lines is run.history else 0
    if chunk := body.get("files", {}).get("wandb-summary.json"):
        run.summary = json.loads(chunk["content"][-1])
    if body.get("complete"):
        run.exits.append(body["exitcode"])
    return {}


def _graphql(state: WandbServer, query: str, variables: Json) -> Json:
    match = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
    operation = match[1] if match else ""
    state.operations.append(operation)
    answer = _ANSWERS.get(operation)
    return answer(state, variables) if answer else {"errors": [{"message": f"the stand-in does not know {operation}"}]}


def _viewer(state: WandbServer, variables: Json) -> Json:
    viewer = {"id": "u", "entity": "team", "username": "user", "email": "", "flags": "{}", "teams": {"edges": []}}
    return {"data": {"viewer": viewer}}


def _bucket(run: Run) -> Json:
    project = {"id": "p", "name": "poro", "entity": {"id": "e", "name": "team"}}
    return {
        "id": f"id-{run.name}",
        "name": run.name,
        "displayName": run.name,
        "description": "",
        "config": json.dumps(run.config),
        "sweepName": None,
        "project": project,
        "historyLineCount": len(run.history),
    }


def _upsert(state: WandbServer, variables: Json) -> Json:
    name = variables.get("name") or str(variables.get("id")).removeprefix("id-")
    inserted = name not in state.runs
    run = state.runs.setdefault(name, Run(name))
    if variables.get("config"):
        run.config = json.loads(variables["config"])
    run.commit = variables.get("commit") or run.commit
    return {"data": {"upsertBucket": {"bucket": _bucket(run), "inserted": inserted}}}


def _resume_status(state: WandbServer, variables: Json) -> Json:
    run = state.runs.get(variables["name"])
    bucket = run and {
        **_bucket(run),
        "summaryMetrics": json.dumps(run.summary),
        "logLineCount": 0,
        "eventsLineCount": len(run.events),
        "historyTail": json.dumps([json.dumps(line) for line in run.history[-1:]]),
        "eventsTail": json.dumps([json.dumps(line) for line in run.events[-1:]]),
        "tags": [],
        "notes": "",
        "wandbConfig": json.dumps({"t": 1}),
    }
    return {"data": {"model": {"id": "p", "name": "poro", "entity": {"id": "e", "name": "team"}, "bucket": bucket}}}


def _rewind(state: WandbServer, variables: Json) -> Json:
    run = state.runs.get(variables["runName"])
    if state.refuses_rewind or run is None:
        return {"errors": [{"message": "rewinding runs is not enabled"}]}
    step = int(variables["metricValue"])
    run.rewinds.append(step)
    run.history = [line for line in run.history if line["_step"] <= step]
    return {"data": {"rewindRun": {"rewoundRun": _bucket(run)}}}


def _alert(state: WandbServer, variables: Json) -> Json:
    state.runs[variables["runName"]].alerts.append(variables)
    return {"data": {"notifyScriptableRunAlert": {"success": True}}}


def _create_artifact(state: WandbServer, variables: Json) -> Json:
    entry = variables["input"]
    run = state.runs[entry["runName"]]
    number = sum(other["artifactCollectionName"] == entry["artifactCollectionName"] for other in run.artifacts)
    run.artifacts.append(entry)
    identity = f"{run.name}-{len(run.artifacts)}"
    sequence = {
        "id": entry["artifactCollectionName"],
        "latestArtifact": None if number == 0 else {"id": "a", "versionIndex": number},
    }
    artifact = {"id": identity, "state": "PENDING", "artifactSequence": sequence}
    return {"data": {"createArtifact": {"artifact": artifact}}}


def _manifest(state: WandbServer, variables: Json, field_name: str) -> Json:
    identity = variables.get("artifactID") or variables["artifactManifestID"].removeprefix("m-")
    file = {"id": "f", "uploadUrl": f"{state.url}/manifest/{identity}", "uploadHeaders": []}
    return {"data": {field_name: {"artifactManifest": {"id": f"m-{identity}", "file": file}}}}


def _run_files(state: WandbServer, variables: Json) -> Json:
    files = [{"name": name, "uploadUrl": f"{state.url}/file/{name}"} for name in variables["files"]]
    return {"data": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}}


_ANSWERS = {
    "Viewer": _viewer,
    "ServerFeaturesQuery": lambda state, variables: {"data": {"serverInfo": {"features": []}}},
    "UpsertBucket": _upsert,
    "RunResumeStatus": _resume_status,
    "RewindRun": _rewind,
    "NotifyScriptableRunAlert": _alert,
    "CreateArtifact": _create_artifact,
    "CreateArtifactManifest": lambda state, variables: _manifest(state, variables, "createArtifactManifest"),
    "UpdateArtifactManifest": lambda state, variables: _manifest(state, variables, "updateArtifactManifest"),
    "CommitArtifact": lambda state, variables: {"data": {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}},
    "CreateRunFiles": _run_files,
    "MarkRunFilesUploaded": lambda state, variables: {"data": {"markRunFilesUploaded": {"success": True}}},
    "ClientIDMapping": lambda state, variables: {"data": {"clientIDMapping": {"serverID": "a"}}},
    "XXHashDigestsEnabled": lambda state, variables: {"data": {"entity": {"xxhashDigestsEnabled": False}}},
    "FetchArtifactDigestAlgorithm": lambda state, variables: {"data": {"project": None}},
}
