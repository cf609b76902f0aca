"""Downloads against a server that misbehaves: what is kept, what is refused and why, and what is never asked again."""

import asyncio
import contextlib
import email.utils
import gzip
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import zoo
from fault_server import FaultServer, endless, head, in_turn, raw, redirect, reset, status

from adapt.collect import download as module
from adapt.collect import download_state
from adapt.collect.download import download, read_outcomes
from adapt.collect.url_rules import is_public, opted_out, seconds_to_wait
from adapt.errors import Refusal

PNG = zoo.save(zoo.picture(), "PNG")
JPEG = zoo.save(zoo.picture(seed=1), "JPEG")


def picture(number: int) -> bytes:
    """A decodable file with bytes of its own."""
    return PNG + str(number).encode()


def get(urls, folder: Path, **flags):
    """Outcome of each key."""
    report = download(urls, folder, progress=False, **{"allow_private": True, "min_side": 16} | flags)
    outcomes = list(report.outcomes())
    assert Counter(outcome.reason for outcome in outcomes) == report.counts
    return {outcome.key: outcome for outcome in outcomes}


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "download.jsonl").read_text().splitlines()]


def files(folder: Path) -> set[str]:
    own = {".lock", "download.jsonl", ".download.jsonl.lock"}
    return {path.name for path in folder.rglob("*") if path.is_file()} - own


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(module, "BACKOFF", 0.01)


@pytest.fixture
def server():
    with FaultServer() as server:
        yield server


@pytest.fixture
def names(monkeypatch):
    """Host name -> addresses, in place of DNS; or -> an iterator of them, one for each question."""
    known = {}

    def resolve(host, port, *_, **__):
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "no such name in this test")
        found = next(known[host]) if isinstance(known[host], itertools.chain) else known[host]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


