"""Which contents are URLs, how they are quoted and shown: docs/protocol.md, sections 4.1 and 4.2."""

from __future__ import annotations

import pytest
import validators
from hypothesis import given
from hypothesis import strategies as st
from requests.utils import requote_uri
from yarl import URL

from embedding.errors import MediaError
from embedding.fetch.guard import DestinationRefused
from embedding.fetch.url import MAX_URL_CHARS, _is_url, make_target, parse_redirect, parse_url
from embedding.shown import shown, without_credentials

NOT_LOCAL = "is not a local file, a valid url, or a base64-encoded image"

VALID = [
    "http://example.com/a.jpg",
    "https://example.com",
    "HTTP://example.com/a.jpg",
    "https://EXAMPLE.com:8443/a.jpg?x=1#top",
    "http://8.8.8.8/a.jpg",
    "http://[2001:4860:4860::8888]/a.jpg",
    "http://[::1]:8080/a.jpg",
    "http://user:secret@example.com/a.jpg",
    "http://example.com:65535/",
    "http://bücher.example.com/größe.jpg",
    "http://example.com/图片.jpg",
    "http://example.com/a%20b.jpg",
    "http://example.com/a.jpg?12345",
    "http://example.com/a b.jpg",  # valid once quoted
    'http://example.com/{a}|b^c`d"e<f>\\.jpg',
]
INVALID = [
    "",
    "invalid",
    "example.com/a.jpg",
    "/etc/passwd",
    "../a.jpg",
    "C:\\a.jpg",
    "http://localhost/a.jpg",
    "http://nginx/a.jpg",
    "http://my_host.example.com/a.jpg",
    "s3://bucket/a.jpg",
    "gopher://example.com/",
    "http://example.com:65536/",
    "http://example.com:x/",
    "http://example.com/a[1].jpg",
    "http:///a.jpg",
    "http:/example.com/a.jpg",
    "http://example..com/",
    "http://a b.example.com/",
    "data:text/plain;base64,aGVsbG8=",
    "http://0x7f000001/",
    "http://2130706433/",
    "http://127.1/",
    "http://１２７.0.0.1/",
]


@pytest.mark.parametrize("content", VALID)
def test_urls_are_accepted(content: str) -> None:
    assert parse_url(content).url.scheme in ("http", "https")


@pytest.mark.parametrize("content", INVALID)
def test_all_else_is_refused(content: str) -> None:
    with pytest.raises(MediaError, match=NOT_LOCAL):
        parse_url(content)


def test_an_endless_url_is_none() -> None:
    with pytest.raises(MediaError, match=NOT_LOCAL) as caught:
        parse_url("http://example.com/" + "a" * MAX_URL_CHARS)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("url", ["ftp://example.com/a.jpg", "ftps://example.com/", "file:///etc/passwd", "ssh://a.io/"])
def test_other_schemes_are_named(url: str) -> None:
    with pytest.raises(MediaError, match="over http and https") as caught:
        parse_url(url)
    assert url in caught.value.message
    assert f"`{url.split(':')[0]}`" in caught.value.message


def test_a_missing_scheme_is_named() -> None:
    with pytest.raises(DestinationRefused, match="over http and https only, and the scheme is `<none>`"):
        make_target("//example.com/a.jpg")


@pytest.mark.parametrize(("url", "reason"), [("http:///a", "no host"), ("http://a.io:99999/", "port is invalid")])
def test_hosts_and_ports_must_be_there(url: str, reason: str) -> None:
    with pytest.raises(DestinationRefused, match=reason):
        make_target(url)


@pytest.mark.parametrize("content", VALID + INVALID)
def test_the_short_cut_for_plain_urls_agrees_with_the_validator(content: str) -> None:
    assert _is_url(content) == (validators.url(content, strict_query=False) is True)


