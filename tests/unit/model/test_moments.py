"""Moments: conversion of timestamps to whole seconds, and refused values."""

from __future__ import annotations

import math
import time
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pytest

from imagery_dask.model.moments import as_unix_seconds, describe_moment, resolve_moment

NOON = 1_714_564_800  # 2024-05-01T12:00:00Z
LATER = float(NOON + 86_400)
EAST = timezone(timedelta(hours=5, minutes=30))


@pytest.mark.parametrize(
    "value",
    [
        datetime(2024, 5, 1, 12),
        datetime(2024, 5, 1, 12, tzinfo=UTC),
        datetime(2024, 5, 1, 17, 30, tzinfo=EAST),
        "2024-05-01T12:00:00Z",
        " 2024-05-01 12:00 ",
        "2024-05-01T17:30:00+05:30",
        NOON,
        float(NOON),
        np.int64(NOON),
        np.uint32(NOON),
        np.float64(NOON),
        np.datetime64("2024-05-01T12:00:00"),
        np.datetime64("2024-05-01T12:00:00.000000000"),
        np.datetime64("2024-05-01T12", "h"),
        pd.Timestamp("2024-05-01T12:00:00"),
        pd.Timestamp("2024-05-01T12:00:00", tz="UTC"),
        pd.Timestamp("2024-05-01T17:30:00", tz="Asia/Kolkata"),
    ],
    ids=repr,
)
def test_all_forms_of_a_moment_give_the_same_second(value: Any) -> None:
    moment = resolve_moment(value, now=LATER)
    assert (moment, type(moment)) == (NOON, int)


def test_a_date_means_its_midnight() -> None:
    midnight = NOON - 43_200
    assert resolve_moment("2024-05-01", now=LATER) == midnight
    assert resolve_moment(np.datetime64("2024-05-01"), now=LATER) == midnight


@pytest.mark.parametrize("now", [LATER, LATER + 0.999])
@pytest.mark.parametrize("value", [None, "now", " NOW "])
def test_now_is_rounded_down(value: Any, now: float) -> None:
    assert resolve_moment(value, now=now) == int(LATER)


@pytest.mark.parametrize("fraction", [0.000_001, 0.25, 0.5, 0.999_999])
def test_fractions_are_rounded_up(fraction: float) -> None:
    assert resolve_moment(NOON + fraction, now=LATER) == NOON + 1
    assert resolve_moment(datetime.fromtimestamp(NOON + fraction, UTC), now=LATER) == NOON + 1
    assert resolve_moment(pd.Timestamp(NOON + fraction, unit="s"), now=LATER) == NOON + 1
    assert resolve_moment(np.datetime64(int((NOON + fraction) * 1e6), "us"), now=LATER) == NOON + 1


def test_a_microsecond_after_a_second_is_rounded_up() -> None:
    assert resolve_moment(np.datetime64(NOON * 10**9 + 1000, "ns"), now=LATER) == NOON + 1


@pytest.mark.parametrize(
    "value",
    [NOON + 1, NOON + 0.5, datetime.fromtimestamp(NOON + 1, UTC), "2024-05-01T12:00:01Z", "2031-01-01", 1e12, 1e300],
)
def test_the_future_is_refused(value: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^timestamp=.* is in the future: .*current time is 2024-05-01T12:00:00Z"
    ) as refused:
        resolve_moment(value, now=float(NOON))
    assert "\n" not in str(refused.value)


def test_the_error_for_milliseconds_names_them() -> None:
    with pytest.raises(ValueError, match="milliseconds"):
        resolve_moment(NOON * 1000, now=LATER)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("yesterday", ValueError),
        ("", ValueError),
        ("2024-13-01", ValueError),
        (0, ValueError),
        (-5, ValueError),
        (-5.5, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (-math.inf, ValueError),
        (True, TypeError),
        (np.True_, TypeError),
        (b"2024-05-01", TypeError),
        ([NOON], TypeError),
        (np.array([NOON, NOON]), TypeError),
        ({}, TypeError),
        (1j, TypeError),
        (date(2024, 5, 1), TypeError),
        (timedelta(days=1), TypeError),
        (np.datetime64("NaT", "s"), (TypeError, ValueError)),
        (pd.NaT, (TypeError, ValueError)),
    ],
    ids=repr,
)
def test_values_that_are_not_moments_are_refused(value: Any, kind: Any) -> None:
    with pytest.raises(kind, match=r"^asked_at must be") as refused:
        resolve_moment(value, now=LATER, name="asked_at")
    assert "\n" not in str(refused.value)


def test_every_form_of_a_moment_before_1970_is_refused() -> None:
    for value in (-86_400, "1969-12-31", datetime(1969, 12, 31), np.datetime64("1969-12-31"), datetime(1, 1, 1)):
        with pytest.raises(ValueError, match="timestamp"):
            resolve_moment(value, now=LATER)


def test_moments_up_to_this_second_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOON + 0.75)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("nothing to wait for"))
    assert resolve_moment(None) == NOON
    assert resolve_moment(NOON) == NOON
    assert resolve_moment(NOON - 0.5) == NOON


def test_a_moment_within_this_second_waits_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits may still happen until the end of the second."""
    slept: list[float] = []
    monkeypatch.setattr(time, "time", lambda: NOON + 0.75)
    monkeypatch.setattr(time, "sleep", slept.append)
    assert resolve_moment(NOON + 0.5) == NOON + 1
    assert slept == [0.25]


def test_unix_seconds_keep_their_fraction() -> None:
    assert as_unix_seconds("2024-05-01T12:00:00.25Z") == NOON + 0.25
    assert as_unix_seconds(datetime(2024, 5, 1, 12, 0, 0, 250_000)) == NOON + 0.25


def test_a_description_is_an_iso_time_that_resolves_to_its_moment() -> None:
    assert describe_moment(NOON) == "2024-05-01T12:00:00Z"
    assert describe_moment(NOON + 0.9) == "2024-05-01T12:00:00Z"
    assert resolve_moment(describe_moment(NOON), now=LATER) == NOON
