"""The documentation site: `python tools/docs.py` makes `_proc` (pages, by nbdev) and `_docs` (HTML, by smalldocs)

nbdev processes the notebooks, as for Quarto: hidden cells go, names become links, exported definitions become their documentation. What is different here:
pages have the names that nbdev's links and docstrings use (`learner.html`, not `06_learner.html`), parameters are tables (definitions.py), public definitions
come first and internal ones are folded (folding.py), pages of the API and of the command are made (api_pages.py), and links within the site are relative, so that
it also works from a folder. `_proc` is an ordinary Quarto project: `quarto render _proc` renders it as well. A warning or a broken link is an error.
"""
import ast, csv, json, os, re, shutil, sys
from contextlib import contextmanager
from functools import cache, reduce
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import yaml
from fastcore.nbio import mk_cell
from fastcore.parallel import parallel
from nbdev import processors, serve_drv
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import NbdevLookup
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, add_show_docs, exec_show_docs

import api_pages
from definitions import constant, definition, exported, is_public, listed_names, module_path, module_tree, page_rows
from folding import fold_cell, order_cells
from looks import finish, write_not_found
from overview import LINES, write_changelog, write_overviews

ROOT = Path(__file__).parents[1]
processors.get_config = cache(processors.get_config)   # nbdev 3.3 reads the settings again for every cell: a third of its time


# Definitions

class InSourceOrder(Processor):
    "nbdev documents the definitions of a cell from the last to the first"
    def begin(self):
        cells, i = self.nb.cells, 0
        while i < len(cells):
            j = i
            while j < len(cells) and getattr(cells[j], 'has_sd', False): j += 1
            cells[i:j] = cells[i:j][::-1]
            i = max(j, i+1)


def default_exp(nb) -> str:
    "The module that a notebook exports, such as 'data.loaders'; '' for none"
    return next((c.directives_['default_exp'] for c in nb.cells if 'default_exp' in c.directives_), '')


class OfModule(Processor):
    "A step for the page of a module; `exp` is its name, '' for other pages"
    def __init__(self, nb):
        super().__init__(nb)
        self.exp = default_exp(nb)   # before the cell that says it goes

    def attribute(self, name): return reduce(getattr, name.split('.'), import_module(f'fastbit.{self.exp}'))


class ShowConstants(OfModule):
    "The constants of the doors, after the cells that define them"
    def begin(self):
        for name in (o.name for o in exported().values() if o.module == self.exp and o.kind == 'constant'):
            cells = self.nb.cells
            at = next(i for i, c in enumerate(cells) if c.cell_type == 'code' and re.search(rf'^{name}\s*=', c.source, flags=re.M))
            text = constant(name, self.exp, self.attribute(name))
            cells.insert(at+1, mk_cell(text, cell_type='markdown', defines=name))


class ShowDefinitions(OfModule):
    "The definitions of the module itself, in Markdown, each once; nbdev runs every exported cell, which took two thirds of the build"
    def begin(self): self.shown = set()

    def cell(self, cell):
        found = re.search(r'^show_doc\(([\w.]+)', cell.source, flags=re.M) if cell.cell_type == 'code' else None
        if not found: return
        name = found[1]
        text = None if name in self.shown else definition(self.attribute(name), name, self.exp)   # `None`: the cell goes
        self.shown.add(name)
        cell.update(cell_type='markdown', source=text, defines=name)
        for k in ('outputs', 'execution_count'): cell.pop(k, None)


class SiteTitle(FrontmatterProc):
    "The title in the field's terms, from `tools/pages.csv`; the line below it stays"
    def end(self):
        title = page_rows().get(page_key(self.nb.path_), {}).get('title')
        if title: self.fm['title'] = title
        super().end()


