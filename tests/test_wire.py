"""Exchanges by libcurl: framings, connections that are kept, nonsense refused."""

import contextlib
import signal
import socket
import threading
import time

import pytest

from stellarcli.archives.client import Client
from stellarcli.errors import FetchError, UsageError

OK = b"HTTP/1.1 200 OK\r\n"
EXPECTED = ["Host", "Accept", "User-Agent", "Accept-Encoding"]  # fields sent


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


class Script:
    """A server that says given bytes, one answer per request, and then hangs up.

    An answer None hangs up instead; the next request comes on a new connection.
    """

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests, self.lines = [], 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "http://{}:{}".format(*self.listener.getsockname())
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                line = self.listener.accept()[0]
                self.lines += 1
                with line, contextlib.suppress(OSError):
                    self.talk(line)

    def talk(self, line):
        received = b""
        while self.answers:
            if self.answers[0] is None:
                self.answers.pop(0)
                return
            while b"\r\n\r\n" not in received:
                piece = line.recv(65536)
                if not piece:
                    return
                received += piece
            head, _, received = received.partition(b"\r\n\r\n")
            self.requests.append(head.decode())
            answer = self.answers.pop(0)
            for piece in [answer] if isinstance(answer, bytes) else answer:
                line.sendall(piece)

    def close(self):
        self.listener.close()


@pytest.fixture
def script():
    made = []

    def make(*answers):
        made.append(Script(*answers))
        return made[-1]

    yield make
    for server in made:
        server.close()


def bodies(server, count=1, timeout=2.0, **options):
    """Bodies of so many answers, asked for one after another."""
    client = Client(server.address, timeout=timeout, **options)
    return [client.content(f"{server.address}/a?b=c")[0] for _ in range(count)]


def sized(content, *more):
    fields = "".join(f"{field}\r\n" for field in more).encode()
    return OK + fields + b"Content-Length: %d\r\n\r\n%s" % (len(content), content)


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        sized(b"hello"),
        [OK, b"content-LENGTH:5\r\n", b"\r", b"\nhe", b"llo"],
        [CHUNKED, b"2\r\nhe\r\n", b"3;x=y\r\nl", b"lo\r", b"\n0\r\n\r\n"],
        CHUNKED + b"5\r\nhello\r\n0\r\nTrailer: x\r\nOther: y\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n"
        + sized(b"hello"),
        sized(b"hello", "Content-Length: 5"),
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
def test_framings_that_keep_the_connection(script, answer):
    server = script(answer, answer, answer)
    assert bodies(server, 3) == [b"hello"] * 3
    assert server.lines == 1
    assert server.requests[0].startswith("GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:")


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"\r\nhello",  # until the connection ends
        sized(b"hello", "Connection: close"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        sized(b"hello") + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    ],
)
def test_framings_that_end_the_connection(script, answer):
    server = script(answer, None, answer, None)
    assert bodies(server, 2) == [b"hello"] * 2
    assert server.lines == 2


def test_no_body(script):
    server = script(
        b"HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n", sized(b"x")
    )
    client = Client(server.address, timeout=2.0)
    with pytest.raises(FetchError, match="204"):
        client.content(f"{server.address}/")
    assert client.content(f"{server.address}/")[0] == b"x"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "HTTP/0.9"),
        (b"HTTP/1.1 20x OK\r\n\r\n", "Unsupported HTTP/1"),
        (OK + b"no colon\r\n\r\n", "without colon"),
        (OK + b"A: b\0c\r\n\r\n", "byte in header"),
        (OK + b"Content-Length: -5\r\n\r\nhello", "Invalid Content-Length"),
        (OK + b"Content-Length: 5, 6\r\n\r\nhello", "Invalid Content-Length"),
        (OK + b"Content-Length: \xb2\r\n\r\nhello", "Invalid Content-Length"),
        (sized(b"hello", "Content-Length: 6"), "Invalid Content-Length"),
        (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n", "Transfer-Encoding"),
        (CHUNKED + b"-5\r\nhello", "chunk"),
        (CHUNKED + b"5" * 9000, "chunk"),
        (CHUNKED + b"2\r\nhello\r\n", "cut after 2"),
        (CHUNKED + b"0\r\n" + b"a: b\r\n" * 20_000, "Too many"),
        (OK + b"a: b\r\n" * 20_000, "Too many"),
        (OK + b"a: " + b"b" * (1 << 20) + b"\r\n\r\n", "error 100"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 30_000, "Too large"),
    ],
    ids=range(16),
)
def test_nonsense_is_refused_and_ends_the_connection(script, answer, words):
    server = script(answer, None, sized(b"good"))
    client = Client(server.address, timeout=2.0)
    with pytest.raises(FetchError, match=words):
        client.content(f"{server.address}/")
    assert client.content(f"{server.address}/")[0] == b"good"
    assert server.lines == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (OK + b"Content-Le", "cut in the head"),
        (OK + b"Content-Length: 5\r\n\r\nhel", "cut after 3 of 5"),
        (CHUNKED + b"5\r\nhel", "cut after 3"),
        (CHUNKED + b"5\r\nhello\r\n", "cut after 5"),
        (b"", "nothing came|connection failed"),
    ],
)
def test_cut_answers(script, answer, words):
    server = script(answer, None)
    with pytest.raises(FetchError, match=words):
        bodies(server, timeout=1.0)
    assert len(server.requests) == 1  # on a fresh connection nothing is tried again


