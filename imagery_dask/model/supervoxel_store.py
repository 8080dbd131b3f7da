"""Where a chunked graph keeps the supervoxels that were split, as a value. No I/O.

Newer PyChunkedGraph servers split supervoxels. The voxels of the pieces are in an OCDBT store, which keeps its earlier
versions (https://google.github.io/tensorstore/kvstore/ocdbt/), beside the watershed volume that the graph was made
from. The files in the store are those of a precomputed volume. All graphs of a watershed share a store ``ocdbt/base``,
and the edits of one graph are in files of its own, laid over it. The server describes these layers in the info, as a
kvstore of tensorstore.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imagery_dask.annotations import JsonObject
from imagery_dask.errors import InvalidInfoError
from imagery_dask.urls import redacted

__all__ = ["StoreLayer", "SupervoxelStore"]

SPEC = "graph.ocdbt_kvstore_spec"
# Of servers that name neither a specification nor a path.
DEFAULT_PATH = "ocdbt/base"
# Members of a specification that matter to a writer only, or say how much is done at once.
NOT_READ = (
    "config", "assume_config", "value_data_prefix", "btree_node_data_prefix", "version_tree_node_data_prefix",
    "target_data_file_size", "coordinator", "cache_pool", "data_copy_concurrency", "context",
    "experimental_read_coalescing_threshold_bytes", "experimental_read_coalescing_merged_bytes",
    "experimental_read_coalescing_interval",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoreLayer:
    """A folder, or a file, with files of a store. Later layers of a store take the place of earlier ones.

    Parameters
    ----------
    url : str
        Where the files are; a path below the volume if it has no scheme. A folder ends with ``/``.
    exact : str or None
        Name of the only file in it; `url` is that of the file.
    prefix : str or None
        Beginning of the names of the files in it, which is left out of their names in the folder.
    """

    url: str
    exact: str | None = None
    prefix: str | None = None


@dataclass(frozen=True, slots=True)
class SupervoxelStore:
    """An OCDBT store with edited supervoxels.

    Parameters
    ----------
    layers : tuple of StoreLayer
        Its files.
    version : int, str or None
        The only version to read, a generation or a time, if the server names one.
    field : str
        Field of the info that describes it.
    """

    layers: tuple[StoreLayer, ...]
    version: int | str | None = None
    field: str = SPEC

    @classmethod
    def from_info(cls, path: str, info: JsonObject) -> SupervoxelStore | None:
        """Return the store that the info of a graph describes; None if its supervoxels are never split.

        Parameters
        ----------
        path : str
            Path of the graph, for errors.
        info : dict
            The parsed info. Its ``graph`` may have ``ocdbt_kvstore_spec`` (newer servers) or ``ocdbt_path``, a path
            below ``data_dir`` (older ones). ``ocdbt_seg`` is false for graphs without edited supervoxels, whatever else
            is named.

        Raises
        ------
        InvalidInfoError
            If the store is described in a form that is not known, with the field and its value.
        """
        graph = info.get("graph")
        if not isinstance(graph, dict):
            return None
        spec, folder = graph.get("ocdbt_kvstore_spec"), graph.get("ocdbt_path")
        if not graph.get("ocdbt_seg", bool(spec or folder)):
            return None
        if spec:
            return _from_spec(path, spec)
        if "ocdbt_kvstore_spec" in graph and not folder:
            raise _wrong(path, SPEC, spec, "it must say where")
        folder = DEFAULT_PATH if folder is None else folder
        if not isinstance(folder, str) or not folder.strip("/"):
            raise _wrong(path, "graph.ocdbt_path", folder, "it must be a path below data_dir")
        return cls((StoreLayer(f"{folder.rstrip('/')}/"),), field="graph.ocdbt_path")


def _from_spec(path: str, spec: Any) -> SupervoxelStore:
    spec = {"driver": "ocdbt", "base": spec} if isinstance(spec, str) else spec
    _check_members(path, SPEC, spec, "ocdbt", ("base", "version", "path", *NOT_READ))
    if spec.get("path"):
        raise _wrong(path, f"{SPEC}.path", spec["path"], "the volume must be at the beginning of the store")
    version = spec.get("version")
    if version is not None and (isinstance(version, bool) or not isinstance(version, (int, str))):
        raise _wrong(path, f"{SPEC}.version", version, "it must be a generation or a time")
    base, field = spec.get("base"), f"{SPEC}.base"
    if isinstance(base, str):
        return SupervoxelStore((StoreLayer(f"{base.rstrip('/')}/"),), version)
    _check_members(path, field, base, "kvstack", ("layers",))
    layers = base.get("layers")
    if not isinstance(layers, list) or not layers:
        raise _wrong(path, f"{field}.layers", layers, "it must be a list of layers")
    return SupervoxelStore(
        tuple(_layer(path, f"{field}.layers[{number}]", layer) for number, layer in enumerate(layers)), version
    )


def _layer(path: str, field: str, layer: Any) -> StoreLayer:
    _check_members(path, field, layer, None, ("base", "exact", "prefix"))
    texts = {name: layer.get(name) for name in ("base", "exact", "prefix")}
    for name, text in texts.items():
        if not isinstance(text, str) and (name == "base" or text is not None):
            raise _wrong(path, f"{field}.{name}", text, "it must be a text, that of base a URL")
    exact, prefix = texts["exact"], texts["prefix"]
    if exact and prefix:
        raise _wrong(path, field, layer, "it cannot have both exact and prefix")
    url = str(texts["base"])
    return StoreLayer(url if exact else f"{url.rstrip('/')}/", exact or None, prefix or None)


def _check_members(path: str, field: str, value: Any, driver: str | None, known: tuple[str, ...]) -> None:
    """Raise if a value is no object of a driver, or has members that are not known."""
    if not isinstance(value, dict) or (driver is not None and value.get("driver") != driver):
        raise _wrong(path, field, value, f"it must be an object with driver {driver!r}" if driver else "it must be one")
    unknown = [name for name in value if name not in known and name != "driver"]
    if unknown or (driver is None and "driver" in value):
        name = unknown[0] if unknown else "driver"
        raise _wrong(path, f"{field}.{name}", value[name], f"the members that are understood are {', '.join(known)}")


def _wrong(path: str, field: str, value: object, reason: str) -> InvalidInfoError:
    return InvalidInfoError(
        f"{path!r} cannot be read: its supervoxels are split, and {field} of its info, which says where, "
        f"is {redacted(repr(value))[:100]}, but {reason}. Without them, voxels would be those before the splits."
    )
