"""The newest releases, where an index has a release without what belongs to it."""

from pathlib import Path

import pytest
from described import Environment
from newest import install_newest

EXTRAS = {"extras": ("all",), "groups": ("test",), "requirements": ("langchain",)}
NEWEST = (("mlflow", ("mlflow-skinny", "mlflow-tracing")), ("litellm[proxy]", ("litellm-proxy",)), ("openai", ()))


class Index:
    """An installer for an index that lacks a few packages.

    Args:
        newest: The newest releases.
        lacks: What cannot be had, as a requirement or a name.
        held_back: The releases that are installed instead of the newest.
        uv: Where uv is.
    """

    def __init__(self, newest, lacks=(), held_back=(), uv="uv"):
        self.newest, self.lacks, self.held_back, self.uv = newest, lacks, dict(held_back), uv
        self.asked = []

    def resolve(self, arguments, requirements):
        if set(requirements) & set(self.lacks):
            return {}
        names = [requirement.partition("==")[0].partition("[")[0] for requirement in requirements]
        return {name: self.newest[name] for name in names if name in self.newest}

    def install(self, folder, arguments, constraints=None):
        overrides = []
        if "--override" in arguments:
            overrides = Path(arguments[arguments.index("--override") + 1]).read_text().splitlines()
        self.asked.append((list(arguments), overrides))
        for name, version in {**self.newest, **self.held_back}.items():
            site = folder / "lib" / "python3.11" / "site-packages"
            (site / f"{name.replace('-', '_')}-{version}.dist-info").mkdir(parents=True, exist_ok=True)


@pytest.fixture
def environment(tmp_path):
    return Environment("newest", "", tmp_path / ".venv-newest", newest=NEWEST, **EXTRAS)


VERSIONS = {
    "mlflow": "3.18.0",
    "mlflow-skinny": "3.17.2",
    "mlflow-tracing": "3.17.2",
    "litellm": "1.110.2",
    "openai": "3.57.0",
}


def test_an_index_that_has_everything(environment, capsys):
    """The resolver takes the newest releases that go together, and nothing is forced."""
    index = Index({**VERSIONS, "litellm-proxy": "1.110.2"})
    install_newest(environment, index)
    [(arguments, overrides)] = index.asked
    assert overrides == []
    assert arguments[:4] == ["--upgrade", "--no-build-isolation", "--editable", ".[all]"]
    assert arguments[4:] == ["--group", "test", "langchain", "mlflow", "litellm[proxy]", "openai"]
    assert capsys.readouterr().out == "==> mlflow 3.18.0\n==> litellm 1.110.2\n==> openai 3.57.0\n"


def test_a_release_without_its_companions(environment, capsys):
    """It is taken with the companions that the index has, is installed last, and the output says so."""
    index = Index(VERSIONS, lacks=["mlflow==3.18.0"])
    install_newest(environment, index)
    (_, overrides), (again, _) = index.asked
    assert overrides == ["mlflow-skinny", "mlflow-tracing"]
    assert again == ["--no-deps", "--reinstall-package", "mlflow", "mlflow==3.18.0"]
    said = "==> mlflow 3.18.0; the index lacks what it asks for, so it stands on mlflow-skinny 3.17.2, "
    assert said + "mlflow-tracing 3.17.2\n" in capsys.readouterr().out


def test_a_companion_that_does_not_exist_is_left_out(environment, capsys):
    """A companion of which the index has no version at all is not asked for."""
    index = Index(VERSIONS, lacks=["litellm[proxy]==1.110.2", "litellm-proxy"])
    install_newest(environment, index)
    assert index.asked[0][1] == ["litellm-proxy ; python_version < '3'"]
    said = "==> litellm 1.110.2; the index lacks what it asks for, so it stands on litellm-proxy none"
    assert said in capsys.readouterr().out


def test_a_release_that_does_not_go_with_the_others_is_not_forced(environment, capsys):
    """A user cannot have it either; the output says which it is."""
    index = Index({**VERSIONS, "litellm-proxy": "1"}, held_back={"litellm": "1.108.7"})
    install_newest(environment, index)
    assert len(index.asked) == 1
    assert "==> litellm 1.108.7, not 1.110.2: it does not go with the others\n" in capsys.readouterr().out


def test_without_uv_pip_takes_what_goes_together(environment, capsys):
    """pip knows no overrides; the output says that the newest may be missing."""
    index = Index(VERSIONS, lacks=["mlflow==3.18.0"], uv="")
    install_newest(environment, index)
    [(arguments, overrides)] = index.asked
    assert overrides == []
    assert arguments[-3:] == ["mlflow", "litellm[proxy]", "openai"]
    assert "Without uv" in capsys.readouterr().out
