"""Hugging Face's hub, small: its cache on disk, and a server on this machine that offers one repository."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "1" * 40


def write_cache(cache: Path, name: str, files: dict[str, bytes], revision: str = "main") -> None:
    """A repository in the layout of the hub's cache: blobs, links to them for each commit, names of commits."""
    root = cache / ("models--" + name.replace("/", "--"))
    snapshot = root / "snapshots" / COMMIT
    for folder in (snapshot, root / "blobs", root / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(COMMIT)
    for file, content in files.items():
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file).symlink_to(Path("..") / ".." / "blobs" / blob.name)


class FakeHub:
    """A server with one repository; `asked` lists the paths that were asked for.

    Args:
        name: of the repository.
        files: their contents by name.
    """

    def __init__(self, name: str, files: dict[str, bytes]) -> None:
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                hub.asked.append(path)
                if path.startswith(f"/api/models/{name}/tree/"):
                    tree = [{"type": "file", "path": k, "size": len(v), "oid": _oid(v)} for k, v in files.items()]
                    self.answer(json.dumps(tree).encode(), "application/json")
                elif path in (f"/api/models/{name}", f"/api/models/{name}/revision/main"):
                    info = {"id": name, "modelId": name, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
                    self.answer(json.dumps(info).encode(), "application/json")
                elif path.startswith(f"/api/models/{name}/revision/"):
                    self.refuse("RevisionNotFound")
                elif path.startswith(f"/{name}/resolve/{COMMIT}/") and path.rpartition("/")[2] in files:
                    self.answer(files[path.rpartition("/")[2]], "application/octet-stream")
                else:
                    self.refuse("RepoNotFound")

            do_HEAD = do_GET

            def answer(self, content: bytes, kind: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", f'"{_oid(content)}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def refuse(self, code: str) -> None:
                self.send_response(404)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeHub":
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
