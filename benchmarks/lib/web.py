"""The web server from which pictures are downloaded: a process of its own, so its CPU time is counted for no other.

It is nginx if that is installed, else the image host: `python -m benchmarks.lib.web FOLDER`.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.places import OUT, ROOT
from benchmarks.lib.process import free_port, server, stop

NGINX = """
daemon off; worker_processes 1; pid {out}/nginx.pid; error_log stderr error;
events {{ worker_connections 1024; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
    client_body_temp_path {out}/body; proxy_temp_path {out}/proxy; fastcgi_temp_path {out}/fastcgi;
    uwsgi_temp_path {out}/uwsgi; scgi_temp_path {out}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location /ok/ {{ alias {folder}/; }}
        location = /health {{ return 200; }}
    }}
}}
"""


@contextlib.contextmanager
def web(paths: Sequence[Path]) -> Iterator[list[str]]:
    """Serves files of one folder while the context lasts. Yields their URLs, in order."""
    (folder,) = {path.parent for path in paths}
    nginx = shutil.which("nginx")
    with _nginx(nginx, folder) if nginx else misbehaving(folder) as port:
        yield [f"http://127.0.0.1:{port}/ok/{path.name}" for path in paths]


@contextlib.contextmanager
def _nginx(program: str, folder: Path) -> Iterator[int]:
    out, port = OUT / "nginx", free_port()
    out.mkdir(parents=True, exist_ok=True)
    config = out / "nginx.conf"
    config.write_text(NGINX.format(out=out, folder=folder, port=port))
    with server("web", [program, "-c", str(config)], f"http://127.0.0.1:{port}/health"):
        yield port


@contextlib.contextmanager
def misbehaving(folder: Path) -> Iterator[int]:
    """Serves a folder with the image host, which misbehaves on demand, while the context lasts. Yields its port."""
    command = [sys.executable, "-m", "benchmarks.lib.web", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        stop(process)


def main() -> None:
    """Prints the port and serves a folder until it is interrupted."""
    files = {path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()}
    with contextlib.suppress(KeyboardInterrupt), ImageHost(files, record=False) as host:
        print(host.port, flush=True)
        time.sleep(24 * 3600)


if __name__ == "__main__":
    main()