class FoldPage(OfModule):
    "Folded tests, plotting code and internals, on the pages of modules"
    def end(self):
        if not self.exp: return
        cells = self.nb.cells
        for cell in cells: fold_cell(cell)
        intro = next((i for i, c in enumerate(cells) if c.cell_type == 'markdown' and not c.source.startswith('<!--')), 0)
        module = mk_cell(f'[fastbit.{self.exp}]({module_url(self.exp)}#L1){{.module-link}}', cell_type='markdown')
        self.nb.cells = [*cells[:intro], module, cells[intro], *order_cells(cells[intro+1:], is_public, api_pages.rank)]


# Pages

def page_key(path) -> str:
    "A notebook's row of `tools/pages.csv`"
    nbs = Path(get_config().nbs_path)
    path = Path(path).resolve()
    return path.relative_to(nbs).with_name(page_name(path)).with_suffix('').as_posix()


def module_url(module: str) -> str:
    "The file of a module in the repository"
    cfg = get_config()
    return f"{cfg['git_url']}/blob/{cfg['branch']}/fastbit/{module.replace('.', '/')}.py"


def page_name(nb: Path) -> str: return nbpath2html(nb).with_suffix('.ipynb').name

def renamed(text: str) -> str:
    "Paths of notebooks in `text` as paths of their pages: `data/13_loaders.ipynb` becomes `data/loaders.ipynb`"
    return re.sub(r'(?<![\w.])\d+[a-zA-Z0-9]*_(?=[\w.]+\.ipynb)', '', text)

def notebooks(nbs: Path) -> list: return sorted(p for p in nbs.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(nbs).parts))


@cache
def public_names(module: str) -> set:
    "The names that a module exports, in small letters as in anchors; helpers have no place on a page"
    if not module_path(module).exists(): return set()
    tree = module_tree(module)
    patched = {a.annotation.id for n in tree.body if isinstance(n, ast.FunctionDef) for a in n.args.args if isinstance(a.annotation, ast.Name)}
    return {n.lower() for n in {*listed_names(tree), *patched}}


def site_base() -> re.Pattern:
    "Where the site will be"
    cfg = get_config()
    return re.compile(re.escape(f"{cfg['doc_host']}{cfg['doc_baseurl']}".rstrip('/')) + r'/(?=[\w/]+\.html)')


def _known(link):
    "A link of nbdev's to a definition, or its text alone where the page does not show that definition"
    shown = public_names(link[2].replace('/', '.'))
    return link[0] if link[3].split('.')[0] in shown else link[1]


def local_links(text: str, up: str) -> str:
    "Links between pages relative, and to the pages' names; nbdev's are to where the site will be. `up`: from the page to the root"
    base = site_base()
    text = re.sub(r'\[(`[^`]+`)\]\(' + base.pattern.partition('/(?=')[0] + r'/([\w/]+)\.html#([\w.]+)\)', _known, text)
    text = re.sub(r'\[\[(`[^`]+`)\]\([^)]*\)\]\(', r'[\1](', base.sub(up, text))   # nbdev links a name also where it is the text of a link
    return re.sub(r'\]\((?:\.\./|\w+/)*[\w.]+\.ipynb', lambda m: renamed(m[0]), text)


class SiteLinks(Processor):
    "Links between pages, in cells and outputs"
    def begin(self): self.up = '../'*page_key(self.nb.path_).count('/')

    def cell(self, cell):
        if not cell.get('source'): return
        if cell.cell_type == 'raw': cell.source = re.sub(r'^output-file: .*\n', '', cell.source, flags=re.M)   # the file has that name already
        if cell.cell_type == 'markdown': cell.source = local_links(cell.source, self.up)
        for o in cell.get('outputs', []):
            md = o.get('data', {}).get('text/markdown')
            if md: o['data']['text/markdown'] = local_links(''.join(md), self.up)


OURS = {FrontmatterProc: (SiteTitle,), exec_show_docs: (ShowDefinitions,), add_show_docs: (add_show_docs, InSourceOrder, ShowConstants)}

