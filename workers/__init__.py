"""Composition root: settings, processes, the Celery application."""
