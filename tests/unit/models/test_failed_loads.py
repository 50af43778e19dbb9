"""What the log of an encoder says of a model that could not be loaded."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedding.errors import Fault, RequestError
from embedding.models.cache import ModelCache
from embedding.models.files.failure import named, unloadable
from embedding.models.model import Model
from embedding.models.spec import ModelSpec
from tests.support.cache import Loader, run, touch

TOKEN = "hunter2"


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records if record.name == "ray.serve"]
    return [line for line in lines if "could not be loaded" in line]


def after_failure(spec: ModelSpec, error: Exception) -> None:
    """Asks a cache for a model whose load raises an error."""

    def load(spec: ModelSpec) -> Model:
        raise error

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            cache = ModelCache(load, executor)
            with pytest.raises(type(error)):
                async with cache.use(spec):
                    pass

    asyncio.run(main())


def test_each_failed_load_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """However many requests wait for it."""
    told = "model bad could not be loaded: cannot load bad"

    async def test(cache: ModelCache, loader: Loader) -> None:
        gate = loader.gate("bad")
        callers = [asyncio.create_task(touch(cache, "bad")) for _ in range(3)]
        await loader.loading("bad")
        gate.set()
        await asyncio.gather(*callers, return_exceptions=True)
        assert failures(caplog) == [told]
        with pytest.raises(RequestError):
            await touch(cache, "bad")
        await touch(cache, "good")

    run(test)
    assert failures(caplog) == [told] * 2
    assert {record.levelname for record in caplog.records if record.name == "ray.serve"} == {"WARNING"}


def test_a_load_that_nobody_waits_for_any_more_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        caller = asyncio.create_task(touch(cache, "a"))
        await started.wait()
        caller.cancel()
        await asyncio.wait([caller])

    started = asyncio.Event()

    async def fetch(spec: ModelSpec) -> None:
        started.set()
        await asyncio.Event().wait()

    run(test, fetch=fetch)
    assert failures(caplog) == []


NAMES = [
    ("demo/clip", "demo/clip"),
    (f"https://me:{TOKEN}@host.example/model.pt?X-Amz-Signature={TOKEN}", "https://host.example/model.pt"),
    (f"https://host.example/model.pt?token={TOKEN}\nERROR forged", "https://host.example/model.pt"),
]


@pytest.mark.parametrize(("name", "shown"), NAMES)
def test_it_names_the_model_and_the_reason_without_credentials(
    name: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    spec = ModelSpec(name, "{}", auth_json=f'{{"hf": {{"token": "{TOKEN}"}}}}')
    after_failure(spec, named(unloadable("the checkpoint is damaged"), name))
    after_failure(spec, KeyError("the library's own"))
    reasons = ["the checkpoint is damaged", """KeyError: "the library's own\""""]
    assert failures(caplog) == [f"model {shown} could not be loaded: {reason}" for reason in reasons]


def test_a_reason_cannot_forge_lines_or_show_credentials(caplog: pytest.LogCaptureFixture) -> None:
    error = RequestError(Fault.REFUSED, f"cannot load m\nERROR https://me:{TOKEN}@hub.example/a?b={TOKEN}")
    after_failure(ModelSpec("m", "{}"), error)
    assert failures(caplog) == ["model m could not be loaded: cannot load m ERROR https://hub.example/a"]
