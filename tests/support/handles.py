"""Stands for Serve's handle of a deployment: its calls go to functions of the test, in the same event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, cast

from ray.serve.handle import DeploymentHandle


class _Handle:
    def __init__(self, methods: Mapping[str, Callable[..., Any]], name: str = "__call__", stream: bool = False) -> None:
        self._methods = methods
        self._name = name
        self._stream = stream

    def options(self, method_name: str | None = None, stream: bool = False, **others: Any) -> _Handle:
        return _Handle(self._methods, method_name or self._name, stream or self._stream)

    def remote(self, *args: Any) -> Any:
        made = self._methods[self._name](*args)
        return _Stream(made) if self._stream else asyncio.ensure_future(made)

    def broadcast(self, name: str, *args: Any) -> _Broadcast:
        return _Broadcast(lambda: self._methods[name](*args))


class _Broadcast:
    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call

    async def results_async(self) -> list[Any]:
        return [await self._call()]


class _Stream:
    def __init__(self, parts: AsyncIterator[Any]) -> None:
        self._parts = parts

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._parts

    def cancel(self) -> None: ...


def handle_of(**methods: Callable[..., Any]) -> DeploymentHandle[Any]:
    """A handle of a deployment with one replica.

    Args:
        methods: of the replica: coroutine functions, or for calls with the option `stream` async generators.
    """
    return cast(DeploymentHandle[Any], _Handle(methods))
