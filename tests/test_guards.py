"""Who may call: names of the host, pages and their origins, the token. Every refusal names the setting that decides."""

import hmac
from collections.abc import AsyncIterator

import httpx
import pytest

from serving import access
from tests.support.problems import assert_problem
from tests.support.relay import Relay, serving
from tests.support.sockets import Headers, exchange, request
from tests.support.upstream import ScriptedUpstream

LISTED = "http://localhost:5173"
ELSEWHERE = "https://evil.example"
JSON = {"Content-Type": "application/json"}
TOKEN = "a-token-of-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ID = "3f333df6-90a4-4fda-8dd3-9485d27cee36"

CALLS = [
    ("GET", "/"),
    ("GET", "/models"),
    ("GET", "/metrics"),
    ("POST", "/conversations"),
    ("GET", "/conversations"),
    ("GET", f"/conversations/{ID}"),
    ("PATCH", f"/conversations/{ID}"),
    ("DELETE", f"/conversations/{ID}"),
    ("POST", f"/conversations/{ID}/messages"),
    ("GET", f"/conversations/{ID}/messages"),
    ("DELETE", f"/conversations/{ID}/messages/{ID}"),
    ("GET", f"/conversations/{ID}/stream"),
    ("HEAD", f"/conversations/{ID}/stream"),
    ("DELETE", f"/conversations/{ID}/stream"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/redoc"),
    ("GET", "/nowhere"),
    ("PUT", "/conversations"),
    ("OPTIONS", "/conversations"),
]
PAGES = ["/", "/docs", "/redoc", "/openapi.json", "/health"]


@pytest.fixture(scope="module")
async def guarded() -> AsyncIterator[Relay]:
    """A relay that may also be called by other names, and whose upstream doesn't matter."""
    hosts = ("relay.internal", "10.0.0.7", "fd00::1", "[fd00::2]", "Trailing.Dot.")
    async with serving("http://127.0.0.1:9", allowed_hosts=hosts) as relay:
        yield relay


@pytest.fixture(scope="module")
async def locked() -> AsyncIterator[Relay]:
    """A relay with a token."""
    async with serving("http://127.0.0.1:9", auth_token=TOKEN) as relay:
        yield relay


async def with_hosts(relay: Relay, *hosts: str, target: str = "/conversations") -> httpx.Response:
    """A request with just these Host headers, as they are."""
    headers: Headers = [("Host", host) for host in hosts]
    return await exchange(relay, request("GET", target, headers))


# Host


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8001",
        "localhost:",
        "localhost.",
        "localhost.:8001",
        "LocalHost",
        "app.localhost",
        "127.0.0.1",
        "127.0.0.1:65535",
        "127.9.9.9",
        "127.0.0.1.",
        "[::1]",
        "[::1]:8001",
        "[0:0:0:0:0:0:0:1]",
        "relay.internal",
        "RELAY.Internal.:80",
        "10.0.0.7:8001",
        "[fd00::1]",
        "[FD00::1]:8001",
        "[fd00::2]",
        "trailing.dot",
        "trailing.dot.",
    ],
)
async def test_a_host_that_is_this_machine_or_listed_is_served(guarded: Relay, host: str) -> None:
    assert (await with_hosts(guarded, host)).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "evil.example",
        "evil.example:8001",
        "localhost.evil.example",
        "evillocalhost",
        "127.0.0.1.evil.example",
        "127.0.0.1.nip.io",
        "localhost..",
        "localhost@evil.example",
        "evil.example@localhost",
        "localhost:8001@evil.example",
        "evil.example#localhost",
        "evil.example/localhost",
        "evil.example?localhost",
        "evil.example\\localhost",
        "localhost:x",
        "localhost:8001:8001",
        "localhost:999999",
        "localhost, evil.example",
        "local host",
        "loc\xe4lhost",
        "%6c%6f%63alhost",
        "[::1",
        "::1",
        "[::1]evil.example",
        "[::1].evil.example",
        "[localhost]",
        "[::ffff:10.0.0.1]",
        "[fd00::3]",
        "0.0.0.0",
        "[::]",
        "10.0.0.8",
        "2130706434.example",
        "sub.relay.internal",
        "relay.internal.evil.example",
    ],
)
async def test_any_other_host_is_refused(guarded: Relay, host: str) -> None:
    assert_problem(await with_hosts(guarded, host), 403, "Host", "ALLOWED_HOSTS")


