"""gateways.py: which URLs are gateways, asked as text and through the client that sends the request."""

from typing import Any

import mlflow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_gateway_client.errors import AgentGatewayError, ConfigurationError
from agent_gateway_client.gateways import Gateways, gateways_for_client
from agent_gateway_client.http import wrap_httpx
from tests.support.client import (
    Wire,
    each_stack,
    isolated,  # noqa: F401
)

SAME = [
    ("http://gw.test:5000/gateway", "http://gw.test:5000/gateway"),
    ("http://gw.test:5000/gateway", "http://gw.test:5000/gateway/"),
    ("http://gw.test:5000/gateway", "http://gw.test:5000/gateway/openai/v1/chat/completions"),
    ("http://gw.test:5000/gateway", "http://gw.test:5000/gateway?api-version=1"),
    ("http://gw.test:5000/gateway/", "http://gw.test:5000/gateway"),
    ("http://gw.test:5000/gateway//", "http://gw.test:5000/gateway/v1"),
    ("http://gw.test:5000", "http://gw.test:5000"),
    ("http://gw.test:5000", "http://gw.test:5000/anything/at/all"),
    ("http://gw.test:5000/", "http://gw.test:5000/anything"),
    ("HTTP://GW.Test:5000/gateway", "http://gw.test:5000/gateway"),
    ("http://gw.test:5000/gateway", "http://GW.TEST:5000/gateway"),
    ("http://gw.test.:5000", "http://gw.test:5000/v1"),
    ("http://gw.test:5000", "http://gw.test.:5000/v1"),
    ("http://gw.test", "http://gw.test:80/v1"),
    ("http://gw.test:80", "http://gw.test/v1"),
    ("https://gw.test", "https://gw.test:443/v1"),
    ("https://gw.test:443", "https://gw.test/v1"),
    ("http://gw.test:", "http://gw.test/v1"),
    ("  http://gw.test  ", "http://gw.test/v1"),
    ("http://user:secret@gw.test:5000", "http://gw.test:5000/v1"),
    ("http://gw.test:5000", "http://user:se%40cret@gw.test:5000/v1"),
    ("http://127.0.0.1:5000", "http://127.0.0.1:5000/v1"),
    ("http://[::1]:5000/gateway", "http://[::1]:5000/gateway/v1"),
    ("http://[FE80::A]", "http://[fe80::a]:80/"),
    ("http://b\xfccher.example", "http://b\xfccher.example/v1"),
    ("http://b\xfccher.example", "http://xn--bcher-kva.example/v1"),
    ("http://xn--bcher-kva.example", "http://b\xfccher.example/v1"),
    ("http://XN--BCHER-KVA.example", "http://B\xdcCHER.example/v1"),
    ("http://api.b\xfccher.example", "http://api.xn--bcher-kva.example/v1"),
    ("http://api.xn--bcher-kva.example", "http://api.b\xfccher.example/v1"),
    ("http://stra\xdfe.example", "http://stra\xdfe.example/v1"),
    ("http://stra\xdfe.example", "http://xn--strae-oqa.example/v1"),
    ("http://xn--strae-oqa.example", "http://stra\xdfe.example/v1"),
    ("http://xn--1-zhc.example", "http://\u05d01.example/v1"),
    ("http://gw.test/team%20a/v1", "http://gw.test/team%20a/v1/chat"),
    ("http://gw.test/%C3%A9quipe", "http://gw.test/%C3%A9quipe/v1"),
    ("http://gw.test/gateway", "http://gw.test/gateway/v1/models/mine..v2"),
]

