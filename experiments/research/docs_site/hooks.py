"""Hooks for mkdocs (mkdocs.yml names this file): wide tables scroll in frames of their own, and there is a search that
works from the disk, where a page may not fetch a file but may load a script: the index is one.
"""

import html
import json
import re
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

INDEX = "js/search-index.js"
HEADING = re.compile(r'<h([1-6]) id="([^"]+)">(.*?)</h\1>', re.DOTALL)
TAG = re.compile(r"<[^>]+>")
BUILT = re.compile(r"\s*<!--\s*MkDocs version.*?-->", re.DOTALL)
"""The time of building: the same sources give the same site without it."""


@dataclass(frozen=True, slots=True)
class Section:
    """A piece of a page that can be found: where it is, its page's and its own title, and its words."""

    url: str
    page: str
    title: str
    text: str


_found: dict[str, list[Section]] = {}


def on_config(config: "MkDocsConfig") -> "MkDocsConfig":
    """Headings get names that scripts can select by."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    _found.clear()
    return config


def slug(heading: str, separator: str) -> str:
    """The name of a heading, as Python-Markdown makes it; where that begins with a digit, "on" stands before it."""
    ascii_only = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    words = re.sub(r"[^\w\s-]", "", ascii_only).strip().lower()
    name = re.sub(rf"[{re.escape(separator)}\s]+", separator, words)
    return f"on{separator}{name}" if name[:1].isdigit() else name


def on_page_content(text: str, page: "Page", **_: object) -> str:
    """Frame the tables, and remember what the page says."""
    _found[page.url] = list(sections(page.url, str(page.title), text))
    label = 'role="region" tabindex="0" aria-label="A table, scrolls sideways"'
    return text.replace("<table>", f'<div class="scroll" {label}><table>').replace("</table>", "</table></div>")


def on_post_page(output: str, **_: object) -> str:
    """The page without the time at which it was made."""
    return BUILT.sub("", output)


def on_post_build(config: "MkDocsConfig") -> None:
    """Write the index."""
    every = [asdict(section) for url in sorted(_found) for section in _found[url]]
    text = json.dumps(every, ensure_ascii=True, separators=(",", ":")).replace("</", "<\\/")
    (Path(config.site_dir) / INDEX).write_text(f"window.searchIndex = {text};\n", encoding="utf-8")


def sections(url: str, page: str, text: str) -> list[Section]:
    """The sections of a page's HTML, each from its heading to the next."""
    pieces = HEADING.split(text)
    found = [Section(url, page, page, _words(pieces[0]))] if _words(pieces[0]) else []
    for _, name, title, rest in zip(pieces[1::4], pieces[2::4], pieces[3::4], pieces[4::4], strict=True):
        found.append(Section(f"{url}#{name}", page, _words(title), _words(rest)))
    return found


def _words(text: str) -> str:
    return " ".join(html.unescape(TAG.sub(" ", text)).split())
