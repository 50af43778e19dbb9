"""Decodes, resizes and crops a picture as a model needs it: open_clip's validation transform.

Input: the bytes of a file, and the `ImageSpec` of a model. Output: (3, height, width) uint8, RGB.

The reference is open_clip's `image_transform_v2(cfg, is_train=False)` up to, but not including, ToTensor: resize, crop
and conversion to RGB, in that order, with Pillow; without EXIF transposition; the first frame of an animation.

RGB pictures take a fast path: plain JPEGs are decoded by libjpeg-turbo (same pixels as Pillow's, see
`embedding.image.jpeg`), and torch's vectorised code resizes them. The result differs from the reference by at most
2/255, and by 0.05/255 on average. If libjpeg-turbo reports an error or a warning, Pillow decodes the file, and only
Pillow's errors count. All other modes (palette, alpha, CMYK, grey, 16 bit, float) and line art are resized by Pillow,
with the same pixels as the reference. Where memory is scarcer than CPU, `ImageLimits.resize` has Pillow do it all.

With `jpeg_scaling` "fast" a plain JPEG that is at least four times as large as the result is scaled by libjpeg-turbo
while it is decoded. Its pixels are not within these bounds, but its vector hardly differs.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, Image, ImageOps, TiffImagePlugin

from embedding.image import jpeg
from embedding.image.decode_cost import block_scans
from embedding.image.elongated import resize_window
from embedding.image.refusal import refused, too_slow
from embedding.image.resample import Axis
from embedding.image_spec import JPEG_SCALINGS, ImageSpec, JpegScaling
from embedding.shown import shown

__all__ = [
    "ImageLimits",
    "ImageSpec",
    "limit_pillow",
    "load_resampler",
    "preprocess",
    "preprocess_shown",
    "reference_pixels",
    "resampling_module",
]

Pixels = npt.NDArray[np.uint8]
Resampler = Literal["torch", "pillow"]

PILLOW_MAX_PIXELS = 178_956_970
"""Twice Pillow's MAX_IMAGE_PIXELS. Above MAX_IMAGE_PIXELS Pillow warns, above this value it raises an error."""

ELONGATED_PIXELS = 16_000_000
"""If a resize would give more pixels than this, only those that the crop keeps are computed. Such pictures are very
elongated: 1×3000 is resized to 224×672000 before the crop."""

BASE_BYTES = 256 * 2**20
"""Memory for a picture in addition to its pixels: the file itself, and a resize to `ELONGATED_PIXELS`."""

MIN_SCAN_NS = 8.0
"""Lower bound of the CPU time for a block in a scan of a JPEG. The fastest kind, runs of empty blocks, takes 14 ns."""

FEW_LEVELS = 24
"""A sample with at most this number of different values counts as line art."""

# Formats that Pillow knows and that are not opened here. EPS is a program that Pillow passes to ghostscript; WMF is
# drawn by the operating system (on Windows only); the others have no decoder in Pillow, which refuses them as well.
UNSAFE_FORMATS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})

Image.init()
for unsafe in UNSAFE_FORMATS.intersection(Image.ID):
    # Removed for the whole process, because Pillow opens pictures that are embedded in some files (IPTC) as any format.
    Image.ID.remove(unsafe)
    del Image.OPEN[unsafe]
FORMATS = tuple(Image.ID)

# The default is a thread for each core. Here decoders run in parallel, and the CPU time of each picture is measured.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

