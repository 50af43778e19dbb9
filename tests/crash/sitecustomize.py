"""Imported by every Python with this folder on its path: teaches Pillow two formats whose decoders have bugs."""

import os
import signal
import time

from PIL import Image, ImageFile


class Crashing(ImageFile.ImageFile):
    """Kills the process."""

    format = "CRASH"

    def _open(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class Endless(ImageFile.ImageFile):
    """Never comes back."""

    format = "ENDLESS"

    def _open(self) -> None:
        while True:
            time.sleep(1)


for decoder in (Crashing, Endless):
    magic = decoder.format.encode()
    Image.register_open(decoder.format, decoder, lambda prefix, magic=magic: prefix.startswith(magic))
