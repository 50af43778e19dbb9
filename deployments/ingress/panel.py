"""`GET /stats`, the page `/ui` that shows it, and the page's form `POST /ui/similarity`.

None of them is part of Marqo's protocol. The replica that a route belongs to is asked of Serve, since the routes are
functions of this module and not methods of the deployment.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.ingress.admission import Admission
from deployments.ingress.bodies import Arrivals
from deployments.ingress.calls import Answers
from deployments.ingress.collector import Collector
from deployments.ingress.growth import Collection
from deployments.ingress.history import History, Shared
from deployments.ingress.overview import overview
from deployments.ingress.similarity import Pair, read_pair, similarity
from deployments.ray_internals import by_reference
from embedding.errors import Fault, RequestError
from embedding.shown import shown

FORM_BYTES = 2**20
"""Of one form: a text, a URL or data URI, and a model's properties."""
FORMS_BYTES = 8 * 2**20
JSON = "application/json"
FRESH = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
Embed = Callable[[Mapping[str, Any]], Awaitable[Answers]]

routes = APIRouter(include_in_schema=False)


class Panel:
    """What the routes below need of one ingress.

    Args:
        preprocessor, encoder: handles of the other deployments.
        embed: the ingress's own way of answering a request, with all its limits.
        least_bytes_per_s, grace_s: how slowly a form may arrive, see `Pace`.
    """

    def __init__(
        self,
        preprocessor: DeploymentHandle[Any],
        encoder: DeploymentHandle[Any],
        embed: Embed,
        least_bytes_per_s: float,
        grace_s: float,
    ) -> None:
        self._others = {"Preprocessor": preprocessor, "Encoder": encoder}
        self._embed = embed
        self._forms = Admission(FORMS_BYTES, "bytes of forms")
        self._arrivals = Arrivals(FORM_BYTES, FORMS_BYTES, least_bytes_per_s, grace_s)
        self._collector: Collector | None = None
        history = History(self._collect)

        async def reply() -> bytes:
            return overview(await history.growth()).model_dump_json().encode()

        self._reply = Shared(reply)

    async def stats(self) -> bytes:
        """The JSON of `Overview`. It is made at most once a second, whoever asks, and only if somebody does."""
        return await self._reply.get()

    async def similarity(self, request: Request) -> float:
        """Cosine of the two vectors of a form.

        Raises:
            RequestError: the form or one of its items cannot be read, or the ingress refuses the request.
        """
        if request.headers.get("content-type") != JSON:
            given = shown(request.headers.get("content-type", ""))
            raise RequestError(Fault.UNSUPPORTED_MEDIA_TYPE, f"Unsupported Content-Type: '{given}'. Expected '{JSON}'")
        with self._forms.share() as share:
            pair: Pair = read_pair(bytes(await self._arrivals.read(request.receive, share)))
            return await similarity(pair, self._embed)

    async def _collect(self) -> Collection:
        if self._collector is None:
            here = serve.get_replica_context()
            own: DeploymentHandle[Any] = serve.get_deployment_handle(here.deployment, here.app_name)
            handles = {here.deployment: own, **self._others}
            self._collector = Collector({name: by_reference(handle) for name, handle in handles.items()})
        return await self._collector.collect()


def _panel() -> Panel:
    panel: Panel = serve.get_replica_context().servable_object.panel  # type: ignore[attr-defined]
    return panel


@routes.get("/stats")
async def get_stats() -> Response:
    """What the graph does, what limits it, and what to change: see `Overview`."""
    return Response(await _panel().stats(), media_type=JSON, headers=FRESH)


@routes.get("/ui")
async def get_ui() -> Response:
    """The page. It holds no data: it asks for `stats` beside itself, with a token if there is one."""
    return Response(PAGE, media_type="text/html", headers=PAGE_HEADERS)


@routes.post("/ui/similarity")
async def post_similarity(request: Request) -> Response:
    """A text and a picture, embedded by one model and compared."""
    return JSONResponse({"similarity": await _panel().similarity(request)}, headers=FRESH)


def _policy(page: str) -> str:
    """A Content-Security-Policy under which a browser runs the page's own script and style and no other, and connects
    to nothing but this server."""
    script, style = (
        " ".join(f"'sha256-{_sha256(text)}'" for text in re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL))
        for tag in ("script", "style")
    )
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


PAGE = Path(__file__).with_name("ui.html").read_text(encoding="utf-8")
PAGE_HEADERS = {
    "Content-Security-Policy": _policy(PAGE),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}
