"""All of the wiring: one builder for both topologies.

    serve deploy serve/fused.yaml          on a running cluster (see the YAML)
    python serve/run.py --registry R       on this machine

The builder's argument is typed, so Ray Serve checks the YAML's `args` against `ServeArgs`; for that the annotations of this
module have to be real objects (no postponed annotations).
"""

from typing import Any

from ray import serve
from ray.serve import Application

from serve.encoder import EncoderReplica
from serve.gateway import Gateway
from serve.schemas import DeploymentArgs, ServeArgs
from serve.shard import ShardReplica

__all__ = ["build"]


def build(args: ServeArgs) -> Application:
    """The application of a topology: `fused` is a Gateway that holds everything, `sharded` a Gateway, an Encoder and S shards."""
    args = args.resolved()
    plain = args.model_dump()  # plain data, so that a replica needs no more than it says
    gateway = _deployment(Gateway, "Gateway", args.gateway, args)
    if args.topology == "fused":
        return gateway.bind(plain)
    encoder = _deployment(EncoderReplica, "Encoder", args.encoder, args).bind(plain)
    shards = [_deployment(ShardReplica, f"Shard-{number}", args.shard, args).bind(plain, number) for number in range(args.shards)]
    return gateway.bind(plain, encoder, shards)


def _deployment(replica: type, name: str, share: DeploymentArgs, args: ServeArgs) -> serve.Deployment:
    options: dict[str, Any] = {
        "name": name,
        "num_replicas": share.num_replicas,
        "ray_actor_options": {"num_cpus": share.num_cpus},
        "max_ongoing_requests": share.max_ongoing_requests,
        "max_queued_requests": share.max_queued_requests,
        "backpressure_config": {"status_code": 503, "retry_after_s": 1},
        # A replica is replaced only once its successor runs: with one replica the default would leave none meanwhile.
        "max_surge_percent": 100,
        # A replica that stops finishes what it has begun; longer than the slowest request.
        "graceful_shutdown_timeout_s": args.request_timeout_s + 5,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 5,
        "health_check_timeout_s": args.health_check_timeout_s,  # three in a row, and it is replaced
    }
    return serve.deployment(**options)(replica)
