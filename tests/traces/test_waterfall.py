"""waterfall.py: a trace as HTML, where nothing that a trace says is markup."""

import re
from html.parser import HTMLParser

import pytest

from agent_gateway_client.traces.notebook import Waterfall
from agent_gateway_client.traces.waterfall import page, waterfall
from tests.support.trace_samples import joined, span

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;</style></td>"
KNOWN_TAGS = {
    "a", "b", "body", "dd", "details", "div", "dl", "dt", "head", "html", "i", "meta", "p", "span", "style", "summary",
    "table", "tbody", "td", "th", "thead", "title", "tr",
}  # fmt: skip

KNOWN_ATTRIBUTES = {
    "charset", "class", "colspan", "content", "data-tip", "href", "http-equiv", "lang", "name", "rel", "style"
}  # fmt: skip


class Markup(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def evil() -> Markup:
    attributes = {
        EVIL: EVIL,
        "error__type": EVIL,
        "mlflow__llm__model": EVIL,
        "mlflow__gateway__linkedTraceId": "tr-gw",
    }
    own = [span(7, None, EVIL, 0, 1, **{EVIL: EVIL})]
    return Markup(page(joined(span(1, None, EVIL, 0, 1, **attributes), linked=own, trace_id=EVIL)))


def test_what_a_trace_says_is_text(evil: Markup):
    """In names, attributes, models, errors, ids and in the gateway's own trace: no tag and no attribute comes of it."""
    assert set(evil.tags) <= KNOWN_TAGS
    names = {name for name, _ in evil.attributes}
    assert names <= KNOWN_ATTRIBUTES
    assert evil.text.count(EVIL) >= 7
    styles = [value for name, value in evil.attributes if name == "style"]
    assert all(re.fullmatch(r"left:[\d.]+%;width:[\d.]+%", style) for style in styles)
    classes = {one for name, value in evil.attributes if name == "class" for one in value.split()}
    assert not any("<" in one or '"' in one for one in classes)


def test_nothing_is_fetched_and_nothing_runs(evil: Markup):
    """The page says so to the browser, too."""
    assert "script" not in evil.tags
    assert dict(evil.attributes)["content"].startswith("default-src 'none'")
    text = page(joined(span(1, None, "agent", 0, 1)))
    assert re.findall(r"url\(|@import|src=|<link", text) == []
    assert set(re.findall(r"https?://[^\"/]*", text)) == {"http://mlflow"}


def test_a_link_leads_to_a_server_only():
    """A tracking URI of another kind, like a database with its password, is not shown."""
    trace = joined(span(1, None, "agent", 0, 1))._replace(tracking_uri="postgresql://me:secret@db/mlflow")
    text = waterfall(trace)
    assert "<a " not in text
    assert "secret" not in text
    assert "<a " not in waterfall(trace._replace(tracking_uri="javascript:alert(1)"))


def test_bars_lie_where_the_spans_did():
    """Also of a span of another clock, which begins before all others or ends after them, and of one that runs."""
    own = [span(7, None, "early", -50, 20), span(8, 7, "late", 90, 300)]
    text = waterfall(
        joined(
            span(1, None, "agent", 0, 100),
            span(2, 1, "gateway/chat", 25, 75, mlflow__gateway__linkedTraceId="tr-gw"),
            span(3, 1, "running", 80, None),
            linked=own,
        )
    )
    assert re.findall(r"left:([\d.]+)%;width:([\d.]+)%", text) == [
        ("0.000", "100.000"), ("25.000", "50.000"), ("0.000", "70.000"), ("90.000", "10.000"), ("80.000", "0.000")
    ]  # fmt: skip


def test_without_styles_a_table_is_left():
    """As on code-hosting sites: the columns in words, and the tree by its indentation."""
    text = Markup(waterfall(joined(span(1, None, "agent", 0, 9), span(2, 1, "gateway/chat", 1, 5)))).text
    assert "SpanTimeDurationStatusModelTokensCost" in text
    assert "\N{EM SPACE}gateway/chat" in text


def test_in_a_terminal_it_is_text():
    assert repr(Waterfall(joined(span(1, None, "agent", 0, 9), span(2, 1, "gateway/chat", 1, 5)))) == (
        "trace tr-1\n  agent  9 ms  OK\n    gateway/chat  4 ms  OK"
    )


def test_an_empty_trace():
    assert "0 spans" in waterfall(joined())
