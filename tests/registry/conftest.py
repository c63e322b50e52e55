"""Every test that asks for `place` runs over a folder and over S3."""

from pathlib import Path

import pytest
from places import Bucket, Folder, Place
from s3_server import S3Server


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Each kind of place, empty."""
    return Folder(tmp_path / "registry") if request.param == "folder" else request.getfixturevalue("bucket")


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> Bucket:
    """A place on S3, empty."""
    return Bucket(s3, f"{tmp_path.parent.name}/{tmp_path.name}")
