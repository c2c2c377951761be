"""Ask the Hub: try again what may pass, and explain the rest in one line that says what to do."""

import errno
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # the parent of every failed connection, whichever HTTP library is in use
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hb_ssl.errors import UserError

logger = logging.getLogger(__name__)

TRIES = 4
FIRST_WAIT_SECONDS = 2.0  # doubled after every try
HUB_ERRORS = (HTTPError, EntryNotFoundError, HFValidationError, OSError)
BUSY_STATUS = (408, 429, 500, 502, 503, 504)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Pushed:
    """Where a push went: the repository's address and the new commit."""

    url: str
    commit: str


def push_folder(
    folder: Path,
    repo: str,
    message: str,
    is_stale: Callable[[str], bool],
    repo_type: str = "model",
    private: bool = False,
    revision: str | None = None,
) -> Pushed:
    """Puts all files of a folder into a repository, in one commit.

    Until that commit is made the repository shows its old files, so a push that breaks off changes
    nothing. Dropped connections and a busy Hub are tried again.

    Args:
        folder: what to upload.
        repo: ``org/name``; created if it does not exist.
        message: of the commit.
        is_stale: of the files in the repository that the folder does not have, which to delete.
        repo_type: ``model`` or ``dataset``.
        private: make a new repository private.
        revision: branch to commit to, created if it does not exist; by default ``main``.

    Raises:
        UserError: no token is set, or the Hub refuses.
    """
    if get_token() is None:
        raise UserError(
            f"{repo}: pushing needs a Hub token and there is none; run `hf auth login` or set "
            "HF_TOKEN to a token with write access"
        )
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path for path in paths}

    def push() -> Pushed:
        api = HfApi()
        url = api.create_repo(repo, repo_type=repo_type, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, repo_type=repo_type, exist_ok=True)
        present = api.list_repo_files(repo, revision=revision, repo_type=repo_type)
        # create_commit, not upload_folder: that one may split the files over several commits.
        commit = api.create_commit(
            repo,
            operations=[
                *(CommitOperationAdd(name, path) for name, path in files.items()),
                *(
                    CommitOperationDelete(name)
                    for name in present
                    if name not in files and is_stale(name)
                ),
            ],
            commit_message=message,
            repo_type=repo_type,
            revision=revision,
        )
        return Pushed(str(url), commit.oid)

    return ask_hub(push, repo, revision)


def explain_hub_error(error: Exception, repo: str, revision: str | None = None) -> UserError:
    """Turns what huggingface_hub raised into one line.

    Args:
        error: one of ``HUB_ERRORS``.
        repo: the repository as the user named it.
        revision: the branch, tag or commit, if the user named one.
    """
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if isinstance(error, HFValidationError):
        says = "is not a repository name; expected org/name, e.g. my-team/heart-sounds"
    elif isinstance(error, RevisionNotFoundError):
        says = f"has no revision '{revision}'; check the branch, tag or commit"
    elif isinstance(error, LocalTokenNotFoundError) or (
        status == 401 and not isinstance(error, RepositoryNotFoundError)
    ):
        says = (
            "the Hub refuses the token (401); make a new one at huggingface.co/settings/tokens "
            "and run `hf auth login`"
        )
    elif isinstance(error, RepositoryNotFoundError) or status == 404:
        says = (
            "the Hub has no such repository, or your token may not see it; check the name, or run "
            "`hf auth login`"
        )
    elif status == 403:
        says = (
            "your token has no right to do this (403); use a token with write access to "
            f"'{repo.split('/')[0]}'"
        )
    elif status == 429:
        says = "the Hub asks to slow down (429); try again in a few minutes"
    elif status in BUSY_STATUS:
        says = f"the Hub is in trouble (HTTP {status}); try again later"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        says = (
            f"its files can't be kept here ({error.strerror}); free some space, or set HF_HOME to "
            "another folder"
        )
    elif status is None:
        says = f"the Hub can't be reached ({first.strip()[:200]}); check the network, try again"
    else:
        says = f"the Hub refuses (HTTP {status}: {first.strip()[:200]}); check the name and rights"
    return UserError(f"{repo}: {says}")


def ask_hub(action: Callable[[], Result], repo: str, revision: str | None = None) -> Result:
    """Runs ``action``; a dropped connection or a busy Hub is tried again.

    huggingface_hub does so for some requests only: not for commits, new repositories or the start
    of a download.

    Raises:
        UserError: the Hub refuses, or is out of reach after ``TRIES`` tries.
    """
    wait = FIRST_WAIT_SECONDS
    for left in reversed(range(TRIES)):
        try:
            return action()
        except (*HUB_ERRORS, RuntimeError, json.JSONDecodeError) as error:
            cause = _unwrapped(error)
            if isinstance(cause, RuntimeError):
                raise
            explained = explain_hub_error(cause, repo, revision)
            if not left or not _may_pass(cause):
                raise explained from error
            logger.warning("%s; next try in %.0f s", explained, wait)
            time.sleep(wait)
            wait *= 2
    raise AssertionError("unreachable: the last try returns or raises")


def _unwrapped(error: Exception) -> Exception:
    """The trouble itself: failed uploads and downloads that find nothing cached are wrapped.

    An answer that is no JSON comes from a broken proxy.
    """
    wrapper = isinstance(error, (RuntimeError, LocalEntryNotFoundError))
    if wrapper and isinstance(error.__cause__, (*HUB_ERRORS, json.JSONDecodeError)):
        return _unwrapped(error.__cause__)
    return error


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in BUSY_STATUS
    return isinstance(error, (HTTPError, json.JSONDecodeError))
