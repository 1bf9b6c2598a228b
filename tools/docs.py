"""The documentation site: `python tools/docs.py` makes `_proc` (pages, by nbdev) and `_docs` (HTML, by smalldocs)

nbdev processes the notebooks, as for Quarto: hidden cells go, names become links, exported definitions become their documentation. What is different here:
pages have the names that nbdev's links and docstrings use (`learner.html`, not `06_learner.html`), parameters are tables, a class shows its methods, and links within
the site are relative, so that it also works from a folder. `_proc` is an ordinary Quarto project: `quarto render _proc` renders it as well.
A warning or a broken link is an error.
"""
import ast, csv, inspect, os, re, shutil, sys
from functools import cache, cached_property
from pathlib import Path
from types import FunctionType

import yaml
from fastcore.docments import DocmentTbl
from fastcore.parallel import parallel
from nbdev import processors, serve_drv
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import NbdevLookup
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, add_show_docs, exec_show_docs
from nbdev.showdoc import BasicMarkdownRenderer

from overview import write_changelog, write_overviews

ROOT = Path(__file__).parents[1]
processors.get_config = cache(processors.get_config)   # nbdev 3.3 reads the settings again for every cell: a third of its time


# Definitions

def short_signature(sym, name: str) -> str:
    "Names and defaults; types and what they mean are in the table below"
    try: params = inspect.signature(sym).parameters.values()
    except (ValueError, TypeError): return name
    params = [p.replace(annotation=inspect.Parameter.empty) for p in params if p.name != 'self']
    text = re.sub(r' at 0x\w+', '', str(inspect.Signature([p.replace(default=Named(p.default)) if p.default is not p.empty else p for p in params])))
    return name + (text if len(name + text) <= 88 else wrapped(text))


class Named:
    "A default with the name that it is written with"
    def __init__(self, v): self.v = v
    def __repr__(self): return getattr(self.v, '__name__', None) or repr(self.v)


def wrapped(text: str, width: int = 68) -> str:
    "A signature over several lines, as many parameters on each as there is room for"
    lines, parts = [''], re.split(r', (?=\*{0,2}\w+(?:=|,|\)|$))', text[1:-1])
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) > width: lines.append('')
        lines[-1] += part + ', '
    return '(\n' + '\n'.join('    ' + line.rstrip() for line in lines).rstrip(',') + '\n)'


def plain_types(table: str) -> str:
    "Types as one writes them in the notebook"
    return re.sub(r'\b(?:__main__|pathlib|pandas|torch|fastai|fastbit|matplotlib|PIL|numpy|timm|collections)(?:\.[a-z_]+\w*)*\.(?=[A-Z]\w*)', '', table).replace('NoneType', 'None')


def source_link(sym, full_name: str) -> str:
    "Where a definition begins in the repository; '' for what no module of ours exports"
    found = NbdevLookup()[full_name]
    if not isinstance(found, tuple): return ''
    # `NbdevLookup.code` (nbdev 3.3) looks for the line under the qualified name, and its table has the short one
    return f'{found[2]}#L{inspect.getsourcelines(inspect.unwrap(sym))[1]}'


class Page(BasicMarkdownRenderer):
    "A definition: signature, one line, a table of parameters; for a class, its methods too"
    def _repr_markdown_(self):
        src = source_link(self.sym, self.fn)
        link = f'[source]({src}){{.source-link}}\n\n' if src else ''
        docs = f'\n\n{inspect.cleandoc(self.docs)}' if self.docs else ''
        prefix = 'class ' if inspect.isclass(self.sym) else ''
        table = plain_types(str(DocmentTbl(self.sym)))
        table = f'\n\n::: {{.docments}}\n\n{table}\n\n:::' if table else ''
        return f"{'#'*self.title_level} {self.nm}\n\n{link}```python\n{prefix}{short_signature(self.sym, self.nm)}\n```{docs}{table}\n\n" + '\n\n'.join(self.methods)

    @cached_property
    def methods(self) -> list:
        if not inspect.isclass(self.sym): return []
        lines, start = inspect.getsourcelines(self.sym)
        here = lambda f: start <= f.__code__.co_firstlineno < start + len(lines)   # not patched in: those have a place of their own on the page
        plain = {n: f.fget if isinstance(f, property) else getattr(f, '__func__', f) for n, f in vars(self.sym).items() if not n.startswith('_')}
        own = [n for n, f in plain.items() if isinstance(f, FunctionType) and f.__doc__ and here(f)]
        return [self._member(n, vars(self.sym)[n]) for n in own]

    def _member(self, n, f) -> str:
        name, level = f'{self.nm}.{n}', self.title_level+1
        if not isinstance(f, property): return Page(getattr(self.sym, n), name=name, title_level=level)._repr_markdown_()
        kind = plain_types(str(f.fget.__annotations__.get('return', '')).removeprefix("<class '").removesuffix("'>"))
        return f"{'#'*level} {name}\n\n*property*{f', {kind}' if kind else ''}: {inspect.cleandoc(f.__doc__)}"


