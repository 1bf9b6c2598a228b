"Files that no good camera writes: what is wrong with them, and what has to come of them"
import io, os, random, socket, struct, zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (96, 72)
BAD, GOOD, ANY = 'bad', 'good', 'any'   # has to be refused with a reason; has to be seen as the picture that it is; either, but no third thing


def art(seed=0) -> Image.Image:
    "A smooth picture: any lossy format keeps it"
    y, x = np.mgrid[:SIZE[1], :SIZE[0]]
    a, b, c = np.random.RandomState(seed).uniform(.02, .08, 3)
    return Image.fromarray(np.stack([127 + 120*np.sin(a*x), 127 + 120*np.sin(b*y), 127 + 120*np.sin(c*(x+y))], -1).astype(np.uint8))


def encoded(img, fmt, **kw) -> bytes:
    buf = io.BytesIO()
    img.save(buf, fmt, **kw)
    return buf.getvalue()


def png(width, height, rows=b'', bits=8, kind=2) -> bytes:
    "A PNG whose header says what it likes"
    chunk = lambda name, data: struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, kind, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(rows, 1)) + chunk(b'IEND', b'')


@dataclass
class Case:
    name: str        # of the file, any bytes that a file system takes
    data: bytes      # what is in it
    fate: str        # BAD, GOOD, ANY
    seed: int = 0    # of the picture that a GOOD one shows


FORMATS = dict(png='PNG', jpg='JPEG', gif='GIF', bmp='BMP', tif='TIFF', webp='WEBP', ppm='PPM', ico='ICO', tga='TGA', jp2='JPEG2000', pcx='PCX', sgi='SGI', dds='DDS', avif='AVIF', im='IM')


