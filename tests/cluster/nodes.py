"""A Ray cluster of several nodes on this machine, in a process of its own, told what to do by lines on standard input.

    add NAME     a node with one logical CPU; answers NAME
    kill NAME    the node dies, without a word to anybody; answers NAME
    (the end)    all of it is stopped

The first line that it prints is the cluster's address.
"""

import os
import sys

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")

from ray.cluster_utils import Cluster

NODE = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
QUICK = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": QUICK, **NODE})
    nodes = {}
    print(cluster.address, flush=True)
    for line in sys.stdin:
        verb, name = line.split()
        if verb == "add":
            nodes[name] = cluster.add_node(num_cpus=1, **NODE)
            cluster.wait_for_nodes()
        else:
            cluster.remove_node(nodes.pop(name), allow_graceful=False)
        print(name, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
