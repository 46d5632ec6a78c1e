"""Every error that can be met has a page that says what to do, and the page's facts are true."""

import re
from pathlib import Path

import pytest

from innkeeper.errors import InnkeeperError, catalogue

PAGES = Path(__file__).parents[2] / "docs" / "howto" / "errors"
SECTIONS = ("## What it means", "## Where the guest is", "## What to do")


@pytest.mark.parametrize("cls", catalogue().values(), ids=catalogue().keys())
def test_every_code_has_a_page(cls: type[InnkeeperError]) -> None:
    page = (PAGES / f"{cls.code}.md").read_text()

    assert page.startswith(f"# `{cls.code}`\n")
    assert f"`innkeeper.errors.{cls.__name__}`" in page
    assert f"exit code {cls.exit_code} ·" in page
    assert page.count("not retryable") == (0 if cls.retryable else 1)
    assert len(page.split()) >= 50

    places = [page.index(section) for section in SECTIONS]
    assert places == sorted(places)
    assert "\n* " in page[places[-1] :]


def test_no_page_is_left_of_a_code_that_is_gone() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == set(catalogue())


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES.glob("*.md"):
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            assert (PAGES / target).is_file(), f"{page.name} → {target}"