def test_a_connection_that_idled_too_long(script):
    server = script(sized(b"1"), None, sized(b"2"), sized(b"3"))
    assert bodies(server, 3) == [b"1", b"2", b"3"]
    assert server.lines == 2


def drip(*pieces):
    for piece in pieces:
        time.sleep(0.1)
        yield piece


def test_the_head_has_to_come_in_time(script):
    server = script(drip(OK, *[b"A: b\r\n"] * 50))
    start = time.monotonic()
    with pytest.raises(FetchError, match="nothing came"):
        bodies(server, timeout=1.0)
    assert time.monotonic() - start < 4


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("/a b", "/a%20b"),
        ("/ä", "/%C3%A4"),
        ("/a%20b?c=d/e#f", "/a%20b?c=d/e"),
        ("?c", "/?c"),
        ("", "/"),
        ("/a\r\nEvil: x", "/aEvil:%20x"),
    ],
)
def test_what_is_asked_for_fits_in_a_line(script, address, target):
    server = script(sized(b"x"))
    Client(server.address, timeout=2.0).content(server.address + address)
    lines = server.requests[0].split("\r\n")
    assert lines[0] == f"GET {target} HTTP/1.1"
    assert not any(line.startswith("Evil") for line in lines)


def test_a_proxy_is_asked_for_whole_addresses(script, monkeypatch):
    server = script(sized(b"x"))
    monkeypatch.setenv("http_proxy", server.address.replace("//", "//me:se%20cret@"))
    monkeypatch.setenv("no_proxy", "elsewhere.org")
    assert Client("http://archive.test").content("http://archive.test/a")[0] == b"x"
    assert server.requests[0].startswith(
        "GET http://archive.test/a HTTP/1.1\r\nHost: archive.test\r\n"
    )
    assert "Proxy-Authorization: Basic bWU6c2UgY3JldA==" in server.requests[0]


def test_a_tunnel_through_a_proxy(script, monkeypatch):
    server = script(b"HTTP/1.1 407 No\r\n\r\n", None)
    monkeypatch.setenv("https_proxy", server.address)
    client = Client("https://archive.test", timeout=2.0)
    with pytest.raises(FetchError, match="tunnel failed, response 407"):
        client.content("https://archive.test/a?token=x")
    assert server.requests[0].startswith("CONNECT archive.test:443 HTTP/1.1")
    assert "token" not in server.requests[0]


@pytest.mark.parametrize("proxy", ["socks5://me:secret@127.0.0.1:1", "gopher://p"])
def test_proxies_that_cannot_be_used(monkeypatch, proxy):
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(FetchError, match="connection failed") as caught:
        Client("https://archive.test").content("https://archive.test/a")
    assert "secret" not in str(caught.value)


def test_nothing_of_the_users_other_programs_is_read(script, monkeypatch, tmp_path):
    (tmp_path / ".curlrc").write_text('insecure\nuser-agent = "other"\nproxy = x:1\n')
    (tmp_path / ".netrc").write_text("default login me password hidden\n")
    for name in ("HOME", "CURL_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    server = script(sized(b"x"))
    assert bodies(server) == [b"x"]
    lines = server.requests[0].splitlines()
    assert [line.partition(":")[0] for line in lines[1:]] == EXPECTED
    assert "User-Agent: stellar/" in server.requests[0]


def test_a_password_in_a_redirect_is_not_sent(script):
    server = script(b"", sized(b"x"))
    there = server.address.replace("//", "//me:hidden@")
    server.answers[0] = (
        f"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: {there}/b\r\n\r\n"
    ).encode()
    assert bodies(server) == [b"x"]
    assert server.requests[1].startswith("GET /b HTTP/1.1")
    assert "Authorization" not in server.requests[1]


@pytest.mark.parametrize("there", ["http://[::1", "http://h:port/", "http://a b/"])
def test_a_redirect_to_what_is_no_address(script, there):
    head = f"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: {there}\r\n\r\n"
    with pytest.raises(FetchError, match="an address that is none"):
        bodies(script(head.encode()))


def test_certificates_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(UsageError, match="REQUESTS_CA_BUNDLE names certificates"):
        Client("https://archive.test")


def test_interrupts_are_heard_while_nothing_comes(script):
    server = script(drip(b"", *[b""] * 100))
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        bodies(server, timeout=8.0)
    assert time.monotonic() - start < 4
