"""Whether a bucket keeps what the registry builds on: tried with a few small objects of our own before anything is written.

Some servers that speak S3 pass over the conditions of a write and answer 200, so that two writers both believe that they won; some
store other bytes than they were sent. Neither shows before something is lost.
"""

import contextlib
import io
import uuid
from collections.abc import Callable
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError, IncompleteReadError

from perdure.errors import RegistryError
from perdure.registry.s3_client import attempts, code_of, part_checksums, status_of

__all__ = ["self_test"]

_FIRST, _SECOND = bytes(range(256)) * 4, b"second" * 100


def self_test(client: Any, bucket: str, base: str, shown: str) -> None:
    """Write, write again under conditions that do not hold, read back; 11 requests, and nothing stays.

    The objects lie under `<prefix>/.self-test/<random>/`, which is no key of the registry, so processes that test at the same time
    do not meet. Without the right to delete they stay, a kilobyte in all.

    Raises:
        RegistryError: a second create or an outdated move won, or bytes came back different; it says which.
    """
    name = f"{base}.self-test/{uuid.uuid4().hex}"
    target = {"Bucket": bucket, "Key": name}
    try:
        first = _put(client, target, _FIRST, IfNoneMatch="*")
        if not _refused(lambda: client.put_object(**target, Body=_SECOND, IfNoneMatch="*")):
            raise _unfit(shown, "a second write with 'If-None-Match: *' replaced the first, so two writers of a version would both win")
        _in_parts_is_refused(client, target, shown)
        _comes_back(client, target, _FIRST, shown)
        _put(client, target, _SECOND, IfMatch=first)
        if not _refused(lambda: client.put_object(**target, Body=_FIRST, IfMatch=first)):
            raise _unfit(shown, "a write with an outdated 'If-Match' was taken, so a promotion could undo another one unseen")
        _comes_back(client, target, _SECOND, shown)
    except ClientError as error:
        if status_of(error) == 501:
            raise _unfit(shown, f"it does not know conditional writes ({code_of(error)})") from None
        raise
    finally:
        with contextlib.suppress(ClientError, BotoCoreError):
            client.delete_object(**target)


def _put(client: Any, target: dict[str, str], data: bytes, **condition: str) -> str:
    """A write whose condition holds; its ETag. The key is ours alone, so what refuses it is its own first try, whose answer was lost."""
    for last in attempts():
        try:
            return client.put_object(**target, Body=io.BytesIO(data), **condition)["ETag"]
        except ClientError as error:
            if status_of(error) == 412:
                return client.head_object(**target)["ETag"]
            if status_of(error) != 409 or last:
                raise
    raise AssertionError("the last attempt returns or raises")


def _in_parts_is_refused(client: Any, target: dict[str, str], shown: str) -> None:
    """The same of a file that is sent in parts, over the object that is there."""
    checksums = part_checksums(client)
    upload = {**target, "UploadId": client.create_multipart_upload(**target, **checksums)["UploadId"]}
    try:
        answer = client.upload_part(**upload, PartNumber=1, Body=_SECOND, **checksums)
        part = {
            "PartNumber": 1,
            "ETag": answer["ETag"],
            **({"ChecksumCRC32": answer["ChecksumCRC32"]} if "ChecksumCRC32" in answer else {}),
        }
        if not _refused(lambda: client.complete_multipart_upload(**upload, MultipartUpload={"Parts": [part]}, IfNoneMatch="*")):
            raise _unfit(shown, "'If-None-Match: *' holds for single writes but not for files sent in parts")
    finally:
        with contextlib.suppress(ClientError, BotoCoreError):
            client.abort_multipart_upload(**upload)


def _comes_back(client: Any, target: dict[str, str], sent: bytes, shown: str) -> None:
    try:
        found = client.get_object(**target)["Body"].read()
    except (FlexibleChecksumError, IncompleteReadError):
        found = None
    if found != sent:
        raise _unfit(shown, "bytes came back different from what was sent")


def _refused(write: Callable[[], object]) -> bool:
    """Whether a conditional write was refused as it should be."""
    try:
        write()
    except ClientError as error:
        if status_of(error) == 412:
            return True
        raise
    return False


def _unfit(shown: str, why: str) -> RegistryError:
    return RegistryError(
        f"registry {shown} is not written to: the server does not keep what the registry needs: {why}. Use AWS S3, a server with "
        "conditional writes (If-None-Match and If-Match on PUT and CompleteMultipartUpload), or a folder"
    )
