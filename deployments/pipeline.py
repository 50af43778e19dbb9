"""Who asks whom: from a request to its answers, through the handles of the other two deployments."""

from collections import OrderedDict

from ray.serve.handle import DeploymentHandle

from deployments.gather import Answers, answered
from deployments.images import ImageFanOut, ImageTask
from deployments.retry import retried
from deployments.routing import to_home
from deployments.texts import TextFanOut
from embedding.models.spec import ModelInfo, ModelSpec
from embedding.protocol import ImageConfig, InferenceRequest, TextConfig

KNOWN_MODELS = 4096


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
        self._known: OrderedDict[ModelSpec, ModelInfo] = OrderedDict()

    async def warm_up(self) -> None:
        """Sends one picture as far as it gets without a model: nothing is loaded for it."""
        await self._images.warm_up()

    async def vectorise(self, request: InferenceRequest) -> Answers:
        """One answer for each content, in order.

        Raises:
            RequestError: the model cannot be had; or one content failed and the request wants no individual errors.
        """
        spec = ModelSpec.from_config(request.model_settings, request.device)
        config = request.preprocessing_config
        image = (await self._info(spec)).image if isinstance(config, ImageConfig) else None
        if isinstance(config, ImageConfig) and image is not None:
            return await self._images.vectorise(ImageTask(request, config, spec, image))
        # A model without an image encoder takes an image's URL as text, as Marqo's servers do.
        return await self._texts.vectorise(request, config if isinstance(config, TextConfig) else TextConfig(), spec)

    async def fingerprint(self, request: InferenceRequest) -> str:
        """Hash of all that decides the vectors of the request's model: equal where vectors are equal.

        Raises:
            RequestError: the model cannot be had.
        """
        spec = ModelSpec.from_config(request.model_settings, request.device)
        return answered(await retried("fingerprint", lambda: to_home(self._fingerprint, spec).remote(spec)))

    async def _info(self, spec: ModelSpec) -> ModelInfo:
        known = self._known.get(spec)
        if known is None:
            known = answered(await retried("describe", lambda: to_home(self._describe, spec).remote(spec)))
            self._known[spec] = known
            if len(self._known) > KNOWN_MODELS:
                self._known.popitem(last=False)
        return known
