"""`make config`: settings.ini -> pyproject.toml, by nbdev's migration, with what that (nbdev 3.3) does not write

The migration knows one flat package and the extra `dev`. Added here: sub-packages, package data and the other extras.
"""
import configparser, re
from pathlib import Path

from nbdev.migrate import nbdev_migrate_config

ROOT = Path(__file__).parents[1]
EXTRAS = ('onnx', 'distributed', 'streaming', 'maps', 'notebook')
PACKAGE_DATA = ('templates/*.html', 'templates/*.css', 'templates/*.js', '*.csv')   # of any room


def settings(root: Path = ROOT) -> configparser.SectionProxy:
    "What people edit"
    ini = configparser.ConfigParser()
    ini.read(root/'settings.ini')
    return ini['DEFAULT']


def extras(ini) -> dict:
    "Extra -> requirements; `dev` has those of all the others too, for the tests need them"
    own = {name: ini[f'{name}_requirements'].split() for name in EXTRAS}
    dev = [word for words in own.values() for word in words] + ini['dev_requirements'].split()
    return own | dict(dev=list(dict.fromkeys(dev)))


def complete(text: str, ini) -> str:
    "`text` of pyproject.toml with sub-packages, package data and all extras; `ValueError` where the migration has changed"
    lines = [f'{name} = {words!r}' for name, words in extras(ini).items()]
    text = replace_one(r'^dev = \[.*\]$', '\n'.join(lines), text)
    packages = f'include = ["{ini["lib_name"]}*"]\n\n[tool.setuptools.package-data]\n"*" = {list(PACKAGE_DATA)!r}'
    return replace_one(r'^include = \[.*\]$', packages, text)


def replace_one(pattern: str, new: str, text: str) -> str:
    "`text` with the one line that matches `pattern` replaced"
    found = re.findall(pattern, text, re.M)
    if len(found) != 1: raise ValueError(f'pyproject.toml has {len(found)} lines like {pattern}: nbdev writes it differently now.')
    return re.sub(pattern, lambda m: new, text, flags=re.M)


def main():
    nbdev_migrate_config(ROOT)
    path = ROOT/'pyproject.toml'
    path.write_text(complete(path.read_text(), settings()))


if __name__ == '__main__': main()