class SitePages(FilterDefaults):
    def base_procs(self): return [q for p in super().base_procs() for q in OURS.get(p, (p,))] + [SiteLinks, FoldPage]


# The sidebar

ROOMS = ('baseline', 'studies', 'cli', 'training', 'export', 'report', 'data', 'bodies', 'metrics', 'core')   # as one looks things up
UNLISTED = ('03_main.ipynb',)   # two lines that run the command


def page_entry(path: str, indent: str) -> str:
    "A page in the sidebar, under its title"
    title = page_rows().get(renamed(path).removesuffix('.ipynb'), {}).get('title')
    return f'{indent}- {{href: {path}, text: "{title}"}}' if title else f'{indent}- {path}'


def room_sections(root: Path, indent: str) -> list:
    "A section per room, with its modules in their order"
    lines = []
    for room in ROOMS:
        lines += [f'{indent}- section: "{room}"', f'{indent}  contents:']
        lines += [page_entry(p.relative_to(root/'nbs').as_posix(), f'{indent}    ') for p in sorted((root/'nbs'/room).glob('*.ipynb'))]
    return lines


def reference_sections(root: Path = ROOT, indent: str = ' '*6) -> str:
    "The part of the sidebar that the reference fills"
    alone = [p.name for p in sorted((root/'nbs').glob('[0-9]*.ipynb')) if p.name not in UNLISTED]
    index, *others = (page for page in api_pages.PAGES if page != api_pages.COMMANDS)
    lines = [f'{indent}- section: "Python API"', f'{indent}  href: {index}', f'{indent}  contents:']
    lines += [f'{indent}    - {page}' for page in others]
    lines += [f'{indent}- {api_pages.COMMANDS}', f'{indent}- section: "Modules"', f'{indent}  contents:']
    lines += [*room_sections(root, f'{indent}    '), *(page_entry(name, f'{indent}    ') for name in alone)]
    return '\n'.join(lines)


def site_config(root: Path = ROOT) -> str:
    "`_quarto.yml` with the reference where it says `# rooms`, and pages under their names"
    text = (root/'nbs'/'_quarto.yml').read_text()
    after = '    css: styles.css\n'
    if after not in text or '      # rooms' not in text:
        raise ValueError('nbs/_quarto.yml: the build adds its part at the lines `css: styles.css` and `# rooms`, and one is missing.')
    text = text.replace(after, f'{after}    include-after-body: sidebar.html\n')
    return renamed(text.replace('      # rooms', reference_sections(root)))


# The build

def make_page(job):
    "Process a notebook, or write a page of the reference"
    source, target, what = job
    if isinstance(source, Path): return serve_drv.main(job)
    front, body = api_pages.page(source).split('---\n\n', 1)
    target.write_text(f"{front}---\n\n{local_links(NbdevLookup().linkify(body), '../'*source.count('/'))}")


def jobs(root: Path, out: Path) -> dict:
    "Page in `_proc` -> the notebook that it is made of, or its name in the reference"
    nbs = root/'nbs'
    found = {out/p.relative_to(nbs).with_name(page_name(p.relative_to(nbs))): p for p in notebooks(nbs)}
    return found | {out/name: name for name in api_pages.PAGES}


def is_stale(page: Path, source, newest: float) -> bool:
    "Is a page older than its notebook, the package, or the tools?"
    changed = source.stat().st_mtime if isinstance(source, Path) else 0
    return not page.exists() or page.stat().st_mtime < max(newest, changed)


