"""Engines of client work: Flower grids over Ray actors, and in this process."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "clients": ["inline_grid"],
        "compat": ["allowed_cpus", "minimal_ray", "private_ray"],
        "ray.cluster": ["RayCluster", "connect_ray"],
        "ray.node_check": ["check_nodes", "other_nodes", "shipped_plugin_files"],
        "ray.placement": ["check_local_gpus", "count_actors", "gpu_share"],
        "room": ["estimate_capacity"],
        "signals": ["ignore_closed_terminal", "signals_as_interrupts", "watch_stop_signals"],
        "startup": ["RestartPolicy", "StartedEngine", "describe_restart_point", "started_engine"],
        "supervisor": [
            "INTERRUPTED_STATUS",
            "adopt_orphans",
            "check_address_space",
            "descendant_pids",
            "report_end",
            "run_in_child",
            "set_loss_message",
            "signal_on_parent_death",
        ],
    },
)
