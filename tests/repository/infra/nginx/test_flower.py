"""Flower below its prefix, behind `infra/nginx/penstock.conf`."""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import urljoin

import pytest
from repository.infra.nginx.site import BASIC, Site
from support.polling import until

pytestmark = pytest.mark.slow


def test_flower_s_pages_files_and_links_are_below_its_prefix(site: Site) -> None:
    refused = site.client.get("/flower/")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic ")
    redirected = site.client.get("/flower")
    assert (redirected.status_code, redirected.headers["location"]) == (301, "/flower/")
    job_id = site.send()
    until(lambda: site.flower(f"/flower/jobs/{job_id}").status_code == 200, "the job in Flower")
    for former, now in (("", "overview"), ("tasks", "jobs"), (f"task/{job_id}", f"jobs/{job_id}")):
        assert site.flower(f"/flower/{former}").headers["location"].partition("?")[0] == f"/flower/{now}"
    until(lambda: "climber" in site.flower("/flower/workers").text, "the worker in Flower")

    def answering() -> list[str]:
        """Workers that answer Flower: one runs jobs before it listens to remote control."""
        return [name for name in site.flower("/flower/api/workers?refresh=1").json() if "climber" in name]

    [worker] = until(answering, "the worker's answer")
    links: set[str] = set()
    for path in (
        "/flower/overview",
        "/flower/workers",
        f"/flower/worker/{worker}",
        "/flower/jobs",
        f"/flower/jobs/{job_id}",
        "/flower/broker",
    ):
        page = site.flower(path)
        assert page.status_code == 200, (path, page.text[:500])
        links |= {urljoin(path, link) for link in page_links(page.text)}
    assert len(links) > 10
    assert [link for link in links if not link.startswith(("/flower/", "https://"))] == []
    statuses = {link: site.flower(link).status_code for link in sorted(links) if link.startswith("/")}
    assert {link: status for link, status in statuses.items() if status not in (200, 302)} == {}
    assert any(link.endswith(".js") or ".js?" in link for link in statuses)


def page_links(text: str) -> set[str]:
    """Addresses of a page: of its links, scripts, styles and images."""
    addresses: set[str] = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            addresses.update(value for name, value in attrs if name in ("href", "src", "action") and value)

    Reader().feed(text)
    return {address for address in addresses if not address.startswith("#")}


def test_acts_in_flower_pass_the_proxy_for_its_own_pages_only(site: Site) -> None:
    url = "/flower/api/task/revoke/none-of-ours"
    assert site.flower("/flower/overview").status_code == 200
    page = {**BASIC, "Origin": site.proxy.url, "X-XSRFToken": site.client.cookies["_xsrf"]}
    assert site.client.post(url, headers={**page, "Sec-Fetch-Site": "same-origin"}).status_code == 200
    assert site.client.post(f"{url}-2", headers=page).status_code == 200
    assert site.client.post(url, headers={**BASIC, "Origin": site.proxy.url}).status_code == 403
    for other in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example.com"}):
        assert site.client.post(url, headers={**page, **other}).status_code == 403
    assert "frame-ancestors 'none'" in site.flower("/flower/overview").headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/flower/metrics", "/flower//metrics", "/flower/healthcheck"])
def test_flower_s_metrics_are_not_public(site: Site, path: str) -> None:
    assert site.raw_get(path).startswith("HTTP/1.1 404 ")
