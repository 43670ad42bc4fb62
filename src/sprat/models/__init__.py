"""Networks, one family per file, registered and built by name."""

from sprat.models.registry import (
    NETWORKS,
    NetworkConfig,
    NetworkSettings,
    build_network,
    check_outputs,
    draft_network,
    find_class,
    find_name,
    takes_in_channels,
    to_record,
)

__all__ = [
    "NETWORKS",
    "NetworkConfig",
    "NetworkSettings",
    "build_network",
    "check_outputs",
    "draft_network",
    "find_class",
    "find_name",
    "takes_in_channels",
    "to_record",
]
