"""The documentation: commands of tutorial and recipes run as they stand, the reference is current, the site is whole.

The laptop's half runs in a virtual environment without torch and transformers.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from experiments.cli.main import COMMANDS
from experiments.research.reference_docs import main, pages
from tests.helpers.browser import browser, look, wait

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ENGINE = ("torch", "functorch", "transformers", "tokenizers", "hqq", "accelerate", "nvidia", "triton")
"""What only the machine with the model has."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader sits: a clone's folder, as far as the tutorial looks at it."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    return folder


@pytest.fixture(scope="module")
def laptop(place: Path) -> Path:
    """The programs of a virtual environment with everything that this one has, but for the engine's libraries."""
    home = place / "laptop"
    venv.create(home, with_pip=False)
    libraries = Path(sysconfig.get_path("purelib", "venv", {"base": str(home)}))
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(ENGINE):
            (libraries / entry.name).symlink_to(entry)
    command = home / "bin" / "tracekit"
    command.write_text(
        f"#!{home}/bin/python\nfrom tracekit.__main__ import main\n\nif __name__ == '__main__':\n    main()\n"
    )
    command.chmod(0o755)
    return home / "bin"


def scripts(page: str, heading: str | None = None, *, language: str = "sh") -> str:
    """The shell commands of a page, of one section if named, one after the other; `bash` are those that need torch."""
    text = (DOCS / page).read_text("utf-8")
    if heading is not None:
        (text,) = [part for part in re.split(r"^## ", text, flags=re.MULTILINE) if part.startswith(heading + "\n")]
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found, (page, heading)
    return "".join(found)


def follow(script: str, place: Path, programs: Path = Path(sys.executable).parent) -> str:
    """Run commands in a shell that stops at the first that fails; returns what they printed."""
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",  # two threads on two busy cores wait for each other
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def recorded(place: Path) -> str:
    return follow(scripts("tutorial.md", "On the machine with the model: record"), place)


@pytest.fixture(scope="module")
def studied(recorded: str, place: Path, laptop: Path) -> str:
    return follow(scripts("tutorial.md", "On the laptop: study"), place, laptop)


def test_the_tutorial_records(recorded: str, place: Path) -> None:
    assert (place / "my.trace" / "manifest.json").exists()
    assert "mixtral-mini" in recorded


def test_torch_is_really_absent_on_the_laptop(place: Path, laptop: Path) -> None:
    with pytest.raises(AssertionError, match="No module named 'torch'"):
        follow("python -c 'import torch'", place, laptop)


def test_the_tutorial_studies_without_torch(studied: str, place: Path) -> None:
    assert "winner: study/winner.plan.toml" in studied and "best of 12 plans" in studied
    assert (place / "report.html").read_text("utf-8").count("window.vegaEmbed") == 1
    assert len(list((place / "figures").glob("*.pdf"))) == 14


def test_the_recipes_work_without_torch(studied: str, place: Path, laptop: Path) -> None:
    """And the plans that they end with run where the model is."""
    said = follow(scripts("howto.md"), place, laptop)
    assert said.count("prior, not your model; modelled, not measured") == 3
    generated = follow(scripts("howto.md", language="bash"), place)
    assert len(generated.strip().splitlines()) > 1
    assert "tokens_per_second" in said and "Search" in said
    assert re.search(r"mine\.py:Mine\b.* against lru: ", said)
    assert pl.read_parquet(place / "large" / "search.parquet")["outcome"].to_list().count("pruned") > 0


def test_the_tutorial_validates(studied: str, place: Path) -> None:
    heading = "On the machine with the model again: validate"
    said = follow(scripts("tutorial.md", heading), place)
    found = json.loads((place / "validation.json").read_text("utf-8"))
    assert found["passed"] and found["decisions"]["identical"] and found["tokens"]["compared"] == 8
    _, _, text = said.partition("report: report.html")
    assert len(text.strip().splitlines()) > 1, "the report's size, and then what was generated"
    assert "simulation and engine decide alike" in (place / "report.html").read_text("utf-8")


