"""Makes a gateway's first calls, which are slow because the server imports packages."""

from __future__ import annotations

import httpx

from agent_gateway_client.errors import StartError

DEADLINE_S = 180.0


def warm_up(url: str, endpoint: str, credentials: tuple[str, str] | None = None) -> None:
    """Call an endpoint without and with a stream.

    MLflow imports LangChain, if installed, during the first stream, and answers no other request until that is done. A
    client that asks for the server's version then assumes until its restart that the server cannot store spans.

    Args:
        url: URL of the chat completions route.
        endpoint: Name of the endpoint to call.
        credentials: User name and password, if the server requires them.

    Raises:
        StartError: The endpoint answers with an error or times out.
    """
    auth = httpx.BasicAuth(*credentials) if credentials else None
    with httpx.Client(trust_env=False, timeout=DEADLINE_S, auth=auth) as client:
        for is_stream in (False, True):
            messages = [{"role": "user", "content": "Are you warm?"}]
            try:
                response = client.post(url, json={"model": endpoint, "messages": messages, "stream": is_stream})
            except httpx.HTTPError as error:
                raise StartError(f"The gateway's first call failed: {type(error).__name__}: {error}.") from error
            if response.status_code != httpx.codes.OK:
                raise StartError(
                    f"The gateway's first call failed with status {response.status_code}: {response.text[:500]}."
                )
