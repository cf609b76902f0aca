"""What may be asked of a host nobody vouches for: its URLs and addresses, and what its headers say."""

import datetime
import email.utils
import hashlib
import ipaddress
import re

MAX_PAUSE = 120  # seconds of a Retry-After: a refusal for longer ends the host's turn
MAX_URL = 8192  # characters: servers refuse longer ones, and data: URLs may hold megabytes
OPT_OUT = {"noai", "noimageai", "noindex", "noimageindex", "none"}  # as img2dataset reads X-Robots-Tag

# What ipaddress (Python 3.11) calls global and is not, or leads to addresses that are not: protocol assignments,
# 6to4 relays, Azure's metadata host; 6to4, Teredo, NAT64, site-local.
NOT_PUBLIC = tuple(
    ipaddress.ip_network(net)
    for net in (
        *("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"),
        *("2002::/16", "2001::/32", "64:ff9b::/96", "64:ff9b:1::/48", "fec0::/10"),
    )
)


def parse_url(url: str, base=None):
    """A URL as it is asked for: no fragment, lower-case host in ASCII; raises ValueError where it is none of ours."""
    from yarl import URL

    text = url.strip(" \t\r\n")
    # Browsers drop control characters and read \ as /; parsers that disagree are how guards are passed.
    if len(text) > MAX_URL or re.search(r"[\0-\x1f\x7f\\]", text):
        raise ValueError("too long, or with characters that parsers disagree on")
    try:
        text.encode()  # half a surrogate pair would be left out without a word
        # What is already quoted stays as it is: some hosts sign the very spelling.
        parsed = URL(text, encoded=re.fullmatch(r"[!-~]+", text) is not None)
        parsed = parsed if base is None else base.join(parsed)
        host = parsed.raw_host or ""
        if parsed.scheme not in ("http", "https") or parsed.user is not None or parsed.password is not None:
            raise ValueError("not http, or with a user's name")
        if parsed.port not in (80, 443) and parsed.port < 1024:  # not the ports of mail, remote shells...
            raise ValueError(f"port {parsed.port}")
        if ":" in host:
            ipaddress.IPv6Address(host)
        else:
            parsed = parsed.with_host(host.lower())
            if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", parsed.raw_host):
                raise ValueError(f"host {parsed.raw_host!r}")
        return parsed.with_fragment(None)
    except TypeError as error:  # yarl's, of a URL without a port
        raise ValueError(str(error)) from error


def short(url: str) -> str:
    """A refused URL for the record, in ASCII; a data: URL may have megabytes."""
    text = url.encode("ascii", "backslashreplace")
    return (text if len(text) <= MAX_URL else text[:64] + b"... " + hashlib.sha256(text).hexdigest().encode()).decode()


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet at large, so that a stranger's URL may lead there."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    inside = any(ip in network for network in NOT_PUBLIC)
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or inside)


def seconds_to_wait(retry_after: str, now: float, most: float = MAX_PAUSE) -> float:
    """Seconds of a Retry-After header (seconds or an HTTP date), within 0 and `most`. `now` is a Unix time."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(retry_after)
            seconds = date.replace(tzinfo=date.tzinfo or datetime.UTC).timestamp() - now
        except (ValueError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), most) if seconds == seconds else 0.0


def opted_out(headers, agent: str) -> bool:
    """Whether X-Robots-Tag (also `name: noai`, where `name` is ours or `*`) or TDM-Reservation forbids the use.

    `headers` is a multi-dict of the response; `agent` the User-Agent, whose product name is compared.
    """
    mine = {"*", agent.partition("/")[0].strip().lower()}
    for line in headers.getall("X-Robots-Tag", ()):
        addressed = True
        for part in line.lower().split(","):
            name, colon, directive = part.partition(":")
            if colon and not name.strip().startswith(("unavailable_after", "max-")):  # directives with a value
                addressed, part = name.strip() in mine, directive
            if addressed and part.strip() in OPT_OUT:
                return True
    return headers.get("TDM-Reservation", "").strip() == "1"
