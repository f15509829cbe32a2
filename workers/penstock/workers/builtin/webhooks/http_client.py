"""HTTP requests to addresses that other people chose: refused for private networks unless these are allowed."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penstock.workers.handlers.returns import Permanent

if TYPE_CHECKING:
    import httpx

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST = ipaddress.IPv6Network("2000::/3")
"""The only IPv6 addresses that are given out for the internet: site-local ones, IPv4-compatible ones, the local NAT64
prefix (RFC 8215), SRv6 (RFC 9602) and all that may come lie outside.
https://www.iana.org/assignments/ipv6-address-space"""
_SPECIAL = tuple(map(ipaddress.ip_network, ("192.88.99.0/24", "2001::/23", "2001:db8::/32", "3fff::/20")))
"""Networks of the special-purpose registries that older Pythons take as public: relays of 6to4, protocols,
documentation (RFC 9637). https://www.iana.org/assignments/iana-ipv6-special-registry and -ipv4-"""
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)
"""The first half of an interface's id that has an IPv4 address in its second half (RFC 5214)."""


async def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    allowed: Sequence[Network] = (),
    timeout_seconds: float,
    verify: Any = True,
) -> httpx.Response:
    """Send a POST, without redirects or proxies. The body of the answer is not read.

    The name is resolved once, and the connection is made to the address that was checked, so a DNS server that changes
    its answer in between has no effect. Certificates are checked for the name.

    Arguments:
        allowed: networks that are not public and may be reached.
        timeout_seconds: to connect, and between two pieces of the answer.
        verify: as httpx takes it.

    Raises:
        Permanent: none of the addresses is public or allowed.
        OSError, httpx.HTTPError: it cannot be resolved, reached or understood.
    """
    import httpx  # imported lazily: only workers that send webhooks need its memory

    try:
        target = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise Permanent(f"not a URL: {error}") from None
    if target.scheme not in ("http", "https") or not target.host:
        raise Permanent("not an http:// or https:// URL")
    address = await resolve(target.host, target.port or (443 if target.scheme == "https" else 80), allowed)
    pinned = target.copy_with(host=str(address))
    request_headers = {**headers, "host": target.netloc.decode("ascii"), "user-agent": "penstock"}
    async with (
        httpx.AsyncClient(timeout=timeout_seconds, follow_redirects=False, trust_env=False, verify=verify) as client,
        client.stream(
            "POST",
            pinned,
            content=body,
            headers=request_headers,
            extensions={"sni_hostname": target.raw_host.decode("ascii")},
        ) as response,
    ):
        return response


async def resolve(host: str, port: int, allowed: Sequence[Network] = ()) -> Address:
    """The first address of a host that is public or allowed.

    Raises:
        Permanent: there is none; OSError: the name cannot be resolved.
    """
    entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries]
    for address in addresses:
        if is_public(address) or any(address in network for network in allowed):
            return address
    resolved = ", ".join(map(str, dict.fromkeys(addresses)))
    raise Permanent(f"{host} is {resolved}, which is not public; allow_networks may name its network")


def is_public(address: Address) -> bool:
    """Whether an address is public. An IPv4 address wrapped in an IPv6 one is judged by itself."""
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            wrapped = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if wrapped is not None:
            return is_public(wrapped)
        if address not in _UNICAST or (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
            return False
    if any(address in network for network in _SPECIAL):
        return False
    return address.is_global and not address.is_multicast