def test_urls_are_quoted_as_in_marqos_protocol() -> None:
    """The example of section 4.2; it has brackets, so only quoting is looked at."""
    quoted = make_target("http://example.com/test!@$&*()_+=%7B%7D[]%7C%5C:;'%22%3C%3E,.?/").url
    assert str(quoted) == "http://example.com/test!@$&*()_+=%7B%7D[]%7C%5C:;'%22%3C%3E,.?/"


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/a b.jpg", "/a%20b.jpg"),
        ("/é.jpg", "/%C3%A9.jpg"),
        ("/{x}|\\", "/%7Bx%7D%7C%5C"),
        ('/"<>', "/%22%3C%3E"),
        ("/a%20b.jpg", "/a%20b.jpg"),
        ("/a%2fb%41.jpg", "/a%2fbA.jpg"),
        ("/%zz", "/%25zz"),
        ("/!@$&*()+=;':,", "/!@$&*()+=;':,"),
        ("/a?b=c+d&e=f/g", "/a?b=c+d&e=f/g"),
        ("/a#fragment", "/a"),
        ("", "/"),
        ("?a=b", "/?a=b"),
        ("/a/../b/./c", "/b/c"),
        ("/../../a?b=/../c", "/a?b=/../c"),
        ("/...", "/..."),
        ("//B/.x/y.jpg", "//B/.x/y.jpg"),
        ("//pics/.thumbs/../x.jpg", "//pics/x.jpg"),
        ("/a/..//b", "//b"),
        ("/fetch/https://cdn/dir/./a.jpg", "/fetch/https://cdn/dir/a.jpg"),
        ("/a.jpg?", "/a.jpg?"),
        ("?", "/?"),
        ("/a.jpg?#b", "/a.jpg?"),
        ("/a#b?", "/a"),
    ],
)
def test_what_is_sent(path: str, sent: str) -> None:
    target = parse_url("http://example.com" + path)
    assert target.path == sent
    assert target.url.raw_path_qs == sent.removesuffix("?")
    assert target.url.raw_host == "example.com"


def test_what_cannot_be_encoded() -> None:
    with pytest.raises(MediaError, match="could not be encoded") as caught:
        parse_url("http://example.com/a.jpg?b=\ud800")
    caught.value.message.encode("utf-8")


def test_hosts_are_lower_case_ascii() -> None:
    assert parse_url("http://EXAMPLE.com/A").url == URL("http://example.com/A")
    assert parse_url("http://bücher.example.com/").url.raw_host == "xn--bcher-kva.example.com"
    assert make_target("http://%EF%BC%91%EF%BC%92%EF%BC%97.0.0.1/").url.raw_host == "127.0.0.1"
    assert make_target("http://%31%32%37.0.0.1/").url.raw_host == "127.0.0.1"


@pytest.mark.parametrize("host", ["a%2fb.com", "a%40b.com", "a%00.com", "a%20b.com", "a%3a80.com", "a%0d%0ab.com", "%"])
def test_hosts_hide_nothing(host: str) -> None:
    with pytest.raises(DestinationRefused, match="host"):
        make_target(f"http://{host}/")


def test_user_information_becomes_a_header() -> None:
    target = parse_url("http://user:p%40ss@example.com:81/a")
    assert str(target.url) == "http://example.com:81/a"
    assert target.authorization == "Basic dXNlcjpwQHNz"
    assert target.origin == ("http", "example.com", 81)
    assert parse_url("http://example.com@127.0.0.1/").url.raw_host == "127.0.0.1"
    assert parse_url("http://example.com/").authorization is None


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/b", "http://example.com/b"),
        ("c.jpg", "http://example.com/d/c.jpg"),
        ("//other.example.com/b", "http://other.example.com/b"),
        ("https://other.example.com:8443/b c", "https://other.example.com:8443/b%20c"),
        ("?x=1", "http://example.com/d/a?x=1"),
        ("/.//other.example.com/b", "http://example.com//other.example.com/b"),
        ("..//other.example.com/b", "http://example.com//other.example.com/b"),
        (".", "http://example.com/d/"),
        (" e.jpg#f ", "http://example.com/d/e.jpg"),
        ("", "http://example.com/d/a"),
        ("/caf\udcc3\udca9", "http://example.com/caf%C3%A9"),
        ("http://under_score.example.com/", "http://under_score.example.com/"),
    ],
)
def test_redirects_are_joined_and_quoted(location: str, expected: str) -> None:
    assert str(parse_redirect(URL("http://example.com/d/a"), location).url) == expected


