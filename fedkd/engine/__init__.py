"""Where client work runs: Flower grids over Ray actors, and in this process."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "clients": ["expected_room"],
        "compat": ["allowed_cpus", "lean", "secluded"],
        "ray.cluster": ["RayCluster", "connect"],
        "ray.node_check": ["check_nodes", "files_to_ship", "other_nodes"],
        "ray.placement": ["check_local_gpus", "count_actors", "gpu_share"],
        "signals": ["interrupting", "outliving_terminal", "stop_signals"],
        "startup": ["RestartPolicy", "StartedEngine", "restart_point", "started_engine"],
        "supervisor": [
            "INTERRUPTED",
            "adopt_orphans",
            "check_address_space",
            "descendants",
            "end_with_parent",
            "has_ended",
            "if_lost",
            "split_off",
        ],
    },
)
