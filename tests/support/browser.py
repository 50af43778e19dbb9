"""A headless Chromium, told what to do over its DevTools protocol, and what it has requested."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
START_S, ANSWER_S = 60.0, 60.0
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-port=0",
)


def chromium() -> str:
    """The program; skips the test where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"there is no {' nor '.join(NAMES)} on this machine")
    return found


class Browser:
    """One page of a browser that runs while the context lasts.

    Args:
        folder: for its profile.
    """

    def __init__(self, folder: Path) -> None:
        self.requested: list[str] = []
        """URLs that pages have asked for."""
        self.complaints: list[str] = []
        """What the browser says against a page: errors of scripts, and what a policy has kept out."""
        self._folder = folder
        self._runner = asyncio.Runner()
        self._count = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [chromium(), *OPTIONS, f"--user-data-dir={self._folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._runner.run(self._connect())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._session.close())
        self._runner.close()
        self._process.terminate()
        self._process.wait(START_S)

    def tell(self, method: str, **parameters: Any) -> Any:
        """The result of a command of the protocol."""
        return self._runner.run(self._told(method, parameters))

    def show(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Goes to a page, in a window of this size, and waits until it is there."""
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.tell("Emulation.setEmulatedMedia", features=features)
        self.tell("Page.navigate", url=url)
        self.until(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def value(self, script: str) -> Any:
        """The value of an expression of JavaScript in the page, awaited if it is a promise."""
        found = self.tell("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> Any:
        """Waits until an expression is true, and returns its value."""
        end = time.monotonic() + ANSWER_S
        while not (found := self.value(script)):
            assert time.monotonic() < end, f"{script} is {found!r}; the page: {self.text()}"
            time.sleep(0.1)
        return found

    def text(self) -> str:
        """What a reader of the page sees."""
        return str(self.value("document.body.innerText"))

    def picture(self, whole: bool = True) -> bytes:
        """The page as PNG: all of it, or what the window shows."""
        return base64.b64decode(self.tell("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    async def _connect(self) -> None:
        file = self._folder / "DevToolsActivePort"
        async with asyncio.timeout(START_S):
            while not (file.exists() and len(lines := file.read_text().split()) == 2):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{lines[0]}/json") as reply:
            (page,) = [one for one in await reply.json() if one["type"] == "page"]
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self._told(f"{domain}.enable", {})

    async def _told(self, method: str, parameters: dict[str, Any]) -> Any:
        self._count += 1
        await self._socket.send_json({"id": self._count, "method": method, "params": parameters})
        async with asyncio.timeout(ANSWER_S):
            while True:
                message = await self._socket.receive_json()
                if message.get("id") == self._count:
                    assert "error" not in message, message
                    return message["result"]
                self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event["params"]
        match event["method"]:
            case "Network.requestWillBeSent":
                self.requested.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(parameters["exceptionDetails"]))
            case "Log.entryAdded" if parameters["entry"]["level"] == "error":
                self.complaints.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
