"""Ask a Perdure server from Python: `Client`, and `AsyncClient` for asyncio. Needs httpx alone: neither torch, nor faiss, nor Ray.

with Client("http://127.0.0.1:8000") as client:
    for hit in client.search("a striped circle"):
        print(hit.score, hit.id)
"""

from perdure.client.calls import Ask, Put
from perdure.client.clients import AsyncClient, Client
from perdure.client.problems import BadRequest, Gone, KeyRefused, Missing, NotAvailable, ServerProblem, UnexpectedAnswer, Unreachable
from perdure.client.records import Answer, Hit, ItemInfo, ItemWritten, ReleaseInfo, ReleasesInfo, Written

__all__ = [
    "Answer",
    "Ask",
    "AsyncClient",
    "BadRequest",
    "Client",
    "Gone",
    "Hit",
    "ItemInfo",
    "ItemWritten",
    "KeyRefused",
    "Missing",
    "NotAvailable",
    "Put",
    "ReleaseInfo",
    "ReleasesInfo",
    "ServerProblem",
    "UnexpectedAnswer",
    "Unreachable",
    "Written",
]
