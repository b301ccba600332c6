"""`compress push BUNDLE OWNER/NAME`: upload a bundle to the Hugging Face Hub.

Every file is compared with the manifest before anything is sent, and the files that it lists are
sent, no others. The model card goes as README.md, too, which is what the hub shows; the manifest
that is sent lists it, so that a download is a whole bundle again.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from compress.console.ending import exit_code
from compress.errors import UserError, in_one_line
from compress.text import printable

_TOKEN = "HF_TOKEN"
_README, _CARD, _MANIFEST = "README.md", "MODEL_CARD.md", "manifest.json"
_REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code: 0 done, 2 nothing was uploaded, 130 interrupted."""
    args = parser().parse_args(arguments)
    return exit_code(lambda: _command(args))


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="compress push",
        description="Upload a bundle to the Hugging Face Hub, after checking every file of it. "
        "Files of the same name that the repository has get a new version.",
        epilog="The access token is the one of `hf auth login`, unless a variable of the "
        f"environment holds one: {_TOKEN}, or what --token-env names.",
    )
    parser.add_argument("bundle", type=Path, help="a bundle's folder, or that of its run")
    parser.add_argument(
        "repository", metavar="OWNER/NAME", help="where to; made if it is not there"
    )
    parser.add_argument(
        "--private", action="store_true", help="a new repository is seen by its owner alone"
    )
    parser.add_argument(
        "--token-env", metavar="NAME", help="the variable that holds the access token"
    )
    parser.add_argument("--yes", action="store_true", help="upload without asking")
    return parser


def push_to_hub(
    bundle: Path,
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload a bundle; returns the address of the commit.

    Args:
        repository: OWNER/NAME; it is made if it is not there.
        private: where it is made, it is seen by its owner alone.
        token: an access token that may write; by default that of `hf auth login` or HF_TOKEN.
        endpoint: the hub's address; by default the public one, or HF_ENDPOINT.

    Raises:
        UserError: a file of the bundle is missing or changed, huggingface_hub is missing, or the
            hub refuses.
    """
    from export.bundle.manifest import check_manifest

    _check_name(repository)
    manifest = check_manifest(bundle)
    if _CARD not in manifest.files:
        raise UserError(f"{bundle} has no {_CARD}, which the hub shows; export it again")
    api = _api(token, endpoint or os.environ.get("HF_ENDPOINT"))
    with tempfile.TemporaryDirectory(prefix="push.") as folder:
        _stage(bundle, [*manifest.files], Path(folder))
        try:
            api.create_repo(repository, private=private or None, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=printable(f"{manifest.student}, by {manifest.made_by}"),
            )
        except Exception as error:  # those of the client and of its transport have no common base
            raise UserError(
                f"the hub did not take {repository}: {in_one_line(error)}; nothing of the bundle "
                "was changed here"
            ) from error
    return str(commit.commit_url)


def _command(args: argparse.Namespace) -> int:
    from export.bundle.manifest import bundle_of, check_manifest

    _check_name(args.repository)
    bundle = bundle_of(args.bundle)
    manifest = check_manifest(bundle)
    token = None
    if args.token_env is not None:
        token = os.environ.get(args.token_env)
        if not token:
            raise UserError(f"--token-env {args.token_env}: there is no such variable, or no token")
    size = sum(entry.bytes for entry in manifest.files.values()) / 1e6
    seen = "private if it is new" if args.private else "public if it is new"
    print(
        printable(
            f"{bundle}: {len(manifest.files)} files, {size:.1f} MB, as the manifest lists them -> "
            f"{args.repository} ({seen})"
        )
    )
    if not args.yes and not _agrees():
        print("nothing was uploaded")
        return 2
    print(push_to_hub(bundle, args.repository, private=args.private, token=token))
    return 0


def _agrees() -> bool:
    if not sys.stdin.isatty():
        raise UserError("nobody can be asked here; say --yes to upload")
    return input("Upload? [y/N] ").strip().lower() in ("y", "yes")


def _check_name(repository: str) -> None:
    if not _REPOSITORY.fullmatch(repository):
        raise UserError(f"'{repository}' names no repository; give OWNER/NAME")


def _api(token: str | None, endpoint: str | None) -> Any:
    try:
        from huggingface_hub import HfApi, get_token
    except ImportError:
        raise UserError(
            "this needs the package huggingface_hub: pip install 'compress[hub]'"
        ) from None
    token = token or get_token()
    if not token:
        raise UserError(
            f"there is no access token; `hf auth login` keeps one, or set {_TOKEN} (a token that "
            "may write, from the settings of your account)"
        )
    return HfApi(endpoint=endpoint, token=token)


def _stage(bundle: Path, names: list[str], folder: Path) -> None:
    """Copy what is sent, with the card as README.md and a manifest that lists it."""
    from compress.storage.files import read_mapping, write_json

    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / name, folder / name)
    shutil.copyfile(bundle / _CARD, folder / _README)
    manifest = read_mapping(bundle / _MANIFEST)
    manifest["files"][_README] = manifest["files"][_CARD]
    write_json(folder / _MANIFEST, manifest)


if __name__ == "__main__":
    sys.exit(main())
