"""The endpoints of the graph's service, as in PyChunkedGraph 2 (its API version 1)."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from typing import Any

import numpy as np

from imagery_dask.annotations import JsonObject
from imagery_dask.testing.cave.endpoints import ApiError, Call, Endpoint
from imagery_dask.testing.cave.graph import ChunkedGraph
from imagery_dask.testing.cave.graph_layout import Ids

__all__ = ["SEGMENTATION"]

_VERSION = "2.22.0"
_API_VERSIONS = [0, 1]


def segmentation_version(call: Call) -> str:
    """Answer with the service's version."""
    return _VERSION


def segmentation_api_versions(call: Call) -> list[int]:
    """Answer with the supported API versions."""
    return _API_VERSIONS


def info(call: Call) -> JsonObject:
    """Answer with the watershed's info and the graph's additions."""
    layout = _graph(call).layout
    return call.world.watershed_info | {
        "app": {"supported_api_versions": _API_VERSIONS},
        "chunks_start_at_voxel_offset": True,
        "data_dir": call.world.watershed_source,
        "graph": {
            "chunk_size": layout.chunk_size,
            "cv_mip": 0,
            "n_bits_for_layer_id": 8,
            "n_layers": layout.n_layers,
            "spatial_bit_masks": layout.bit_masks,
            **call.world.split_info,
        },
        "sharded_mesh": True,
        "verify_mesh": False,
    }


def roots_binary(call: Call) -> bytes:
    """Answer with the roots of the body's ids, in their order."""
    return _graph(call).roots(call.binary_ids, call.moment("timestamp"), call.stop_layer).tobytes()


def roots(call: Call) -> JsonObject:
    """Answer like `roots_binary` in JSON."""
    ids = np.array(call.ids("node_ids"), np.uint64)
    return {"root_ids": _graph(call).roots(ids, call.moment("timestamp"), call.stop_layer).tolist()}


def root(call: Call) -> dict[str, int]:
    """Answer with one id's root, or an error if it has none."""
    graph = _graph(call)
    stop = call.stop_layer or graph.layout.n_layers
    root_id = int(graph.roots([call.node], call.moment("timestamp"), stop)[0])
    if graph.layout.layers(root_id) < stop:
        raise ApiError(500, f"Cannot find root id {call.node}, {stop}, {call.params.get('timestamp')}")
    return {"root_id": root_id}


def leaves(call: Call) -> dict[str, list[int]]:
    """Answer with the leaves of a node in the chunks that the bounds touch."""
    return {"leaf_ids": _leaves(call, call.node).tolist()}


def leaves_many(call: Call) -> dict[str, list[int]]:
    """Answer with the leaves of many nodes."""
    return {str(node): _leaves(call, node).tolist() for node in call.ids("node_ids")}


def _leaves(call: Call, node: int) -> Ids:
    return _graph(call).leaves(node, call.bounds, 1 if call.stop_layer is None else call.stop_layer)


def children(call: Call) -> dict[str, list[int]]:
    """Answer with a node's children."""
    return {"children_ids": list(_graph(call).children(call.node))}


def is_latest_roots(call: Call) -> dict[str, list[bool]]:
    """Answer with True for roots that were up to date at a time."""
    return {"is_latest": _graph(call).history.are_latest(call.ids("node_ids"), call.moment("timestamp")).tolist()}


def root_timestamps(call: Call) -> dict[str, list[float]]:
    """Answer with the time since which, or with ``latest`` until which, roots were up to date."""
    history, nodes, until = _graph(call).history, call.ids("node_ids"), call.moment("timestamp")
    _check_known(call, nodes)
    if call.flag("latest"):
        return {"timestamp": [history.ended(node, until) for node in nodes]}
    return {"timestamp": [history.created[node] / 1000 for node in nodes]}


def lineage_graph(call: Call) -> JsonObject:
    """Answer with the lineage of one root."""
    return _lineage(call, [call.node])


def lineage_graph_multiple(call: Call) -> JsonObject:
    """Answer with the lineage of roots."""
    return _lineage(call, call.ids("root_ids"))


def _lineage(call: Call, nodes: list[int]) -> JsonObject:
    _check_known(call, nodes)
    past, future = call.moment("timestamp_past"), call.moment("timestamp_future")
    return _graph(call).history.lineage(nodes, past or 0.0, future)


def delta_roots(call: Call) -> dict[str, list[int]]:
    """Answer with the roots that operations replaced and made between two times."""
    past = call.moment("timestamp_past")
    if past is None:
        raise ApiError(400, "[400]: Timestamp parameter timestamp_past is mandatory")
    old, new = _graph(call).history.delta(past, call.moment("timestamp_future"))
    return {"old_roots": old, "new_roots": new}


def valid_nodes(call: Call) -> dict[str, list[int]]:
    """Answer with the ids that exist at the end of a period."""
    graph, nodes = _graph(call), call.ids("node_ids")
    exist = graph.exist(nodes, call.moment("end_timestamp"))
    return {"valid_roots": [node for node, does in zip(nodes, exist, strict=True) if does]}


def oldest_timestamp(call: Call) -> dict[str, str]:
    """Answer with the time of the graph's creation."""
    return {"iso": datetime.fromtimestamp(_graph(call).created, UTC).isoformat(" ")}


