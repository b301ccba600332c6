"""A bundle that somebody changed works, or is refused in words; no code of its own is ever run."""

import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from compress import model_files
from compress.errors import UserError
from compress.model_files import load_encoder, open_origin
from compress.models import user_code
from export.verify import command
from tests.export import bundles, mutations

QUICK = ["--threads", "1", "--images", "2", "--batch", "2"]
SEEDS = 40


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundles.write(tmp_path_factory.mktemp("whole") / "bundle")


@pytest.fixture
def sentinel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that is there once a planted module has run."""
    monkeypatch.setattr(user_code, "_trusted", set())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return mutations.plant(tmp_path)


def open_in_every_way(bundle: Path) -> None:
    """Open a bundle's model by every function that does; each works or raises a `UserError`."""
    for way in (
        lambda: model_files.load_student(bundle),
        lambda: load_encoder(bundle),
        lambda: load_encoder(bundle, weights=False),
        lambda: open_origin(str(bundle)).encoder(),
        lambda: open_origin(str(bundle)).network(weights=False),
    ):
        with suppress(UserError):
            way()


def test_changed_bundles_are_refused_in_words(
    whole: Path, sentinel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = {0: 0, 1: 0, 2: 0}
    for seed in range(SEEDS):
        bundle = mutations.changed(whole, sentinel.parent / "bundle", seed)
        open_in_every_way(bundle)
        code = command.main([str(bundle), *QUICK])
        outcomes[code] += 1
        assert (code == 2) == capsys.readouterr().err.startswith("error: "), seed
        assert not sentinel.exists(), seed
        shutil.rmtree(bundle)
    assert outcomes[2] > SEEDS / 2
