"""What a run shows its user: charts, pictures, "is this normal?", and one self-contained `report.html`.

`journal` reads what a run logged, `normal` judges the numbers, `charts` and `pictures` draw, and `document.Report` puts it all
into one file. Nothing here trains or loads a model: numbers and pictures come in, text and bytes go out.
"""
