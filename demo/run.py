"""The demonstration: pictures are fetched by URL and embedded, and text queries find them.

    python -m demo.run

Starts the graph with `config/demo.yaml`, serves 64 generated pictures over local HTTP, indexes them through
`POST /vectorise` as Marqo does, searches them, and writes `demo.html`. Then it stops everything that it has started.
"""

import argparse
import base64
import html
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgpack
import msgpack_numpy
import numpy as np
import requests
from tqdm import tqdm

from demo.pictures import EVALUATION_SEEDS, jpeg_bytes, scenes
from operations import environment
from operations.config_file import read_config
from operations.errors import StartError
from operations.launch import give_up, running

MODEL = "demo/clip"
PROPERTIES = {"name": MODEL, "type": "open_clip", "dimensions": 128}
PICTURES = 64
REQUEST_SIZE = 32
SEED = 7
Match = tuple[float, int]
"""Cosine of query and picture, and the picture's number."""


@contextmanager
def picture_server(pictures: Sequence[bytes]) -> Iterator[str]:
    """Serves JPEGs at URL/0.jpg, URL/1.jpg, … on loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            picture = pictures[int(self.path.strip("/").removesuffix(".jpg"))]
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(picture)))
            self.end_headers()
            self.wfile.write(picture)

        def log_message(self, *_: object) -> None:
            """Logs nothing: the terminal is for the progress bar."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def embed(server: str, items: Sequence[str], modality: str) -> np.ndarray:
    """Vectors, float32 (n, dimensions), by one `POST /vectorise` as Marqo's API container sends it.

    Args:
        server: its URL.
        items: texts, or URLs of pictures.
        modality: "language" or "image".

    Raises:
        StartError: the server refused the request or one of its items.
    """
    body = {
        "modality": modality,
        "contents": list(items),
        "embeddingModelConfig": {"modelName": MODEL, "modelProperties": PROPERTIES, "normalizeEmbeddings": True},
        "preprocessingConfig": {"modality": modality},
        "useInferenceCache": modality == "language",
        "returnIndividualError": False,
    }
    kind = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    reply = requests.post(f"{server}/vectorise", data=msgpack.packb(body), headers=kind, timeout=300)
    answer = msgpack.unpackb(reply.content, object_hook=msgpack_numpy.decode)
    if reply.status_code != 200:
        raise StartError(f"the server answered {reply.status_code}: {answer['detail']}")
    return np.stack([chunks[0][1] for chunks in answer["result"]])


def index(server: str, urls: Sequence[str]) -> tuple[np.ndarray, float]:
    """Vectors of all pictures, float32 (n, dimensions), and pictures per second."""
    parts = []
    started = time.perf_counter()
    with tqdm(total=len(urls), unit="picture", desc="indexing") as bar:
        for start in range(0, len(urls), REQUEST_SIZE):
            chunk = urls[start : start + REQUEST_SIZE]
            parts.append(embed(server, chunk, "image"))
            bar.update(len(chunk))
    return np.concatenate(parts), len(urls) / (time.perf_counter() - started)


def search(server: str, queries: Sequence[str], vectors: np.ndarray, best: int = 3) -> dict[str, list[Match]]:
    """The best pictures of each query, by cosine."""
    scores = embed(server, queries, "language") @ vectors.T
    return {
        query: [(float(row[i]), int(i)) for i in np.argsort(-row)[:best]]
        for query, row in zip(queries, scores, strict=True)
    }


def contact_sheet(matches: Mapping[str, Sequence[Match]], pictures: Sequence[bytes], captions: Sequence[str]) -> str:
    """A page of HTML with the pictures that each query has found; it loads nothing from elsewhere."""

    def figure(score: float, number: int) -> str:
        data = base64.b64encode(pictures[number]).decode()
        caption = html.escape(captions[number])
        return (
            f'<figure><img src="data:image/jpeg;base64,{data}" alt="{caption}">'
            f"<figcaption><b>{score:.3f}</b> {caption}</figcaption></figure>"
        )

    rows = "".join(
        f"<section><h2>{html.escape(query)}</h2>{''.join(figure(*match) for match in found)}</section>"
        for query, found in matches.items()
    )
    style = (
        "body{font:15px system-ui;margin:2em auto;max-width:60em;color:#222}h2{font-size:1.1em;margin:1.5em 0 .5em}"
        "figure{display:inline-block;width:30%;margin:0 2% 0 0;vertical-align:top}"
        "img{width:100%;aspect-ratio:1;object-fit:cover;border-radius:6px}figcaption{font-size:.8em;color:#555}"
    )
    title = f"{len(pictures)} pictures, {len(matches)} queries, model {MODEL}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{style}</style>'
        f"<h1>{title}</h1>{rows}</html>"
    )


def demonstrate(server: str, page: Path) -> None:
    """Indexes and searches with a server that runs, prints the matches and writes the page."""
    shown = scenes(PICTURES, SEED)
    captions = [scene.caption for scene in shown]
    pictures = [jpeg_bytes(scene.draw(EVALUATION_SEEDS.start + SEED)) for scene in shown]
    with picture_server(pictures) as host:
        vectors, rate = index(server, [f"{host}/{i}.jpg" for i in range(len(pictures))])
    # The full captions of some pictures, and of others the subject alone, as a person would type it.
    subjects = [scene.subject for scene in shown]
    matches = search(server, [*captions[::12], *subjects[5::12]], vectors)
    for query, found in matches.items():
        print(f"\n{query}")
        for score, number in found:
            print(f"  {score:.3f}  {captions[number]}")
    page.write_text(contact_sheet(matches, pictures, captions))
    print(f"\n{rate:.0f} images per second, first requests included; contact sheet: {page}")


def main() -> int:
    """Starts the server, runs the demonstration and stops the server; returns the exit status."""
    parser = argparse.ArgumentParser(description="Index and search 64 generated pictures.")
    parser.add_argument("--config", type=Path, default=Path("config/demo.yaml"))
    parser.add_argument("--page", type=Path, default=Path("demo.html"))
    args = parser.parse_args()
    try:
        environment.apply()
        config = read_config(args.config)
        http = config["http_options"]
        print("starting the graph …", flush=True)
        with running(config, on_loss=give_up, log_to_driver=False):
            demonstrate(f"http://{http['host']}:{http['port']}", args.page)
            print("stopping …", flush=True)
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
