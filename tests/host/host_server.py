"""A real ComfyUI server with the pack in it, for one test session."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PACK = Path(__file__).parents[2]
PACK_NAME = "uniavgen"
GIVEN = Path(__file__).parent / "given"


@dataclass(frozen=True)
class Answer:
    """What became of a prompt. `error`: all that a user could read about what went wrong, else empty."""

    outputs: dict
    cached: set[str]
    executed: set[str]
    error: str = ""
    kind: str = ""  # of the exception, or "refused" where validation did not queue the graph
    node: str = ""
    interrupted: bool = False
    seconds: float = 0.0


@dataclass
class HostServer:
    """`main.py --cpu` on a free port with a base directory of its own; use as a context manager."""

    comfy: Path
    base: Path
    port: int = field(init=False)

    def __enter__(self) -> HostServer:
        for folder in ("custom_nodes", "input", "output", "models"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        (self.base / "custom_nodes" / PACK_NAME).symlink_to(PACK, target_is_directory=True)
        (self.base / "custom_nodes" / "given").symlink_to(GIVEN, target_is_directory=True)
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            self.port = listening.getsockname()[1]
        command = [sys.executable, "main.py", "--cpu", "--disable-api-nodes", "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        self._log = (self.base / "server.log").open("w+")
        self.process = subprocess.Popen(
            command,
            cwd=self.comfy,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self.until(self._is_up, 180)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    @property
    def log(self) -> str:
        return (self.base / "server.log").read_text(errors="replace")

    @property
    def memory(self) -> int:
        """Bytes of memory the server holds now (RSS)."""
        import psutil  # comes with ComfyUI

        return psutil.Process(self.process.pid).memory_info().rss

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, content: dict | None = None) -> dict:
        """The server's answer, also where it refuses (HTTP 400)."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(content or {}).encode(), method="POST"
        )
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as refused:
            text = refused.read()
        return json.loads(text) if text else {}

    def until(self, done: Callable[[], object], seconds: float) -> object:
        """Waits for something true and returns it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := done():
                return found
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log[-3000:]}")
            time.sleep(0.02)
        raise AssertionError(f"nothing after {seconds} s:\n{self.log[-3000:]}")

    def queue(self, graph: dict) -> dict:
        """`{"prompt_id": ...}`, or `{"error": ..., "node_errors": ...}` if validation refuses."""
        return self.post("/prompt", {"prompt": graph})

    def run(self, graph: dict, seconds: float = 120) -> Answer:
        """Queue a graph and wait for its end."""
        start = time.monotonic()
        queued = self.queue(graph)
        if queued.get("error") or queued.get("node_errors"):
            return _refused(queued)
        return self.wait(queued["prompt_id"], seconds, start)

    def wait(self, prompt_id: str, seconds: float = 120, start: float | None = None) -> Answer:
        start = start or time.monotonic()
        ended = self.until(lambda: self.get(f"/history/{prompt_id}").get(prompt_id), seconds)
        messages = dict(ended["status"]["messages"])
        failed = messages.get("execution_error") or messages.get("execution_interrupted") or {}
        return Answer(
            outputs=ended["outputs"],
            cached=set(messages["execution_cached"]["nodes"]),
            executed=set(failed.get("executed", ended["outputs"])),
            error=failed.get("exception_message", "").strip(),
            kind=failed.get("exception_type", "").rpartition(".")[2],
            node=failed.get("node_type", ""),
            interrupted="execution_interrupted" in messages,
            seconds=time.monotonic() - start,
        )

    def _is_up(self) -> bool:
        try:
            return bool(self.get("/system_stats"))
        except OSError:
            return False


def _refused(answer: dict) -> Answer:
    """The texts of the page's error panel for a graph that was not queued."""
    texts, nodes = [], []
    for node in answer.get("node_errors", {}).values():
        nodes.append(node["class_type"])
        texts += [f"{e['message']}: {e['details']}" for e in node["errors"]]
    error = answer.get("error") or {}
    if not texts:
        texts.append(f"{error.get('message')}: {error.get('details')}")
    return Answer({}, set(), set(), "\n".join(texts), "refused", ", ".join(nodes))
