"""The house style, measured: width, air, calls, parameters, and the order of the rooms

`python tests/test_style.py [ROOM …]` prints the figures and what is over them.
"""
import ast, collections, io, re, statistics, sys, tokenize
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT/'fastbit'
WIDTH, WIDE = 120, 140              # columns; of a docment or an address
POSITIONAL = 6                      # arguments of a call without a name
PARAMETERS = 12                     # of a public function, besides those that it delegates
MEDIAN = 55                         # characters of the median code line
DECODING = {'argmax', 'softmax', 'log_softmax', 'sigmoid', 'Softmax', 'LogSoftmax', 'Sigmoid'}
FLOORS = 10                         # rooms above one another
ROOMS = dict(hyperrule=0, core=0, metrics=1, config=1, bodies=2, data=3, report=4, export=4, training=5, baseline=6, studies=7, cli=8, all=8, __main__=9)


class Source(NamedTuple):
    "A module of the package, read and parsed once"
    name: str     # 'data.loaders'
    text: str
    tree: ast.Module

    @property
    def room(self): return self.name.split('.')[0]
    @property
    def lines(self): return self.text.splitlines()


def read(path: Path) -> Source:
    name = '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)
    text = path.read_text()
    return Source(name, text, ast.parse(text))


def package() -> list:
    "Every module but the generated index and the package's own `__init__`"
    skip = {PACKAGE/'_modidx.py', PACKAGE/'__init__.py'}
    return [read(p) for p in sorted(PACKAGE.rglob('*.py')) if p not in skip]


SOURCES = package()
MODULES = [s for s in SOURCES if not s.name.endswith('__init__')]


def is_docment(line: str) -> bool:
    "A parameter or a field with its comment, or the end of a signature with the result's"
    parameter = re.match(r'\s*\*{0,2}\w+\s*(:[^#]*)?(=[^#]*)?,?\s*#\s', line)
    end = re.match(r'\s*\).*:\s*#\s', line)
    return bool(parameter or end)


def too_wide(s: Source) -> list:
    "'module:line: n columns'"
    found = []
    for i, line in enumerate(s.lines, 1):
        if line.startswith('__all__ = '): continue   # written by nbdev
        allowed = WIDE if is_docment(line) or re.search(r'https?://', line) else WIDTH
        if len(line) > allowed: found.append(f'{s.name}:{i}: {len(line)} columns')
    return found


def code_lines(s: Source) -> list:
    "Lines with code on them, without their indentation's meaning lost: strings and comments that stand alone are not code"
    alone = set()
    for node in ast.walk(s.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant): alone.update(range(node.lineno, node.end_lineno+1))
    tokens = tokenize.generate_tokens(io.StringIO(s.text).readline)
    plain = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    used = {line for t in tokens if t.type not in plain for line in range(t.start[0], t.end[0]+1)}
    return [s.lines[i-1] for i in sorted(used - alone)]


def crowded_calls(s: Source) -> list:
    "Calls with more positional arguments than anyone can tell apart"
    calls = [n for n in ast.walk(s.tree) if isinstance(n, ast.Call)]
    return [f'{s.name}:{n.lineno}: {len(n.args)} positional arguments' for n in calls if len(n.args) > POSITIONAL]


def own_parameters(f) -> int:
    "Parameters of a function, without `self`, and without those that a decorator adds"
    a = f.args
    return len([p for p in a.posonlyargs + a.args + a.kwonlyargs if p.arg not in ('self', 'cls')])


def many_parameters(s: Source) -> list:
    found = []
    for n in ast.walk(s.tree):
        if not isinstance(n, ast.FunctionDef) or n.name.startswith('_'): continue
        if own_parameters(n) > PARAMETERS: found.append(f'{s.name}:{n.lineno}: {n.name} has {own_parameters(n)} parameters')
    return found


class Arrow(NamedTuple):
    "One import of a module of ours"
    line: int
    module: str   # 'core.text'
    names: tuple


def arrows(s: Source) -> list:
    found = []
    here = s.name.removesuffix('.__init__').split('.') if s.name.endswith('__init__') else s.name.split('.')[:-1]
    for n in ast.walk(s.tree):
        if not isinstance(n, ast.ImportFrom): continue
        base = here[:len(here) - (n.level - 1)] if n.level else []
        if not n.level and not (n.module or '').startswith('fastbit.'): continue
        tail = (n.module or '').removeprefix('fastbit.').split('.') if n.module else []
        module = '.'.join([*base, *tail])
        if module: found.append(Arrow(n.lineno, module, tuple(a.name for a in n.names)))
    return found


def upward(s: Source) -> list:
    "Imports of a room that does not lie below"
    rooms = [(a, a.module.split('.')[0]) for a in arrows(s)]
    return [f'{s.name}:{a.line}: imports {a.module}' for a, room in rooms if room != s.room and ROOMS[room] >= ROOMS[s.room]]


