"""The truth: Innkeeper's state in Postgres. Imports nothing of ours but the contract."""
