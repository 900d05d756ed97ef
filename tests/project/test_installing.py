"""Installing with uv and with pip: the same index for both, and errors that say what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from described import ROOT, Environment, Failed
from installing import Installer, create_venv, parse_pip_settings, progress, uv_variables
from made import is_made, make, marker

LISTED = """\
:env:.cert='/etc/ssl/one.crt'
:env:.default-timeout='180'
global.cert='/etc/ssl/two.crt'
global.extra-index-url='https://one.example/simple file:///srv/simple'
global.find-links='/srv/wheels /srv/more'
global.index-url='https://user:pass@index.example/simple'
install.index-url='https://mirror.example/simple'
"""


def environment(folder, **more):
    return Environment("one", "an environment for a test", folder, **more)


class Recorded:
    """An installer that records what it is to install."""

    def __init__(self, uv="", fails=False):
        self.uv, self.fails = uv, fails
        self.asked = []

    def create(self, folder, python):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)

    def install(self, folder, arguments, constraints=None):
        self.asked.append(list(arguments))
        if self.fails:
            raise Failed("the index does not answer")
        if "httpx" in arguments:
            (folder / "lib" / "python3.11" / "site-packages" / "httpx-0.28.1.dist-info").mkdir(parents=True)


def test_pips_settings_are_read_as_pip_reads_them():
    """A variable wins over the section of the command, and that over the global one."""
    settings = parse_pip_settings(LISTED)
    assert settings["cert"] == "/etc/ssl/one.crt"
    assert settings["index-url"] == "https://mirror.example/simple"


def test_uv_takes_packages_from_where_pip_does():
    """Index, further indexes, folders of wheels, certificates and patience are passed on."""
    assert uv_variables(parse_pip_settings(LISTED), {}) == {
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "UV_INDEX": "https://one.example/simple file:///srv/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/srv/wheels,/srv/more",
        "UV_HTTP_TIMEOUT": "180",
        "SSL_CERT_FILE": "/etc/ssl/one.crt",
    }


def test_what_the_user_tells_uv_stays():
    """uv's own variables win over pip's configuration."""
    variables = uv_variables(parse_pip_settings(LISTED), {"UV_DEFAULT_INDEX": "https://mine.example/simple"})
    assert "UV_DEFAULT_INDEX" not in variables


def test_no_settings_are_no_variables():
    assert uv_variables(parse_pip_settings(""), {}) == {}


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Collecting mlflow>=3.15 (from agent-gateway-client)\n", "mlflow>=3.15"),
        ("Installing collected packages: a, b\n", "unpacking ..."),
        ("  Using cached mlflow-3.17.2-py3-none-any.whl\n", ""),
        ("Downloading mlflow (12.3MiB)\n", "Downloading mlflow (12.3MiB)"),
        ("Resolved 71 packages in 12ms\n", "Resolved 71 packages in 12ms"),
        (" + mlflow==3.17.2\n", ""),
    ],
)
def test_progress_is_short(line, shown):
    """What is fetched is named while it is; lists of everything are not shown."""
    assert progress(line) == shown


def test_an_environment_is_made_once(tmp_path):
    """The second time nothing is installed; when what it is to hold has changed, it is installed again."""
    one, installer = environment(tmp_path / ".venv-one", requirements=("httpx",)), Recorded()
    make(one, installer)
    assert is_made(one)
    assert installer.asked[-1] == ["--no-build-isolation", "httpx"]
    make(one, installer)
    assert len(installer.asked) == 2
    assert not is_made(environment(one.folder, requirements=("httpx", "h2")))


def test_an_environment_that_failed_is_not_made(tmp_path):
    """What failed half-way is made again the next time."""
    one = environment(tmp_path / ".venv-one")
    with pytest.raises(Failed, match="the index does not answer"):
        make(one, Recorded(fails=True))
    assert not is_made(one)


def test_where_uv_fails_pip_has_a_try(tmp_path, monkeypatch, capsys):
    """An index that uv cannot read may be one that pip can; the output says what happens."""
    pip = Recorded()
    monkeypatch.setattr("made.Installer", lambda: pip)
    one = environment(tmp_path / ".venv-one")
    make(one, Recorded(uv="uv", fails=True))
    assert pip.asked
    assert is_made(one)
    assert "Trying again with pip instead of uv" in capsys.readouterr().out


def test_what_must_not_be_there_is_an_error(tmp_path):
    """An environment that is meant to lack a package is not made with it."""
    one = environment(tmp_path / ".venv-one", requirements=("httpx",), without=("httpx",))
    with pytest.raises(Failed, match=r"\.venv-one must not have httpx"):
        make(one, Recorded())
    assert not is_made(one)


def test_an_environment_in_the_same_folder_holds_a_part(tmp_path, monkeypatch):
    """What is part of an environment that is made needs nothing more."""
    whole = environment(tmp_path / ".venv-one")
    make(whole, Recorded())
    monkeypatch.setattr("made.DESCRIBED", {"one": whole})
    assert is_made(Environment("part", "", whole.folder, part_of="one"))
    marker(whole).unlink()
    assert not is_made(Environment("part", "", whole.folder, part_of="one"))


def test_a_command_that_fails_shows_what_it_printed(capfd):
    """The last lines of pip or uv are shown, and where the index is configured."""
    with pytest.raises(
        Failed, match=r"Could not install into .+; see above\. The index is the one of: pip config list"
    ):
        Installer().install(Path(sys.prefix), ["--no-index", "surely-not-there"])
    assert "surely-not-there" in capfd.readouterr().out


def test_a_python_without_venv_is_an_error_that_says_so(tmp_path):
    """Debian's Python tells which package to install; what it says is passed on, and nothing half-made stays."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'apt install python3.11-venv'\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(Failed, match=r"could not create \.venv-one:\napt install python3\.11-venv"):
        create_venv(tmp_path / ".venv-one", str(python))


def script(*arguments, **variables):
    command = [sys.executable, ROOT / "constraints" / "environments.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})


def test_the_script_lists_the_environments():
    listed = script("list")
    assert listed.returncode == 0
    assert {line.split()[0] for line in listed.stdout.splitlines()} >= {"main", "quick", "newest"}


def test_the_script_names_what_it_does_not_know():
    """A misspelt name is an error with the names that there are."""
    unknown = script("make", "quik")
    assert unknown.returncode == 2
    assert "invalid choice: 'quik'" in unknown.stderr
    assert "openai3" in unknown.stderr


def test_an_old_python_is_told_what_to_do():
    """The first lines of the script run on any Python 3, and tell how to name another."""
    source = (ROOT / "constraints" / "environments.py").read_text()
    guard = source.partition("import argparse")[0].replace("sys.version_info", "(3, 8)")
    ended = subprocess.run([sys.executable, "-c", guard], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == "Python 3.10 or newer is needed; name one: make PYTHON=python3.12\n"
