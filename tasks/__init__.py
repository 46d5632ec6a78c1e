"""The verbs: each workflow is a list of steps, readable on one screen."""
