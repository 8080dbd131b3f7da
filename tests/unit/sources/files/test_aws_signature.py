"""Requests are signed as botocore signs them."""

from __future__ import annotations

import calendar
import time

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.sources.files.aws_signature import AwsKeys, Signer
from imagery_dask.urls import name_in_url

SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=50)
NAMES = st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12), min_size=1, max_size=4)


@given(
    names=NAMES,
    host=st.sampled_from(["127.0.0.1:9000", "s3.eu-west-1.amazonaws.com", "host:80", "[::1]:1"]),
    keys=st.tuples(SECRETS, SECRETS, st.none() | SECRETS),
    region=st.sampled_from(["us-east-1", "eu-west-1"]),
)
def test_signatures_are_those_of_botocore(
    names: list[str], host: str, keys: tuple[str, str, str | None], region: str
) -> None:
    url = f"http://{host}/bucket/{name_in_url('/'.join(names))}"
    expected = AWSRequest("GET", url, headers={"Host": host})
    S3SigV4Auth(Credentials(*keys), "s3", region).add_auth(expected)
    found = {name.lower(): value for name, value in expected.headers.items() if name != "Host"}
    now = calendar.timegm(time.strptime(found["x-amz-date"], "%Y%m%dT%H%M%SZ"))
    signed = Signer(lambda: AwsKeys(*keys), region)(url, now)
    assert {name.lower(): value for name, value in signed.items()} == found


def test_keys_are_asked_for_with_each_request_and_shown_nowhere() -> None:
    keys = iter([AwsKeys("first", "secret"), AwsKeys("second", "secret", "token")])
    signer = Signer(lambda: next(keys), "us-east-1")
    assert "Credential=first/" in signer("http://host/b/k")["Authorization"]
    second = signer("http://host/b/k")
    assert "Credential=second/" in second["Authorization"]
    assert second["x-amz-security-token"] == "token"
    assert "secret" not in repr(AwsKeys("key", "secret", "token"))
