"""The picture of the house: `python tools/rooms.py` draws the rooms of `fastbit/` and what they import into nbs/rooms.svg

A room stands above all rooms that it imports; an arrow is an import that no longer path implies. Words are those of the rooms' doors.
"""
import ast, textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT/'fastbit'
ALONE = dict(hyperrule='the BiT rule as numbers', config='every option of a run, once')   # rooms of one module
NOT_DRAWN = ('all', '__main__', '__init__', '_modidx')
WIDTH, BOX, GAP, LINE = 1000, 300, 34, 17   # pixels: of the picture, the widest box, between floors, of a line of text

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .name { font-weight: 700; font-size: 15px }
  .modules { fill: #59636e; font-size: 12px }
  rect { fill: #f6f8fa; stroke: #8c959f }
  path { stroke: #8c959f; fill: none; marker-end: url(#head) }
  #head path { fill: #8c959f; marker-end: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .modules { fill: #9198a1 } rect { fill: #161b22; stroke: #6e7681 }
  }
"""


class Room(NamedTuple):
    "A folder of modules, or one module"
    name: str
    words: str
    modules: tuple
    imports: frozenset   # names of rooms


def imported(path: Path) -> set:
    "Rooms that a file imports"
    here = ('fastbit', *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom): continue
        base = here[:len(here) - node.level + 1] if node.level else ()   # inside a function nbdev leaves the absolute name
        full = [*base, *(node.module or '').split('.')]
        if full[0] != 'fastbit': continue
        if len(full) > 1 and full[1]: found.add(full[1])
    return found


def find_rooms() -> dict:
    "Name -> `Room`"
    rooms = {}
    for folder in sorted(p for p in PACKAGE.iterdir() if (p/'__init__.py').exists()):
        files = [p for p in sorted(folder.glob('*.py')) if p.stem != '__init__']
        words = ast.get_docstring(ast.parse((folder/'__init__.py').read_text())).splitlines()[0].partition(';')[0]
        used = set().union(*map(imported, files)) - {folder.name}
        rooms[folder.name] = Room(folder.name, words, tuple(p.stem for p in files), frozenset(used))
    for name, words in ALONE.items():
        if (PACKAGE/f'{name}.py').exists(): rooms[name] = Room(name, words, (), frozenset(imported(PACKAGE/f'{name}.py')))
    return {k: r._replace(imports=r.imports & set(rooms)) for k, r in rooms.items()}


def floor_of(rooms: dict, name: str) -> int:
    "0: imports no other room"
    return 1 + max((floor_of(rooms, n) for n in rooms[name].imports), default=-1)


def reaches(rooms: dict, name: str) -> set:
    "Every room below one"
    return set(rooms[name].imports).union(*(reaches(rooms, n) for n in rooms[name].imports))


def direct(rooms: dict, name: str) -> list:
    "Imports of a room that no other of its imports implies"
    below = rooms[name].imports
    return sorted(n for n in below if not any(n in reaches(rooms, other) for other in below - {n}))


class Box(NamedTuple):
    x: float
    y: float
    w: float
    h: float


def lines_of(room: Room, width: float) -> list:
    "(class, line) pairs of the text in a box"
    n = int(width/7.3)
    words = [('', line) for line in textwrap.wrap(room.words, n)]
    dotted = textwrap.wrap(' '.join(f'{m} ·' for m in room.modules).rstrip(' ·').replace(' ·', '\N{NO-BREAK SPACE}·'), int(n*1.1))
    modules = [('modules', line) for line in dotted]
    return [('name', room.name), *words, *modules]


def place(rooms: dict) -> dict:
    "Room -> its `Box`, the highest floor on top"
    floors = {}
    for name in rooms: floors.setdefault(floor_of(rooms, name), []).append(name)
    boxes, y = {}, 20
    for floor in sorted(floors, reverse=True):
        names = sorted(floors[floor])
        w = 620 if len(names) == 1 else min(BOX, (WIDTH - 40 - 30*(len(names)-1))/len(names)) if len(names) > 2 else 420
        h = 16 + LINE*max(len(lines_of(rooms[n], w)) for n in names)
        x = (WIDTH - len(names)*w - 30*(len(names)-1))/2
        for n in names:
            boxes[n] = Box(x, y, w, h)
            x += w + 30
        y += h + GAP
    return boxes


def draw(rooms: dict) -> str:
    "The picture, as SVG"
    boxes = place(rooms)
    height = max(b.y + b.h for b in boxes.values()) + 20
    parts = []
    for name in rooms:
        a = boxes[name]
        for target in direct(rooms, name):
            b = boxes[target]
            x1, x2, y1, y2 = a.x + a.w/2, b.x + b.w/2, a.y + a.h, b.y - 6
            parts.append(f'<path d="M{x1:.0f} {y1:.0f} C{x1:.0f} {y1+20:.0f} {x2:.0f} {y2-20:.0f} {x2:.0f} {y2:.0f}"/>')
    for name, b in boxes.items():
        parts.append(f'<rect x="{b.x:.0f}" y="{b.y:.0f}" width="{b.w:.0f}" height="{b.h:.0f}" rx="8"/>')
        for i, (kind, line) in enumerate(lines_of(rooms[name], b.w)):
            kind = f' class="{kind}"' if kind else ''
            parts.append(f'<text x="{b.x+12:.0f}" y="{b.y+22+LINE*i:.0f}"{kind}>{line}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="The rooms of fastbit">'
    marker = ('<defs><marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
              '<path d="M0 0L8 4L0 8z"/></marker></defs>')
    return '\n'.join([head, f'<style>{STYLE}</style>', marker, *parts, '</svg>', ''])


if __name__ == '__main__': (ROOT/'nbs'/'rooms.svg').write_text(draw(find_rooms()))