OTHER = [
    ("http://gw.test:5000/gateway", "http://gw.test:5000/gateway2"),
    ("http://gw.test:5000/gateway", "http://gw.test:5000/gateway-admin/v1"),
    ("http://gw.test:5000/gateway", "http://gw.test:5000/gatewa"),
    ("http://gw.test:5000/gateway", "http://gw.test:5000/"),
    ("http://gw.test:5000/gateway", "http://gw.test:5000/Gateway"),
    ("http://gw.test:5000/gateway", "http://gw.test:5000/x/gateway"),
    ("http://gw.test:5000/gateway", "http://gw.test:5000/?/gateway"),
    ("http://gw.test:5000/gateway", "http://gw.test:5000/gateway/../admin"),
    ("http://gw.test:5000/gateway", "http://gw.test:5000/gateway/.."),
    ("http://gw.test:5000/gateway", "http://gw.test:5000/gateway/%2e%2e/admin"),
    ("http://gw.test:5000/gateway", "http://gw.test:5000/gateway/.%2E/admin"),
    ("http://gw.test:5000/gateway", "http://gw.test:5000/gateway/..%2fadmin"),
    ("http://gw.test:5000", "http://gw.test:5001/v1"),
    ("http://gw.test:5000", "http://gw.test/v1"),
    ("http://gw.test", "https://gw.test/v1"),
    ("https://gw.test", "http://gw.test/v1"),
    ("https://gw.test", "http://gw.test:443/v1"),
    ("http://gw.test", "http://other.test/v1"),
    ("http://gw.test", "http://api.gw.test/v1"),
    ("http://api.gw.test", "http://gw.test/v1"),
    ("http://gw.test", "http://gw.test.evil.test/v1"),
    ("http://gw.test", "http://evilgw.test/v1"),
    ("http://gw.test", "http://gw.test@evil.test/v1"),
    ("http://gw.test", "http://gw.test:80@evil.test/v1"),
    ("http://gw.test", "http://evil.test/http://gw.test/v1"),
    ("http://gw.test", "http://evil.test#@gw.test/v1"),
    ("http://gw.test", "http://evil.test?@gw.test/v1"),
    ("http://[::1]:5000", "http://[::2]:5000/v1"),
    ("http://127.0.0.1:5000", "http://127.0.0.10:5000/v1"),
    ("http://b\xfccher.example", "http://bucher.example/v1"),
    # IDNA 2003 maps the sharp s to ss; these are two hosts since IDNA 2008.
    ("http://stra\xdfe.example", "http://strasse.example/v1"),
    ("http://strasse.example", "http://stra\xdfe.example/v1"),
    ("http://gw.test", "http://\u05d01.example/v1"),
]

MATRIX = [(*pair, True) for pair in SAME] + [(*pair, False) for pair in OTHER]

NEAR = [
    ("http://gw.test", "https://gw.test/v1"),
    ("https://gw.test", "http://gw.test/v1"),
    ("https://gw.test", "http://gw.test:443/v1"),
]
"""Those of the others that were probably meant to be the gateway."""


@pytest.mark.parametrize(("gateway", "url", "covered"), MATRIX)
def test_a_url_as_text_is_a_gateway_or_not(gateway: str, url: str, covered: bool):
    """Scheme, host and port must be the same in any spelling, and the path the prefix or below it."""
    assert (url in Gateways([gateway])) is covered


@each_stack
@pytest.mark.parametrize(("gateway", "url", "covered"), MATRIX)
def test_a_url_as_the_client_sends_it_is_a_gateway_or_not(
    stack: Any, gateway: str, url: str, covered: bool, caplog: pytest.LogCaptureFixture
):
    """The client's own reading of the URL (IDNA, percent-encoding, dots) gives the same answer.

    Only a near miss is worth a word.
    """
    wire = Wire()
    with mlflow.start_span("agent"), wrap_httpx(wire.client(stack), [gateway]) as client:
        client.get(url)
    assert [len(values) for values in wire.sent()] == [int(covered)]
    near = [url] if (gateway, url) in NEAR else []
    assert [text.partition(": ")[0] for text in caplog.messages] == [
        f"No trace context is sent to {url}" for url in near
    ]


@pytest.mark.parametrize(
    ("gateway", "url", "covered"),
    [
        ("http://gw.test:5000/gateway", "ws://gw.test:5000/gateway/realtime", True),
        ("https://gw.test", "wss://gw.test/realtime", True),
        ("https://gw.test", "wss://gw.test:443/realtime", True),
        ("https://gw.test", "ws://gw.test/realtime", False),
        ("http://gw.test", "wss://gw.test/realtime", False),
        ("http://gw.test", "ftp://gw.test/", False),
        ("http://gw.test", "ws://other.test/", False),
    ],
)
def test_a_websocket_counts_as_the_http_it_starts_from(gateway: str, url: str, covered: bool):
    """ws:// is http:// and wss:// is https://, default ports included; no other scheme is a gateway's."""
    assert (url in Gateways([gateway])) is covered


def test_a_url_in_parts_is_a_gateway_or_not():
    """An HTTP client's parts of a URL need no spelling of their own: any case of the host, port or none."""
    gateways = Gateways(["https://gw.test/gateway", "http://[::1]:5000"])
    assert gateways.covers("https", "GW.Test.", None, "/gateway/v1")
    assert gateways.covers("wss", "gw.test", 443, "/gateway")
    assert gateways.covers("http", "::1", 5000, "")
    assert not gateways.covers("https", "gw.test", 80, "/gateway")
    assert not gateways.covers("https", "", None, "/gateway")


