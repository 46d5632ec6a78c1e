"""The application that Flower loads; it only looks."""

from workers.app import build_app
from workers.settings import load_settings

app = build_app(load_settings()[0], node="flower")
