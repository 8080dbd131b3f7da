"""State of a client: layers, default mips and resolution; it resolves requests to cutouts with these defaults."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imagery_dask.arrays.lazy import lazy_block_edges
from imagery_dask.client.cave_queries import StaleRoots, check_root_ids
from imagery_dask.config import config
from imagery_dask.errors import InvalidInfoError
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.humanize import human_share
from imagery_dask.model.arguments import Triple
from imagery_dask.model.chunkedgraph import ChunkedGraph, RootQuery
from imagery_dask.model.cutout import Cutout, CutoutRequest, resolve, resolve_pair, whole_layer
from imagery_dask.model.labels import Kind, LabelRequest, LabelRule, RootIds, are_ids, label_rule
from imagery_dask.model.layer import Layer
from imagery_dask.model.moments import resolve_moment
from imagery_dask.sources import Missing, forget_token, layers_of, normalize_path, open_volume, remember_token
from imagery_dask.urls import redacted
from imagery_dask.validate import choice, triple, whole_number

__all__ = ["ClientSettings", "DynamicSettings", "Outside", "open_settings"]

Outside = Literal["error", "fill"]
# Path and mip of layers of which it was said that bounds are partly outside.
_warned: set[tuple[str, int]] = set()
_logger = logging.getLogger("imagery_dask")


@dataclass(frozen=True, slots=True)
class DynamicSettings:
    """How a client queries a dynamic segmentation."""

    #: Timestamp that the client is pinned to, in whole seconds since 1970; None means the time of each call.
    moment: int | None = None
    #: Raise or warn if root ids were not valid at the timestamp of a cutout.
    stale_roots: StaleRoots = "error"
    #: Largest number of requests in flight to the graph server, from all workers together.
    max_requests: int = 32
    #: Materialization version that `moment` belongs to.
    version: int | None = None

    def __post_init__(self) -> None:
        choice("stale_roots", self.stale_roots, ("error", "warn"))
        whole_number("max_requests", self.max_requests)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Everything that a client's cutouts take from the client."""

    #: Layers; None for a layer that the client was made without.
    image: Layer | None
    segmentation: Layer | None
    #: Levels to read by default.
    image_mip: int
    segmentation_mip: int
    #: Resolution in which bounds are given, nm per voxel (x, y, z).
    resolution: Triple
    #: Whether a storage chunk that does not exist becomes zeros or an error.
    missing: Missing
    #: How to query a dynamic segmentation.
    dynamic: DynamicSettings
    #: Whether a cutout that is wholly outside of its layer is an error or zeros.
    outside: Outside = "error"

    def image_layer(self) -> Layer:
        """Return the image layer; raise ValueError if the client has none."""
        return self.image or _absent("imagery", "image_source")

    def segmentation_layer(self) -> Layer:
        """Return the segmentation layer; raise ValueError if the client has none."""
        return self.segmentation or _absent("segmentation", "segmentation_source")

    def resolution_or(self, resolution: object) -> Triple:
        """Return the given resolution, or the client's if it is None."""
        if resolution is None:
            return self.resolution
        x, y, z = triple("resolution", resolution, positive=True)
        return (x, y, z)

    def image_cutout(self, bounds: ArrayLike, order: int, **request: object) -> Cutout:
        """Return the imagery cutout of a request; `request` has the other fields of a `CutoutRequest`."""
        layer = self.image_layer()
        asked = self._request(bounds, self.image_mip, **request)
        return self._inside(resolve(asked, layer, missing=self.missing, order=order), asked.resolution)

    def labels_cutout(self, bounds: ArrayLike, labels: LabelRequest, **request: object) -> Cutout:
        """Return the segmentation cutout of a request."""
        layer, rule = self.segmentation_layer(), self.rule(labels)
        asked = self._request(bounds, self.segmentation_mip, **request)
        cutout = self._inside(resolve(asked, layer, labels=rule, missing=self.missing), asked.resolution)
        return self._checked(cutout, sparse=labels.sparse)

    def whole_labels(self, mip: int | None, labels: LabelRequest) -> Cutout:
        """Return the cutout of the whole segmentation at a mip."""
        layer, rule = self.segmentation_layer(), self.rule(labels)
        level = self.segmentation_mip if mip is None else mip
        return self._checked(whole_layer(layer, level, labels=rule, missing=self.missing), leaves=False)

    def rule(self, labels: LabelRequest) -> LabelRule:
        """Return the rule that maps stored ids to the requested ones; it has a query if the segmentation is dynamic."""
        graph = self.segmentation_layer().graph
        stop_layer = labels.stop_layer
        if labels.sparse:
            _check_sparse(graph, labels.root_ids)
        if graph is None:
            if stop_layer is not None:
                raise ValueError(f"stop_layer={stop_layer!r} needs a dynamic segmentation; this one is flat.")
            return label_rule(labels.root_ids, as_int64=labels.as_int64)
        if stop_layer is not None and (
            isinstance(stop_layer, bool) or not isinstance(stop_layer, int) or not 1 <= stop_layer <= graph.layers
        ):
            raise ValueError(
                f"stop_layer must be a layer of the graph, from 1 (supervoxels) to {graph.layers}; got {stop_layer!r}."
            )
        moment, version = self.dynamic.moment, self.dynamic.version
        if moment is None or labels.timestamp is not None:
            moment, version = resolve_moment(labels.timestamp), labels.version
        query = RootQuery(graph, moment, stop_layer, self.dynamic.max_requests, version)
        return label_rule(labels.root_ids, as_int64=labels.as_int64, query=query)

    def pair(
        self,
        bounds: ArrayLike,
        mips: tuple[int | None, int | None],
        labels: LabelRequest,
        *,
        resize: bool,
        order: int,
        **request: object,
    ) -> tuple[Cutout, Cutout]:
        """Return aligned cutouts of imagery and segmentation."""
        asked = self._request(bounds, 0, **request)
        image, segmentation = resolve_pair(
            asked,
            self.image_layer(),
            self.segmentation_layer(),
            mips,
            default_mips=(self.image_mip, self.segmentation_mip),
            labels=self.rule(labels),
            resize=resize,
            missing=self.missing,
            order=order,
        )
        own = asked.resolution
        return self._inside(image, own), self._checked(self._inside(segmentation, own), sparse=labels.sparse)

    def present(
        self,
        bounds: ArrayLike,
        mips: tuple[int | None, int | None],
        labels: LabelRequest,
        *,
        order: int,
        **request: object,
    ) -> dict[str, Cutout]:
        """Return cutouts, on one grid, of the layers that the client has."""
        if self.segmentation is None:
            image = self.image_cutout(bounds, order, mip=mips[0], **request)
            return {"image": image}
        if self.image is None:
            return {"segmentation": self.labels_cutout(bounds, labels, mip=mips[1], **request)}
        image, segmentation = self.pair(bounds, mips, labels, resize=True, order=order, **request)
        return {"image": image, "segmentation": segmentation}

    def _inside(self, cutout: Cutout, resolution: Triple) -> Cutout:
        """Return a cutout; raise if all of it is outside of its layer, and log once for each mip if a part of it is."""
        share = cutout.share_outside
        if share == 0 or self.outside == "fill":
            return cutout
        layer = "image" if cutout.labels is None else "segmentation"
        if share == 1:
            raise ValueError(
                f"The bounds lie outside the {layer} {cutout.path!r}: {cutout.where}. "
                f"{_nanometres(cutout, resolution)}ImageryClient(outside='fill') returns zeros."
            )
        if (cutout.path, cutout.mip.level) not in _warned:
            _warned.add((cutout.path, cutout.mip.level))
            _logger.warning(
                "%s of the bounds lie outside the %s %s (%s): their voxels are 0. This is said once for each mip; "
                "ImageryClient(outside='fill') does not say it.", human_share(share), layer, cutout.path, cutout.where,
            )  # fmt: skip
        return cutout

    def tell_outside(self, volume: VoxelGrid, voxels: NDArray[np.int64]) -> None:
        """Log how many voxels of n x 3 are outside of the segmentation."""
        outside = int(((voxels < volume.start) | (voxels >= volume.stop)).any(axis=1).sum())
        if outside and self.outside == "error":
            _logger.warning(
                "%d of %d points lie outside the segmentation, which has the voxels %s to %s of %s nm: their id is 0. "
                "Check the resolution in which points are given; ImageryClient(outside='fill') does not say this.",
                outside, len(voxels), volume.start, volume.stop, volume.resolution_nm,
            )  # fmt: skip

    def _checked(self, cutout: Cutout, leaves: bool = True, sparse: bool = False) -> Cutout:
        """Check given root ids with the graph server, and choose the cheaper way to find their voxels.

        Either each block looks up the roots of its supervoxels, or the supervoxels of each root are fetched once, as
        `sparse` asks for.
        """
        rule = cutout.labels
        if rule is None or rule.query is None or rule.keep is None:
            return cutout
        keep, within = check_root_ids(rule.query, rule.keep, self.dynamic.stale_roots), None
        blocks = prod(len(edges) - 1 for edges in lazy_block_edges(cutout))
        # Pieces of a split supervoxel take its place among the leaves of old roots too, but not in older voxels.
        leaves = leaves and not rule.query.graph.splits_supervoxels
        if leaves and keep and (sparse or len(keep) * config.get("graph.processes") <= blocks):
            box = self._leaf_box(cutout, rule.query)
            within = box if min(box.start) >= 0 else None  # the service does not accept negative bounds
            if sparse and within is None:
                raise ValueError(f"sparse: graph servers do not say what is at negative voxels, here {box.start}.")
        return replace(cutout, labels=replace(rule, keep=keep, leaves_within=within))

    def _leaf_box(self, cutout: Cutout, query: RootQuery) -> VoxelGrid:
        """Return the box of a cutout in voxels of the graph, padded by a target voxel because centers are sampled."""
        nm = query.graph.resolution_nm
        level = next(mip for mip in self.segmentation_layer().mips if mip.grid.resolution_nm == nm)
        box, pad = cutout.target.at(nm), cutout.target.steps_from(nm).map(ceil)
        return VoxelGrid.between(box.start - pad, box.stop + pad, nm).intersection(level.grid)

    def _request(self, bounds: ArrayLike, default_mip: int, *, resolution: object, **fields: Any) -> CutoutRequest:
        own = self.resolution_or(resolution)
        return CutoutRequest(bounds=bounds, default_mip=default_mip, resolution=own, **fields)