async def test_a_request_without_a_host_is_refused(guarded: Relay) -> None:
    assert_problem(await with_hosts(guarded), 403, "ALLOWED_HOSTS")


@pytest.mark.parametrize("hosts", [("localhost", "evil.example"), ("evil.example", "localhost"), ("localhost",) * 2])
async def test_two_hosts_are_refused(guarded: Relay, hosts: tuple[str, str]) -> None:
    assert (await with_hosts(guarded, *hosts)).status_code in (400, 403)


async def test_a_target_with_a_name_of_its_own_does_not_replace_the_host(guarded: Relay) -> None:
    target = "http://localhost/conversations"
    assert_problem(await with_hosts(guarded, "evil.example", target=target), 403, "ALLOWED_HOSTS")


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_a_wrong_host_is_refused_on_every_path(guarded: Relay, method: str, path: str) -> None:
    response = await exchange(guarded, request(method, path, [("Host", "evil.example")]))
    assert response.status_code == 403
    assert response.headers["content-type"] == "application/problem+json"


async def test_health_is_free_of_the_host_since_a_kubelet_sends_the_pods_address(guarded: Relay) -> None:
    assert (await with_hosts(guarded, "10.42.0.17:8001", target="/health")).status_code == 200
    assert (await with_hosts(guarded, target="/health")).status_code == 200
    for path in ("/health/", "/Health", "//health", "/health/x", "/conversations?/health", "/x/../health"):
        assert (await with_hosts(guarded, "10.42.0.17:8001", target=path)).status_code == 403


async def test_a_star_allows_every_host(upstream: ScriptedUpstream) -> None:
    async with serving(upstream, allowed_hosts=("*",)) as relay:
        assert (await with_hosts(relay, "evil.example")).status_code == 200


# Pages and their origins


@pytest.mark.parametrize("origin", ["http://localhost:5173", "http://localhost:3000"])
async def test_a_listed_origin_may_read_and_write(guarded: Relay, origin: str) -> None:
    response = await guarded.client.post("/conversations", json={}, headers={"Origin": origin})
    assert response.status_code == 201
    assert response.headers["access-control-allow-origin"] == origin


async def test_the_services_own_origin_may_read_and_write(guarded: Relay) -> None:
    response = await guarded.client.post("/conversations", json={}, headers={"Origin": guarded.url})
    assert response.status_code == 201
    own = [("Host", "relay.internal"), ("Origin", "https://relay.internal"), ("Content-Length", "0")]
    assert (await exchange(guarded, request("POST", "/conversations", own))).status_code == 201


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("relay.internal:443", "https://relay.internal"),
        ("relay.internal:80", "http://relay.internal"),
        ("relay.internal", "https://relay.internal:443"),
        ("RELAY.internal:443", "https://Relay.Internal"),
        ("relay.internal:8443", "https://relay.internal:8443"),
        ("[fd00::1]:443", "https://[fd00::1]"),
    ],
)
async def test_a_default_port_counts_as_told(guarded: Relay, host: str, origin: str) -> None:
    """Some proxies send it with the Host; browsers leave it out of the Origin."""
    headers = [("Host", host), ("Origin", origin), ("Content-Length", "0")]
    assert (await exchange(guarded, request("POST", "/conversations", headers))).status_code == 201


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("relay.internal:443", "http://relay.internal"),
        ("relay.internal:80", "https://relay.internal"),
        ("relay.internal:8443", "https://relay.internal"),
        ("relay.internal", "https://relay.internal:8443"),
        ("relay.internal:443", "https://relay.internal:80"),
        ("relay.internal:443", "https://10.0.0.7"),
        ("relay.internal:443", "https://relay.internal.evil.example"),
        ("relay.internal:443", "ftp://relay.internal"),
        ("relay.internal:443", "relay.internal"),
        ("relay.internal", "relay.internal"),
    ],
)
async def test_another_port_is_another_origin(guarded: Relay, host: str, origin: str) -> None:
    headers = [("Host", host), ("Origin", origin), ("Content-Length", "0")]
    assert_problem(await exchange(guarded, request("POST", "/conversations", headers)), 403, "CORS_ORIGINS")


