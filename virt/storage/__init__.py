"""Where guests' disks lie: one interface, and a back end for each kind of storage."""
