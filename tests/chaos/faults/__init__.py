"""What goes wrong: each fault strikes and is mended, by name."""
