"""What the site shows of a definition: its signature, a line, a table of parameters, and a link to its source

Public are the names in the doors, `fastbit/*/__init__.py`, and those that `fastbit.all` adds. The doors are read, not imported.
"""
import ast, csv, inspect, re
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import NamedTuple

from fastcore.docments import docments
from nbdev.doclinks import NbdevLookup

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT/'fastbit'
FOLDED = 4   # a group of options has at least so many to be folded


# Names

class Exported(NamedTuple):
    "A name that a door hands on"
    name: str
    room: str     # the door that has it; 'all': `fastbit.all`
    module: str   # where it is defined, such as 'data.loaders'
    kind: str     # 'function', 'class' or 'constant'
    line: str     # first line of its docstring, or the comment of a constant

    @property
    def page(self) -> str: return self.module.replace('.', '/')
    @property
    def anchor(self) -> str: return self.name.lower()


@cache
def module_tree(module: str) -> ast.Module: return ast.parse(module_path(module).read_text())

def module_path(module: str) -> Path: return PACKAGE/f'{module.replace(".", "/")}.py'


def constant_line(module: str, name: str) -> str:
    "The comment behind a constant, on the line where it begins"
    lines = module_path(module).read_text().splitlines()
    at = next((i for i, o in enumerate(lines) if re.match(rf'{name}\b\s*(:[^=]+)?=', o)), None)
    if at is None: return ''
    found = re.search(r'#\s*([^#]+)$', lines[at])
    return found[1].strip() if found else ''


def described(module: str, name: str) -> tuple:
    "Kind and line of a name of a module"
    found = next((n for n in module_tree(module).body if getattr(n, 'name', None) == name), None)
    if found is None: return 'constant', constant_line(module, name)
    return 'class' if isinstance(found, ast.ClassDef) else 'function', (ast.get_docstring(found) or '').partition('\n')[0]


def imports_of(path: Path, room: str) -> dict:
    "Name -> module, of what a file imports from this package, such as 'data.loaders'"
    up = lambda n: room.split('.')[:-n.level+1] if n.level > 1 else [room] if room else []
    found = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.level and n.module]
    return {a.asname or a.name: '.'.join([*up(n), n.module]) for n in found for a in n.names}


def listed_names(tree: ast.Module) -> list:
    "`__all__` of a module"
    return next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == '__all__'), [])


@cache
def exported() -> dict:
    "Public name -> `Exported`"
    res = {}
    for door in sorted(PACKAGE.glob('*/__init__.py')):
        room, modules = door.parent.name, imports_of(door, door.parent.name)
        for name in listed_names(ast.parse(door.read_text())): res[name] = Exported(name, room, modules[name], *described(modules[name], name))
    extra = {k: m for k, m in imports_of(PACKAGE/'all.py', '').items() if k != '*' and not k.startswith('_')}
    for name, module in extra.items(): res.setdefault(name, Exported(name, 'all', module, *described(module, name)))
    return res


@cache
def option_records() -> list:
    "The records of options in `config`"
    tree = module_tree('config')
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and any(ast.unparse(b) == 'Options' for b in n.bases)]
    return [Exported(n.name, 'config', 'config', 'class', ast.get_docstring(n)) for n in classes]


def is_public(name: str) -> bool:
    "Is a definition one that people call? A method is, where its class is"
    first = name.partition('.')[0]
    return first in exported() or any(first == o.name for o in option_records())


@cache
def page_rows() -> dict:
    "Page, such as 'data/loaders' -> its row of `tools/pages.csv`: title, and words that people search for"
    with open(Path(__file__).with_name('pages.csv'), newline='') as f: return {row['page']: row for row in csv.DictReader(f)}


def page_title(module: str) -> str:
    "The title of a module's page"
    return page_rows().get(module.replace('.', '/'), {}).get('title') or module


# Where it is

def source_link(sym, full_name: str) -> str:
    "Where a definition begins in the repository; '' for what no module of ours exports"
    found = NbdevLookup()[full_name]
    if not isinstance(found, tuple): return ''
    # `NbdevLookup.code` (nbdev 3.3) looks for the line under the qualified name, and its table has the short one
    return f'{found[2]}#L{inspect.getsourcelines(inspect.unwrap(sym))[1]}'


# Signatures

class Named:
    "A default with the name that it is written with"
    def __init__(self, v): self.v = v
    def __repr__(self): return getattr(self.v, '__name__', None) or repr(self.v)


