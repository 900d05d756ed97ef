"""waterfall.py: a trace as HTML, where nothing that a trace says is markup."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from agent_gateway_client.traces import waterfall as waterfall_module
from agent_gateway_client.traces.notebook import Waterfall
from agent_gateway_client.traces.waterfall import page, waterfall
from tests.support.trace_samples import joined, span

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;</style></td>"
KNOWN_TAGS = {
    "a", "b", "body", "dd", "details", "div", "dl", "dt", "head", "html", "i", "li", "meta", "p", "small", "span",
    "style", "summary", "title", "ul", "wbr",
}  # fmt: skip

KNOWN_ATTRIBUTES = {
    "aria-hidden", "aria-label", "charset", "class", "content", "href", "http-equiv", "id", "lang", "name", "open",
    "rel", "style", "title",
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
    assert all(re.fullmatch(r"((left|width|--[a-z]+):[\d.]+(%|px)?;?)+", style) for style in styles)
    anchors = [value for name, value in evil.attributes if name == "id"]
    assert all(re.fullmatch(r"agw-[0-9a-f]{8}-[0-9a-f]{16}", anchor) for anchor in anchors)
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
        ("0.000", "100.000"), ("25.000", "50.000"), ("0.000", "70.000"), ("90.000", "10.000"), ("80.000", "20.000")
    ]  # fmt: skip


def test_without_styles_a_table_is_left():
    """As on code-hosting sites: nested lists, in which each span is a sentence of its facts."""
    text = Markup(waterfall(joined(span(1, None, "agent", 0, 9), span(2, 1, "gateway/chat", 1, 5)))).text
    assert "agent starts at +0 ms  9 ms OK" in text
    assert "1 span below" in text
    assert "gateway/chat starts at +1 ms  4 ms OK" in text


def test_a_spans_attributes_are_there_once():
    """Whoever opens a row reads them over the full width; nothing of them is repeated for a pointer."""
    text = waterfall(joined(span(1, None, "agent", 0, 9, city="Lisbon")))
    assert text.count("Lisbon") == 1


def nesting(text: str) -> list[tuple[str, bool]]:
    """The names of the spans in order, each with whether what is below it is shown from the start."""
    found = re.findall(
        r'<span class="name">.*?<b>([^<]*)</b>.*?</dl></details>(<details class="below"( open)?>)?', text
    )
    return [(name, bool(is_open)) for name, below, is_open in found if below]


def test_a_small_trace_is_shown_in_full():
    shown = waterfall(joined(span(1, None, "agent", 0, 9), span(2, 1, "tool", 1, 2), span(3, 2, "below", 1, 2)))
    assert nesting(shown) == [("agent", True), ("tool", True)]


def test_of_a_long_trace_what_failed_runs_or_takes_time_is_shown():
    """The rest is folded, and says how much it is."""
    steps = [span(10 * n, 1, f"step {n}", 5 * n, 5 * n + 4) for n in range(1, 101)]
    below = [span(10 * n + 1, 10 * n, "below", 5 * n + 1, 5 * n + 2) for n in range(1, 101) if n not in (3, 5, 7)]
    failed = span(31, 30, "below", 16, 17, error__type="503")
    runs = span(51, 50, "below", 26, None)
    slow = [span(2, 1, "slow", 600, 1000), span(3, 2, "below", 600, 990)]
    text = waterfall(joined(span(1, None, "agent", 0, 1000), *steps, *below, failed, runs, *slow))
    assert {name for name, is_open in nesting(text) if is_open} == {"agent", "step 3", "step 5", "slow"}
    assert len(nesting(text)) == 101
    assert "199 spans below" in waterfall(joined(span(1, None, "agent", 0, 1000), *steps, *below, failed, runs))


def test_errors_are_counted_and_lead_to_each_other():
    text = waterfall(
        joined(
            span(1, None, "agent", 0, 9),
            span(2, 1, "first", 1, 2, error__type="503"),
            span(3, 1, "second", 3, 4, error__type="TimeoutError"),
        )
    )
    first, second = re.findall(r'href="#([^"]*)"', text)
    assert f'href="#{first}">2 errors</a>' in text
    assert [text.count(f'id="{anchor}"') for anchor in (first, second)] == [1, 1]
    assert (first[-1], second[-1]) == ("2", "3")


def test_the_time_axis_has_round_marks():
    text = waterfall(joined(span(1, None, "a", 0, 2400)))
    assert re.findall(r'class="tick( late)?" style="left:([\d.]+)%">([^<]*)<', text) == [
        ("", "0.000", "0 ms"),
        ("", "20.833", "500 ms"),
        ("", "41.667", "1.00 s"),
        ("", "62.500", "1.50 s"),
        (" late", "83.333", "2.00 s"),
    ]


@pytest.mark.parametrize("nanoseconds", [0, 1, 7, 10**15])
def test_the_time_axis_of_any_length(nanoseconds: int):
    one = joined(span(1, None, "a", 0, 0)).spans[0]._replace(start_ns=0, end_ns=nanoseconds)
    marks = re.findall(r'class="tick[" ]', waterfall(joined()._replace(spans=[one])))
    assert 1 <= len(marks) <= 7


def test_numbers_have_thousands():
    usage = {"input_tokens": 12345, "output_tokens": 6789}
    assert "12,345 + 6,789" in waterfall(joined(span(1, None, "agent", 0, 1, mlflow__chat__tokenUsage=usage)))
    assert "2,500.00 s" in waterfall(joined(span(1, None, "agent", 0, 2_500_000)))
    cost = {"mlflow.llm.cost": {"total_cost": 12345.5}}
    assert "$12,345.5<" in waterfall(joined(span(1, None, "agent", 0, 1, **cost)))


def test_an_error_is_broken_at_its_underscore():
    text = waterfall(joined(span(1, None, "gateway/chat", 0, 1, **{"error.type": "client_disconnect"})))
    assert "ERROR client_<wbr>disconnect" in text


def test_no_two_kinds_of_bars_look_alike_in_forced_colours():
    """Each kind that has a colour has a pattern, a border or a system colour there instead."""
    style = Path(waterfall_module.__file__).with_name("waterfall.css").read_text()
    coloured, _, forced = style.partition("@media (forced-colors: active)")
    kinds = set(re.findall(r"\.agent-gateway i\.(\w+)", coloured))
    assert kinds == set(re.findall(r"\.agent-gateway i\.(\w+)", forced.partition("@media print")[0]))
    assert len(kinds) == 5


def test_where_the_time_went():
    text = Markup(waterfall(joined(span(1, None, "agent", 0, 100), span(2, 1, "gateway/chat", 0, 25)))).text
    assert "Where the time went: gateway 25 % 25 ms, agent and network 75 % 75 ms" in text


def test_a_mirror_whose_caller_is_missing():
    """The page says so, and so does what a terminal shows of it."""
    trace = joined(span(2, 9, "gateway/chat", 0, 5), span(3, 8, "gateway/chat", 1, 2))
    assert "2 gateway calls are here without the agent" in Markup(waterfall(trace)).text
    assert "2 gateway calls are here without the agent" in repr(Waterfall(trace))
    assert "without the agent" not in waterfall(joined(span(1, None, "agent", 0, 9), span(2, 1, "gateway/chat", 1, 5)))


@pytest.mark.slow
def test_a_trace_deeper_than_a_browser_nests():
    """Its elements stay below the 512 levels at which browsers begin to take a tree apart, and say their depth."""
    steps = [span(number, number - 1 or None, "step", number, number + 1) for number in range(1, 3001)]
    text = waterfall(joined(*steps))
    level = deepest = 0
    for slash in re.findall(r"<(/?)(?:div|ul|li|details|summary|span|dl|dt|dd|p|b|i|a|small|style)\b", text):
        level += -1 if slash else 1
        deepest = max(deepest, level)
    assert level == 0
    assert deepest < 400
    assert '<span class="level">2999</span>' in text


def test_in_a_terminal_it_is_text():
    assert repr(Waterfall(joined(span(1, None, "agent", 0, 9), span(2, 1, "gateway/chat", 1, 5)))) == (
        "trace tr-1\n  agent  9 ms  OK\n    gateway/chat  4 ms  OK\n"
        "Where the time went: gateway 44 % (4 ms), agent and network 56 % (5 ms)"
    )


def test_an_empty_trace():
    assert "0 spans" in waterfall(joined())