def open_settings(
    image_source: str | None,
    segmentation_source: str | None,
    mips: tuple[int | None, int | None],
    resolution: object,
    missing: Missing,
    token: str | None,
    dynamic: DynamicSettings,
    *,
    image_kind: Kind | None = None,
    as_segmentation: bool = False,
    outside: Outside = "error",
    find_labels: bool = False,
) -> ClientSettings:
    """Return the settings of a client: open its layers and fill in its defaults.

    With `find_labels`, the only labels of an image of OME-Zarr, or segmentation of a dataset, are the segmentation
    where none is given.

    Raises
    ------
    ValueError
        When no layer is given, a mip does not exist, or an image is given as segmentation.
    SourceError
        When a source does not exist or access to it is refused.
    """
    choice("missing", missing, ("fill", "error"))
    choice("outside", outside, ("error", "fill"))
    if image_source is None and segmentation_source is None:
        raise ValueError(
            "A client needs at least one layer: give image_source or segmentation_source (or a CAVEclient), and leave "
            "imagery or segmentation True."
        )
    image = _open_layer(image_source, token, is_segmentation=False)
    if segmentation_source is None and find_labels and image_source is not None:
        labels = [path for path, is_segmentation in layers_of(image_source).items() if is_segmentation]
        segmentation_source = labels[0] if len(labels) == 1 else None
    segmentation = _open_layer(segmentation_source, token, is_segmentation=True)
    if image_kind is not None:
        choice("image_kind", image_kind, ("image", "segmentation"))
        image = replace(image or _absent("imagery", "image_source"), given_kind=image_kind)
    if as_segmentation:
        segmentation = _segmentation(segmentation or _absent("segmentation", "segmentation_source"))
    elif segmentation is not None and segmentation.kind != "segmentation" and _may_be_ids(segmentation):
        _logger.warning(
            "The info of segmentation_source %s says %r, and its voxels are %s: they are taken for ids. "
            "as_segmentation=True (--as-segmentation) does not say it.",
            redacted(segmentation.path), segmentation.kind, segmentation.dtype,
        )  # fmt: skip
        segmentation = _segmentation(segmentation)
    elif segmentation is not None and segmentation.kind != "segmentation":
        raise ValueError(
            f"segmentation_source {redacted(segmentation.path)!r} is a layer of type {segmentation.kind!r}, not a "
            "segmentation. Pass it as image_source (--image-source), or, if its voxels are ids, as_segmentation=True "
            "(--as-segmentation)."
        )
    return ClientSettings(
        image=image,
        segmentation=segmentation,
        image_mip=_default_mip(image, mips[0]),
        segmentation_mip=_default_mip(segmentation, mips[1]),
        resolution=_default_resolution(resolution, image, segmentation),
        missing=missing,
        dynamic=dynamic,
        outside=outside,
    )


