"""A picture's bytes to the pixels that a model sees: open_clip's validation transform.

The reference is open_clip's `image_transform_v2(cfg, is_train=False)` up to, not including, ToTensor: resize,
crop, convert to RGB, in that order, on Pillow; no EXIF transposition; the first frame of an animation.

The fast path serves RGB pictures. It decodes plain JPEGs with libjpeg-turbo (Pillow's pixels, see `jpeg`) and
resizes with torch's vectorised code: within 2/255, on average within 0.05/255. Whatever that decoder as much as
warns about goes to Pillow, which alone refuses. Every other mode (palette, alpha, CMYK, grey, 16 bit, float),
and line art, takes Pillow's resize: identical pixels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import AvifImagePlugin, Image, ImageOps, TiffImagePlugin

from embedding.errors import MediaError
from embedding.image import jpeg
from embedding.image.decode_cost import block_scans
from embedding.image.elongated import resize_window
from embedding.image.refusal import reason, too_slow
from embedding.image.resample import Axis, columns_first
from embedding.image_spec import ImageSpec
from embedding.shown import shown

__all__ = [
    "ImageLimits",
    "ImageSpec",
    "limit_pillow",
    "preprocess",
    "preprocess_shown",
    "reference_pixels",
]

Pixels = npt.NDArray[np.uint8]

PILLOW_MAX_PIXELS = 178_956_970
"""Twice Pillow's MAX_IMAGE_PIXELS: where Pillow stops warning and refuses."""

ELONGATED_PIXELS = 16_000_000
"""A resize to more pixels than this computes only what the crop keeps (1×3000 becomes 224×672000 first)."""

BASE_BYTES = 256 * 2**20
"""Memory for a picture beyond its pixels: the file itself, and a resize to ELONGATED_PIXELS."""

LEAST_SCAN_NS = 8.0
"""Of CPU, for a block in a scan of a JPEG. The quickest kind, runs of empty blocks, takes 14 on an AMD EPYC."""

FEW_LEVELS = 24

# Formats that Pillow names and we do not open. EPS is a program that Pillow hands to ghostscript; WMF is drawn by
# the system (on Windows only); the others are stubs without a decoder, which Pillow refuses as well.
UNSAFE_FORMATS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})

Image.init()
for unsafe in UNSAFE_FORMATS.intersection(Image.ID):
    # For the whole process: Pillow opens what it finds inside some files (IPTC) as any format that it knows.
    Image.ID.remove(unsafe)
    del Image.OPEN[unsafe]
FORMATS = tuple(Image.ID)

# As many threads as cores for each picture otherwise: decoders run side by side, and their time is counted.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

# Strangers' files make Pillow warn (corrupt EXIF, over 89 megapixels, …). What matters is refused here, the rest
# is noise. Once for the whole process: warnings.catch_warnings is not safe among threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a picture may cost.

    Args:
        max_pixels: width times height, and of a TIFF's tile too, read from the header before anything is decoded.
        max_decode_s: seconds of CPU for decoding and resizing. `preprocess` refuses what the header tells; the rest can
            only be ended from outside (see `apart`).

    Raises:
        ValueError: pixels below 1 or above Pillow's own limit, which stays in force; no time.
    """

    max_pixels: int = PILLOW_MAX_PIXELS
    max_decode_s: float = 5.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= PILLOW_MAX_PIXELS:
            raise ValueError(f"max_pixels must be within 1..{PILLOW_MAX_PIXELS}, not {self.max_pixels}")
        if not 0 < self.max_decode_s < math.inf:
            raise ValueError(f"max_decode_s must be a positive number of seconds, not {self.max_decode_s}")

    @property
    def max_bytes(self) -> int:
        """Memory for one picture. The hungriest decoders (JPEG 2000, progressive JPEG) hold 16 bytes for a pixel."""
        return 16 * self.max_pixels + BASE_BYTES


DEFAULT_LIMITS = ImageLimits()


class _TooManyScans(Exception):
    """A JPEG whose scans alone would take too long."""


def preprocess(data: bytes, spec: ImageSpec, name: str, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """Decode and resize one picture, by the quickest way that keeps to the reference. Safe among threads.

    Args:
        data: the file's bytes, of any format that Pillow decodes without running a program.
        spec: what the model wants.
        name: URL or data URI, for the error message.
        limits: what the picture may cost.

    Returns:
        (3, height, width) uint8, C-contiguous: what the reference has just before ToTensor.

    Raises:
        SlowError: the header says that it would take too long.
        MediaError: the picture cannot be decoded, or is too large.
    """
    return preprocess_shown(data, spec, shown(name), limits)


def preprocess_shown(data: bytes, spec: ImageSpec, name: str, limits: ImageLimits) -> Pixels:
    """As `preprocess`, with a name that is fit for a message."""
    return _explained(_quick_pixels, data, spec, name, limits)


def reference_pixels(data: bytes, spec: ImageSpec, name: str, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """As `preprocess`, by Pillow alone: open_clip's transform step by step."""
    return _explained(_pillow_pixels, data, spec, shown(name), limits)


def limit_pillow(limits: ImageLimits) -> None:
    """Lowers Pillow's own limit, for this process, to one that all of its pictures are decoded under.

    Pillow decodes some files (ICO) as it opens them, before `preprocess` can look at a size.
    """
    # Where Pillow warns; at twice as much it refuses. A fraction, since its message shows what twice as much is.
    Image.MAX_IMAGE_PIXELS = Fraction(limits.max_pixels, 2)  # type: ignore[assignment]