def test_a_redirect_keeps_the_slashes_of_what_redirects() -> None:
    base = URL("http://example.com/fetch/https://cdn/dir/", encoded=True)
    assert parse_redirect(base, "d.jpg").path == "/fetch/https://cdn/dir/d.jpg"
    assert parse_redirect(base, "../d.jpg?").path == "/fetch/https://cdn/d.jpg?"
    assert parse_redirect(URL("http://example.com//a/b", encoded=True), "c").path == "//a/c"


PIECES = st.sampled_from(
    ["/", "//", ".", "..", "a", "b.example.com", "@", ":", "?", "#", "%2f", "%2e", "\\", "http:", "é"]
)


@given(st.lists(PIECES, max_size=12).map("".join), st.sampled_from(["", "user:pw@", "b.example.com@"]))
def test_whatever_the_path_the_host_is_the_one_that_was_checked(path: str, user: str) -> None:
    target = make_target(requote_uri(f"http://{user}a.example.com:81/{path}"))
    assert target.origin == ("http", "a.example.com", 81)
    assert (target.url.scheme, target.url.raw_host, target.url.port) == target.origin
    assert target.path.startswith("/")
    assert not {".", ".."} & set(target.path.partition("?")[0].split("/"))
    assert (target.authorization is None) == (not user)


@given(st.lists(PIECES, max_size=12).map("".join), st.lists(PIECES, max_size=12).map("".join))
def test_whatever_a_redirect_says_one_host_is_meant(path: str, location: str) -> None:
    base = make_target(requote_uri(f"http://a.example.com:81/{path}")).url
    try:
        target = parse_redirect(base, location)
    except DestinationRefused:
        return
    assert (target.url.scheme, target.url.raw_host, target.url.port) == target.origin
    if not location.startswith(("//", "http:")):
        assert target.origin == ("http", "a.example.com", 81)
        assert target.authorization is None


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://example.com/", "javascript:alert(1)", "gopher://127.0.0.1:25/", "http://["],
)
def test_redirects_to_elsewhere_are_refused(location: str) -> None:
    with pytest.raises(DestinationRefused):
        parse_redirect(URL("http://example.com/"), location)


def test_messages_show_no_password_and_no_novel() -> None:
    assert shown("http://user:secret@example.com/a") == "http://user:***@example.com/a"
    assert shown("http://user:se@cr:et@example.com/a?b=c:d@e") == "http://user:***@example.com/a?b=c:d@e"
    assert shown("http://example.com:80/a@b") == "http://example.com:80/a@b"
    assert "secret" not in shown("x" * 290 + "http://user:secret@example.com/")
    assert len(shown("x" * 10_000_000)) < 350
    shown("\ud800").encode("utf-8")


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("https://host/a/b.pt", "https://host/a/b.pt"),
        ("https://me:secret@host:8/a.pt?X-Signature=secret", "https://host:8/a.pt"),
        ("HTTP://secret@host", "HTTP://host"),
        ("https://host?secret=/x@y", "https://host"),
        ("https://host/a@b.pt#sha256=12", "https://host/a@b.pt#sha256=12"),
        ("https://a:b@c@host/x", "https://host/x"),
        ("ViT-B-32?", "ViT-B-32?"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("s3://key:secret@bucket/key?X-Amz-Signature=secret", "s3://bucket/key"),
        (" see https://me:secret@host/x?y=secret or ask", " see https://host/x"),
        ("https://a/b,https://me:secret@host/x", "https://a/b,https://host/x"),
        ("https:\\\\me:secret@host", "https:\\\\host"),
        ("https://me:sec?ret@host/x", "https://***"),
        ("https://me:sec/ret@host/x", "https://***"),
        ("https://host/x#access_token=secret", "https://host/x"),
        ("bucket/key.pt?X-Amz-Signature=secret", "bucket/key.pt"),
        ("x?u=https://me:secret@host", "x"),
        ("me:secret@host/x", "host/x"),
        ("a:/" * 30_000, "a:/" * 30_000),
        ("a" * 90_000, "a" * 90_000),
    ],
)
def test_credentials_of_a_url_are_left_out(given: str, left: str) -> None:
    assert without_credentials(given) == left