@pytest.mark.parametrize(
    "junk",
    [
        "",
        "gw.test",
        "/v1",
        "//gw.test/v1",
        "http://",
        "http:///v1",
        "http://[::1",
        "http://gw.test:x/",
        None,
        5,
        b"x",
    ],
)
def test_what_is_no_url_is_no_gateway(junk: object):
    """Asking about anything at all gives an answer and never an error."""
    assert junk not in Gateways(["http://gw.test", "http://[::1]"])


HINT = r": a gateway is scheme://host\[:port\]\[/prefix\], like http://localhost:5000/gateway\.$"
BAD = [
    ("", r"'' has no scheme"),
    ("localhost", r"'localhost' has no scheme"),
    ("localhost:5000", r"'localhost:5000' has no scheme"),
    ("127.0.0.1:5000/gateway", r"'127.0.0.1:5000/gateway' has no scheme"),
    ("/gateway", r"'/gateway' has no scheme"),
    ("//localhost:5000", r"'//localhost:5000' has no scheme"),
    ("ftp://gw.test", r"'ftp://gw.test' has the scheme 'ftp'"),
    ("ws://gw.test", r"'ws://gw.test' has the scheme 'ws'"),
    ("unix:///run/gw.sock", r"has the scheme 'unix'"),
    ("http://", r"'http://' has no host"),
    ("http:gw.test", r"'http:gw.test' has no host"),
    ("http:///gateway", r"'http:///gateway' has no host"),
    ("http://:5000", r"'http://:5000' has no host"),
    ("http://user@:5000", r"has no host"),
    ("http://.", r"'http://.' has no host"),
    ("http://my host:5000", r"'http://my host:5000' has no host"),
    ("http://gw.test:port", r"'http://gw.test:port' is not a gateway URL \(Port could not be cast"),
    ("http://gw.test:70000", r"'http://gw.test:70000' is not a gateway URL \(Port out of range"),
    ("http://gw.test:-1", r"is not a gateway URL \(Port"),
    ("http://gw.test:0", r"'http://gw.test:0' "),
    ("http://[::1", r"is not a gateway URL \(Invalid IPv6 URL\)"),
    ("http://gw.test/?key=1", r"has a query or a fragment"),
    ("http://gw.test/#top", r"has a query or a fragment"),
    ("http://gw.test/a/../b", r"'http://gw.test/a/../b' "),
    ("http://\xe9" + "a" * 70, r"has a host that is neither a name nor an address"),
    ("http://a.test,http://b.test", r"'http://a.test,http://b.test' has a comma \(give several gateways as several"),
    ("http://a.test:5000,http://b.test:5000", r"has a comma"),
    ("http://a.test/v1,http://b.test", r"has a comma"),
    ("http://*", r"'http://\*' has a '\*', but patterns are not supported"),
    ("https://*.gw.test", r"patterns are not supported"),
    ("http://gw.test/gateway/*", r"patterns are not supported"),
    ("http://a..b", r"'http://a..b' has a host that is neither a name nor an address"),
    ("http://.gw.test", r"neither a name nor an address"),
    ("http://gw$.test", r"neither a name nor an address"),
    ("http://gw.test\\gateway", r"has a backslash"),
    (None, r"None is not a gateway URL"),
    (5000, r"5000 is not a gateway URL"),
    (b"http://gw.test", r"b'http://gw.test' is not a gateway URL"),
    (["http://gw.test"], r"\['http://gw.test'\] is not a gateway URL"),
]


@pytest.mark.parametrize(("value", "problem"), BAD, ids=[repr(value)[:30] for value, _ in BAD])
def test_a_bad_gateway_is_one_clear_error(value: Any, problem: str):
    """What can never be a gateway is refused when it is given, with what is wrong and what to write."""
    with pytest.raises(ConfigurationError, match=problem) as caught:
        Gateways(["http://good.test", value])
    assert isinstance(caught.value, AgentGatewayError)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(ConfigurationError, match=HINT):
        gateways_for_client("http://good.test", [value])


def test_one_string_instead_of_a_list_is_refused():
    """A string is a list of characters to Python; the error says how to write it."""
    with pytest.raises(ConfigurationError, match=r"write gateways=\['http://gw.test'\]"):
        Gateways("http://gw.test")


def test_what_is_no_list_at_all_is_refused():
    """A value that cannot be gone through is a configuration error like any other."""
    with pytest.raises(ConfigurationError, match="list of URLs"):
        Gateways(5000)


