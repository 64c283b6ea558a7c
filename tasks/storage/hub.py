"""The Hugging Face Hub: its client, and its errors as Burnish errors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from tasks.contracts.errors import BaselineMoved, HubFailed, NoAccess, NotFound


def hub_api():
    """Return a Hub client for the current HF_ENDPOINT and HF_TOKEN.

    huggingface_hub reads both at import, but a long-lived worker must see later changes.
    """
    from huggingface_hub import HfApi, constants

    return HfApi(
        endpoint=os.environ.get("HF_ENDPOINT") or constants.ENDPOINT,
        token=os.environ.get("HF_TOKEN") or None,
    )


@contextlib.contextmanager
def hub_errors(where: str, passing: type[Exception] | tuple = ()) -> Iterator[None]:
    """Convert errors of the Hub client to Burnish errors.

    Args:
        where: The recipe field and URI, for messages.
        passing: Errors to leave as they are: the caller handles them.

    Raises:
        NotFound: The repository, revision or file does not exist.
        NoAccess: The token is missing, wrong, or lacks the permission.
        BaselineMoved: Someone else committed in the meantime.
        HubFailed: Any other error.
    """
    import httpx2  # the HTTP client of huggingface_hub 2
    from huggingface_hub import errors

    try:
        yield
    except passing:
        raise
    except errors.GatedRepoError as error:
        raise NoAccess(
            where, "a gated repository", "a token with access", "request access on its page"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise NotFound(
            where,
            "no such repository, or a private one",
            "a repository that HF_TOKEN can read",
            "correct the name, or set HF_TOKEN",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise NotFound(
            where, "no such revision", "an existing branch, tag or commit", "correct it"
        ) from error
    except errors.EntryNotFoundError as error:
        raise NotFound(where, "no such file", "an existing file", "correct the path") from error
    except errors.LocalTokenNotFoundError as error:
        raise NoAccess(where, "no token", "a Hub token", "set HF_TOKEN") from error
    except errors.HfHubHTTPError as error:
        raise _http_error(where, error) from error
    except httpx2.HTTPError as error:
        raise HubFailed(
            where, f"no response ({type(error).__name__})", "a reachable Hub", "try again later"
        ) from error


def _http_error(where: str, error) -> Exception:
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return NoAccess(
            where,
            f"access denied ({status})",
            "a token with this permission",
            "set HF_TOKEN to a token that has it",
        )
    if status in (409, 412):
        return BaselineMoved(
            where,
            "a commit made in the meantime",
            "an unchanged repository",
            "start the run again",
        )
    return HubFailed(where, f"HTTP status {status}", "a working Hub", "try again later")
