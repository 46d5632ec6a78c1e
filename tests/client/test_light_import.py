"""A service that installs the client gets Celery and pydantic, and nothing heavier."""

import ast
import subprocess
import sys
from pathlib import Path

import innkeeper

SOURCES = Path(innkeeper.__path__[0])
ALLOWED = {"celery", "kombu", "redis", "pydantic", "innkeeper", "nacl"}


def test_importing_loads_neither_terminal_nor_database_nor_libvirt() -> None:
    program = (
        "import innkeeper, sys;"
        "heavy = {'typer', 'rich', 'sqlalchemy', 'libvirt', 'psycopg', 'structlog', 'nacl'};"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert ran.stdout.strip() == "[]", ran.stderr


def test_outside_the_terminal_only_the_declared_libraries_are_imported() -> None:
    for source in SOURCES.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            for name in names:
                top = name.split(".")[0]
                assert top in ALLOWED or top in sys.stdlib_module_names, f"{source}: {name}"


def test_exported_names_are_sorted_and_exist() -> None:
    assert list(innkeeper.__all__) == sorted(set(innkeeper.__all__))
    for name in innkeeper.__all__:
        assert getattr(innkeeper, name) is not None


def test_another_celery_program_keeps_its_current_app() -> None:
    program = (
        "from celery import Celery, current_app; mine = Celery('mine');"
        "from innkeeper import Innkeeper;"
        "Innkeeper('redis://127.0.0.1:1/0', 'redis://127.0.0.1:1/1');"
        "assert current_app._get_current_object() is mine"
    )

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert ran.returncode == 0, ran.stderr