def l2_chunk_children(call: Call) -> JsonObject:
    """Answer with the layer-2 nodes of a chunk and their supervoxels, in pairs, in JSON."""
    return {"l2_chunk_children": _level2_pairs(call).tolist()}


def l2_chunk_children_binary(call: Call) -> bytes:
    """Answer like `l2_chunk_children` in bytes: an array of pairs, or a pickled dict without ``as_array``."""
    if call.flag("as_array"):
        return _level2_pairs(call).tobytes()
    children_of = _graph(call).level2_children(call.node, call.moment("timestamp"))
    return pickle.dumps({np.uint64(node): np.array(svs, np.uint64) for node, svs in children_of.items()})


def _level2_pairs(call: Call) -> Ids:
    children_of = _graph(call).level2_children(call.node, call.moment("timestamp"))
    return np.array([(node, sv) for node, svs in children_of.items() for sv in svs], np.uint64).ravel()


def merge(call: Call) -> JsonObject:
    """Merge the objects of two nodes, ``[[id, x, y, z], [id, x, y, z]]``, now."""
    graph, nodes = _graph(call), _edited_nodes(call.json)
    try:
        first, second = (int(root) for root in graph.roots(nodes))
        return _edit_result(graph, graph.merge(first, second))
    except ValueError as error:
        raise ApiError(400, f"[400]: {error}") from None


def split(call: Call) -> JsonObject:
    """Split the supervoxels of ``sources`` from their object, now.

    The service computes a minimum cut between sources and sinks; this graph has no edges. A supervoxel that is among
    the sources and the sinks is split too, between the points that are given in nm.
    """
    graph, rows = _graph(call), call.json if isinstance(call.json, dict) else {}
    nodes, sinks = _edited_nodes(rows.get("sources")), _edited_nodes(rows.get("sinks", []))
    both = np.intersect1d(nodes, sinks)
    try:
        if len(both):
            ends = [next(row for row in rows[end] if int(row[0]) == both[0]) for end in ("sources", "sinks")]
            seeds = np.array([row[1:4] for row in ends], float) // call.world.resolution
            call.world.split_supervoxel(int(both[0]), seeds, together=nodes[nodes != both[0]])
            last = graph.history.operations[-1]
            return _edit_result(graph, *last.new)
        return _edit_result(graph, *graph.split(int(graph.roots(nodes)[0]), nodes))
    except ValueError as error:
        raise ApiError(400, f"[400]: {error}") from None


def _edited_nodes(rows: Any) -> Ids:
    try:
        return np.array([int(row[0]) for row in rows], np.uint64)
    except (TypeError, ValueError, LookupError, OverflowError):
        raise ApiError(400, "[400]: nodes are lists of an id, x, y and z") from None


def _edit_result(graph: ChunkedGraph, *new: int) -> JsonObject:
    return {"operation_id": graph.history.operation_that_made(new[0]).number, "new_root_ids": list(new)}


def _graph(call: Call) -> ChunkedGraph:
    if call.values["table"] != call.world.table:
        raise ApiError(404, f"Table {call.values['table']} was not found")
    return call.world.graph


def _check_known(call: Call, nodes: list[int]) -> None:
    # The service fails with a KeyError, that is with status 500, if a row does not exist.
    if unknown := [node for node in nodes if node not in _graph(call).history.created]:
        raise ApiError(500, str(unknown[0]))


_TABLE = "/segmentation/api/v1/table/{table}"

#: Endpoints of the graph's service.
SEGMENTATION = (
    Endpoint.at("GET", "/segmentation/api/version", segmentation_version),
    Endpoint.at("GET", "/segmentation/api/versions", segmentation_api_versions),
    Endpoint.at("GET", "/segmentation/table/{table}/info", info),
    Endpoint.at("POST", _TABLE + "/roots_binary", roots_binary),
    Endpoint.at("POST", _TABLE + "/roots", roots),
    Endpoint.at("GET", _TABLE + "/node/{node}/root", root),
    Endpoint.at("GET", _TABLE + "/node/{node}/leaves", leaves),
    Endpoint.at("POST", _TABLE + "/node/leaves_many", leaves_many),
    Endpoint.at("GET", _TABLE + "/node/{node}/children", children),
    Endpoint.at("POST", _TABLE + "/is_latest_roots", is_latest_roots),
    Endpoint.at("POST", _TABLE + "/root_timestamps", root_timestamps),
    Endpoint.at("GET", _TABLE + "/root/{node}/lineage_graph", lineage_graph),
    Endpoint.at("POST", _TABLE + "/lineage_graph_multiple", lineage_graph_multiple),
    Endpoint.at("POST", _TABLE + "/merge", merge),
    Endpoint.at("POST", _TABLE + "/split", split),
    Endpoint.at("GET", _TABLE + "/delta_roots", delta_roots),
    Endpoint.at("GET", _TABLE + "/valid_nodes", valid_nodes),
    Endpoint.at("GET", _TABLE + "/oldest_timestamp", oldest_timestamp),
    Endpoint.at("GET", _TABLE + "/l2_chunk_children/{node}", l2_chunk_children),
    Endpoint.at("GET", _TABLE + "/l2_chunk_children_binary/{node}", l2_chunk_children_binary),
)
