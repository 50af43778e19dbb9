"""Who asks whom: from a request to its answers, through the handles of the other two deployments."""

from collections import OrderedDict
from functools import partial

from blake3 import blake3
from ray.serve.handle import DeploymentHandle

from deployments.ingress.admission import Load
from deployments.ingress.gather import Answers, answered, reply_to
from deployments.ingress.image_task import ImageTask
from deployments.ingress.images import ImageFanOut
from deployments.ingress.retry import retried
from deployments.ingress.texts import TextFanOut
from deployments.routing import to_home
from embedding.image_spec import ImageSpec
from embedding.models.spec import ModelInfo, ModelSpec
from embedding.protocol import ImageConfig, InferenceRequest, TextConfig

KNOWN_MODELS = 4096
"""By a hash: what a model says of itself may be long."""


class Pipeline:
    """Turns requests into vectors.

    Args:
        images: the fan-out of pictures.
        texts: the fan-out of texts.
        encoder: handle of the encoders.
    """

    def __init__(self, images: ImageFanOut, texts: TextFanOut, encoder: DeploymentHandle) -> None:
        self._images = images
        self._texts = texts
        self._describe = encoder.options(method_name="describe")
        self._fingerprint = encoder.options(method_name="fingerprint")
        self._known: OrderedDict[bytes, ImageSpec | None] = OrderedDict()

    async def warm_up(self) -> None:
        """Sends one picture as far as it gets without a model: nothing is loaded for it."""
        await self._images.warm_up()

    async def vectorise(self, request: InferenceRequest, load: Load, deadline: float) -> Answers:
        """One answer for each content, in order.

        Args:
            request: what is asked for.
            load: what it is to this process.
            deadline: by the event loop's clock, when downloads that are not complete are given up.

        Raises:
            RequestError: the model cannot be had; the request becomes too much; or one content failed and the request
                wants no individual errors.
        """
        spec = ModelSpec.from_config(request.model_settings, request.device)
        config = request.preprocessing_config
        image = await self._image(spec) if isinstance(config, ImageConfig) else None
        if isinstance(config, ImageConfig) and image is not None:
            return await self._images.vectorise(ImageTask(request, config, spec, image, deadline), load)
        # A model without an image encoder takes an image's URL as text, as Marqo's servers do.
        text = config if isinstance(config, TextConfig) else TextConfig()
        return await self._texts.vectorise(request, text, spec, load.expanded)

    async def fingerprint(self, request: InferenceRequest) -> str:
        """Hash of all that decides the vectors of the request's model: equal where vectors are equal.

        Raises:
            RequestError: the model cannot be had.
        """
        spec = ModelSpec.from_config(request.model_settings, request.device)
        return answered(await retried("fingerprint", lambda: to_home(self._fingerprint, spec).remote(spec)))

    async def _image(self, spec: ModelSpec) -> ImageSpec | None:
        """How a model wants its pictures; None if it takes texts only."""
        identity = blake3(f"{spec.device} {spec.auth_json} {spec.properties_json}".encode()).digest()
        if identity not in self._known:
            call = partial(to_home(self._describe, spec).remote, spec)
            info: ModelInfo = answered(await retried("describe", lambda: reply_to(call())))
            self._known[identity] = info.image
            if len(self._known) > KNOWN_MODELS:
                self._known.popitem(last=False)
        return self._known[identity]
