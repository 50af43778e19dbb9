"""Imported by every Python with this folder on its path: teaches Pillow a format whose decoder kills its process."""

import os
import signal

from PIL import Image, ImageFile

MAGIC = b"CRASH"


class Crashing(ImageFile.ImageFile):
    """Stands for a decoder with a bug that an attacker has found."""

    format = "CRASH"

    def _open(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


Image.register_open("CRASH", Crashing, lambda prefix: prefix.startswith(MAGIC))
