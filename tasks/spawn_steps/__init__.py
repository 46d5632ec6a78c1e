"""The steps of a spawn; tasks.spawn lists them in their order."""
