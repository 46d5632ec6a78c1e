"""Every fault of the surroundings in every phase of a spawn and of a migration."""