# Pillow warns about many files (corrupt EXIF, over 89 megapixels, …). Pictures that are not acceptable are refused
# here, so its warnings are not needed. Set once for the whole process: warnings.catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What preparing one picture may cost.

    Args:
        max_pixels: width times height, of the picture and of a TIFF's tile; checked before anything is decoded.
        max_decode_s: CPU time for decoding and resizing, in seconds. `preprocess` refuses pictures whose header says
            that they take longer. Others are only stopped in a subprocess (see `embedding.image.subprocess_decoder`).
        jpeg_scaling: "exact" (the reference's pixels, within the bounds above), or "fast": large plain JPEGs are
            scaled while they are decoded, which costs a fraction of the time.
        resize: what resizes RGB pictures. "pillow" gives the reference's pixels of all that were not scaled, for up to
            twice the CPU time of "torch", whose import takes 160 to 290 MiB in each process that decodes.

    Raises:
        ValueError: `max_pixels` is below 1 or above `PILLOW_MAX_PIXELS`, `max_decode_s` is not positive and finite, or
            `jpeg_scaling` or `resize` is unknown.
    """

    max_pixels: int = PILLOW_MAX_PIXELS
    max_decode_s: float = 5.0
    jpeg_scaling: JpegScaling = "exact"
    resize: Resampler = "torch"

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= PILLOW_MAX_PIXELS:
            raise ValueError(f"max_pixels must be within 1..{PILLOW_MAX_PIXELS}, not {self.max_pixels}")
        if not 0 < self.max_decode_s < math.inf:
            raise ValueError(f"max_decode_s must be a positive number of seconds, not {self.max_decode_s}")
        if self.jpeg_scaling not in JPEG_SCALINGS:
            raise ValueError(f"jpeg_scaling must be one of {JPEG_SCALINGS}, not {self.jpeg_scaling!r}")
        if self.resize not in get_args(Resampler):
            raise ValueError(f"resize must be one of {get_args(Resampler)}, not {self.resize!r}")

    @property
    def max_bytes(self) -> int:
        """Memory for one picture. Decoders need up to 16 bytes for each pixel (JPEG 2000, progressive JPEG)."""
        return 16 * self.max_pixels + BASE_BYTES


DEFAULT_LIMITS = ImageLimits()


class _TooManyScans(Exception):
    """The scans of a JPEG alone would take more than `max_decode_s`."""


def preprocess(
    data: bytes, spec: ImageSpec, name: str, limits: ImageLimits = DEFAULT_LIMITS, into: Pixels | None = None
) -> Pixels:
    """Decodes, resizes and crops one picture, on the fast path where possible. Blocks. Thread-safe.

    Args:
        data: the file's bytes, of any format that Pillow decodes without running an external program.
        spec: the size and the resize mode that the model needs.
        name: URL or data URI, for the error message.
        limits: what the picture may cost.
        into: (3, height, width) uint8, C-contiguous, which gets the result; None = new memory.

    Returns:
        (3, height, width) uint8, RGB, C-contiguous: the reference's pixels before ToTensor. `into`, if that is given.

    Raises:
        SlowError: the header says that decoding would take more than `limits.max_decode_s`.
        MediaError: the picture cannot be decoded, or is too large.
    """
    return _as_media_error(_fast_pixels, data, spec, shown(name), limits, into)


def preprocess_shown(data: bytes, spec: ImageSpec, name: str, limits: ImageLimits) -> Pixels:
    """As `preprocess`, for a name that has passed `embedding.shown.shown` already."""
    return _as_media_error(_fast_pixels, data, spec, name, limits)


def reference_pixels(data: bytes, spec: ImageSpec, name: str, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """As `preprocess`, but with Pillow only: the reference, step by step."""
    return _as_media_error(_pillow_pixels, data, spec, shown(name), limits)


def resampling_module(limits: ImageLimits) -> str | None:
    """The module to be imported before the first picture, for which it would take seconds; None if there is none."""
    return "embedding.image.torch_resize" if limits.resize == "torch" else None


def load_resampler(limits: ImageLimits) -> None:
    """Imports what resizes pictures. A process that calls this decodes pictures side by side, or is one of several:
    torch gets one thread for each picture.
    """
    if module := resampling_module(limits):
        importlib.import_module(module).one_thread()


def limit_pillow(limits: ImageLimits) -> None:
    """Sets Pillow's own limit of pixels for this process to `limits.max_pixels`.

    This is needed because Pillow decodes some files (ICO) when it opens them, before `preprocess` can check the size.
    """
    # Pillow raises an error above twice this value, and its message states the double: a fraction makes it exact. Where
    # an integer is exact, it is compared ten times as quickly, for each picture.
    half, odd = divmod(limits.max_pixels, 2)
    Image.MAX_IMAGE_PIXELS = Fraction(limits.max_pixels, 2) if odd else half  # type: ignore[assignment]


def _as_media_error(
    pixels: Callable[[bytes, ImageSpec, ImageLimits], Pixels],
    data: bytes,
    spec: ImageSpec,
    name: str,
    limits: ImageLimits,
    into: Pixels | None = None,
) -> Pixels:
    """Stores the pixels, and turns any exception (OSError, SyntaxError, struct.error, MemoryError, …) into an error of
    this picture."""
    try:
        result = pixels(data, spec, limits)
        if into is None:
            return np.ascontiguousarray(result)
        np.copyto(into, result)
        return into
    except _TooManyScans as error:
        raise too_slow(name, limits) from error
    except Exception as error:
        raise refused(error, data, name) from error


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    """Opens a picture and checks its size. Nothing is decoded: decoding changes the size or mode of some formats, and
    the reference uses those of the header."""
    image = Image.open(BytesIO(data), formats=FORMATS)
    _check_pixels(image.width * image.height, limits)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiles(image, limits)
    if image.info.get("progressive") and block_scans(data) * MIN_SCAN_NS * 1e-9 > limits.max_decode_s:
        raise _TooManyScans
    return image


def _check_tiles(image: TiffImagePlugin.TiffImageFile, limits: ImageLimits) -> None:
    """Checks the size of a TIFF's tiles: libtiff allocates a whole tile, which may be larger than the picture."""
    width, height = (image.tag_v2.get(tag) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH))
    if isinstance(width, int) and isinstance(height, int):
        _check_pixels(width * height, limits)