@pytest.mark.parametrize(
    "origin",
    [
        ELSEWHERE,
        "null",
        "",
        "file://",
        "http://localhost",
        "http://localhost:5174",
        "https://localhost:5173",
        "http://localhost:5173/",
        "http://localhost:5173.evil.example",
        "http://localhost:5173@evil.example",
        "http://evil.example#http://localhost:5173",
        "http://127.0.0.1:5173",
        "http://[::1]:5173",
        "localhost:5173",
        "http://localhost:5173, https://evil.example",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_any_other_origin_may_do_nothing(guarded: Relay, origin: str, method: str) -> None:
    before = await guarded.health()
    response = await guarded.client.request(method, "/conversations", headers={"Origin": origin})
    assert_problem(response, 403, "CORS_ORIGINS")
    assert "access-control-allow-origin" not in response.headers
    assert await guarded.health() == before


@pytest.mark.parametrize("path", ["/", "/health", "/docs", "/openapi.json"])
async def test_pages_of_elsewhere_may_not_read_what_anybody_may_see(guarded: Relay, path: str) -> None:
    response = await guarded.client.get(path, headers={"Origin": ELSEWHERE})
    assert_problem(response, 403, "CORS_ORIGINS")


async def test_two_origins_are_not_one_that_is_listed(guarded: Relay) -> None:
    for origins in ((LISTED, ELSEWHERE), (ELSEWHERE, LISTED)):
        headers = [("Host", "localhost"), *(("Origin", origin) for origin in origins)]
        assert_problem(await exchange(guarded, request("GET", "/conversations", headers)), 403, "CORS_ORIGINS")


async def test_the_case_of_a_listed_origin_does_not_matter(upstream: ScriptedUpstream) -> None:
    """Browsers send the host in lower case, whatever was typed into the setting."""
    async with serving(upstream, cors_origins=("http://MyBox.Local:5173",)) as relay:
        response = await relay.client.get("/conversations", headers={"Origin": "http://mybox.local:5173"})
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "http://mybox.local:5173"


async def test_null_and_everybody_can_be_listed(upstream: ScriptedUpstream) -> None:
    async with serving(upstream, cors_origins=("null",)) as relay:
        assert (await relay.client.get("/conversations", headers={"Origin": "null"})).status_code == 200
    async with serving(upstream, cors_origins=("*",)) as relay:
        assert (await relay.client.get("/conversations", headers={"Origin": ELSEWHERE})).status_code == 200


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of pages that were refused."""
    return [record.getMessage() for record in caplog.records if "CORS_ORIGINS" in record.getMessage()]


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


@pytest.mark.parametrize("preflight", [{}, PREFLIGHT], ids=["simple", "preflight"])
@pytest.mark.parametrize("host", ["localhost", "192.168.1.5:8001"], ids=["host", "no host"])
async def test_the_log_names_an_origin_that_is_refused_once(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture, preflight: dict[str, str], host: str
) -> None:
    """The page itself can't read why."""
    async with serving(upstream) as relay:
        for origin in ("http://localhost:5174", ELSEWHERE) * 3:
            for method in ("OPTIONS",) if preflight else ("GET", "POST"):
                headers = preflight | {"Origin": origin, "Host": host}
                assert (await relay.client.request(method, "/conversations", headers=headers)).status_code == 403
    told = refusals(caplog)
    assert [origin in line for origin, line in zip(("http://localhost:5174", ELSEWHERE), told, strict=True)] == [
        True
    ] * 2
    assert {record.levelname for record in caplog.records if record.getMessage() in told} == {"WARNING"}


async def test_the_log_says_nothing_of_pages_that_may_call(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(upstream) as relay:
        for origin in (LISTED, relay.url):
            await relay.client.get("/conversations", headers={"Origin": origin})
        refused = await relay.client.options("/", headers={"Origin": LISTED, "Access-Control-Request-Method": "PUT"})
        assert_problem(refused, 403, "method")
    assert refusals(caplog) == []


async def test_origins_that_somebody_invents_fill_neither_memory_nor_log(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(upstream) as relay:
        for number in range(150):
            headers = {"Origin": f"http://{number}.example/" + "x" * 5000}
            await relay.client.get("/conversations", headers=headers)
    told = refusals(caplog)
    assert len(told) == access.MAX_NAMED
    assert max(map(len, told)) < 250


async def test_an_origin_writes_no_line_of_its_own(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(upstream) as relay:
        for preflight in ({}, PREFLIGHT):
            headers = [("Host", "localhost"), ("Origin", f"{len(preflight)}\t\x85\x9b2J'\xe4"), *preflight.items()]
            method = "OPTIONS" if preflight else "GET"
            assert (await exchange(relay, request(method, "/conversations", headers))).status_code == 403
    assert len(told := refusals(caplog)) == 2
    assert all(line.isascii() and line.isprintable() for line in told)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_form_is_no_way_in_even_without_an_origin(guarded: Relay, content_type: str) -> None:
    """What a page can send without a preflight, from a browser that is too old to tell who asks."""
    conversation_id = (await guarded.conversation())["id"]
    before = await guarded.health()
    headers = {"Content-Type": content_type} if content_type else {}
    for path in ("/conversations", f"/conversations/{conversation_id}/messages"):
        response = await guarded.client.post(path, content=b'{"title": "x"}', headers=headers)
        assert_problem(response, 415, "application/json")
    assert await guarded.health() == before


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("mode", ["no-cors", "navigate"])
async def test_an_image_does_not_make_a_stream_start(upstream: ScriptedUpstream, site: str, mode: str) -> None:
    async with serving(upstream) as relay:
        conversation_id = await relay.ask()
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": "image"}
        for path in (f"/conversations/{conversation_id}/stream", "/models", "/conversations"):
            assert_problem(await relay.client.get(path, headers=headers), 403, "CORS_ORIGINS")
        assert [message["role"] for message in await relay.messages(conversation_id)] == ["user"]
        assert (upstream.requests, upstream.models_requests) == ([], [])


@pytest.mark.parametrize("site", ["none", "same-origin"])
async def test_a_user_and_the_service_itself_may_ask_for_anything(guarded: Relay, site: str) -> None:
    assert (await guarded.client.get("/conversations", headers={"Sec-Fetch-Site": site})).status_code == 200


@pytest.mark.parametrize("path", PAGES)
async def test_other_pages_may_link_to_what_has_no_effect(guarded: Relay, path: str) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert (await guarded.client.get(path, headers=headers)).status_code == 200


async def test_a_listed_page_may_stream_though_it_is_another_site(upstream: ScriptedUpstream) -> None:
    async with serving(upstream) as relay:
        headers = {"Origin": LISTED, "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}
        assert (await relay.read(await relay.ask(), headers=headers)).last["done"]


# The token


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_with_a_token_set_everything_needs_it(locked: Relay, method: str, path: str) -> None:
    response = await locked.client.request(method, path, json={} if method in ("POST", "PATCH") else None)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    if method != "HEAD":
        assert_problem(response, 401, "AUTH_TOKEN", "Authorization: Bearer")
    right = await locked.client.request(method, path, headers=BEARER)
    assert right.status_code != 401


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN} {TOKEN}",
        f"Bearer{TOKEN}",
        f"Basic {TOKEN}",
        f"Token {TOKEN}",
        f": {TOKEN}",
        TOKEN,
        "Bearer \xfc\xff",
    ],
)
async def test_a_wrong_token_is_refused(locked: Relay, authorization: str) -> None:
    headers = [("Host", "localhost"), ("Authorization", authorization)]
    response = await exchange(locked, request("GET", "/conversations", headers))
    assert_problem(response, 401, "AUTH_TOKEN")
    assert TOKEN not in response.text


async def test_a_token_beside_a_wrong_one_is_refused(locked: Relay) -> None:
    headers = [("Host", "localhost"), ("Authorization", "Bearer x"), ("Authorization", f"Bearer {TOKEN}")]
    assert_problem(await exchange(locked, request("GET", "/conversations", headers)), 401, "AUTH_TOKEN")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_case_of_the_scheme_does_not_matter(locked: Relay, scheme: str) -> None:
    response = await locked.client.get("/conversations", headers={"Authorization": f"{scheme} {TOKEN}"})
    assert response.status_code == 200


async def test_a_token_is_no_way_around_the_other_guards(locked: Relay) -> None:
    headers = [("Host", "evil.example"), *BEARER.items()]
    assert_problem(await exchange(locked, request("GET", "/conversations", headers)), 403, "ALLOWED_HOSTS")
    response = await locked.client.get("/conversations", headers=BEARER | {"Origin": ELSEWHERE})
    assert_problem(response, 403, "CORS_ORIGINS")


async def test_the_token_is_not_taken_from_the_query(locked: Relay) -> None:
    for name in ("token", "auth_token", "access_token", "authorization"):
        assert_problem(await locked.client.get("/conversations", params={name: TOKEN}), 401, "AUTH_TOKEN")


@pytest.mark.parametrize("path", ["/health", "/health?x=1"])
async def test_health_needs_no_token(locked: Relay, path: str) -> None:
    assert (await locked.client.get(path)).status_code == 200


async def test_a_preflight_needs_no_token_since_a_browser_sends_none(locked: Relay) -> None:
    headers = {
        "Origin": LISTED,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    assert (await locked.client.options("/conversations", headers=headers)).status_code == 200


async def test_the_token_is_compared_in_constant_time(locked: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whole: what is compared doesn't depend on the length of what was sent."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(sent: bytes, right: bytes) -> bool:
        compared.append((sent, right))
        return hmac.compare_digest(sent, right)

    fake = type("hmac", (), {"compare_digest": staticmethod(compare)})
    monkeypatch.setattr(access, "hmac", fake)
    for token in ("x", TOKEN[:-1], TOKEN):
        await locked.client.get("/conversations", headers={"Authorization": f"Bearer {token}"})
    assert compared == [(token.encode(), TOKEN.encode()) for token in ("x", TOKEN[:-1], TOKEN)]


# What refusals and responses look like


@pytest.mark.parametrize("path", ["/conversations", f"/conversations/{ID}/stream", "/nowhere"])
async def test_a_listed_page_can_read_why_it_was_refused(locked: Relay, path: str) -> None:
    response = await locked.client.get(path, headers={"Origin": LISTED})
    assert_problem(response, 401, "AUTH_TOKEN")
    assert response.headers["access-control-allow-origin"] == LISTED
    headers = [("Host", "evil.example"), ("Origin", LISTED)]
    refused = await exchange(locked, request("GET", path, headers))
    assert_problem(refused, 403, "ALLOWED_HOSTS")
    assert refused.headers["access-control-allow-origin"] == LISTED


@pytest.mark.parametrize(("method", "path"), [*CALLS, ("GET", "/health")])
async def test_no_response_can_be_sniffed_or_embedded_elsewhere(guarded: Relay, method: str, path: str) -> None:
    for headers in ({}, {"Origin": ELSEWHERE}):
        response = await guarded.client.request(method, path, headers=headers)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert response.headers["x-request-id"]
        assert "server" not in response.headers


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_the_docs_are_pages_under_a_policy(guarded: Relay, path: str) -> None:
    response = await guarded.client.get(path)
    assert response.headers["content-type"].startswith("text/html")
    policy = dict(part.strip().partition(" ")[::2] for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "'unsafe-inline'" not in policy["script-src"] and "'unsafe-eval'" not in policy["script-src"]


# The start


@pytest.mark.parametrize(
    ("host", "token", "warns"), [("0.0.0.0", "", True), ("0.0.0.0", TOKEN, False), ("127.0.0.1", "", False)]
)
async def test_listening_beyond_this_machine_without_a_token_warns_loudly(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture, host: str, token: str, warns: bool
) -> None:
    async with serving(upstream, host=host, auth_token=token):
        assert ("LISTENING ON 0.0.0.0 WITHOUT A TOKEN" in caplog.text) == warns
    assert TOKEN not in caplog.text
