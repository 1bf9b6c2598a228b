"""The order of a reference page: what people call first, then "Internals", folded; tests and the code of plots folded

A page is a list of cells. A *unit* is the text before some definitions, the definitions, and the lessons after them. Units without a public definition go to
the end of the page, into one folded part; so do single internal definitions of other units. A page whose definitions are all internal stays as it is.
"""
import ast, re
from dataclasses import dataclass, field

from fastcore.nbio import mk_cell

PLOTS = ('plt.', 'subplots', 'ax.', 'axs', 'imshow(')   # what code draws with, as opposed to calling a function of ours that draws
SHORT, LONG = 3, 8   # lines: plotting code that is not folded, and code of a picture that is always folded
NEVER = 10**6   # rank of what is not looked for


# Lessons

def is_check(node) -> bool:
    "Does a statement only assert something?"
    if isinstance(node, ast.Assert): return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func).startswith(('test_', 'torch.testing.'))
    if isinstance(node, ast.With): return ast.unparse(node.items[0]).startswith(('expect_fail', 'pytest.'))
    if isinstance(node, ast.For): return all(map(is_check, node.body))
    return False


def parsed(source: str) -> list:
    try: return ast.parse(re.sub(r'^[!%].*', '', source, flags=re.M)).body
    except SyntaxError: return []


def is_test(source: str, outputs=()) -> bool:
    "Is a cell a test, rather than a lesson? It shows nothing, ends in a check, and most of it are checks"
    nodes = [n for n in parsed(source) if not isinstance(n, (ast.Import, ast.ImportFrom))]
    return bool(nodes) and not outputs and is_check(nodes[-1]) and 2*sum(map(is_check, nodes)) >= len(nodes)


def is_plotting(source: str, outputs=()) -> bool:
    "Does a cell draw a picture by more than a call?"
    drawn = any(kind in o.get('data', {}) for o in outputs for kind in ('image/png', 'image/svg+xml'))
    n = len(source.strip().splitlines())
    return drawn and (n > LONG or n > SHORT and any(p in source for p in PLOTS))


def is_imports(source: str) -> bool:
    nodes = parsed(source)
    return bool(nodes) and all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in nodes)


def summary_of(source: str, outputs=()) -> str:
    "'Imports', 'Test' or 'Code' for a cell that is folded, else ''"
    if is_imports(source): return 'Imports'
    return 'Test' if is_test(source, outputs) else 'Code' if is_plotting(source, outputs) else ''


def fold_cell(cell):
    "Fold the code of a cell that is a test, or that draws"
    if cell.cell_type != 'code' or not cell.source.strip(): return
    plain = '\n'.join(line for line in cell.source.splitlines() if not line.startswith('#|'))
    word = summary_of(plain, cell.get('outputs', []))
    if word: cell.source = f'#| code-fold: true\n#| code-summary: "{word}"\n{cell.source}'


# Units

@dataclass
class Unit:
    "The cells around some definitions"
    heading: object = None   # the cell with the `##` heading that the unit begins with, if it does
    cells: list = field(default_factory=list)

    @property
    def names(self) -> list: return [c['defines'] for c in self.cells if c.get('defines')]


def is_heading(cell) -> bool: return cell.cell_type == 'markdown' and not cell.get('defines') and cell.source.startswith('## ')


def units_of(cells) -> list:
    "Divide the cells of a page; text after definitions or lessons begins a new unit"
    res = [Unit()]
    for cell in cells:
        last = res[-1]
        text = cell.cell_type == 'markdown' and not cell.get('defines')
        if is_heading(cell): res.append(Unit(heading=cell, cells=[cell]))
        elif text and (last.names or any(c.cell_type == 'code' for c in last.cells)): res.append(Unit(cells=[cell]))
        else: last.cells.append(cell)
    return [u for u in res if u.cells]


def sections_of(units) -> list:
    "Units under one heading each"
    res = []
    for u in units:
        if u.heading is not None or not res: res.append([])
        res[-1].append(u)
    return res


def unlisted(cell):
    "Headings without a place in the page's contents"
    cell.source = re.sub(r'^(#{2,5} [^\n{]+?)\s*$', r'\1 {.unlisted}', cell.source, flags=re.M) if not cell.get('defines') else cell.source
    if cell.get('defines'): cell.source = re.sub(r'^(#{3,5} [\w.]+)$', r'\1 {.unlisted}', cell.source, flags=re.M)
    return cell


def split_section(section, is_public) -> tuple:
    "The cells of a section that stay, and those that are internal; text and lessons without a definition follow what they stand after"
    stay, internal, shown = [], [], True
    for u in section:
        if u.names: shown = any(map(is_public, u.names))
        for c in u.cells: (stay if shown and (not c.get('defines') or is_public(c['defines'])) else internal).append(c)
    head = section[0].heading
    if head is not None and head in internal and stay:   # the heading stays with what is left under it
        internal.remove(head)
        stay.insert(0, head)
    return stay, internal


def leading_first(sections, rank) -> list:
    "The sections of a page, those first that define what one comes for; what stands before any heading stays there"
    return sorted(sections, key=lambda s: -1 if s[0].heading is None else min((rank(n) for u in s for n in u.names), default=NEVER))


def markdown(source: str): return mk_cell(source, cell_type='markdown')


def order_cells(cells, is_public, rank=lambda name: NEVER) -> list:
    "Public definitions first, with their text and lessons, in the order of their `rank`; then what is internal, folded"
    names = [c['defines'] for c in cells if c.get('defines')]
    if not any(map(is_public, names)): return cells
    parts = [split_section(s, is_public) for s in leading_first(sections_of(units_of(cells)), rank)]
    stay, internal = ([c for p in parts for c in p[i]] for i in (0, 1))
    hidden = [n for n in names if not is_public(n)]
    if not hidden: return stay
    shown = ', '.join(f'<code>{n}</code>' for n in hidden[:8]) + (', …' if len(hidden) > 8 else '')
    opening = f'<details class="internals">\n<summary><b>Internals</b> <span>{shown}</span></summary>\n\n::: {{.internals-body}}'
    return [*stay, markdown(opening), *map(unlisted, internal), markdown(':::\n\n</details>')]
