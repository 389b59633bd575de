"""Reports: charts, images, "is this normal?", and one self-contained `report.html`.

`journal` reads the log of a run, `normal` checks the numbers, `charts` and `images` draw, and `document.Report` puts it all into
one file. Nothing here trains or loads a model: numbers and images come in, text and bytes go out.
"""
