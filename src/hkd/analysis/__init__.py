"""Numbers from trained networks: intervals, features, geometry, topology, transfer."""
