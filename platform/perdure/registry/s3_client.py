"""Speaking to S3: one client with time limits and retries, and its errors as a user reads them, without anything secret.

botocore's `standard` mode tries again what failed on the way (connections, time limits, 500, 502, 503, 504, throttling) with
exponential pauses and jitter. It tries neither 409 nor a body that breaks off: `attempts` is for those.
"""

import random
import time
from collections.abc import Generator
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as NoConnection

from perdure.errors import RegistryError

__all__ = ["PARALLEL", "attempts", "code_of", "explained", "open_client", "part_checksums", "shown_endpoint", "status_of"]

PARALLEL = 8  # parts of one file on their way at the same time
_TRIES = 8  # of one request, by botocore: pauses of 3 s in all on average, of 6 s at most
_ATTEMPTS = 6  # of what botocore does not try again
_PAUSE_S = 0.05
_CONNECT_S = 5.0
_READ_S = 60.0

_REFUSED_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}


def open_client(shown: str) -> Any:
    """An S3 client for the endpoint, the region and the credentials that the environment names.

    Raises:
        RegistryError: the environment names a profile or an endpoint that cannot be; `shown` is the registry as it is told.
    """
    config = Config(
        retries={"mode": "standard", "total_max_attempts": _TRIES},
        connect_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        max_pool_connections=PARALLEL + 2,
    )
    try:
        return boto3.Session().client("s3", config=config)
    except BotoCoreError as error:
        raise explained(error, shown, "", "open it") from None
    except ValueError:
        raise RegistryError(
            f"registry {shown}: the S3 endpoint of the environment is not a URL; set AWS_ENDPOINT_URL_S3 to something like "
            "http://127.0.0.1:9000, or unset it for AWS"
        ) from None


def attempts() -> Generator[bool]:
    """For each attempt whether it is the last one; sleeps before every one but the first, longer and longer, never in step with others."""
    for number in range(_ATTEMPTS):
        if number:
            time.sleep(random.uniform(0, _PAUSE_S * 2**number))
        yield number == _ATTEMPTS - 1


def part_checksums(client: Any) -> dict[str, str]:
    """Arguments that begin an upload in parts, and send a part, as boto3's own transfers do.

    botocore gives every part a checksum by itself, unless the environment says that the server knows none
    (AWS_REQUEST_CHECKSUM_CALCULATION=when_required), and S3 takes it only for an upload that began with it.
    """
    return {"ChecksumAlgorithm": "CRC32"} if client.meta.config.request_checksum_calculation == "when_supported" else {}


def status_of(error: ClientError) -> int:
    """The HTTP status of an answer."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: ClientError) -> str:
    """S3's word for what went wrong; the status where the answer had no body, as to HEAD."""
    return str(error.response.get("Error", {}).get("Code", ""))


def shown_endpoint(endpoint: str) -> str:
    """An endpoint's URL without user and password."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def explained(error: ClientError | BotoCoreError, shown: str, endpoint: str, action: str) -> RegistryError:
    """What to tell of an error: what was asked, what came back, what to do. Only S3's own code is quoted, never a request."""
    at = f"registry {shown}: cannot {action}: "
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return RegistryError(
            f"{at}the environment has no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the "
            "machine a role"
        )
    if isinstance(error, ProfileNotFound | CredentialRetrievalError):
        return RegistryError(f"{at}credentials could not be had ({type(error).__name__}); look at AWS_PROFILE and its files")
    if isinstance(error, ResponseStreamingError | IncompleteReadError):
        return RegistryError(f"{at}the answer of {endpoint} breaks off ({_ATTEMPTS} tries); look at the network and at what is between")
    if isinstance(error, NoConnection | HTTPClientError):
        return RegistryError(
            f"{at}{endpoint} gave no answer ({type(error).__name__}, {_TRIES} tries); look at AWS_ENDPOINT_URL_S3 and the network. "
            "Whether a write reached it is not known; asking for it again does no harm"
        )
    if not isinstance(error, ClientError):
        return RegistryError(f"{at}{type(error).__name__}; look at the AWS_ settings of the environment and at the server")
    code, status, bucket = code_of(error), status_of(error), shown.removeprefix("s3://").partition("/")[0]
    if code == "NoSuchBucket":
        return RegistryError(f"{at}{endpoint} has no bucket '{bucket}'; create it (aws s3 mb s3://{bucket}), or correct the name")
    if code in _REFUSED_KEYS:
        return RegistryError(f"{at}{endpoint} does not take the environment's credentials ({code}); renew AWS_ACCESS_KEY_ID and its secret")
    if status == 403:
        return RegistryError(
            f"{at}{endpoint} does not allow it ({code}); the credentials need s3:ListBucket on the bucket, s3:GetObject, "
            "s3:PutObject and s3:AbortMultipartUpload on what is in it"
        )
    return RegistryError(f"{at}{endpoint} answered {status} {code}; if it lasts, look at the server's log")
