"""What bytes are that Pillow cannot read as a picture, told by how they begin, so that a message can say it.

Only the kind is told, never what the bytes say: who asks for a picture need not be allowed to read a page.

Sources: WHATWG's MIME Sniffing Standard (texts, media, archives); ISO/IEC 14496-12 (boxes and brands), 23008-12 (HEIF);
the AVIF specification of AOM; ISO/IEC 18181-2 (JPEG XL); RFC 1950, 1952 and 8878 (zlib, gzip, zstd); ISO 32000 (PDF);
RFC 8794 (EBML); Google's RIFF container of WebP; the W3C's PNG specification; makers' notes for raw files.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

LOOKED_AT = 4096
"""Bytes of a file, and of what is compressed in it."""

_RESEND = "send it as a JPEG, PNG or WebP"
_ADDRESS = "send a picture, or the address of one: a host may answer so where it refuses"
_SHORT = 12
MOST_PARTS = 1000
"""Of a picture, which are gone through to see where it ends."""

_SVG_NAME = "an SVG drawing"
_FRAME = "send one picture of it, as a JPEG, PNG or WebP"
_PLAIN = "its host must send it as it is, without a Content-Encoding"
_WHOLE = "its host must send it whole"
_NO_PICTURE = "only pictures are embedded"

# Offset, bytes, name, format of Pillow.
_PICTURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\xff\x0a", "a JPEG XL", ""),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL", ""),
    (0, b"\xff\xd8\xff\xf7", "a JPEG-LS", ""),
    (0, b"\xff\xd8\xff", "a JPEG", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG", "PNG"),
    (0, b"GIF87a", "a GIF", "GIF"),
    (0, b"GIF89a", "a GIF", "GIF"),
    (0, b"II*\0\x10\0\0\0CR", "a raw picture of a camera (CR2)", "TIFF"),
    (0, b"II*\0", "a TIFF", "TIFF"),
    (0, b"MM\0*", "a TIFF", "TIFF"),
    (0, b"II+\0", "a BigTIFF", "TIFF"),
    (0, b"MM\0+", "a BigTIFF", "TIFF"),
    (0, b"II\xbc\x01", "a JPEG XR", ""),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000", "JPEG2000"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000", "JPEG2000"),
    (0, b"qoif", "a QOI", "QOI"),
    (0, b"\0\0\x01\0", "an icon (ICO)", "ICO"),
    (0, b"icns", "an icon (ICNS)", "ICNS"),
    (0, b"8BPS", "a Photoshop file (PSD)", "PSD"),
    (0, b"DDS ", "a DDS texture", "DDS"),
    (0, b"FUJIFILMCCD-RAW", "a raw picture of a camera (RAF)", ""),
    (0, b"IIRO", "a raw picture of a camera (ORF)", ""),
    (0, b"IIRS", "a raw picture of a camera (ORF)", ""),
    (0, b"MMOR", "a raw picture of a camera (ORF)", ""),
    (0, b"IIU\0", "a raw picture of a camera (RW2)", ""),
    (0, b"FOVb", "a raw picture of a camera (X3F)", ""),
    (0, b"\0MRM", "a raw picture of a camera (MRW)", ""),
    (0, b"II\x1a\0\0\0HEAPCCDR", "a raw picture of a camera (CRW)", ""),
    (0, b"gimp xcf", "a picture of GIMP (XCF)", ""),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR", ""),
    (0, b"#?RADIANCE", "a Radiance HDR", ""),
    (0, b"AT&TFORM", "a DjVu", ""),
    (0, b"BPG\xfb", "a BPG", ""),
    (0, b"FLIF", "a FLIF", ""),
    (0, b"%!PS", "a PostScript file, which is a program", ""),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript file, which is a program", ""),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)", ""),
    (40, b" EMF", "a Windows metafile (EMF)", ""),
)

_BEGINNINGS = (b"RIFF", *(magic for offset, magic, _, _ in _PICTURES if not offset))

# Offset, bytes, name, what to do.
_OTHERS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"%PDF-", "a PDF document", _FRAME),
    (0, b"\x1a\x45\xdf\xa3", "a video (WebM or Matroska)", _FRAME),
    (4, b"moov", "a video (QuickTime)", _FRAME),
    (4, b"mdat", "a video (QuickTime)", _FRAME),
    (4, b"wide", "a video (QuickTime)", _FRAME),
    (0, b"\0\0\x01\xba", "a video (MPEG)", _FRAME),
    (0, b"\0\0\x01\xb3", "a video (MPEG)", _FRAME),
    (0, b"FLV\x01", "a video (Flash)", _FRAME),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a video (Windows Media)", _FRAME),
    (0, b"OggS", "audio or video (Ogg)", _FRAME),
    (0, b"ID3", "audio (MP3)", _NO_PICTURE),
    (0, b"\xff\xfb", "audio (MP3)", _NO_PICTURE),
    (0, b"fLaC", "audio (FLAC)", _NO_PICTURE),
    (0, b"PK\x03\x04", "a ZIP archive", _NO_PICTURE),
    (0, b"PK\x05\x06", "a ZIP archive", _NO_PICTURE),
    (0, b"Rar!\x1a\x07", "a RAR archive", _NO_PICTURE),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _NO_PICTURE),
    (257, b"ustar", "a tar archive", _NO_PICTURE),
    (0, b"wOF2", "a font (WOFF2)", _NO_PICTURE),
    (0, b"wOFF", "a font (WOFF)", _NO_PICTURE),
    (0, b"\x7fELF", "a program", _NO_PICTURE),
    (0, b"\x28\xb5\x2f\xfd", "compressed (zstd), which nobody asked for", _PLAIN),
    (0, b"BZh", "compressed (bzip2), which nobody asked for", _PLAIN),
    (0, b"\xfd7zXZ\0", "compressed (xz), which nobody asked for", _PLAIN),
)

_HEIC_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"))
_HEIF_BRANDS = frozenset((b"mif1", b"msf1", b"mif2", b"miaf"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_RIFFS = {b"AVI ": ("a video (AVI)", _FRAME), b"WAVE": ("audio (WAV)", _NO_PICTURE)}

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# Comments are taken one by one and for good: tried in every way, some hundred would take for ever.
_HTML = re.compile(
    r"(?><!--.*?-->\s*)*+<(!doctype html|html|head|body|script|title|meta|link|style|div|table|h1|p|a|iframe|br)[\s>/]",
    re.IGNORECASE | re.DOTALL,
)
_SVG = re.compile(r"<(\w+:)?svg[\s>/]", re.IGNORECASE)
_XML = re.compile(r"<(\?xml|!doctype|!--|[a-z_][\w:.-]*[\s>/])", re.IGNORECASE)
_JSON = re.compile(r'[\[{]\s*(["\[{\]}\d-]|true|false|null)')
_BASE64 = re.compile(r"(?:data:[^,]{0,100};base64,)?([A-Za-z0-9+/\r\n]{24,})")
_NOT_TEXT = re.compile("[\0-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]")
_LFS = "version https://git-lfs.github.com/spec/"


@dataclass(frozen=True, slots=True)
class Found:
    """What bytes are.

    Args:
        what: completes "it is …".
        advice: what to do about it.
    """

    what: str
    advice: str

    def __str__(self) -> str:
        return f"it is {self.what}; {self.advice}"


def sniffed(data: bytes) -> Found:
    """What bytes are that cannot be identified as a picture. Looks at `LOOKED_AT` of them."""
    if not data:
        return Found("empty (0 bytes)", "send a picture")
    return foreign(data) or _broken(data) or _text(data) or _unknown(data)


def foreign(data: bytes) -> Found | None:
    """What bytes are whose signature is one that no decoder here takes; None of others."""
    if box := _box(data):
        return box
    if data.startswith(b"RIFF") and data[8:12] in _RIFFS:
        return Found(*_RIFFS[data[8:12]])
    for name, pillow in _matching(data):
        return None if pillow in Image.OPEN else Found(f"{name}, which is not decoded here", _RESEND)
    for offset, magic, what, advice in _OTHERS:
        if data.startswith(magic, offset):
            return Found(what, advice)
    return _deflated(data)


def missing_bytes(data: bytes) -> int:
    """How many bytes a WebP, AVIF, JPEG 2000, PNG, BMP or TIFF lacks, at least, by what it says of its own length."""
    stated = 0
    if data.startswith(b"RIFF"):
        stated = 8 + int.from_bytes(data[4:8], "little")
    elif data.startswith(b"BM"):
        stated = int.from_bytes(data[2:6], "little")
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        stated = _end_of_chunks(data)
    elif data[4:8] in (b"ftyp", b"jP  "):
        stated = _end_of_boxes(data)
    elif data[:4] in (b"II*\0", b"MM\0*"):
        # Where its directory is, of which each entry takes 12 bytes.
        stated = int.from_bytes(data[4:8], "little" if data[:1] == b"I" else "big") + 12
    return max(0, stated - len(data))


def _end_of_chunks(data: bytes) -> int:
    position = 8
    for _ in range(MOST_PARTS):
        if position >= len(data):
            return position + 12  # at least IEND is missing
        if data[position + 4 : position + 8] == b"IEND":
            return position + 12
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return 0


def _end_of_boxes(data: bytes) -> int:
    position = 0
    for _ in range(MOST_PARTS):
        if position >= len(data):
            break
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < 8:
            break  # 0: up to the end of the file
        position += size
    return position


def _matching(data: bytes) -> Iterator[tuple[str, str]]:
    """Name and Pillow's name of the first signature that fits."""
    for offset, magic, name, pillow in _PICTURES:
        if data.startswith(magic, offset):
            yield name, pillow
            return