def damaged() -> list:
    "Every format, cut short, zeroed, turned over, and under another format's name"
    cases, dice = [], random.Random(0)
    for ext, fmt in FORMATS.items():
        try: data = encoded(art(), fmt)
        except Exception: continue   # a Pillow without it
        k = len(data)
        for at in (1, 7, 20, k//10, k//2):
            cases.append(Case(f'cut_{fmt}_{at}.{ext}', data[:at], BAD if fmt in ('PNG', 'JPEG', 'GIF', 'WEBP', 'BMP') else ANY))
        cases.append(Case(f'nearly_whole_{fmt}.{ext}', data[:-3], BAD if fmt in ('BMP', 'PPM') else ANY))
        cases.append(Case(f'no_header_{fmt}.{ext}', bytes(min(64, k//2)) + data[min(64, k//2):], ANY if fmt in ('TGA', 'ICO') else BAD))
        cases.append(Case(f'header_alone_{fmt}.{ext}', data[:64] + bytes(k-64), ANY))
        for i in range(5):
            spoilt = bytearray(data)
            for _ in range(1 + 3*i): spoilt[dice.randrange(k)] = dice.randrange(256)
            cases.append(Case(f'spoilt_{fmt}_{i}.{ext}', bytes(spoilt), ANY))
        cases.append(Case(f'noise_behind_{fmt}.{ext}', data[:32] + dice.randbytes(2000), ANY))
        cases.append(Case(f'twice_{fmt}.{ext}', data + data, ANY))
        other = 'jpg' if ext != 'jpg' else 'png'
        if fmt in ('PNG', 'BMP', 'GIF', 'JPEG', 'WEBP', 'TIFF'): cases.append(Case(f'really_{fmt}.{other}', data, ANY if fmt == 'GIF' else GOOD))
    return cases


def not_images() -> list:
    html = b'<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>'
    things = dict(html=html, xml=b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', json=b'{"error": "rate limit"}', text=b'hello\n', zip=b'PK\x03\x04' + bytes(100), elf=b'\x7fELF' + bytes(100),
                  pdf=b'%PDF-1.7\n', shell=b'#!/bin/sh\ntouch ran\n', gzip=b'\x1f\x8b\x08' + bytes(40), zeros=bytes(5000), ones=b'\xff'*5000, spaces=b' '*300, noise=random.Random(1).randbytes(5000), pickle=b'\x80\x04\x95' + bytes(30), lfs=b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n',
                  eps=b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(ran) (w) file closefile\nshowpage\n', nothing=b'')
    return [Case(f'{what}_as.{ext}', data, BAD) for what, data in things.items() for ext in ('jpg', 'png', 'webp')]


def absurd() -> list:
    big, wide = 60_000, 9600   # Pillow refuses the first, and warns about the second: it has more than 89 megapixels
    jpg = bytearray(encoded(art(), 'JPEG'))
    sof = jpg.index(b'\xff\xc0')
    jpg[sof+5:sof+9] = struct.pack('>HH', 65_000, 65_000)
    gif = bytearray(encoded(art().quantize(8), 'GIF'))
    gif[6:10] = struct.pack('<HH', 65_535, 65_535)
    tif = io.BytesIO()
    Image.new('1', (30_000, 30_000)).save(tif, 'TIFF', compression='group4')
    bomb = zlib.compress(bytes(10_000_000), 9)
    text = b'\x89PNG\r\n\x1a\n' + png(8, 8)[8:33] + b''.join(struct.pack('>I', len(d)) + b'zTXt' + d + struct.pack('>I', zlib.crc32(b'zTXt' + d)) for d in [b'a\0\0' + bomb]*3) + png(8, 8, bytes(8*25))[33:]
    return [Case('bomb_60000.png', png(big, big), BAD), Case('bomb_32_bit.png', png(2**31-1, 2**31-1), BAD), Case('no_width.png', png(0, 10), BAD), Case('no_height.png', png(10, 0), BAD), Case('beyond.png', png(2**32-1, 5), BAD),
            Case('bomb.jpg', bytes(jpg), BAD), Case('bomb.gif', bytes(gif), BAD), Case('bomb.tif', tif.getvalue(), BAD), Case('bomb_in_a_text.png', text, ANY),
            Case('one_pixel.png', encoded(Image.new('RGB', (1, 1)), 'PNG'), ANY), Case('a_line.png', encoded(Image.new('RGB', (20_000, 1)), 'PNG'), ANY), Case('a_column.png', encoded(Image.new('L', (1, 20_000)), 'PNG'), ANY),
            Case('flat_92_megapixels.png', png(wide, wide, bytes(wide*(wide*3+1))), ANY), Case('bits_16_wrong_kind.png', png(4, 4, bytes(100), bits=16, kind=3), BAD), Case('bits_7.png', png(4, 4, bytes(100), bits=7), BAD)]


def unusual() -> list:
    "Right, and not what a loader for snapshots expects: shown as what they are"
    img, res = art(), []
    a16 = (np.asarray(img.convert('L'), dtype=np.uint16)*257)
    frames = [art(0), art(1), art(2)]
    def exif(data): return encoded(img, 'JPEG', quality=95, exif=data)
    good = dict(cmyk_jpg=('jpg', encoded(img.convert('CMYK'), 'JPEG', quality=95)), animated_png=('png', encoded(frames[0], 'PNG', save_all=True, append_images=frames[1:])), animated_webp=('webp', encoded(frames[0], 'WEBP', save_all=True, append_images=frames[1:], quality=95)),
                rgba=('png', encoded(img.convert('RGBA'), 'PNG')), progressive=('jpg', encoded(img, 'JPEG', progressive=True, quality=95)), interlaced=('png', encoded(img, 'PNG')), ycbcr_tif=('tif', encoded(img, 'TIFF', compression='jpeg', quality=95)), lzw_tif=('tif', encoded(img, 'TIFF', compression='tiff_lzw')),
                cmyk_tif=('tif', encoded(img.convert('CMYK'), 'TIFF')), pages_tif=('tif', encoded(frames[0], 'TIFF', save_all=True, append_images=frames[1:])), exif_cut=('jpg', exif(b'Exif\0\0MM\0*')), exif_noise=('jpg', exif(b'Exif\0\0' + random.Random(2).randbytes(500))), exif_orientation_99=('jpg', exif(_exif(99))), exif_orientation_0=('jpg', exif(_exif(0))),
                exif_long=('jpg', exif(b'Exif\0\0II*\0\x08\0\0\0\xff\xff' + bytes(100))), exif_loop=('jpg', exif(b'Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0')), icc_noise=('png', encoded(img, 'PNG', icc_profile=random.Random(3).randbytes(400))), comment=('jpg', encoded(img, 'JPEG', quality=95, comment=b'\xff\xfe\0'*20)),
                bmp_upside_down=('bmp', encoded(img, 'BMP')), upper_case=('PNG', encoded(img, 'PNG')), lossless_webp=('webp', encoded(img, 'WEBP', lossless=True)), tail=('jpg', encoded(img, 'JPEG', quality=95) + b'<script>alert(1)</script>'))
    for name, (ext, data) in good.items(): res.append(Case(f'{name}.{ext}', data, GOOD))
    for i, o in enumerate(range(1, 9)): res.append(Case(f'orientation_{o}.jpg', _turned(img, o), GOOD))
    any_ = dict(grey16=('png', encoded(Image.fromarray(a16), 'PNG')), grey16_tif=('tif', encoded(Image.fromarray(a16), 'TIFF')), palette=('png', encoded(img.quantize(64), 'PNG')), palette_with_transparency=('png', encoded(img.quantize(64), 'PNG', transparency=3)), grey=('jpg', encoded(img.convert('L'), 'JPEG')),
                one_bit=('png', encoded(img.convert('1'), 'PNG')), la=('png', encoded(img.convert('LA'), 'PNG')), animated_gif=('gif', encoded(frames[0], 'GIF', save_all=True, append_images=frames[1:])), grey_animation=('webp', encoded(img.convert('L'), 'WEBP')))
    for name, (ext, data) in any_.items(): res.append(Case(f'{name}.{ext}', data, ANY))
    res.append(Case('float.tif', encoded(Image.fromarray(np.asarray(img.convert('L'), dtype=np.float32)), 'TIFF'), BAD))
    res.append(Case('int32.tif', encoded(Image.fromarray(np.asarray(img.convert('L'), dtype=np.int32)*10_000_000), 'TIFF'), BAD))
    return res


def _exif(orientation) -> bytes:
    e = Image.Exif()
    e[0x0112] = orientation
    return e.tobytes()


def _turned(img, orientation) -> bytes:
    "Stored as a camera held otherwise stores it"
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}
    return encoded(img.transpose(undo[orientation]) if orientation in undo else img, 'JPEG', quality=95, exif=_exif(orientation))


def oddly_named() -> list:
    data = encoded(art(), 'PNG')
    names = ['new\nline.png', 'tab\there.png', 'carriage\rreturn.png', 'bell\x07.png', '\x1b[2J\x1b[31mclear.png', '-rf.png', '--csv.png', '=1+1.png', '=HYPERLINK("http:example").png', '@SUM(1).png', '+1.png', 'a,b;c.png', 'quote"s.png', "apostrophe's.png", '<img src=x onerror=alert(1)>.png', '<script>alert(1)<', '&amp;.png', '%2e%2e%2f.png',
             '..png', '...png', ' .png', ' leading.png', 'trailing .png', '日本語.png', '🐈‍⬛😀.png', 'é.png', 'e\u0301.png', '\u202egnp.exe.png', '\u200b.png', 'ＦＵＬＬ.png', 'CON.png', 'nul.png', '$(touch ran).png', '`touch ran`.png', '; touch ran.png', '|touch ran.png', '*.png', '?.png', '[a-z].png', '~.png', '{a,b}.png', 'back\\slash.png', '#.png', '%s%n.png',
             '{0.__class__}.png', 'x'*251 + '.png', '🐈'*62 + '.png', 'a.jpg.png', 'Thumbs.db.png', os.fsdecode(b'latin1-caf\xe9.png'), os.fsdecode(b'\xff\xfe.png'), 'label.png.', 'nul\\0.png', 'nan.png', 'None.png', '\\n.png']
    return [Case(n if n.endswith('.png') else n + '.png', data, GOOD) for n in names]


@cache
def all_cases() -> list: return damaged() + not_images() + absurd() + unusual() + oddly_named()


def write(folder: Path) -> dict:
    "Write all of them, and what is no file at all: path -> Case"
    folder.mkdir(parents=True, exist_ok=True)
    res = {}
    for case in all_cases():
        path = os.path.join(folder, case.name)
        with open(path, 'wb') as f: f.write(case.data)
        res[path] = case
    def other(name, make, fate=BAD):
        path = os.path.join(folder, name)
        make(path)
        res[path] = Case(name, b'', fate)
    other('pipe.png', os.mkfifo)
    other('socket.png', lambda p: _socket(p))
    other('loop.png', lambda p: os.symlink(p, p))
    other('dangling.png', lambda p: os.symlink('nowhere.png', p))
    other('zero.png', lambda p: os.symlink('/dev/zero', p))
    other('random.jpg', lambda p: os.symlink('/dev/urandom', p))
    other('sparse.png', _sparse)
    other('link.png', lambda p: os.symlink('rgba.png', p), GOOD)
    os.symlink('.', os.path.join(folder, 'round'))           # folders that contain themselves
    os.symlink('..', os.path.join(folder, 'up_and_down'))
    os.makedirs(os.path.join(folder, 'folder.png'), exist_ok=True)
    return res


def _sparse(path):
    with open(path, 'wb') as f: f.truncate(2**40)


def _socket(path):
    here = os.getcwd()
    try:
        os.chdir(os.path.dirname(path))   # an address may have 108 bytes
        with socket.socket(socket.AF_UNIX) as s: s.bind(os.path.basename(path))
    finally: os.chdir(here)