def wrapped(text: str, width: int = 58) -> str:
    "A signature over several lines, as many parameters on each as there is room for"
    lines, parts = [''], re.split(r', (?=\*{0,2}\w+(?:=|,|\)|$))', text[1:-1])
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) > width: lines.append('')
        lines[-1] += part + ', '
    return '(\n' + '\n'.join('    ' + line.rstrip() for line in lines).rstrip(',') + '\n)'


def short_signature(sym, name: str) -> str:
    "Names and defaults; types and what they mean are in the table below. Options of a record are counted, where they are many"
    try: params = inspect.signature(sym).parameters.values()
    except (ValueError, TypeError): return name
    groups = [g for g in option_groups(sym) if len(g.names) >= FOLDED]
    counted = {n for g in groups for n in g.names}
    params = [p.replace(annotation=p.empty, default=Named(p.default) if p.default is not p.empty else p.empty)
              for p in params if p.name != 'self' and p.name not in counted]
    text = re.sub(r' at 0x\w+', '', str(inspect.Signature(params)))
    if not groups: return name + (text if len(name + text) <= 64 else wrapped(text))
    more = [f'    # {g.title.lower()}: {len(g.names)} options' for g in groups]
    star = '' if '*' in text or not more else '    *,\n'
    return name + wrapped(text).removesuffix('\n)') + ',\n' + star + '\n'.join(more) + '\n)'


# Parameters

TITLES = dict(BodyOptions='Body', RecipeOptions='Recipe', TrainOptions='Training', DataOptions='Data', LoaderOptions='Loading',
              RunOptions='Run and output', TableOptions='Labels and tables')
LINES = dict(RecipeOptions='How long and how fast to train; an option applies to the recipes that have it')   # better than the record's, here
LONGEST = 24   # characters of a default


class OptionGroup(NamedTuple):
    "The options that a function takes from one record"
    title: str
    line: str
    names: list


def option_groups(sym) -> list:
    "The records that a function has instead of single parameters, with the names of their options"
    inner = getattr(sym, '__wrapped__', None)
    if inner is None or inspect.isclass(sym): return []
    shown, res = inspect.signature(sym).parameters, []
    while hasattr(inner, '__wrapped__'): inner = inner.__wrapped__
    for p in inspect.signature(inner).parameters.values():
        fields = getattr(p.annotation, 'option_fields', None)
        if fields is None or not inspect.isclass(p.annotation): continue
        names = [n for n in fields() if n in shown]
        record = p.annotation.__name__
        line = LINES.get(record) or inspect.cleandoc(p.annotation.__doc__ or '').partition('\n')[0]
        if names: res.append(OptionGroup(TITLES.get(record, record), line, names))
    return res


def plain_type(kind) -> str:
    "A type as one writes it in the notebook"
    if kind in (None, inspect.Parameter.empty, type(None)): return ''   # fastcore takes that of the default, where a parameter has no type
    text = getattr(kind, '__name__', None) if not hasattr(kind, '__args__') else None
    text = text or str(kind)
    packages = '__main__|pathlib|pandas|torch|fastai|fastbit|matplotlib|PIL|numpy|timm|collections|typing'
    return re.sub(rf'\b(?:{packages})(?:\.[a-z_]+\w*)*\.(?=[A-Za-z]\w*)', '', text).replace('NoneType', 'None')


def cells(*words) -> str: return '| ' + ' | '.join(re.sub(r'\\?([|^])', r'\\\1', w).replace('\n', '<br>') for w in words) + ' |'


def parameter_table(params: dict, returns=None) -> str:
    "A Markdown table of parameters, with the columns that have something in them; '' where nothing is explained"
    if not any(p.docment for p in params.values()) and not (returns and returns.docment and params): return ''
    empty = inspect.Parameter.empty
    default = lambda p: '' if p.default is empty else f'`{short_default(p.default)}`'
    rows = [[name, plain_type(p.anno), default(p), p.docment or ''] for name, p in params.items()]
    if returns and (returns.anno is not empty or returns.docment):
        rows.append(['**Returns**', plain_type(returns.anno), '', returns.docment or ''])
    used = [i for i in range(4) if i in (0, 3) or any(r[i] for r in rows)]
    head = ['  ', 'Type', 'Default', 'Details']
    lines = [cells(*(head[i] for i in used)), cells(*['---']*len(used)), *(cells(*(r[i] for i in used)) for r in rows)]
    return '\n'.join(lines)


