"""An HTTP server of a folder that knows byte ranges, and can fail on request."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class FileServer(ThreadingHTTPServer):
    """Attributes change the behaviour of later responses.

    ranges: answer range requests with parts; otherwise with the whole file.
    break_every: of so many responses with contents the last ends after half of them; 0: none does.
    status: answer everything with this status; 0: serve files. absent: the status of a file that is not there.
    versions: send ETag and Last-Modified.
    trick: "other range": a later part under its own Content-Range; "other total": another size in Content-Range; "endless": the
        part and then zeros without end; "gzip": says that the part is compressed; "redirect": to a URL that is none, with a
        signature.
    silent: so many of the next responses stop after a share `silent_after` of their contents, and the connection stays open.
    drip: seconds between two bytes of contents; 0: none.
    document, headers: sent with `status`.
    sent: bytes of contents sent so far. requests: received so far.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.ranges, self.versions, self.break_every, self.status = True, True, 0, 0
        self.absent = 404
        self.trick = ""
        self.silent, self.silent_after = 0, 0.0
        self.drip, self.document, self.headers = 0.0, b"", dict[str, str]()
        self.closed = threading.Event()
        self.sent = self.responses = self.requests = 0

    def handle_error(self, *_: object) -> None:
        """A client that closes its connections is none."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def etag_of(stat: os.stat_result) -> str:
    return f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # contents would wait 40 ms until the client acknowledges the headers

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_contents=False)

    def do_GET(self) -> None:
        self._answer(with_contents=True)

    def _answer(self, with_contents: bool) -> None:
        self.server.requests += 1
        path = self.server.folder / unquote(urlsplit(self.path).path).lstrip("/")
        status = self.server.status or (200 if path.is_file() else self.server.absent)
        if self.server.trick == "redirect":
            self.send_response(302)
            self.send_header("Location", "ftp://user:password@[other/a.tar?signature=secret")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if status != 200:
            document = self.server.document if with_contents else b""
            if "Date" in self.server.headers:
                self.send_response_only(status)
            else:
                self.send_response(status)
            for name, value in (self.server.headers | {"Content-Length": str(len(document))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(document)
            return
        stat = path.stat()
        start, stop = 0, stat.st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and self.server.ranges:
            start, stop = int(asked[1]), min(int(asked[2]) + 1, stat.st_size)
            moved = self.server.trick == "other range" and stop < stat.st_size
            start, stop = start + moved, stop + moved
            total = stat.st_size + (self.server.trick == "other total")
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
        else:
            self.send_response(200)
        if self.server.versions:
            self.send_header("ETag", etag_of(stat))
            self.send_header("Last-Modified", formatdate(stat.st_mtime, usegmt=True))
        if self.server.trick == "gzip":
            self.send_header("Content-Encoding", "gzip")
        if self.server.trick == "endless":
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if with_contents:
            with path.open("rb") as file:
                file.seek(start)
                self._send(file.read(stop - start))

    def _send(self, body: bytes) -> None:
        server = self.server
        endless = server.trick == "endless"  # of this response: the test goes on once the body has arrived
        server.responses += 1
        if server.break_every and server.responses % server.break_every == 0:
            body = body[: len(body) // 2]
            self.close_connection = True
        is_silent = server.silent > 0
        if is_silent:
            server.silent -= 1
            body = body[: int(server.silent_after * len(body))]
        server.sent += len(body)
        try:
            for byte in body if server.drip else b"":
                self.wfile.write(bytes([byte]))
                if server.closed.wait(server.drip):
                    return
            self.wfile.write(b"" if server.drip else body)
            if is_silent:
                server.closed.wait()
            while endless:
                self.wfile.write(bytes(1 << 16))
                server.sent += 1 << 16
        except OSError:  # the client had enough
            self.close_connection = True


@contextmanager
def serve(folder: Path) -> Iterator[FileServer]:
    server = FileServer(folder)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.closed.set()
        server.shutdown()
        server.server_close()


def touch_later(path: Path) -> None:
    """Give a file another time of modification, as writing it again would."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 2_000_000_000))
