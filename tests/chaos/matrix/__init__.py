"""The matrix of crash points: a process dies at every boundary of every step."""
