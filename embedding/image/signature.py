"""Recognises the type of a file that Pillow cannot read as a picture, so that the error message can state it.

Input: the first bytes of a file. Output: its type (HTML page, HEIC picture, video, …) and what the client can do.

Only the type is reported and never the bytes themselves, since the client may not be allowed to read the URL.

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

SNIFFED_BYTES = 4096
"""Number of bytes of a file that are examined, and of the data that is compressed in it."""

_RESEND = "send it as a JPEG, PNG or WebP"
_CHECK_URL = "send a picture, or the address of one: a host may answer so where it refuses"
_MIN_BYTES = 12
MAX_PARTS = 1000
"""Maximum number of chunks or boxes of a picture that are followed to find its end."""

_SVG_NAME = "an SVG drawing"
_FRAME = "send one picture of it, as a JPEG, PNG or WebP"
_NO_ENCODING = "its host must send it as it is, without a Content-Encoding"
_COMPLETE = "its host must send it whole"
_NO_PICTURE = "only pictures are embedded"

# Offset, magic bytes, name, name of the format in Pillow ("" if Pillow has none).
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

# Offset, magic bytes, name, advice to the client.
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
    (0, b"\x28\xb5\x2f\xfd", "compressed (zstd), which nobody asked for", _NO_ENCODING),
    (0, b"BZh", "compressed (bzip2), which nobody asked for", _NO_ENCODING),
    (0, b"\xfd7zXZ\0", "compressed (xz), which nobody asked for", _NO_ENCODING),
)

_HEIC_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"))
_HEIF_BRANDS = frozenset((b"mif1", b"msf1", b"mif2", b"miaf"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_RIFFS = {b"AVI ": ("a video (AVI)", _FRAME), b"WAVE": ("audio (WAV)", _NO_PICTURE)}

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# The atomic group prevents backtracking, which would take exponential time on some hundred comments.
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
class FileType:
    """The type of a file.

    Args:
        what: completes the sentence "it is …".
        advice: what the client can do.
    """

    what: str
    advice: str

    def __str__(self) -> str:
        return f"it is {self.what}; {self.advice}"


def sniff(data: bytes) -> FileType:
    """The type of a file that Pillow cannot identify as a picture. Examines its first `SNIFFED_BYTES` bytes."""
    if not data:
        return FileType("empty (0 bytes)", "send a picture")
    return unsupported_format(data) or _truncated_picture(data) or _text_type(data) or _unknown_type(data)


def unsupported_format(data: bytes) -> FileType | None:
    """The type of a file whose signature is that of a format that is not decoded here; None for any other file."""
    if box := _media_box_type(data):
        return box
    if data.startswith(b"RIFF") and data[8:12] in _RIFFS:
        return FileType(*_RIFFS[data[8:12]])
    for name, pillow in _matching_signatures(data):
        return None if pillow in Image.OPEN else FileType(f"{name}, which is not decoded here", _RESEND)
    for offset, magic, what, advice in _OTHERS:
        if data.startswith(magic, offset):
            return FileType(what, advice)
    return _compressed_type(data)


def missing_bytes(data: bytes) -> int:
    """Lower bound of the number of bytes that are missing at the end of a file, from the length that it states itself.

    It is known for WebP, AVIF, JPEG 2000, PNG, BMP and TIFF; 0 for other formats and for complete files.
    """
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
        # The offset of its first directory, which has at least one entry of 12 bytes.
        stated = int.from_bytes(data[4:8], "little" if data[:1] == b"I" else "big") + 12
    return max(0, stated - len(data))


def _end_of_chunks(data: bytes) -> int:
    position = 8
    for _ in range(MAX_PARTS):
        if position >= len(data):
            return position + 12  # at least the chunk IEND is missing
        if data[position + 4 : position + 8] == b"IEND":
            return position + 12
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return 0


def _end_of_boxes(data: bytes) -> int:
    position = 0
    for _ in range(MAX_PARTS):
        if position >= len(data):
            break
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < 8:
            break  # a size of 0 means that the box extends to the end of the file
        position += size
    return position


def _matching_signatures(data: bytes) -> Iterator[tuple[str, str]]:
    """Name and Pillow's format of the first signature that matches."""
    for offset, magic, name, pillow in _PICTURES:
        if data.startswith(magic, offset):
            yield name, pillow
            return


def _media_box_type(data: bytes) -> FileType | None:
    """The type of an ISO base media file (HEIF, AVIF, MP4), from its brands; None for other files."""
    if data[4:8] != b"ftyp" or len(data) < _MIN_BYTES:
        return None
    end = min(int.from_bytes(data[:4], "big"), SNIFFED_BYTES)
    major = data[8:12]
    brands = {major, *(data[at : at + 4] for at in range(16, end, 4))}
    if major in _AVIF_BRANDS or (major in _HEIF_BRANDS and brands & _AVIF_BRANDS):
        return None if "AVIF" in Image.OPEN else FileType("an AVIF picture, which is not decoded here", _RESEND)
    if brands & _HEIC_BRANDS or major in _HEIF_BRANDS:
        return FileType("a HEIC or HEIF picture, which is not decoded here", _RESEND)
    if major == b"crx ":
        return FileType("a raw picture of a camera (CR3), which is not decoded here", _RESEND)
    if major in (b"M4A ", b"M4B "):
        return FileType("audio (MP4)", _NO_PICTURE)
    return FileType("a video (QuickTime)" if major == b"qt  " else "a video (MP4)", _FRAME)