class InSourceOrder(Processor):
    "nbdev documents the definitions of a cell from the last to the first"
    def begin(self):
        cells, i = self.nb.cells, 0
        while i < len(cells):
            j = i
            while j < len(cells) and getattr(cells[j], 'has_sd', False): j += 1
            cells[i:j] = cells[i:j][::-1]
            i = max(j, i+1)


class ShowDefinitions(exec_show_docs):
    "nbdev's step, with our page of a definition, of the module and not of the notebook's own cells"
    def begin(self):
        super().begin()
        module = next((c.directives_['default_exp'] for c in self.nb.cells if 'default_exp' in c.get('directives_', {})), None)
        if module: self.k.run_cell(f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom functools import partial\nfrom docs import Page\nfrom importlib import import_module\n_module = import_module("fastbit.{module}")\nglobals().update({{k: v for k, v in vars(_module).items() if not k.startswith("__")}})\nshow_doc = partial(show_doc, renderer=Page)')   # all names: a method may be patched onto a class of another module

    def __call__(self, cell):
        if getattr(cell, 'has_sd', False): super().__call__(cell)


# Pages

def page_name(nb: Path) -> str: return nbpath2html(nb).with_suffix('.ipynb').name

def renamed(text: str) -> str:
    "Paths of notebooks in `text` as paths of their pages: `data/13_loaders.ipynb` becomes `data/loaders.ipynb`"
    return re.sub(r'(?<![\w.])\d+[a-zA-Z0-9]*_(?=[\w.]+\.ipynb)', '', text)

def notebooks(nbs: Path) -> list: return sorted(p for p in nbs.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(nbs).parts))


@cache
def public_names(module: str) -> set:
    "The names that a module exports, in small letters as in anchors; helpers have no place on a page"
    path = ROOT/'fastbit'/f"{module.replace('.', '/')}.py"
    if not path.exists(): return set()
    tree = ast.parse(path.read_text())
    names = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == '__all__'), [])
    patched = {a.annotation.id for n in tree.body if isinstance(n, ast.FunctionDef) for a in n.args.args if isinstance(a.annotation, ast.Name)}
    return {n.lower() for n in {*names, *patched}}


class SiteLinks(Processor):
    "Links between pages are relative, and to the pages' names; nbdev's own are to where the site will be"
    def begin(self):
        cfg = get_config()
        nbs, here = Path(cfg.nbs_path), Path(self.nb.path_).resolve()
        self.up = '../'*(len(here.relative_to(nbs).parts)-1)
        self.base = re.compile(re.escape(f"{cfg['doc_host']}{cfg['doc_baseurl']}".rstrip('/')) + r'/(?=[\w/]+\.html)')

    def _known(self, link):
        "A link of nbdev's to a definition, or its text alone where the page does not show that definition"
        shown = public_names(link[2].replace('/', '.'))
        return link[0] if link[3].split('.')[0] in shown else link[1]

    def _text(self, s):
        s = re.sub(r'\[(`[^`]+`)\]\(' + self.base.pattern.partition('/(?=')[0] + r'/([\w/]+)\.html#([\w.]+)\)', self._known, s)
        s = re.sub(r'\[\[(`[^`]+`)\]\([^)]*\)\]\(', r'[\1](', self.base.sub(self.up, s))   # nbdev links a name also where it is the text of a link
        return re.sub(r'\]\((?:\.\./|\w+/)*[\w.]+\.ipynb', lambda m: renamed(m[0]), s)

    def cell(self, cell):
        if not cell.get('source'): return
        if cell.cell_type == 'raw': cell.source = re.sub(r'^output-file: .*\n', '', cell.source, flags=re.M)   # the file has that name already
        if cell.cell_type == 'markdown': cell.source = self._text(cell.source)
        for o in cell.get('outputs', []):
            md = o.get('data', {}).get('text/markdown')
            if md: o['data']['text/markdown'] = self._text(''.join(md))


