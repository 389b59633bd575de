"""What a run shows its user: charts, images, "is this normal?", and one self-contained `report.html`.

`journal` reads what a run logged, `normal` judges the numbers, `charts` and `images` draw, and `document.Report` puts it all
into one file. Nothing here trains or loads a model: numbers and images come in, text and bytes go out.
"""
