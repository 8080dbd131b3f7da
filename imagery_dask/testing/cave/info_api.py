"""The endpoints of the other services: datastacks (info), frozen versions (materialize), users (auth)."""

from __future__ import annotations

from datetime import UTC, datetime

from imagery_dask.annotations import JsonObject
from imagery_dask.testing.cave.endpoints import ApiError, Call, Endpoint

__all__ = ["SERVICES"]


def info_version(call: Call) -> str:
    """Answer with the info service's version."""
    return "4.4.0"


def datastacks(call: Call) -> list[str]:
    """Answer with the names of the datastacks."""
    return [call.world.datastack]


def datastack_info(call: Call) -> JsonObject:
    """Answer with the description of a datastack."""
    _check_datastack(call)
    world = call.world
    x, y, z = world.image_resolution
    return {
        "aligned_volume": _aligned_volume(call),
        "analysis_database": None,
        "base_resolution": None,
        "cell_identification_table": None,
        "description": "A synthetic datastack",
        "local_server": call.server,
        "proofreading_review_table": None,
        "proofreading_status_table": None,
        "segmentation_source": f"graphene://{call.server}/segmentation/table/{world.table}",
        "skeleton_source": None,
        "soma_table": None,
        "synapse_table": None,
        "viewer_resolution_x": float(x),
        "viewer_resolution_y": float(y),
        "viewer_resolution_z": float(z),
        "viewer_site": call.server,
    }


def image_sources(call: Call) -> list[JsonObject]:
    """Answer with the sources of a datastack's image."""
    _check_datastack(call)
    return [{"name": "default", "image_source": call.world.image_source}]


def aligned_volumes(call: Call) -> list[str]:
    """Answer with the names of the images."""
    return [call.world.aligned_volume]


def aligned_volume_info(call: Call) -> JsonObject:
    """Answer with the description of an image."""
    _check_name("aligned_volume", call.values["name"], call.world.aligned_volume)
    return _aligned_volume(call)


def aligned_volume_by_id(call: Call) -> JsonObject:
    """Answer with the description of an image, by its number."""
    _check_name("aligned_volume", call.values["number"], "1")
    return _aligned_volume(call)


def datastacks_of_aligned_volume(call: Call) -> list[str]:
    """Answer with the datastacks of an image."""
    _check_name("aligned_volume", call.values["name"], call.world.aligned_volume)
    return [call.world.datastack]


def _aligned_volume(call: Call) -> JsonObject:
    return {
        "id": 1,
        "name": call.world.aligned_volume,
        "display_name": call.world.aligned_volume,
        "description": "A synthetic volume",
        "image_source": call.world.image_source,
    }


def materialize_version(call: Call) -> str:
    """Answer with the materialization service's version."""
    return "5.4.0"


def materialize_api_versions(call: Call) -> list[int]:
    """Answer with the API versions that the materialization service supports."""
    return [2, 3]


def versions(call: Call) -> list[int]:
    """Answer with the numbers of the versions; with ``expired``, also of expired ones."""
    _check_datastack(call)
    return [number for number, version in call.world.versions.items() if version.valid or call.flag("expired")]


def version_metadata(call: Call) -> JsonObject:
    """Answer with the description of a version."""
    _check_datastack(call)
    if int(call.values["version"]) not in call.world.versions:
        raise ApiError(404, "No version found")
    return _metadata(call, int(call.values["version"]))


def versions_metadata(call: Call) -> list[JsonObject]:
    """Answer with the descriptions of the versions; with ``expired``, also of expired ones."""
    return [_metadata(call, number) for number in versions(call)]


def _metadata(call: Call, number: int) -> JsonObject:
    version = call.world.versions[number]
    return {
        "id": number,
        "datastack": call.world.datastack,
        "version": number,
        "time_stamp": _iso(version.timestamp),
        "expires_on": _iso(version.expires),
        "valid": version.valid,
        "status": "AVAILABLE" if version.valid else "EXPIRED",
        "is_merged": True,
        "parent_version": None,
    }


def _iso(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")


def user_tokens(call: Call) -> list[JsonObject]:
    """Answer with an empty list: the server does not reveal tokens."""
    return []


def users(call: Call) -> list[JsonObject]:
    """Answer with the users of the given ids."""
    ids = [text for text in call.params.get("id", "").split(",") if text.isdecimal()]
    return [{"id": int(text), "name": f"User {text}", "email": f"user{text}@example.org", "pi": ""} for text in ids]


def _check_datastack(call: Call) -> None:
    _check_name("datastack", call.values["datastack"], call.world.datastack)


def _check_name(kind: str, name: str, known: str) -> None:
    if name != known:
        raise ApiError(404, f"{kind} {name} not found")


_MATERIALIZE = "/materialize/api/v[23]/datastack/{datastack}"

#: Endpoints of the info, materialization and authentication services.
SERVICES = (
    Endpoint.at("GET", "/info/version", info_version),
    Endpoint.at("GET", "/info/api/v2/datastacks", datastacks),
    Endpoint.at("GET", "/info/api/v2/datastack/full/{datastack}", datastack_info),
    Endpoint.at("GET", "/info/api/v2/datastack/{datastack}/image_sources", image_sources),
    Endpoint.at("GET", "/info/api/v2/aligned_volume", aligned_volumes),
    Endpoint.at("GET", "/info/api/v2/aligned_volume/{name}", aligned_volume_info),
    Endpoint.at("GET", "/info/api/v2/aligned_volume/id/{number}", aligned_volume_by_id),
    Endpoint.at("GET", "/info/api/v2/aligned_volume/{name}/datastacks", datastacks_of_aligned_volume),
    Endpoint.at("GET", "/materialize/version", materialize_version),
    Endpoint.at("GET", "/materialize/api/versions", materialize_api_versions),
    Endpoint.at("GET", _MATERIALIZE + "/versions", versions),
    Endpoint.at("GET", _MATERIALIZE + r"/version/(?P<version>-?\d+)", version_metadata),
    Endpoint.at("GET", _MATERIALIZE + "/metadata", versions_metadata),
    Endpoint.at("GET", "/auth/api/v1/user/token", user_tokens),
    Endpoint.at("GET", "/auth/api/v1/user", users),
)