def _check_pixels(pixels: int, limits: ImageLimits) -> None:
    if pixels > limits.max_pixels:
        raise Image.DecompressionBombError(f"{pixels} pixels exceed the limit of {limits.max_pixels} pixels")


def _resized(size: tuple[int, int], spec: ImageSpec) -> tuple[int, int]:
    """(width, height) after the resize, before the crop. Sources: torchvision's Resize, open_clip's ResizeKeepRatio."""
    width, height = size
    target_height, target_width = spec.size
    if spec.resize_mode == "squash":
        return target_width, target_height
    if spec.resize_mode == "shortest" and target_height == target_width:
        if width <= height:
            return target_width, int(target_width * height / width)
        return int(target_height * width / height), target_height
    ratios = height / target_height, width / target_width
    ratio = max(ratios) if spec.resize_mode == "longest" else min(ratios)
    return round(width / ratio), round(height / ratio)


def _interpolation(spec: ImageSpec) -> str:
    """The interpolation that open_clip uses: for mode "shortest" with a target that is not square it ignores its
    setting, and uses bicubic."""
    if spec.resize_mode == "shortest" and spec.size[0] != spec.size[1]:
        return "bicubic"
    return spec.interpolation


def _corner(source: int, target: int) -> int:
    """Start of the centre crop along an axis. Source: torchvision's center_crop, which rounds half to even."""
    return round((source - target) / 2.0)


def _fast_pixels(data: bytes, spec: ImageSpec, limits: ImageLimits) -> Pixels:
    image = _open(data, limits)
    size = _resized(image.size, spec)
    resizes = size != image.size and spec.resize_mode != "longest"
    if image.mode != "RGB" or not resizes or size[0] * size[1] > ELONGATED_PIXELS:
        return _pillow_steps(image, spec)
    divisor = jpeg.divisor(image, size) if limits.jpeg_scaling == "fast" else 1
    if divisor == 1 and limits.resize == "pillow":
        return _pillow_steps(image, spec)
    decoded = jpeg.decode(data, image, divisor) if divisor > 1 else _decode(data, image)
    if decoded is None:
        return _pillow_pixels(data, spec, limits)
    return _window(decoded, (image.width / divisor, image.height / divisor), size, spec, limits)


def _decode(data: bytes, image: Image.Image) -> Pixels | None:
    """Decodes to (H, W, 3 or 4) uint8; None if the picture must take the reference's path."""
    header = image.mode, image.size
    pixels = jpeg.decode(data, image)
    if pixels is None:
        pixels = np.array(image)
    # A few formats decode to another mode or size than their header states; the reference uses that of the header.
    return pixels if (image.mode, image.size) == header and not _few_levels(pixels) else None