def _box(data: bytes) -> Found | None:
    """An ISO base media file, by its brands."""
    if data[4:8] != b"ftyp" or len(data) < _SHORT:
        return None
    end = min(int.from_bytes(data[:4], "big"), LOOKED_AT)
    major = data[8:12]
    brands = {major, *(data[at : at + 4] for at in range(16, end, 4))}
    if major in _AVIF_BRANDS or (major in _HEIF_BRANDS and brands & _AVIF_BRANDS):
        return None if "AVIF" in Image.OPEN else Found("an AVIF picture, which is not decoded here", _RESEND)
    if brands & _HEIC_BRANDS or major in _HEIF_BRANDS:
        return Found("a HEIC or HEIF picture, which is not decoded here", _RESEND)
    if major == b"crx ":
        return Found("a raw picture of a camera (CR3), which is not decoded here", _RESEND)
    if major in (b"M4A ", b"M4B "):
        return Found("audio (MP4)", _NO_PICTURE)
    return Found("a video (QuickTime)" if major == b"qt  " else "a video (MP4)", _FRAME)


def _deflated(data: bytes) -> Found | None:
    """What gzip, zlib and raw deflate hold. The last has no signature, so it is told by what is in it."""
    gzip = data.startswith(b"\x1f\x8b\x08")
    wrapped = data[0] & 15 == 8 and data[0] >> 4 < 8 and int.from_bytes(data[:2], "big") % 31 == 0
    inner = _inflated(data, 31 if gzip else 15 if wrapped else -15)
    held = _kind(inner) if inner else None
    if gzip and held == _SVG_NAME:
        return Found("an SVG drawing, compressed (svgz), which is not decoded here", _RESEND)
    if gzip or (wrapped and inner) or held:
        holding = f", and holds {held}" if held else ""
        name = "gzip" if gzip else "deflate"
        return Found(f"compressed ({name}), which nobody asked for{holding}", _PLAIN)
    return None


