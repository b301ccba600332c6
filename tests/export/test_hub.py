"""`compress push`, against a local fake of the hub's API: what arrives, and what is never sent."""

import hashlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compress.errors import UserError
from export import hub, push_to_hub
from export.bundle.manifest import check_manifest, read_manifest
from export.bundle.predict import load_bundle
from tests.export import bundles
from tests.export.fake_hub import OID, TOKEN, FakeHub, fake_hub

pytest.importorskip("huggingface_hub")

NAME = "me/small-net"
CARD = "---\nlicense: mit\n---\n\n# none\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = bundles.write(tmp_path_factory.mktemp("bundle") / "bundle")
    (folder / "MODEL_CARD.md").write_text(CARD)
    return bundles.listed(folder)


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run" / "export" / "bundle"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.delenv(variable, raising=False)
            monkeypatch.delenv(variable.lower(), raising=False)
        yield server


def test_what_arrives_is_the_bundle_and_its_card_as_readme(
    bundle: Path, server: FakeHub, tmp_path: Path
) -> None:
    (bundle / ".DS_Store").write_text("of a file manager")
    address = push_to_hub(bundle, NAME)
    assert address == f"{server.endpoint}/{NAME}/commit/{OID}"
    files = server.repositories[NAME]
    listed = read_manifest(bundle).files
    assert files.keys() == {*listed, "manifest.json", "README.md"}
    for name, entry in listed.items():
        assert hashlib.sha256(files[name]).hexdigest() == entry.sha256
    assert files["README.md"].decode() == CARD
    assert server.private == set() and server.messages[0].startswith("none, by compress ")
    # A download is a whole bundle again, for us and for its own script.
    again = tmp_path / "again"
    again.mkdir()
    for name, content in files.items():
        (again / name).write_bytes(content)
    assert check_manifest(again).files.keys() == {*listed, "README.md"}
    assert load_bundle(again).labels == [str(n) for n in range(10)]
    # Nothing was changed here, and it can be sent again.
    assert check_manifest(bundle).files == listed
    push_to_hub(again, NAME)
    assert server.repositories[NAME] == files


def test_the_command_takes_a_run_and_makes_a_private_repository(
    bundle: Path,
    server: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    run = str(bundle.parents[1])
    assert hub.main([run, NAME, "--private", "--token-env", "MY_TOKEN", "--yes"]) == 0
    said = capsys.readouterr().out
    assert f"-> {NAME} (private if it is new)" in said and f"{NAME}/commit/" in said
    assert server.private == {NAME} and TOKEN not in said


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda b: (b / "student.onnx").write_bytes(b"other"), "student.onnx is truncated"),
        (lambda b: (b / "labels.txt").unlink(), "labels.txt is missing"),
        (lambda b: (b / "more.py").write_text(""), "more.py is not listed"),
        (lambda b: (b / "manifest.json").unlink(), "is no bundle"),
    ],
)
def test_nothing_of_a_damaged_bundle_is_sent(
    bundle: Path, server: FakeHub, harm: Any, message: str
) -> None:
    harm(bundle)
    with pytest.raises(UserError, match=message):
        push_to_hub(bundle, NAME)
    assert server.requests == []


def test_nothing_is_sent_unasked(
    bundle: Path,
    server: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert hub.main([str(bundle), NAME]) == 2
    assert "say --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "")
    assert hub.main([str(bundle), NAME]) == 2
    assert "nothing was uploaded" in capsys.readouterr().out
    assert server.requests == []
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert hub.main([str(bundle), NAME]) == 0
    assert server.repositories.keys() == {NAME}


def test_mistakes_are_told_in_words(
    bundle: Path, server: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="give OWNER/NAME"):
        push_to_hub(bundle, "small-net")
    with pytest.raises(UserError, match=r"the hub did not take me/small-net: .*401"):
        push_to_hub(bundle, NAME, token="wrong")
    (bundle / "MODEL_CARD.md").write_text("---\nlicense: MY OWN\n---\n")
    bundles.listed(bundle)
    with pytest.raises(UserError, match='"license" must be one of'):
        push_to_hub(bundle, NAME)
    assert server.repositories == {NAME: {}}
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="no access token"):
        push_to_hub(bundle, NAME)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'compress\[hub\]'"):
        push_to_hub(bundle, NAME)


def test_a_bundle_without_card_is_not_sent(bundle: Path, server: FakeHub) -> None:
    (bundle / "MODEL_CARD.md").unlink()
    bundles.listed(bundle)
    with pytest.raises(UserError, match=r"has no MODEL_CARD\.md"):
        push_to_hub(bundle, NAME)
    assert server.requests == []
