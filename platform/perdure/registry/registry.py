"""The registry: versions of encoders, segments and releases, and the channels that say which release is live.

encoders/<run>/v<N>/manifest.json        written last: before it, the version does not exist
encoders/<run>/v<N>/<digest>/<file>      the digest is of the bytes, so an abandoned attempt stands in nobody's way
segments/<run>/v<N>/...                  the same
releases/<run>/v<N>/manifest.json
calibrations/<sha256>.safetensors        what a release's merge was fitted to; the release names it
edits/<run>/<N>.json                     the log of what was written and deleted by hand; see `registry.edits`
unused/<run>.writes/v<N>.json            a segment that nothing uses any more; see `registry.pruning`
channels/<channel>.json                  one pointer; see `registry.channels`
journal/<time>-<channel>-<number>.json   one entry a move; see there
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perdure.catalog import did_you_mean
from perdure.errors import Conflict, Corrupt, Exists, GateRefused, Incompatible, NotFound, RegistryError
from perdure.records import EncoderRef, Release, SegmentRef, Traffic
from perdure.registry.channels import Channels
from perdure.registry.edits import EditLog
from perdure.registry.manifest import FileEntry, Manifest, now, release_from_plain, release_to_plain
from perdure.registry.store import Store, check_key, open_store, sha256_of

__all__ = ["Registry", "open_registry"]

_HISTORY = 200  # how many rollbacks in a row are possible
_MANIFEST = re.compile(r"([^/]+)/([^/]+)/v(\d+)/manifest\.json")
_UNSET = "<anything>"


def open_registry(url: str | Path) -> "Registry":
    """The registry at a folder or URL; see `open_store`."""
    return Registry(open_store(url))


class Registry:
    """Publish, resolve, promote, roll back."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._edits: dict[str, EditLog] = {}
        self._channels = Channels(store)

    def edits(self, run: str) -> EditLog:
        """The log of writes of a run, which need not have begun."""
        return self._edits.setdefault(run, EditLog(self.store, run))

    # -- publish ----------------------------------------------------------------------------------------------------------

    def publish_encoder(
        self,
        run: str,
        version: int | None,
        files: Mapping[str, Path | bytes],
        *,
        parent: EncoderRef | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> EncoderRef:
        """Store an encoder's files under a version (None: the next free one); the reference.

        A version that is there already with the same bytes is returned as it is, so a re-run is harmless.

        Raises:
            NotFound: the parent does not exist.
            Exists: the version is there with other bytes.
        """
        if parent is not None:
            self.manifest(parent)
        lineage = {"parent": str(parent) if parent else None}
        return EncoderRef(run, self._publish("encoder", run, version, files, {**(meta or {}), **lineage}, lineage))

    def publish_segment(
        self,
        run: str,
        version: int | None,
        files: Mapping[str, Path | bytes],
        *,
        made_by: EncoderRef,
        meta: Mapping[str, Any] | None = None,
    ) -> SegmentRef:
        """Store a segment's files with the name of the one encoder that made its vectors; see `publish_encoder`."""
        self.manifest(made_by)
        lineage = {"made_by": str(made_by)}
        return SegmentRef(run, self._publish("segment", run, version, files, {**(meta or {}), **lineage}, lineage))

    def publish_release(self, release: Release) -> Release:
        """Store a release; nothing is served until it is promoted.

        Published twice with the same encoder, segments, policy and merge, the first one stays and is returned.

        Raises:
            NotFound: an encoder or a segment of it does not exist.
            Incompatible: it names another maker for a segment than the segment does.
            Exists: the id is taken by a different release.
        """
        version = _version_of(release)
        self._verify_parts(release)
        stamped = release_to_plain(release) | {"created": release.created or now()}
        manifest = Manifest("release", f"release/{release.id}", meta=stamped, created=stamped["created"])
        key = _manifest_key("release", release.run, version)
        try:
            self.store.create(key, manifest.to_bytes())
        except Exists:
            found = self.release(release.id)
            difference = _difference(found, release)
            if difference:
                raise Exists(f"release {release.id} exists and is different ({difference}); publish under another version") from None
            return found
        return self.release(release.id)

    def publish_calibration(self, data: bytes) -> str:
        """Store what the merge of a release was fitted to; its sha256, for `Release.calibration`. Twice the same is once."""
        digest = sha256_of(data)
        self._create_same(_calibration_key(digest), data, FileEntry(digest, len(data)))
        return digest

    def next_version(self, kind: str, run: str) -> int:
        """The lowest version above all published ones of a run; `kind` is encoder, segment or release."""
        return max((version for name, version in self._versions(kind) if name == run), default=0) + 1

    # -- resolve ----------------------------------------------------------------------------------------------------------

    def manifest(self, ref: EncoderRef | SegmentRef) -> Manifest:
        """The manifest of an encoder or a segment.

        Raises:
            NotFound: there is no such version.
            Corrupt: the manifest's bytes were changed.
        """
        return self._manifest(ref.kind, ref.run, ref.version)

    def made_by(self, segment: SegmentRef) -> EncoderRef:
        """The one encoder that made a segment's vectors."""
        return EncoderRef.parse(self.manifest(segment).meta["made_by"])

    def files(self, ref: EncoderRef | SegmentRef) -> dict[str, Path]:
        """Local paths of a version's files, every one checked against its sha256.

        Raises:
            Corrupt: a file is missing or its bytes are not those that were published; it is named.
        """
        manifest = self.manifest(ref)
        return {name: self._fetch(ref, manifest, name) for name in manifest.files}

    def file(self, ref: EncoderRef | SegmentRef, name: str) -> Path:
        """The local path of one file of a version, checked as by `files`; the others are not fetched.

        Raises:
            NotFound: there is no such version, or it has no such file.
            Corrupt: as for `files`.
        """
        manifest = self.manifest(ref)
        if name not in manifest.files:
            raise NotFound(f"{ref} has no file '{name}'; it has {', '.join(sorted(manifest.files))}")
        return self._fetch(ref, manifest, name)

    def folder(self, ref: EncoderRef | SegmentRef) -> Path:
        """The local folder that holds a version's files under their names, checked as by `files`."""
        parents = {path.parent for path in self.files(ref).values()}
        if len(parents) != 1:
            raise RegistryError(f"{ref} has files in {len(parents)} folders, expected one")
        return parents.pop()

    def calibration(self, digest: str) -> bytes:
        """What `publish_calibration` stored.

        Raises:
            Corrupt: it is gone, or its bytes are not those that were published.
        """
        key = _calibration_key(digest)
        try:
            data = self.store.read(key)
        except NotFound:
            raise Corrupt(f"'{key}' is gone from the registry; publish the releases that use it again under new numbers") from None
        if sha256_of(data) != digest:
            raise Corrupt(f"'{key}' is damaged: its sha256 is not its name; restore it from a copy, or roll back")
        return data

    def encoders(self, run: str | None = None) -> list[EncoderRef]:
        """Every published encoder, of one run or of all, by run and version."""
        return [EncoderRef(name, version) for name, version in self._versions("encoder", run)]

    def segments(self, run: str | None = None) -> list[SegmentRef]:
        """Every published segment; see `encoders`."""
        return [SegmentRef(name, version) for name, version in self._versions("segment", run)]

    def releases(self, run: str | None = None) -> list[Release]:
        """Every published release; see `encoders`."""
        return [self.release(f"{name}@v{version}") for name, version in self._versions("release", run)]

    def release(self, id: str) -> Release:
        """The release of an id, `demo@v3` or `release/demo@v3`.

        Raises:
            NotFound: there is no such release; the closest one is suggested.
            RegistryError: this is not the id of a release.
        """
        run, version = _parse_release(id)
        try:
            return release_from_plain(self._manifest("release", run, version).meta)
        except NotFound:
            known = [f"{name}@v{number}" for name, number in self._versions("release")]
            some = f"known: {', '.join(known[-8:])}" if known else "none is published yet"
            raise NotFound(f"no release '{run}@v{version}'; {some}.{did_you_mean(f'{run}@v{version}', known)}") from None

    # -- channels ---------------------------------------------------------------------------------------------------------

    def channel(self, name: str = "live") -> Release | None:
        """The release that a channel points to, or None when nothing was promoted to it."""
        pointer = self._channels.pointer(name)
        return self.release(pointer[0]["release"]) if pointer else None

    def channels(self) -> dict[str, str]:
        """Every channel and the id of its release."""
        found = {name: self._channels.pointer(name) for name in self._channels.names()}
        return {name: pointer[0]["release"] for name, pointer in found.items() if pointer}

    def placed(self, name: str) -> tuple[Release, Traffic] | None:
        """The release of a channel, and what the channel is given of the requests: as its last promotion said, nothing after a rollback."""
        pointer = self._channels.pointer(name)
        return (self.release(pointer[0]["release"]), Traffic(**pointer[0].get("traffic", {}))) if pointer else None

    def promote(
        self,
        id: str,
        channel: str = "live",
        *,
        by: str = "cli",
        force: bool = False,
        reason: str = "",
        expected: str | None = _UNSET,
        traffic: Traffic = Traffic(),  # noqa: B008, frozen
    ) -> Release:
        """Point a channel at a release; one line in the journal. Promoting what is there already, with the same traffic, changes nothing.

        Args:
            traffic: what the channel is to get of the requests; for one beside the live channel.
            expected: the release that the caller believes to be on the channel (None: nothing). When it is given and wrong,
                Conflict; when it is not given, a race that was lost is run again, and the last one to promote wins.

        Raises:
            NotFound: the release, or a part of it, does not exist.
            Conflict: the channel does not hold what was expected.
            GateRefused: a gate in the release's metrics failed, and `force` was not given.
        """
        release = self.release(id)
        self._verify_parts(release)
        failed = _failed_gates(release)
        if failed and not force:
            raise GateRefused(f"release {release.id} failed a gate: {'; '.join(failed)}. If you accept that: perdure promote --force")
        while True:
            pointer = self._channels.pointer(channel)
            live = pointer[0]["release"] if pointer else None
            if expected != _UNSET and live != expected:
                found = live or "nothing"
                raise Conflict(f"channel '{channel}' holds {found}, expected {expected or 'nothing'}; look at it again: perdure ls")
            if pointer and live == release.id and pointer[0].get("traffic", asdict(Traffic())) == asdict(traffic):
                return release
            before = [live] if live is not None and live != release.id else []  # new traffic is no step to go back by
            history = [*pointer[0]["history"], *before][-_HISTORY:] if pointer else []
            try:
                self._channels.move(
                    channel, pointer, release.id, history, action="promote", by=by, reason=reason, forced=failed, traffic=traffic
                )
            except Conflict:
                continue
            return release

    def rollback(self, channel: str = "live", *, by: str = "cli", reason: str = "") -> Release:
        """Point a channel at the release that it held before this one; a second rollback goes one further back.

        Raises:
            NotFound: there is nothing before.
            Conflict: someone moved the channel meanwhile; what was to be undone is no longer there.
        """
        pointer = self._channels.pointer(channel)
        if pointer is None or not pointer[0]["history"]:
            held = f"holds {pointer[0]['release']} and nothing before it" if pointer else "was never set"
            raise NotFound(f"channel '{channel}' {held}; no release to roll back to. Promote one: perdure promote RELEASE")
        *history, before = pointer[0]["history"]
        release = self.release(before)
        self._verify_parts(release)
        try:
            self._channels.move(channel, pointer, release.id, history, action="rollback", by=by, reason=reason, forced=[])
        except Conflict:
            raise Conflict(f"channel '{channel}' was moved by someone else during the rollback; look at it again: perdure ls") from None
        return release

    def journal(self) -> list[dict[str, Any]]:
        """Every move of every channel, oldest first: at, channel, number, action, release, before, by, reason, forced."""
        return self._channels.journal()

    # -- inside -----------------------------------------------------------------------------------------------------------

    def _publish(
        self,
        kind: str,
        run: str,
        version: int | None,
        files: Mapping[str, Path | bytes],
        meta: dict[str, Any],
        lineage: dict[str, Any],
    ) -> int:
        """Files first, the manifest last; the version."""
        if not files:
            raise RegistryError(f"{kind} of run '{run}': there are no files to publish")
        for name in files:
            if "/" in check_key(name):
                raise RegistryError(f"{kind} of run '{run}': file name '{name}' may not contain a slash")
        entries = {name: FileEntry(sha256_of(data), _size(data)) for name, data in files.items()}
        digest = sha256_of(repr(sorted((name, entry.sha256) for name, entry in entries.items())).encode())[:16]
        while True:
            number = self.next_version(kind, run) if version is None else version
            ref = f"{kind}/{run}@v{number}"
            base = _manifest_key(kind, run, number).rpartition("/")[0]
            for name, data in files.items():
                self._create_same(f"{base}/{digest}/{name}", data, entries[name])
            manifest = Manifest(kind, ref, f"{base}/{digest}", entries, meta, now())
            try:
                self.store.create(f"{base}/manifest.json", manifest.to_bytes())
            except Exists:
                if version is None:
                    continue
                found = self._manifest(kind, run, number)
                other = sorted(name for name in {*found.files, *entries} if found.files.get(name) != entries.get(name))
                other += [key for key, value in lineage.items() if found.meta.get(key) != value]
                if other:
                    raise Exists(f"{ref} exists and is different ({', '.join(other)}); publish under another version") from None
            return number

    def _create_same(self, key: str, data: bytes | Path, entry: FileEntry) -> None:
        """Create a key, or find the same bytes there (from an attempt that did not reach its manifest)."""
        try:
            self.store.create(key, data)
        except Exists:
            if sha256_of(self.store.fetch(key)) != entry.sha256:
                raise Corrupt(f"'{key}' is damaged: its sha256 is not the one in its name; remove that file and publish again") from None

    def _fetch(self, ref: EncoderRef | SegmentRef, manifest: Manifest, name: str) -> Path:
        """The local path of one file, once its bytes are known to be those that were published."""
        try:
            path = self.store.fetch(f"{manifest.folder}/{name}")
        except NotFound:
            raise Corrupt(f"{ref}: its file '{name}' is gone from the registry; publish the version again under a new number") from None
        found, published = sha256_of(path), manifest.files[name].sha256
        if found != published:
            raise Corrupt(
                f"{ref}: file '{name}' is damaged: sha256 {found[:12]}... found, {published[:12]}... published ({path}); "
                "restore it from a copy, or roll back to a release that does not use it"
            )
        return path

    def _manifest(self, kind: str, run: str, version: int) -> Manifest:
        key = _manifest_key(kind, run, version)
        try:
            data = self.store.read(key)
        except NotFound:
            raise NotFound(f"no {kind}/{run}@v{version} in the registry; see what there is: perdure ls") from None
        manifest = Manifest.from_bytes(data, key)
        if manifest.ref != f"{kind}/{run}@v{version}":
            raise Corrupt(f"{key} is the manifest of {manifest.ref}, not of {kind}/{run}@v{version}")
        return manifest

    def _versions(self, kind: str, run: str | None = None) -> list[tuple[str, int]]:
        """(run, version) of every manifest of a kind, sorted."""
        prefix = f"{kind}s/{run}/" if run else f"{kind}s/"
        matches = [_MANIFEST.fullmatch(key) for key in self.store.list(prefix)]
        return sorted((match[2], int(match[3])) for match in matches if match)

    def _verify_parts(self, release: Release) -> None:
        """Every part is published, and every segment was made by the encoder that the release says."""
        for encoder in release.encoders():
            self.manifest(encoder)
        for use in release.segments:
            maker = self.made_by(use.segment)
            if maker != use.made_by:
                raise Incompatible(f"release {release.id} says that {use.segment} was made by {use.made_by}, but {maker} made it")
        if release.calibration is not None:
            self.calibration(release.calibration)


def _size(data: bytes | Path) -> int:
    return len(data) if isinstance(data, bytes) else data.stat().st_size


def _manifest_key(kind: str, run: str, version: int) -> str:
    if version < 1 or "/" in check_key(run):
        raise RegistryError(f"{kind}/{run}@v{version}: a run is a plain name, and versions count from 1")
    return f"{kind}s/{run}/v{version}/manifest.json"


def _calibration_key(digest: str) -> str:
    return f"calibrations/{check_key(digest)}.safetensors"


def _parse_release(id: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:release/)?([A-Za-z0-9][A-Za-z0-9._-]*)@v(\d+)", id)
    if match is None:
        raise RegistryError(f"'{id}' is not the id of a release; expected something like 'demo@v3'")
    return match[1], int(match[2])


def _version_of(release: Release) -> int:
    run, version = _parse_release(release.id)
    if run != release.run:
        raise RegistryError(f"release '{release.id}' of run '{release.run}': the id must be '{release.run}@v...'")
    return version


def _served(release: Release) -> dict[str, Any]:
    """What a release serves: everything but when it was made and what was measured."""
    return {key: value for key, value in release_to_plain(release).items() if key not in ("created", "metrics")}


def _difference(found: Release, asked: Release) -> str:
    ours, theirs = _served(found), _served(asked)
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return ", ".join(f"{key}: {ours.get(key)} there, {theirs.get(key)} asked" for key in keys if ours.get(key) != theirs.get(key))


def _failed_gates(release: Release) -> list[str]:
    """A line for each entry of `metrics["gates"]` ({name, found, limit, passed}) that did not pass."""
    gates: list[dict[str, Any]] = release.metrics.get("gates") or []
    return [f"{gate['name']}: found {gate.get('found')}, limit {gate.get('limit')}" for gate in gates if not gate["passed"]]
