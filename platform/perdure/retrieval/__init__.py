"""The request path: what a release is made of after a task, and how it answers a query."""

from perdure.retrieval.policies import POLICIES, items_to_embed, next_release
from perdure.retrieval.retriever import Hit, Query, Retriever, Search, SearchResult, encode, finish, plan

__all__ = ["POLICIES", "Hit", "Query", "Retriever", "Search", "SearchResult", "encode", "finish", "items_to_embed", "next_release", "plan"]
