"""What is said of bytes that are no picture, or one that is not decoded here."""

from __future__ import annotations

import base64
import bz2
import gzip
import lzma
import re
import time
import zipfile
import zlib
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.lib.photo import encoded, jpeg, photo
from embedding.errors import MediaError
from embedding.image.pixels import ImageSpec, preprocess
from embedding.image.signature import sniff
from tests.support import corpus

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

SPEC = ImageSpec((32, 32), (0.5,) * 3, (0.5,) * 3)
JPEG = jpeg(photo(1, 60, 50))
WEBP = encoded(photo(1, 9, 9), "WEBP")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"><rect/></svg>'
HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>secret</body></html>"


def box(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + kind + content


def media(brand: bytes, *compatible: bytes) -> bytes:
    """The beginning of an ISO base media file, and a box of data."""
    return box(b"ftyp", brand + bytes(4) + b"".join((brand, *compatible))) + box(b"mdat", bytes(500))


def raw_deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def zipped() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", JPEG)
    return file.getvalue()


# (what, bytes, what the message says that it is)
FOREIGN = [
    ("empty", b"", r"empty \(0 bytes\)"),
    ("html", HTML, "an HTML page"),
    ("html with white space", b"\xef\xbb\xbf\r\n\t <html lang=en>", "an HTML page"),
    ("html after a comment", b"<!-- generated -->\n<!-- twice -->\n<HTML>", "an HTML page"),
    ("a fragment", b"<h1>404 Not Found</h1>", "an HTML page"),
    ("html in utf-16", "\ufeff<html><body>ä</body>".encode("utf-16-le"), "an HTML page"),
    ("html in latin-1", b"<html><title>\xe4\xf6\xfc</title>", "an HTML page"),
    ("html cut off", HTML[:40], "an HTML page"),
    ("xml", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
    ("xml without a head", b"<Error><Code>NoSuchKey</Code></Error>", "an XML document"),
    ("json", b'{"error": "not found"}', "JSON"),
    ("json list", b' [ {"a": 1} ]', "JSON"),
    ("text", b"403 Forbidden: hotlinking is not allowed", "plain text"),
    ("text of the world", "Zugriff verweigert, Schlüssel läuft ab".encode(), "plain text"),
    ("text that is cut within a letter", ("ä" * 5000).encode()[:4096], "plain text"),
    ("git lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n", "a pointer of Git LFS"),
    ("base64", base64.b64encode(JPEG), "base64 text of a JPEG"),
    ("base64 in lines", base64.encodebytes(encoded(photo(1, 9, 9), "PNG")), "base64 text of a PNG"),
    ("a data uri", b"data:image/webp;base64," + base64.b64encode(WEBP), "base64 text of a WebP"),
    ("svg", SVG, "an SVG drawing"),
    ("svg with a head", b'<?xml version="1.0"?>\n<!-- x -->\n<!DOCTYPE svg>' + SVG, "an SVG drawing"),
    ("svg with a prefix", b"<?xml version='1.0'?><svg:svg xmlns:svg='x'>", "an SVG drawing"),
    ("an empty svg", b"<svg/>", "an SVG drawing"),
    ("svgz", gzip.compress(SVG), r"an SVG drawing, compressed \(svgz\)"),
    ("gzip", gzip.compress(JPEG), r"compressed \(gzip\), which nobody asked for, and holds a JPEG"),
    ("gzip of a page", gzip.compress(HTML), r"compressed \(gzip\).* and holds an HTML page"),
    ("gzip of who knows", gzip.compress(bytes(100)), r"compressed \(gzip\), which nobody asked for;"),
    ("gzip cut off", gzip.compress(JPEG)[:12], r"compressed \(gzip\)"),
    ("zlib", zlib.compress(JPEG), r"compressed \(deflate\), which nobody asked for, and holds a JPEG"),
    ("zlib, fast", zlib.compress(JPEG, 1), r"compressed \(deflate\).* and holds a JPEG"),
    ("deflate", raw_deflated(JPEG), r"compressed \(deflate\).* and holds a JPEG"),
    ("deflate of a page", raw_deflated(HTML * 50), r"compressed \(deflate\).* and holds an HTML page"),
    ("zstd", b"\x28\xb5\x2f\xfd\x04\x00" + bytes(50), r"compressed \(zstd\)"),
    ("bzip2", bz2.compress(JPEG), r"compressed \(bzip2\)"),
    ("xz", lzma.compress(JPEG), r"compressed \(xz\)"),
    ("zip", zipped(), "a ZIP archive"),
    ("heic", media(b"heic", b"mif1"), "a HEIC or HEIF picture"),
    ("heix", media(b"heix", b"mif1", b"heix"), "a HEIC or HEIF picture"),
    ("heif by its compatible brand", media(b"mif1", b"heic", b"miaf"), "a HEIC or HEIF picture"),
    ("heif sequence", media(b"msf1", b"hevc"), "a HEIC or HEIF picture"),
    ("jpeg xl", b"\xff\x0a\x7f\x00" + bytes(40), "a JPEG XL"),
    ("jpeg xl in boxes", b"\0\0\0\x0cJXL \r\n\x87\n" + media(b"jxl "), "a JPEG XL"),
    ("jpeg xr", b"II\xbc\x01\x08\0\0\0" + bytes(40), "a JPEG XR"),
    ("pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "a PDF document"),
    ("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript file"),
    ("mp4", media(b"isom", b"iso2", b"avc1", b"mp41"), r"a video \(MP4\)"),
    ("mov", media(b"qt  "), r"a video \(QuickTime\)"),
    ("webm", b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\x82\x84webm", r"a video \(WebM or Matroska\)"),
    ("avi", b"RIFF\x24\x00\x00\x00AVI LIST" + bytes(20), r"a video \(AVI\)"),
    ("wav", b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(20), r"audio \(WAV\)"),
    ("mp3", b"ID3\x04" + bytes(40), r"audio \(MP3\)"),
    ("cr3", media(b"crx ", b"crx ", b"isom"), r"a raw picture of a camera \(CR3\)"),
    ("raf", b"FUJIFILMCCD-RAW 0201FF119502" + bytes(40), r"a raw picture of a camera \(RAF\)"),
    ("orf", b"IIRO\x08\0\0\0" + bytes(40), r"a raw picture of a camera \(ORF\)"),
    ("rw2", b"IIU\0\x18\0\0\0" + bytes(40), r"a raw picture of a camera \(RW2\)"),
    ("zeros", bytes(1000), "nothing but zeros"),
    ("noise", bytes(range(128, 256)) * 5, "of no format that is known here"),
]  # fmt: skip


def decoding_refusal(data: bytes) -> str:
    with pytest.raises(MediaError) as caught:
        preprocess(data, SPEC, "https://example.com/a.jpg")
    return caught.value.message


@pytest.mark.parametrize(("data", "says"), [row[1:] for row in FOREIGN], ids=[row[0] for row in FOREIGN])
def test_what_is_no_picture_is_named(data: bytes, says: str) -> None:
    message = decoding_refusal(data)
    begins, _, told = message.partition(": it is ")
    assert begins == "cannot identify image file `https://example.com/a.jpg`"
    assert re.match(says, told)
    assert "; " in told  # and what to do


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "JPEG2000", "QOI"])
def test_a_picture_that_is_cut_off_is_said_to_be_truncated(form: str) -> None:
    data = encoded(photo(2, 150, 110), form)
    for length in (2, 5, 11, 20, 30, len(data) // 10, len(data) // 2, len(data) * 9 // 10):
        message = decoding_refusal(data[:length])
        assert "truncated" in message, (length, message)
        assert "https://example.com/a.jpg" in message


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "AVIF", "JPEG2000"])
def test_how_much_is_missing_is_counted(form: str) -> None:
    data = encoded(photo(2, 150, 110), form)
    assert "at least 100 bytes are missing" in decoding_refusal(data[:-100])


def test_a_damaged_picture_that_is_whole_is_not_said_to_be_truncated() -> None:
    data = bytearray(encoded(photo(3, 90, 80), "WEBP"))
    data[20:60] = bytes(40)
    message = decoding_refusal(bytes(data))
    assert "could not be decoded properly" in message
    assert "truncated" not in message


def test_nothing_of_what_it_says_is_told() -> None:
    """A page may be for the eyes of the server's own network only."""
    for data in (HTML, b'{"password": "secret"}', b"the secret", gzip.compress(b"<html>secret")):
        assert "secret" not in decoding_refusal(data)


def test_pictures_of_every_kind_are_known_by_their_beginning() -> None:
    """What is served is never said to be of a kind that is not."""
    for name, data in (corpus.whole() | corpus.damaged()).items():
        said = str(sniff(data))
        assert "not decoded here" not in said, name
        assert "nobody asked for" not in said, name


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(bytes(2**26)),
        raw_deflated(bytes(2**26)),
        *(part * 1_000_000 for part in (b"<", b"[", b"<!---->", b"<!--", b"<a:", b"<a ", b"A", b"{ ", b" ", b"data:")),
    ],
)
def test_detection_takes_under_50_ms_of_cpu(data: bytes) -> None:
    started = time.thread_time()
    sniff(data)
    assert time.thread_time() - started < 0.05


def test_a_png_of_a_million_chunks_takes_no_time() -> None:
    chunk = bytes(4) + b"tEXt" + zlib.crc32(b"tEXt").to_bytes(4, "big")
    data = b"\x89PNG\r\n\x1a\n" + chunk * 1_000_000
    started = time.thread_time()
    sniff(data)
    assert time.thread_time() - started < 0.05


def beginnings() -> list[bytes]:
    return [b"", *(row[1][:60] for row in FOREIGN), *(data[:60] for data in corpus.whole().values())]


@settings(max_examples=500, deadline=None)
@given(
    start=st.deferred(lambda: st.sampled_from(beginnings())),
    kept=st.integers(0, 60),
    rest=st.binary(max_size=300),
)
def test_any_bytes_get_a_message(start: bytes, kept: int, rest: bytes) -> None:
    said = str(sniff(start[:kept] + rest))
    assert said.startswith("it is ")
    assert said.isprintable()
    assert len(said) < 250