def test_the_set_of_gateways():
    """It keeps the order, drops duplicates, joins with another, and is false when it is empty."""
    one = Gateways(["http://a.test", "http://b.test/x", "http://a.test"])
    two = Gateways(["http://b.test/y"])
    both = one | two
    assert list(one) == ["http://a.test", "http://b.test/x"]
    assert list(both) == ["http://a.test", "http://b.test/x", "http://b.test/y"]
    assert [url in both for url in ("http://b.test/x", "http://b.test/y/1", "http://b.test/z")] == [
        True,
        True,
        False,
    ]
    assert "http://b.test/y" not in one
    assert repr(two) == "Gateways(['http://b.test/y'])"
    assert (bool(one), bool(Gateways([]))) == (True, False)


@pytest.mark.parametrize(
    ("value", "urls"),
    [
        (None, []),
        ("", []),
        ("  , ,", []),
        ("http://a.test", ["http://a.test"]),
        (" http://a.test , https://b.test:8443/x,", ["http://a.test", "https://b.test:8443/x"]),
    ],
)
def test_the_environment_names_gateways(value: str | None, urls: list[str], monkeypatch: pytest.MonkeyPatch):
    """AGENT_GATEWAY_URLS is a list with commas; unset, empty or blank is no gateway."""
    if value is not None:
        monkeypatch.setenv("AGENT_GATEWAY_URLS", value)
    assert list(Gateways.from_environment()) == urls


def test_a_bad_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch):
    """A bad value in AGENT_GATEWAY_URLS is an error that names the variable and the value."""
    monkeypatch.setenv("AGENT_GATEWAY_URLS", "http://a.test,localhost:5000")
    for ask in (Gateways.from_environment, lambda: gateways_for_client("http://gw.test", None)):
        with pytest.raises(ConfigurationError, match=r"AGENT_GATEWAY_URLS: 'localhost:5000' has no scheme"):
            ask()


def test_which_gateways_a_client_has(monkeypatch: pytest.MonkeyPatch):
    """By default its base_url and the environment's; what is named replaces both."""
    monkeypatch.setenv("AGENT_GATEWAY_URLS", "http://env.test")
    assert list(gateways_for_client("http://own.test/v1/", None)) == [
        "http://own.test/v1/",
        "http://env.test",
    ]
    assert list(gateways_for_client("", None)) == ["http://env.test"]
    assert list(gateways_for_client("http://own.test", ["http://named.test"])) == ["http://named.test"]


def test_a_client_without_any_gateway_is_refused():
    """Nothing that names a gateway, or an empty list, is an error that says what to give."""
    with pytest.raises(ConfigurationError, match=r"gateways=\['http://host:port/prefix'\], or set AGENT_GATEWAY_URLS"):
        gateways_for_client("", None)
    with pytest.raises(ConfigurationError, match="gateways is empty"):
        gateways_for_client("http://own.test", [])


VENDORS = [
    "https://api.openai.com/v1",
    "https://API.OpenAI.com./v1/",
    "https://user@api.openai.com:443",
    # openai 3.x's data_residency, and its client for Amazon Bedrock.
    "https://eu.api.openai.com/v1",
    "https://us.api.openai.com/v1",
    "https://bedrock-mantle.us-east-1.api.aws/openai/v1",
    "https://my-resource.openai.azure.com/openai",
    "https://my-resource.cognitiveservices.azure.com",
    "https://api.anthropic.com",
    "https://generativelanguage.googleapis.com/v1beta/openai",
    "https://us-central1-aiplatform.googleapis.com/v1",
    "https://api.mistral.ai/v1",
    "https://api.groq.com/openai/v1",
    "https://openrouter.ai/api/v1",
    "https://bedrock-runtime.eu-west-1.amazonaws.com/openai/v1",
]


@pytest.mark.parametrize("url", VENDORS)
def test_a_vendors_public_api_is_refused_unless_it_is_named(url: str):
    """A vendor's base_url is an error that says what to do; naming it as a gateway is a decision."""
    with pytest.raises(ConfigurationError, match=r"model vendor's public API.*Set base_url.*gateways=\["):
        gateways_for_client(url, None)
    assert list(gateways_for_client(url, [url])) == [url]


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:5000/gateway/openai/v1",
        "https://api.openai.com.internal.test/v1",
        "https://gateway.test/api.openai.com/v1",
        "https://api.openai.com@gateway.test/v1",
        "https://notopenrouter.ai",
        "https://openai.azure.com.internal.test",
    ],
)
def test_a_host_that_only_looks_like_a_vendors_is_trusted(url: str):
    """Only the host decides, and only the whole of it."""
    assert list(gateways_for_client(url, None)) == [url]