def process(root: Path = ROOT, only: str = '') -> Path:
    "`_proc`: the pages as Markdown and notebooks, with `_quarto.yml`. What has not changed is kept; `only`: pages with this in their path"
    nbs, out = root/'nbs', root/'_proc'
    todo = jobs(root, out)
    for old in {*out.rglob('*.ipynb'), *out.rglob('*.md')} - set(todo): old.unlink()
    tools = Path(__file__).parent
    made_of = (*tools.glob('*.py'), tools/'pages.csv', *(root/'fastbit').rglob('*.py'), root/'pyproject.toml')
    newest = max(p.stat().st_mtime for p in made_of)
    work = [(src, page, SitePages) for page, src in todo.items() if is_stale(page, src, newest) and only in page.as_posix()]
    for _, page, _ in work: page.parent.mkdir(parents=True, exist_ok=True)
    run_jobs(work)
    (out/'_quarto.yml').write_text(site_config(root))
    for f in (*nbs.glob('*.css'), *nbs.glob('*.svg'), *nbs.glob('*.html')): shutil.copy(f, out)
    shutil.copytree(nbs/'images', out/'images', dirs_exist_ok=True)
    sources = {page.relative_to(out).as_posix(): src for page, src in todo.items() if isinstance(src, Path)}
    write_overviews(nbs, out, yaml.safe_load(site_config(root)), sources)
    write_changelog(root/'CHANGELOG.md', out)
    return out


def run_jobs(work: list):
    "In as many processes as there are cores; on Linux they begin with the package imported, which takes as long as all their pages"
    method = 'fork' if sys.platform == 'linux' else 'spawn'
    if method == 'fork' and work: import_module('fastbit.all')
    parallel(make_page, work, n_workers=min(len(work), os.cpu_count() or 1), pause=0, method=method)


@contextmanager
def no_repeats():
    "smalldocs 0.5.4 looks up each link of the sidebar for each page, among all pages, and the color of each token: a third of its time"
    from smalldocs import highlight, layout
    plain, links = layout.Layout.href, {}
    def href(self, to):   # the same for all pages of a folder
        key = (self.page.out.parent, to)
        if key not in links: links[key] = plain(self, to)
        return links[key]
    with patch.object(layout.Layout, 'href', href), patch.object(highlight, 'css_class', cache(highlight.css_class)): yield


def render(proc: Path, sources: Path = ROOT) -> list:
    "HTML in `output-dir`; returns what smalldocs had to say"
    from smalldocs.config import load
    from smalldocs.site import Site
    site = Site(load(proc), quiet=True)
    with no_repeats(): n = site.build()
    docstring_copies(site.out)
    no_other_hosts(site.out)
    finish(site.out)
    add_search_words(site)
    print(f'{n} pages in {site.out}')
    warnings = [*site.project.warnings, *(w for w in site.warnings if w not in site.project.warnings)]
    return [*warnings, *wrong_source_links(site.out, sources), *loads_from_others(site.out)]


def add_search_words(site):
    "What people search for leads to the page about it, by an entry of `search.json` per word of `tools/pages.csv`"
    file, found = site.out/'search.json', []
    for page in site.pages.values():
        row = page_rows().get(str(page.out.with_suffix('')), {})
        line = str(page.meta.get('description') or '').replace('`', '')
        words = [w for w in row.get('words', '').split(';') if w]
        found += [dict(objectID=f'{page.out}?{w}', href=str(page.out), title=page.title, section=w, text=f'{w}: {line}') for w in words]
    if found: file.write_text(json.dumps([*found, *json.loads(file.read_text())], ensure_ascii=False))


@cache
def lines_in(path: Path) -> int: return len(path.read_bytes().splitlines()) if path.is_file() else 0


def wrong_source_link(address: str, sources: Path) -> str:
    "Why a link into the repository leads nowhere; '' where it leads to a file, and to a line of it if it is Python"
    found = re.search(r'/blob/[^/"]+/([^"#]+)(?:#(.*))?$', address)
    if not found: return 'not a file of the repository'
    file, line = found[1], found[2] or ''
    if not (sources/file).exists(): return f'no such file: {file}'
    if not line: return 'no line' if file.startswith('fastbit/') and file.endswith('.py') else ''
    number = re.fullmatch(r'L(\d+)(-L\d+)?', line)
    if not number: return f'no line: {line}' if file.endswith('.py') else ''
    return '' if 1 <= int(number[1]) <= lines_in(sources/file) else f'{file} has no line {number[1]}'