def test_the_reference_names_everything() -> None:
    made = pages()
    for name in COMMANDS:
        assert f"\n## tracekit {name}\n" in made["commands.md"]
    for option in ("--max-new-tokens", "--dask", "--figures", "--timeline"):
        assert f"`{option}`" in made["commands.md"]
    for key in ("capacity", "distance", "where", "per_step"):
        assert f"| `{key}` |" in made["plan.md"]
    assert "| `copy_engines` | whole number, 1 to 2 | required |" in made["hardware.md"]
    # Every option is explained.
    assert not re.findall(r"^\| `[^|]*\|[^|]*\|\s*\|$", made["commands.md"], re.MULTILINE)


def site(folder: Path) -> Path:
    """The site, built as `make docs` does."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'moe-tracekit[docs]'")
    extras = Path("experiments", "research", "docs_site")
    shutil.copytree(DOCS, folder / "docs", dirs_exist_ok=True)
    shutil.copytree(ROOT / extras, folder / extras)
    shutil.copy(ROOT / "mkdocs.yml", folder)
    assert main([str(folder / "docs" / "reference")]) == 0
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder / "site")]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "site"


def test_the_site_works_from_the_disk(tmp_path: Path) -> None:
    """Chromium: no page complains or sticks out sideways, on a laptop or a phone; the search finds a section."""
    pages = sorted(site(tmp_path).rglob("*.html"))
    with browser(tmp_path / "profile") as driver:
        for dark, width in ((False, 1280), (True, 400)):
            look(driver, dark=dark, width=width, height=900, phone=width < 600)
            for page in pages:
                if page.name == "404.html":  # its addresses begin at a server's root
                    continue
                driver.get(page.as_uri())
                wait(driver, f"return document.documentElement.dataset.bsTheme === '{'dark' if dark else 'light'}'")
                assert driver.get_log("browser") == [], page.name
                wide = "return [document.documentElement.scrollWidth, innerWidth]"
                content, window = driver.execute_script(wide)
                assert content <= window == width, (page.name, content)
        driver.find_element("css selector", ".navbar-toggler").click()
        wait(driver, "return document.querySelector('#navbar-collapse').classList.contains('show')")
        driver.find_element("css selector", '[data-bs-target="#mkdocs_search_modal"]').click()
        wait(driver, "return document.activeElement.id === 'mkdocs-search-query'")
        driver.find_element("id", "mkdocs-search-query").send_keys("lookups seven words that stand nowhere")
        assert "Nothing holds" in driver.find_element("id", "mkdocs-search-results").text
        driver.find_element("id", "mkdocs-search-query").clear()
        driver.find_element("id", "mkdocs-search-query").send_keys("columns search.parquet")
        found = driver.find_elements("css selector", "#mkdocs-search-results a")
        assert found[0].text == "Studies: Columns of search.parquet"
        driver.get(found[0].get_attribute("href"))
        assert driver.execute_script("return document.querySelector(location.hash).tagName") == "H2"


def test_the_site_is_whole_and_asks_for_nothing(tmp_path: Path) -> None:
    site(tmp_path)

    class Page(HTMLParser):
        """What a browser would fetch, and where links lead."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.fetched: list[str] = []
            self.links: list[str] = []
            self.feed(text)

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found = dict(attrs)
            if tag == "link" or "src" in found:
                self.fetched.append(found.get("src") or found.get("href") or "")
            elif tag == "a" and found.get("href"):
                self.links.append(found["href"] or "")

    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(list((tmp_path / "docs").rglob("*.md")))
    for path in pages:
        if path.name == "404.html":
            continue
        page = Page(path.read_text("utf-8"))
        for address in page.fetched:
            assert "//" not in address and (path.parent / address.partition("?")[0]).is_file(), (path.name, address)
        for address in page.links:
            target = address.partition("#")[0]
            outside = "//" in address or not target or target.startswith(("../LICENSE", "../experiments", "../README"))
            assert outside or (path.parent / target).is_file(), (path.name, address)
    styles = "".join(path.read_text("utf-8") for path in (tmp_path / "site").rglob("*.css"))
    assert not re.findall(r"url\(['\"]?(?:https?:)?//", styles)
