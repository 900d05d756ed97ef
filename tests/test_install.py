"""_install.py: what an error message tells to install can be installed, whether the package is published or not."""

import json
from importlib import metadata
from pathlib import Path

import pytest

from agent_gateway_client._install import install_command


@pytest.mark.parametrize(
    ("source", "command"),
    [
        (None, "pip install 'agent-gateway-client[openai,cli]'"),
        ("no JSON", "pip install 'agent-gateway-client[openai,cli]'"),
        ({"url": "file:///a%20b/c", "dir_info": {}}, "pip install '/a b/c[openai,cli]'"),
        ({"url": "file:///a/c", "dir_info": {"editable": True}}, "pip install --editable '/a/c[openai,cli]'"),
        (
            {"url": "https://host/it.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}},
            "pip install 'agent-gateway-client[openai,cli] @ git+https://host/it.git@c0ffee'",
        ),
        ({"url": "https://host/it.whl", "archive_info": {}}, "pip install 'agent-gateway-client[openai,cli]'"),
    ],
)
def test_it_installs_from_where_the_package_came(source: object, command: str, tmp_path: Path, monkeypatch):
    if source is not None:
        (tmp_path / "direct_url.json").write_text(source if isinstance(source, str) else json.dumps(source))
    (tmp_path / "METADATA").write_text("Name: agent-gateway-client\n")
    monkeypatch.setattr(metadata, "distribution", lambda name: metadata.PathDistribution(tmp_path))
    assert install_command("openai", "cli") == command


def test_a_package_that_is_not_installed(monkeypatch):
    """Its files alone, on the search path."""

    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert install_command("openai") == "pip install 'agent-gateway-client[openai]'"
