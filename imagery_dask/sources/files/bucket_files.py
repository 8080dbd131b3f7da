"""Buckets of S3 and Google Cloud Storage that this process has credentials for, read by signed requests over HTTP.

Their own clients take a millisecond of Python for each request. Neither keys nor tokens are sent to another server than
that of the bucket.
"""

from __future__ import annotations

import re

from imagery_dask.humanize import printable
from imagery_dask.sources.files.aws_signature import Signer
from imagery_dask.sources.files.http_files import Auth, HttpFiles, StatusError
from imagery_dask.sources.files.response import Response
from imagery_dask.urls import name_in_url, resolved_name

__all__ = ["BucketFiles", "S3Files", "amazon"]

LARGEST_ERROR = 2**16
FIELD = re.compile(rb"<(Code|Message)>(.*?)</\1>", re.DOTALL)
# What S3 answers if a request is signed for another region than that of the bucket.
OTHER_REGION = (301, 307, 400)


class BucketFiles(HttpFiles):
    """Files below a prefix of a bucket.

    Parameters
    ----------
    endpoint : str
        URL of the server.
    bucket, prefix : str
        Names, in which every character stands for itself.
    auth : callable
        See `HttpFiles`.
    """

    def __init__(self, endpoint: str, bucket: str, prefix: str, auth: Auth) -> None:
        super().__init__(endpoint, auth)
        self._bucket, self._prefix = bucket, prefix

    def _file_url(self, key: str) -> str:
        name = f"{self._prefix}/{key}" if self._prefix else key
        if key.startswith("../"):  # which a bucket does not resolve
            name = resolved_name(name)
            if name.startswith("../"):
                raise ValueError(f"{key!r} is outside of the bucket")
        return f"{self._url}/{name_in_url(self._bucket)}/{name_in_url(name)}"

    def _check_gone(self, response: Response) -> None:
        code, message = _error_of(response)
        if code == "NoSuchBucket":
            raise ValueError(f"{code}: {message}")

    def _check_status(self, response: Response, redirected: bool, ranged: bool) -> None:
        try:
            super()._check_status(response, redirected, ranged)
        except StatusError as error:
            code, message = _error_of(response) if error.code >= 400 else ("", "")
            text = f"{error}, {code}: {message}" if code else str(error)
            raise StatusError(text, error.code, error.headers, code) from None


class S3Files(BucketFiles):
    """Files of S3: the region of a bucket is that which the server says."""

    def __init__(self, endpoint: str, bucket: str, prefix: str, signer: Signer | None) -> None:
        super().__init__(endpoint, bucket, prefix, signer or (lambda _: {}))
        self._signer = signer

    def _answer(self, url: str, headers: dict[str, str]) -> tuple[Response, bool]:
        response, redirected = super()._answer(url, headers)
        if self._signer is None or not self._is_of_other_region(response):
            return response, redirected
        region = response.headers["x-amz-bucket-region"]
        with response:
            before, self._signer.region = self._signer.region, region
        if self._url == amazon(before):
            url = amazon(region) + url.removeprefix(self._url)
            self._url = amazon(region)
        return super()._answer(url, headers)

    def is_last(self, response: Response, is_ranged: bool) -> bool:
        """See `HttpFiles.is_last`."""
        return super().is_last(response, is_ranged) and not self._is_of_other_region(response)

    def _is_of_other_region(self, response: Response) -> bool:
        region, signer = response.headers.get("x-amz-bucket-region"), self._signer
        return response.status in OTHER_REGION and signer is not None and region not in (None, signer.region)


def amazon(region: str) -> str:
    """Return the endpoint of Amazon's S3 in a region."""
    return f"https://s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")


def _error_of(response: Response) -> tuple[str, str]:
    """Return the code and the message of a bucket's error, which is XML; "" if it has none."""
    found = dict(FIELD.findall(response.read_up_to(LARGEST_ERROR)))
    code, message = (printable(found.get(name, b"").decode(errors="replace")) for name in (b"Code", b"Message"))
    return code, message