def private(s: Source) -> list:
    "Private names of another room"
    return [f'{s.name}:{a.line}: {n} of {a.module}' for a in arrows(s) for n in a.names
            if n.startswith('_') and n != '__version__' and a.module.split('.')[0] != s.room]


def decodes(s: Source) -> list:
    "Calls that turn outputs into probabilities or answers above the room metrics, where `Task` does"
    found = []
    for n in ast.walk(s.tree):
        if not isinstance(n, ast.Call) or s.room == 'metrics': continue
        name = getattr(n.func, 'attr', getattr(n.func, 'id', ''))
        dims = [o for o in n.args if isinstance(o, (ast.Constant, ast.UnaryOp))] + [o for o in n.keywords if o.arg in ('dim', 'axis')]
        best = name in ('max', 'topk') and isinstance(n.func, ast.Attribute) and dims   # the builtin `max` does not decode
        if name in DECODING or best: found.append(f'{s.name}:{n.lineno}: {ast.unparse(n.func)}; use SINGLE_LABEL')
    return found


def exported(s: Source) -> list:
    node = next((n for n in s.tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == '__all__'), None)
    return [] if node is None or s.name == 'all' else ast.literal_eval(node.value)


def circles() -> list:
    "Modules that need one another"
    graph = {s.name: {a.module for a in arrows(s)} for s in MODULES}
    done, found = set(), []
    def visit(m, path):
        if m in path: found.append(' -> '.join([*path[path.index(m):], m])); return
        if m in done or m not in graph: return
        for n in sorted(graph[m]): visit(n, [*path, m])
        done.add(m)
    for m in graph: visit(m, [])
    return found


def floors() -> int:
    "Rooms on the longest way down"
    below = collections.defaultdict(set)
    for s in MODULES:
        for a in arrows(s):
            if a.module.split('.')[0] != s.room: below[s.room].add(a.module.split('.')[0])
    depth = lambda room: 1 + max((depth(r) for r in below[room]), default=0)
    return max(map(depth, list(below)))


@pytest.mark.parametrize('check', [too_wide, crowded_calls, many_parameters, upward, private, decodes], ids=lambda f: f.__name__)
def test_style(check):
    found = [line for s in SOURCES for line in check(s)]
    assert not found, '\n'.join([f'{len(found)}:', *found[:20]])


def test_code_has_air():
    assert statistics.median(len(line) for s in MODULES for line in code_lines(s)) <= MEDIAN


def test_no_module_is_part_of_a_circle(): assert not circles()


def test_rooms_lie_on_few_floors(): assert floors() <= FLOORS


def test_no_public_name_twice():
    owners = collections.defaultdict(list)
    for s in MODULES:
        for n in exported(s): owners[n].append(s.name)
    twice = {n: o for n, o in owners.items() if len(o) > 1}
    assert not twice


def test_the_measures_see_what_they_are_for(tmp_path):
    "Each of them, on a module that breaks it"
    text = 'from ..studies.compare import _names\nx = f(1, 2, 3, 4, 5, 6, 7)\n' + 'y = 1' + ' '*200 + '+ 1\n'
    text += 'def g(a, b, c, d, e, f, g, h, i, j, k, l, m): pass\n'
    bad = Source('data.loaders', text, ast.parse(text))
    assert all(len(check(bad)) == 1 for check in (too_wide, crowded_calls, many_parameters, upward, private))
    assert len(code_lines(bad)) == 4
    text = 'a = p.max(1).values, p.max(-1), p.max(dim=1), p.argmax(1), F.softmax(p, 1), torch.max(p, 1), p.topk(5)\n'
    text += 'b = p.max(), max(1, 2), max(p, key=len), np.abs(p).max()\n'
    assert len(decodes(Source('data.loaders', text, ast.parse(text)))) == 7 and not decodes(Source('metrics.task', text, ast.parse(text)))


def report(rooms):
    "The figures of some rooms, and what is over them"
    chosen = [s for s in SOURCES if not rooms or s.room in rooms]
    for check in (too_wide, crowded_calls, many_parameters, upward, private, decodes):
        found = [line for s in chosen for line in check(s)]
        print(f'{check.__name__}: {len(found)}', *found, sep='\n  ')
    lengths = {s.name: (len(s.lines), statistics.median([len(x) for x in code_lines(s)] or [0])) for s in chosen}
    for name, (n, median) in sorted(lengths.items(), key=lambda o: o[1]): print(f'{name:24} {n:4} lines, median {median:g} characters')
    print('median', statistics.median(len(x) for s in chosen for x in code_lines(s)), '| floors', floors(), '| circles', circles())


if __name__ == '__main__': report(sys.argv[1:])