def _check_sparse(graph: ChunkedGraph | None, root_ids: RootIds) -> None:
    """Raise if it is not known which graph chunks hold the objects of a request."""
    if graph is None:
        reason = "this segmentation is flat, and no server knows where its objects are"
    elif root_ids is None or isinstance(root_ids, str):
        reason = f"it reads the graph chunks of listed objects, and root_ids is {root_ids!r}; list root ids"
    elif graph.splits_supervoxels:
        reason = (
            "supervoxels of this graph are split, and its server lists the pieces of later splits too. A version "
            "store knows where objects were: 'imagery-dask versions create'"
        )
    elif graph.chunk_bits is None:
        reason = "the info of the graph has no spatial_bit_masks, which say where ids have their chunk"
    else:
        return
    raise ValueError(f"sparse: {reason}.")


def _open_layer(source: str | None, token: str | None, is_segmentation: bool) -> Layer | None:
    """Open a source; its only layer of the kind, if it is a dataset, or an image of OME-Zarr with labels."""
    if source is None:
        return None
    path = normalize_path(source)
    before = None if token is None else remember_token(path, token)
    try:
        # `fresh`: a new client reads the volume's current metadata, even if this process has opened the volume before.
        try:
            layer = open_volume(source, fresh=True).layer
        except InvalidInfoError:
            if (found := _layer_in(source, is_segmentation)) is None:
                raise
        else:
            found = _layer_in(source, is_segmentation) if is_segmentation else None
        return layer if found is None else open_volume(found, fresh=True).layer
    except Exception:
        if token is not None:
            forget_token(path, before)  # existing arrays keep the token that they were made with
        raise