def wrong_source_links(out: Path, sources: Path = ROOT) -> list:
    "Links into the repository that lead nowhere, in words"
    is_source = re.compile(r'<a [^>]*class="[^"]*\b(?:source|module)-link\b[^>]*>|<a [^>]*/blob/[^>]*>')
    wrong = []
    for p in sorted(out.rglob('*.html')):
        links = {re.search(r'href="([^"]*)"', m[0])[1] for m in is_source.finditer(p.read_text())}
        wrong += [f'{p.relative_to(out)}: source link {a}: {why}' for a in sorted(links) if (why := wrong_source_link(a, sources))]
    return wrong


MOVED = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>This page has moved</title>
<link rel="icon" href="{icon}">
<link rel="canonical" href="{new}">
<meta http-equiv="refresh" content="0; url={new}">
<p>This page has moved to <a href="{new}">{new}</a>.</p>
</html>
"""


def redirects() -> dict:
    "Addresses of pages of 0.1.0, before the modules moved into rooms -> where they are now"
    with open(Path(__file__).with_name('redirects.csv'), newline='') as f: return {row['old']: row['new'] for row in csv.DictReader(f)}


def redirect_old_pages(out: Path):
    "A page at each old address that leads to the new one, for people and for programs that read Markdown"
    for old, new in redirects().items():
        for ending in ('', '.md'):
            target = out/(new + ending)
            if not target.is_file(): raise FileNotFoundError(f'tools/redirects.csv: {old} leads to {new}{ending}, which is no page.')
        page = out/old
        page.parent.mkdir(parents=True, exist_ok=True)
        up = '../'*old.count('/')
        page.write_text(MOVED.format(new=up + new, icon=f'{up}favicon.svg'))   # without an icon, browsers ask for /favicon.ico
        shutil.copy(out/f'{new}.md', out/f'{old}.md')


def docstring_copies(out: Path):
    "The Markdown copies under the names that nbdev's docstrings give them: `learner.html.md`"
    for p in out.rglob('*.llms.md'): p.rename(p.with_name(p.name.replace('.llms.md', '.html.md')))
    for p in (*out.rglob('*.html.md'), *out.rglob('*.html'), *out.glob('llms.txt')): p.write_text(p.read_text().replace('.llms.md', '.html.md'))


def no_other_hosts(out: Path):
    "The bundled themes (smalldocs 0.5.4) fetch their fonts from Google; without it the reader's own are used, and nobody is told who reads what"
    for p in out.rglob('*.css'): p.write_text(re.sub(r'@import\s+url\(\s*["\']?https?://[^)]*\);?', '', p.read_text()))


def loads_from_others(out: Path) -> list:
    "What pages load from other hosts, in words: a formula (`$…$`) makes smalldocs add KaTeX from one"
    loaded = re.compile(r'<script\b[^>]*\bsrc="((?:https?:)?//[^"]*)"|<link\b[^>]*\brel="stylesheet"[^>]*\bhref="((?:https?:)?//[^"]*)"')
    wrong = []
    for p in sorted(out.rglob('*.html')):
        found = [m[1] or m[2] for m in loaded.finditer(p.read_text())]
        wrong += [f'{p.relative_to(out)}: loads {o} from another host. Write formulas as code, without dollar signs' for o in found]
    return wrong


def main() -> int:
    problems = render(process())
    redirect_old_pages(ROOT/'_docs')
    write_not_found(ROOT/'_docs', f"{get_config()['doc_baseurl'].rstrip('/')}/")
    for p in problems: print(f'error: {p}', file=sys.stderr)
    return int(bool(problems))


if __name__ == '__main__':
    import docs   # by its name, under which the workers find it
    sys.exit(docs.main())
