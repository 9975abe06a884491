"""OHIF's built pages on loopback, with an archive's DICOMweb under the same origin.

The pages come with the headers of cross-origin isolation, which OHIF wants for its shared memory
(COOP, COEP); the browser asks one origin only, so that no archive needs to allow another one.
"""

from __future__ import annotations

import http.client
import http.server
import mimetypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ISOLATED = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SETTINGS = b"""window.config = {
  routerBasename: null,
  extensions: [],
  modes: [],
  showStudyList: true,
  investigationalUseDialog: { option: 'never' },
  showLoadingIndicator: true,
  defaultDataSourceName: 'archive',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
    sourceName: 'archive',
    configuration: {
      friendlyName: 'archive',
      name: 'archive',
      qidoRoot: '/dicom-web',
      wadoRoot: '/dicom-web',
      wadoUriRoot: '/wado',
      qidoSupportsIncludeField: false,
      imageRendering: 'wadors',
      thumbnailRendering: 'wadors',
      enableStudyLazyLoad: true,
      supportsFuzzyMatching: false,
      supportsWildcard: true,
      singlepart: 'bulkdata,video,pdf',
      bulkDataURI: { enabled: true, relativeResolution: 'studies' },
      omitQuotationForMultipartRequest: true,
    },
  }],
};
"""


@contextmanager
def served(dist: Path, archive_port: int) -> Iterator[str]:
    """Serve the pages, and what lies behind the archive's port; give the address."""
    here = dist.resolve()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path.startswith(("/dicom-web/", "/wado")):
                self._from_archive()
                return
            path = self.path.partition("?")[0].lstrip("/")
            file = (here / path).resolve()
            if path == "app-config.js":
                self._send(200, "text/javascript", _SETTINGS)
            elif here in file.parents and file.is_file():
                kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
                self._send(200, kind, file.read_bytes())
            else:  # every other address is one of the application's own
                self._send(200, "text/html", (here / "index.html").read_bytes())

        def _from_archive(self) -> None:
            asked = http.client.HTTPConnection("127.0.0.1", archive_port, timeout=60)
            try:
                wanted = {"Host": self.headers["Host"], "Accept": self.headers.get("Accept", "*/*")}
                asked.request("GET", self.path, headers=wanted)
                answer = asked.getresponse()
                kind = answer.headers.get("Content-Type", "application/octet-stream")
                self._send(answer.status, kind, answer.read())
            finally:
                asked.close()

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            for name, value in _ISOLATED.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
