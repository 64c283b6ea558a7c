"""The Hugging Face Hub: one client, and its errors said in our own terms."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from tasks.contracts.errors import BaselineMoved, HubFailed, NoAccess, NotFound


def hub_api():
    """A Hub client for the endpoint and token of the environment as it is now.

    huggingface_hub reads both at import; a long-lived worker must see what was set since.
    """
    from huggingface_hub import HfApi, constants

    return HfApi(
        endpoint=os.environ.get("HF_ENDPOINT") or constants.ENDPOINT,
        token=os.environ.get("HF_TOKEN") or None,
    )


@contextlib.contextmanager
def hub_errors(where: str, passing: type[Exception] | tuple = ()) -> Iterator[None]:
    """Say the client's errors as ours.

    Args:
        where: The recipe field and URI concerned.
        passing: Errors that the caller handles itself.

    Raises:
        NotFound: No such repository, revision or file.
        NoAccess: The token is missing or wrong, or lacks the right.
        BaselineMoved: Someone committed in between.
        HubFailed: Anything else that the Hub answers.
    """
    import httpx2  # the HTTP client of huggingface_hub 2
    from huggingface_hub import errors

    try:
        yield
    except passing:
        raise
    except errors.GatedRepoError as error:
        raise NoAccess(
            where, "a gated repository", "a token with access", "ask for access on its page"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise NotFound(
            where,
            "no such repository, or a private one",
            "a repository that HF_TOKEN may read",
            "correct the name, or set HF_TOKEN",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise NotFound(
            where, "no such revision", "a branch, tag or commit that exists", "correct it"
        ) from error
    except errors.EntryNotFoundError as error:
        raise NotFound(where, "no such file", "a file that exists", "correct the path") from error
    except errors.LocalTokenNotFoundError as error:
        raise NoAccess(where, "no token", "a Hub token", "set HF_TOKEN") from error
    except errors.HfHubHTTPError as error:
        raise _http_error(where, error) from error
    except httpx2.HTTPError as error:
        raise HubFailed(
            where, f"no answer ({type(error).__name__})", "a Hub that answers", "try again later"
        ) from error


def _http_error(where: str, error) -> Exception:
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return NoAccess(
            where,
            f"access denied ({status})",
            "a token with the right to do this",
            "set HF_TOKEN to a token that has it",
        )
    if status in (409, 412):
        return BaselineMoved(
            where,
            "a commit that was made meanwhile",
            "the repository as it was seen",
            "start the run again",
        )
    return HubFailed(where, f"an answer {status}", "a Hub that works", "try again later")