def _few_levels(pixels: Pixels) -> bool:
    """Whether a sample of 32×32 pixels has at most `FEW_LEVELS` different values, as in line art.

    In such pictures most averages lie exactly between two levels, where torch's 16-bit weights and Pillow's 22-bit
    weights round differently: up to 70 % of the values differ by one, which is 1.2 % of the distance between pictures.
    """
    rows, columns = (-(-side // 32) for side in pixels.shape[:2])
    sample = pixels[::rows, ::columns, :3].ravel()
    return int(np.count_nonzero(np.bincount(sample, minlength=256))) <= FEW_LEVELS


def _window(
    pixels: Pixels, covered: tuple[float, float], size: tuple[int, int], spec: ImageSpec, limits: ImageLimits
) -> Pixels:
    """Resizes and crops decoded pixels.

    Args:
        pixels: (H, W, 3 or 4) uint8.
        covered: (width, height) of the picture in these pixels: of one that was scaled, the last column and row may
            be covered in part only.
        size: (width, height) after the resize.
        spec: the size after the crop, and the interpolation.
        limits: what resizes.
    """
    corner = _corner(size[1], spec.size[0]), _corner(size[0], spec.size[1])
    if limits.resize == "torch":
        from embedding.image import torch_resize  # see `load_resampler`

        return torch_resize.window(pixels, covered, size, corner, spec.size, _interpolation(spec))
    mode = "RGBX" if pixels.shape[2] == 4 else "RGB"
    image = Image.frombuffer(mode, (pixels.shape[1], pixels.shape[0]), pixels, "raw", mode, 0, 1)
    resized = image.resize(size, RESAMPLING[_interpolation(spec)], box=(0.0, 0.0, *covered))
    return np.asarray(_crop(resized, spec))[:, :, :3].transpose(2, 0, 1)


def _pillow_pixels(data: bytes, spec: ImageSpec, limits: ImageLimits) -> Pixels:
    return _pillow_steps(_open(data, limits), spec)


def _pillow_steps(image: Image.Image, spec: ImageSpec) -> Pixels:
    """open_clip's steps with Pillow: resize, pad, crop, and then convert to RGB."""
    width, height = _resized(image.size, spec)
    if width * height > ELONGATED_PIXELS:
        image = _resize_window(image, (width, height), spec)
    elif (width, height) != image.size:
        image = image.resize((width, height), RESAMPLING[_interpolation(spec)])
    return np.asarray(_rgb(_crop(_pad(image, spec), spec))).transpose(2, 0, 1)


def _resize_window(image: Image.Image, size: tuple[int, int], spec: ImageSpec) -> Image.Image:
    (width, height), (rows, columns) = size, spec.size
    return resize_window(
        image,
        Axis(image.height, height, _corner(height, rows), rows),
        Axis(image.width, width, _corner(width, columns), columns),
        _interpolation(spec),
    )


def _pad(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Pads a picture that is smaller than the target (mode "longest"). Source: open_clip's center_crop_or_pad."""
    rows, columns = max(spec.size[0] - image.height, 0), max(spec.size[1] - image.width, 0)
    if not rows and not columns:
        return image
    border = (columns // 2, rows // 2, columns - columns // 2, rows - rows // 2)
    bands = len(image.getbands())
    fill: int | tuple[int, ...] = spec.fill_color if bands == 1 else (spec.fill_color,) * bands
    padded = ImageOps.expand(image, border=border, fill=fill)
    palette = image.getpalette() if image.mode == "P" else None
    if palette is not None:
        padded.putpalette(palette)
    return padded


def _crop(image: Image.Image, spec: ImageSpec) -> Image.Image:
    rows, columns = spec.size
    if image.size == (columns, rows):
        return image
    top, left = _corner(image.height, rows), _corner(image.width, columns)
    return image.crop((left, top, left + columns, top + rows))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        # Alpha values of a palette: Pillow would warn, and drop them as well.
        del image.info["transparency"]
    return image.convert("RGB")
