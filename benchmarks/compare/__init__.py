"""Candidates that do the same work take turns in one process; how fast each is, its memory, and what the machine itself can do.

`turns` lets candidates take turns, `result` says what came of it. `workload` is the work, `ours`, `with_transformers` and
`with_timm` are those who do it, `races` puts them together; `data_path` compares the reading of images. `matrix` is what the
machine can do, `memory` and `operators` look at one candidate alone.
"""
