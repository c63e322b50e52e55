"""Give back what a killed trial's Train run reserved.

A Train run reserves its workers by a placement group, which its controller removes when it ends. When the process of a Tune trial is killed
in the middle of a task, the controller dies with it and the group stays, with all of its CPUs (ray#54305). Ray 2.60 starts a detached
`PlacementGroupCleaner` for this, which asks the state API for the controller; on clusters of one node with and without a dashboard it had
freed nothing 45 s after the controller was dead. The cluster's own table says whose group it is and that its creator is dead.
"""

import ray
from ray._private.state import state  # no public call tells who made a placement group
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # pyright: ignore[reportAttributeAccessIssue]
from ray.util.placement_group import PlacementGroup, remove_placement_group

__all__ = ["free_orphans"]


def free_orphans() -> int:
    """Remove the placement groups of this job that an actor made which is dead.

    Returns:
        how many there were.
    """
    job = ray.get_runtime_context().get_job_id()
    found = 0
    for told in state._connect_and_get_accessor().get_placement_group_table():  # pyright: ignore[reportPrivateUsage]
        group = PlacementGroupTableData.FromString(told)
        made_by_actor = any(byte != 0xFF for byte in group.creator_actor_id)  # all ones stand for the driver
        ours = group.creator_job_id.hex() == job
        if ours and made_by_actor and group.creator_actor_dead and not group.is_detached and group.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
            found += 1
    return found
