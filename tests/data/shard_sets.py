"""Small sets of shards for the tests of this folder."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.helpers import encode, noise

IMAGES = [noise(seed) for seed in range(6)]


FILES = [encode(image) for image in IMAGES]


KINDS = ["bytes", "struct", "tar"]


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_parquet(path: Path, columns: dict[str, Any], names: list[str] | None = None) -> None:
    table = pa.table(columns)
    if names is not None:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, row_group_size=2)


def write_shards(folder: Path, kind: str, stem: str = "part", shards: int = 2) -> Path:
    """Six images in ``shards`` shards, labelled 0 and 1 in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        rows = range(6 * shard // shards, 6 * (shard + 1) // shards)
        labels = [row % 2 for row in rows]
        if kind == "tar":
            members: dict[str, bytes] = {}
            for row in rows:
                members |= {f"{row:04d}.png": FILES[row], f"{row:04d}.cls": str(row % 2).encode()}
            write_tar(folder / f"{stem}-{shard}.tar", members)
        else:
            files = [FILES[row] for row in rows]
            column = files if kind == "bytes" else [{"bytes": file, "path": None} for file in files]
            write_parquet(folder / f"{stem}-{shard}.parquet", {"image": column, "label": labels})
    return folder
