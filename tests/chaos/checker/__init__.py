"""The independent checker: it looks at everything and tells which promises are broken."""
