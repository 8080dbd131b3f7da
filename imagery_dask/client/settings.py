"""What a client is made of: its layers, default mips and resolution, and requests that carry these defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from numpy.typing import ArrayLike

from imagery_dask.arguments import Triple, triple
from imagery_dask.layer import Layer
from imagery_dask.request import Cutout, CutoutRequest, RootIds, label_rule, resolve, resolve_pair
from imagery_dask.sources import Missing, normalize_path, open_volume, remember_token

__all__ = ["ClientSettings", "open_settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Everything that a client's cutouts take from the client.

    Parameters
    ----------
    image, segmentation : Layer or None
        The layers; None for one that the client was made without.
    image_mip, segmentation_mip : int
        Levels to read by default.
    resolution : tuple of 3 float
        Resolution in which bounds are given, nm.
    missing : {"fill", "error"}
        What a storage chunk that does not exist becomes.
    """

    image: Layer | None
    segmentation: Layer | None
    image_mip: int
    segmentation_mip: int
    resolution: Triple
    missing: Missing

    def image_layer(self) -> Layer:
        """Imagery, or an error that says the client has none."""
        return self.image or _absent("imagery", "image_source")

    def segmentation_layer(self) -> Layer:
        """Segmentation, or an error that says the client has none."""
        return self.segmentation or _absent("segmentation", "segmentation_source")

    def resolution_or(self, resolution: Any) -> Triple:
        """Resolution of a call: the given one, else the client's."""
        if resolution is None:
            return self.resolution
        x, y, z = triple("resolution", resolution, positive=True)
        return (x, y, z)

    def image_cutout(self, bounds: ArrayLike, order: int, **request: Any) -> Cutout:
        """Resolve an imagery cutout; `request` holds the other fields of a `CutoutRequest`."""
        layer = self.image_layer()
        return resolve(self._request(bounds, self.image_mip, **request), layer, missing=self.missing, order=order)

    def labels_cutout(self, bounds: ArrayLike, root_ids: RootIds, as_int64: bool, **request: Any) -> Cutout:
        """Resolve a segmentation cutout."""
        layer, rule = self.segmentation_layer(), label_rule(root_ids, as_int64=as_int64)
        asked = self._request(bounds, self.segmentation_mip, **request)
        return resolve(asked, layer, labels=rule, missing=self.missing)

    def pair(
        self,
        bounds: ArrayLike,
        mips: tuple[int | None, int | None],
        root_ids: RootIds,
        as_int64: bool,
        *,
        resize: bool,
        order: int,
        **request: Any,
    ) -> tuple[Cutout, Cutout]:
        """Resolve aligned cutouts of both layers."""
        return resolve_pair(
            self._request(bounds, 0, **request),
            self.image_layer(),
            self.segmentation_layer(),
            mips,
            default_mips=(self.image_mip, self.segmentation_mip),
            labels=label_rule(root_ids, as_int64=as_int64),
            resize=resize,
            missing=self.missing,
            order=order,
        )

    def present(
        self,
        bounds: ArrayLike,
        mips: tuple[int | None, int | None],
        root_ids: RootIds,
        as_int64: bool,
        *,
        order: int,
        **request: Any,
    ) -> dict[str, Cutout]:
        """Resolve cutouts, on one grid, of the layers that the client has."""
        if self.segmentation is None:
            image = self.image_cutout(bounds, order, mip=mips[0], **request)
            return {"image": image}
        if self.image is None:
            return {"segmentation": self.labels_cutout(bounds, root_ids, as_int64, mip=mips[1], **request)}
        image, labels = self.pair(bounds, mips, root_ids, as_int64, resize=True, order=order, **request)
        return {"image": image, "segmentation": labels}

    def _request(self, bounds: ArrayLike, default_mip: int, *, resolution: Any, **fields: Any) -> CutoutRequest:
        own = self.resolution_or(resolution)
        return CutoutRequest(bounds=bounds, default_mip=default_mip, resolution=own, **fields)


def open_settings(
    image_source: str | None,
    segmentation_source: str | None,
    mips: tuple[int | None, int | None],
    resolution: Any,
    missing: Missing,
    token: str | None,
) -> ClientSettings:
    """Open the layers of a client and fill in its defaults.

    Raises
    ------
    ValueError
        Without any layer, for a mip that does not exist, or an image given as segmentation.
    SourceError
        For a source that does not exist or may not be read.
    """
    if missing not in ("fill", "error"):
        raise ValueError(f"missing is 'fill' or 'error'; got {missing!r}.")
    if image_source is None and segmentation_source is None:
        raise ValueError(
            "A client needs a layer: give image_source or segmentation_source (or a CAVEclient), and leave imagery or "
            "segmentation True."
        )
    image, segmentation = _open_layer(image_source, token), _open_layer(segmentation_source, token)
    if segmentation is not None and segmentation.kind != "segmentation":
        raise ValueError(
            f"segmentation_source {segmentation.path!r} is a layer of type {segmentation.kind!r}, not a segmentation; "
            "give it as image_source."
        )
    return ClientSettings(
        image=image,
        segmentation=segmentation,
        image_mip=_default_mip(image, mips[0]),
        segmentation_mip=_default_mip(segmentation, mips[1]),
        resolution=_default_resolution(resolution, image, segmentation),
        missing=missing,
    )


def _open_layer(source: str | None, token: str | None) -> Layer | None:
    if source is None:
        return None
    if token is not None:
        remember_token(normalize_path(source), token)
    return open_volume(source).layer


def _default_mip(layer: Layer | None, mip: int | None) -> int:
    if layer is None:
        return 0
    return layer.first_mip if mip is None else layer.mip(mip).level


def _default_resolution(resolution: Any, image: Layer | None, segmentation: Layer | None) -> Triple:
    if isinstance(resolution, str) and resolution not in ("image", "segmentation"):
        raise ValueError(f"resolution is three numbers in nm, 'image' or 'segmentation'; got {resolution!r}.")
    if resolution is None:
        layer = image or segmentation
    elif isinstance(resolution, str):
        layer = image if resolution == "image" else segmentation
    else:
        x, y, z = triple("resolution", resolution, positive=True)
        return (x, y, z)
    if layer is None:
        raise ValueError(f"resolution={resolution!r} asks for the resolution of a layer that the client does not have.")
    return layer.mips[layer.first_mip].grid.resolution_nm


def _absent(layer: str, argument: str) -> NoReturn:
    raise ValueError(f"This client was made without {layer}; make one with {argument}=... (and leave {layer}=True).")
