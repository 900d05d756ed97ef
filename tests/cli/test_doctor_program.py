"""``agent-gateway doctor -- COMMAND``: a healthy program, and broken ones, with what is said of each."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from agent_gateway_client.doctor.program import Request
from tests.cli.test_run import TRACEPARENT, agent_gateway, server, write  # noqa: F401
from tests.support import warm_python
from tests.support.http_server import HttpServer
from tests.support.mlflow_database import database_in

CALL = "import requests\nrequests.post(url)\n"
NO_SPAN = "import requests\ncontext.attach(context.Context())\n"


def doctor(program: str, gateway: str, url: str, *options: str) -> Any:
    return agent_gateway("doctor", "--gateway", gateway, *options, "--", sys.executable, program, url)


def test_a_healthy_program(server: HttpServer, write: Any):  # noqa: F811
    """Each request is listed once, with its span, and other hosts without blame."""
    program = write(
        "import httpx, requests\nfrom agent_gateway_client import wrap_httpx\n"
        "requests.get(url + '/a?key=secret')\n"
        "wrap_httpx(httpx.Client(trust_env=False), [url]).get(url + '/b')\n"
        f"requests.get({server.other.replace('/gateway', '/elsewhere')!r})\nprint('the program')\n"
    )
    ended = doctor(program, server.gateway, server.gateway, "--json")
    assert ended.returncode == 0, ended.stderr
    seen = json.loads(ended.stdout)
    assert "the program" in ended.stderr
    assert (seen["ok"], seen["exit_status"], seen["advice"]) == (True, 0, [])
    assert seen["gateways"] == [server.gateway]
    assert [(request["url"], request["outcome"]) for request in seen["requests"]] == [
        (f"{server.gateway}/a", "sent"),
        (f"{server.gateway}/b", "sent"),
        (server.other.replace("/gateway", "/elsewhere"), "not a gateway"),
    ]
    assert [request["traceparent"] for request in seen["requests"]] == [TRACEPARENT, TRACEPARENT, None]
    assert seen["requests"][0]["span_id"] == f"{0xB:016x}"
    assert server.sent() == [[TRACEPARENT], [TRACEPARENT], []]


@pytest.mark.parametrize(
    ("body", "change", "said"),
    [
        (NO_SPAN + "requests.post(url)\n", "", "mlflow.set_experiment() first"),
        (NO_SPAN + "requests.get(url)\n", "", "mlflow.set_experiment() first"),
        (CALL, "host", "use one spelling for both"),
        (CALL, "path", "does not begin with it"),
        (CALL, "port", "Is the model's base URL one of them?"),
        ("", "", "No request was recorded"),
        ("import urllib.request\nurllib.request.urlopen(url)\n", "", "need trace_headers(url)"),
    ],
    ids=["no span", "only a list", "other spelling", "wrong path", "other port", "no request", "unknown library"],
)
def test_broken_programs(body: str, change: str, said: str, server: HttpServer, write: Any):  # noqa: F811
    """The exit status is 1, and the last line says what to do."""
    url = server.gateway
    gateway = {
        "host": server.other,
        "path": url.replace("/gateway", "/gw"),
        "port": "http://127.0.0.1:1/gateway",
    }.get(change, url)
    ended = doctor(write(body), gateway, f"{url}/v1/chat/completions")
    assert ended.returncode == 1, ended.stderr
    last = ended.stdout.splitlines()[-1]
    assert last.startswith("What to do: ")
    assert said in last


MIRRORED = """
import sys, mlflow, requests
mlflow.set_experiment("agent")
with mlflow.start_span("agent"):
    requests.get(sys.argv[1].replace("chat/completions", "models"))
    for number in range(2):
        requests.post(sys.argv[1])
    for number in range(MIRRORS):
        with mlflow.start_span("gateway/chat"):  # as a gateway writes it
            pass
