"""The demo's files: a photograph with a camera's metadata, and a PDF."""

from __future__ import annotations

import io
import math
import random

from PIL import ExifTags, Image, ImageDraw, ImageFilter

CAMERA = "Penstock Demo Camera"
WIDTH, HEIGHT = 1600, 1200
"""Size of the upright photograph; the file stores it on its side, as cameras do."""
SUN = (1250, 260)
"""Position of the sun, which shows whether the picture was turned upright."""
COORDINATES = ((46.0, 34.0, 30.0), (7.0, 54.0, 20.0))
"""Degrees, minutes, seconds: north and east."""


def photo() -> bytes:
    """A JPEG of a valley with a reservoir's pipes, with EXIF orientation 6, camera, time and GPS position."""
    picture = _valley()
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Penstock"
    exif[ExifTags.Base.Model] = CAMERA
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.DateTime] = "2026:05:17 18:42:09"
    position = exif.get_ifd(ExifTags.IFD.GPSInfo)
    position[ExifTags.GPS.GPSLatitudeRef], position[ExifTags.GPS.GPSLatitude] = "N", COORDINATES[0]
    position[ExifTags.GPS.GPSLongitudeRef], position[ExifTags.GPS.GPSLongitude] = "E", COORDINATES[1]
    file = io.BytesIO()
    # Orientation 6 says: turn me by 90° clockwise to see me upright.
    picture.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", quality=88, exif=exif)
    return file.getvalue()


def pdf() -> bytes:
    """A PDF of one page with a few lines of text, its table of contents exact to the byte."""
    lines = ["Delivery note 2026-0517", "Ten turbine blades, one penstock, no leaks.", "Received in good order."]
    text = b"BT /F1 18 Tf 72 760 Td 28 TL " + b" ".join(f"({line}) Tj T*".encode("ascii") for line in lines) + b" ET"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(text), text),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    file = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = len(file)
    file += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    file += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    file += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table)
    return bytes(file)


def _valley() -> Image.Image:
    chance = random.Random(1)
    dusk = Image.linear_gradient("L").resize((WIDTH, HEIGHT))
    bands = [
        dusk.point([top + (foot - top) * level // 255 for level in range(256)])
        for top, foot in ((36, 255), (70, 190), (140, 120))
    ]
    picture = Image.merge("RGB", bands)
    draw = ImageDraw.Draw(picture)
    x, y = SUN
    draw.ellipse((x - 90, y - 90, x + 90, y + 90), fill=(255, 236, 170))
    for layer, colour in enumerate([(92, 84, 118), (62, 62, 92), (34, 42, 60)]):
        base, height = 620 + 170 * layer, 230 - 50 * layer
        phases = [chance.uniform(0, 6.3) for _ in range(3)]
        ridge = [
            (x, base - height * (0.5 * math.sin(x / 260 + phases[0]) + 0.3 * math.sin(x / 110 + phases[1]))
             - 14 * math.sin(x / 23 + phases[2]))
            for x in range(0, WIDTH + 1, 8)
        ]  # fmt: skip
        draw.polygon([(0, HEIGHT), *ridge, (WIDTH, HEIGHT)], fill=colour)
    for pipe in range(3):
        top, foot = (470 + 46 * pipe, 640), (690 + 60 * pipe, 1110)
        draw.line((*top, *foot), fill=(150, 158, 170), width=22)
        draw.line((top[0] - 5, top[1], foot[0] - 5, foot[1]), fill=(205, 212, 222), width=6)
    draw.rectangle((640, 1080, 900, 1160), fill=(196, 178, 150))
    draw.rectangle((0, 1160, WIDTH, HEIGHT), fill=(40, 92, 120))
    return picture.filter(ImageFilter.GaussianBlur(1.2))
