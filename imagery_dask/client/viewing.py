"""The client in Neuroglancer: a page on this machine, and links to and from public viewers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import ArrayLike

from imagery_dask.client.cave_queries import check_root_ids
from imagery_dask.client.parameters import describe
from imagery_dask.client.settings import ClientSettings
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.arguments import bounds_from_center, corners
from imagery_dask.model.labels import LabelRequest, LabelRule, RootIds
from imagery_dask.model.moments import Moment, resolve_moment
from imagery_dask.urls import location_of, redacted
from imagery_dask.validate import sizes, triple
from imagery_dask.viewer.links import link_of, public_source, read_state, state_server, viewer_of
from imagery_dask.viewer.states import Place, StateLayer, read_layers, read_place, state_of

if TYPE_CHECKING:
    from imagery_dask.viewer.loopback import View
    from imagery_dask.viewer.served import ServedVolume

__all__ = ["ViewsVolumes", "selected_objects", "served_volumes"]

READABLE = ("precomputed://", "graphene://", "zarr://", "zarr2://", "zarr3://", "n5://")


class ViewsVolumes:
    """Mixin of `ImageryClient`: Neuroglancer."""

    _settings: ClientSettings

    @classmethod
    def from_neuroglancer(cls, url_or_state: object, client: Any = None, **options: Any) -> Self:
        """Make a client of the layers that a Neuroglancer link shows.

        Parameters
        ----------
        url_or_state : str or mapping
            A link, or its state as JSON or dict, in the present form (Neuroglancer, Spelunker) or the old one
            (FlyWire). It names servers that are read: open only links that you trust.
        client : caveclient.CAVEclient, optional
            Its token is sent to its own servers, for links whose state is on its state server, and for layers there.
        **options
            Keyword arguments of `ImageryClient`, which come before what the link says: ``image_source``,
            ``segmentation_source``, ``resolution``, ``timestamp``, ``auth_token`` and so on.

        Returns
        -------
        ImageryClient
            With the first visible image layer and the first visible segmentation layer, the voxel size of the link as
            its resolution, and the timestamp of a dynamic segmentation.

        Raises
        ------
        ValueError
            If the link is malformed (the message names the part), no layer is precomputed or graphene, or the link
            moves a layer.
        """
        state = read_state(url_or_state, None if client is None else state_server(client))
        layers = read_layers(state)
        if "resolution" not in options and ("navigation" in state or "dimensions" in state):
            options["resolution"] = read_place(state).resolution_nm
        shown = {kind: _first(layers, kind) for kind in ("image", "segmentation")}
        for kind, layer in shown.items():
            if layer is not None and options.get(kind if kind == "segmentation" else "imagery", True):
                if layer.moved and f"{kind}_source" not in options:
                    raise ValueError(
                        f"In the Neuroglancer state, {layer.moved} moves or scales the layer {layer.name!r}, and "
                        f"voxels are read where the volume has them. Pass {kind}_source={redacted(layer.source)!r} "
                        "to read them all the same."
                    )
                options.setdefault(f"{kind}_source", layer.source)
        if options.get("image_source") is None and options.get("segmentation_source") is None:
            named = ", ".join(f"{layer.name!r} ({redacted(layer.source)})" for layer in layers) or "none"
            raise ValueError(
                f"The Neuroglancer link has no layer that can be read: precomputed, graphene, zarr and n5 can be; got "
                f"{named}. Pass image_source=... or segmentation_source=..."
            )
        segmentation = shown["segmentation"]
        if segmentation is not None and segmentation.timestamp is not None and "version" not in options:
            options.setdefault("timestamp", segmentation.timestamp)
        if client is not None and "auth_token" not in options:
            for name in ("image_source", "segmentation_source"):
                _check_server(options.get(name), client)
            options["auth_token"] = client.auth.token
        return cls(**options)

    @describe
    def neuroglancer_url(
        self,
        bounds: ArrayLike,
        root_ids: RootIds = None,
        viewer: str = "neuroglancer",
        *,
        bbox_size: ArrayLike | None = None,
        resolution: ArrayLike | None = None,
        timestamp: Moment = None,
    ) -> str:
        """Return a link that shows a place in a public Neuroglancer viewer.

        Parameters
        ----------
        bounds : array-like, shape (2, 3) or (3,)
            Box to show, x, y, z in voxels of `resolution`, or the position to show.
        root_ids : sequence of int, optional
            Objects to select, in this package's colors; by default all objects are shown. In a dynamic segmentation,
            one request checks that they are root ids at the timestamp.
        viewer : str
            ``"neuroglancer"``, ``"spelunker"``, ``"flywire"``, ``"seunglab"``, or the URL of a viewer. The last two
            read states of the old form.
        {parameters}

        Returns
        -------
        str
            The link. It contains the whole state.

        Raises
        ------
        ValueError
            If a public viewer cannot read a source, such as a local folder; use `view` for these.
        """
        url, form = viewer_of(viewer)
        settings, segments = self._settings, self._selected(root_ids, timestamp)
        layers = []
        if settings.image is not None:
            layers.append(StateLayer("image", "image", public_source(settings.image.path, form)))
        if settings.segmentation is not None:
            source = public_source(settings.segmentation.path, form)
            moment = settings.dynamic.moment if timestamp is None else resolve_moment(timestamp)
            moment = None if settings.segmentation.graph is None else moment
            layers.append(StateLayer("segmentation", "segmentation", source, segments, moment))
        return link_of(state_of(tuple(layers), self._place(bounds, bbox_size, resolution), form), url)

    @describe
    def view(
        self,
        bounds: ArrayLike | None = None,
        root_ids: RootIds = None,
        *,
        bbox_size: ArrayLike | None = None,
        resolution: ArrayLike | None = None,
        timestamp: Moment = None,
        layers: Mapping[str, Any] | None = None,
        browser: bool = True,
    ) -> View:
        """Show the client's layers in Neuroglancer, served from this machine.

        All mips of sources of every kind are shown: local folders, buckets, and dynamic segmentations at a timestamp.
        Only chunks that the viewer asks for are read. Meshes are not served. Needs ``pip install
        'imagery_dask[browser]'``.

        Parameters
        ----------
        bounds : array-like, shape (2, 3) or (3,), optional
            Box to show, x, y, z in voxels of `resolution`, or the position to show. By default the whole volume.
        root_ids : sequence of int, optional
            Objects to select, in this package's colors; by default all objects are shown. In a dynamic segmentation,
            one request checks that they are root ids at the timestamp.
        layers : mapping of str to array, optional
            More layers: dask and numpy arrays, and xarray objects, by name. An array without coordinates has the
            client's resolution.
        browser : bool
            Open a browser. Without one on this machine, the address of the page is printed.
        {parameters}

        Returns
        -------
        View
            The page; a link in a notebook. It serves until ``view.stop()`` or the end of the process, on 127.0.0.1
            alone and under an address that cannot be guessed. ``view.root_ids`` are the objects selected now.

        Raises
        ------
        ImportError
            If the neuroglancer package is not installed.
        """
        from imagery_dask.viewer.launch import launch, layers_of

        place = None if bounds is None else self._place(bounds, bbox_size, resolution)
        segments, served = self._selected(root_ids, timestamp), served_volumes(self._settings, timestamp)
        more = layers_of(layers or {}, self._settings.resolution)
        return launch([*served, *more], place, segments, browser=browser)

    def _place(self, bounds: ArrayLike, bbox_size: ArrayLike | None, resolution: ArrayLike | None) -> Place:
        """Return the place of bounds, or of a center."""
        own = Vec3.of(self._settings.resolution_or(resolution))
        if np.shape(bounds) == (3,) and bbox_size is None:
            center = triple("bounds (a position)", bounds)
            return Place(Vec3.of(np.floor(center).tolist()) + 0.5, own)
        if bbox_size is not None:
            bounds = bounds_from_center(triple("bounds (the center)", bounds), *sizes("bbox_size", bbox_size))
        lower, upper = corners(bounds)
        return Place.of_bounds(Vec3.of(lower), Vec3.of(upper), own)

    def _selected(self, root_ids: RootIds, timestamp: Moment) -> tuple[int, ...]:
        return selected_objects(self._settings, root_ids, timestamp)


def served_volumes(settings: ClientSettings, timestamp: Moment = None) -> list[ServedVolume]:
    """Return the volumes that show the layers of a client, and a dynamic segmentation at a timestamp."""
    from imagery_dask.viewer.served import volume_of_layer  # with xarray

    served = []
    if settings.image is not None:
        served.append(volume_of_layer("image", settings.image, None, settings.missing))
    if settings.segmentation is not None:
        rule = settings.rule(LabelRequest("all", False, timestamp))
        served.append(volume_of_layer("segmentation", settings.segmentation, rule, settings.missing))
    return served


def selected_objects(settings: ClientSettings, root_ids: RootIds, timestamp: Moment = None) -> tuple[int, ...]:
    """Return the objects to select; those of a dynamic segmentation are root ids at the timestamp.

    Raises
    ------
    OutdatedRootsError, ValueError
        If they are not.
    """
    if root_ids is None or (isinstance(root_ids, str) and root_ids == "all"):
        return ()
    rule: LabelRule = settings.rule(LabelRequest(root_ids, timestamp=timestamp))
    keep = rule.keep or ()
    return keep if rule.query is None else check_root_ids(rule.query, keep, settings.dynamic.stale_roots)


def _first(layers: tuple[StateLayer, ...], kind: str) -> StateLayer | None:
    """Return the first layer of a kind that can be read; those that are visible come first."""
    own = [layer for layer in layers if layer.kind == kind and layer.source.startswith(READABLE)]
    return next((layer for layer in own if layer.visible), own[0] if own else None)


def _check_server(source: str | None, client: Any) -> None:
    """Raise if a source would have the token of a CAVEclient sent to a server that is not the client's."""
    plain = location_of(source or "")
    if not plain.startswith(("graphene://", "middleauth+")):
        return
    host = urlsplit(plain.removeprefix("graphene://").removeprefix("middleauth+")).netloc
    own = {urlsplit(address).netloc for address in (client.server_address, client.local_server) if address}
    if host not in own:
        raise ValueError(
            f"The link names a layer on {host!r}, and the token of this client is for {', '.join(sorted(own))}. If you "
            "trust that server, make the CAVEclient of its datastack, or pass auth_token=..."
        )
