"""Everything is broken at every moment, on real parts."""