def _inflated(data: bytes, window: int) -> bytes:
    try:
        return zlib.decompressobj(window).decompress(data[:LOOKED_AT], LOOKED_AT)
    except zlib.error:
        return b""


def _kind(data: bytes) -> str | None:
    """Name of a picture or text that has one of its own."""
    if name := next((name for name, _ in _matching(data)), None):
        return name
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "a WebP"
    text = _decoded(data)
    return None if text is None else _text_kind(text)


def _broken(data: bytes) -> Found | None:
    """A picture whose header Pillow cannot read."""
    name = next((name for name, _ in _matching(data)), None)
    if data.startswith(b"RIFF") and b"WEBP".startswith(data[8:12]):
        name = "a WebP"
    elif data[4:8] == b"ftyp":
        name = "an AVIF" if len(data) >= _SHORT else "an AVIF, HEIC or video"
    elif data.startswith(b"BM"):
        name = "a BMP"
    elif name is None and len(data) < _SHORT and any(magic.startswith(data) for magic in _BEGINNINGS):
        return Found(f"truncated: it has {len(data)} bytes", _WHOLE)
    if name is None:
        return None
    missing = missing_bytes(data)
    lacking = (
        f"truncated: at least {missing} bytes are missing" if missing else "truncated or damaged within its header"
    )
    return Found(f"{lacking} (it begins as {name}, and has {len(data)} bytes)", _WHOLE)


def _text(data: bytes) -> Found | None:
    text = _decoded(data)
    if text is None:
        return None
    kind = _text_kind(text)
    if kind == _SVG_NAME:
        return Found(f"{kind}, which is not decoded here", _RESEND)
    if kind is None and (found := _BASE64.match(text)) and (held := _in_base64(found[1])):
        return Found(f"base64 text of {held}", "send the bytes themselves, or the text as a data:image/… URI")
    return Found(kind or "plain text", _ADDRESS)


def _decoded(data: bytes) -> str | None:
    """The beginning of a text, without white space; None of what is none."""
    start = data[:LOOKED_AT]
    encoding = next((name for bom, name in _BOMS if start.startswith(bom)), "utf-8")
    text = codecs.getincrementaldecoder(encoding)("replace").decode(start)
    if _NOT_TEXT.search(text):
        # Markup in an older encoding is ASCII where it matters.
        text = start.decode("latin-1")
        if "\0" in text or _text_kind(text.lstrip()) is None:
            return None
    return text.lstrip("\ufeff \t\r\n\f")


def _text_kind(text: str) -> str | None:
    if _HTML.match(text):
        return "an HTML page"
    if _XML.match(text):
        return _SVG_NAME if _SVG.search(text) else "an XML document"
    if _JSON.match(text):
        return "JSON"
    return "a pointer of Git LFS, not the file itself" if text.startswith(_LFS) else None


def _in_base64(text: str) -> str | None:
    letters = re.sub(r"\s", "", text[:400])
    try:
        return _kind(base64.b64decode(letters[: len(letters) // 4 * 4]))
    except binascii.Error:
        return None


def _unknown(data: bytes) -> Found:
    if not any(data[:LOOKED_AT]):
        return Found(f"nothing but zeros where a picture begins ({len(data)} bytes)", _ADDRESS)
    if len(data) < _SHORT:
        return Found(f"too short for a picture, and probably truncated ({len(data)} bytes)", _WHOLE)
    return Found(f"of no format that is known here ({len(data)} bytes)", _RESEND)
