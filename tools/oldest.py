"""The oldest versions that settings.ini allows, as constraints for pip: `python tools/oldest.py > oldest.txt && pip install -c oldest.txt .`"""
import configparser, re
from pathlib import Path


# what users install when they want it: nbdev's migration (3.3) writes no extras but `dev`, so their bounds stand there
OPTIONAL = ('onnx', 'onnxscript', 'onnxruntime', 'accelerate', 'datasets', 'webdataset', 'pyarrow')


def oldest() -> list:
    "'name==version' of every requirement that users have or may have, with its lower bound"
    ini = configparser.ConfigParser()
    ini.read(Path(__file__).parents[1]/'settings.ini')
    name = lambda word: re.match(r'[\w.-]+', word)[0]
    words = ini['DEFAULT']['requirements'].split() + [w for w in ini['DEFAULT']['dev_requirements'].split() if name(w) in OPTIONAL]
    found = [re.fullmatch(r'([\w.-]+)>=([\w.]+)', w) for w in words]
    if bad := [w for w, m in zip(words, found) if not m]: raise SystemExit(f'settings.ini: {bad[0]} has no lower bound')
    return [f'{m[1]}=={m[2]}' for m in found]


if __name__ == '__main__': print(*oldest(), sep='\n')
