"""Which chunks of a mip are in which shard, and how many bits of an id say so.

Format: ``neuroglancer_uint64_sharded_v1``,
https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/sharded.md

The id of a chunk is its compressed Morton code, in which the bits of x, y and z take turns. Its lowest bits are the
chunk's place in a minishard, then follow the numbers of the minishard and of the shard::

    | shard_bits | minishard_bits | preshift_bits |
     the shard     the chunk in the shard

So a shard is a box of 2**a x 2**b x 2**c chunks, where a + b + c is the number of bits below those of the shard, and a
task that writes the box writes the whole shard. With the hash of the format that mixes the bits, it would not be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from imagery_dask.annotations import JsonObject
from imagery_dask.geometry.vec import Vec3
from imagery_dask.validate import choice, whole_number

__all__ = ["Sharding", "id_bits"]

KIND = "neuroglancer_uint64_sharded_v1"
ID_BITS = 64
# Readers ask for the index of a shard in one request: 16 bytes for each of its minishards.
LARGEST_MINISHARD_BITS = 24
# Chunks of a shard, of which readers see one file in place of a thousand; more where these are small.
CHUNK_BITS = 10
SMALL_SHARD_BYTES = 128 * 2**20
# Chunks of a minishard: its index has 24 bytes for each of them before compression.
MINISHARD_CHUNK_BITS = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """The ``sharding`` entry of a scale, whose hash is "identity".

    Parameters
    ----------
    preshift_bits, minishard_bits, shard_bits : int
        Bits of a chunk's id, from the lowest: its place in a minishard, the minishard, the shard.
    minishard_index_encoding, data_encoding : {"raw", "gzip"}
        Compression of the indices, and of each chunk.
    """

    preshift_bits: int
    minishard_bits: int
    shard_bits: int
    minishard_index_encoding: Literal["raw", "gzip"] = "raw"
    data_encoding: Literal["raw", "gzip"] = "raw"

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> Self:
        """Return the value of an info's entry.

        Raises
        ------
        ValueError
            It is no valid entry, or its hash is not "identity".
        """
        values: dict[str, Any] = {"@type": KIND, "hash": "identity"} | dict(entry)
        if values.pop("@type") != KIND:
            raise ValueError(f"sharding: @type must be {KIND!r}; got {entry['@type']!r}.")
        if (hashed := values.pop("hash")) != "identity":
            raise ValueError(
                f"sharding: hash must be 'identity', so that a shard is a box, which one task writes; got {hashed!r}."
            )
        bits = {"preshift_bits": ID_BITS, "minishard_bits": LARGEST_MINISHARD_BITS, "shard_bits": ID_BITS}
        encodings = ("minishard_index_encoding", "data_encoding")
        unknown = [name for name in values if name not in {*bits, *encodings}]
        if unknown:
            members = ", ".join(("@type", "hash", *bits, *encodings))
            raise ValueError(f"sharding has {unknown[0]!r}; its members are {members}.")
        lacking = [name for name in bits if name not in values]
        if lacking:
            raise ValueError(f"sharding lacks {' and '.join(lacking)}.")
        checked: dict[str, Any] = {}
        for name, most in bits.items():
            checked[name] = whole_number(f"sharding: {name}", values[name], 0, most)
        if sum(checked.values()) > ID_BITS:
            raise ValueError(f"sharding: the bits add up to {sum(checked.values())}, and an id has {ID_BITS}.")
        for name in encodings:
            checked[name] = choice(f"sharding: {name}", values.get(name, "raw"), ("raw", "gzip"))
        return cls(**checked)

    @classmethod
    def chosen(
        cls, counts: Sequence[int], chunk_bytes: int, most_bytes: int, data_encoding: Literal["raw", "gzip"]
    ) -> Self:
        """Choose shards by the size of a mip, as CloudVolume does, and by the memory of those who write them.

        A shard has 1,024 chunks, or more where these have less than 128 MiB together, but no more than `most_bytes`.

        Parameters
        ----------
        counts : sequence of 3 int
            Chunks along x, y, z.
        chunk_bytes : int
            Bytes of a chunk's voxels.
        most_bytes : int
            Largest number of bytes of a shard's voxels.
        data_encoding : {"raw", "gzip"}
            Compression of each chunk.

        Examples
        --------
        >>> Sharding.chosen((64, 64, 64), 2 * 2**20, 2**30, "raw")
        Sharding(preshift_bits=9, minishard_bits=0, shard_bits=9, minishard_index_encoding='gzip', data_encoding='raw')
        """
        wanted = min(most_bytes, max(chunk_bytes << CHUNK_BITS, SMALL_SHARD_BYTES))
        whole = id_bits(counts)
        in_shard = min(whole, int(math.log2(max(1, wanted // chunk_bytes))))
        in_minishard = min(in_shard, MINISHARD_CHUNK_BITS)
        return cls(
            preshift_bits=in_minishard, minishard_bits=in_shard - in_minishard, shard_bits=whole - in_shard,
            minishard_index_encoding="gzip", data_encoding=data_encoding,
        )  # fmt: skip

    @property
    def entry(self) -> JsonObject:
        """The entry of an info."""
        return {
            "@type": KIND, "hash": "identity", "preshift_bits": self.preshift_bits,
            "minishard_bits": self.minishard_bits, "shard_bits": self.shard_bits,
            "minishard_index_encoding": self.minishard_index_encoding, "data_encoding": self.data_encoding,
        }  # fmt: skip

    @property
    def chunk_bits(self) -> int:
        """Number of bits that tell a chunk of a shard from the others."""
        return self.preshift_bits + self.minishard_bits

    def box(self, counts: Sequence[int]) -> Vec3[int]:
        """Return the number of chunks of a shard along x, y, z, of a mip with so many chunks.

        Raises
        ------
        ValueError
            The bits are fewer than those of the mip's ids, so that far chunks would share a shard.

        Examples
        --------
        >>> Sharding(preshift_bits=3, minishard_bits=1, shard_bits=11).box((100, 100, 2))
        (4, 2, 2)
        """
        whole = id_bits(counts)
        if whole > self.chunk_bits + self.shard_bits:
            raise ValueError(
                f"sharding: {' x '.join(map(str, counts))} chunks have ids of {whole} bits, and preshift_bits, "
                f"minishard_bits and shard_bits are {self.chunk_bits + self.shard_bits} together. Choose shard_bits of "
                f"{whole - self.chunk_bits}, so that a shard is a box, which one task writes."
            )
        bits, left = [0, 0, 0], self.chunk_bits
        for bit in range(ID_BITS):
            for axis in range(3):
                if left and (counts[axis] - 1) >> bit:
                    bits[axis], left = bits[axis] + 1, left - 1
        return Vec3.of(bits).map(lambda of_axis: 2**of_axis)

    def file_of(self, shard: int) -> str:
        """Return the name of a shard's file.

        Examples
        --------
        >>> Sharding(preshift_bits=3, minishard_bits=1, shard_bits=9).file_of(31)
        '01f.shard'
        """
        return f"{shard:0{-(-self.shard_bits // 4)}x}.shard"


def id_bits(counts: Sequence[int]) -> int:
    """Return the number of bits of the ids of chunks of a mip, given how many there are along x, y, z."""
    return sum((count - 1).bit_length() for count in counts)
