"""Why a remote file cannot be read, in one line."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

from beton_tools.base.console import hide_secrets
from beton_tools.base.errors import UserError

SKEW = 15 * 60  # S3 accepts clocks that differ by at most this many seconds
ERROR_BYTES = 4096  # at most this much of an error's document is read
# S3's codes, which Google and other stores use too
_CODES = {
    "RequestTimeTooSkewed": "this machine's clock is wrong. Set it",
    "SignatureDoesNotMatch": "the signature does not match. Check the secret key, or copy the whole signed URL",
    "InvalidAccessKeyId": "the server does not know the access key. Check AWS_ACCESS_KEY_ID",
    "ExpiredToken": "the credentials or the signed URL have expired. Renew them",
    "InvalidObjectState": "the object is archived. Restore it from the archive first",
}
_EXPIRED = "Request has expired"  # S3's message for a signed URL, under the code AccessDenied
_REGION = "x-amz-bucket-region"


class RemoteError(UserError):
    """A remote file cannot be read, or has changed. The image in it must not be skipped."""


class AccessDenied(RemoteError):
    """The server refuses access. Without the right to list, S3 and Google do so for a missing file too."""


class Refused(Exception):
    """A web server's answer that is not the file. status: HTTP's status code. document: the answer's beginning."""

    def __init__(self, status: int, headers: Mapping[str, str], document: bytes) -> None:
        text = document.decode("utf-8", "replace")
        code, message = (re.search(f"<{tag}>([^<]*)</{tag}>", text) for tag in ("Code", "Message"))
        super().__init__(message[1] if message else "")
        self.status, self.headers, self.code = status, headers, code[1] if code else ""


def explain(error: Exception, advice: str) -> tuple[str, bool, type[RemoteError]]:
    """Return (the reason on one line, whether the same request may succeed later, the error to raise).

    advice: what to do if access is denied.
    """
    name, text = type(error).__name__, hide_secrets(str(error).partition("\n")[0])[:200]
    status, code, headers = answer_of(error)
    if isinstance(error, FileNotFoundError):
        return text if "bucket" in text else "no such file", False, RemoteError
    is_denied = isinstance(error, PermissionError) or status in (401, 403)
    if code in _CODES or _EXPIRED in text:
        known = _CODES.get(code, _CODES["ExpiredToken"])
        return f"access denied, because {_clock(headers, code) or known}", False, AccessDenied
    if (region := _region(error, headers)) and (status in (301, 307, 400) or "Redirect" in code):
        return (
            f"the bucket is in the region {region}. Set AWS_REGION={region}, or use that region's URL",
            False,
            RemoteError,
        )
    if is_denied or re.search("^Forbidden|Credential", text + name):
        what = f"HTTP status {status}" if status else text or name
        return f"access denied ({what}). {_clock(headers, code) or advice}", False, AccessDenied
    if status:  # the library's text repeats the URL
        return f"HTTP status {status}", status >= 500 or status in (408, 429), RemoteError
    reason = text if text and name in ("OSError", "ValueError") else f"{name}: {text}"
    if "Timeout" in name and not text:
        reason = "no answer in time"
    return reason, not isinstance(error, (ImportError, TypeError, ValueError)), RemoteError


def answer_of(error: BaseException | None) -> tuple[int, str, Mapping[str, str]]:
    """Return (status, code, headers) from the server's answer: 0 and empty where there was none."""
    for cause in _causes(error):
        if isinstance(cause, Refused):
            return cause.status, cause.code, cause.headers
        answer = getattr(cause, "response", None)
        if isinstance(answer, dict):  # botocore's ClientError
            meta, stated = answer.get("ResponseMetadata", {}), answer.get("Error", {})
            return meta.get("HTTPStatusCode", 0), str(stated.get("Code", "")), meta.get("HTTPHeaders", {})
        if status := getattr(cause, "status", 0) or getattr(answer, "status_code", 0):
            return status, "", getattr(cause, "headers", None) or getattr(answer, "headers", {})
    return 0, "", {}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _clock(headers: Mapping[str, str], code: str) -> str:
    """Describe how far this machine's clock differs from the server's, if this can be why access is denied."""
    if code not in ("", "403", "RequestTimeTooSkewed"):
        return ""
    dates: list[str] = [value for key, value in (headers or {}).items() if key.lower() == "date"]
    with suppress(ValueError, TypeError, OverflowError):
        ahead = time.time() - parsedate_to_datetime(dates[0]).timestamp() if dates else 0
        if abs(ahead) > SKEW:
            way = "ahead" if ahead > 0 else "behind"
            return f"this machine's clock is {abs(ahead) / 60:,.0f} minutes {way} of the server's. Set it"
    return ""


def _region(error: Exception, headers: Mapping[str, str]) -> str:
    """Return the region that S3 names for the bucket, or ""."""
    stated: list[Any] = [value for key, value in (headers or {}).items() if key.lower() == _REGION]
    for cause in _causes(error):
        if isinstance(answer := getattr(cause, "response", None), dict):
            stated.append(answer.get("Error", {}).get("Region"))
    return next((str(region) for region in stated if region and re.fullmatch(r"[\w-]{1,40}", str(region))), "")
