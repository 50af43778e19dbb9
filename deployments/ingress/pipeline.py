"""From a request to its answers, with calls to the preprocessors and encoders."""

from collections import OrderedDict
from functools import partial
from typing import Any

from blake3 import blake3
from ray.serve.handle import DeploymentHandle

from deployments.ingress.admission import Load
from deployments.ingress.calls import Answers, call_replica, unwrapped
from deployments.ingress.image_task import ImageTask
from deployments.ingress.images import ImageFanOut
from deployments.ingress.retry import retried
from deployments.ingress.texts import TextFanOut
from deployments.routing import to_preferred_replica
from embedding.image_spec import ImageSpec
from embedding.models.spec import ModelInfo, ModelSpec
from embedding.protocol import ImageConfig, InferenceRequest, TextConfig

KNOWN_MODELS = 4096
"""Models whose `ImageSpec` is cached, those that were used last. The key is a hash, since a model's properties may be
long."""


class Pipeline:
    """Turns requests into vectors.

    Args:
        images: sends pictures to the other deployments.
        texts: sends texts to the other deployments.
        encoder: handle of the encoders.
    """

    def __init__(self, images: ImageFanOut, texts: TextFanOut, encoder: DeploymentHandle[Any]) -> None:
        self._images = images
        self._texts = texts
        self._describe = encoder.options(method_name="describe")
        self._fingerprint = encoder.options(method_name="fingerprint")
        self._known: OrderedDict[bytes, ImageSpec | None] = OrderedDict()

    async def warm_up(self) -> None:
        """Opens the connections to the other deployments with one picture; no model is loaded."""
        await self._images.warm_up()

    async def embed(self, request: InferenceRequest, load: Load, deadline: float) -> Answers:
        """One answer for each item, in order.

        Args:
            request: the request.
            load: what the request holds in this process.
            deadline: when incomplete downloads are given up, by the event loop's clock.

        Raises:
            RequestError: the model cannot be loaded; the request needs too many bytes; or an item failed and the
                request wants no individual errors.
        """
        spec = ModelSpec.from_config(request.model_settings, request.device)
        config = request.preprocessing_config
        image = await self._image(spec) if isinstance(config, ImageConfig) else None
        if isinstance(config, ImageConfig) and image is not None:
            return await self._images.embed_images(ImageTask(request, config, spec, image, deadline), load)
        # A model without an image encoder embeds the URL of a picture as text, as Marqo's servers do.
        text = config if isinstance(config, TextConfig) else TextConfig()
        return await self._texts.embed_texts(request, text, spec, load.expanded)

    async def fingerprint(self, request: InferenceRequest) -> str:
        """Hash of what determines the vectors of the request's model: weights, preprocessing, precision, versions of
        libraries.

        Raises:
            RequestError: the model cannot be loaded.
        """
        spec = ModelSpec.from_config(request.model_settings, request.device)
        return str(await self._asked("fingerprint", self._fingerprint, spec))

    async def _image(self, spec: ModelSpec) -> ImageSpec | None:
        """How a model wants its pictures; None if it takes only texts."""
        identity = blake3(f"{spec.device} {spec.auth_json} {spec.properties_json}".encode()).digest()
        if identity not in self._known:
            info: ModelInfo = await self._asked("describe", self._describe, spec)
            self._known[identity] = info.image
            if len(self._known) > KNOWN_MODELS:
                self._known.popitem(last=False)
        self._known.move_to_end(identity)
        return self._known[identity]

    async def _asked(self, what: str, handle: DeploymentHandle[Any], spec: ModelSpec) -> Any:
        call = partial(call_replica, to_preferred_replica(handle, spec), spec)
        return unwrapped(await retried(what, call))