def _explained(
    pixels: Callable[[bytes, ImageSpec, ImageLimits], Pixels],
    data: bytes,
    spec: ImageSpec,
    name: str,
    limits: ImageLimits,
) -> Pixels:
    """Whatever goes wrong (OSError, SyntaxError, struct.error, MemoryError, …) is this picture's fault."""
    try:
        return pixels(data, spec, limits)
    except _TooManyScans as error:
        raise too_slow(name, limits) from error
    except Exception as error:
        raise MediaError(reason(error, data, name)) from error


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    """Read the header only: decoding changes size or mode of some formats, and the reference asks before it."""
    image = Image.open(BytesIO(data), formats=FORMATS)
    _check_pixels(image.width * image.height, limits)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiles(image, limits)
    if image.info.get("progressive") and block_scans(data) * LEAST_SCAN_NS * 1e-9 > limits.max_decode_s:
        raise _TooManyScans
    return image


def _check_tiles(image: TiffImagePlugin.TiffImageFile, limits: ImageLimits) -> None:
    """libtiff makes room for a whole tile, which may be larger than the picture."""
    width, height = (image.tag_v2.get(tag) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH))
    if isinstance(width, int) and isinstance(height, int):
        _check_pixels(width * height, limits)


def _check_pixels(pixels: int, limits: ImageLimits) -> None:
    if pixels > limits.max_pixels:
        raise Image.DecompressionBombError(f"{pixels} pixels exceed the limit of {limits.max_pixels} pixels")


def _resized(size: tuple[int, int], spec: ImageSpec) -> tuple[int, int]:
    """(width, height) before the crop. Sources: torchvision's Resize, open_clip's ResizeKeepRatio."""
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
    """open_clip does not pass it on where the shortest edge meets a target that is not square: bicubic then."""
    if spec.resize_mode == "shortest" and spec.size[0] != spec.size[1]:
        return "bicubic"
    return spec.interpolation


def _corner(have: int, want: int) -> int:
    """Where the centre crop starts. Source: torchvision's center_crop, which rounds half to even."""
    return round((have - want) / 2.0)


def _planes(pixels: Pixels) -> Pixels:
    """(H, W, 3) to (3, H, W), C-contiguous."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _quick_pixels(data: bytes, spec: ImageSpec, limits: ImageLimits) -> Pixels:
    image = _open(data, limits)
    size = _resized(image.size, spec)
    resizes = size != image.size and spec.resize_mode != "longest"
    if image.mode != "RGB" or not resizes or size[0] * size[1] > ELONGATED_PIXELS:
        return _pillow_steps(image, spec)
    decoded = _decoded(data, image)
    return _pillow_pixels(data, spec, limits) if decoded is None else _torch_steps(decoded, size, spec)


def _decoded(data: bytes, image: Image.Image) -> Pixels | None:
    """(H, W, 3 or 4), or None where only the reference will do."""
    header = image.mode, image.size
    pixels = jpeg.decode(data, image)
    if pixels is None:
        pixels = np.array(image)
    # A few formats decode to what their header did not say; the reference goes by the header.
    return pixels if (image.mode, image.size) == header and not _few_levels(pixels) else None


def _few_levels(pixels: Pixels) -> bool:
    """Whether a grid of 32×32 pixels holds next to no values, as line art and patterns of two colours do.

    Their averages lie exactly between two levels almost everywhere, where torch's 16-bit weights round otherwise
    than Pillow's 22-bit ones: off by one in up to 70 % of the values, 1.2 % of the distance between pictures.
    """
    rows, columns = (-(-side // 32) for side in pixels.shape[:2])
    sample = pixels[::rows, ::columns, :3].ravel()
    return int(np.count_nonzero(np.bincount(sample, minlength=256))) <= FEW_LEVELS


def _torch_steps(pixels: Pixels, size: tuple[int, int], spec: ImageSpec) -> Pixels:
    """Resize and crop. torch's uint8 resize is Pillow's algorithm with 16-bit weights, rows always first."""
    (width, height), (rows, columns) = size, spec.size
    top, left = _corner(height, rows), _corner(width, columns)
    # A channels-last batch of one is the layout for which torch has vectorised code.
    batch = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    if columns_first((pixels.shape[1], pixels.shape[0]), size):
        batch = _interpolate(batch, (pixels.shape[1], height), spec)
    batch = _interpolate(batch, size, spec)
    return np.ascontiguousarray(batch[0, :3, top : top + rows, left : left + columns].numpy())


def _interpolate(batch: torch.Tensor, size: tuple[int, int], spec: ImageSpec) -> torch.Tensor:
    return torch.nn.functional.interpolate(
        batch, (size[1], size[0]), mode=_interpolation(spec), align_corners=False, antialias=True
    )


def _pillow_pixels(data: bytes, spec: ImageSpec, limits: ImageLimits) -> Pixels:
    return _pillow_steps(_open(data, limits), spec)


def _pillow_steps(image: Image.Image, spec: ImageSpec) -> Pixels:
    """open_clip's steps on Pillow: resize, crop or pad, and only then convert to RGB."""
    width, height = _resized(image.size, spec)
    if width * height > ELONGATED_PIXELS:
        image = _resize_window(image, (width, height), spec)
    elif (width, height) != image.size:
        image = image.resize((width, height), RESAMPLING[_interpolation(spec)])
    return _planes(np.asarray(_rgb(_crop(_pad(image, spec), spec))))


def _resize_window(image: Image.Image, size: tuple[int, int], spec: ImageSpec) -> Image.Image:
    (width, height), (rows, columns) = size, spec.size
    return resize_window(
        image,
        Axis(image.height, height, _corner(height, rows), rows),
        Axis(image.width, width, _corner(width, columns), columns),
        _interpolation(spec),
    )


def _pad(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Borders for what is smaller than the target ("longest"). Source: open_clip's center_crop_or_pad."""
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
        # Alpha per palette entry: Pillow warns, and drops it too.
        del image.info["transparency"]
    return image.convert("RGB")