def _layer_in(source: str, is_segmentation: bool) -> str | None:
    """Return the only labels of an image of OME-Zarr, or layer of a dataset; None for another source."""
    layers = [path for path, told in layers_of(source).items() if told == is_segmentation]
    if len(layers) > 1:
        what, argument = ("labels", "segmentation") if is_segmentation else ("images", "image")
        raise ValueError(f"{redacted(source)!r} has the {what} {', '.join(layers)}: give one as {argument}_source.")
    return layers[0] if layers else None


def _may_be_ids(layer: Layer) -> bool:
    """Return True for voxels that are hardly intensities: integers of 32 bits and more, of one channel."""
    return are_ids(layer.dtype) and np.dtype(layer.dtype).kind in "iu" and layer.channels == 1


def _segmentation(layer: Layer) -> Layer:
    """Return a layer as a segmentation, whatever its info says; raise if its voxels cannot be ids."""
    if np.dtype(layer.dtype).kind not in "iu" or layer.channels != 1:
        raise ValueError(
            f"as_segmentation: {layer.path!r} holds {layer.dtype} with {layer.channels} channels, and ids are integers "
            "of one channel."
        )
    return replace(layer, given_kind="segmentation")


def _default_mip(layer: Layer | None, mip: int | None) -> int:
    if layer is None:
        return 0
    return layer.first_mip if mip is None else layer.mip(mip).level


def _default_resolution(resolution: object, image: Layer | None, segmentation: Layer | None) -> Triple:
    if isinstance(resolution, str) and resolution not in ("image", "segmentation"):
        raise ValueError(f"resolution must be three numbers in nm, 'image' or 'segmentation'; got {resolution!r}.")
    if resolution is None:
        layer = image or segmentation
    elif isinstance(resolution, str):
        layer = image if resolution == "image" else segmentation
    else:
        x, y, z = triple("resolution", resolution, positive=True)
        return (x, y, z)
    if layer is None:
        raise ValueError(f"resolution={resolution!r} names a layer that the client does not have; give numbers in nm.")
    return layer.mips[layer.first_mip].grid.resolution_nm


def _nanometres(cutout: Cutout, resolution: Triple) -> str:
    """Say that bounds are in nm if that puts them into the volume, or else that their resolution may be another."""
    volume, target = cutout.mip.grid, cutout.target
    # The numbers that were given, taken for nm, in voxels of the volume.
    per_voxel = Vec3.of(target.resolution_nm).map(
        lambda own, given, stored: own / given / stored, resolution, volume.resolution_nm
    )
    low, high = target.start * per_voxel, target.stop * per_voxel
    if resolution != (1.0, 1.0, 1.0) and low.all_lt(volume.stop) and Vec3.of(volume.start).all_lt(high):
        return (
            f"They look like nanometres, which would be inside of it: divide them by {Vec3.of(resolution)} nm, or pass "
            "resolution=(1, 1, 1). "
        )
    return "Check the resolution in which bounds are given. "


def _absent(layer: str, argument: str) -> NoReturn:
    raise ValueError(f"This client was made without {layer}; make one with {argument}=... (and leave {layer}=True).")