@pytest.mark.parametrize("url", ["ftp://user:secret@gw", "http://user:secret@gw:x", "http://user:secret@gw?a=b"])
def test_a_password_in_a_url_is_not_repeated_in_an_error(url):
    """What a configuration error says ends up in logs, so it shows a URL without its credentials."""
    with pytest.raises(ConfigurationError) as raised:
        Gateways([url])
    assert "secret" not in str(raised.value)
    assert "secret" not in repr(Gateways(["http://user:secret@gw"]))


def test_a_gateway_behind_a_load_balancer_of_amazon_is_no_vendor():
    """Hosts that anybody can rent are not taken for a model vendor's API."""
    assert gateways_for_client("http://my-lb-123.eu-west-1.elb.amazonaws.com/v1", None)


@pytest.mark.parametrize(
    "url",
    [
        "http://gw.test\\@evil.test/gateway",
        "http://evil.test\\@gw.test/gateway",
        "http://gw.test/gateway\\x",
        "http://gw.test/gateway/a\\..\\b",
        "http://gw.test/gateway/a%5Cb",
    ],
)
@pytest.mark.parametrize("gateway", ["http://gw.test", "http://gw.test/gateway"])
def test_a_backslash_is_no_gateway(url: str, gateway: str):
    """Clients disagree on what a backslash in a URL is; in the query it is only a character."""
    assert url not in Gateways([gateway])
    assert "http://gw.test/gateway?a=\\b" in Gateways([gateway])
    path = url.partition("://")[2].partition("/")[2]
    if path.startswith("gateway") and "@" not in url:
        assert not Gateways([gateway]).covers("http", "gw.test", None, "/" + path)


@pytest.mark.parametrize(
    "host", ["gw_1", "a-b.test", "10.0.0.1", "[::1]", "[fe80::1%25eth0]", "\xfcber.test", "gw.test."]
)
def test_hosts_that_are_names_or_addresses(host: str):
    """What can be looked up is taken: underscores of containers, addresses, international names."""
    assert f"http://{host}:5000/gateway/v1" in Gateways([f"http://{host}:5000/gateway"])


def test_what_is_remembered_of_other_origins_is_bounded():
    """A program that talks to thousands of hosts fills no memory, and its requests to the gateway still count."""
    gateways = Gateways(["http://gw.test:5000/gateway"])
    for number in range(3_000):
        assert not gateways.covers("http", f"host{number}.test", 5000, "/gateway")
    assert len(gateways._seen) <= 1_000
    for _ in range(2):
        assert gateways.covers("http", "GW.test.", 5000, "/gateway/v1")
        assert not gateways.covers("http", "gw.test", 5001, "/gateway/v1")


def test_what_is_remembered_of_paths_is_bounded():
    """It has no queries, which may contain keys."""
    gateways = Gateways(["http://gw.test:5000/gateway"])
    for _ in range(2):
        for number in range(1_500):
            assert gateways.covers("http", "gw.test", 5000, f"/gateway/{number}")
            assert gateways.covers("http", "gw.test", 5000, f"/gateway/v1?key={number}")
            assert not gateways.covers("http", "gw.test", 5000, f"/gateway{number}")
    known = gateways.near("http", "gw.test", 5000)
    assert known == {f"/gateway/{number}" for number in range(1_000)}


HOSTS = st.sampled_from(["gateway.test", "Gateway.test.", "other.test", "localhost", "127.0.0.1", "::1"])
PATHS = st.sampled_from(["/", "/gateway", "/gateway/v1/chat", "/gateway2", "/v1/chat?a=b", "/gateway/../v1"])


@given(
    st.lists(st.sampled_from(["http://gateway.test:5000/gateway", "https://localhost", "http://other.test"])),
    st.lists(
        st.tuples(st.sampled_from(["http", "https", "ws"]), HOSTS, st.sampled_from([None, 80, 443, 5000]), PATHS),
        min_size=1,
        max_size=8,
    ),
)
def test_a_request_that_is_not_near_is_neither_to_a_gateway_nor_a_near_miss(
    urls: list[str], requests: list[tuple[str, str, int | None, str]]
):
    """The first answer for an origin is remembered, and must not hide a request with another path."""
    gateways = Gateways(urls)
    for request in requests:
        is_near = gateways.near(*request[:3]) is not None
        assert is_near or not (gateways.covers(*request) or gateways.near_miss(*request))


def test_other_origins_are_not_near_from_the_second_request_on():
    gateways = Gateways(["http://gateway.test:5000/gateway"])
    assert not gateways.covers("https", "other.test", None, "/v1")
    assert gateways.near("https", "other.test", None) is None
    assert gateways.near("http", "gateway.test", 5000) is not None
    # With another port, the path decides whether it is a near miss.
    assert gateways.near("http", "gateway.test", 80) is not None