mlflow.flush_trace_async_logging()
"""


@pytest.mark.parametrize("mirrors", [2, 1, 0])
def test_whether_mirrors_have_arrived(mirrors: int, server: HttpServer, tmp_path: Path):  # noqa: F811
    """With a tracking URI each request says whether its mirror is in the trace; a missing one makes the status 1."""
    pytest.importorskip("sqlalchemy")
    uri, program = database_in(tmp_path), tmp_path / "program.py"
    program.write_text(MIRRORED.replace("MIRRORS", str(mirrors)))
    wait = "60" if mirrors == 2 else "0.1"
    command = ("--", sys.executable, str(program), f"{server.gateway}/v1/chat/completions")
    given = ("doctor", "--gateway", server.gateway, "--wait", wait, "--tracking-uri", uri)
    # The program starts like a user's, and so does one of the commands, which import MLflow too.
    python = sys.executable if mirrors == 2 else warm_python.interpreter()
    ended = agent_gateway(*given, "--json", *command, python=python, MLFLOW_TRACKING_URI=uri)
    seen = json.loads(ended.stdout)
    assert [request["mirror"] for request in seen["requests"]] == [None] + [True] * mirrors + [False] * (2 - mirrors)
    assert (seen["ok"], ended.returncode) == ((True, 0) if mirrors == 2 else (False, 1)), ended.stderr
    assert ["A mirror has not arrived" in advice for advice in seen["advice"]] == [True] * (mirrors < 2)
    if mirrors == 1:
        # One of each is enough to see both shown.
        shown = agent_gateway(*given, *command, python=python, MLFLOW_TRACKING_URI=uri).stdout
        assert (shown.count(", mirror arrived"), shown.count(", no mirror")) == (1, 1)


def test_what_is_not_a_call_of_a_model_is_no_fault(server: HttpServer, write: Any):  # noqa: F811
    """Lists, files and health checks have no mirror in any gateway, and need no span."""
    program = write(
        "import requests\nrequests.post(url + '/v1/chat/completions')\n"
        "requests.get(url + '/v1/models')\nrequests.post(url + '/v1/files')\n"
        "context.attach(context.Context())\nrequests.get(url + '/health')\n"
    )
    ended = doctor(program, server.gateway, server.gateway)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [", not a model call" in line for line in ended.stdout.splitlines()] == [False, True, True, True, False]
    assert "no span was active" not in ended.stderr


OWN = {
    "covered": ("wrap_httpx", "wrap_httpx(httpx.Client(trust_env=False), [url]).post(url + CALL)", 0),
    "by hand": ("trace_headers", "httpx.post(url + CALL, trust_env=False, headers=trace_headers(url))", 0),
    "another client": ("wrap_httpx", "wrap_httpx(httpx.Client(), [url]); httpx.post(url + CALL, trust_env=False)", 1),
    "undone": ("instrument", "instrument(url).uninstrument(); httpx.post(url + CALL, trust_env=False)", 1),
    "another path": ("instrument", "instrument(url + '/v2'); httpx.post(url + CALL, trust_env=False)", 1),
}


@pytest.mark.parametrize(("name", "body", "status"), OWN.values(), ids=OWN)
def test_a_program_that_uses_the_client_itself(name: str, body: str, status: int, server: HttpServer, write: Any):  # noqa: F811
    """What its own code does not cover is a mistake, although the doctor runs it as ``agent-gateway run`` does."""
    program = write(f"import httpx\nfrom agent_gateway_client import {name}\nCALL = '/v1/chat/completions'\n{body}\n")
    ended = doctor(program, server.gateway, server.gateway)
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert ("BROKEN" in ended.stdout) == bool(status)
    if "v2" not in body:
        assert ("its set-up does not cover" in ended.stdout) == bool(status)


CALLS = [
    ("POST", "/gateway/v1/chat/completions", True),
    ("GET", "/gateway/v1/chat/completions", False),
    ("POST", "/gateway/mlflow/v1/responses/", True),
    ("POST", "/gateway/chat/mlflow/invocations", True),
    ("POST", "/v1beta/models/gemini:streamGenerateContent", True),
    ("WEBSOCKET", "/openai/v1/realtime", True),
    ("WEBSOCKET", "/openai/v1/responses", False),
    ("GET", "/openai/v1/realtime", False),
    ("POST", "/v1/messages/count_tokens", False),
]


@pytest.mark.parametrize(("method", "path", "is_call"), CALLS)
def test_what_is_a_call_of_a_model(method: str, path: str, is_call: bool):
    """What the companion mirrors in every gateway."""
    request = Request(method, f"http://gw.test{path}", "no span", "", None, None, None, 1, near_miss=False)
    assert (request.is_model_call, request.is_broken) == (is_call, is_call)


def test_a_program_that_fails(server: HttpServer, write: Any):  # noqa: F811
    """Its status is passed on, and what it sent before is listed."""
    ended = doctor(write(CALL + "sys.exit(7)\n"), server.gateway, server.gateway)
    assert ended.returncode == 7
    assert f"sent  {server.gateway}: it goes to a gateway, and a span is active [span" in ended.stdout
    assert "The program exited with status 7" in ended.stdout
    assert doctor("no-such-program.py", server.gateway, "").returncode == 2


def test_without_a_command_the_gateway_and_the_model_are_needed():
    """The doctor of one call asks for them as ever."""
    ended = agent_gateway("doctor", "--gateway", "http://gw.test")
    assert (ended.returncode, "Missing option '--model'" in ended.stderr) == (2, True)
