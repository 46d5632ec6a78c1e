"""The documentation says what the code says: the reference is fresh, every link leads somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import generate
from workers.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("client/*.md"), *ROOT.glob("docs/**/*.md")])
CODE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def test_the_reference_is_what_the_code_says() -> None:
    checked = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )

    assert checked.returncode == 0, checked.stderr


def test_a_stale_page_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "REFERENCE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 0

    (tmp_path / "tasks.md").write_text("old")
    assert generate.main() == 1


TASKS = {
    name: task
    for name, task in sorted(generate.build_documented_app().tasks.items())
    if name.startswith("innkeeper.")
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_says_what_becomes_of_it(name: str) -> None:
    sections = generate.task_sections(TASKS[name].__doc__ or "")

    assert list(sections) == list(generate.HEADINGS)
    assert all(sections.values())
    page = (generate.REFERENCE / "tasks.md").read_text()
    assert f"### `{name}`" in page or f"`{name}`, on the same queue" in page


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_explained(name: str) -> None:
    assert Settings.model_fields[name].description
    assert f"| `{name}` |" in (generate.REFERENCE / "settings.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(CODE.sub("", page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        if anchor:
            assert anchor in anchors(place), target


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = LINK.findall(CODE.sub("", page.read_text()))
        waiting += [
            (page.parent / t.partition("#")[0]).resolve() for t in targets if "://" not in t
        ]

    assert set(PAGES) - reached == set()
