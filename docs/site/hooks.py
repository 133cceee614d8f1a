"""The hooks of the site: pages from the root of the repository, and links that hold on a forge and on the site.

1. README, CHANGELOG, SECURITY and CONTRIBUTING become pages. Nothing is written twice.
2. A link to a file that is no page leads to the forge, if `GITHUB_REPOSITORY` names it; else its text stays.
3. A <picture> for light and dark pages follows the switch of the site.

A link whose file is missing is left as it is: mkdocs then warns, and a strict build fails.
"""

import os
import posixpath
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
FROM_ROOT = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Files at the root of the repository, and the pages that they become."""
_SOURCES = {page: source for source, page in FROM_ROOT.items()}
_FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_PICTURE = re.compile(r"<picture>.*?</picture>", re.DOTALL)
_ATTRIBUTE = re.compile(r'(srcset|src|alt|width)="([^"]*)"')


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the repository where the build runs on a forge, and let mkdocs-click find `commands`."""
    sys.path.insert(0, str(ROOT / "docs" / "site"))
    repository = os.environ.get("GITHUB_REPOSITORY")
    if repository:
        config.repo_url = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{repository}"
        config.repo_name = repository
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand at the root of the repository."""
    for source, page in FROM_ROOT.items():
        if (ROOT / source).exists():
            content = (ROOT / source).read_text(encoding="utf-8")
            files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links and pictures, but for those in code."""
    uri = page.file.src_uri
    pieces, end = [], 0
    for fence in _FENCE.finditer(markdown):
        pieces += [_rewrite(markdown[end : fence.start()], uri, config.repo_url, files), fence[0]]
        end = fence.end()
    return "".join([*pieces, _rewrite(markdown[end:], uri, config.repo_url, files)])


def _rewrite(text: str, uri: str, repository: str | None, files: Files) -> str:
    """Rewrite a stretch of Markdown without code."""
    text = _PICTURE.sub(lambda picture: _picture(picture[0], uri), text)
    return _LINK.sub(lambda link: _link(link, uri, repository, files), text)


def _link(link: re.Match[str], uri: str, repository: str | None, files: Files) -> str:
    """Return a link that holds on the site."""
    words, target = link.groups()
    parts = urlsplit(target)
    if parts.scheme or not parts.path:
        return link[0]
    path = _repository_path(parts.path, uri)
    page = _page_of(path, files)
    if page is not None:
        anchor = f"#{parts.fragment}" if parts.fragment else ""
        return f"[{words}]({_relative(page, uri)}{anchor})"
    if not (ROOT / path).exists():
        return link[0]
    return f"[{words}]({repository}/blob/main/{path})" if repository else words


def _page_of(path: str, files: Files) -> str | None:
    """Return the page that a file of the repository has become; of a folder, its first page."""
    if path in FROM_ROOT:
        return FROM_ROOT[path]
    within = posixpath.relpath(path, "docs")
    if files.get_file_from_path(within) is not None:
        return within
    return next((file.src_uri for file in files if file.src_uri.startswith(f"{within}/")), None)


def _picture(picture: str, uri: str) -> str:
    """Return both images of a <picture>: Material shows the one that the site's switch asks for."""
    found = [dict(_ATTRIBUTE.findall(tag)) for tag in re.findall(r"<(?:source|img)[^>]*>", picture)]
    dark, light = found[0]["srcset"], found[-1]
    rest = "".join(f' {name}="{light[name]}"' for name in ("alt", "width") if name in light)
    images = []
    for source, theme in ((light["src"], "light"), (dark, "dark")):
        path = _repository_path(source, uri)
        if not (ROOT / path).is_file():
            raise FileNotFoundError(f"{uri}: expected a picture at {path}")
        local = _relative(posixpath.relpath(path, "docs"), uri)
        images.append(f'<img src="{local}#only-{theme}"{rest}>')
    return "".join(images)


def _repository_path(target: str, uri: str) -> str:
    """Return where a link on a page leads, seen from the root of the repository."""
    source = _SOURCES.get(uri, f"docs/{uri}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def _relative(page: str, uri: str) -> str:
    return posixpath.relpath(page, posixpath.dirname(uri) or ".")
