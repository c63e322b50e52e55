"""The registry: immutable versions, their manifests, and the channels that say which release is live."""

from perdure.registry.manifest import Manifest, release_from_plain, release_to_plain
from perdure.registry.registry import Registry, open_registry
from perdure.registry.store import LocalStore, Store, open_store

__all__ = ["LocalStore", "Manifest", "Registry", "Store", "open_registry", "open_store", "release_from_plain", "release_to_plain"]
