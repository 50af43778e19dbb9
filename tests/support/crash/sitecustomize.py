"""Imported by every Python with this folder on its path: teaches Pillow formats whose decoders have bugs."""

import ctypes
import time
from functools import partial

from PIL import Image, ImageFile


class Crashing(ImageFile.ImageFile):
    """Kills the process.

    By a fault of the decoding thread itself, as a bug would: a signal sent to the process is handled by its main thread
    (Ray's handler writes a long trace), and in the meantime this one would go on and answer.
    """

    format = "CRASH"

    def _open(self) -> None:
        ctypes.string_at(0)


class Endless(ImageFile.ImageFile):
    """Never comes back."""

    format = "ENDLESS"

    def _open(self) -> None:
        while True:
            time.sleep(1)


class Busy(ImageFile.ImageFile):
    """Never comes back either, and works."""

    format = "BUSY"

    def _open(self) -> None:
        while True:
            pass


class Hungry(ImageFile.ImageFile):
    """Wants ever more memory."""

    format = "HUNGRY"

    def _open(self) -> None:
        taken = []
        while True:
            taken.append(bytes(2**24))


def begins(magics: tuple[bytes, ...], prefix: bytes) -> bool:
    return prefix.startswith(magics)


for decoder in (Crashing, Endless, Busy, Hungry):
    magic = decoder.format.encode()
    # By itself, or as the comment with which a JPEG begins: those are decoded elsewhere.
    magics = magic, b"\xff\xd8\xff\xfe" + bytes([0, len(magic) + 2]) + magic
    Image.register_open(decoder.format, decoder, partial(begins, magics))