def _compressed_type(data: bytes) -> FileType | None:
    """Recognises gzip, zlib and raw deflate data. Raw deflate has no signature, so it is recognised by its content."""
    gzip = data.startswith(b"\x1f\x8b\x08")
    wrapped = data[0] & 15 == 8 and data[0] >> 4 < 8 and int.from_bytes(data[:2], "big") % 31 == 0
    inner = _decompress(data, 31 if gzip else 15 if wrapped else -15)
    inner_name = _name(inner) if inner else None
    if gzip and inner_name == _SVG_NAME:
        return FileType("an SVG drawing, compressed (svgz), which is not decoded here", _RESEND)
    if gzip or (wrapped and inner) or inner_name:
        holding = f", and holds {inner_name}" if inner_name else ""
        name = "gzip" if gzip else "deflate"
        return FileType(f"compressed ({name}), which nobody asked for{holding}", _NO_ENCODING)
    return None


def _decompress(data: bytes, window: int) -> bytes:
    try:
        return zlib.decompressobj(window).decompress(data[:SNIFFED_BYTES], SNIFFED_BYTES)
    except zlib.error:
        return b""


def _name(data: bytes) -> str | None:
    """Name of the type of decompressed data; None if it is unknown or plain text."""
    if name := next((name for name, _ in _matching_signatures(data)), None):
        return name
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "a WebP"
    text = _text_start(data)
    return None if text is None else _markup_name(text)


def _truncated_picture(data: bytes) -> FileType | None:
    """Recognises a picture whose header Pillow cannot read, because it is truncated or damaged."""
    name = next((name for name, _ in _matching_signatures(data)), None)
    if data.startswith(b"RIFF") and b"WEBP".startswith(data[8:12]):
        name = "a WebP"
    elif data[4:8] == b"ftyp":
        name = "an AVIF" if len(data) >= _MIN_BYTES else "an AVIF, HEIC or video"
    elif data.startswith(b"BM"):
        name = "a BMP"
    elif name is None and len(data) < _MIN_BYTES and any(magic.startswith(data) for magic in _BEGINNINGS):
        return FileType(f"truncated: it has {len(data)} bytes", _COMPLETE)
    if name is None:
        return None
    missing = missing_bytes(data)
    problem = (
        f"truncated: at least {missing} bytes are missing" if missing else "truncated or damaged within its header"
    )
    return FileType(f"{problem} (it begins as {name}, and has {len(data)} bytes)", _COMPLETE)


def _text_type(data: bytes) -> FileType | None:
    text = _text_start(data)
    if text is None:
        return None
    kind = _markup_name(text)
    if kind == _SVG_NAME:
        return FileType(f"{kind}, which is not decoded here", _RESEND)
    if kind is None and (found := _BASE64.match(text)) and (inner_name := _base64_name(found[1])):
        return FileType(f"base64 text of {inner_name}", "send the bytes themselves, or the text as a data:image/… URI")
    return FileType(kind or "plain text", _CHECK_URL)


def _text_start(data: bytes) -> str | None:
    """The start of a text without leading white space; None if the bytes are not text."""
    start = data[:SNIFFED_BYTES]
    encoding = next((name for bom, name in _BOMS if start.startswith(bom)), "utf-8")
    text = codecs.getincrementaldecoder(encoding)("replace").decode(start)
    if _NOT_TEXT.search(text):
        # Markup in another encoding still has its tags in ASCII.
        text = start.decode("latin-1")
        if "\0" in text or _markup_name(text.lstrip()) is None:
            return None
    return text.lstrip("\ufeff \t\r\n\f")


def _markup_name(text: str) -> str | None:
    if _HTML.match(text):
        return "an HTML page"
    if _XML.match(text):
        return _SVG_NAME if _SVG.search(text) else "an XML document"
    if _JSON.match(text):
        return "JSON"
    return "a pointer of Git LFS, not the file itself" if text.startswith(_LFS) else None


def _base64_name(text: str) -> str | None:
    letters = re.sub(r"\s", "", text[:400])
    try:
        return _name(base64.b64decode(letters[: len(letters) // 4 * 4]))
    except binascii.Error:
        return None


def _unknown_type(data: bytes) -> FileType:
    if not any(data[:SNIFFED_BYTES]):
        return FileType(f"nothing but zeros where a picture begins ({len(data)} bytes)", _CHECK_URL)
    if len(data) < _MIN_BYTES:
        return FileType(f"too short for a picture, and probably truncated ({len(data)} bytes)", _COMPLETE)
    return FileType(f"of no format that is known here ({len(data)} bytes)", _RESEND)