# page, outcome, requests the server must see
GZIP = {"Content_Encoding": "gzip"}
FAULTS = {
    "/png": (status(200, PNG, Content_Type="image/png"), "ok", 1),
    "/image-as-text": (status(200, JPEG, Content_Type="text/html"), "ok", 1),
    "/no-type": (status(200, PNG), "ok", 1),
    "/chunked": (
        raw(head(Transfer_Encoding="chunked") + b"%x\r\n" % len(PNG) + PNG + b"\r\n0\r\n\r\n"),
        "ok",
        1,
    ),
    "/no-length": (raw(head(), PNG), "ok", 1),
    "/gzip": (status(200, gzip.compress(PNG), **GZIP), "ok", 1),
    "/page": (status(200, b"<html>sorry</html>", Content_Type="image/jpeg"), "not-an-image", 1),
    "/empty": (status(200, b"", Content_Type="image/jpeg"), "not-an-image", 1),
    "/pixel": (status(200, zoo.save(zoo.picture(1, 1), "GIF")), "too-small", 1),
    "/bomb": (status(200, zoo.png(20000, 20000, 8, 2, b"")), "too-large", 1),
    "/cut-at-source": (status(200, JPEG[:-400]), "truncated", 1),
    "/404": (status(404, b"gone fishing"), "http-404", 1),
    "/404-with-picture": (status(404, PNG), "http-404", 1),
    "/410": (status(410), "http-410", 1),
    "/403": (status(403), "http-403", 1),
    "/451": (status(451), "http-451", 1),
    "/204": (raw(head(204)), "http-204", 1),
    "/206": (status(206, PNG[:50], Content_Range="bytes 0-49/999"), "http-206", 1),
    "/500": (status(500), "http-500", 3),
    "/503-twice": (in_turn(status(503), status(503), status(200, picture(1))), "ok", 3),
    "/408-once": (in_turn(status(408), status(200, picture(2))), "ok", 2),
    "/hang-up": (raw(), "connection", 3),
    "/reset-at-once": (reset(), "connection", 3),
    "/reset": (reset(head(Content_Length=len(PNG)), PNG[:99]), "broken-body", 3),
    "/short": (raw(head(Content_Length=len(PNG) + 9), PNG), "broken-body", 3),
    "/short-once": (in_turn(raw(head(Content_Length=999), PNG[:99]), status(200, picture(3))), "ok", 2),
    "/cut-no-length": (raw(head(), JPEG[:-400]), "broken-body", 3),
    "/cut-chunk": (raw(head(Transfer_Encoding="chunked") + b"999\r\n" + PNG[:99]), "broken-body", 3),
    "/no-gzip": (status(200, PNG, **GZIP), "broken-body", 3),
    "/no-http": (raw(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"), "broken-http", 3),
    "/odd-length": (raw(head(Content_Length="many"), PNG), "broken-http", 3),
    "/long-header": (raw(head(X="x" * 100_000)), "broken-http", 3),
    "/huge": (raw(head(Content_Length=10**10), PNG), "too-many-bytes", 1),
    "/endless": (endless(head(), bytes(2**16)), "too-many-bytes", 1),
    "/endless-chunks": (
        endless(head(Transfer_Encoding="chunked"), b"10000\r\n" + bytes(2**16) + b"\r\n"),
        "too-many-bytes",
        1,
    ),
    "/gzip-bomb": (status(200, gzip.compress(bytes(2**25)), **GZIP), "too-many-bytes", 1),
    "/loop": (redirect("/loop"), "redirects", 6),
    "/nowhere": (raw(head(302)), "http-302", 1),
    "/to-file": (redirect("file:///etc/passwd"), "bad-url", 1),
    "/to-data": (redirect("data:image/png;base64,AAAA", 307), "bad-url", 1),
    "/to-password": (redirect("http://me:secret@127.0.0.1/"), "bad-url", 1),
    "/to-mail": (redirect("http://127.0.0.1:25/"), "bad-url", 1),
    "/moved": (redirect("hop?to=png#here", 301), "ok", 1),
    "/noai": (status(200, PNG, X_Robots_Tag="noai, noimageai"), "opted-out", 1),
    "/noindex-at-redirect": (redirect("/png", 302), "opted-out", 1),
}


@pytest.fixture(scope="module")
def met(tmp_path_factory):
    """Server, folder and outcomes of one run over all faults."""
    with FaultServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BACKOFF", 0.01)
        server.pages = {path: page for path, (page, _, _) in FAULTS.items()}
        server.pages["/hop?to=png"] = redirect("/another")
        server.pages["/another"] = status(200, picture(4))
        server.pages["/noindex-at-redirect"] = status(302, Location="/png", X_Robots_Tag="noindex")
        folder = tmp_path_factory.mktemp("met")
        yield server, folder, get([(path, server.url(path)) for path in FAULTS], folder, max_bytes=2**20)


@pytest.mark.parametrize("path", FAULTS)
def test_every_fault_has_its_outcome_and_its_number_of_requests(met, path):
    server, _, outcomes = met
    _, reason, requests = FAULTS[path]
    assert (outcomes[path].reason, server.count(path)) == (reason, requests)


def test_icons_are_no_photographs(tmp_path):
    with FaultServer() as server:
        for width, height in ((63, 200), (200, 63), (64, 64)):
            server.pages[f"/{width}x{height}"] = status(200, zoo.save(zoo.picture(width, height), "PNG"))
        urls = [(path, server.url(path)) for path in server.pages]
        report = download(urls, tmp_path, progress=False, allow_private=True)
        found = {outcome.key: outcome.reason for outcome in report.outcomes()}
    assert found == {"/63x200": "too-small", "/200x63": "too-small", "/64x64": "ok"}


def test_only_whole_files_are_published_under_their_digest(met):
    _, folder, outcomes = met
    kept = {outcome.path for outcome in outcomes.values() if outcome.reason == "ok"}
    assert files(folder) == {path.name for path in kept}
    for outcome in outcomes.values():
        if outcome.reason == "ok":
            assert hashlib.sha256(outcome.path.read_bytes()).hexdigest() == outcome.sha256 == outcome.path.stem
    assert outcomes["/png"].path.read_bytes() == outcomes["/gzip"].path.read_bytes() == PNG
    assert outcomes["/image-as-text"].path.suffix == ".jpg"
    assert outcomes["/moved"].path.read_bytes() == picture(4)


def test_requests_ask_for_plain_bytes_and_carry_no_cookies(server, names, tmp_path):
    names["shop.test"] = ["127.0.0.1"]
    server.otherwise = status(200, PNG, Set_Cookie="you=42")
    urls = [(str(n), server.url(f"/{n}", "shop.test")) for n in range(3)]
    get(urls, tmp_path, concurrency=1, user_agent="adapt/0.1 (me@example.org)")
    for visit in server.visits:
        assert visit.headers["accept-encoding"] == "identity" and "cookie" not in visit.headers
        assert visit.headers["user-agent"] == "adapt/0.1 (me@example.org)"
    assert len(server.visits) == 3


def test_slow_hosts_end_in_a_timeout(server, tmp_path):
    server.pages = {
        "/silent": endless(b"", b"", 0.1),
        "/slow-head": endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.1),  # each read is quick: only the total ends it
        "/drip": endless(head(Content_Length=999), b"\0", 0.1),
        "/stalls": raw(head(Content_Length=999), PNG[:9], pause=9),
        "/slow-hops": in_turn(*[redirect("/slow-hops")] * 9),
    }
    urls = [(path, server.url(path)) for path in server.pages if path != "/slow-hops"]
    outcomes = get(urls, tmp_path, retries=2, total_timeout=0.8, read_timeout=0.4)
    assert {key: (outcome.reason, server.count(key)) for key, outcome in outcomes.items()} == dict.fromkeys(
        [key for key, _ in urls], ("timeout", 2)
    )


def test_total_time_covers_all_hops(server, tmp_path):
    async def slow(visit):
        await asyncio.sleep(0.4)
        await redirect(f"/{visit.number}/{visit.path[-9:]}")(visit)

    server.otherwise = slow
    assert get([("a", server.url("/a"))], tmp_path, retries=1, total_timeout=1)["a"].reason == "timeout"
    assert 2 <= len(server.visits) <= 3


def test_hosts_that_cannot_be_reached(names, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        urls = [("dns", "http://unknown.test/"), ("connect", f"http://127.0.0.1:{unused.getsockname()[1]}/")]
        outcomes = get(urls, tmp_path)
    assert {key: outcome.reason for key, outcome in outcomes.items()} == {key: key for key, _ in urls}
    assert Counter(record["key"] for record in records(tmp_path) if "ask" in record) == {"dns": 3, "connect": 3}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_certificate_that_nobody_signed(tmp_path):
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    subprocess.run([*command.split(), "-keyout", "key", "-out", "cert"], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    with FaultServer(tls=context) as server:
        server.otherwise = status(200, PNG)
        assert get([("a", server.url("/", scheme="https"))], tmp_path / "to")["a"].reason == "tls"
        assert not server.visits and sum("ask" in record for record in records(tmp_path / "to")) == 1


ADDRESSES = {
    True: "1.1.1.1 93.184.216.34 2606:4700:4700::1111 ::ffff:8.8.8.8 172.15.0.1 172.32.0.1 100.63.0.1 11.0.0.1",
    False: """127.0.0.1 127.9.9.9 0.0.0.0 10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1
        100.100.100.200 168.63.129.16 192.0.0.8 192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1
        240.0.0.1 255.255.255.255 192.88.99.1 :: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:169.254.169.254 fe80::1
        fe80::1%eth0 fc00::1 fd00:ec2::254 fec0::1 ff02::1 2002:7f00:1:: 2001:0:1::1 64:ff9b::7f00:1
        64:ff9b:1::1 2001:db8::1 100::1""",
}


@pytest.mark.parametrize("public", ADDRESSES)
def test_public_addresses(public):
    assert [a for a in ADDRESSES[public].split() if is_public(a) != public] == []


@pytest.fixture
def only_the_first_loopback(monkeypatch):
    """127.0.0.1 plays the internet; every other address, 127.0.0.2 too, is judged as always."""
    monkeypatch.setattr(module, "is_public", lambda address: address == "127.0.0.1" or is_public(address))


def test_the_guard_stands_by_default(server, names, tmp_path):
    names |= {"home.test": ["127.0.0.1"], "both.test": ["10.0.0.1", "127.0.0.1"]}
    server.otherwise = status(200, PNG)
    hosts = ["127.0.0.1", "home.test", "both.test", "[::1]", "[::ffff:127.0.0.1]", "①②⑦.0.0.1", "127.0.0.1."]
    outcomes = get([(host, server.url("/", host)) for host in hosts], tmp_path, allow_private=False)
    assert {outcome.reason for outcome in outcomes.values()} <= {"private-address", "bad-url", "duplicate-url", "dns"}
    assert [outcomes[host].reason for host in hosts[:5]] == ["private-address"] * 5
    assert not server.visits


def test_the_guard_reads_numbers_as_the_system_does(server, tmp_path):
    server.otherwise = status(200, PNG)
    hosts = ["2130706433", "0x7f000001", "127.1", "0177.0.0.1", "localhost", "LOCALHOST."]
    outcomes = get([(host, server.url("/", host)) for host in hosts], tmp_path, allow_private=False)
    assert "ok" not in {outcome.reason for outcome in outcomes.values()}  # some systems do not know all forms: dns
    assert outcomes["localhost"].reason == "private-address" and not server.visits


def test_redirects_do_not_lead_into_the_local_network(server, names, only_the_first_loopback, tmp_path):
    with FaultServer("127.0.0.2") as inside:
        names |= {"inside.test": ["127.0.0.2"]}
        inside.otherwise = status(200, PNG)
        targets = [inside.url("/a"), inside.url("/b", "inside.test"), "http://169.254.169.254/latest/meta-data/"]
        targets += [inside.url("/c", "[::1]"), inside.url("/d", "[::ffff:127.0.0.2]"), "//127.0.0.2:8000/e"]
        server.pages = {f"/{n}": redirect(target) for n, target in enumerate(targets)}
        urls = [(target, server.url(f"/{n}")) for n, target in enumerate(targets)]
        outcomes = get(urls, tmp_path, allow_private=False)
        assert {key: outcome.reason for key, outcome in outcomes.items()} == dict.fromkeys(targets, "private-address")
        assert len(server.visits) == len(targets) and not inside.visits
        assert get(urls[:2], tmp_path / "open")[targets[1]].reason == "ok"  # so it was the guard


def test_a_name_that_changes_its_address_is_not_followed(server, names, only_the_first_loopback, tmp_path):
    with FaultServer("127.0.0.2") as inside:
        names["rebind.test"] = itertools.chain([["127.0.0.1"]], itertools.repeat(["127.0.0.2"]))
        server.pages["/"] = redirect(inside.url("/", "rebind.test"))
        outcome = get([("a", server.url("/", "rebind.test"))], tmp_path, allow_private=False)["a"]
        assert (outcome.reason, len(server.visits), inside.visits) == ("private-address", 1, [])


def test_of_several_addresses_only_public_ones_are_connected(server, names, only_the_first_loopback, tmp_path):
    with FaultServer("127.0.0.2") as inside:
        names["two.test"] = ["127.0.0.2", "127.0.0.1"]
        server.otherwise = inside.otherwise = status(200, PNG)
        assert get([("a", server.url("/", "two.test"))], tmp_path, allow_private=False)["a"].reason == "ok"
        assert (len(server.visits), inside.visits) == (1, [])


URLS = {
    " http://EXAMPLE.test:80/a%7Eb?x=%2F&y=a+b#part \n": "http://example.test/a%7Eb?x=%2F&y=a+b",
    "http://bücher.test/ä b.png": "http://xn--bcher-kva.test/%C3%A4%20b.png",
    "https://h.test:8443/%2e%2e/x": "https://h.test:8443/%2e%2e/x",
    "HTTP://h.test": "http://h.test",
    "http://[2606:4700::1111]:8080/": "http://[2606:4700::1111]:8080/",
}
BAD = [
    *("ftp://h/x", "file:///etc/passwd", "data:image/png;base64,AA", "javascript:1", "//h/x", "/x", "garbage", ""),
    *("http:///x", "http:x", "http://u@h/", "http://u:p@h/", "http://h\\@evil.test/", "http://a..b/", "http://%31/"),
    *("http://h:0/", "http://h:22/", "http://h:99999/", "http://h:x/", "http://[::1", "http://[zz]/", "http://a b/x"),
    *("http://a\nb/", "http://h/x\r\nX: y", "http://h/\0", "http://h/\udcff", "http://h/" + "a" * 9000),
]


def test_urls_are_read_as_one_reading_only(tmp_path):
    assert {given: str(module._parse(given)) for given in URLS} == URLS
    outcomes = get([(str(n), url) for n, url in enumerate(BAD)], tmp_path)
    assert {outcome.reason for outcome in outcomes.values()} == {"bad-url"} and len(outcomes) == len(BAD)
    assert all(len(outcome.url) <= 8192 for outcome in outcomes.values())
    assert download([(str(n), url) for n, url in enumerate(BAD)], tmp_path, progress=False).asked == 0


def test_a_host_is_left_alone_as_long_as_it_asks(server, names, tmp_path):
    names |= {"busy.test": ["127.0.0.1"], "date.test": ["127.0.0.1"], "free.test": ["127.0.0.1"]}
    date = email.utils.formatdate(time.time() + 2, usegmt=True)
    server.pages = {
        "/busy": in_turn(status(429, Retry_After="1"), status(200, picture(0))),
        "/date": in_turn(status(503, Retry_After=date), status(200, picture(1))),
        "/next": status(200, picture(2)),
        "/free": status(200, picture(3)),
    }
    places = [("/busy", "busy.test"), ("/next", "busy.test"), ("/date", "date.test"), ("/free", "free.test")]
    outcomes = get([(path, server.url(path, host)) for path, host in places], tmp_path, per_host=1)
    assert {outcome.reason for outcome in outcomes.values()} == {"ok"}
    at = {(visit.path, visit.number): visit.at for visit in server.visits}
    assert min(at["/busy", 2], at["/next", 1]) - at["/busy", 1] >= 0.99  # the whole host waits
    assert at["/date", 2] - at["/date", 1] >= 0.9  # a date has whole seconds
    assert at["/free", 1] < at["/busy", 2]


def left_in(text: str) -> dict[str, tuple[int, int]]:
    """Host -> refusals and links that are left, by the lines on screen."""
    found = re.findall(
        r"^(\S+): (\d+) refusals in a row.*; (\d+) of its links are left .*--again.*--retry_dead", text, re.M
    )
    return {host: (int(refusals), int(left)) for host, refusals, left in found}


@pytest.mark.parametrize("code", [429, 503])
def test_a_host_that_only_refuses_ends_and_is_asked_again_when_wished(server, names, tmp_path, capsys, code):
    """400 links of one host that refuses for ever, and 30 of one that does not."""
    names |= {"busy.test": ["127.0.0.1"], "free.test": ["127.0.0.1"]}
    refuse = status(code, Retry_After="0")
    server.pages = {f"/free{n}": status(200, picture(n)) for n in range(30)}
    server.otherwise = refuse
    urls = [(f"busy{n}", server.url(f"/busy{n}", "busy.test")) for n in range(400)]
    urls[100:100] = [(f"free{n}", server.url(f"/free{n}", "free.test")) for n in range(30)]
    outcomes = get(urls, tmp_path)
    busy = [visit for visit in server.visits if visit.host == "busy.test"]
    assert Counter(o.reason for o in outcomes.values()) == {f"http-{code}": 400, "ok": 30}
    assert module.REFUSALS <= len(busy) <= 8 * module.REFUSALS  # 8 in flight at a host
    asked = Counter(record["key"] for record in records(tmp_path) if "ask" in record)
    assert sum(n for key, n in asked.items() if key.startswith("busy")) == len(busy)
    shown = left_in(capsys.readouterr().out)
    assert shown.keys() == {"busy.test"} and shown["busy.test"][0] == module.REFUSALS
    assert shown["busy.test"][1] >= 400 - len(busy)
    assert get(urls, tmp_path) == outcomes  # nothing is asked, nothing is said
    assert len(server.visits) == len(busy) + 30 and not left_in(capsys.readouterr().out)
    server.otherwise = status(200, PNG)
    assert {o.reason for o in get(urls, tmp_path, again=True).values()} <= {"ok", "placeholder"}
    assert len(server.visits) == len(busy) + 30 + 400


def test_a_burst_of_refusals_is_one_and_an_answer_begins_anew(server, tmp_path, capsys):
    """Three times all eight requests in flight are refused, and others are answered between: nobody is given up."""
    arrived = itertools.count()
    met = [0]

    async def page(visit):
        number = met[0] = next(arrived)
        if number % 20 < 8 and number < 60:
            while met[0] < number - number % 20 + 7:
                await asyncio.sleep(0.001)
            await status(429)(visit)
        else:
            await status(200, picture(number))(visit)

    server.otherwise = page
    outcomes = get([(str(n), server.url(f"/{n}")) for n in range(90)], tmp_path, retries=20)
    assert {outcome.reason for outcome in outcomes.values()} == {"ok"} and len(server.visits) == 90 + 24
    assert not left_in(capsys.readouterr().out)


def test_one_link_that_is_refused_does_not_end_its_host(server, tmp_path):
    server.pages = {"/bad": status(429)}
    server.otherwise = status(200, PNG)
    urls = [("bad", server.url("/bad")), *((str(n), server.url(f"/{n}")) for n in range(5))]
    outcomes = get(urls, tmp_path, per_host=1)
    assert outcomes.pop("bad").reason == "http-429" and server.count("/bad") == 3
    assert {outcome.reason for outcome in outcomes.values()} == {"ok"}


def test_a_refusal_for_too_long_ends_the_turn_at_once_and_wakes_who_waits(server, names, tmp_path, capsys):
    """The first asks for 100 s, in which the others wait; one in flight is refused for an hour."""
    names |= {"busy.test": ["127.0.0.1"], "moved.test": ["127.0.0.1"]}

    async def late(visit):
        await asyncio.sleep(0.3)
        await status(429, Retry_After="3600")(visit)

    server.pages = {"/0": status(404, Retry_After="100"), "/1": late, "/hop": redirect(server.url("/9", "busy.test"))}
    server.otherwise = status(200, PNG)
    urls = [(str(n), server.url(f"/{n}", "busy.test")) for n in range(9)]
    start = time.monotonic()
    outcomes = get([*urls, ("hop", server.url("/hop", "moved.test"))], tmp_path, per_host=2)
    assert time.monotonic() - start < 20
    assert {key: outcome.reason for key, outcome in outcomes.items()} == {"0": "http-404", "hop": "http-429"} | {
        str(n): "http-429" for n in range(1, 9)
    }
    assert [server.count(path) for path in ("/0", "/1", "/2", "/9", "/hop")] == [1, 1, 0, 0, 1]
    said = capsys.readouterr().out
    assert left_in(said) == {"busy.test": (1, 9)} and "for more than 120 s" in said


def test_hosts_that_refused_are_remembered_within_bounds(server, names, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "REMEMBERED", 3)
    monkeypatch.setattr(module, "SHOWN", 2)
    jobs, real = [], module._Download.__post_init__
    monkeypatch.setattr(module._Download, "__post_init__", lambda job: (jobs.append(job), real(job))[1])
    names |= {f"h{n}.test": ["127.0.0.1"] for n in range(9)}
    server.otherwise = status(429, Retry_After="86400")
    urls = [(f"{n}.{k}", server.url(f"/{k}", f"h{n}.test")) for n in range(9) for k in range(4)]
    outcomes = get(urls, tmp_path, concurrency=1, per_host=1)
    assert {outcome.reason for outcome in outcomes.values()} == {"http-429"}
    assert len(jobs[0].idle) <= 3 and not jobs[0].hosts
    said = capsys.readouterr().out
    links = re.findall(r"(\d+) of (?:its|their) links", said)
    # two lines of hosts and one of the rest; which of them are still remembered depends on who was asked when
    assert 1 <= len(links) <= 3 and len(server.visits) + sum(map(int, links)) >= len(urls)


def test_retry_after():
    now = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110
    forms = {"Sun, 06 Nov 1994 08:49:47 GMT": 10, "Sunday, 06-Nov-94 08:49:47 GMT": 10, "Sun Nov  6 08:49:47 1994": 10}
    forms |= {"7": 7, "0": 0, "-3": 0, "999999": 120, "inf": 120, "nan": 0, "soon": 0, "": 0}
    forms |= {"Sun, 06 Nov 1994 07:00:00 GMT": 0, "Mon, 07 Nov 1994 07:00:00 GMT": 120}
    assert {text: seconds_to_wait(text, now) for text in forms} == forms
    assert seconds_to_wait("999999", now, 10**9) == 999999 and seconds_to_wait("inf", now, 200) == 200


def test_opt_out_headers():
    from multidict import CIMultiDict

    def out(*pairs: tuple[str, str]) -> bool:
        return opted_out(CIMultiDict(pairs), "adapt/0.1 (me@example.org)")

    robots = "x-robots-tag"
    for text in ("noai", "NoImageAI", "nofollow, noindex", "all,noimageindex", "none", "adapt: noai", "*: noai"):
        assert out((robots, text)), text
    for text in ("", "all", "nofollow", "otherbot: noai", "otherbot: nofollow, noindex", "noarchive"):
        assert not out((robots, text)), text
    assert not out((robots, "max-image-preview: none, unavailable_after: 25 Jun 2010 15:00:00 PST"))
    assert out((robots, "otherbot: nofollow, adapt: noindex"))
    assert out((robots, "all"), (robots, "noai"))
    assert out(("TDM-Reservation", "1")) and not out(("TDM-Reservation", "0"))


def test_opt_out_can_be_overruled(server, tmp_path):
    server.otherwise = status(200, PNG, X_Robots_Tag="noai")
    assert get([("a", server.url("/a"))], tmp_path, respect_robots=False)["a"].reason == "ok"


def test_placeholders_are_dropped_afterwards(server, names, monkeypatch, tmp_path):
    monkeypatch.setattr(download_state, "PLACEHOLDER_URLS", 4)
    names |= {f"{letter}.test": ["127.0.0.1"] for letter in "abcd"}
    sorry, twice, often = picture(1), picture(2), picture(3)
    places = [(f"{host}.test", "/sorry", sorry) for host in "abc"]
    places += [(f"{host}.test", "/twice", twice) for host in "ab"]
    places += [("d.test", f"/often{n}", often) for n in range(4)] + [("d.test", f"/three{n}", JPEG) for n in range(3)]
    server.pages = {path: status(200, data) for _, path, data in places}
    urls = [(host + path, server.url(path, host)) for host, path, _ in places]
    outcomes = get(urls, tmp_path)
    dropped = {key for key, outcome in outcomes.items() if outcome.reason == "placeholder"}
    kept = {hashlib.sha256(data).hexdigest() for data in (twice, JPEG)}
    assert dropped == {host + path for host, path, data in places if data in (sorry, often)}
    assert {Path(name).stem for name in files(tmp_path)} == kept
    # What was dropped is known on the next day: one more of its kind is enough, and nothing is asked again.
    server.pages["/late"] = status(200, sorry)
    before = len(server.visits)
    outcomes = get([*urls, ("late", server.url("/late", "d.test"))], tmp_path)
    assert outcomes["late"].reason == "placeholder" and len(server.visits) == before + 1
    assert {Path(name).stem for name in files(tmp_path)} == kept


def test_a_url_under_two_keys_is_asked_once(server, tmp_path):
    server.pages = {"/a": status(200, PNG), "/b": status(200, JPEG)}
    url, other = server.url("/a"), server.url("/b")
    odd = 'cat, "1"\n\udcff'
    outcomes = get([("x", url), ("y", url + "#top"), ("x", url), (odd, other), (odd, other)], tmp_path)
    assert {key: outcome.reason for key, outcome in outcomes.items()} == {"x": "ok", "y": "duplicate-url", odd: "ok"}
    assert server.counts == {"/a": 1, "/b": 1}
    assert get([("y", url), ("x", url)], tmp_path) == outcomes and server.counts == {"/a": 1, "/b": 1}


def test_what_failed_for_good_is_never_asked_again(server, tmp_path):
    server.pages = {"/ok": status(200, PNG), "/bad": status(500), "/page": status(200, b"hello")}
    urls = [(path, server.url(path)) for path in ("/ok", "/404", "/bad", "/page", "/new")]
    get(urls[:4], tmp_path)
    once = {"/ok": 1, "/404": 1, "/bad": 3, "/page": 1}
    assert server.counts == once
    server.pages["/bad"] = status(200, JPEG)
    server.pages["/404"] = status(200, JPEG)
    assert get(urls, tmp_path)["/bad"].reason == "http-500" and server.counts == once | {"/new": 1}
    again = get(urls, tmp_path, again=True)
    assert again["/bad"].reason == "ok" and again["/404"].reason == "http-404"
    assert server.counts == once | {"/new": 1, "/bad": 4}


def test_places_in_all_and_at_a_host_are_kept(server, names, tmp_path):
    names |= {f"h{n}.test": ["127.0.0.1"] for n in range(4)}

    async def slow(visit):
        await asyncio.sleep(0.03)
        await status(200, picture(int(visit.path[1:])))(visit)

    server.otherwise = slow
    urls = [(str(n), server.url(f"/{n}", f"h{n % 4 if n < 40 else 0}.test")) for n in range(60)]
    outcomes = get(urls, tmp_path, concurrency=6, per_host=2)
    assert {outcome.reason for outcome in outcomes.values()} == {"ok"}
    assert server.most.pop("all") <= 6
    assert max(server.most.values()) == 2 and min(server.most.values()) == 2


# A child that kills itself at the n-th call of one function, before it or after it.
CHILD = """
import os, signal, sys
from pathlib import Path
from adapt.collect import download as module
from adapt.collect import download_state

folder, base, count, place, when, number, sent = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
module.BACKOFF = 0.01
left = [int(number)]

def fatal(function):
    def called(*arguments, **named):
        left[0] -= 1
        if left[0] == 0 and when == "before":
            os.kill(os.getpid(), getattr(signal, sent))
        result = function(*arguments, **named)
        if left[0] == 0 and when == "after":
            os.kill(os.getpid(), getattr(signal, sent))
        return result
    return called

if place:
    owner, _, name = place.partition(".")
    owner = {"state": module.State, "path": Path, "module": module}[owner]
    setattr(owner, name, fatal(getattr(owner, name)))
urls = [(f"k{n}", f"{base}/{n}") for n in range(int(count))]
module.download(urls, folder, allow_private=True, min_side=16, concurrency=8, progress=False)
"""
COUNT = 160


def run(folder: Path, server: FaultServer, place: str = "", when: str = "", number: int = 0, sent: str = "SIGKILL"):
    command = [sys.executable, "-c", CHILD, folder, server.url(""), str(COUNT), place, when, str(number), sent]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def mixed(server: FaultServer) -> dict[str, str]:
    """Every third URL works, every third is absent, the others fail twice or for ever; the outcomes."""
    reasons = {}
    for n in range(COUNT):
        page, reasons[f"k{n}"] = [
            (status(200, picture(n)), "ok"),
            (status(404), "http-404"),
            (in_turn(status(500), reset(), status(200, picture(n))), "ok"),
            (status(503), "http-503"),
        ][n % 4]
        server.pages[f"/{n}"] = page
    return reasons


def test_a_killed_run_continues_and_asks_nothing_too_often(server, tmp_path):
    """Killed before and after it notes a request, before and after a file gets its name, before and after the
    outcome is noted: at six moments of one download."""
    reasons = mixed(server)
    for place, when, number in [
        ("state.ask", "before", 5),
        ("state.ask", "after", 9),
        ("path.replace", "before", 3),
        ("path.replace", "after", 4),
        ("state.append", "before", 40),
        ("state.append", "after", 31),
    ]:
        assert run(tmp_path, server, place, when, number).returncode == -signal.SIGKILL
        with (tmp_path / "download.jsonl").open("a") as state:  # and half a line on top
            state.write('{"key": "k1", "ur')
    done = run(tmp_path, server)
    assert done.returncode == 0, done.stderr
    outcomes = {outcome.key: outcome for outcome in read_outcomes(tmp_path / "download.jsonl", tmp_path)}
    assert max(server.counts.values()) <= 3
    assert outcomes.keys() == reasons.keys()
    for key, outcome in outcomes.items():
        # Requests that a kill cut off count too, so what needs three of them may be left without an outcome.
        assert outcome.reason == reasons[key] or outcome.reason in ("interrupted", "http-500", "connection")
        if outcome.reason == "ok":
            assert outcome.path.read_bytes() == picture(int(key[1:]))
    assert sum(outcome.reason == reasons[key] for key, outcome in outcomes.items()) > COUNT // 2
    assert {o.path.name for o in outcomes.values() if o.path} <= files(tmp_path)
    assert not any(name.endswith(".tmp") for name in files(tmp_path))
    before = server.counts.copy()
    assert run(tmp_path, server).returncode == 0 and server.counts == before


def test_a_kill_while_placeholders_are_dropped(server, tmp_path):
    server.otherwise = status(200, PNG)
    assert run(tmp_path, server, "path.unlink", "before", 2).returncode == -signal.SIGKILL
    outcomes = list(read_outcomes(tmp_path / "download.jsonl", tmp_path))
    assert {outcome.reason for outcome in outcomes} == {"placeholder"} and len(files(tmp_path)) == 1
    assert run(tmp_path, server).returncode == 0 and not files(tmp_path)
    assert len(server.visits) == COUNT


@pytest.mark.parametrize(("sent", "code"), [("SIGTERM", 143), ("SIGINT", -signal.SIGINT)])
def test_a_signal_leaves_a_state_that_continues(server, tmp_path, sent, code):
    reasons = mixed(server)
    stopped = run(tmp_path, server, "state.append", "after", 50, sent)
    assert stopped.returncode == code, stopped.stderr
    assert "Traceback" not in stopped.stderr or sent == "SIGINT"
    assert 20 < len(records(tmp_path)) < 80  # whole lines only, and it did not go on to the end
    outcomes = get([(f"k{n}", server.url(f"/{n}")) for n in range(COUNT)], tmp_path)
    assert outcomes.keys() == reasons.keys() and max(server.counts.values()) <= 3


def test_a_file_that_is_no_state_is_refused_and_kept(server, tmp_path):
    state = tmp_path / "download.jsonl"
    good = '{"key": "a", "url": "http://h/", "ask": 1}\n'
    for text in ("hello\n", "half", "[1]\n", '{"key": "a"}\n', 'hello\n{"key": "a', good + "torn\n" + good):
        state.write_text(text)
        with pytest.raises(Refusal, match="name another"):
            download([], tmp_path, progress=False)
        assert state.read_text() == text
    with pytest.raises(Refusal, match="name another"):
        download([], tmp_path, state=tmp_path, progress=False)


def test_a_state_whose_only_line_is_torn_continues(server, tmp_path):
    server.otherwise = status(200, PNG)
    (tmp_path / "download.jsonl").write_text('{"key": "a", "url": "ht')
    assert get([("a", server.url("/a"))], tmp_path)["a"].reason == "ok"


def test_limits_and_folders_that_cannot_work(tmp_path, monkeypatch):
    for name in ("concurrency", "per_host", "retries", "max_bytes", "total_timeout", "read_timeout"):
        with pytest.raises(Refusal, match=f"{name} is 0"):
            download([], tmp_path, **{name: 0})
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match="cannot write"):
        download([], tmp_path / "file" / "folder")
    monkeypatch.setitem(sys.modules, "tenacity", None)
    with pytest.raises(Refusal, match=r"pip install 'adapt-aigi\[data\]'"):
        download([], tmp_path)


def test_a_folder_in_use_is_refused(tmp_path):
    holder = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, tmp_path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(Refusal, match="in use"):
            download([], tmp_path, progress=False)
        other.communicate(b"\n")


def test_a_state_in_use_is_refused(tmp_path):
    state = tmp_path / "state.jsonl"
    said = r"state\.jsonl is in use by another download: .* name another state file"
    with contextlib.closing(download_state.State(state)), pytest.raises(Refusal, match=said):
        download([], tmp_path / "b", state=state, progress=False)
    assert download([], tmp_path / "b", state=state, progress=False).asked == 0


def test_an_error_of_the_list_is_not_called_a_lock(tmp_path):
    def urls():
        raise BlockingIOError(11, "a list that is read without waiting")
        yield

    with pytest.raises(BlockingIOError):
        download(urls(), tmp_path, progress=False)
    assert download([], tmp_path, progress=False).asked == 0  # and the folder is free again


def test_a_full_disk_stops_the_run_and_books_nothing_to_the_url(server, tmp_path, monkeypatch):
    server.otherwise = status(200, PNG)
    urls = [("a", server.url("/a"))]

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(Refusal, match="disk full"):
            get(urls, tmp_path)
    assert [record for record in records(tmp_path) if "reason" in record] == [] == list(files(tmp_path))
    assert get(urls, tmp_path)["a"].reason == "ok"


MEMORY = """
import resource, sys
from adapt.collect.download import download

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def urls(kind, count):
    return ((f"{kind}{n}", f"{sys.argv[2]}/{kind}/{n}") for n in range(count))

flags = dict(allow_private=True, min_side=16, progress=False, retries=1, per_host=64)
download(urls("small", 50), sys.argv[1], **flags)
before = peak()
download(urls("bomb", 2), sys.argv[1], **flags)
print(download(urls("large", 128), sys.argv[1], **flags).counts)
print(peak() - before)
"""


def test_memory_stays_small(server, tmp_path):
    """128 bodies of 4 MB, of which 64 lack only their last byte at the same time, and two gzip bombs of 100 MB."""
    bomb, large = gzip.compress(bytes(10**8), 1), os.urandom(2**22)

    async def page(visit):
        match visit.path.split("/")[1]:
            case "small":
                await status(200, b"x")(visit)
            case "bomb":
                await status(200, bomb, **GZIP)(visit)
            case "large":
                await visit.send(head(Content_Length=len(large)) + large[:-1])
                while server.most["all"] < 64:
                    await asyncio.sleep(0.01)
                await visit.send(large[-1:])
                visit.open = True

    server.otherwise = page
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path, server.url("")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    counts, growth = done.stdout.splitlines()
    assert "'too-many-bytes': 2" in counts and "'not-an-image': 178" in counts
    assert float(growth) < 160, growth  # MB: at most 1 of each body waits in memory, two bodies are judged


def test_speed_is_told(server, tmp_path, capsys):
    count = 400
    server.otherwise = status(200, PNG)
    server.pages = {f"/{n}": status(200, picture(n)) for n in range(count)}
    start = time.perf_counter()
    report = download(
        ((str(n), server.url(f"/{n}")) for n in range(count)), tmp_path, allow_private=True, min_side=16, per_host=64
    )
    seconds = time.perf_counter() - start
    assert report.counts == {"ok": count} and report.asked == count == len(server.visits)
    shown = capsys.readouterr()
    assert "downloading" in shown.err and f"ok={count}" in shown.err
    with capsys.disabled():
        print(f"\n{count / seconds:.0f} images of {len(PNG)} bytes a second, client and server in one process")
