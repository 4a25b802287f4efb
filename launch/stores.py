"""URLs of stores: what opens them, and questions to stores that may never answer."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

import fsspec
import pyarrow
from pyarrow import fs

from launch.cli import UsageError

ANSWER_TIMEOUT_S = 90.0
ADVICE = (
    "check the URL, the network and the credentials of this machine (s3://: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
    "a profile, for another service ?endpoint_override=<host:port>; gs://: GOOGLE_APPLICATION_CREDENTIALS)"
)
T = TypeVar("T")


def is_url(text: str | None) -> bool:
    """Whether something names a place in a store and not a local folder."""
    return text is not None and "://" in text


def run_url(url: str, name: str) -> str:
    """URL of a run's folder in a store.

    Raises:
        UsageError: if the name cannot be part of a URL.
    """
    if not re.fullmatch(r"[\w.,+@=-]+", name):
        raise UsageError(
            f"the run folder's name {name!r} cannot be part of a URL; choose one of letters, digits and _.,+@=- with out="
        )
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def run_name(url: str) -> str:
    """Name of the run at a URL.

    Raises:
        UsageError: if the URL has no last part.
    """
    name = urlsplit(url).path.rstrip("/").rpartition("/")[2]
    if not name:
        raise UsageError(f"{url} names no run; expected <storage URL>/<run>")
    return name


def open_store(url: str) -> tuple[fs.FileSystem, str]:
    """File system and path of a URL: what pyarrow knows, as everywhere in Ray, else what fsspec knows."""
    if not is_url(url):
        raise UsageError(f"{url!r} is no URL; expected for example s3://bucket/runs or file:///shared/runs")
    if urlsplit(url).password is not None:
        raise UsageError(
            f"the URL of {urlsplit(url).hostname} has a password in it, which would be kept in config.yaml; {ADVICE}"
        )
    try:
        return fs.FileSystem.from_uri(url)
    except pyarrow.ArrowInvalid as error:
        unknown = error
    try:
        store, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UsageError(f"neither pyarrow ({unknown}) nor fsspec ({error}) can open {url}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(store)), path


def within(seconds: float, url: str, ask: Callable[[], T]) -> T:
    """Asks a store, which may be silent for many minutes before its client gives up.

    Raises:
        UsageError: if it fails or takes too long, whatever the client's own exception is.
    """
    answer: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answer.append(ask())
        except Exception as error:  # Clients of stores raise exceptions of their own.
            errors.append(error)

    thread = threading.Thread(target=run, name="storage-question", daemon=True)
    thread.start()
    thread.join(seconds)
    if answer:
        return answer[0]
    if errors and isinstance(errors[0], UsageError):
        raise errors[0]
    reason = errors[0] if errors else f"no answer within {seconds:.0f} s"
    raise UsageError(f"cannot use {url}: {reason}; {ADVICE}") from (errors[0] if errors else None)