def short_default(v) -> str:
    "A default in a table, where a long one ends in dots"
    text = re.sub(r' at 0x\w+', '', repr(Named(v)))
    if len(text) <= LONGEST: return text
    called = re.match(r'\w+(?=\()', text)
    return f'{called[0]}(…)' if called else f'{text[:LONGEST-1]}…'


def docment_table(text: str, kind: str = '') -> str: return f'::: {{.docments{kind and f" .{kind}"}}}\n\n{text}\n\n:::' if text else ''


def folded(summary: str, body: str, kind: str) -> str:
    "A part of a page that opens at a click, and for a link to something in it"
    return f'<details class="{kind}">\n<summary>{summary}</summary>\n\n{body}\n\n</details>'


def parameters(sym) -> str:
    "The parameters of a definition: its own, and the options of each record under a heading"
    found = docments(sym, full=True)
    found.pop('self', None)
    returns = None if is_dataclass(sym) else found.pop('return', None)
    found.pop('return', None)
    groups = [g for g in option_groups(sym) if len(g.names) >= FOLDED]
    grouped = {n for g in groups for n in g.names}
    parts = [docment_table(parameter_table({k: p for k, p in found.items() if k not in grouped}, returns))]
    for g in groups:
        summary = f'<b>{g.title}</b> <span>{g.line}</span> <i>{len(g.names)} options</i>'
        parts.append(folded(summary, docment_table(parameter_table({k: found[k] for k in g.names})), 'options'))
    return '\n\n'.join(p for p in parts if p)


# A definition

def own_docs(sym) -> str:
    "The docstring; not the signature that a dataclass without one has, nor the address of this page"
    docs = inspect.cleandoc(sym.__doc__ or '').partition('\n\nParameters: https://')[0]
    return '' if is_dataclass(sym) and docs.startswith(f'{sym.__name__}(') else docs


def class_members(sym, name: str) -> list:
    "(name, attribute) of what the source of a class defines and explains; what is patched in has its own place"
    lines, start = inspect.getsourcelines(sym)
    here = lambda f: start <= inspect.unwrap(f).__code__.co_firstlineno < start + len(lines)   # of a context manager: its own code
    plain = {n: f.fget if isinstance(f, property) else getattr(f, '__func__', f) for n, f in vars(sym).items() if not n.startswith('_')}
    return [(f'{name}.{n}', n) for n, f in plain.items() if isinstance(f, FunctionType) and f.__doc__ and here(f)]


def property_text(f: property, name: str, level: int, unlisted: str) -> str:
    kind = plain_type(f.fget.__annotations__.get('return', inspect.Parameter.empty))
    return f"{'#'*level} {name}{unlisted}\n\n*property*{f', {kind}' if kind else ''}: {inspect.cleandoc(f.__doc__ or '')}"


def definition(sym, name: str, module: str, level: int = 3, listed: bool = True, title: str = '', more: str = '') -> str:
    "A function or class in Markdown: heading, signature, docstring, parameters; for a class, its methods too"
    unlisted = '' if listed else ' {.unlisted}'
    shown = title or name
    if isinstance(sym, property): return property_text(sym, shown, level, unlisted)
    src = source_link(sym, f'fastbit.{module}.{name}')
    parts = [f"{'#'*level} {shown}{unlisted}"]
    if src: parts.append(f'[source]({src}){{.source-link}}')
    prefix = 'class ' if inspect.isclass(sym) else ''
    parts += [f'```python\n{prefix}{short_signature(sym, shown)}\n```', own_docs(sym), more, parameters(sym)]
    if inspect.isclass(sym):
        for full, n in class_members(sym, name):
            f = vars(sym)[n]
            parts.append(property_text(f, full, level+1, unlisted) if isinstance(f, property)
                         else definition(getattr(sym, n), full, module, level+1, listed))
    return '\n\n'.join(p for p in parts if p)


def constant(name: str, module: str, value) -> str:
    "A public constant in Markdown: its names, or its value, and the comment beside it in the source"
    names = ', '.join(f'`{k}`' for k in value) if isinstance(value, (dict, tuple)) else ''
    line = constant_line(module, name)
    return '\n\n'.join(p for p in (f'### {name}', f'*constant*{f": {line}" if line else ""}', names) if p)
