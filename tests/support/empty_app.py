"""The smallest application there is, for tests of HAProxy in front of it."""

from fastapi import FastAPI
from ray import serve

api = FastAPI()


@serve.deployment(ray_actor_options={"num_cpus": 0})
@serve.ingress(api)
class Empty:
    @api.get("/")
    async def get_root(self) -> str:
        return "here"


app = Empty.bind()  # type: ignore[attr-defined]  # Serve's decorators are typed as if they gave the class back
