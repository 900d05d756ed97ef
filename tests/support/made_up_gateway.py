"""An unknown gateway on Python's own HTTP server: the least that it takes to add one to the table."""

import json
from http.server import BaseHTTPRequestHandler

import httpx

from agent_gateway_client.server import gateway_call, relayed
from agent_gateway_client.server.call import CLIENT_DISCONNECT, GatewayCall
from agent_gateway_client.server.export import Exporter
from tests.support.gateways import MODELS


class MadeUpGateway(BaseHTTPRequestHandler):
    """Asks the models of a name one after the other."""

    protocol_version = "HTTP/1.1"
    provider_url: str
    exporter: Exporter

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        endpoint = body["model"] if body["model"] in MODELS else None
        with gateway_call(self.headers.items(), endpoint=endpoint, exporter=self.exporter) as call:
            for model in MODELS.get(body["model"], ()):
                request = {"url": self.provider_url + self.path, "json": {**body, "model": model}}
                with call.attempt("openai", model) as attempt, httpx.stream("POST", **request, timeout=60) as answer:
                    if answer.is_success:
                        self.hand_on(call, answer)
                        return
                    attempt.end(str(answer.status_code))
            call.http_status = status = 502 if endpoint else 404
        # After the call has ended: otherwise its mirror could end after the span of a caller that has the answer.
        self.begin(status, "application/json")
        self.wfile.write(b"0\r\n\r\n")

    def hand_on(self, call: GatewayCall, answer: httpx.Response) -> None:
        call.http_status = answer.status_code
        self.begin(answer.status_code, content_type := answer.headers["content-type"])
        try:
            for chunk in relayed(call, answer.iter_bytes(), streaming=content_type.startswith("text/event-stream")):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.write(b"0\r\n\r\n")
        except ConnectionError:
            call.end(CLIENT_DISCONNECT)

    def begin(self, status: int, content_type: str) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
