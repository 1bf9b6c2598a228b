"""Overview pages of the site: for each section of the sidebar that has one, a card per page, with its title, its line and a picture

The order is that of the sidebar in `_quarto.yml`; title and line are the notebook's own. The picture is the first plot or photograph among its outputs, or `nbs/images/SECTION/PAGE.svg`.
"""
import base64, html, io, json, os, re
from pathlib import Path
from typing import NamedTuple

import yaml
from PIL import Image

from looks import on_white, picture_of

WIDTH = 480   # pixels of a card's picture: twice its size on the page


class Card(NamedTuple):
    "A page of a section"
    link: str      # from the overview page
    title: str
    line: str
    picture: str   # from the overview page; '' for none
    plot: bool = False   # is it one, which is dark in the dark?


def sections(config:dict) -> dict:
    "Overview page -> (title, its pages), for the sections of a sidebar that have one"
    found = config['website']['sidebar']['contents']
    return {o['href']: (o['section'], [p if isinstance(p, str) else p['href'] for p in o['contents']]) for o in found if isinstance(o, dict) and o.get('href', '').endswith('/index.md') and 'contents' in o}


def heading(nb:dict) -> tuple:
    "(title, line) of a notebook"
    first = ''.join(nb['cells'][0]['source'])
    return re.match(r'# (.+)\n> (.+)', first).groups()


def first_picture(nb:dict) -> bytes|None:
    "The first picture among a notebook's outputs, as PNG; None if it has none"
    found = (o['data']['image/png'] for c in nb['cells'] for o in c.get('outputs', []) if 'image/png' in o.get('data', {}))
    png = next(found, None)
    return base64.b64decode(''.join(png)) if png else None


def thumbnail(img:Image.Image) -> Image.Image:
    "A card's picture: 3:2, the top of tall pictures, all of wide ones, on white"
    img = on_white(img)
    img = img.crop((0, 0, img.width, min(img.height, img.width*2//3)))
    scale = min(WIDTH/img.width, WIDTH*2/3/img.height)
    img = img.resize((max(1, round(img.width*scale)), max(1, round(img.height*scale))), Image.Resampling.LANCZOS)
    canvas = Image.new('RGB', (WIDTH, WIDTH*2//3), 'white')
    canvas.paste(img, ((WIDTH - img.width)//2, (canvas.height - img.height)//2))
    return canvas


def card(nbs:Path, out:Path, page:str, notebook:Path, overview_page:str) -> Card:
    "The card of a page on an overview page; its picture is written below `out`"
    nb = json.loads(notebook.read_text())
    folder, name = Path(page).parent, Path(page).stem
    drawn, picture, plot = nbs/'images'/folder/f'{name}.svg', '', False
    if drawn.exists(): picture = f'images/{folder}/{name}.svg'
    elif png := first_picture(nb):
        picture, plot = f'images/{folder}/{name}.webp', picture_of(png)[1]
        (out/picture).parent.mkdir(parents=True, exist_ok=True)
        thumbnail(Image.open(io.BytesIO(png))).save(out/picture, quality=80)
    link = os.path.relpath(Path(page).with_suffix('.html'), Path(overview_page).parent)
    return Card(Path(link).as_posix(), *heading(nb), picture and f'../{picture}', plot)


def plain(text:str) -> str:
    "Markdown of a line as HTML: code is all that titles and lines have of it"
    return re.sub(r'`([^`]+)`', r'<code>\1</code>', html.escape(text))


def overview(title:str, line:str, cards:list) -> str:
    "The Markdown of an overview page"
    def one(c):
        kind = ' class="plot"' if c.plot else ''
        picture = f'<img{kind} src="{c.picture}" alt="">' if c.picture else ''
        return f'<a class="overview-card" href="{c.link}">{picture}<b>{plain(c.title)}</b><span>{plain(c.line)}</span></a>'
    grid = '\n'.join(map(one, cards))
    front = yaml.safe_dump(dict(title=title, description=line, toc=False), allow_unicode=True)
    return f'---\n{front}---\n\n```{{=html}}\n<div class="overview-cards">\n{grid}\n</div>\n```\n'


LINES = {
    'tutorials/index.md': 'Lessons from beginning to end. Each runs offline on a CPU, in a minute or two',
    'how_to/index.md': 'One question each, with its commands',
    'concepts/index.md': 'How it works and why, with the measurements',
    'coming_from/index.md': 'Your names, ours, and what is different on purpose'}


def write_overviews(nbs:Path, out:Path, config:dict, sources:dict) -> list:
    "Write the overview page of each section into `out`; `sources` has the notebook of each page. Returns the pages"
    for page, (title, pages) in sections(config).items():
        cards = [card(nbs, out, p, sources[p], page) for p in pages if p in sources]
        (out/page).parent.mkdir(parents=True, exist_ok=True)
        (out/page).write_text(overview(title, LINES[page], cards))
    return list(sections(config))


def write_changelog(changelog:Path, out:Path):
    "The changelog as a page"
    text = changelog.read_text().split('\n', 1)[1].lstrip()
    front = yaml.safe_dump(dict(title='Changelog', description='What changed, version by version'))
    (out/'changelog.md').write_text(f'---\n{front}---\n\n{text}')
