"""A repository of the Hub that is written to: what lies there, and one commit of files.

huggingface_hub asks the Hub which files it has already: what an interrupted upload has sent is not sent again, and what is
unchanged is no part of the commit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, errors
from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

from peftcli import files
from peftcli.errors import HubError

_MAIN = constants.DEFAULT_REVISION
_OWN_FILES = frozenset({".gitattributes"})
"""The Hub's own."""


@dataclass(frozen=True)
class Repository:
    """What the Hub has under a name, on one branch."""

    name: str
    branch: str
    exists: bool = False
    has_branch: bool = False
    private: bool | None = None
    """None: not known."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """Name -> hash of each file: SHA-256 of a large one, git's of another."""

    def holds(self, name: str, source: Path | bytes) -> bool:
        """Whether the file lies there as it is here."""
        found = self.hashes.get(name)
        return found is not None and found in _hashes(source)

    def others(self, names: set[str]) -> list[str]:
        """Files there that are not among some names."""
        return sorted(set(self.hashes) - names - _OWN_FILES)


def _hashes(source: Path | bytes) -> tuple[str, str]:
    from huggingface_hub.utils.sha import git_hash

    data = source if isinstance(source, bytes) else source.read_bytes()
    return files.sha256_bytes(data), git_hash(data)


def look_up(name: str, revision: str | None) -> Repository:
    """What is there. Raises `HubError` where the Hub cannot be asked; a name that is free is no error."""
    branch = revision or _MAIN
    with _hub_errors(name):
        api = HfApi()
        has_branch = True
        try:
            info = api.model_info(name, revision=branch, files_metadata=True)
        except errors.RevisionNotFoundError:
            # a branch begins as a copy of `main`
            has_branch, info = False, api.model_info(name, files_metadata=True)
        except errors.RepositoryNotFoundError:
            return Repository(name, branch)
    hashes = {file.rfilename: (file.lfs.sha256 if file.lfs else file.blob_id) or "" for file in info.siblings or ()}
    return Repository(name, branch, exists=True, has_branch=has_branch, private=info.private, hashes=hashes)


def own_name(name: str) -> str:
    """`owner/name` of a repository that is named without its owner: the one who is logged in. Raises `HubError`."""
    with _hub_errors(name):
        return f"{HfApi().whoami()['name']}/{name}"


def upload(there: Repository, contents: Mapping[str, Path | bytes], *, private: bool, message: str) -> str | None:
    """Makes repository and branch where they are missing and commits the contents, if any; returns the commit's address.

    Raises `HubError`. What was sent before it was interrupted is kept by the Hub and not sent again.
    """
    with _hub_errors(there.name):
        api = HfApi()
        if not there.exists:
            api.create_repo(there.name, private=True if private else None, exist_ok=True)
        if not there.has_branch and there.branch != _MAIN and not there.branch.startswith("refs/"):
            api.create_branch(there.name, branch=there.branch, exist_ok=True)
        if not contents:
            return None
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=source) for name, source in sorted(contents.items())
        ]
        with _transfer(there):
            commit = api.create_commit(there.name, operations, commit_message=message, revision=there.branch)
    return str(commit.commit_url)


@contextlib.contextmanager
def _transfer(there: Repository) -> Iterator[None]:
    """Large files go by Xet, the Hub's own storage, where it is there: a Hub of one's own may only know git-lfs."""
    before = constants.HF_HUB_DISABLE_XET
    if not before and constants.ENDPOINT.rstrip("/") != "https://huggingface.co":
        address = f"{constants.ENDPOINT}/api/models/{there.name}/xet-write-token/{there.branch}"
        answer = get_session().get(address, headers=build_hf_headers())
        constants.HF_HUB_DISABLE_XET = answer.status_code == 404
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


@contextlib.contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into our errors, each cause told apart."""
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise HubError("the Hub cannot be reached: offline mode is on", fix="unset HF_HUB_OFFLINE") from error
    except errors.HfHubHTTPError as error:
        raise _answered(name, error) from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]  # of its HTTP library
        raise _unreachable(error) from error
    except errors.HFValidationError as error:
        raise HubError(f"{name} is not the name of a repository", fix="owner/name") from error
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise _broken_off(name, error) from error


def _answered(name: str, error: errors.HfHubHTTPError) -> HubError:
    status = error.response.status_code if error.response is not None else None
    said = " ".join(str(error.server_message or error).split())[:200]
    if status == 401:
        return HubError(f"the Hub does not know who is pushing to {name}", fix="`hf auth login`, or set HF_TOKEN")
    if status == 403:
        return HubError(f"this token may not write to {name}: {said}", fix="take a token with write access")
    if status == 404:
        return HubError(f"{name} is not there, or not for this token", fix="check the name; set HF_TOKEN")
    if status in (409, 412):
        return HubError(f"{name} was changed in the meantime: {said}", fix="push again")
    if status == 429:
        return HubError("the Hub takes no more requests for now", fix="wait a little, then push again")
    return HubError(f"the Hub refused it ({status}): {said}", fix="push again: what was sent is not sent again")


def _unreachable(error: Exception) -> HubError:
    return HubError(
        f"the Hub cannot be reached at {constants.ENDPOINT}: {' '.join(str(error).split())[:150]}",
        fix="check the network, then push again: what was sent is not sent again",
    )


def _broken_off(name: str, error: Exception) -> HubError:
    cause = error.__cause__
    if isinstance(cause, errors.HfHubHTTPError):
        return _answered(name, cause)
    if isinstance(cause, errors.HTTPError):  # type: ignore[attr-defined]  # of its HTTP library
        return _unreachable(cause)
    return HubError(
        f"the upload to {name} broke off: {' '.join(str(error).split())[:200]}",
        fix="push again: what was sent is not sent again",
    )