OURS = {exec_show_docs: (ShowDefinitions,), add_show_docs: (add_show_docs, InSourceOrder)}

class SitePages(FilterDefaults):
    def base_procs(self): return [q for p in super().base_procs() for q in OURS.get(p, (p,))] + [SiteLinks]


ROOMS = ('baseline', 'studies', 'cli', 'training', 'export', 'report', 'data', 'bodies', 'metrics', 'core')   # as one looks things up
UNLISTED = ('03_main.ipynb',)   # two lines that run the command


def room_sections(root: Path = ROOT, indent: str = ' '*6) -> str:
    "The part of the sidebar that the rooms fill: a section per room, in the words of its door, with its modules in their order"
    lines = []
    for room in ROOMS:
        words = ast.get_docstring(ast.parse((root/'fastbit'/room/'__init__.py').read_text())).splitlines()[0]
        lines += [f'{indent}- section: "{room}: {words.partition(";")[0]}"', f'{indent}  contents:']
        lines += [f'{indent}    - {p.relative_to(root/"nbs").as_posix()}' for p in sorted((root/'nbs'/room).glob('*.ipynb'))]
    alone = [p.name for p in sorted((root/'nbs').glob('[0-9]*.ipynb')) if p.name not in UNLISTED]
    lines += [f'{indent}- section: "On their own: the rule, every option, everything"', f'{indent}  contents:', *(f'{indent}    - {name}' for name in alone)]
    return '\n'.join(lines)


def site_config(root: Path = ROOT) -> str:
    "`_quarto.yml` with the rooms where it says `# rooms`, and pages under their names"
    text = (root/'nbs'/'_quarto.yml').read_text()
    return renamed(text.replace('      # rooms', room_sections(root)))


def process(root: Path = ROOT) -> Path:
    "The notebooks, processed by nbdev, with `_quarto.yml` beside them: `_proc`. What has not changed is kept"
    nbs, out = root/'nbs', root/'_proc'
    todo = {p: out/p.relative_to(nbs).with_name(page_name(p.relative_to(nbs))) for p in notebooks(nbs)}
    for old in set(out.rglob('*.ipynb')) - set(todo.values()): old.unlink()
    newest = max(p.stat().st_mtime for p in (Path(__file__), *(root/'fastbit').rglob('*.py'), root/'pyproject.toml'))
    work = [(src, dst, SitePages) for src, dst in todo.items() if not dst.exists() or dst.stat().st_mtime < max(newest, src.stat().st_mtime)]
    for _, dst, _ in work: dst.parent.mkdir(parents=True, exist_ok=True)
    parallel(serve_drv.main, work, n_workers=min(len(work), os.cpu_count() or 1), pause=.01, method='spawn')
    (out/'_quarto.yml').write_text(site_config(root))
    for f in (*nbs.glob('*.css'), *nbs.glob('*.svg')): shutil.copy(f, out)
    shutil.copytree(nbs/'images', out/'images', dirs_exist_ok=True)
    pages = {str(dst.relative_to(out)): src for src, dst in todo.items()}
    write_overviews(nbs, out, yaml.safe_load(site_config(root)), pages)
    write_changelog(root/'CHANGELOG.md', out)
    return out


def render(proc: Path) -> list:
    "HTML in `output-dir`; returns what smalldocs had to say"
    from smalldocs.config import load
    from smalldocs.site import Site
    site = Site(load(proc), quiet=True)
    n = site.build()
    docstring_copies(site.out)
    no_other_hosts(site.out)
    print(f'{n} pages in {site.out}')
    warnings = [*site.project.warnings, *(w for w in site.warnings if w not in site.project.warnings)]
    return [*warnings, *links_without_line(site.out), *loads_from_others(site.out)]


def links_without_line(out: Path) -> list:
    "Links to a definition's source that name no line of it, in words"
    is_source = re.compile(r'<a [^>]*class="[^"]*\bsource-link\b[^>]*>|<a [^>]*/blob/[^>]*\.py#[^>]*>')
    wrong = []
    for p in sorted(out.rglob('*.html')):
        links = [m[0] for m in is_source.finditer(p.read_text())]
        wrong += [f'{p.relative_to(out)}: source link without a line: {a}' for a in links if not re.search(r'\.py#L\d+"', a)]
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
    for p in problems: print(f'error: {p}', file=sys.stderr)
    return int(bool(problems))


if __name__ == '__main__':
    import docs   # by its name, under which the workers find it
    sys.exit(docs.main())
