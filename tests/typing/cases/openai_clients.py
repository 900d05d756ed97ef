"""What a type checker has to say of wrap_openai: the type of each client stays, and anything else is refused."""

from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI
from typing_extensions import assert_type

from agent_gateway_client import unwrap, wrap_openai


class OwnClient(OpenAI):
    """A user's own class."""


def the_type_stays(
    client: OpenAI,
    async_client: AsyncOpenAI,
    azure: AzureOpenAI,
    async_azure: AsyncAzureOpenAI,
    own: OwnClient,
) -> None:
    assert_type(wrap_openai(client), OpenAI)
    assert_type(wrap_openai(async_client), AsyncOpenAI)
    assert_type(wrap_openai(azure), AzureOpenAI)
    assert_type(wrap_openai(async_azure), AsyncAzureOpenAI)
    assert_type(wrap_openai(own), OwnClient)
    assert_type(wrap_openai(client, gateways=["http://localhost:5000/gateway"]), OpenAI)
    assert_type(wrap_openai(client).with_options(timeout=1.0), OpenAI)
    assert_type(unwrap(wrap_openai(async_azure)), AsyncAzureOpenAI)


def anything_else_is_refused(client: OpenAI, either: OpenAI | None) -> None:
    # An unused "type: ignore" is an error in strict mode, so each of these lines has to be one.
    wrap_openai("http://localhost:5000/gateway")  # type: ignore[type-var]
    wrap_openai(object())  # type: ignore[type-var]
    wrap_openai(OpenAI)  # type: ignore[type-var]
    wrap_openai(either)  # type: ignore[type-var]
    wrap_openai(client, ["http://localhost:5000/gateway"])  # type: ignore[call-arg]
    wrap_openai(client, gateways=[5000])  # type: ignore[list-item]
    wrap_openai()  # type: ignore[call-arg]
