"""What a hub holds: repositories with their revisions, as the hub's interface describes them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

LARGE = (".safetensors", ".bin", ".parquet", ".gz", ".zst", ".gguf", ".pt")
_READ = 4 * 1024**2


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of one revision; ``is_large`` is what git LFS keeps, which a CDN serves."""

    place: Path
    size: int
    oid: str
    sha256: str
    is_large: bool

    @classmethod
    def of(cls, place: Path, *, is_large: bool) -> StoredFile:
        """Describe a file. Of what is longer than 4 MiB only the beginning is hashed: no client
        compares the hash with what it received, and sparse files of 500 MB are to cost nothing."""
        size = place.stat().st_size
        with place.open("rb") as file:
            head = f"{size}\n".encode() + file.read(_READ)
        sha256 = hashlib.sha256(head).hexdigest()
        return cls(place, size, hashlib.sha1(head).hexdigest(), sha256, is_large)

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.oid

    def entry(self, path: str) -> dict[str, Any]:
        """Return the file as a tree lists it."""
        entry = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.is_large:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return entry


@dataclass(slots=True)
class Repository:
    """A model or a data set: its commits, and the branches and tags that name them."""

    name: str
    kind: str
    store: Path
    gated: bool = False
    private: bool = False
    trees: dict[str, dict[str, StoredFile]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, folder: Path, *, branch: str, tag: str | None) -> str:
        """Add a folder as the newest commit of a branch and return the commit's hash.

        What is longer than 4 MiB is linked, not copied: change such a file only by a new one.
        """
        place = self.store / str(len(self.trees))
        place.mkdir(parents=True)
        tree = {}
        for file in sorted(folder.rglob("*")):
            if file.is_dir():
                continue
            path = file.relative_to(folder).as_posix()
            copy = place / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file.stat().st_size > _READ:
                os.link(file.resolve(), copy)
            else:
                shutil.copyfile(file, copy)
            tree[path] = StoredFile.of(copy, is_large=path.endswith(LARGE))
        listing = json.dumps({path: file.oid for path, file in tree.items()})
        commit = hashlib.sha1(f"{self.kind} {self.name} {listing}".encode()).hexdigest()
        self.trees[commit] = tree
        self.branches[branch] = commit
        if tag is not None:
            self.tags[tag] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        """Return the commit that a branch, a tag or a commit's hash names."""
        names = self.branches | self.tags
        return names.get(revision, revision if revision in self.trees else None)

    def info(self, commit: str) -> dict[str, Any]:
        """Return what ``/api/models/ORG/NAME`` says."""
        tree = self.trees[commit]
        card = self._card(commit)
        licence = [f"license:{card['license']}"] if "license" in card else []
        siblings = [
            {"rfilename": path, "size": file.size, "blobId": file.oid}
            for path, file in tree.items()
        ]
        return {
            "_id": hashlib.sha1(self.name.encode()).hexdigest()[:24],
            "id": self.name,
            "modelId": self.name,
            "sha": commit,
            "private": self.private,
            "gated": "auto" if self.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [*card.get("tags", []), *licence, "region:us"],
            "cardData": card,
            "siblings": siblings,
            "createdAt": "2026-01-01T00:00:00.000Z",
            "lastModified": "2026-01-01T00:00:00.000Z",
        }

    def _card(self, commit: str) -> Mapping[str, Any]:
        readme = self.trees[commit].get("README.md")
        parts = readme.place.read_text().split("---\n") if readme else []
        head = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else None
        return head if isinstance(head, dict) else {}

    def entries(self, commit: str, under: str, *, recursive: bool) -> list[dict[str, Any]]:
        """Return the files and folders below a path, as ``/tree/REVISION/PATH`` lists them."""
        start = f"{under}/" if under else ""
        listed: dict[str, dict[str, Any]] = {}
        for path, file in self.trees[commit].items():
            if not path.startswith(start):
                continue
            parts = path[len(start) :].split("/")
            for depth in range(1, len(parts)):
                folder = start + "/".join(parts[:depth])
                listed.setdefault(folder, self.folder_entry(folder))
            listed[path] = file.entry(path)
        return [e for p, e in listed.items() if recursive or "/" not in p[len(start) :]]

    def entry(self, commit: str, path: str) -> dict[str, Any] | None:
        """Return the one file or folder of that path, as ``/paths-info`` does."""
        tree = self.trees[commit]
        if path in tree:
            return tree[path].entry(path)
        return self.folder_entry(path) if any(p.startswith(f"{path}/") for p in tree) else None

    def folder_entry(self, path: str) -> dict[str, Any]:
        """Return a folder as a tree lists it."""
        oid = hashlib.sha1(path.encode()).hexdigest()
        return {"type": "directory", "path": path, "size": 0, "oid": oid}

    def refs(self) -> dict[str, list[dict[str, str]]]:
        """Return what ``/refs`` says."""

        def listed(kind: str, names: Mapping[str, str]) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}
                for name, commit in names.items()
            ]

        return {
            "branches": listed("heads", self.branches),
            "tags": listed("tags", self.tags),
            "converts": [],
        }
