"""Compare candidates that do the same work, in turns in one process: speed, memory, and the peak rate of the machine.

`turns` lets candidates take turns, `result` says what came of it. `workload` is the work, `ours`, `with_transformers` and
`with_timm` are those who do it, `races` puts them together; `data_path` compares the reading of images. `matrix` is what the
machine can do, `memory` and `operators` look at one candidate alone.
"""
